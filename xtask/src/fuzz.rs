//! Fuzzing: turns a target of `fuzz` into an instrumented program that is fed inputs until one breaks an invariant.
//!
//! The targets are those of `cargo fuzz`, which can run them, too. Here they are built by the stable compiler with the same
//! instrumentation (`fuzz/instrument.sh`), but without the address sanitizer, which only a nightly has: so nothing has to be
//! installed, and little to be built beyond what is shipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{announced, cargo, root, stream};

/// The targets: the names of the programs in `fuzz/Cargo.toml`.
pub(crate) const TARGETS: [&str; 5] = ["pipeline", "decap", "nat_round_trip", "affinity", "config"];

/// Seconds after which an input counts as one that never ends.
const PATIENCE_SECONDS: u32 = 20;

/// Seconds that each target is fed inputs for in a smoke run.
const SMOKE_SECONDS: u32 = 6;

/// Runs one target until it finds something or is stopped.
pub(crate) fn run(target: &str) -> Result<()> {
    let mut fuzzer = fuzzer(&build()?, target)?;
    stream(&mut fuzzer).with_context(|| advice(target))
}

/// Runs every target for some seconds.
pub(crate) fn smoke() -> Result<()> {
    let programs = build()?;
    for target in TARGETS {
        let mut fuzzer = fuzzer(&programs, target)?;
        fuzzer.arg(format!("-max_total_time={SMOKE_SECONDS}"));
        announced(&format!("fuzzing {target} for {SMOKE_SECONDS} s"), &mut fuzzer)
            .with_context(|| advice(target))?;
    }
    println!("✔ fuzzing: {}", TARGETS.join(", "));
    Ok(())
}

/// What to do about a target that failed.
fn advice(target: &str) -> String {
    format!(
        "an invariant does not hold: copy the input from fuzz/artifacts/{target} to fuzz/regressions/{target}"
    )
}

/// Builds the targets; yields the folder they are in.
fn build() -> Result<PathBuf> {
    let target = root().join("target");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    build.arg("--target-dir").arg(&target);
    build.env("RUSTC_WRAPPER", root().join("fuzz/instrument.sh"));
    stream(&mut build)?;
    Ok(target.join("release"))
}

/// What feeds a target; what it learns goes to its corpus, and an input that breaks it to its artifacts.
fn fuzzer(programs: &Path, target: &str) -> Result<Command> {
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
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzzer.arg(format!("-timeout={PATIENCE_SECONDS}"));
    Ok(fuzzer)
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
