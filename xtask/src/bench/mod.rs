//! The bench: turns parts by name into measurements beside what a user would choose instead, tables, charts, and a verdict on
//! what was promised.

mod chart;
mod compare;
mod derived;
mod figures;
mod machine;
mod report;
mod stats;
mod targets;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use crate::shell::{announced, cargo, show};
use crate::{build, setup};
use figures::{Figure, Group};
use machine::Machine;

/// What is measured.
const MEASURED: [&str; 6] = ["packet", "live", "ipvs", "customers", "attack", "control"];
/// What follows from that.
const DERIVED: [&str; 2] = ["growth", "wire"];
/// The parts.
const PARTS: [&str; 8] = ["packet", "live", "ipvs", "customers", "attack", "control", "growth", "wire"];
/// What is committed: tables for readers, and ratios for [`compare`].
const DOCUMENT: &str = "BENCHMARKS.md";
const RATIOS: &str = "benchmarks.json";

/// What is asked for.
#[derive(Args)]
pub(crate) struct Options {
    /// What to measure; everything if nothing is named
    #[arg(value_name = "PART", value_parser = PossibleValuesParser::new(PARTS))]
    parts: Vec<String>,
    /// Less of everything: minutes instead of a quarter of an hour
    #[arg(long)]
    quick: bool,
    /// Compare with the committed ratios; fail if something got worse by more than the noise
    #[arg(long)]
    check: bool,
    /// Where results and charts go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

impl Options {
    /// The parts that are to be measured for what was named.
    fn measured(&self) -> Vec<&'static str> {
        let named = |part: &str| self.parts.is_empty() || self.parts.iter().any(|named| named == part);
        let for_derived = |part: &str| match part {
            "packet" => DERIVED.into_iter().any(named),
            "control" => named("growth"),
            // What the kernel's own balancer costs.
            "live" | "ipvs" => named("wire"),
            _ => false,
        };
        MEASURED.into_iter().filter(|part| named(part) || for_derived(part)).collect()
    }

    /// Whether this is the run whose results are committed.
    fn is_full(&self) -> bool {
        self.parts.is_empty() && !self.quick && !self.check
    }

    fn command(&self) -> String {
        let flags = [(self.quick, "--quick"), (self.check, "--check")];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.to_owned());
        let words =
            ["cargo xtask bench".to_owned()].into_iter().chain(self.parts.iter().cloned()).chain(flags);
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Measures, and tells.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::if_missing_for_bench()?;
    build()?;
    let groups = measure(options)?;
    let figures: Vec<Figure> = groups.iter().flat_map(Group::figures).collect();
    let outcomes = targets::check(&groups);
    let more: Vec<String> =
        [derived::growth(&groups), derived::wire(&groups)].into_iter().flatten().collect();
    more.iter().for_each(|section| println!("\n{section}"));
    println!("\n━━ targets");
    report::target_lines(&outcomes).iter().for_each(|line| println!("{line}"));

    let machine = Machine::look(options.command());
    let document = report::document(&groups, &outcomes, &machine, &more);
    save(&options.output, &groups, &document)?;
    let ratios = compare::ratios(&figures);
    if options.is_full() {
        let before = fs::read_to_string(DOCUMENT).unwrap_or_default();
        write(Path::new(DOCUMENT), &format!("{document}{}", report::by_hand(&before)))?;
        write(Path::new(RATIOS), &(serde_json::to_string_pretty(&compare::to_json(&ratios))? + "\n"))?;
    }
    if options.check { check(&figures) } else { Ok(()) }
}

/// Compares with what is committed.
fn check(figures: &[Figure]) -> Result<()> {
    let text = fs::read_to_string(RATIOS)
        .with_context(|| format!("reading {RATIOS}: a full `cargo xtask bench` writes it"))?;
    let committed = compare::parse(&text).context(RATIOS)?;
    let worse = compare::worse(figures, &committed);
    let compared = figures.iter().filter(|figure| committed.contains_key(&figure.key())).count();
    println!("\n━━ against {RATIOS}");
    worse.iter().for_each(|line| println!("  ✘ {line}"));
    if !worse.is_empty() {
        bail!("{} of {compared} ratios got worse", worse.len());
    }
    println!("  ✔ none of {compared} ratios got worse");
    Ok(())
}

/// Runs the measuring program, and shows what it finds as it comes.
fn measure(options: &Options) -> Result<Vec<Group>> {
    let mut building = setup::ebpf_build()?;
    building.args(["--features", "bench", "--bin", "bench"]);
    announced("building the measuring eBPF programs", &mut building)?;
    let mut command = cargo();
    command.args(["bench", "--workspace", "--bench", "measure", "--"]).args(options.measured());
    if options.quick {
        command.arg("--quick");
    }
    command.env("SLUICE_BENCH_OBJECT", setup::ebpf_object("bench"));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("running `{}`", show(&command)))?;
    let mut groups: Vec<Group> = Vec::new();
    let mut failed = None;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        match Group::parse(&line?) {
            Ok(group) => {
                if groups.last().is_none_or(|last| last.part != group.part) {
                    println!("━━ {}", group.part);
                }
                report::lines(&group).iter().for_each(|line| println!("{line}"));
                groups.push(group);
            }
            Err(error) => failed = Some(error),
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the measuring program failed ({status})");
    }
    failed.map_or(Ok(groups), Err)
}

/// Results and charts.
fn save(directory: &Path, groups: &[Group], document: &str) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let all: Vec<Value> = groups.iter().map(Group::to_json).collect();
    write(&directory.join("results.json"), &serde_json::to_string_pretty(&json!(all))?)?;
    write(&directory.join("results.md"), document)?;
    for part in MEASURED {
        let of_part: Vec<&Group> = groups.iter().filter(|group| group.part == part).collect();
        let mut units: Vec<&str> = of_part.iter().map(|group| group.unit.as_str()).collect();
        units.sort_unstable();
        units.dedup();
        for unit in units {
            let figures = of_part.iter().filter(|group| group.unit == unit).flat_map(|group| group.figures());
            let shown = figures.filter(|figure| figure.who != "empty");
            let bars: Vec<_> = shown
                .map(|figure| {
                    (format!("{}: {}", figure.name, figure.who), figure.value.median, figure.value.spread)
                })
                .collect();
            let file = format!("{part}-{}.svg", unit.replace(['/', '%'], "-"));
            write(&directory.join(file), &chart::bars(part, unit, &bars))?;
        }
    }
    for (part, axis, unit) in
        [("packet", "flows", "ns above an empty program"), ("control", "size", "ms, MiB")]
    {
        let curves = derived::curves(groups, part);
        if !curves.is_empty() {
            let svg = chart::curves(&format!("{part}: growth"), axis, unit, &curves);
            write(&directory.join(format!("{part}-growth.svg")), &svg)?;
        }
    }
    println!("\nresults and charts: {}", directory.display());
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(parts: &[&str], quick: bool, check: bool) -> Options {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        Options { parts, quick, check, output: PathBuf::new() }
    }

    #[test]
    fn what_is_derived_has_its_measurements_taken() {
        assert_eq!(options(&[], false, false).measured(), MEASURED);
        assert_eq!(options(&["live"], false, false).measured(), ["live"]);
        assert_eq!(options(&["wire"], false, false).measured(), ["packet", "live", "ipvs"]);
        assert_eq!(options(&["growth", "live"], false, false).measured(), ["packet", "live", "control"]);
    }

    #[test]
    fn only_a_full_run_is_committed() {
        assert!(options(&[], false, false).is_full());
        for not_full in
            [options(&["packet"], false, false), options(&[], true, false), options(&[], false, true)]
        {
            assert!(!not_full.is_full());
        }
        assert_eq!(options(&["live"], true, true).command(), "cargo xtask bench live --quick --check");
    }
}
