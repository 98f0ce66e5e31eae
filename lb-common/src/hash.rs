//! A flow's five fields and a key → 64 well-mixed bits.
//!
//! The core is NH, the universal hash of UMAC (Black et al., "UMAC: Fast and Secure Message Authentication",
//! CRYPTO '99): over a random key two different flows meet with a probability of 2⁻³², whoever chose them. It costs
//! one multiplication for eight bytes. A fixed finalizer then spreads the sum over all bits.

use crate::net::{Address, Tuple};

/// Words in a hash key: one for each word of an IPv6 flow (two addresses, the ports, the protocol).
pub const KEY_WORDS: usize = 10;

/// A hash key.
pub type Key = [u32; KEY_WORDS];

/// Expands a seed to a key (SplitMix64: Steele et al., OOPSLA '14). Every node makes the same key of the same seed.
pub fn expand(seed: u64) -> Key {
    let mut state = seed;
    core::array::from_fn(|_| {
        state = state.wrapping_add(GOLDEN_RATIO);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    })
}

/// Hashes a flow.
#[inline(always)]
pub fn flow(key: &Key, tuple: &Tuple) -> u64 {
    let last = pair(key, 8, tuple.ports.word(), u32::from(tuple.protocol.0));
    let (source, destination) = (tuple.source.words(), tuple.destination.words());
    let sum = if tuple.destination.is_v4() {
        last.wrapping_add(pair(key, 0, source[3], destination[3]))
    } else {
        last.wrapping_add(pair(key, 0, source[0], source[1]))
            .wrapping_add(pair(key, 2, source[2], source[3]))
            .wrapping_add(pair(key, 4, destination[0], destination[1]))
            .wrapping_add(pair(key, 6, destination[2], destination[3]))
    };
    finalize(sum)
}

/// Hashes what names a service, the address and its [`crate::abi::vip_key`]: masked with the number of buckets, a power of two, this is the place of a VIP in its
/// table. No key: the table is bounded by construction.
#[inline(always)]
pub fn vip(address: Address, key: u32) -> u32 {
    let words = address.words();
    let low = u64::from(words[3]) << 32 | u64::from(key);
    let high = u64::from(words[0]) << 32 | u64::from(words[1] ^ words[2]);
    // The upper bits of a product depend on all bits below: turned around, they are what the mask leaves.
    (low ^ high.wrapping_mul(0xff51_afd7_ed55_8ccd)).wrapping_mul(GOLDEN_RATIO).swap_bytes() as u32
}

/// Maps the upper half of a hash onto `0..size` without a division (Lemire, "Fast Random Integer Generation in an
/// Interval", 2019). The lower half stays independent of it.
#[inline(always)]
pub fn reduce(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * u64::from(size)) >> 32) as u32
}

/// Other bits of the same hash, for what regular flows must spread evenly over: hashes of flows that differ by equal steps do, too.
#[inline(always)]
pub fn spread(hash: u64) -> u32 {
    (hash.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
}

/// The next of a sequence of well-mixed numbers, which only who knows one can foretell.
#[inline(always)]
pub fn step(number: u64) -> u64 {
    finalize(number.wrapping_add(GOLDEN_RATIO))
}

/// One term of NH: two message words against two key words.
#[inline(always)]
fn pair(key: &Key, at: usize, first: u32, second: u32) -> u64 {
    u64::from(first.wrapping_add(key[at])).wrapping_mul(u64::from(second.wrapping_add(key[at + 1])))
}

/// Carries every bit of the sum into the upper half (multiplicative hashing: Knuth, TAOCP vol. 3, section 6.4), and that
/// into the lower. A bijection, so no two sums meet that did not before. The sums of regular flows differ by equal steps, whose products would
/// do so, too, and with some keys fall into few places: the two halves are folded first.
#[inline(always)]
fn finalize(sum: u64) -> u64 {
    let product = (sum ^ (sum >> 32)).wrapping_mul(GOLDEN_RATIO);
    product ^ (product >> 32)
}

/// 2⁶⁴ divided by the golden ratio, made odd.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ports, Protocol};
    use std::collections::HashSet;
    use std::vec;

    fn tuple(source: u32, source_port: u16) -> Tuple {
        Tuple {
            source: Address::v4(source.to_be_bytes()),
            destination: Address::v4([203, 0, 113, 10]),
            ports: Ports::new(source_port, 443),
            protocol: Protocol::TCP,
        }
    }

    /// Chi-squared over 64 cells: 63 degrees of freedom, so above 120 once in ten thousand.
    fn chi_squared(hashes: impl Iterator<Item = u64>) -> f64 {
        let mut cells = vec![0_u32; 64];
        let mut total = 0;
        for hash in hashes {
            cells[reduce(hash, 64) as usize] += 1;
            total += 1;
        }
        let expected = f64::from(total) / 64.0;
        cells.iter().map(|&seen| (f64::from(seen) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn neighbouring_flows_spread_evenly() {
        for seed in 0..8 {
            let key = expand(seed);
            let ports = (1024..=65_535).map(|port| flow(&key, &tuple(0x0a00_0001, port)));
            assert!(chi_squared(ports) < 120.0);
            let sources = (0..65_536).map(|low| flow(&key, &tuple(0x0a00_0000 | low, 40_000)));
            assert!(chi_squared(sources) < 120.0);
        }
    }

    /// Places of eight, filled to a half: of flows as if drawn, 0.85 % find theirs full.
    #[test]
    fn regular_flows_find_places_with_every_key() {
        let all: [fn(u32) -> Tuple; 4] = [
            |number| tuple(0x0a00_0000 + number, 40_000),
            |number| tuple(0x0a00_0000 + number * 256, 40_000),
            |number| tuple(0x0a00_0000 + (number >> 14), 1_024 + (number & 0x3fff) as u16),
            |number| tuple(0x0a00_0000 | number.wrapping_mul(0x9e37_79b1) & 0xff_ffff, 40_000),
        ];
        for seed in 0..40 {
            let key = expand(step(seed));
            for (number, flows) in all.iter().enumerate() {
                let mut places = vec![0_u32; 16_384];
                for flow_number in 0..65_536 {
                    places[reduce(flow(&key, &flows(flow_number)), 16_384) as usize] += 1;
                }
                let lost: u32 = places.iter().map(|&flows| flows.saturating_sub(8)).sum();
                assert!(lost < 1_000, "seed {seed}, flows {number}: {lost} of 65536 find no place");
            }
        }
    }

    #[test]
    fn flows_of_one_client_do_not_meet() {
        let key = expand(7);
        let hashes: HashSet<u64> = (0..=65_535).map(|port| flow(&key, &tuple(1, port))).collect();
        assert_eq!(hashes.len(), 65_536);
    }

    #[test]
    fn every_field_and_the_key_count() {
        let key = expand(0);
        let base = tuple(1, 1);
        let same = flow(&key, &base);
        let others = [
            Tuple { source: Address::v4([9, 9, 9, 9]), ..base },
            Tuple { destination: Address::v4([9, 9, 9, 9]), ..base },
            Tuple { ports: Ports::new(2, 443), ..base },
            Tuple { ports: Ports::new(1, 2), ..base },
            Tuple { protocol: Protocol::UDP, ..base },
        ];
        assert!(others.iter().all(|other| flow(&key, other) != same));
        assert_ne!(flow(&expand(1), &base), same);
    }

    /// Nodes of different releases must choose alike: these values may change only with `ABI_VERSION`.
    #[test]
    fn hashes_stay_what_they_are() {
        assert_eq!(expand(0)[..2], [0xe220_a839, 0x6e78_9e6a]);
        assert_eq!(flow(&expand(0), &tuple(0x0a00_0001, 40_000)), 6_753_136_021_835_324_655);
    }
}
