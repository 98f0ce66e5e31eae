//! What is counted, per CPU.

use crate::datapath::Outcome;
use crate::verdict::VERDICT_SLOTS;

/// What went to a backend, or to all of a service. What is counted of TCP is what its customers sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, by the IP header: without Ethernet header and padding.
    pub bytes: u64,
    /// Flows that were given a backend.
    pub new_flows: u64,
    /// TCP connections that were given a backend by an opening SYN.
    pub opened: u64,
    /// SYNs that came again while nothing had followed the first.
    pub repeated: u64,
    /// TCP connections of which a second packet came that was none of that.
    pub answered: u64,
    /// FINs.
    pub fins: u64,
    /// RSTs.
    pub resets: u64,
}

impl Traffic {
    /// Counts a forwarded packet.
    #[inline(always)]
    pub fn count(&mut self, forwarded: &Outcome) {
        self.packets += 1;
        self.bytes += u64::from(forwarded.bytes);
        let seen = forwarded.seen;
        // Nearly always no.
        if !seen.is_news() {
            return;
        }
        if seen.is_new() {
            self.new_flows += 1;
        }
        let transport = seen.transport();
        if transport.opens() {
            if seen.is_new() {
                self.opened += 1;
            } else {
                self.repeated += 1;
            }
        } else if transport.resets() {
            self.resets += 1;
        } else if transport.closes() {
            self.fins += 1;
        }
        if seen.is_answered() {
            self.answered += 1;
        }
    }
}

impl core::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.new_flows += other.new_flows;
        self.opened += other.opened;
        self.repeated += other.repeated;
        self.answered += other.answered;
        self.fins += other.fins;
        self.resets += other.resets;
    }
}

impl Traffic {
    /// What was counted since an earlier reading of the same counters; nothing if they began anew.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            new_flows: self.new_flows.saturating_sub(before.new_flows),
            opened: self.opened.saturating_sub(before.opened),
            repeated: self.repeated.saturating_sub(before.repeated),
            answered: self.answered.saturating_sub(before.answered),
            fins: self.fins.saturating_sub(before.fins),
            resets: self.resets.saturating_sub(before.resets),
        }
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

/// Packets by [`crate::verdict::Verdict`], and flows pushed out of their table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Verdicts {
    /// Packets, by [`crate::verdict::Verdict::index`].
    pub packets: [u64; VERDICT_SLOTS],
    /// Flows that made way for a new one, by [`crate::flow::Eviction`].
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
