//! `sluice detach`: removes the program from the interfaces, and everything pinned.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::Client;
use super::{DEFAULT_PIN_DIR, DEFAULT_SOCKET, Failure, Format, OutputFlag, output};
use crate::io::api::{DetachRequest, Detached};
use crate::io::datapath::{PinDir, PinError};

/// How long an agent that is just ending may keep the pin directory.
const HANDOVER: Duration = Duration::from_secs(3);

/// Remove the program from the interfaces: this ends the forwarding
///
/// A running agent is asked to do it and ends. Without one, what is pinned is removed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where program, maps and links are pinned; if given, a running agent is asked only if it holds this directory
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    #[command(flatten)]
    format: OutputFlag,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let detached = match &arguments.pin_dir {
        Some(pin_dir) => detach(&PinDir::new(pin_dir), client).await?,
        None => detach_by_socket(client).await?,
    };
    match arguments.format.output {
        Format::Json => output::json(&detached),
        Format::Table if detached.interfaces.is_empty() => output::print("nothing was attached"),
        Format::Table => output::print(&format!("detached from {}", detached.interfaces.join(", "))),
    }
}

/// Has the agent that answers on the socket detach. Without one, what is pinned in the usual place is removed, but not
/// if another socket was named: it is another agent's.
async fn detach_by_socket(client: &Client) -> Result<Detached, Failure> {
    match ask(client, None).await? {
        Some(detached) => Ok(detached),
        None if client.socket() == Path::new(DEFAULT_SOCKET) => {
            detach(&PinDir::new(DEFAULT_PIN_DIR), client).await
        }
        None => Err(client.unreachable(&io::Error::from(ErrorKind::NotFound))),
    }
}

/// Removes what is pinned here; an agent that holds the directory is asked to do it.
async fn detach(pins: &PinDir, client: &Client) -> Result<Detached, Failure> {
    match from_pins(pins, Duration::ZERO).await {
        Err(PinError::Locked(_)) => {}
        result => return result.map_err(Failure::failed),
    }
    if let Some(detached) = ask(client, Some(pins.canonical())).await? {
        return Ok(detached);
    }
    match from_pins(pins, HANDOVER).await {
        Err(PinError::Locked(path)) => Err(Failure::Unreachable(format!(
            "{}: an agent holds it, but none answers at {}; name its --socket",
            path.display(),
            client.socket().display()
        ))),
        result => result.map_err(Failure::failed),
    }
}

async fn ask(client: &Client, pin_dir: Option<PathBuf>) -> Result<Option<Detached>, Failure> {
    client.post_if_listening("/v1/detach", &DetachRequest { pin_dir }).await.map_err(|error| match error {
        // What it holds is not taken from under it: it might go on amid that.
        Failure::Unreachable(why) => Failure::Unreachable(format!(
            "{why}. To detach without it: `kill -KILL` that process, then `sluice detach` again, with the --pin-dir that it \
             was started with"
        )),
        error => error,
    })
}

async fn from_pins(pins: &PinDir, patience: Duration) -> Result<Detached, PinError> {
    if !pins.exists()? {
        return Ok(Detached { interfaces: Vec::new() });
    }
    let _lock = pins.lock_within(patience).await?;
    Ok(Detached { interfaces: pins.remove_all()? })
}
