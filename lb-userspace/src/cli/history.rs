//! `sluice history`, `rollback` and `confirm`: what was changed, and back.

use jiff::Timestamp;
use nix::unistd::{Uid, User};

use super::client::Client;
use super::output::{Columns, percent};
use super::terms::{Terms, revision};
use super::{Failure, Format, OutputFlag, output, report};
use crate::core::events::printable;
use crate::core::names::number_of;
use crate::io::api::{Confirmed, HistoryReport, RollbackRequest};
use crate::io::history::Entry;

/// List the last changes of the configuration
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    format: OutputFlag,
}

/// Return to a configuration that was in force before
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// Its revision, as `sluice history` lists it; by default the one before the last change
    #[arg(value_parser = revision)]
    revision: Option<u64>,
    #[command(flatten)]
    terms: Terms,
}

/// Keep a change that was made with --confirm-within
#[derive(Debug, clap::Args)]
pub(super) struct Confirm {
    #[command(flatten)]
    format: OutputFlag,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let report: HistoryReport = client.get("/v1/history").await?;
    match arguments.format.output {
        Format::Json => output::json(&report),
        Format::Table => output::print(&render(&report)),
    }
}

pub(super) async fn rollback(arguments: &Rollback, client: &Client) -> Result<(), Failure> {
    let Terms { dry_run, if_revision, confirm_within, format } = arguments.terms;
    let request = RollbackRequest {
        revision: arguments.revision,
        dry_run,
        if_revision,
        confirm_within_seconds: confirm_within,
    };
    report::show(&client.post("/v1/rollback", &request).await?, format)
}

pub(super) async fn confirm(arguments: &Confirm, client: &Client) -> Result<(), Failure> {
    let confirmed: Confirmed = client.post("/v1/confirm", &()).await?;
    match arguments.format.output {
        Format::Json => output::json(&confirmed),
        Format::Table => output::print(&format!("confirmed: revision {} stays", confirmed.revision)),
    }
}

fn render(report: &HistoryReport) -> String {
    let mut columns = Columns::with_header(&["revision", "when", "who", "what", "effect"]);
    for entry in &report.entries {
        columns.line(vec![
            entry.revision.to_string(),
            when(entry.at),
            entry.uid.map_or("agent".to_owned(), who),
            printable(&entry.what),
            effect(entry),
        ]);
    }
    let mut text = columns.render("");
    if let Some(waiting) = &report.unconfirmed {
        text.push_str(&format!("\n{waiting}"));
    }
    text
}

/// A time in UTC, to the second.
pub(super) fn when(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// The name of a user, if this host knows it.
pub(super) fn who(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

fn effect(entry: &Entry) -> String {
    let mut parts = vec![number_of(entry.changes_count, "value")];
    match entry.rings.as_slice() {
        [] => {}
        [ring] => parts.push(format!("{} of {}'s slots", percent(ring.slots_changed), ring.service)),
        rings => parts.push(format!("slots of {} services", rings.len())),
    }
    if entry.flows_lost > 0 {
        parts.push(format!("{} lost", number_of(entry.flows_lost, "flow")));
    }
    if entry.flows_in_doubt > 0 {
        parts.push(format!("up to {} more", number_of(entry.flows_in_doubt, "flow")));
    }
    if let Some(confirmed) = entry.confirmed {
        let by = confirmed.uid.map_or(String::new(), |uid| format!(" by {}", who(uid)));
        parts.push(format!("confirmed{by}"));
    }
    parts.join(", ")
}
