//! `cargo xtask COMMAND`: turns the commands people type into set-up, builds, the demo, tests and checks.

mod bench;
mod ci;
mod demo;
mod fuzz;
mod lint;
mod rings;
mod setup;
mod shell;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, shows and checks Sluice")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is missing: the eBPF toolchain, the lab's programs, kernels for guests
    Setup,
    /// Builds the agent with the eBPF program in it (after setup, if something is missing)
    Build,
    /// Shows customers being served, in network namespaces of its own; Ctrl-C tears it down
    Demo {
        /// Don't wait at the end; exit 0 only if everything worked
        #[arg(long)]
        once: bool,
    },
    /// Runs every test; what follows `--` goes to the test programs, for instance a filter
    Test {
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Checks formatting, clippy's findings and the structure of the code
    Lint,
    /// Feeds a fuzz target inputs until one breaks an invariant, or Ctrl-C
    #[command(group = ArgGroup::new("what").required(true))]
    Fuzz {
        /// What is fed
        #[arg(group = "what", value_parser = PossibleValuesParser::new(fuzz::TARGETS))]
        target: Option<String>,
        /// Every target, for some seconds each
        #[arg(long, group = "what")]
        smoke: bool,
    },
    /// Measures Sluice beside what a user would choose instead
    Bench(bench::Options),
    /// Exactly what CI runs: setup, formatting, clippy, structure, all tests, fuzzing for some seconds
    Ci,
}

fn main() -> ExitCode {
    let result = std::env::set_current_dir(shell::root())
        .context("entering the workspace")
        .and_then(|()| run(Cli::parse().task));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Build => {
            setup::if_missing()?;
            build()
        }
        Task::Demo { once } => {
            need_root("the demo makes network namespaces and loads a BPF program")?;
            setup::if_missing()?;
            build()?;
            demo::run(once)
        }
        Task::Test { arguments } => {
            need_root("the tests make network namespaces and load BPF programs")?;
            setup::if_missing_for_tests()?;
            rings::run(&arguments)
        }
        Task::Lint => lint::run(),
        Task::Fuzz { target, .. } => {
            setup::if_missing()?;
            target.map_or_else(fuzz::smoke, |target| fuzz::run(&target))
        }
        Task::Bench(options) => {
            need_root("the bench makes network namespaces and loads BPF programs")?;
            bench::run(&options)
        }
        Task::Ci => {
            need_root("CI runs the lab")?;
            ci::run()
        }
    }
}

/// Builds what is shipped.
fn build() -> Result<()> {
    // Of the whole workspace: for one package alone cargo resolves other features and builds everything anew.
    shell::stream(shell::cargo().args(["build", "--release", "--workspace", "--bin", "sluice"]))
}

fn need_root(why: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("root is needed ({why}): run this as root");
    }
    Ok(())
}
