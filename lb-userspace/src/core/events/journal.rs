//! Events as they come → the last ones with number, time and how long the former state had lasted, in bounded memory.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

use super::{Event, Filter, Recorded};

/// Events that are kept.
const CAPACITY: usize = 1_000;
/// States whose beginning is remembered: twice as many as there may be backends.
const MAX_SUBJECTS: usize = 131_072;

/// The last events.
#[derive(Debug, Default)]
pub struct Journal {
    events: VecDeque<Recorded>,
    last: u64,
    began: BTreeMap<String, Timestamp>,
}

impl Journal {
    /// Goes on where another one ended; `events` are its last ones.
    pub fn resume(events: impl IntoIterator<Item = Recorded>) -> Self {
        let mut journal = Self::default();
        for event in events {
            journal.last = event.seq;
            journal.note(event);
        }
        journal
    }

    /// Takes an event in.
    pub fn record(&mut self, event: Event, now: Timestamp) -> Recorded {
        self.last += 1;
        let subject = event.subject();
        let began = subject.as_ref().and_then(|subject| self.began.get(subject));
        let lasted_ms = began.filter(|_| event.follows_the_last()).map(|began| {
            let lasted = now.as_millisecond().saturating_sub(began.as_millisecond());
            // The clock may have been put back.
            u64::try_from(lasted).unwrap_or(0)
        });
        let recorded = Recorded {
            seq: self.last,
            time: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
            severity: event.severity(),
            lasted_ms,
            text: event.to_string(),
            event,
        };
        self.note(recorded.clone());
        recorded
    }

    fn note(&mut self, recorded: Recorded) {
        if let Some(subject) = recorded.event.subject().filter(|_| recorded.event.begins_a_state()) {
            if self.began.len() >= MAX_SUBJECTS && !self.began.contains_key(&subject) {
                self.began.clear();
            }
            self.began.insert(subject, recorded.time);
        }
        if self.events.len() >= CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(recorded);
    }

    /// The number of the last event; 0 if there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The events that the filter wants of those that are kept here, and whether these are all that there could be: older ones than are
    /// kept here cannot be among them.
    pub fn select(&self, filter: &Filter) -> (Vec<Recorded>, bool) {
        let found = filter.select(self.events.iter());
        let complete = (found.len() >= filter.limit && filter.after.is_none())
            || self
                .events
                .front()
                .is_some_and(|first| first.seq <= filter.after.unwrap_or(0).saturating_add(1))
            || self.events.front().zip(filter.since).is_some_and(|(first, since)| first.time < since);
        (found, complete)
    }
}
