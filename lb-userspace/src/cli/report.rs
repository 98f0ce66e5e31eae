//! What a change of the configuration did, or would do → lines for people, or JSON.

use super::output::percent;
use super::{Failure, Format, OutputFlag, output};
use crate::core::diff::Change;
use crate::core::effect::RingChange;
use crate::io::api::ApplyReport;

/// Prints a report; warnings go to stderr.
pub(super) fn show(report: &ApplyReport, format: OutputFlag) -> Result<(), Failure> {
    let shown = match format.output {
        Format::Json => output::json(report),
        Format::Table => output::print(&render(report)),
    };
    warn(report);
    match shown {
        Err(Failure::Failed(error)) if !report.dry_run => {
            Err(Failure::Failed(format!("{error}; revision {} is in force all the same", report.revision)))
        }
        shown => shown,
    }
}

/// Says on stderr what is worth knowing.
pub(super) fn warn(report: &ApplyReport) {
    for warning in &report.warnings {
        output::note(format_args!("warning: {warning}"));
    }
}

/// A report for people.
pub(super) fn render(report: &ApplyReport) -> String {
    let mut lines: Vec<String> = report.changes.iter().map(change).collect();
    if report.changes.is_empty() {
        lines.push("no change".to_owned());
    }
    for ring in &report.rings {
        lines.push(format!(
            "service {}: {} of the ring's slots change owner",
            ring.service,
            percent(ring.slots_changed)
        ));
        lines.extend(on_table(ring, report.dry_run));
    }
    let lose = if report.dry_run { "would lose" } else { "lose" };
    lines.push(format!("{} live flows {lose} their backend", report.flows_lost));
    lines.extend(report.rings.iter().filter(|ring| ring.flows_in_doubt > 0).map(|ring| {
        format!(
            "service {}: up to {} more {lose} theirs, for it gives up a VIP; which VIP a flow is of, the flow table does not tell",
            ring.service, ring.flows_in_doubt
        )
    }));
    lines.push(match (report.dry_run, report.confirm_within_seconds) {
        (true, _) => "dry run: nothing was changed".to_owned(),
        (false, None) => format!("in force, revision {}", report.revision),
        (false, Some(seconds)) => format!(
            "in force, revision {}; undone in {seconds} s unless `sluice confirm` comes",
            report.revision
        ),
    });
    lines.join("\n")
}

/// What becomes of the flows that keep their backend.
fn on_table(ring: &RingChange, dry_run: bool) -> Option<String> {
    let kept = ring.live_flows - ring.flows_lost;
    (kept > 0).then(|| {
        format!(
            "service {}: {kept} live flows keep their backend; about {} of them {} it by the flow table alone",
            ring.service,
            percent(ring.on_table_alone),
            if dry_run { "would keep" } else { "keep" }
        )
    })
}

fn change(change: &Change) -> String {
    let Change { path, before, after } = change;
    match (before, after) {
        (Some(before), Some(after)) => format!("~ {path}: {before} → {after}"),
        (None, Some(after)) => format!("+ {path}: {after}"),
        (Some(before), None) => format!("- {path}: {before}"),
        (None, None) => path.clone(),
    }
}
