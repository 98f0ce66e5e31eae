//! The flags that every change of the configuration takes.

use super::OutputFlag;
use crate::core::config::parse_duration;

/// On what terms a change is asked for.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Terms {
    /// Only show what would change
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Only if this revision is in force: nobody has changed anything since you looked
    #[arg(long, value_name = "N", value_parser = revision)]
    pub(super) if_revision: Option<u64>,
    /// Undo it after this time unless `sluice confirm` comes, or if the agent ends before
    #[arg(long, value_name = "DURATION", value_parser = seconds, conflicts_with = "dry_run")]
    pub(super) confirm_within: Option<u64>,
    #[command(flatten)]
    pub(super) format: OutputFlag,
}

/// A revision's number.
pub(super) fn revision(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write the number of a revision, as `sluice history` lists them".to_owned())
}

/// `60s` or `5m` in seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    match duration.as_secs() {
        0 => Err("must be at least 1s".to_owned()),
        seconds if duration.subsec_millis() == 0 => Ok(seconds),
        _ => Err("must be whole seconds".to_owned()),
    }
}
