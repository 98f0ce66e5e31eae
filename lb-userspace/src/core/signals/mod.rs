//! What the datapath saw of TCP connections → the numbers that are shown, and signs that a backend is not well.
//!
//! Only packets from customers are seen. So it can be told that an opening went on, and how long that took: the backend's answer and
//! the way to the customer and back, together. It cannot be told whether a backend's answer was lost on its way, nor which RSTs
//! and FINs a backend sent.

mod watch;

use std::collections::BTreeMap;

use lb_common::abi::{LATENCY_BUCKETS, Latency, Traffic};
use serde::{Deserialize, Serialize};

pub use watch::{Judged, PassiveWatch, Showing, Sight, Signal};

/// Seconds in a unit of a [`Timing`].
const UNIT_SECONDS: f64 = Latency::UNIT_NS as f64 / 1e9;

/// How long connections took to open, in units of 1,024 ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The sum.
    pub sum: u64,
    /// How many took so long: see [`Latency::bound`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Timing {
    /// How many connections were timed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
    }

    /// What was timed since an earlier reading; of each part nothing if it began anew.
    pub fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets;
        for (count, before) in buckets.iter_mut().zip(before.buckets) {
            *count = count.saturating_sub(before);
        }
        Self { sum: self.sum.saturating_sub(before.sum), buckets }
    }
}

/// How long connections took to open, by whose they were; those without any are left out.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// By backend id.
    pub backends: BTreeMap<u16, Timing>,
    /// By service id, backends it had before included.
    pub services: BTreeMap<u32, Timing>,
}

/// The upper bounds of the buckets in seconds; that of the last is infinite.
pub fn bounds() -> impl Iterator<Item = f64> {
    (0..LATENCY_BUCKETS).map(|bucket| match Latency::bound(bucket) {
        Some(bound) => bound as f64 * UNIT_SECONDS,
        None => f64::INFINITY,
    })
}

/// What customers' packets show of TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpStats {
    /// SYNs that were given a backend.
    pub opened: u64,
    /// SYNs that came again within seconds while nothing had followed the first.
    pub repeated: u64,
    /// Connections of which another packet followed the first.
    pub answered: u64,
    /// FINs.
    pub fins: u64,
    /// RSTs.
    pub resets: u64,
    /// How long connections took to open, of those that were timed.
    pub opening: OpeningStats,
}

/// How long connections took to open: from the SYN to the next packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpeningStats {
    /// How many were timed.
    pub timed: u64,
    /// The sum of their times.
    pub seconds: f64,
    /// How many took less than 16.384 µs, then less than twice that, and so on, each without those before; the last takes all others.
    /// Empty if none was timed.
    pub buckets: Vec<u64>,
}

impl TcpStats {
    /// From what the datapath counted.
    pub fn new(traffic: &Traffic, timing: &Timing) -> Self {
        let timed = timing.count();
        let opening = OpeningStats {
            timed,
            seconds: timing.sum as f64 * UNIT_SECONDS,
            buckets: if timed > 0 { timing.buckets.to_vec() } else { Vec::new() },
        };
        let &Traffic { opened, repeated, answered, fins, resets, .. } = traffic;
        Self { opened, repeated, answered, fins, resets, opening }
    }
}

impl OpeningStats {
    /// What was timed since an earlier moment; all of it if it began anew.
    pub fn since(&self, before: &Self) -> Self {
        if before.buckets.is_empty() || self.timed < before.timed {
            return self.clone();
        }
        let buckets = self.buckets.iter().zip(&before.buckets);
        Self {
            timed: self.timed - before.timed,
            seconds: (self.seconds - before.seconds).max(0.0),
            buckets: buckets.map(|(now, before)| now.saturating_sub(*before)).collect(),
        }
    }

    /// The time in seconds that a share of them did not exceed, from 0 to 1; within a bucket they count as evenly spread. Of those
    /// beyond the last bound it is that bound. None if none was timed.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.buckets.iter().sum();
        if all == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (&count, upper) in self.buckets.iter().zip(bounds()) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                let part = (rank - below) / count;
                return Some(if upper.is_finite() { lower + (upper - lower) * part } else { lower });
            }
            below += count;
            lower = upper;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(buckets: &[(usize, u64)]) -> OpeningStats {
        let mut timing = Timing::default();
        for &(bucket, count) in buckets {
            timing.buckets[bucket] = count;
            timing.sum += count * 1_000;
        }
        TcpStats::new(&Traffic::default(), &timing).opening
    }

    #[test]
    fn quantiles_lie_where_the_buckets_say() {
        assert_eq!(stats(&[]).quantile(0.5), None);
        let bounds: Vec<f64> = bounds().collect();
        assert_eq!((bounds[0], bounds[LATENCY_BUCKETS - 1]), (16.384e-6, f64::INFINITY));
        assert!(bounds.windows(2).all(|pair| pair[1] >= 2.0 * pair[0]), "{bounds:?}");
        let half = stats(&[(3, 50), (7, 50)]);
        assert_eq!(half.quantile(0.5), Some(bounds[3]));
        assert_eq!(half.quantile(0.25), Some((bounds[2] + bounds[3]) / 2.0));
        assert_eq!(half.quantile(1.0), Some(bounds[7]));
        assert_eq!(stats(&[(LATENCY_BUCKETS - 1, 1)]).quantile(0.5), Some(bounds[LATENCY_BUCKETS - 2]));
    }

    #[test]
    fn the_time_between_has_what_came_since() {
        let (before, now) = (stats(&[(3, 10)]), stats(&[(3, 10), (9, 4)]));
        let since = now.since(&before);
        assert_eq!((since.timed, since.buckets[3], since.buckets[9]), (4, 0, 4));
        assert!((since.seconds - 4.0 * 1.024e-3).abs() < 1e-12, "{since:?}");
        assert_eq!(now.since(&stats(&[])), now);
        assert_eq!(before.since(&now), before, "it began anew");
        let [mut sum, more] =
            [Timing { sum: 5, ..Timing::default() }, Timing { sum: 7, ..Timing::default() }];
        sum.add(&more);
        assert_eq!((sum.sum, sum.since(&more).sum), (12, 5));
    }
}
