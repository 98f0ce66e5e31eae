//! What happens to one service, in order → its report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

use super::{Failover, Listed, MAX_LISTED, Outage, Period, Seconds, ServiceReport, Spans, Status};

/// The time that is reported on, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) since: i64,
    pub(super) until: i64,
}

impl Window {
    /// Milliseconds of a time that lie in here.
    pub(super) fn overlap(self, from: i64, until: i64) -> i64 {
        until.min(self.until).saturating_sub(from.max(self.since)).max(0)
    }

    /// Whether a time touches this one.
    fn touches(self, from: i64, until: i64) -> bool {
        until >= self.since && from <= self.until
    }
}

/// The last of many.
#[derive(Debug)]
pub(super) struct Last<T> {
    count: u64,
    items: VecDeque<T>,
}

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self { count: 0, items: VecDeque::new() }
    }
}

impl<T> Last<T> {
    pub(super) fn push(&mut self, item: T) {
        self.count += 1;
        if self.items.len() >= MAX_LISTED {
            self.items.pop_front();
        }
        self.items.push_back(item);
    }

    pub(super) fn listed(self) -> Listed<T> {
        Listed { count: self.count, last: self.items.into() }
    }
}

/// Times that end, with their lengths.
#[derive(Debug)]
struct Times<T> {
    last: Last<T>,
    all_ms: i64,
    longest_ms: i64,
}

impl<T> Default for Times<T> {
    fn default() -> Self {
        Self { last: Last::default(), all_ms: 0, longest_ms: 0 }
    }
}

impl<T> Times<T> {
    fn push(&mut self, ms: i64, item: T) {
        self.all_ms += ms;
        self.longest_ms = self.longest_ms.max(ms);
        self.last.push(item);
    }

    fn spans(self) -> Spans<T> {
        let (seconds, longest_seconds) = (seconds(self.all_ms), seconds(self.longest_ms));
        let Listed { count, last } = self.last.listed();
        Spans { count, seconds, longest_seconds, last }
    }
}

/// A service while events are gone through.
#[derive(Debug)]
pub(super) struct Service {
    window: Window,
    created: i64,
    removed: Option<i64>,
    status: Status,
    /// When the status began.
    began: i64,
    /// Whether it has no backend.
    bare: bool,
    /// Whether its status follows from that alone, so that no event tells when it ends.
    inferred: bool,
    /// Whether the next transition will tell what the status is.
    untold: bool,
    by_status: BTreeMap<Status, i64>,
    periods: Last<Period>,
    outages: Times<Outage>,
    outage: Option<(i64, Status)>,
    failovers: Times<Failover>,
    out: BTreeMap<String, (i64, Option<String>)>,
}

impl Service {
    pub(super) fn new(window: Window, at: i64, status: Status) -> Self {
        Self {
            window,
            created: at,
            removed: None,
            status,
            began: at,
            bare: false,
            inferred: false,
            untold: false,
            by_status: BTreeMap::new(),
            periods: Last::default(),
            outages: Times::default(),
            outage: None,
            failovers: Times::default(),
            out: BTreeMap::new(),
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.removed.is_none()
    }

    /// From here on it is watched, but only the next transition tells what it was.
    pub(super) fn await_transition(&mut self, at: i64) {
        self.close(at);
        (self.began, self.untold) = (at, self.status == Status::Unknown);
    }

    /// It is another status from now on. `from` is what it was before, if that is told.
    pub(super) fn turn(&mut self, at: i64, from: Option<Status>, to: Status) {
        if let Some(from) = from.filter(|_| std::mem::take(&mut self.untold)) {
            self.status = from;
            self.note_outage(self.began, from);
        }
        (self.untold, self.inferred) = (false, false);
        if to == self.status {
            return;
        }
        self.close(at);
        (self.status, self.began) = (to, at);
        self.note_outage(at, to);
    }

    /// An outage goes on through its statuses, and ends with what is none.
    fn note_outage(&mut self, at: i64, status: Status) {
        match (&mut self.outage, status.is_outage()) {
            (Some((_, worst)), true) => *worst = status.max(*worst),
            (None, true) => self.outage = Some((at, status)),
            (_, false) => self.end_outage(at),
        }
    }

    fn end_outage(&mut self, at: i64) {
        let Some((from, status)) = self.outage.take() else { return };
        if self.window.touches(from, at) {
            let ms = at.saturating_sub(from);
            let outage = Outage { from: time(from), until: time(at), seconds: seconds(ms), status };
            self.outages.push(ms, outage);
        }
    }

    fn close(&mut self, at: i64) {
        let ms = self.window.overlap(self.began, at);
        if ms == 0 {
            return;
        }
        *self.by_status.entry(self.status).or_default() += ms;
        self.periods.push(Period {
            from: time(self.began.max(self.window.since)),
            until: time(at.min(self.window.until)),
            status: self.status,
        });
    }

    /// A backend turned unhealthy, or is found to be so.
    pub(super) fn backend_out(&mut self, at: i64, backend: &str, reason: Option<&str>) {
        self.out.entry(backend.to_owned()).or_insert_with(|| (at, reason.map(str::to_owned)));
    }

    /// A backend is healthy again, or gone.
    pub(super) fn backend_back(&mut self, at: i64, backend: &str) {
        if let Some((from, reason)) = self.out.remove(backend) {
            self.push_failover(backend.to_owned(), from, at, Some(at), reason);
        }
    }

    fn push_failover(
        &mut self,
        backend: String,
        from: i64,
        at: i64,
        until: Option<i64>,
        reason: Option<String>,
    ) {
        if self.window.touches(from, at) {
            let ms = at.saturating_sub(from);
            let until = until.map(time);
            self.failovers
                .push(ms, Failover { backend, from: time(from), until, seconds: seconds(ms), reason });
        }
    }

    /// It has only these backends any more.
    pub(super) fn keep_backends(&mut self, at: i64, kept: &BTreeSet<String>) {
        let gone: Vec<String> = self.out.keys().filter(|backend| !kept.contains(*backend)).cloned().collect();
        for backend in gone {
            self.backend_back(at, &backend);
        }
    }

    /// A configuration gives it these backends. Until the first one comes it is only beginning: neither available nor out.
    pub(super) fn note_backends(&mut self, at: i64, backends: &BTreeSet<String>, watching: bool) {
        self.keep_backends(at, backends);
        self.bare = backends.is_empty();
        if self.bare {
            self.inferred |= watching && self.status == Status::Unknown;
        } else if std::mem::take(&mut self.inferred) {
            self.turn(at, None, Status::Healthy);
        }
    }

    /// An agent begins to watch, and told this of it. What it does not tell of is well, unless it has no backend.
    pub(super) fn watched(&mut self, at: i64, told: Option<Status>) {
        let untold = if self.bare { Status::Down } else { Status::Healthy };
        self.turn(at, None, told.unwrap_or(untold));
        self.inferred = self.bare && told.is_none();
    }

    /// It is removed.
    pub(super) fn remove(&mut self, at: i64) {
        self.keep_backends(at, &BTreeSet::new());
        self.end_outage(at);
        self.close(at);
        (self.status, self.began, self.removed) = (Status::Unknown, at, Some(at));
    }

    /// It is there again, under its old name.
    pub(super) fn add_again(&mut self, at: i64, status: Status) {
        (self.status, self.began, self.removed, self.untold) = (status, at, None, false);
        self.note_outage(at, status);
    }

    /// The report; none if it did not exist in that time.
    pub(super) fn report(mut self, name: String, end: i64) -> Option<ServiceReport> {
        if self.removed.is_none() {
            self.close(end);
            self.end_outage(end);
        }
        for (backend, (from, reason)) in std::mem::take(&mut self.out) {
            self.push_failover(backend, from, end, None, reason);
        }
        if self.removed.is_some_and(|removed| removed < self.window.since) || self.created > self.window.until
        {
            return None;
        }
        let ms = |status: Status| self.by_status.get(&status).copied().unwrap_or(0);
        let of = |wanted: fn(Status) -> bool| {
            Status::ALL.into_iter().filter(|&status| wanted(status)).map(ms).sum()
        };
        let (available, outage): (i64, i64) = (of(Status::is_available), of(Status::is_outage));
        let known = available + outage;
        Some(ServiceReport {
            name,
            from: time(self.created.max(self.window.since)),
            until: self.removed.map(time),
            availability: (known > 0).then(|| available as f64 / known as f64),
            seconds: Seconds {
                healthy: seconds(ms(Status::Healthy)),
                degraded: seconds(ms(Status::Degraded)),
                failing_open: seconds(ms(Status::FailingOpen)),
                down: seconds(ms(Status::Down)),
                unknown: seconds(ms(Status::Unknown)),
            },
            outages: self.outages.spans(),
            failovers: self.failovers.spans(),
            periods: self.periods.listed(),
        })
    }
}

/// Milliseconds → seconds.
pub(super) fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

/// Milliseconds since 1970 → a time.
pub(super) fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}
