//! The measurements of a run → which of the targets it meets.

use super::figures::Group;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// How a target is measured.
#[derive(Clone, Copy, Debug)]
enum Measure {
    /// The value of a series: of packets, above an empty program.
    Value(&'static str),
    /// A series' ratio to another.
    Ratio(&'static str, &'static str),
    /// How much a series' value is above another's, divided by how many packets share it.
    Shared(&'static str, &'static str, u32),
}

struct Target {
    part: &'static str,
    group: &'static str,
    measure: Measure,
    bound: Bound,
}

/// What became of a target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) what: String,
    pub(crate) target: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
}

const fn net(group: &'static str, nanoseconds: f64) -> Target {
    Target { part: "packet", group, measure: Value("sluice"), bound: AtMost(nanoseconds) }
}

const fn live(group: &'static str, who: &'static str, to: &'static str, ratio: f64) -> Target {
    Target { part: "live", group, measure: Ratio(who, to), bound: AtLeast(ratio) }
}

const fn customers(group: &'static str, who: &'static str, to: &'static str, bound: Bound) -> Target {
    Target { part: "customers", group, measure: Ratio(who, to), bound }
}

const fn value(part: &'static str, group: &'static str, who: &'static str, bound: Bound) -> Target {
    Target { part, group, measure: Value(who), bound }
}

use Bound::{AtLeast, AtMost};
use Measure::{Ratio, Shared, Value};

const NFTABLES: &str = "nftables DNAT";
const KEEP_ALIVE: &str = "small, keep-alive: requests";
const CLOSE: &str = "small, close: requests";
const P99: &str = "small, keep-alive: p99";
const P99_PACED: &str = "small, paced: p99";

/// `agent.time_openings`, unless it says otherwise.
const TIMED_ONE_IN: u32 = 32;

const TARGETS: [Target; 44] = [
    net("l2-dsr IPv4 hit, 1 flow", 15.0),
    net("l2-dsr IPv4 hit, 1 M flows", 60.0),
    net("ipip IPv4 hit, 1 flow", 35.0),
    net("ipip IPv4 hit, 1 M flows", 90.0),
    net("gue IPv4 hit, 1 flow", 50.0),
    net("l2-dsr IPv4 new flow, table for 64 K", 25.0),
    net("l2-dsr IPv4 SYN flood, table for 64 K", 25.0),
    Target {
        part: "packet",
        group: "l2-dsr IPv4 new flow, table for 64 K",
        measure: Shared("all openings timed", "sluice", TIMED_ONE_IN),
        bound: AtMost(5.0),
    },
    net("ipip IPv4 new flow, table for 64 K", 50.0),
    net("ipip IPv4 SYN flood, table for 64 K", 50.0),
    net("not a VIP IPv4", 10.0),
    net("nat IPv4 hit, 512 K flows", 250.0),
    live("closed loop, 1 core, 64 K flows", "l2-dsr", "bare XDP", 0.95),
    live("closed loop, 1 core, 1 M flows", "l2-dsr", "bare XDP", 0.85),
    live("closed loop, 1 core, 64 K flows", "l2-dsr", NFTABLES, 7.5),
    live("overload, 64 K flows", "l2-dsr", "bare XDP", 0.95),
    live("overload, 1 M flows", "l2-dsr", "bare XDP", 0.85),
    live("overload, 64 K flows", "l2-dsr", NFTABLES, 9.0),
    live("closed loop, 1 core, 64 K flows", "ipip", "bare encapsulation", 0.97),
    live("closed loop, 1 core, 64 K flows", "ipip", NFTABLES, 7.0),
    live("overload, 64 K flows", "ipip", "bare encapsulation", 0.97),
    live("overload, 64 K flows", "ipip", NFTABLES, 7.0),
    customers(KEEP_ALIVE, "l2-dsr", "bare XDP", AtLeast(0.97)),
    customers(KEEP_ALIVE, "ipip", "bare encapsulation", AtLeast(0.97)),
    customers(CLOSE, "l2-dsr", "bare XDP", AtLeast(0.97)),
    customers(CLOSE, "ipip", "bare encapsulation", AtLeast(0.97)),
    customers(KEEP_ALIVE, "l2-dsr", "HAProxy", AtLeast(1.6)),
    customers(KEEP_ALIVE, "ipip", "HAProxy", AtLeast(1.6)),
    customers(CLOSE, "l2-dsr", "HAProxy", AtLeast(1.7)),
    customers(CLOSE, "ipip", "HAProxy", AtLeast(1.7)),
    customers(P99, "l2-dsr", "bare XDP", AtMost(1.1)),
    customers(P99, "ipip", "bare encapsulation", AtMost(1.1)),
    customers(P99_PACED, "l2-dsr", "bare XDP", AtMost(1.1)),
    customers(P99_PACED, "ipip", "bare encapsulation", AtMost(1.1)),
    customers(CLOSE, "nat", NFTABLES, AtLeast(1.15)),
    value("attack", "SYN flood: requests kept", "l2-dsr", AtLeast(90.0)),
    value("attack", "SYN flood: requests kept", "nat", AtLeast(90.0)),
    value("attack", "UDP flood: requests kept", "l2-dsr", AtLeast(90.0)),
    value("attack", "UDP flood: requests kept", "nat", AtLeast(90.0)),
    value("attack", "established flows lost", "l2-dsr", AtMost(0.0)),
    value("attack", "established flows lost", "nat", AtMost(0.0)),
    value("control", "ring of 1000 backends", "sluice", AtMost(2.0)),
    value("control", "one backend changed, 500 services, 10000 backends", "sluice", AtMost(20.0)),
    value("control", "1 M flows summarised", "sluice", AtMost(100.0)),
];

/// Those that this run measured.
pub(crate) fn check(groups: &[Group]) -> Vec<Outcome> {
    TARGETS.iter().filter_map(|target| outcome(target, groups)).collect()
}

fn outcome(target: &Target, groups: &[Group]) -> Option<Outcome> {
    let group = groups.iter().find(|group| group.part == target.part && group.name == target.group)?;
    let (what, measured, unit) = match target.measure {
        Value(who) => {
            let figure = group.figures().into_iter().find(|figure| figure.who == who)?;
            let who = if who == "sluice" { String::new() } else { format!(", {who}") };
            (format!("{}{who}", target.group), figure.value.median, format!(" {}", group.unit))
        }
        Shared(who, to, among) => {
            let of = |who: &str| group.figures().into_iter().find(|figure| figure.who == who);
            let share = (of(who)?.value.median - of(to)?.value.median) / f64::from(among);
            (
                format!("{}: {who}", target.group),
                share,
                format!(" {} above {to}, if one in {among} is", group.unit),
            )
        }
        Ratio(who, to) => {
            let what = format!("{}: {who}", target.group);
            (what, group.ratio(who, to)?.median, format!(" × {to}"))
        }
    };
    let (met, sign, limit) = match target.bound {
        AtMost(limit) => (measured <= limit, '≤', limit),
        AtLeast(limit) => (measured >= limit, '≥', limit),
    };
    Some(Outcome {
        what: format!("{}: {what}", target.part),
        target: format!("{sign} {limit}{unit}"),
        measured: format!("{measured:.2}"),
        met,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(part: &str, name: &str, unit: &str, series: &[(&str, f64)]) -> Group {
        let series = series.iter().map(|(who, sample)| ((*who).to_owned(), vec![*sample])).collect();
        Group { part: part.to_owned(), name: name.to_owned(), unit: unit.to_owned(), series }
    }

    #[test]
    fn only_what_was_measured_is_checked() {
        assert_eq!(check(&[]), []);
        let hit = group("packet", "l2-dsr IPv4 hit, 1 flow", "ns", &[("empty", 60.0), ("sluice", 76.0)]);
        let outcomes = check(&[hit]);
        assert_eq!(outcomes.len(), 1);
        assert_eq!((outcomes[0].target.as_str(), outcomes[0].measured.as_str()), ("≤ 15 ns", "16.00"));
        assert!(!outcomes[0].met);
    }

    #[test]
    fn ratios_are_of_one_run() {
        let series = [("bare XDP", 4.0), ("l2-dsr", 3.9), ("nftables DNAT", 0.5)];
        let outcomes = check(&[group("live", "closed loop, 1 core, 64 K flows", "Mpps", &series)]);
        let told: Vec<_> = outcomes.iter().map(|outcome| (outcome.target.as_str(), outcome.met)).collect();
        assert_eq!(told, [("≥ 0.95 × bare XDP", true), ("≥ 7.5 × nftables DNAT", true)]);
    }

    #[test]
    fn what_is_done_to_some_is_shared_by_all() {
        let series = [("empty", 30.0), ("sluice", 100.0), ("all openings timed", 196.0)];
        let outcomes = check(&[group("packet", "l2-dsr IPv4 new flow, table for 64 K", "ns", &series)]);
        let timed = outcomes.iter().find(|outcome| outcome.what.ends_with("timed")).expect("a target for it");
        assert_eq!((timed.measured.as_str(), timed.met), ("3.00", true));
    }

    #[test]
    fn a_bound_includes_itself() {
        let ring = |took| group("control", "ring of 1000 backends", "ms", &[("sluice", took)]);
        assert!(check(&[ring(2.0)])[0].met);
        assert!(!check(&[ring(2.01)])[0].met);
    }
}
