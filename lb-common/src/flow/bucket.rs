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

/// The sum of two words. The compiler for BPF is not to make one row of a sum of sums, in which each waits for the one before.
#[inline(always)]
fn plus(mut one: u64, other: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the instruction works on the words alone.
    unsafe {
        core::arch::asm!("{0} += {1}", inout(reg) one, in(reg) other, options(pure, nomem, nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        one = one.wrapping_add(other);
    }
    one
}

/// Some of a bucket's places: a byte each, of which the uppermost bit says whether it is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places(u64);

impl Places {
    /// The uppermost bits.
    const ALL: u64 = 0x8080_8080_8080_8080;
    /// The lowest ones.
    const LOWEST: u64 = 0x0101_0101_0101_0101;

    /// The first of them, looked for from this place on; any if there are none. Without branches.
    #[inline(always)]
    fn first(self, from: u32) -> usize {
        let from = from & (FLOW_WAYS as u32 - 1);
        let turned = self.0.rotate_right(8 * from);
        // Of the bytes up to the first one the lowest bit is set now; the product's upper byte counts them.
        let until = turned.wrapping_sub(1) & Self::LOWEST;
        let count = until.wrapping_mul(Self::LOWEST) >> 56;
        (count.wrapping_add(u64::from(from)).wrapping_sub(1)) as usize & (FLOW_WAYS - 1)
    }
}

/// A bucket's eight entries are gone through without branches: at which of them a search ends, no branch predictor could know.
impl FlowBucket {
    /// The entry with this signature, which is one of a flow or client.
    #[inline(always)]
    pub fn entry(&self, signature: u32) -> Option<Entry> {
        let even = plus(self.masked::<0>(signature), self.masked::<2>(signature));
        let odd = plus(self.masked::<1>(signature), self.masked::<3>(signature));
        let even = plus(plus(even, self.masked::<4>(signature)), self.masked::<6>(signature));
        let odd = plus(plus(odd, self.masked::<5>(signature)), self.masked::<7>(signature));
        let sum = even.wrapping_add(odd);
        if (sum >> 32) as u32 == signature {
            return Some(Entry(sum));
        }
        if sum == 0 {
            return None;
        }
        // Two CPUs have made one each, and the sum is not this signature's; or another flow has just taken the place.
        self.find(signature).map(|found| found.entry)
    }

    /// The word of this place if it has this signature, else 0.
    #[inline(always)]
    fn masked<const WAY: usize>(&self, signature: u32) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            let word;
            // SAFETY: the instructions read the word and its upper half, and work on two registers, of which the compiler would need more, and
            // the stack.
            unsafe {
                core::arch::asm!(
                    "{mask} = *(u32 *)({bucket} + {upper})", "{mask} ^= {signature}", "{mask} += -1", "{mask} s>>= 63",
                    "{word} = *(u64 *)({bucket} + {whole})", "{word} &= {mask}",
                    bucket = in(reg) self, signature = in(reg) u64::from(signature), mask = out(reg) _, word = out(reg) word,
                    upper = const 8 * WAY + 4, whole = const 8 * WAY, options(readonly, nostack),
                );
            }
            return word;
        }
        #[cfg(not(target_arch = "bpf"))]
        return self.ways[WAY].load() & all_if_same(self.ways[WAY].load_upper(), signature);
    }

    /// The same, and where it is.
    #[inline(always)]
    pub fn find(&self, signature: u32) -> Option<Found> {
        // Shifted, not masked: of a mask newer verifiers follow both values, of eight 256.
        let (mut same, mut way) = (0, 0);
        while way < FLOW_WAYS {
            same |= all_if_same(self.ways[way].load_upper(), signature) >> 63 << (8 * way + 7);
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
        // The states are the upper two bits of each byte.
        let (mut states, mut way) = (0, 0);
        while way < FLOW_WAYS {
            states |= u64::from(self.ways[way].load_second_byte()) << (8 * way);
            way += 1;
        }
        // Of the four only "no entry" has neither bit, and only "established" the upper one alone.
        let lower = states << 1;
        let empty = !(states | lower) & Places::ALL;
        if empty != 0 {
            return Some(Victim { way: Places(empty).first(0), eviction: None });
        }
        let way = Places(lower & Places::ALL).first(chance);
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
            let bits = (0..FLOW_WAYS).map(|way| (places >> way & 1) << (8 * way + 7)).sum();
            for from in 0..FLOW_WAYS {
                let expected =
                    (0..FLOW_WAYS).map(|step| (from + step) % FLOW_WAYS).find(|way| places >> way & 1 == 1);
                let first = Places(bits).first(from as u32);
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
