//! Events, one after the other, and revisions of the configuration → a [`Report`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

use super::service::{Last, Service, Window, seconds, time};
use super::{Change, Gap, GapCause, Record, Report, Status};
use crate::core::events::{Event, Recorded};

/// A configuration that came into force, as the history has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The change that made it.
    pub change: Change,
    /// Its services, each with its backends; none if that cannot be read any more.
    pub services: Option<BTreeMap<String, BTreeSet<String>>>,
}

/// Goes through the record, from its beginning: what was before the time that is reported on says how things were when it began.
#[derive(Debug)]
pub struct Reporter {
    window: Window,
    revisions: VecDeque<Revision>,
    changes_begin: Option<Timestamp>,
    /// Whether an agent watches.
    watching: bool,
    /// When the record of events begins, and whether it was trimmed.
    begins: Option<(i64, bool)>,
    /// The last moment that was told of.
    last: i64,
    /// Set once an event is past the time.
    past: bool,
    services: BTreeMap<String, Service>,
    /// What was told of services by an agent that starts.
    found: BTreeMap<String, Status>,
    gap: Option<(i64, GapCause)>,
    gaps: Last<Gap>,
    unknown_ms: i64,
    changes: Last<Change>,
    refused: u64,
}

impl Reporter {
    /// For a time. `revisions` are all that are kept.
    pub fn new(since: Timestamp, until: Timestamp, mut revisions: Vec<Revision>) -> Self {
        revisions.sort_by_key(|revision| (revision.change.at, revision.change.revision));
        let oldest = revisions.first().map(|revision| &revision.change);
        Self {
            window: Window { since: since.as_millisecond(), until: until.as_millisecond() },
            changes_begin: oldest.filter(|oldest| oldest.revision > 1).map(|oldest| oldest.at),
            revisions: revisions.into(),
            watching: false,
            begins: None,
            last: i64::MIN,
            past: false,
            services: BTreeMap::new(),
            found: BTreeMap::new(),
            gap: None,
            gaps: Last::default(),
            unknown_ms: 0,
            changes: Last::default(),
            refused: 0,
        }
    }

    /// Takes in the next event.
    pub fn event(&mut self, recorded: &Recorded) {
        if self.past {
            return;
        }
        // The clock may have been put back.
        let at = recorded.time.as_millisecond().max(self.last);
        if at > self.window.until {
            self.past = true;
            if let Event::Lapsed { since } = &recorded.event {
                self.lapse(since.as_millisecond());
            }
            return;
        }
        self.revise_until(at);
        if self.begins.is_none() {
            self.begin(at, recorded);
        }
        match &recorded.event {
            Event::Ending { .. } => self.stop(at, GapCause::Ended),
            Event::Lapsed { since } => self.lapse(since.as_millisecond()),
            // Of the agent before, nothing says when it ended.
            Event::Adopted { .. } => self.stop(self.last, GapCause::Died),
            Event::Ready { .. } if !self.watching => self.watch(at),
            Event::ServiceStatus { service, from, to, .. } => {
                self.status(at, service, from.as_deref().map(Status::from_name), Status::from_name(to));
            }
            Event::Health { service, backend, to, reason, .. } => {
                // The first agent tells of a backend before its first configuration is in the history.
                let known = self.services.entry(service.clone());
                let service = known.or_insert_with(|| Service::new(self.window, at, Status::Unknown));
                if service.exists() {
                    match to.as_str() {
                        "unhealthy" => service.backend_out(at, backend, reason.as_deref()),
                        "healthy" => service.backend_back(at, backend),
                        _ => {}
                    }
                }
            }
            Event::Refused { .. } if at >= self.window.since => self.refused += 1,
            _ => {}
        }
        self.last = at;
    }

    /// The report. Without an agent that runs, `alive` is the last sign of life of the one before.
    pub fn finish(mut self, running: bool, alive: Option<Timestamp>) -> Report {
        let until = self.window.until;
        self.revise_until(until);
        if !running && !self.past {
            let alive = alive.map_or(i64::MIN, Timestamp::as_millisecond);
            self.stop(alive.max(self.last).min(until), GapCause::Died);
        }
        self.end_gap(until, None);
        let begins = self.begins.map_or(until, |(begins, _)| begins);
        let all_ms = self.window.overlap(begins, until);
        let reports = self.services.into_iter().filter_map(|(name, service)| service.report(name, until));
        Report {
            since: time(self.window.since),
            until: time(until),
            record: Record {
                begins: self.begins.map(|(begins, _)| time(begins)),
                trimmed: self.begins.is_some_and(|(_, trimmed)| trimmed),
                changes_begin: self.changes_begin,
                watched_seconds: seconds(all_ms - self.unknown_ms),
                unknown_seconds: seconds(self.unknown_ms),
                gaps: self.gaps.listed(),
            },
            services: reports.collect(),
            changes: self.changes.listed(),
            refused: self.refused,
        }
    }

    /// The first event that is kept. If it is not the first there was, an agent was watching.
    fn begin(&mut self, at: i64, first: &Recorded) {
        let trimmed = first.seq > 1;
        self.begins = Some((at, trimmed));
        self.last = at;
        self.gap = Some((at, GapCause::Starting));
        let starts =
            matches!(first.event, Event::Lapsed { .. } | Event::Adopted { .. } | Event::Ready { .. });
        if trimmed && !starts {
            self.end_gap(at, Some(at));
            self.watching = true;
            self.services.values_mut().for_each(|service| service.await_transition(at));
        }
    }

    /// Configurations that came into force up to now.
    fn revise_until(&mut self, at: i64) {
        while self.revisions.front().is_some_and(|next| next.change.at.as_millisecond() <= at) {
            let Some(Revision { change, services }) = self.revisions.pop_front() else { return };
            if let Some(services) = services {
                self.revise(change.at.as_millisecond().max(self.last), &services);
            }
            if change.at.as_millisecond() >= self.window.since {
                self.changes.push(change);
            }
        }
    }

    fn revise(&mut self, at: i64, services: &BTreeMap<String, BTreeSet<String>>) {
        let watching = self.watching;
        for (name, backends) in services {
            let is_well = watching && !backends.is_empty();
            let status = if is_well { Status::Healthy } else { Status::Unknown };
            let known = self.services.entry(name.clone());
            let service = known.or_insert_with(|| Service::new(self.window, at, status));
            if !service.exists() {
                service.add_again(at, status);
            }
            service.note_backends(at, backends, watching);
        }
        for (name, service) in &mut self.services {
            if service.exists() && !services.contains_key(name) {
                service.remove(at);
            }
        }
    }

    fn status(&mut self, at: i64, name: &str, from: Option<Status>, to: Status) {
        if !self.watching {
            self.found.insert(name.to_owned(), to);
            return;
        }
        match self.services.get_mut(name) {
            None => drop(self.services.insert(name.to_owned(), Service::new(self.window, at, to))),
            Some(service) if service.exists() => service.turn(at, from, to),
            Some(service) => service.add_again(at, to),
        }
    }

    /// An agent serves: what it did not tell of is well.
    fn watch(&mut self, at: i64) {
        self.end_gap(at, Some(at));
        self.watching = true;
        let mut found = std::mem::take(&mut self.found);
        for (name, service) in self.services.iter_mut().filter(|(_, service)| service.exists()) {
            service.watched(at, found.remove(name));
        }
        for (name, status) in found {
            self.services.insert(name, Service::new(self.window, at, status));
        }
    }

    /// An agent that starts found that the one before ended without a word.
    fn lapse(&mut self, since: i64) {
        self.stop(since.max(self.last), GapCause::Died);
    }

    fn stop(&mut self, at: i64, cause: GapCause) {
        if !std::mem::take(&mut self.watching) {
            return;
        }
        self.found.clear();
        self.gap = Some((at, cause));
        for service in self.services.values_mut().filter(|service| service.exists()) {
            service.turn(at, None, Status::Unknown);
        }
    }

    fn end_gap(&mut self, at: i64, until: Option<i64>) {
        let Some((from, cause)) = self.gap.take() else { return };
        let ms = self.window.overlap(from, at);
        self.unknown_ms += ms;
        if ms > 0 {
            self.gaps.push(Gap { from: time(from), until: until.map(time), cause });
        }
    }
}
