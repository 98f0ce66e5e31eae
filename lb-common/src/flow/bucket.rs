//! A bucket of the flow table: eight entries in a cache line, and which of them is a flow's or makes way.

use super::{Entry, Eviction, Found, Tick, Victim};
use crate::abi::{FLOW_WAYS, FlowBucket};

/// All bits if two words are the same, else none: without a branch, and the compiler is not to make one of it.
#[inline(always)]
fn all_if_same(one: u32, other: u32) -> u64 {
    let mut differs = u64::from(one ^ other);
    #[cfg(target_arch = "bpf")]
    // SAFETY: the instructions work on the value alone: less one, only 0 is negative.
    unsafe {
        core::arch::asm!("{0} += -1", "{0} s>>= 63", inout(reg) differs);
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        differs = u64::from(differs == 0).wrapping_neg();
    }
    differs
}

/// Some of a bucket's places: two bits each, of which the lower one says whether it is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places(u64);

impl Places {
    /// The lower bits.
    const ALL: u64 = 0x5555;
    /// Bits 10 to 12 of the product with a place's bit are others for each place.
    const SPREAD: u64 = 0x5af;
    /// Which place it is, four bits each.
    const NAMES: u64 = {
        let (mut names, mut way) = (0, 0);
        while way < FLOW_WAYS as u64 {
            names |= way << (4 * Self::name(1 << (2 * way)));
            way += 1;
        }
        names
    };

    const fn name(bit: u64) -> u64 {
        bit.wrapping_mul(Self::SPREAD) >> 10 & 7
    }

    /// The first of them, looked for from this place on; any if there are none. Without branches.
    #[inline(always)]
    fn first(self, from: u64) -> usize {
        let from = from & (FLOW_WAYS as u64 - 1);
        let turned = (self.0 | self.0 << (2 * FLOW_WAYS)) >> (2 * from) & Self::ALL;
        let lowest = turned & turned.wrapping_neg();
        ((Self::NAMES >> (4 * Self::name(lowest))).wrapping_add(from)) as usize & (FLOW_WAYS - 1)
    }
}

/// A bucket's eight entries are gone through without branches: at which of them a search ends, no branch predictor could know.
impl FlowBucket {
    /// The entry with this signature, which is one of a flow or client.
    #[inline(always)]
    pub fn entry(&self, signature: u32) -> Option<Entry> {
        let (mut sum, mut way) = (0_u64, 0);
        while way < FLOW_WAYS {
            let same = all_if_same(self.ways[way].load_upper(), signature);
            sum = sum.wrapping_add(self.ways[way].load() & same);
            way += 1;
        }
        if (sum >> 32) as u32 == signature {
            return Some(Entry(sum));
        }
        if sum == 0 {
            return None;
        }
        // Two CPUs have made one each, and the sum is not this signature's; or another flow has just taken the place.
        self.find(signature).map(|found| found.entry)
    }

    /// The same, and where it is.
    #[inline(always)]
    pub fn find(&self, signature: u32) -> Option<Found> {
        // Shifted, not masked: of a mask newer verifiers follow both values, of eight 256.
        let (mut same, mut way) = (0, 0);
        while way < FLOW_WAYS {
            same |= all_if_same(self.ways[way].load_upper(), signature) >> 63 << (2 * way);
            way += 1;
        }
        let way = Places(same).first(0);
        let entry = Entry(self.ways[way].load());
        (entry.signature() == signature).then_some(Found { way, entry })
    }

    /// The place that a new entry takes without a search: an empty one, else that of a flow on probation; `None` if there is neither. From a
    /// place that chance names, a number of the new flow's hash, the next on probation is taken. The oldest would take a search, and of
    /// flows of the same tick always the same one, so that none outlived the next. Whether established ones are expired is not looked at:
    /// the agent sweeps those.
    #[inline(always)]
    pub fn light(&self, chance: u32, now: Tick) -> Option<Victim> {
        let (mut states, mut way) = (0, 0);
        while way < FLOW_WAYS {
            states |= (self.ways[way].load() >> 14 & 3) << (2 * way);
            way += 1;
        }
        // Of the four states only "no entry" has neither bit, and only "established" the upper one alone.
        let empty = !(states | states >> 1) & Places::ALL;
        if empty != 0 {
            return Some(Victim { way: Places(empty).first(0), eviction: None });
        }
        let way = Places(states & Places::ALL).first(chance.into());
        let entry = Entry::from_word(self.ways[way].load())?;
        match Eviction::of_rank(entry.rank(now)) {
            Eviction::Established => None,
            lost => Some(Victim { way, eviction: Some(lost) }),
        }
    }

    /// The place a new entry takes: an empty one, else that of the entry given up most gladly; and what is lost by that.
    #[inline(always)]
    pub fn victim(&self, now: Tick) -> Victim {
        let (mut best, mut best_rank) = (0, 0);
        let mut way = 0;
        while way < FLOW_WAYS {
            let Some(entry) = Entry::from_word(self.ways[way].load()) else {
                return Victim { way, eviction: None };
            };
            let rank = entry.rank(now);
            if rank > best_rank {
                (best, best_rank) = (way, rank);
            }
            way += 1;
        }
        Victim { way: best, eviction: Some(Eviction::of_rank(best_rank)) }
    }

    /// Writes an entry; a place outside the bucket is ignored.
    #[inline(always)]
    pub fn store(&self, way: usize, entry: Entry) {
        if let Some(place) = self.ways.get(way) {
            place.store(entry.word());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::{
        AHEAD_TICKS, ESTABLISHED_IDLE_TICKS, OPENING_IDLE_TICKS, State, TICK_MASK, client_signature,
        flow_signature,
    };

    const NOW: Tick = Tick(100_000);

    fn bucket(entries: &[Entry]) -> FlowBucket {
        let bucket = FlowBucket::default();
        for (way, entry) in entries.iter().enumerate() {
            bucket.store(way, *entry);
        }
        bucket
    }

    fn aged(signature: u32, state: State, age: u32) -> Entry {
        Entry::new(signature, 1, state, Tick(NOW.0 - age))
    }

    fn victim(way: usize, eviction: impl Into<Option<Eviction>>) -> Victim {
        let victim = Victim { way, eviction: eviction.into() };
        assert_eq!(Victim::from_word(victim.to_word()), victim);
        victim
    }

    #[test]
    fn finds_by_signature_which_no_empty_word_has() {
        let (flow, client) = (flow_signature(0), client_signature(0));
        let bucket = bucket(&[aged(flow, State::Opening, 0)]);
        assert_eq!(bucket.find(flow).unwrap().way, 0);
        assert_eq!(bucket.find(client), None);
        assert!(!bucket.find(flow).unwrap().entry.is_client());
        bucket.store(5, aged(client, State::Established, 0));
        assert!(bucket.find(client).unwrap().entry.is_client());
    }

    #[test]
    fn the_first_place_is_looked_for_from_any_on() {
        for places in 0..1_u64 << FLOW_WAYS {
            let bits = (0..FLOW_WAYS).map(|way| (places >> way & 1) << (2 * way)).sum();
            for from in 0..FLOW_WAYS {
                let expected =
                    (0..FLOW_WAYS).map(|step| (from + step) % FLOW_WAYS).find(|way| places >> way & 1 == 1);
                let first = Places(bits).first(from as u64);
                assert!(expected.is_none_or(|expected| expected == first), "{places:b} {from}: {first}");
            }
        }
    }

    #[test]
    fn of_two_entries_of_a_flow_the_first_one_counts() {
        let (flow, other) = (flow_signature(0x8000_0000), flow_signature(0x7000_0000));
        let entries = [other, flow, other, flow].map(|signature| aged(signature, State::Established, 0));
        let bucket = bucket(&entries);
        bucket.store(3, Entry::new(flow, 7, State::Opening, NOW));
        assert_eq!(bucket.entry(flow), Some(entries[1]));
        assert_eq!(bucket.find(flow), Some(Found { way: 1, entry: entries[1] }));
        bucket.store(1, aged(other, State::Closing, 0));
        assert_eq!(bucket.entry(flow).unwrap().backend(), 7);
    }

    #[test]
    fn a_new_entry_takes_an_empty_place_else_by_chance_one_on_probation() {
        use State::{Closing, Established, Opening};
        let mut entries: std::vec::Vec<Entry> =
            (0..8).map(|n| aged(n * 4 + 2, Established, 10 + n)).collect();
        assert_eq!(bucket(&entries).light(3, NOW), None, "only established ones");
        entries[2] = aged(4, Closing, 2);
        entries[6] = aged(5, Opening, OPENING_IDLE_TICKS + 1);
        for (chance, way, eviction) in [
            (0, 2, Eviction::Probation),
            (2, 2, Eviction::Probation),
            (3, 6, Eviction::Expired),
            (7, 2, Eviction::Probation),
        ] {
            assert_eq!(bucket(&entries).light(chance, NOW), Some(victim(way, eviction)), "{chance}");
        }
        let bucket = bucket(&entries);
        bucket.ways[5].store(0);
        assert_eq!(bucket.light(6, NOW), Some(victim(5, None)), "an empty place before all");
    }

    #[test]
    fn replaces_empty_then_expired_then_probation_then_oldest() {
        use State::{Closing, Established, Opening};
        let mut entries: std::vec::Vec<Entry> = (0..8).map(|n| aged(n + 1, Established, 10 + n)).collect();
        assert_eq!(
            bucket(&entries).victim(NOW),
            victim(7, Eviction::Established),
            "the oldest established flow"
        );
        entries[3] = aged(4, Closing, 2);
        assert_eq!(
            bucket(&entries).victim(NOW),
            victim(3, Eviction::Probation),
            "a closing flow before any established one"
        );
        entries[4] = aged(5, Opening, 5);
        assert_eq!(
            bucket(&entries).victim(NOW),
            victim(4, Eviction::Probation),
            "the older of two on probation"
        );
        entries[5] = aged(6, Established, ESTABLISHED_IDLE_TICKS + 1);
        assert_eq!(
            bucket(&entries).victim(NOW),
            victim(5, Eviction::Expired),
            "an expired flow before probation"
        );
        assert_eq!(bucket(&entries[..6]).victim(NOW), victim(6, None), "an empty place before all");
    }

    #[test]
    fn a_flood_of_opening_packets_keeps_established_flows() {
        let bucket =
            bucket(&(0..8).map(|n| aged(n + 1, State::Established, n)).collect::<std::vec::Vec<_>>());
        for flood in 0..10_000 {
            let place = bucket.light(flood % 8, NOW).unwrap_or_else(|| bucket.victim(NOW));
            bucket.store(place.way, Entry::new(1_000 + flood, 2, State::Opening, NOW));
        }
        let kept = (1..=8).filter(|&signature| bucket.find(signature).is_some()).count();
        assert_eq!(kept, 7, "the flood takes one place and fights over that");
    }

    proptest! {
        #[test]
        fn an_entry_is_found_where_it_is(
            signatures in prop::array::uniform8(0_u32..6), wanted in 0_u32..6, high in 0_u32..1 << 20,
        ) {
            let signature = |number: u32| if number == 0 { 0 } else { flow_signature(u64::from(high << 12 | number << 2)) };
            let bucket = FlowBucket::default();
            for (way, number) in signatures.iter().enumerate().filter(|(_, number)| **number > 0) {
                bucket.store(way, Entry::new(signature(*number), way as u16, State::Established, NOW));
            }
            let way = signatures.iter().position(|&number| number == wanted && number > 0);
            let wanted = flow_signature(u64::from(high << 12 | wanted << 2));
            prop_assert_eq!(bucket.find(wanted).map(|found| found.way), way);
            prop_assert_eq!(bucket.entry(wanted).map(|entry| usize::from(entry.backend())), way);
        }

        #[test]
        fn what_makes_way_is_never_younger_or_dearer_than_another(
            words in prop::array::uniform8(prop::option::weighted(0.9, (1..4_u8, 0..TICK_MASK - AHEAD_TICKS))), chance in 0..8_u32,
        ) {
            let bucket = FlowBucket::default();
            for (way, word) in words.iter().enumerate() {
                if let Some((state, age)) = word {
                    let state = [State::Opening, State::Established, State::Closing][usize::from(*state) - 1];
                    bucket.store(way, aged(way as u32 + 1, state, *age));
                }
            }
            let cost = |way: usize| words[way].map(|_| {
                let entry = bucket.find(way as u32 + 1).unwrap().entry;
                let class = match (entry.is_expired(NOW), entry.state()) {
                    (true, _) => 1,
                    (false, State::Established) => 3,
                    (false, _) => 2,
                };
                (class, u32::MAX - entry.age(NOW))
            });
            let victim = bucket.victim(NOW).way;
            prop_assert!((0..8).all(|way| cost(victim) <= cost(way)));
            let full = (0..8).all(|way| cost(way).is_some());
            let light = bucket.light(chance, NOW);
            match light.map(|light| (cost(light.way), light.eviction)) {
                None => prop_assert!(full && (0..8).all(|way| words[way].is_some_and(|(state, _)| state == 2))),
                Some((None, eviction)) => prop_assert_eq!(eviction, None),
                Some((Some((class, _)), eviction)) => {
                    prop_assert!(full);
                    prop_assert_eq!(eviction, Some(if class == 1 { Eviction::Expired } else { Eviction::Probation }));
                }
            }
        }
    }
}
