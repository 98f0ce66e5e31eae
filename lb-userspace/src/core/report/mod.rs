//! Events and changes of a time → how available each service was, its failovers, and what the record does not cover.
//!
//! What nobody watched is not guessed: time without an agent, and time before the record begins, is told separately and is part
//! of no share.

mod reporter;
mod service;

#[cfg(test)]
mod tests;

pub use reporter::{Reporter, Revision};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a list holds at most: the last ones.
pub const MAX_LISTED: usize = 1_000;

/// What an SLA review asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// From when it was asked for.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What the record covers of that.
    pub record: Record,
    /// By name; those that are gone by now included.
    pub services: Vec<ServiceReport>,
    /// Changes of the configuration.
    pub changes: Listed<Change>,
    /// Changes that were refused.
    pub refused: u64,
}

/// What is known of a time at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When the record of events begins; none if there is none. What was before is not known.
    pub begins: Option<Timestamp>,
    /// Whether older events were dropped, because the record is bounded.
    pub trimmed: bool,
    /// When the record of changes begins, if older ones were dropped.
    pub changes_begin: Option<Timestamp>,
    /// Seconds in which an agent watched, since the record begins.
    pub watched_seconds: f64,
    /// Seconds in which none did.
    pub unknown_seconds: f64,
    /// These times.
    pub gaps: Listed<Gap>,
}

/// A time in which no agent watched. Packets may well have been forwarded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// From when.
    pub from: Timestamp,
    /// Until when; none if it lasts.
    pub until: Option<Timestamp>,
    /// How it began.
    pub cause: GapCause,
}

/// How a time without an agent began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The record begins with an agent that starts.
    Starting,
    /// The agent ended, as it was told to.
    Ended,
    /// The agent was killed, or the host went down: the time is that of its last sign of life.
    Died,
}

/// How a service is, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All of it serves.
    Healthy,
    /// Enough backends are healthy, but not all.
    Degraded,
    /// Too few backends are healthy: packets go to all.
    FailingOpen,
    /// No backend serves.
    Down,
    /// Nobody watched.
    Unknown,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Degraded, Self::FailingOpen, Self::Down, Self::Unknown];

    /// By the name that events have for it.
    pub fn from_name(name: &str) -> Self {
        match name {
            "healthy" => Self::Healthy,
            "degraded" => Self::Degraded,
            "failing-open" => Self::FailingOpen,
            "down" => Self::Down,
            _ => Self::Unknown,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::FailingOpen => "failing open",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }

    /// Whether enough backends are healthy.
    pub fn is_available(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }

    /// Whether too few are.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::FailingOpen | Self::Down)
    }
}

/// A service over the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// From when it is counted: since then it is known to exist.
    pub from: Timestamp,
    /// Until when it existed, if it is gone.
    pub until: Option<Timestamp>,
    /// Share of the known time with enough healthy backends, from 0 to 1; none if nothing is known.
    pub availability: Option<f64>,
    /// Seconds by status.
    pub seconds: Seconds,
    /// Times with too few healthy backends.
    pub outages: Spans<Outage>,
    /// Times in which a backend was out, and its share went to others.
    pub failovers: Spans<Failover>,
    /// Its statuses, one after the other.
    pub periods: Listed<Period>,
}

/// Seconds by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// [`Status::Healthy`].
    pub healthy: f64,
    /// [`Status::Degraded`].
    pub degraded: f64,
    /// [`Status::FailingOpen`].
    pub failing_open: f64,
    /// [`Status::Down`].
    pub down: f64,
    /// [`Status::Unknown`].
    pub unknown: f64,
}

/// A list that is bounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed<T> {
    /// How many there were.
    pub count: u64,
    /// The last ones, oldest first.
    pub last: Vec<T>,
}

/// A list of times, and how long they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spans<T> {
    /// How many there were.
    pub count: u64,
    /// All of them together, in seconds.
    pub seconds: f64,
    /// The longest, in seconds.
    pub longest_seconds: f64,
    /// The last ones, oldest first.
    pub last: Vec<T>,
}

/// A status for some time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Period {
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// The status.
    pub status: Status,
}

/// A time with too few healthy backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// From when.
    pub from: Timestamp,
    /// Until when it is known to have lasted.
    pub until: Timestamp,
    /// Its length in seconds.
    pub seconds: f64,
    /// The worst status meanwhile.
    pub status: Status,
}

/// A time in which a backend was unhealthy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failover {
    /// The backend.
    pub backend: String,
    /// When it turned unhealthy.
    pub from: Timestamp,
    /// When it was healthy again, or removed; none if it lasts.
    pub until: Option<Timestamp>,
    /// Its length in seconds; up to the report's end if it lasts.
    pub seconds: f64,
    /// Why.
    pub reason: Option<String>,
}

/// A change of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision it made.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// The user who asked for it; none if the agent did it by itself, or by a signal.
    pub uid: Option<u32>,
    /// What was asked for.
    pub what: String,
    /// How many values changed.
    pub values: usize,
    /// Live flows that lost their backend.
    pub flows_lost: u64,
    /// Those of the others that may have, for their service gave up a VIP.
    #[serde(default)]
    pub flows_in_doubt: u64,
}
