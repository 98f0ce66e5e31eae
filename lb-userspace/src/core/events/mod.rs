//! What happened to the agent and its services → one value for the log, the API, the disk and people.
//!
//! Whoever notices something calls the one `record`; the line of the log, the answer of `sluice events` and the line on
//! the disk are made from the same [`Event`]. Another kind of event is another variant here, with its text.

mod filter;
mod journal;
mod text;

pub use filter::{Filter, MAX_LIMIT, parse_since};
pub use journal::Journal;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::config::Config;
use super::diff::Change;
use super::health::{Health, ServiceStatus, Serving};
use super::names;
use super::signals::Showing;

#[cfg(test)]
mod tests;

/// Lines of a list that an event carries; of more, it carries the number.
const MAX_LINES: usize = 10;
/// Longest text that an event carries, in characters.
const MAX_TEXT: usize = 300;

/// How much an event matters; the order is that of the log's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
}

/// Something that happened. Names, states and verdicts are those that `sluice status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The agent serves.
    Ready {
        /// Its version.
        version: String,
        /// What runs, in a clause.
        what: String,
    },
    /// The agent ends.
    Ending {
        /// What becomes of the data plane.
        data_plane: String,
    },
    /// The agent before ended without a word: it was killed, or the host went down.
    Lapsed {
        /// Its last sign of life.
        since: Timestamp,
    },
    /// Tables that a former agent had pinned were adopted.
    Adopted {
        /// Services in them.
        services: usize,
    },
    /// Tables of other sizes took the place of those in force, with all that these held.
    Resized {
        /// Flows that the flow table holds now.
        flows: u64,
        /// Connections that `nat` holds now.
        connections: u32,
        /// Services there is room for.
        services: u32,
        /// Backends there is room for.
        backends: u32,
        /// Live flows that found no place in a smaller flow table.
        flows_lost: u64,
    },
    /// The program was attached to an interface.
    Attached {
        /// The interface.
        interface: String,
    },
    /// The program of a former agent was replaced on an interface.
    TookOver {
        /// The interface.
        interface: String,
    },
    /// The driver refused the program, which runs in generic mode instead.
    ModeFallback {
        /// The interface.
        interface: String,
        /// What the driver said.
        cause: String,
    },
    /// An interface stays in another mode than the configured one, in which a former agent attached it.
    ModeKept {
        /// The interface.
        interface: String,
        /// Its mode: `driver` or `generic`.
        mode: String,
    },
    /// The program was detached from an interface.
    Detached {
        /// The interface.
        interface: String,
    },
    /// An interface was made anew under its name.
    InterfaceReplaced {
        /// The interface.
        interface: String,
    },
    /// Somebody took the program off an interface; it is attached again.
    TakenOff {
        /// The interface.
        interface: String,
    },
    /// The program is not on an interface, and cannot be attached: packets go past it.
    NotAttached {
        /// The interface.
        interface: String,
        /// Why.
        cause: String,
    },
    /// A backend's health changed.
    Health {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
        /// Health before.
        from: String,
        /// Health from now on.
        to: String,
        /// Why the deciding probe failed; none if it succeeded.
        reason: Option<String>,
    },
    /// A service's status changed.
    ServiceStatus {
        /// The service.
        service: String,
        /// Status before; none if it is new.
        from: Option<String>,
        /// Status from now on.
        to: String,
        /// Why, if `min_healthy` alone is not reached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A configuration came into force.
    Applied {
        /// How: `apply`, `reload`.
        by: String,
        /// The revision now in force.
        revision: u64,
        /// The first changes, one a line.
        changes: Vec<String>,
        /// How many there were.
        changes_total: usize,
        /// Live flows that lost their backend.
        flows_lost: u64,
        /// Those of the others that may have, for their service gave up a VIP.
        #[serde(default)]
        flows_in_doubt: u64,
    },
    /// A configuration was refused or could not be brought into force; the one before stays.
    Refused {
        /// How: `apply`, `reload`.
        by: String,
        /// The first errors.
        errors: Vec<String>,
        /// How many there were.
        errors_total: usize,
    },
    /// An operator changed a backend's state: `enabled`, `drain` or `disabled`.
    BackendState {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
        /// State before.
        from: String,
        /// State from now on.
        to: String,
    },
    /// A backend that is drained has no live flow left.
    Drained {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
    },
    /// No next hop to an address is known any more.
    NextHopLost {
        /// Why.
        reason: String,
        /// The address; none if this is about several.
        address: Option<String>,
    },
    /// The next hop to an address that was lost is known again.
    NextHopFound {
        /// The address.
        address: String,
    },
    /// The datapath could not be changed and keeps its former state.
    NotReconciled {
        /// Why.
        cause: String,
    },
    /// A table runs full, or does so no more.
    TablePressure {
        /// `flow_table`, `nat_table` or `nat_ports`.
        table: String,
        /// Whether it begins; else it is over.
        begins: bool,
        /// Entries taken.
        entries: u64,
        /// Entries it can hold; 0 if that is not one number.
        size: u64,
        /// Flows that lost their entry or found no room, since the last look.
        lost: u64,
    },
    /// Packets are dropped under a verdict that means that something is wrong, or are so no more.
    Drops {
        /// The verdict.
        verdict: String,
        /// Whether it begins; else it is over.
        begins: bool,
        /// Packets since the last look.
        packets: u64,
        /// What the verdict means.
        meaning: String,
    },
    /// What customers' packets show of a backend: a sign that it is not well begins or ends.
    Signal {
        /// Its service.
        service: String,
        /// Its name.
        backend: String,
        /// `unanswered`, `resets` or `reset_flood`.
        signal: String,
        /// Whether it begins; else it is over.
        begins: bool,
        /// What is wrong, with what was counted; empty if it is over.
        reason: String,
        /// Whether it counts as a failed check.
        counts: bool,
    },
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

/// An event with its number and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Grows by one with every event, also over restarts of the agent.
    pub seq: u64,
    /// When, in UTC, to the millisecond.
    #[serde(serialize_with = "to_the_millisecond")]
    pub time: Timestamp,
    /// How much it matters.
    pub severity: Severity,
    /// How long what ended with it had lasted, in milliseconds, if that is known: the former health, the pressure, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
    /// It in words.
    pub text: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Recorded {
    /// It in words, with how long the former state had lasted.
    pub fn line(&self) -> String {
        let text = printable(&self.text);
        match self.lasted_ms {
            Some(lasted) => format!("{text} (after {})", duration(lasted)),
            None => text,
        }
    }
}

/// A text that others chose, for a line of a terminal: no new lines, nothing that a terminal obeys.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// A time in milliseconds as people read it: the two largest units, tenths below a minute.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

impl Event {
    /// The names of all kinds.
    pub const KINDS: [&'static str; 25] = [
        "ready",
        "ending",
        "lapsed",
        "adopted",
        "resized",
        "attached",
        "took_over",
        "mode_fallback",
        "mode_kept",
        "detached",
        "interface_replaced",
        "taken_off",
        "not_attached",
        "health",
        "service_status",
        "applied",
        "refused",
        "backend_state",
        "drained",
        "next_hop_lost",
        "next_hop_found",
        "not_reconciled",
        "table_pressure",
        "drops",
        "signal",
    ];

    /// A configuration came into force: live flows have lost their backend, and as many others may have.
    pub fn applied(by: &str, revision: u64, changes: &[Change], [lost, in_doubt]: [u64; 2]) -> Self {
        let (changes, changes_total) = first_lines(changes.iter());
        let (by, flows_lost, flows_in_doubt) = (by.to_owned(), lost, in_doubt);
        Self::Applied { by, revision, changes, changes_total, flows_lost, flows_in_doubt }
    }

    /// A configuration was refused.
    pub fn refused(by: &str, errors: &[String]) -> Self {
        let (errors, errors_total) = first_lines(errors.iter());
        Self::Refused { by: by.to_owned(), errors, errors_total }
    }

    /// A backend's health changed.
    pub fn health(service: &str, backend: &str, from: &str, to: &str, reason: Option<String>) -> Self {
        Self::Health {
            service: service.to_owned(),
            backend: backend.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            reason: reason.map(|reason| clip(&reason)),
        }
    }

    /// A service's status changed.
    pub fn service_status(service: &str, from: Option<ServiceStatus>, serving: &Serving) -> Self {
        Self::ServiceStatus {
            service: service.to_owned(),
            from: from.map(|status| names::status(status).to_owned()),
            to: names::status(serving.status).to_owned(),
            reason: serving.shortfall.map(|shortfall| shortfall.to_string()),
        }
    }

    /// A sign that a backend is not well begins or ends.
    pub fn signal(showing: &Showing, counts: bool) -> Self {
        let &Showing { ref key, signal, begins, ref counted } = showing;
        Self::Signal {
            service: key.service.clone(),
            backend: key.backend.clone(),
            signal: signal.name().to_owned(),
            begins,
            reason: if begins { signal.reason(counted) } else { String::new() },
            counts: counts && signal.is_of_the_backend(),
        }
    }

    /// Its name in filters and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Ending { .. } => "ending",
            Self::Lapsed { .. } => "lapsed",
            Self::Adopted { .. } => "adopted",
            Self::Resized { .. } => "resized",
            Self::Attached { .. } => "attached",
            Self::TookOver { .. } => "took_over",
            Self::ModeFallback { .. } => "mode_fallback",
            Self::ModeKept { .. } => "mode_kept",
            Self::Detached { .. } => "detached",
            Self::InterfaceReplaced { .. } => "interface_replaced",
            Self::TakenOff { .. } => "taken_off",
            Self::NotAttached { .. } => "not_attached",
            Self::Health { .. } => "health",
            Self::ServiceStatus { .. } => "service_status",
            Self::Applied { .. } => "applied",
            Self::Refused { .. } => "refused",
            Self::BackendState { .. } => "backend_state",
            Self::Drained { .. } => "drained",
            Self::NextHopLost { .. } => "next_hop_lost",
            Self::NextHopFound { .. } => "next_hop_found",
            Self::NotReconciled { .. } => "not_reconciled",
            Self::TablePressure { .. } => "table_pressure",
            Self::Drops { .. } => "drops",
            Self::Signal { .. } => "signal",
            Self::Unknown => "unknown",
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Refused { .. } | Self::NotReconciled { .. } | Self::NotAttached { .. } => Severity::Error,
            Self::Lapsed { .. }
            | Self::ModeFallback { .. }
            | Self::ModeKept { .. }
            | Self::InterfaceReplaced { .. }
            | Self::TakenOff { .. }
            | Self::NextHopLost { .. } => Severity::Warn,
            Self::Resized { flows_lost: 1.., .. } => Severity::Warn,
            Self::Health { to, .. } if to == "unhealthy" => Severity::Warn,
            Self::ServiceStatus { to, .. } if to == "degraded" => Severity::Warn,
            Self::ServiceStatus { to, .. } if to != "healthy" => Severity::Error,
            Self::TablePressure { begins: true, .. }
            | Self::Drops { begins: true, .. }
            | Self::Signal { begins: true, .. } => Severity::Warn,
            _ => Severity::Info,
        }
    }

    /// The service it is about, if it is about one.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Health { service, .. }
            | Self::ServiceStatus { service, .. }
            | Self::BackendState { service, .. }
            | Self::Drained { service, .. }
            | Self::Signal { service, .. } => Some(service),
            _ => None,
        }
    }

    /// The backend it is about, if it is about one.
    pub fn backend(&self) -> Option<&str> {
        match self {
            Self::Health { backend, .. }
            | Self::BackendState { backend, .. }
            | Self::Drained { backend, .. }
            | Self::Signal { backend, .. } => Some(backend),
            _ => None,
        }
    }

    /// What it says the state of, if anything: the time between two events about the same is how long the first lasted.
    fn subject(&self) -> Option<String> {
        let named = |parts: &[&str]| Some(parts.join("/"));
        match self {
            Self::Health { service, backend, .. } => named(&["health", service, backend]),
            Self::ServiceStatus { service, .. } => named(&["status", service]),
            Self::BackendState { service, backend, .. } | Self::Drained { service, backend } => {
                named(&["state", service, backend])
            }
            Self::NextHopLost { address: Some(address), .. } | Self::NextHopFound { address } => {
                named(&["hop", address])
            }
            Self::TablePressure { table, .. } => named(&["pressure", table]),
            Self::Drops { verdict, .. } => named(&["drops", verdict]),
            Self::Signal { service, backend, signal, .. } => named(&["signal", service, backend, signal]),
            _ => None,
        }
    }
}

/// With three digits in any case, so that times sort as text.
fn to_the_millisecond<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
}

impl Event {
    /// Whether the last event about the same began what this one ends. A health that is not known yet began with the backend, which may
    /// have been there before.
    fn follows_the_last(&self) -> bool {
        !matches!(self, Self::Health { from, .. } if from == names::health(Health::Unknown))
    }

    /// Whether a state begins with it. A backend that is drained goes on draining.
    fn begins_a_state(&self) -> bool {
        !matches!(self, Self::Drained { .. })
    }
}

/// What an operator changed about backends that are in both configurations.
pub fn state_changes(before: &Config, after: &Config) -> Vec<Event> {
    let mut events = Vec::new();
    for service in &after.services {
        let Some(former) = before.services.iter().find(|former| former.name == service.name) else {
            continue;
        };
        for backend in &service.backends {
            let was = former.backends.iter().find(|former| former.name == backend.name);
            if let Some(was) = was.filter(|was| was.state != backend.state) {
                events.push(Event::BackendState {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    from: names::state(was.state).to_owned(),
                    to: names::state(backend.state).to_owned(),
                });
            }
        }
    }
    events
}

fn first_lines<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> (Vec<String>, usize) {
    let total = items.len();
    (items.take(MAX_LINES).map(|item| clip(&item.to_string())).collect(), total)
}

/// A text that is not longer than an event may carry.
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
