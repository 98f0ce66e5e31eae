use lb_common::abi::Traffic;

use super::*;
use crate::core::config::{self, AllDown, BackendState};
use crate::core::health::{Candidate, serving};
use crate::core::signals::Signal;
use crate::core::wanted::BackendKey;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_123 + seconds * 1_000).unwrap()
}

fn health(backend: &str, from: &str, to: &str) -> Event {
    Event::health("web", backend, from, to, (to == "unhealthy").then(|| "connection refused".to_owned()))
}

fn seqs(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn how_long_the_former_state_lasted_is_told_also_over_a_restart() {
    let mut journal = Journal::default();
    assert_eq!(journal.record(health("web1", "unknown", "healthy"), at(0)).lasted_ms, None);
    journal.record(health("web2", "unknown", "healthy"), at(5));
    let down = journal.record(health("web1", "healthy", "unhealthy"), at(100));
    assert_eq!((down.seq, down.lasted_ms, down.severity), (3, Some(100_000), Severity::Warn));
    let (kept, complete) = journal.select(&Filter::default());
    assert!(complete);
    let mut journal = Journal::resume(kept);
    let up = journal.record(health("web1", "unhealthy", "healthy"), at(107));
    assert_eq!((up.seq, up.lasted_ms), (4, Some(7_000)));
    assert_eq!(journal.record(health("web2", "healthy", "unhealthy"), at(-50)).lasted_ms, Some(0));
}

#[test]
fn neither_a_backend_that_is_new_again_nor_the_end_of_its_flows_ends_what_was_before() {
    let mut journal = Journal::default();
    journal.record(health("web1", "unknown", "healthy"), at(0));
    assert_eq!(journal.record(health("web1", "unknown", "healthy"), at(50)).lasted_ms, None, "added again");
    assert_eq!(journal.record(health("web1", "healthy", "unhealthy"), at(60)).lasted_ms, Some(10_000));
    let state = |from: &str, to: &str| Event::BackendState {
        service: "web".into(),
        backend: "web1".into(),
        from: from.into(),
        to: to.into(),
    };
    journal.record(state("enabled", "drain"), at(100));
    let drained = Event::Drained { service: "web".into(), backend: "web1".into() };
    assert_eq!(journal.record(drained, at(120)).lasted_ms, Some(20_000));
    assert_eq!(journal.record(state("drain", "enabled"), at(131)).lasted_ms, Some(31_000));
}

#[test]
fn times_sort_as_text() {
    let mut journal = Journal::default();
    for (millisecond, expected) in
        [(1_800_000_000_000, "2027-01-15T08:00:00.000Z"), (1_800_000_000_290, "2027-01-15T08:00:00.290Z")]
    {
        let recorded = journal.record(
            Event::Attached { interface: "eth0".into() },
            Timestamp::from_millisecond(millisecond).unwrap(),
        );
        let json = serde_json::to_value(&recorded).unwrap();
        assert_eq!(json["time"], expected);
        assert_eq!(serde_json::from_value::<Recorded>(json).unwrap(), recorded);
    }
}

#[test]
fn memory_is_bounded_and_says_when_older_events_may_be_missing() {
    let mut journal = Journal::default();
    for second in 0..1_500 {
        journal.record(Event::NotReconciled { cause: second.to_string() }, at(second));
    }
    let all = Filter { limit: 5_000, ..Filter::default() };
    let (kept, complete) = journal.select(&all);
    assert_eq!((kept.len(), kept[0].seq, complete), (1_000, 501, false));
    let complete = |filter: Filter| journal.select(&filter).1;
    assert!(complete(Filter { limit: 10, ..Filter::default() }), "enough was found");
    assert!(complete(Filter { after: Some(500), limit: 5_000, ..Filter::default() }));
    assert!(complete(Filter { since: Some(at(501)), limit: 5_000, ..Filter::default() }));
    assert!(!complete(Filter { since: Some(at(500)), limit: 5_000, ..Filter::default() }));
}

#[test]
fn every_field_of_a_filter_narrows() {
    let mut journal = Journal::default();
    journal.record(health("web1", "unknown", "healthy"), at(0));
    journal.record(health("web2", "healthy", "unhealthy"), at(1));
    journal.record(Event::Attached { interface: "eth0".into() }, at(2));
    let down = serving(&[], AllDown::Drop, 0);
    journal.record(Event::service_status("web", Some(ServiceStatus::Healthy), &down), at(3));
    let select = |filter: Filter| seqs(&journal.select(&filter).0);
    let text = |text: &str| Some(text.to_owned());
    let filter = Filter::default;
    assert_eq!(select(filter()), [1, 2, 3, 4]);
    assert_eq!(select(Filter { limit: 2, ..filter() }), [3, 4], "the last ones, in their order");
    assert_eq!(select(Filter { after: Some(3), ..filter() }), [4]);
    assert_eq!(select(Filter { since: Some(at(1)), ..filter() }), [2, 3, 4]);
    assert_eq!(select(Filter { service: text("web"), ..filter() }), [1, 2, 4]);
    assert_eq!(select(Filter { backend: text("web2"), ..filter() }), [2]);
    assert_eq!(select(Filter { kind: text("attached,health"), ..filter() }), [1, 2, 3]);
    assert_eq!(select(Filter { severity: Some(Severity::Warn), ..filter() }), [2, 4]);
    assert_eq!(select(Filter { severity: Some(Severity::Error), ..filter() }), [4]);
}

#[test]
fn a_service_that_min_healthy_takes_down_says_so() {
    let wanted = |health| Candidate { state: BackendState::Enabled, weight: 100, checked: true, health };
    let candidates = [wanted(Health::Healthy), wanted(Health::Unhealthy)];
    let event = |min_healthy, was| {
        Event::service_status("web", was, &serving(&candidates, AllDown::Drop, min_healthy)).to_string()
    };
    let short =
        "service web: degraded → down: min_healthy = 2 is not reached, 1 of 2 enabled backends healthy";
    assert_eq!(event(2, Some(ServiceStatus::Degraded)), short);
    assert_eq!(event(0, None), "service web: degraded");
}

#[test]
fn what_is_written_is_read_back_and_names_its_kind() {
    let applied = Event::applied("apply", 2, &[], [0, 0]);
    let refused = Event::refused("reload", &["f:1: wrong".to_owned()]);
    let counted = Traffic { opened: 9, repeated: 12, ..Traffic::default() };
    let key = BackendKey::new("web", "web1");
    let signal = |signal, begins| Event::signal(&Showing { key: key.clone(), signal, begins, counted }, true);
    let told = signal(Signal::Unanswered, true);
    assert!(
        told.to_string().contains("12 SYNs came again, 9 connections were opened and 0 went on"),
        "{told}"
    );
    assert!(told.to_string().ends_with("counts as a failed check"), "{told}");
    let flood = signal(Signal::ResetFlood, true);
    assert!(!flood.to_string().contains("counts"), "{flood}");
    assert_eq!(
        (told.severity(), signal(Signal::Unanswered, false).severity()),
        (Severity::Warn, Severity::Info)
    );
    for event in [health("web1", "healthy", "unhealthy"), applied, refused, told, flood] {
        let recorded = Journal::default().record(event.clone(), at(0));
        let line = serde_json::to_string(&recorded).unwrap();
        assert_eq!(serde_json::from_str::<Recorded>(&line).unwrap(), recorded, "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["event"], event.kind());
        assert!(Event::KINDS.contains(&event.kind()));
        assert_eq!(value["time"], "2027-01-15T08:00:00.123Z");
    }
    let newer =
        r#"{"seq":9,"time":"2027-01-15T08:00:00Z","severity":"info","text":"x","event":"of_tomorrow","a":1}"#;
    assert_eq!(serde_json::from_str::<Recorded>(newer).unwrap().event, Event::Unknown);
}

#[test]
fn an_event_carries_no_more_than_people_read() {
    let errors: Vec<String> = (0..25).map(|n| format!("{n}: {}", "é".repeat(400))).collect();
    let Event::Refused { errors, errors_total, .. } = Event::refused("apply", &errors) else { panic!() };
    assert_eq!((errors.len(), errors_total), (10, 25));
    assert!(errors.iter().all(|error| error.chars().count() == 301));
    let text = Event::Refused { by: "apply".into(), errors, errors_total }.to_string();
    assert!(text.ends_with("; … and 15 more"), "{text}");
}

#[test]
fn operators_changes_of_state_are_found() {
    let parse = |first: &str, second: &str| {
        let backend = |name: &str, address: &str, state: &str| {
            format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nstate = \"{state}\"\n")
        };
        let text =
            "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvips = [\"192.0.2.1:80\"]\n"
                .to_owned()
                + &backend("a", "10.0.0.1", first)
                + &backend("b", "10.0.0.2", second);
        config::parse(&text).unwrap()
    };
    let events = state_changes(&parse("enabled", "enabled"), &parse("enabled", "drain"));
    let expected = Event::BackendState {
        service: "web".into(),
        backend: "b".into(),
        from: "enabled".into(),
        to: "drain".into(),
    };
    assert_eq!(events, [expected]);
}

#[test]
fn times_ago_and_times_are_read() {
    let now = at(0);
    let ago =
        |text| parse_since(text, now).map(|time| (now.as_millisecond() - time.as_millisecond()) / 1_000);
    assert_eq!(ago("90s"), Ok(90));
    assert_eq!(ago("15m"), Ok(900));
    assert_eq!(ago("2h"), Ok(7_200));
    assert_eq!(ago("30d"), Ok(2_592_000));
    assert_eq!(parse_since("99999999d", now), Ok(Timestamp::UNIX_EPOCH));
    assert_eq!(parse_since("2027-01-15T08:00:00.123Z", now), Ok(now));
    for wrong in ["", "5", "m", "-5m", "5 m", "yesterday"] {
        assert!(parse_since(wrong, now).is_err(), "{wrong:?}");
    }
}

#[test]
fn more_events_than_are_given_at_once_are_not_promised() {
    let limited = |limit| Filter { limit, ..Filter::default() }.check();
    assert_eq!(limited(MAX_LIMIT), Ok(()));
    assert_eq!(limited(MAX_LIMIT + 1), Err("limit: at most 10000, not 10001".to_owned()));
}

#[test]
fn lasting_is_told_in_two_units() {
    let told = [0, 1_250, 59_999, 61_000, 7_260_000, 90_000_000].map(duration);
    assert_eq!(told, ["0.0 s", "1.2 s", "59.9 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]);
}

#[test]
fn names_from_a_request_cannot_write_on_a_terminal() {
    let mut journal = Journal::default();
    let refused = Event::refused("backend set we\nb\u{1b}[31m ü weight=5", &["no".to_owned()]);
    let line = journal.record(refused, at(0)).line();
    assert!(line.starts_with("backend set we\\nb\\u{1b}[31m ü weight=5: refused"), "{line}");
    assert!(!line.contains(char::is_control), "{line}");
}

#[test]
fn after_a_number_come_the_first_ones() {
    let mut journal = Journal::default();
    for second in 0..1_500 {
        journal.record(Event::NotReconciled { cause: second.to_string() }, at(second));
    }
    let select = |after, limit| {
        let (events, complete) = journal.select(&Filter { after, limit, ..Filter::default() });
        (seqs(&events), complete)
    };
    assert_eq!(select(None, 2), (vec![1_499, 1_500], true));
    assert_eq!(select(Some(700), 2), (vec![701, 702], true));
    assert!(!select(Some(0), 2).1, "the first ones are not here any more");
}

#[test]
fn one_is_not_told_as_many() {
    assert_eq!(Event::Adopted { services: 1 }.to_string(), "adopted 1 service with all flows");
    assert!(Event::applied("apply", 2, &[], [0, 0]).to_string().contains("revision 2, 0 changes"));
    let in_doubt = Event::applied("apply", 2, &[], [1, 4]).to_string();
    assert!(
        in_doubt.ends_with("; 1 live flows lost their backend, and up to 4 more, for a VIP was given up")
    );
}
