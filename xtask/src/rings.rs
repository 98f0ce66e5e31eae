//! The rings of tests: turns "test everything" into cargo runs from the fastest ring to the slowest.

use std::fs;

use anyhow::{Context, Result};

use crate::shell::{cargo, root, stream};

/// Builds what is shipped, then runs every ring; `arguments` go to the test programs.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    crate::build()?;
    let (lab, program) = test_files()?;
    ring(
        "unit and property tests",
        &["--workspace".to_owned(), "--exclude".to_owned(), "lb-tests".to_owned()],
        arguments,
    )?;
    ring("the lab's own unit tests", &["--lib".to_owned(), "--package=lb-tests".to_owned()], arguments)?;
    if !program.is_empty() {
        ring("program tests (the XDP program in the kernel)", &targets(&program), arguments)?;
    }
    ring("lab tests (customers, agent and servers in namespaces)", &targets(&lab), arguments)
}

fn ring(name: &str, selection: &[String], arguments: &[String]) -> Result<()> {
    println!("━━ ring: {name}");
    // All rings are run on all of the selection: one report of everything that fails beats the first failure.
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"]).args(selection).arg("--").args(arguments);
    stream(&mut test)
}

/// The integration tests of the package `lb-tests`: those in the lab, and the others.
fn test_files() -> Result<(Vec<String>, Vec<String>)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("tests/tests")).context("listing tests/tests")? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "rs") {
            names.extend(file.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names.into_iter().partition(|name| name.starts_with("lab_")))
}

fn targets(names: &[String]) -> Vec<String> {
    let tests = names.iter().map(|name| format!("--test={name}"));
    ["--package=lb-tests".to_owned()].into_iter().chain(tests).collect()
}
