//! `sluice apply`: makes a file the running configuration.

use std::path::PathBuf;

use super::client::Client;
use super::{Failure, Format, OutputFlag, output};
use crate::io::api::{ApplyReport, ApplyRequest};
use crate::io::store;

/// Make a file the running configuration
///
/// The agent's own configuration file is then replaced with it, so that this file always says what runs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file
    file: PathBuf,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: OutputFlag,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let config = store::read(&arguments.file).map_err(Failure::failed)?;
    let name = arguments.file.display().to_string();
    let request = ApplyRequest { config, name, dry_run: arguments.dry_run };
    let report: ApplyReport = client.post("/v1/apply", &request).await?;
    match arguments.format.output {
        Format::Json => output::json(&report)?,
        Format::Table => output::print(&render(&report))?,
    }
    for warning in &report.warnings {
        eprintln!("sluice: warning: {warning}");
    }
    Ok(())
}

fn render(report: &ApplyReport) -> String {
    let mut lines: Vec<String> = report.changes.iter().map(ToString::to_string).collect();
    if report.changes.is_empty() {
        lines.push("no change".to_owned());
    }
    for ring in &report.rings {
        let share = output::percent(ring.slots_changed);
        lines.push(format!("service {}: {share} of the ring's slots change owner", ring.service));
    }
    let lose = if report.dry_run { "would lose" } else { "lose" };
    lines.push(format!("{} live flows {lose} their backend", report.flows_lost));
    lines.push(match report.dry_run {
        true => "dry run: nothing was changed".to_owned(),
        false => format!("in force, revision {}", report.revision),
    });
    lines.join("\n")
}
