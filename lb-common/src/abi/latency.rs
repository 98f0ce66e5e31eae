//! How long connections took to open, as a histogram.

use super::Word;

/// Buckets of a [`Latency`].
pub const LATENCY_BUCKETS: usize = 20;
/// Times below 2 to the power of this are in the first bucket.
const FIRST_BITS: u32 = 4;

/// How long connections took to open, in units of 1,024 ns. Written by all CPUs: each word is added to.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Latency {
    /// The sum of all times.
    pub sum: Word,
    /// How many took so long: bucket `n` has those below [`Latency::bound`]`(n)` and not below that of the bucket before.
    pub buckets: [Word; LATENCY_BUCKETS],
}

impl Latency {
    /// Nanoseconds in a unit.
    pub const UNIT_NS: u64 = 1 << 10;

    /// Adds one time, in units.
    #[inline(always)]
    pub fn add(&self, time: u32) {
        self.sum.add(time.into());
        let bucket = Self::bucket(time);
        if let Some(count) = self.buckets.get(bucket) {
            count.add(1);
        }
    }

    /// The bucket of a time in units.
    #[inline(always)]
    const fn bucket(time: u32) -> usize {
        let bits = u32::BITS - time.leading_zeros();
        let bucket = bits.saturating_sub(FIRST_BITS) as usize;
        if bucket < LATENCY_BUCKETS { bucket } else { LATENCY_BUCKETS - 1 }
    }

    /// The upper bound of a bucket in units; that of the last one is infinite.
    pub const fn bound(bucket: usize) -> Option<u64> {
        if bucket + 1 < LATENCY_BUCKETS { Some(1 << (bucket + FIRST_BITS as usize)) } else { None }
    }

    /// All of it: the sum, then the buckets.
    pub fn read(&self) -> (u64, [u64; LATENCY_BUCKETS]) {
        (self.sum.load(), core::array::from_fn(|bucket| self.buckets.get(bucket).map_or(0, Word::load)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_whose_bounds_hold_it() {
        let times = (0..32).flat_map(|bits| [(1_u32 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        for time in times.chain([u32::MAX]) {
            let bucket = Latency::bucket(time);
            assert!(Latency::bound(bucket).is_none_or(|bound| u64::from(time) < bound), "{time}");
            let below = bucket.checked_sub(1).and_then(Latency::bound);
            assert!(below.is_none_or(|bound| u64::from(time) >= bound), "{time}");
        }
        let latency = Latency::default();
        [3, 15, 16, u32::MAX].into_iter().for_each(|time| latency.add(time));
        let (sum, buckets) = latency.read();
        assert_eq!(sum, 34 + u64::from(u32::MAX));
        assert_eq!((buckets[0], buckets[1], buckets[LATENCY_BUCKETS - 1]), (2, 1, 1));
        assert_eq!(buckets.iter().sum::<u64>(), 4);
    }
}
