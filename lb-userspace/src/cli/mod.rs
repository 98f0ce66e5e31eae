//! The command line → one command's work and its exit status.

mod agent;
mod apply;
mod availability;
mod backend;
mod capture;
mod check;
mod client;
mod clients;
mod decap;
mod detach;
mod doctor;
mod drain;
mod events;
mod explain;
mod flows;
mod history;
mod manual;
mod output;
mod report;
mod service;
mod settings;
mod status;
mod terms;
mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::io::events::are_kept;
use crate::io::store::StoreError;

/// Where the agent's API is, unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";
/// Where the agent pins, unless told otherwise.
const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/sluice";
/// Where the agent keeps its state, unless told otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/sluice";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about = "XDP layer-4 load balancer", propagate_version = true)]
#[command(
    after_help = "Exit status: 0 done; 1 it failed; 2 usage or invalid configuration; 3 the agent cannot be \
                        reached; 4 nothing wrong but not as wished."
)]
pub struct Arguments {
    /// Unix socket of the agent's API
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Arguments),
    Check(check::Arguments),
    Apply(apply::Arguments),
    Confirm(history::Confirm),
    Rollback(history::Rollback),
    History(history::Arguments),
    Status(status::Arguments),
    #[command(subcommand)]
    Service(service::Command),
    #[command(subcommand)]
    Backend(backend::Command),
    Explain(explain::Arguments),
    Decap(decap::Arguments),
    Detach(detach::Arguments),
    Doctor(doctor::Arguments),
    Events(events::Arguments),
    Capture(capture::Arguments),
    Report(availability::Arguments),
    Top(top::Arguments),
    Flows(flows::Arguments),
    Completions(manual::CompletionsArguments),
    Man(manual::ManArguments),
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// The flag `-o`.
#[derive(Clone, Copy, Debug, clap::Args)]
struct OutputFlag {
    /// How to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Why a command did not do what was asked; the kinds are the exit statuses.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// What was typed cannot be done.
    #[error("{0}")]
    Usage(String),
    /// A configuration, or an edit of it, is wrong; one line a finding, which begins with its place.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// The agent cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Nothing is wrong, but it is not as wished.
    #[error("{0}")]
    NotAsWished(String),
}

impl Failure {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }

    fn usage(error: impl ToString) -> Self {
        Self::Usage(error.to_string())
    }

    /// A configuration file could not be read.
    fn unread(error: &StoreError) -> Self {
        if error.is_content() { Self::Invalid(vec![error.to_string()]) } else { Self::failed(error) }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) | Self::Invalid(_) => 2,
            Self::Unreachable(_) => 3,
            Self::NotAsWished(_) => 4,
        }
    }
}

/// Runs the command of the process' command line.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::failed(error)),
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = client::Client::new(arguments.socket);
    match arguments.command {
        Command::Agent(command) => agent::run(command, client).await,
        Command::Check(command) => check::run(&command),
        Command::Apply(command) => apply::run(&command, &client).await,
        Command::Confirm(command) => history::confirm(&command, &client).await,
        Command::Rollback(command) => history::rollback(&command, &client).await,
        Command::History(command) => history::run(&command, &client).await,
        Command::Backend(command) => backend::run(&command, &client).await,
        Command::Status(command) => status::run(&command, &client).await,
        Command::Service(command) => service::run(&command, &client).await,
        Command::Explain(command) => explain::run(&command, &client).await,
        Command::Decap(command) => decap::run(&command).await,
        Command::Detach(command) => detach::run(&command, &client).await,
        Command::Doctor(command) => doctor::run(&command, &client).await,
        Command::Completions(command) => manual::completions(&command),
        Command::Man(_) => manual::manual(),
        Command::Flows(command) => flows::run(&command, &client).await,
        Command::Events(command) => events::run(&command, &client).await,
        Command::Capture(command) => capture::run(&command, &client).await,
        Command::Report(command) => availability::run(&command, &client).await,
        Command::Top(command) => top::run(&command, &client).await,
    }
}

/// Where the agent with this pin directory keeps its state, unless told otherwise: agents of other pin directories do not
/// share it.
fn state_dir(given: Option<PathBuf>, pin_dir: &Path) -> PathBuf {
    if let Some(given) = given {
        return given;
    }
    // Several folders may be named, separated by colons: the first is ours.
    let by_systemd = std::env::var("STATE_DIRECTORY").ok();
    let by_systemd = by_systemd.as_deref().and_then(|folders| folders.split(':').next());
    let root = Path::new(by_systemd.filter(|folder| !folder.is_empty()).unwrap_or(DEFAULT_STATE_DIR));
    if pin_dir == Path::new(DEFAULT_PIN_DIR) {
        return root.to_owned();
    }
    let pin_dir = std::path::absolute(pin_dir).unwrap_or_else(|_| pin_dir.to_owned());
    root.join(pin_dir.to_string_lossy().trim_matches('/').replace('/', "-"))
}

/// Where an agent that no longer runs has kept what it recorded, and says so; `unreachable` is why none answers.
fn kept_folder(given: Option<PathBuf>, unreachable: &str) -> Result<PathBuf, Failure> {
    let folder = state_dir(given, DEFAULT_PIN_DIR.as_ref());
    if !are_kept(&folder) {
        return Err(Failure::Unreachable(format!(
            "{unreachable}; and none has kept anything in {}: name its --state-dir if it is another",
            folder.display()
        )));
    }
    output::note(format_args!("no agent answers; read from {}", folder.display()));
    Ok(folder)
}

/// What a command that stays in the foreground says goes to stderr.
fn log_to_stderr() {
    // What the netlink library warns of, answers that came too late for who had asked, tells an operator nothing.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,netlink_proto=error"))
        .format_timestamp_millis()
        .format_target(false)
        .init();
}

fn fail(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Invalid(_) => output::say(failure),
        _ => output::note(failure),
    }
    ExitCode::from(failure.exit_code())
}
