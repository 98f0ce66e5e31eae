//! Fuzzing: turns a target of `fuzz` into an instrumented program that is fed inputs until one breaks an invariant.
//!
//! The targets are those of `cargo fuzz`, which can run them, too. Here they are built by the stable compiler with the same
//! instrumentation, but without the address sanitizer, which only a nightly has: so nothing has to be installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::shell::{cargo, output, root, stream};

/// The targets: the names of the programs in `fuzz/Cargo.toml`.
pub(crate) const TARGETS: [&str; 5] = ["pipeline", "decap", "nat_round_trip", "affinity", "config"];

/// Seconds after which an input counts as one that never ends.
const PATIENCE_SECONDS: u32 = 20;

/// Seconds that each target is fed inputs for in a smoke run.
const SMOKE_SECONDS: u32 = 8;

/// What `cargo fuzz` has the compiler put in: a counter on each edge, and every comparison told to libFuzzer.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Runs one target until it finds something or is stopped.
pub(crate) fn run(target: &str) -> Result<()> {
    let programs = build()?;
    fuzz(&programs, target, &[])
}

/// Runs every target for some seconds.
pub(crate) fn smoke() -> Result<()> {
    let programs = build()?;
    for target in TARGETS {
        println!("→ fuzzing {target} for {SMOKE_SECONDS} s");
        let limit = format!("-max_total_time={SMOKE_SECONDS}");
        fuzz(&programs, target, &[&limit, "-verbosity=0", "-print_final_stats=1"])?;
    }
    println!("✔ fuzzing: {}", TARGETS.join(", "));
    Ok(())
}

/// Builds the targets; yields the folder they are in.
fn build() -> Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV")).context("`rustc -vV` failed")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target = root().join("target/fuzz");
    let mut build = cargo();
    // With a target named, build scripts and macros are not instrumented.
    build.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--target", host]);
    build.arg("--target-dir").arg(&target);
    build.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"));
    stream(&mut build)?;
    Ok(target.join(host).join("release"))
}

/// Feeds a target; what it learns goes to its corpus, and an input that breaks it to its artifacts.
fn fuzz(programs: &Path, target: &str, arguments: &[&str]) -> Result<()> {
    let place = |folder: &str| root().join("fuzz").join(folder).join(target);
    let (corpus, artifacts) = (place("corpus"), place("artifacts"));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(programs.join(target));
    fuzzer.arg(&corpus).arg(place("seeds"));
    let regressions = place("regressions");
    if regressions.is_dir() {
        fuzzer.arg(regressions);
    }
    fuzzer
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-timeout={PATIENCE_SECONDS}"));
    fuzzer.args(arguments);
    if env::var_os("RUST_BACKTRACE").is_none() {
        fuzzer.env("RUST_BACKTRACE", "1");
    }
    stream(&mut fuzzer).with_context(|| {
        format!(
            "an invariant does not hold: the input is in {}; copy it to fuzz/regressions/{target}",
            artifacts.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_run_and_has_seeds() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        let programs = manifest.split("[[bin]]").skip(1);
        let names: Vec<_> = programs.filter_map(|program| program.split('"').nth(1)).collect();
        assert_eq!(names, TARGETS);
        for target in TARGETS {
            let seeds = fs::read_dir(root().join("fuzz/seeds").join(target)).unwrap();
            assert!(seeds.count() > 0, "{target}");
        }
    }
}
