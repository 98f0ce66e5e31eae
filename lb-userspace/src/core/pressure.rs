//! Counters at regular looks → events about tables that run full and packets that are dropped for a fault.

use std::collections::BTreeMap;

use lb_common::abi::Verdicts;
use lb_common::flow::Eviction;
use lb_common::verdict::Verdict;

use super::events::Event;

/// Share of a table's entries, in percent, from which on it is under pressure.
const FULL_PERCENT: u64 = 90;
/// Share below which it is so no more.
const RELAXED_PERCENT: u64 = 75;

/// Drops that an operator should hear of: they mean that something is wrong here and not with the packet.
const FAULTS: [Verdict; 6] = [
    Verdict::DropNoBackend,
    Verdict::DropNoNextHop,
    Verdict::DropTooBig,
    Verdict::DropNatSource,
    Verdict::DropHeadroom,
    Verdict::DropInconsistent,
];

/// What is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Counters by verdict.
    pub verdicts: Verdicts,
    /// Entries of the flow table: taken, and in all.
    pub flows: (u64, u64),
    /// Entries of the NAT table: taken, and in all.
    pub nat: (u64, u64),
}

/// What was seen at the last look.
#[derive(Clone, Debug, Default)]
pub struct PressureWatch {
    before: Option<Verdicts>,
    /// By table or verdict: whether it was under pressure.
    pressed: BTreeMap<&'static str, bool>,
}

impl PressureWatch {
    /// What changed since the last look. The first one only takes the counters down: what they hold may be years old.
    pub fn look(&mut self, look: &Look) -> Vec<Event> {
        let before = self.before.replace(look.verdicts);
        let grown = |now: &[u64], before: Option<&[u64]>, index: usize| {
            let now = now.get(index).copied().unwrap_or(0);
            let before = before.and_then(|before| before.get(index).copied());
            now.saturating_sub(before.unwrap_or(now))
        };
        let dropped = |verdict: Verdict| {
            let before = before.as_ref().map(|before| before.packets.as_slice());
            grown(&look.verdicts.packets, before, verdict.index())
        };
        let evicted = grown(
            &look.verdicts.evictions,
            before.as_ref().map(|before| before.evictions.as_slice()),
            Eviction::Established as usize,
        );
        let mut events = Vec::new();
        for (table, (entries, size), lost) in [
            ("flow_table", look.flows, evicted),
            ("nat_table", look.nat, dropped(Verdict::DropNatTable)),
            ("nat_ports", (0, 0), dropped(Verdict::DropNatPorts)),
        ] {
            let at = |percent| size > 0 && entries.saturating_mul(100) >= size.saturating_mul(percent);
            let is = lost > 0 || at(if self.was(table) { RELAXED_PERCENT } else { FULL_PERCENT });
            if let Some(begins) = self.turned(table, is) {
                events.push(Event::TablePressure { table: table.to_owned(), begins, entries, size, lost });
            }
        }
        for verdict in FAULTS {
            let packets = dropped(verdict);
            if let Some(begins) = self.turned(verdict.name(), packets > 0) {
                let (verdict, meaning) = (verdict.name().to_owned(), verdict.explanation().to_owned());
                events.push(Event::Drops { verdict, begins, packets, meaning });
            }
        }
        events
    }

    fn was(&self, what: &str) -> bool {
        self.pressed.get(what).copied().unwrap_or(false)
    }

    fn turned(&mut self, what: &'static str, is: bool) -> Option<bool> {
        let was = self.pressed.insert(what, is).unwrap_or(false);
        (was != is).then_some(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(events: &[Event]) -> Vec<(String, bool)> {
        let told = |event: &Event| match event {
            Event::TablePressure { table, begins, .. } => (table.clone(), *begins),
            Event::Drops { verdict, begins, .. } => (verdict.clone(), *begins),
            other => panic!("{other:?}"),
        };
        events.iter().map(told).collect()
    }

    #[test]
    fn a_table_is_told_once_when_it_fills_and_once_when_it_has_room_again() {
        let mut watch = PressureWatch::default();
        let mut at = |entries| kinds(&watch.look(&Look { flows: (entries, 1_000), ..Look::default() }));
        assert_eq!(at(899), []);
        assert_eq!(at(900), [("flow_table".to_owned(), true)]);
        assert_eq!(at(1_000), []);
        assert_eq!(at(750), [], "not yet: else it would be told at every look");
        assert_eq!(at(749), [("flow_table".to_owned(), false)]);
    }

    #[test]
    fn counters_of_the_past_are_no_news_and_what_grows_is() {
        let mut watch = PressureWatch::default();
        let mut look = Look::default();
        look.verdicts.packets[Verdict::DropNatPorts.index()] = 7;
        look.verdicts.packets[Verdict::DropNoBackend.index()] = 7;
        look.verdicts.evictions[Eviction::Established as usize] = 7;
        assert_eq!(watch.look(&look), []);
        look.verdicts.packets[Verdict::DropNatPorts.index()] = 9;
        look.verdicts.packets[Verdict::DropNoBackend.index()] = 17;
        look.verdicts.evictions[Eviction::Established as usize] = 8;
        let events = watch.look(&look);
        let names = ["flow_table", "nat_ports", "drop.no_backend"];
        assert_eq!(kinds(&events), names.map(|name| (name.to_owned(), true)));
        let lost = |event: &Event| match event {
            Event::TablePressure { lost, .. } => *lost,
            Event::Drops { packets, .. } => *packets,
            _ => 0,
        };
        assert_eq!(events.iter().map(lost).collect::<Vec<_>>(), [1, 2, 10]);
        assert_eq!(kinds(&watch.look(&look)), names.map(|name| (name.to_owned(), false)));
        assert_eq!(watch.look(&look), []);
    }
}
