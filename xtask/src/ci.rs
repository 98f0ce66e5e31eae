//! Continuous integration: turns the checkout into a verdict, step by step, with the time each step took.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{fuzz, lint, rings, setup};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 6] = [
    ("setup", setup::run),
    ("formatting", lint::formatting),
    ("clippy", lint::clippy),
    ("structure", lint::structure),
    ("tests", || rings::run(&[])),
    ("fuzzing", fuzz::smoke),
];

/// Runs every step; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    let mut times = Vec::new();
    for (name, step) in STEPS {
        println!("━━ {name}");
        let start = Instant::now();
        let result = step();
        times.push((name, start.elapsed(), result.is_ok()));
        if result.is_err() {
            print_times(&times);
        }
        result.with_context(|| format!("CI step \"{name}\""))?;
    }
    print_times(&times);
    Ok(())
}

fn print_times(times: &[(&str, std::time::Duration, bool)]) {
    println!("━━ times");
    for (name, took, ok) in times {
        println!("  {} {name:<12} {:>7.1} s", if *ok { "✔" } else { "✘" }, took.as_secs_f64());
    }
}
