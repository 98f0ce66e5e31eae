//! What is counted, per CPU.

use crate::verdict::VERDICT_SLOTS;

/// What went to a backend, or to all of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, by the IP header: without Ethernet header and padding.
    pub bytes: u64,
    /// Flows that were given a backend.
    pub new_flows: u64,
    /// To half a cache line.
    pub padding: u64,
}

impl core::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.new_flows += other.new_flows;
    }
}

impl core::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(traffic: I) -> Self {
        traffic.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// Packets by [`crate::verdict::Verdict`], and flows pushed out of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Verdicts {
    /// Packets, by [`crate::verdict::Verdict::index`].
    pub packets: [u64; VERDICT_SLOTS],
    /// Entries of the flow table that made way for a new one, by [`crate::flow::Eviction`].
    pub evictions: [u64; 4],
}

impl Default for Verdicts {
    fn default() -> Self {
        Self { packets: [0; VERDICT_SLOTS], evictions: [0; 4] }
    }
}

/// Lets aya read and write the records that go through map system calls.
#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` of plain integers without padding between them; every bit pattern is a value.
    unsafe impl aya::Pod for super::Traffic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Verdicts {}
}
