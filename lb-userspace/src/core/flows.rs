//! The flow table → live flows by service, backend, state and the time since their last packet.
//!
//! The table keeps a signature of each flow, so that a packet finds its backend again. It does not keep addresses: who the
//! clients are cannot be told from it, see [`super::clients`].

use std::collections::BTreeMap;

use lb_common::abi::{FLOW_WAYS, FlowBucket};
use lb_common::flow::{Entry, State, Tick};
use serde::{Deserialize, Serialize};

/// What the table cannot tell, for people.
pub const UNKNOWN: &str = "the flow table keeps a signature of each flow, not its addresses: who the clients are cannot be \
                           told from it (--clients samples packets)";

/// Classes of idleness: seconds below which a flow is in one, and its name. The last one has no end.
const IDLE: [(u32, &str); 5] = [(10, "10s"), (60, "1m"), (600, "10m"), (3_600, "1h"), (u32::MAX, "more")];

/// Flows of one kind, by state and class of idleness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    by: [[u64; IDLE.len()]; 3],
}

/// What is to be counted, and how.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What makes a line.
    pub by: By,
    /// Only flows of this service.
    pub service: Option<String>,
    /// Only flows of backends of this name.
    pub backend: Option<String>,
    /// Only flows in this state.
    pub state: Option<FlowState>,
    /// Only flows without a packet for at least so many seconds.
    pub idle_seconds: u32,
    /// What comes first.
    pub sort: Sort,
    /// Lines at most.
    pub lines: usize,
}

/// What makes a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// A backend of a service.
    #[default]
    Backend,
    /// A service.
    Service,
    /// A state.
    State,
    /// A class of idleness.
    Idle,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Most flows.
    #[default]
    Flows,
    /// The first name.
    Name,
    /// Most flows that were only opened.
    Opening,
    /// Most flows that are being closed.
    Closing,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// Seen only by the packet that opened it.
    Opening,
    /// More packets followed.
    Established,
    /// A FIN or RST was seen.
    Closing,
}

const STATES: [FlowState; 3] = [FlowState::Opening, FlowState::Established, FlowState::Closing];

impl FlowState {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }

    fn index(self) -> usize {
        self as usize
    }

    fn of(state: State) -> Self {
        match state {
            State::Opening => Self::Opening,
            State::Established => Self::Established,
            State::Closing => Self::Closing,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Entries that the table can hold.
    pub size: u64,
    /// Entries taken.
    pub entries: u64,
    /// Entries of flows that have been idle for too long, or whose backend is gone: they make way first.
    pub expired: u64,
    /// Entries that hold which backend a client is with.
    pub clients: u64,
    /// Flows that were asked for.
    pub flows: u64,
    /// The lines, in order.
    pub lines: Vec<FlowLine>,
    /// Lines that were left out.
    pub lines_left_out: usize,
    /// What cannot be told.
    pub unknown: String,
}

/// A line of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLine {
    /// The service, if lines are by service or backend.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// The backend, if lines are by backend.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<String>,
    /// The state or the class of idleness, if lines are by that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<String>,
    /// Its flows.
    pub flows: u64,
    /// Those that were only opened.
    pub opening: u64,
    /// Those that are established: what `sluice status` calls active.
    pub established: u64,
    /// Those that are being closed.
    pub closing: u64,
    /// By the time since their last packet: less than `10s`, `1m`, `10m`, `1h`, or `more`.
    pub idle: BTreeMap<String, u64>,
}

/// Counts the flows of a table; `owners` are service and backend by backend id. A tick is taken for a second.
pub fn report(
    buckets: &[FlowBucket],
    owners: &[Option<(String, String)>],
    now: Tick,
    question: &Question,
) -> FlowReport {
    let mut report = FlowReport {
        size: (buckets.len() * FLOW_WAYS) as u64,
        unknown: UNKNOWN.to_owned(),
        ..FlowReport::default()
    };
    let counts = count(buckets, owners, now, question.idle_seconds, &mut report);
    let mut lines: BTreeMap<[Option<&str>; 3], Counts> = BTreeMap::new();
    for (owner, counts) in owners.iter().zip(&counts) {
        let Some((service, backend)) = owner else { continue };
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        if is(&question.service, service) && is(&question.backend, backend) {
            add(&mut lines, (service, backend), counts, question);
        }
    }
    let mut lines: Vec<FlowLine> = lines.into_iter().map(|(key, counts)| line(key, &counts)).collect();
    report.flows = lines.iter().map(|line| line.flows).sum();
    // Lines come by name; sorting keeps that order among equals.
    lines.sort_by_key(|line| match question.sort {
        Sort::Name => 0,
        Sort::Flows => u64::MAX - line.flows,
        Sort::Opening => u64::MAX - line.opening,
        Sort::Closing => u64::MAX - line.closing,
    });
    report.lines_left_out = lines.len().saturating_sub(question.lines);
    lines.truncate(question.lines);
    report.lines = lines;
    report
}

/// Counts by backend id: the one pass over the table.
fn count(
    buckets: &[FlowBucket],
    owners: &[Option<(String, String)>],
    now: Tick,
    idle_seconds: u32,
    report: &mut FlowReport,
) -> Vec<Counts> {
    let mut counts = vec![Counts::default(); owners.len()];
    for way in buckets.iter().flat_map(|bucket| &bucket.ways) {
        let Some(entry) = Entry::from_word(way.load()) else { continue };
        report.entries += 1;
        let id = usize::from(entry.backend());
        let owned = owners.get(id).is_some_and(Option::is_some);
        if entry.is_client() {
            report.clients += 1;
        } else if entry.is_expired(now) || !owned {
            report.expired += 1;
        } else if entry.age(now) >= idle_seconds
            && let Some(place) = counts.get_mut(id).and_then(|counts| place(counts, entry, now))
        {
            *place += 1;
        }
    }
    counts
}

fn place(counts: &mut Counts, entry: Entry, now: Tick) -> Option<&mut u64> {
    let age = entry.age(now);
    let class = IDLE.iter().position(|(below, _)| age < *below)?;
    counts.by.get_mut(FlowState::of(entry.state()).index())?.get_mut(class)
}

/// Adds a backend's counts to the lines that they belong to.
fn add<'a>(
    lines: &mut BTreeMap<[Option<&'a str>; 3], Counts>,
    (service, backend): (&'a str, &'a str),
    counts: &Counts,
    question: &Question,
) {
    let states = STATES.into_iter().filter(|state| question.state.is_none_or(|wanted| wanted == *state));
    let fixed = match question.by {
        By::Backend => Some([Some(service), Some(backend), None]),
        By::Service => Some([Some(service), None, None]),
        By::State | By::Idle => None,
    };
    if let Some(key) = fixed {
        lines.entry(key).or_default();
    }
    for state in states {
        for (class, (_, idle)) in IDLE.iter().enumerate() {
            let Some(&flows) = counts.by.get(state.index()).and_then(|classes| classes.get(class)) else {
                continue;
            };
            if flows == 0 {
                continue;
            }
            let of = if question.by == By::State { state.name() } else { idle };
            let line = lines.entry(fixed.unwrap_or([None, None, Some(of)])).or_default();
            if let Some(sum) = line.by.get_mut(state.index()).and_then(|classes| classes.get_mut(class)) {
                *sum += flows;
            }
        }
    }
}

fn line([service, backend, of]: [Option<&str>; 3], counts: &Counts) -> FlowLine {
    let [opening, established, closing] = counts.by.map(|classes| classes.iter().sum());
    let idle = IDLE.iter().enumerate().map(|(class, (_, name))| {
        let flows = counts.by.iter().filter_map(|classes| classes.get(class)).sum();
        ((*name).to_owned(), flows)
    });
    FlowLine {
        service: service.map(str::to_owned),
        backend: backend.map(str::to_owned),
        of: of.map(str::to_owned),
        flows: opening + established + closing,
        opening,
        established,
        closing,
        idle: idle.collect(),
    }
}

/// The names of the classes of idleness, in order.
pub fn idle_names() -> impl Iterator<Item = &'static str> {
    IDLE.iter().map(|(_, name)| *name)
}

#[cfg(test)]
mod tests;
