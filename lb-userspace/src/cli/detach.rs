//! `sluice detach`: removes the program from the interfaces, and everything pinned.

use std::path::PathBuf;

use super::client::Client;
use super::{DEFAULT_PIN_DIR, Failure, Format, OutputFlag, output};
use crate::io::api::Detached;
use crate::io::datapath::{PinDir, PinError};

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
        Some(pin_dir) => match from_pins(&PinDir::new(pin_dir)) {
            Err(PinError::Locked(_)) => ask(client).await?,
            result => result.map_err(Failure::failed)?,
        },
        None => match ask(client).await {
            Err(Failure::Unreachable(_)) => {
                from_pins(&PinDir::new(DEFAULT_PIN_DIR)).map_err(Failure::failed)?
            }
            result => result?,
        },
    };
    match arguments.format.output {
        Format::Json => output::json(&detached),
        Format::Table if detached.interfaces.is_empty() => output::print("nothing was attached"),
        Format::Table => output::print(&format!("detached from {}", detached.interfaces.join(", "))),
    }
}

async fn ask(client: &Client) -> Result<Detached, Failure> {
    client.post("/v1/detach", &()).await
}

fn from_pins(pins: &PinDir) -> Result<Detached, PinError> {
    if !pins.path().exists() {
        return Ok(Detached { interfaces: Vec::new() });
    }
    let _lock = pins.lock()?;
    Ok(Detached { interfaces: pins.remove_all()? })
}
