//! `sluice report`: how available each service was, its failovers and the changes, as a table, JSON, or a page.

mod page;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::client::Client;
use super::history::{when, who};
use super::output::Columns;
use super::{Failure, Format, OutputFlag, output};
use crate::core::events::{duration, parse_since, printable};
use crate::core::names::number_of;
use crate::core::report::{Change, Failover, Gap, GapCause, Outage, Record, Report, ServiceReport, Spans};
use crate::io::report::{Question, report};

/// Lines of a list in the table: the last ones. JSON has more.
const LINES: usize = 20;
/// How long the agent may take: it reads all that it has kept.
const READING: Duration = Duration::from_secs(30);

/// Report how available each service was: what a review of service levels asks for
///
/// A service is available while enough of its backends are healthy. Time without an agent, and time before the record begins, is
/// told separately and is part of no share. If no agent runs, what it has kept is read.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// From when: 12h or 30d ago, or 2026-03-01T00:00:00Z
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = |text: &str| parse_since(text, Timestamp::now()))]
    since: Timestamp,
    /// Until when, in the same words; by default until now
    #[arg(long, value_name = "TIME", value_parser = |text: &str| parse_since(text, Timestamp::now()))]
    until: Option<Timestamp>,
    /// Only these services
    #[arg(long, value_name = "NAME[,NAME…]", value_delimiter = ',')]
    service: Vec<String>,
    /// Write a self-contained page for a browser to this file instead of printing; - prints it
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    html: Option<PathBuf>,
    /// Where the record is kept, in case no agent runs
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    format: OutputFlag,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let question = Question { since: arguments.since, until: arguments.until };
    if question.until.is_some_and(|until| until <= question.since) {
        return Err(Failure::usage("--until: must be later than --since"));
    }
    let query = serde_urlencoded::to_string(&question).map_err(Failure::failed)?;
    let mut report = match client.get_within(READING, &format!("/v1/report?{query}")).await {
        Err(Failure::Unreachable(unreachable)) => kept(arguments, &question, unreachable)?,
        report => report?,
    };
    only(&mut report, &arguments.service)?;
    match (&arguments.html, arguments.format.output) {
        (Some(file), _) if file.as_os_str() == "-" => output::print(&page::render(&report)),
        (Some(file), _) => fs::write(file, page::render(&report))
            .map_err(|error| Failure::Failed(format!("{}: {error}", file.display()))),
        (None, Format::Json) => output::json(&report),
        (None, Format::Table) => output::print(&render(&report)),
    }
}

/// What an agent that no longer runs has kept.
fn kept(arguments: &Arguments, question: &Question, unreachable: String) -> Result<Report, Failure> {
    let folder = super::kept_folder(arguments.state_dir.clone(), &unreachable)?;
    report(&folder, question, false).map_err(|error| Failure::Failed(format!("{error}; run as root")))
}

/// Leaves out all services but these, if there are any.
fn only(report: &mut Report, names: &[String]) -> Result<(), Failure> {
    for name in names {
        if !report.services.iter().any(|service| service.name == *name) {
            return Err(Failure::usage(format!(
                "--service: the record knows of no service {name:?} in that time"
            )));
        }
    }
    report.services.retain(|service| names.is_empty() || names.contains(&service.name));
    Ok(())
}

fn render(report: &Report) -> String {
    let mut parts = vec![format!("{} to {}", when(report.since), when(report.until))];
    parts.extend(covered(report));
    parts.push(format!("\n{}", services(&report.services)));
    parts.extend(list(
        "outages: too few healthy backends",
        &report.services,
        |service| &service.outages,
        outage,
    ));
    parts.extend(list(
        "failovers: a backend was out",
        &report.services,
        |service| &service.failovers,
        failover,
    ));
    parts.extend(gaps(&report.record));
    parts.push(format!("\n{}", changes(report)));
    parts.join("\n")
}

/// What the record does and does not cover, a line each.
fn covered(report: &Report) -> Vec<String> {
    let Record { begins, trimmed, watched_seconds, unknown_seconds, gaps, .. } = &report.record;
    let Some(begins) = begins else {
        return vec!["there is no record of that time: nothing is known".to_owned()];
    };
    let mut lines = Vec::new();
    if *begins > report.since {
        let why = if *trimmed { "; older events were dropped" } else { "" };
        lines.push(format!(
            "the record begins at {}{why}: nothing is known of the time before",
            when(*begins)
        ));
    }
    lines.push(match gaps.count {
        0 => format!("watched all the time: {}", length(*watched_seconds)),
        count => format!(
            "watched for {}; not watched for {} ({count} times): nothing is known of these",
            length(*watched_seconds),
            length(*unknown_seconds)
        ),
    });
    lines
}

fn services(services: &[ServiceReport]) -> String {
    let header = [
        "service",
        "available",
        "healthy",
        "degraded",
        "failing open",
        "down",
        "unknown",
        "outages",
        "longest",
        "failovers",
        "longest",
    ];
    let mut columns = Columns::with_header(&header);
    services.iter().for_each(|service| columns.line(summed_up(service)));
    columns.render("")
}

/// A service in a line: its availability, the time in each status, how many outages and failovers, and the longest.
fn summed_up(service: &ServiceReport) -> Vec<String> {
    let seconds = &service.seconds;
    let times = [seconds.healthy, seconds.degraded, seconds.failing_open, seconds.down, seconds.unknown];
    let mut cells = vec![service.name.clone(), share(service.availability)];
    cells.extend(times.map(some_length));
    cells.extend(counted(&service.outages));
    cells.extend(counted(&service.failovers));
    cells
}

fn counted<T>(spans: &Spans<T>) -> [String; 2] {
    [spans.count.to_string(), some_length(spans.longest_seconds)]
}

/// The last lines of what all services had of something.
fn list<T>(
    title: &str,
    services: &[ServiceReport],
    of: fn(&ServiceReport) -> &Spans<T>,
    cells: fn(&T) -> [String; 4],
) -> Option<String> {
    let mut lines: Vec<Vec<String>> = Vec::new();
    for service in services {
        lines.extend(of(service).last.iter().map(|item| named(service, cells(item))));
    }
    let count: u64 = services.iter().map(|service| of(service).count).sum();
    if count == 0 {
        return None;
    }
    // By the time, which is the third cell.
    lines.sort_by(|one, other| one.get(2).cmp(&other.get(2)));
    let left_out = count.saturating_sub(LINES as u64);
    let mut columns = Columns::default();
    lines.iter().rev().take(LINES).rev().for_each(|line| columns.line(line.clone()));
    let more = if left_out > 0 { format!(" (the last {LINES} of {count})") } else { String::new() };
    Some(format!("\n{title}{more}\n{}", columns.render("  ")))
}

/// A line of a list: the service, and the cells of what it had.
fn named(service: &ServiceReport, cells: [String; 4]) -> Vec<String> {
    [vec![service.name.clone()], cells.to_vec()].concat()
}

fn outage(outage: &Outage) -> [String; 4] {
    [outage.status.name().to_owned(), when(outage.from), length(outage.seconds), String::new()]
}

fn failover(failover: &Failover) -> [String; 4] {
    let lasts = if failover.until.is_none() { " so far" } else { "" };
    [
        failover.backend.clone(),
        when(failover.from),
        format!("{}{lasts}", length(failover.seconds)),
        failover.reason.clone().unwrap_or_default(),
    ]
}

fn gaps(record: &Record) -> Option<String> {
    if record.gaps.count == 0 {
        return None;
    }
    let mut columns = Columns::default();
    for gap in record.gaps.last.iter().rev().take(LINES).rev() {
        let until = gap.until.map_or("now".to_owned(), when);
        columns.line(vec![format!("{} to {until}", when(gap.from)), cause(gap).to_owned()]);
    }
    Some(format!("\nnot watched\n{}", columns.render("  ")))
}

fn cause(gap: &Gap) -> &'static str {
    match gap.cause {
        GapCause::Starting => "the agent was starting",
        GapCause::Ended => "no agent ran: it was ended",
        GapCause::Died => "no agent ran: it had ended without a word",
    }
}

fn changes(report: &Report) -> String {
    let begin = report.record.changes_begin.filter(|begin| *begin > report.since);
    let known = begin.map_or(String::new(), |begin| format!(", known since {}", when(begin)));
    let title = format!("changes: {}{known}; refused: {}", report.changes.count, report.refused);
    let mut columns = Columns::default();
    for change in report.changes.last.iter().rev().take(LINES).rev() {
        columns.line(vec![
            change.revision.to_string(),
            when(change.at),
            change.uid.map_or("agent".to_owned(), who),
            printable(&change.what),
            number_of(change.values, "value"),
            format!("{} lost", lost(change)),
        ]);
    }
    format!("{title}\n{}", columns.render("  ")).trim_end().to_owned()
}

/// How many flows a change cost.
fn lost(change: &Change) -> String {
    match change.flows_in_doubt {
        0 => number_of(change.flows_lost, "flow"),
        more => format!("{} to {}", change.flows_lost, number_of(change.flows_lost + more, "flow")),
    }
}

/// A share in percent. It is cut, not rounded: 100 % is said only of all.
fn share(share: Option<f64>) -> String {
    match share {
        None => "not known".to_owned(),
        Some(share) if share >= 1.0 => "100 %".to_owned(),
        Some(share) => format!("{:.4} %", (share * 1_000_000.0).floor() / 10_000.0),
    }
}

/// A time in seconds as people read it.
fn length(seconds: f64) -> String {
    duration((seconds * 1_000.0).round() as u64)
}

fn some_length(seconds: f64) -> String {
    if seconds > 0.0 { length(seconds) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_made_more_than_it_is() {
        assert_eq!(share(Some(1.0)), "100 %");
        assert_eq!(share(Some(0.999_999_9)), "99.9999 %");
        assert_eq!(share(Some(0.5)), "50.0000 %");
        assert_eq!(share(None), "not known");
    }
}
