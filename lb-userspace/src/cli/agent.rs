//! `sluice agent`: runs the agent in the foreground.

use std::path::PathBuf;

use super::client::Client;
use super::{DEFAULT_PIN_DIR, Failure};
use crate::agent::{self, AgentError, Options};

/// Run the agent in the foreground
///
/// SIGHUP makes it read its configuration file again. SIGTERM ends it and leaves the data plane forwarding; `sluice
/// detach` removes that.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where program, maps and links are pinned, on a BPF filesystem
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// Where events are kept over restarts; by default below /var/lib/sluice, or where systemd's StateDirectory= is
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Load everything, but don't attach the program
    #[arg(long)]
    no_attach: bool,
    /// Log each packet's verdict: for finding faults, at a fraction of the speed
    #[arg(long)]
    log_packets: bool,
    /// Load this eBPF object in the place of the one that is built in: for work on the datapath
    #[arg(long, value_name = "FILE", hide = true)]
    object: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, client: Client) -> Result<(), Failure> {
    super::log_to_stderr();
    let options = Options {
        config: std::path::absolute(arguments.config).map_err(Failure::failed)?,
        socket: client.socket().to_owned(),
        state_dir: super::state_dir(arguments.state_dir, &arguments.pin_dir),
        pin_dir: arguments.pin_dir,
        attach: !arguments.no_attach,
        log_packets: arguments.log_packets,
        object: arguments.object,
    };
    agent::run(options).await.map_err(|error| match error {
        AgentError::Config(errors) => Failure::Invalid(errors),
        AgentError::Store(error) => Failure::unread(&error),
        error => Failure::failed(error),
    })
}
