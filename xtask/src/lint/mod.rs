//! Checks: turns the tree into a list of what breaks its rules: formatting, clippy's findings, structure.

mod manifests;
mod rules;
mod source;

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, root, stream};

/// A broken rule and its place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    message: String,
}

/// In the agent a failure is an error that is handled, never the end of the process.
const NO_PANICS: [&str; 7] =
    ["unwrap_used", "expect_used", "panic", "unreachable", "todo", "unimplemented", "indexing_slicing"];

/// All checks, so that one run tells everything that is wrong.
pub(crate) fn run() -> Result<()> {
    let results = [formatting(), structure(), clippy()];
    let failed: Vec<_> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// `rustfmt`, also for the eBPF crate and the fuzz targets, which are not in the workspace.
pub(crate) fn formatting() -> Result<()> {
    stream(cargo().args(["fmt", "--all", "--check"]))?;
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--check", "--edition", "2024"]);
    let roots = ["lib.rs", "main.rs", "decap/main.rs", "probe/main.rs", "bench/main.rs", "other/main.rs"];
    stream(rustfmt.args(roots.map(|file| format!("lb-ebpf/src/{file}"))))?;
    stream(cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    println!("✔ formatting");
    Ok(())
}

/// Clippy with warnings denied, and more strictly for the agent.
pub(crate) fn clippy() -> Result<()> {
    stream(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
        "-D",
        "clippy::too_many_lines",
    ]))?;
    // Without the test code, which may panic as it likes.
    let mut agent = cargo();
    agent.args([
        "clippy",
        "--package",
        "lb-userspace",
        "--no-deps",
        "--lib",
        "--bins",
        "--",
        "-D",
        "warnings",
    ]);
    for lint in NO_PANICS {
        agent.args(["-D", &format!("clippy::{lint}")]);
    }
    stream(&mut agent)?;
    println!("✔ clippy");
    Ok(())
}

/// What ARCHITECTURE.md promises and a program can check.
pub(crate) fn structure() -> Result<()> {
    let sources = source::read_all(root())?;
    let mut problems: Vec<_> = sources.iter().flat_map(rules::check).collect();
    problems.extend(manifests::check_workspace()?);
    problems.sort();
    for Problem { path, line, message } in &problems {
        eprintln!("{path}:{line}: {message}");
    }
    if !problems.is_empty() {
        bail!("the structure breaks {} rules", problems.len());
    }
    println!("✔ structure: {} files", sources.len());
    Ok(())
}

/// The words of a command, where they are wanted as a value.
fn words(command: &mut Command) -> Result<String> {
    let shown = crate::shell::show(command);
    crate::shell::output(command).with_context(|| format!("`{shown}` failed"))
}
