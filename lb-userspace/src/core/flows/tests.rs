use lb_common::flow::client_signature;

use super::*;

const NOW: Tick = Tick(100_000);

/// Flows of a backend in a state, idle for so many ticks.
fn table(flows: &[(u16, State, u32, u32)]) -> Vec<FlowBucket> {
    let count: u32 = flows.iter().map(|(.., count)| count).sum();
    let buckets: Vec<FlowBucket> = (0..count.div_ceil(8).max(1) + 1).map(|_| FlowBucket::default()).collect();
    let entries = flows.iter().flat_map(|&(backend, state, idle, count)| {
        (0..count).map(move |n| Entry::new(n << 1, backend, state, Tick(NOW.0 - idle)))
    });
    for (at, entry) in entries.enumerate() {
        buckets[at / 8].store(at % 8, entry);
    }
    buckets
}

fn owners() -> Vec<Option<(String, String)>> {
    let owner = |service: &str, backend: &str| Some((service.to_owned(), backend.to_owned()));
    vec![None, owner("web", "web1"), owner("web", "web2"), owner("dns", "web1"), None]
}

fn ask(question: Question) -> FlowReport {
    use State::{Closing, Established, Opening};
    let buckets = table(&[
        (1, Established, 0, 5),
        (1, Established, 700, 2),
        (1, Opening, 3, 1),
        (2, Established, 30, 20),
        (2, Closing, 59, 4),
        (3, Established, 4_000, 3),
        // Idle for too long, and of a backend that is gone.
        (1, Opening, 61, 6),
        (4, Established, 0, 7),
    ]);
    buckets[buckets.len() - 1].store(0, Entry::new(client_signature(0), 1, Established, NOW));
    report(&buckets, &owners(), NOW, &Question { lines: 10, ..question })
}

fn lines(report: &FlowReport) -> Vec<(String, u64)> {
    let name = |line: &FlowLine| {
        let parts = [&line.service, &line.backend, &line.of];
        parts.into_iter().flatten().cloned().collect::<Vec<_>>().join("/")
    };
    report.lines.iter().map(|line| (name(line), line.flows)).collect()
}

fn named(lines: &[(&str, u64)]) -> Vec<(String, u64)> {
    lines.iter().map(|(name, flows)| ((*name).to_owned(), *flows)).collect()
}

#[test]
fn every_entry_is_counted_once() {
    let all = ask(Question::default());
    assert_eq!((all.entries, all.flows, all.expired, all.clients), (49, 35, 13, 1));
    assert_eq!(all.size % 8, 0);
    assert_eq!(lines(&all), named(&[("web/web2", 24), ("web/web1", 8), ("dns/web1", 3)]));
    let web1 = &all.lines[1];
    assert_eq!((web1.established, web1.opening, web1.closing), (7, 1, 0));
    let idle = [("10s", 6), ("1m", 0), ("10m", 0), ("1h", 2), ("more", 0)];
    assert_eq!(web1.idle, idle.map(|(name, flows)| (name.to_owned(), flows)).into());
}

#[test]
fn lines_are_by_what_was_asked_for() {
    let by = |by| lines(&ask(Question { by, ..Question::default() }));
    assert_eq!(by(By::Service), named(&[("web", 32), ("dns", 3)]));
    assert_eq!(by(By::State), named(&[("established", 30), ("closing", 4), ("opening", 1)]));
    assert_eq!(by(By::Idle), named(&[("1m", 24), ("10s", 6), ("more", 3), ("1h", 2)]));
}

#[test]
fn every_wish_narrows_and_sorts() {
    let text = |text: &str| Some(text.to_owned());
    let wished = |question| lines(&ask(question));
    assert_eq!(wished(Question { service: text("dns"), ..Question::default() }), named(&[("dns/web1", 3)]));
    let first = Question { backend: text("web1"), ..Question::default() };
    assert_eq!(wished(first), named(&[("web/web1", 8), ("dns/web1", 3)]));
    let closing = Question { state: Some(FlowState::Closing), by: By::Service, ..Question::default() };
    assert_eq!(wished(closing), named(&[("web", 4), ("dns", 0)]), "what has none is told, too");
    let idle = Question { idle_seconds: 600, by: By::State, ..Question::default() };
    assert_eq!(wished(idle), named(&[("established", 5)]));
    let by_name = Question { sort: Sort::Name, ..Question::default() };
    assert_eq!(wished(by_name), named(&[("dns/web1", 3), ("web/web1", 8), ("web/web2", 24)]));
    let opening = Question { sort: Sort::Opening, ..Question::default() };
    assert_eq!(wished(opening)[0], ("web/web1".to_owned(), 8));
}

#[test]
fn lines_left_out_are_told() {
    let buckets = table(&[(1, State::Established, 0, 1), (2, State::Established, 0, 2)]);
    let top = report(&buckets, &owners(), NOW, &Question { lines: 1, ..Question::default() });
    assert_eq!((lines(&top), top.lines_left_out, top.flows), (named(&[("web/web2", 2)]), 2, 3));
}
