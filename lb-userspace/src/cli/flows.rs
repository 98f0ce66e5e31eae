//! `sluice flows`: live flows, counted in the flow table.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::client::Client;
use super::output::{Columns, percent};
use super::{DEFAULT_PIN_DIR, Failure, Format, OutputFlag, clients, output};
use crate::core::clients::Question as ClientQuestion;
use crate::core::config::parse_duration;
use crate::core::flows::{By, FlowLine, FlowReport, FlowState, Question, Sort, idle_names};
use crate::core::image::Image;
use crate::io::datapath::{Access, Datapath, Kernel, PinDir};

/// Count live flows by service, backend, state, or the time since their last packet
///
/// Those that are opening or closing are counted, too; `sluice status` and a drain count established ones alone.
///
/// Reads the pinned flow table, whether or not an agent runs. The table keeps a signature of each flow, not its addresses:
/// who the clients are cannot be told from it. --clients has the agent look at packets for a short time, and tells whose they are;
/// of services of mode nat, the table of translations tells all clients, whether or not an agent runs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What makes a line
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    by: ByFlag,
    /// Only flows of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows of backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only flows in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateFlag>,
    /// Only flows without a packet for at least so long, such as 90s or 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    idle: Option<Duration>,
    /// What comes first
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    sort: SortFlag,
    /// Lines at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    lines: usize,
    /// List clients instead, from a sample of packets, or from all translations
    #[arg(long, conflicts_with_all = ["by", "state", "idle", "sort"])]
    clients: bool,
    /// How long packets are sampled, a minute at most
    #[arg(long = "for", value_name = "DURATION", default_value = "2s", value_parser = parse_duration, requires = "clients")]
    sample_for: Duration,
    /// Where the tables are pinned
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    #[command(flatten)]
    format: OutputFlag,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ByFlag {
    #[default]
    Backend,
    Service,
    State,
    Idle,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateFlag {
    Opening,
    Established,
    Closing,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum SortFlag {
    #[default]
    Flows,
    Name,
    Opening,
    Closing,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    if arguments.clients {
        let Arguments { service, backend, lines, .. } = arguments;
        let question = ClientQuestion { service: service.clone(), backend: backend.clone(), lines: *lines };
        let format = arguments.format.output;
        return clients::run(&arguments.pin_dir, &question, arguments.sample_for, format, client).await;
    }
    let kernel = Kernel::open(&PinDir::new(&arguments.pin_dir), Access::Read).map_err(Failure::failed)?;
    is_known(&kernel.tables().names(), arguments)?;
    let now = kernel.now().map_err(Failure::failed)?;
    let report = kernel.tables().flow_report(now, &question(arguments));
    match arguments.format.output {
        Format::Json => output::json(&report),
        Format::Table => output::print(&render(&report)),
    }
}

/// Whether there is what is asked for: a name that is not there is not one without flows.
fn is_known(loaded: &Image, arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { service, backend, .. } = arguments;
    let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let services = loaded.services.iter().filter(|(_, loaded)| is(service, &loaded.name));
    let ids: BTreeSet<u32> = services.map(|(&id, _)| id).collect();
    let found = match backend {
        None => !ids.is_empty() || service.is_none(),
        Some(_) => loaded.backends.values().any(|one| ids.contains(&one.service) && is(backend, &one.name)),
    };
    if found { Ok(()) } else { Err(clients::not_there(service.as_deref(), backend.as_deref())) }
}

fn question(arguments: &Arguments) -> Question {
    let idle = arguments.idle.unwrap_or_default().as_secs();
    Question {
        by: match arguments.by {
            ByFlag::Backend => By::Backend,
            ByFlag::Service => By::Service,
            ByFlag::State => By::State,
            ByFlag::Idle => By::Idle,
        },
        service: arguments.service.clone(),
        backend: arguments.backend.clone(),
        state: arguments.state.map(|state| match state {
            StateFlag::Opening => FlowState::Opening,
            StateFlag::Established => FlowState::Established,
            StateFlag::Closing => FlowState::Closing,
        }),
        idle_seconds: u32::try_from(idle).unwrap_or(u32::MAX),
        sort: match arguments.sort {
            SortFlag::Flows => Sort::Flows,
            SortFlag::Name => Sort::Name,
            SortFlag::Opening => Sort::Opening,
            SortFlag::Closing => Sort::Closing,
        },
        lines: arguments.lines,
    }
}

fn render(report: &FlowReport) -> String {
    let mut header = vec!["", "flows", "share", "established", "opening", "closing"];
    let idle: Vec<String> = idle_names()
        .map(|name| if name == "more" { name.to_owned() } else { format!("idle <{name}") })
        .collect();
    header.extend(idle.iter().map(String::as_str));
    let mut columns = Columns::with_header(&header);
    for line in &report.lines {
        columns.line(cells(line, report.flows));
    }
    let mut parts = vec![columns.render("")];
    if report.lines_left_out > 0 {
        parts.push(format!("… and {} more lines", report.lines_left_out));
    }
    let FlowReport { size, entries, expired, clients, flows, unknown, .. } = report;
    parts.push(format!(
        "{flows} flows; {entries} of {size} entries taken, of them {expired} expired or left over, {clients} of clients \
         with an affinity\n{unknown}"
    ));
    parts.join("\n")
}

fn cells(line: &FlowLine, all: u64) -> Vec<String> {
    let name = [&line.service, &line.backend, &line.of];
    let name: Vec<&str> = name.into_iter().flatten().map(String::as_str).collect();
    let share = if all == 0 { 0.0 } else { line.flows as f64 / all as f64 };
    let mut cells = vec![name.join("/"), line.flows.to_string(), percent(share)];
    cells.extend([line.established, line.opening, line.closing].map(|flows| flows.to_string()));
    cells.extend(idle_names().map(|name| line.idle.get(name).copied().unwrap_or(0).to_string()));
    cells
}
