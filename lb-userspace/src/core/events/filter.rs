//! What somebody wants to see of the events → those events.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Event, Recorded, Severity};

/// Events asked for at most.
pub const MAX_LIMIT: usize = 10_000;

/// Which events are wanted; every field narrows. These are the parameters of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Only those with a higher number; of these the first ones, so that who asks again with the last number misses none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only those at or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only those about this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only those about a backend of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only those of these kinds, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only those that matter as much or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// At most so many: the last ones, unless `after` says where to begin.
    pub limit: usize,
    /// Seconds to wait for one if there is none yet.
    pub wait: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            after: None,
            since: None,
            service: None,
            backend: None,
            kind: None,
            severity: None,
            limit: 50,
            wait: 0,
        }
    }
}

impl Filter {
    /// What no event can be, and more of them than there are at once.
    pub fn check(&self) -> Result<(), String> {
        if self.limit > MAX_LIMIT {
            return Err(format!("limit: at most {MAX_LIMIT}, not {}", self.limit));
        }
        let kinds = self.kind.iter().flat_map(|kinds| kinds.split(','));
        match kinds.into_iter().find(|kind| !Event::KINDS.contains(kind)) {
            Some(kind) => {
                Err(format!("kind: {kind:?} is not known; known here: {}", Event::KINDS.join(", ")))
            }
            None => Ok(()),
        }
    }

    /// Those of these events, oldest first, that are wanted: see `limit`.
    pub fn select<'a>(&self, events: impl DoubleEndedIterator<Item = &'a Recorded>) -> Vec<Recorded> {
        let limit = self.limit.min(MAX_LIMIT);
        if self.after.is_some() {
            return events.filter(|event| self.wants(event)).take(limit).cloned().collect();
        }
        let mut found: Vec<Recorded> =
            events.rev().filter(|event| self.wants(event)).take(limit).cloned().collect();
        found.reverse();
        found
    }

    /// Whether an event is wanted.
    pub fn wants(&self, recorded: &Recorded) -> bool {
        let event = &recorded.event;
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        self.after.is_none_or(|after| recorded.seq > after)
            && self.since.is_none_or(|since| recorded.time >= since)
            && is(&self.service, event.service())
            && is(&self.backend, event.backend())
            && self.severity.is_none_or(|severity| recorded.severity >= severity)
            && self.kind.as_deref().is_none_or(|kinds| kinds.split(',').any(|kind| kind == event.kind()))
    }
}

/// The time that `30s`, `15m`, `2h` or `30d` ago was, or that `2026-03-01T12:00:00Z` names.
pub fn parse_since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || {
        format!("{text:?} is neither a time such as 2026-03-01T12:00:00Z nor one ago, such as 15m, 2h or 30d")
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let seconds: i64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: i64 = digits.parse().map_err(|_| wrong())?;
    let ago_ms = count.saturating_mul(seconds).saturating_mul(1_000);
    // Nothing was recorded before there was Unix.
    let then = Timestamp::from_millisecond(now.as_millisecond().saturating_sub(ago_ms));
    Ok(then.unwrap_or(Timestamp::MIN).max(Timestamp::UNIX_EPOCH))
}
