use super::*;
use crate::core::events::{Event, Recorded};

/// The time, so many seconds into the story.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn ready() -> Event {
    Event::Ready { version: "1".into(), what: "services: 1".into() }
}

fn ending() -> Event {
    Event::Ending { data_plane: "goes on".into() }
}

fn status(service: &str, from: Option<&str>, to: &str) -> Event {
    Event::ServiceStatus { service: service.into(), from: from.map(Into::into), to: to.into(), reason: None }
}

fn health(backend: &str, to: &str) -> Event {
    let from = if to == "healthy" { "unhealthy" } else { "healthy" };
    Event::health("web", backend, from, to, (to == "unhealthy").then(|| "connection refused".to_owned()))
}

fn revision(number: u64, seconds: i64, services: &[(&str, &[&str])]) -> Revision {
    let backends = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let services = services.iter().map(|(name, names)| ((*name).to_owned(), backends(names))).collect();
    let change = Change {
        revision: number,
        at: at(seconds),
        uid: Some(0),
        what: format!("change {number}"),
        values: 1,
        flows_lost: 0,
        flows_in_doubt: 0,
    };
    Revision { change, services: Some(services) }
}

const WEB: [(&str, &[&str]); 1] = [("web", &["web1", "web2"])];

struct Story {
    since: i64,
    until: i64,
    revisions: Vec<Revision>,
    first_seq: u64,
    running: bool,
    alive: Option<i64>,
}

impl Default for Story {
    fn default() -> Self {
        let revisions = vec![revision(1, 0, &WEB)];
        Self { since: 0, until: 1_000, revisions, first_seq: 1, running: true, alive: None }
    }
}

impl Story {
    fn report(self, events: &[(i64, Event)]) -> Report {
        let mut reporter = Reporter::new(at(self.since), at(self.until), self.revisions);
        for (seq, (seconds, event)) in (self.first_seq..).zip(events) {
            reporter.event(&Recorded {
                seq,
                time: at(*seconds),
                severity: event.severity(),
                lasted_ms: None,
                text: event.to_string(),
                event: event.clone(),
            });
        }
        reporter.finish(self.running, self.alive.map(at))
    }
}

fn service<'a>(report: &'a Report, name: &str) -> &'a ServiceReport {
    report.services.iter().find(|service| service.name == name).expect("the service")
}

/// healthy, degraded, failing open, down, unknown.
fn seconds(service: &ServiceReport) -> [f64; 5] {
    let Seconds { healthy, degraded, failing_open, down, unknown } = service.seconds;
    [healthy, degraded, failing_open, down, unknown]
}

#[test]
fn every_second_is_told_once_under_its_status() {
    let report = Story::default().report(&[
        (0, ready()),
        (100, health("web1", "unhealthy")),
        (100, status("web", Some("healthy"), "degraded")),
        (150, health("web2", "unhealthy")),
        (150, status("web", Some("degraded"), "failing-open")),
        (170, status("web", Some("failing-open"), "down")),
        (180, health("web2", "healthy")),
        (180, status("web", Some("down"), "degraded")),
        (400, health("web1", "healthy")),
        (400, status("web", Some("degraded"), "healthy")),
    ]);
    let web = service(&report, "web");
    assert_eq!(seconds(web), [700.0, 270.0, 20.0, 10.0, 0.0]);
    assert_eq!(web.availability, Some(0.97));
    assert_eq!((web.outages.count, web.outages.longest_seconds), (1, 30.0), "one, whatever its kinds");
    assert_eq!(web.outages.last[0].status, Status::Down, "the worst");
    let failovers: Vec<_> =
        web.failovers.last.iter().map(|one| (one.backend.as_str(), one.seconds)).collect();
    assert_eq!(failovers, [("web2", 30.0), ("web1", 300.0)]);
    assert_eq!(web.failovers.last[0].reason.as_deref(), Some("connection refused"));
    assert_eq!((web.failovers.seconds, web.failovers.longest_seconds), (330.0, 300.0));
    assert_eq!(
        web.periods.last.iter().map(|period| period.status).collect::<Vec<_>>(),
        [
            Status::Healthy,
            Status::Degraded,
            Status::FailingOpen,
            Status::Down,
            Status::Degraded,
            Status::Healthy
        ]
    );
    assert_eq!((report.record.watched_seconds, report.record.unknown_seconds), (1_000.0, 0.0));
    assert!(!report.record.trimmed && report.record.gaps.count == 0);
}

#[test]
fn time_without_an_agent_is_unknown_and_part_of_no_share() {
    let killed = Event::Lapsed { since: at(505) };
    let report = Story::default().report(&[
        (0, ready()),
        (100, ending()),
        (150, Event::Adopted { services: 1 }),
        (150, status("web", None, "down")),
        (160, ready()),
        (200, status("web", Some("down"), "healthy")),
        (600, killed),
        (610, ready()),
    ]);
    let web = service(&report, "web");
    // 100 to 160, 505 to 610.
    assert_eq!(seconds(web), [795.0, 0.0, 0.0, 40.0, 165.0]);
    assert_eq!(web.availability, Some(795.0 / 835.0));
    assert_eq!((report.record.watched_seconds, report.record.unknown_seconds), (835.0, 165.0));
    assert_eq!(
        report.record.gaps.last,
        [
            Gap { from: at(100), until: Some(at(160)), cause: GapCause::Ended },
            Gap { from: at(505), until: Some(at(610)), cause: GapCause::Died },
        ]
    );
}

#[test]
fn without_an_agent_the_record_ends_with_its_last_sign_of_life() {
    let events = [(0, ready()), (100, status("web", Some("healthy"), "down"))];
    let report = Story { running: false, alive: Some(400), ..Story::default() }.report(&events);
    assert_eq!(seconds(service(&report, "web")), [100.0, 0.0, 0.0, 300.0, 600.0]);
    assert_eq!(report.record.gaps.last, [Gap { from: at(400), until: None, cause: GapCause::Died }]);
    // Without one, the last event is it. An agent that was told to end has said when.
    let report = Story { running: false, ..Story::default() }.report(&events);
    assert_eq!(report.record.unknown_seconds, 900.0);
    let ended = [(0, ready()), (300, ending())];
    let report = Story { running: false, alive: Some(299), ..Story::default() }.report(&ended);
    assert_eq!(seconds(service(&report, "web")), [300.0, 0.0, 0.0, 0.0, 700.0]);
    assert_eq!(report.record.gaps.last[0].cause, GapCause::Ended);
}

#[test]
fn a_trimmed_record_says_where_it_begins_and_guesses_nothing() {
    let both = vec![revision(7, 50, &[("api", &[]), ("web", &["web1"])])];
    let report = Story { first_seq: 900, revisions: both, ..Story::default() }.report(&[
        (200, Event::Drained { service: "api".into(), backend: "a".into() }),
        (300, status("web", Some("down"), "healthy")),
    ]);
    assert_eq!((report.record.begins, report.record.trimmed), (Some(at(200)), true));
    assert_eq!(report.record.changes_begin, Some(at(50)));
    assert_eq!(report.record.watched_seconds, 800.0);
    let web = service(&report, "web");
    // What it was before is told by the transition; before the record, by nobody.
    assert_eq!((web.seconds.down, web.seconds.healthy), (100.0, 700.0));
    assert_eq!((web.outages.count, web.outages.seconds), (1, 100.0));
    assert_eq!(service(&report, "api").availability, None, "nothing was told of it");
    let nothing = Story { revisions: Vec::new(), ..Story::default() }.report(&[]);
    assert_eq!(
        (nothing.record.begins, nothing.record.watched_seconds, nothing.services.len()),
        (None, 0.0, 0)
    );
}

#[test]
fn only_the_time_asked_for_counts_but_what_was_before_is_known() {
    let events = [
        (0, ready()),
        (100, health("web1", "unhealthy")),
        (100, status("web", Some("healthy"), "down")),
        (600, status("web", Some("down"), "healthy")),
        (600, health("web1", "healthy")),
        (700, health("web2", "unhealthy")),
        (700, status("web", Some("healthy"), "degraded")),
        (900, Event::Lapsed { since: at(800) }),
    ];
    let report = Story { since: 500, until: 750, ..Story::default() }.report(&events);
    let web = service(&report, "web");
    assert_eq!(seconds(web), [100.0, 50.0, 0.0, 100.0, 0.0]);
    assert_eq!(web.outages.last[0].seconds, 500.0, "an outage has all its length");
    assert_eq!(web.failovers.last[0].seconds, 500.0);
    assert_eq!((web.failovers.last[1].until, web.failovers.last[1].seconds), (None, 50.0), "it lasts");
    let later = Story { since: 500, until: 850, ..Story::default() }.report(&events);
    assert_eq!(later.record.unknown_seconds, 50.0, "what is told later of that time");
    let before = Story { since: 0, until: 50, ..Story::default() }.report(&events);
    assert_eq!(service(&before, "web").availability, Some(1.0));
}

#[test]
fn services_count_from_when_they_are_known_until_they_are_gone() {
    let revisions = vec![
        revision(1, 0, &WEB),
        revision(2, 200, &[("web", &["web2"]), ("api", &["a"])]),
        revision(3, 700, &[("web", &["web2"])]),
    ];
    let report = Story { revisions, since: 100, ..Story::default() }.report(&[
        (0, ready()),
        (150, health("web1", "unhealthy")),
        (200, status("api", None, "failing-open")),
        (210, status("api", Some("failing-open"), "healthy")),
        (650, status("api", Some("healthy"), "down")),
    ]);
    let (api, web) = (service(&report, "api"), service(&report, "web"));
    assert_eq!((api.from, api.until), (at(200), Some(at(700))));
    assert_eq!(seconds(api), [440.0, 0.0, 10.0, 50.0, 0.0]);
    assert_eq!(api.outages.last.iter().map(|outage| outage.seconds).collect::<Vec<_>>(), [10.0, 50.0]);
    assert_eq!(web.failovers.last[0].until, Some(at(200)), "the backend was removed");
    assert_eq!((web.from, web.until, web.availability), (at(100), None, Some(1.0)));
    let changes: Vec<u64> = report.changes.last.iter().map(|change| change.revision).collect();
    assert_eq!(changes, [2, 3], "since then");
}

#[test]
fn a_service_without_a_backend_is_not_available() {
    let revisions = vec![
        revision(1, 0, &[("old", &[])]),
        revision(2, 100, &[("old", &[]), ("new", &[])]),
        revision(3, 150, &[("old", &["a"]), ("new", &["a"])]),
    ];
    let report = Story { revisions, ..Story::default() }.report(&[(0, ready()), (900, ending())]);
    // One that is there when the agent starts is down; one that is added begins with its first backend.
    assert_eq!(seconds(service(&report, "old")), [750.0, 0.0, 0.0, 150.0, 100.0]);
    assert_eq!(seconds(service(&report, "new")), [750.0, 0.0, 0.0, 0.0, 150.0]);
    assert_eq!(service(&report, "new").outages.count, 0);
    let lost = vec![revision(1, 0, &WEB), revision(2, 100, &[("web", &[])]), revision(3, 300, &WEB)];
    let report = Story { revisions: lost, ..Story::default() }.report(&[
        (0, ready()),
        (100, status("web", Some("healthy"), "down")),
        (310, status("web", Some("down"), "healthy")),
    ]);
    assert_eq!(seconds(service(&report, "web")), [790.0, 0.0, 0.0, 210.0, 0.0], "as events tell");
}

#[test]
fn a_backend_that_is_out_from_the_very_beginning_is_told() {
    let report = Story { revisions: vec![revision(1, 2, &WEB)], ..Story::default() }.report(&[
        (0, health("web1", "unhealthy")),
        (0, status("web", None, "degraded")),
        (3, ready()),
        (10, health("web1", "healthy")),
        (10, status("web", Some("degraded"), "healthy")),
    ]);
    let web = service(&report, "web");
    assert_eq!((web.failovers.count, web.failovers.seconds), (1, 10.0));
    assert_eq!(seconds(web), [990.0, 7.0, 0.0, 0.0, 3.0]);
}

#[test]
fn lists_are_bounded_and_say_how_many_there_were() {
    let mut events = vec![(0, ready())];
    for second in 0..1_500 {
        events.push((second * 2, health("web1", "unhealthy")));
        events.push((second * 2 + 1, health("web1", "healthy")));
    }
    let report = Story { until: 10_000, ..Story::default() }.report(&events);
    let failovers = &service(&report, "web").failovers;
    assert_eq!((failovers.count, failovers.last.len(), failovers.seconds), (1_500, MAX_LISTED, 1_500.0));
    assert_eq!(failovers.last[999].from, at(2_998), "the last ones");
}
