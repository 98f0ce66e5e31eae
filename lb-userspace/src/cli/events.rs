//! `sluice events`: what happened, and when.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use jiff::Timestamp;
use tokio::time::sleep;

use super::client::{ANSWER, Client};
use super::{Failure, Format, OutputFlag, output};
use crate::core::events::{Event, Filter, MAX_LIMIT, Recorded, Severity, parse_since};
use crate::io::events::{Events, from_folder};

/// How long one question waits for the next event, in seconds.
const WAIT_SECONDS: u64 = 25;
/// How often to look whether the agent is back.
const RETRY: Duration = Duration::from_millis(500);

/// Show what happened: health, applies, drains, adoption, pressure on tables, and more
///
/// The last ones, oldest first. They are kept over restarts of the agent, some ten thousand of them. If no agent runs,
/// what it has kept is read.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Go on with what happens from now on, until interrupted; with -o json one object a line
    #[arg(short, long)]
    follow: bool,
    /// How many of the last ones to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(..=MAX_LIMIT as u64))]
    lines: usize,
    /// Only since this time: 30s, 15m, 2h or 30d ago, or 2026-03-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = |text: &str| parse_since(text, Timestamp::now()))]
    since: Option<Timestamp>,
    /// Only about this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only about backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only these kinds
    #[arg(long, value_name = "KIND[,KIND…]", value_delimiter = ',', value_parser = PossibleValuesParser::new(Event::KINDS))]
    kind: Vec<String>,
    /// Only what matters as much or more
    #[arg(long, value_enum, value_name = "SEVERITY")]
    severity: Option<Least>,
    /// Where events are kept, in case no agent runs
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    format: OutputFlag,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Least {
    Info,
    Warn,
    Error,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let mut filter = filter(arguments);
    let found = match ask(client, &filter).await {
        Err(Failure::Unreachable(unreachable)) if !arguments.follow => kept(arguments, &filter, unreachable)?,
        found => found?,
    };
    if found.events.is_empty() && !arguments.follow && matches!(arguments.format.output, Format::Table) {
        output::note(none(&filter));
    }
    if !show(arguments, &found.events)? || !arguments.follow {
        return Ok(());
    }
    filter = Filter { limit: MAX_LIMIT, wait: WAIT_SECONDS, after: Some(found.last), ..filter };
    let mut gone = false;
    loop {
        match ask(client, &filter).await {
            Ok(found) => {
                if !show(arguments, &found.events)? {
                    return Ok(());
                }
                filter.after = Some(found.events.last().map_or(found.last, |event| event.seq));
                gone = false;
            }
            Err(Failure::Unreachable(_)) => {
                if !gone {
                    output::note("the agent does not answer; waiting for it");
                }
                gone = true;
                sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn filter(arguments: &Arguments) -> Filter {
    Filter {
        since: arguments.since,
        service: arguments.service.clone(),
        backend: arguments.backend.clone(),
        kind: (!arguments.kind.is_empty()).then(|| arguments.kind.join(",")),
        severity: arguments.severity.map(|severity| match severity {
            Least::Info => Severity::Info,
            Least::Warn => Severity::Warn,
            Least::Error => Severity::Error,
        }),
        limit: arguments.lines,
        ..Filter::default()
    }
}

/// What to tell who sees nothing: a name that is misspelt, perhaps.
fn none(filter: &Filter) -> String {
    let quoted = |flag: &str, value: &Option<String>| value.as_ref().map(|value| format!("{flag} {value}"));
    let asked: Vec<String> = [
        quoted("--service", &filter.service),
        quoted("--backend", &filter.backend),
        quoted("--kind", &filter.kind),
        filter.severity.map(|least| format!("--severity {least:?}").to_lowercase()),
        filter.since.map(|since| format!("--since {since:.0}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if asked.is_empty() { "no events".to_owned() } else { format!("no events match {}", asked.join(", ")) }
}

async fn ask(client: &Client, filter: &Filter) -> Result<Events, Failure> {
    let query = serde_urlencoded::to_string(filter).map_err(Failure::failed)?;
    let limit = ANSWER + Duration::from_secs(filter.wait);
    client.get_within(limit, &format!("/v1/events?{query}")).await
}

/// What an agent that no longer runs has kept.
fn kept(arguments: &Arguments, filter: &Filter, unreachable: String) -> Result<Events, Failure> {
    let folder = super::kept_folder(arguments.state_dir.clone(), &unreachable)?;
    Ok(Events { events: from_folder(&folder, filter), last: 0 })
}

/// Prints events; says whether somebody reads them.
fn show(arguments: &Arguments, events: &[Recorded]) -> Result<bool, Failure> {
    let lines: Vec<String> = match arguments.format.output {
        Format::Json if !arguments.follow => return output::json(&events).map(|()| true),
        Format::Json => {
            events.iter().map(serde_json::to_string).collect::<Result<_, _>>().map_err(Failure::failed)?
        }
        Format::Table => events.iter().map(line).collect(),
    };
    if lines.is_empty() { Ok(true) } else { output::print_if_read(&lines.join("\n")) }
}

fn line(event: &Recorded) -> String {
    let severity = match event.severity {
        Severity::Info => "info ",
        Severity::Warn => "WARN ",
        Severity::Error => "ERROR",
    };
    format!("{:.3}  {severity}  {}", event.time, event.line())
}
