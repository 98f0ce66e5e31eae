//! `sluice apply`: makes a file the running configuration.

use std::path::PathBuf;

use super::client::Client;
use super::terms::Terms;
use super::{Failure, report};
use crate::io::api::ApplyRequest;
use crate::io::store;

/// Make a file the running configuration
///
/// The agent's own configuration file is then replaced with it, so that this file always says what runs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file
    file: PathBuf,
    /// Replace the agent's file even if it was changed since the agent read it
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    terms: Terms,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let Terms { dry_run, if_revision, confirm_within, format } = arguments.terms;
    let request = ApplyRequest {
        config: store::read(&arguments.file).map_err(|error| Failure::unread(&error))?,
        name: arguments.file.display().to_string(),
        dry_run,
        if_revision,
        confirm_within_seconds: confirm_within,
        overwrite: arguments.overwrite,
    };
    report::show(&client.post("/v1/apply", &request).await?, format)
}
