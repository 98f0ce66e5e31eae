//! The rings of tests: turns "test everything" into cargo runs from the fastest ring to the slowest.

use std::thread::available_parallelism;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Result, bail};

use crate::shell::{cargo, root, stream};

/// What tells a test program how many tests to run at the same time.
const THREADS: &str = "RUST_TEST_THREADS";
/// The target of the lab ring.
const LAB: &str = "--test=lab";
/// The target of the kernel ring.
const KERNELS: &str = "--test=kernels";

/// Builds what is shipped, then runs every ring; `arguments` go to the test programs.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    crate::build()?;
    let mut units: Vec<_> = ["--lib", "--bins"].map(str::to_owned).into();
    units.extend(["lb-common/tests", "lb-userspace/tests"].into_iter().flat_map(test_targets));
    let in_kernel = test_targets("tests/tests");
    let (kernels, here): (Vec<_>, Vec<_>) = in_kernel.into_iter().partition(|target| target == KERNELS);
    let (lab, program) = here.into_iter().partition(|target| target == LAB);
    let rings = [
        ("unit and property tests", units),
        ("examples in the documentation", vec!["--doc".to_owned()]),
        ("program tests (the XDP program in the kernel)", program),
        ("lab tests (customers, agent and servers in namespaces)", lab),
        ("kernel tests (the same on other kernels, emulated)", kernels),
    ];
    // Every ring is run: one report of everything that fails beats the first failure.
    let mut failed = Vec::new();
    for (name, targets) in rings.iter().filter(|(_, targets)| !targets.is_empty()) {
        if let Err(error) = ring(name, targets, arguments) {
            eprintln!("✘ {name}: {error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("rings that failed: {}", failed.join("; "));
    }
    println!("✔ every ring passed");
    Ok(())
}

fn ring(name: &str, targets: &[String], arguments: &[String]) -> Result<()> {
    println!("━━ ring: {name}");
    let start = Instant::now();
    let mut test = cargo();
    // Always the whole workspace: with fewer packages cargo resolves other features and builds everything anew.
    test.args(["test", "--workspace", "--no-fail-fast"]).args(targets).arg("--").args(arguments);
    if targets.iter().any(|target| target == LAB) && env::var_os(THREADS).is_none() {
        // One more than there are cores: most of them wait most of the time.
        let cores = available_parallelism().map_or(1, usize::from);
        test.env(THREADS, (cores + 1).to_string());
    }
    stream(&mut test)?;
    println!("✔ {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The integration tests in a directory, if there is one, as cargo's target selection.
fn test_targets(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(directory)).into_iter().flatten().flatten();
    // A test is a file, or a folder with a `main.rs`.
    let tests = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").is_file());
    let mut targets: Vec<_> =
        tests.filter_map(|path| Some(format!("--test={}", path.file_stem()?.to_string_lossy()))).collect();
    targets.sort();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_and_the_kernels_are_rings() {
        assert!(test_targets("tests/tests").contains(&LAB.to_owned()));
        assert!(test_targets("tests/tests").contains(&"--test=program_nat".to_owned()));
        assert!(!test_targets("tests/tests").contains(&"--test=support".to_owned()));
        assert!(test_targets("tests/tests").contains(&KERNELS.to_owned()));
        assert!(test_targets("no/such/place").is_empty());
    }
}
