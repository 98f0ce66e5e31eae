//! A backend: where its packets go, and whether they may.

use super::Word;
use crate::net::Address;

/// A backend: everything its packets need, in one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Backend {
    /// See [`BackendWord`].
    pub word: Word,
    /// Two next hops of which the word names the one in force: the other may be rewritten.
    pub hops: [NextHop; 2],
    /// The server's own address: with the name, the backend's identity. The program does not read it.
    pub address: Address,
    /// To the end of the cache line.
    pub padding: [u8; 8],
}

/// How a service's packets reach its backends; the number is that of the shared record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Forwarding {
    /// Destination MAC rewritten, packet otherwise untouched.
    #[default]
    L2Dsr = 0,
}

/// The word [`Backend::word`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendWord {
    /// Whether the id is taken.
    pub used: bool,
    /// Not disabled: established flows may go here.
    pub enabled: bool,
    /// Not known to be unhealthy, or standing in for healthy ones: flows without a connection to lose may stay here.
    pub healthy: bool,
    /// Its probes succeed, or it needs none: what an agent that adopts the tables begins with.
    pub probed_healthy: bool,
    /// Whether the next hop in force is known.
    pub resolved: bool,
    /// Which of the two next hops is in force.
    pub second_hop: bool,
    /// The forwarding mode of its service.
    pub forwarding: Forwarding,
    /// The service it belongs to.
    pub service: u16,
}

impl BackendWord {
    const USED: u64 = 1;
    const ENABLED: u64 = 2;
    const HEALTHY: u64 = 4;
    const RESOLVED: u64 = 8;
    const SECOND_HOP: u64 = 16;
    const PROBED_HEALTHY: u64 = 32;

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            used: word & Self::USED != 0,
            enabled: word & Self::ENABLED != 0,
            healthy: word & Self::HEALTHY != 0,
            probed_healthy: word & Self::PROBED_HEALTHY != 0,
            resolved: word & Self::RESOLVED != 0,
            second_hop: word & Self::SECOND_HOP != 0,
            forwarding: Forwarding::L2Dsr,
            service: (word >> 16) as u16,
        }
    }

    /// The word for the map.
    pub fn to_word(self) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(self.used, Self::USED)
            | bit(self.enabled, Self::ENABLED)
            | bit(self.healthy, Self::HEALTHY)
            | bit(self.probed_healthy, Self::PROBED_HEALTHY)
            | bit(self.resolved, Self::RESOLVED)
            | bit(self.second_hop, Self::SECOND_HOP)
            | (self.forwarding as u64) << 8
            | (self.service as u64) << 16
    }
}

impl BackendWord {
    /// Whether flows of this service may go here.
    #[inline(always)]
    pub const fn serves(self, service: u32) -> bool {
        self.used && self.enabled && self.service as u32 == service
    }
}

impl Backend {
    /// The next hop that a word of this backend puts in force.
    #[inline(always)]
    pub const fn hop(&self, word: BackendWord) -> &NextHop {
        let [first, second] = &self.hops;
        if word.second_hop { second } else { first }
    }

    /// The word as it is now.
    #[inline(always)]
    pub fn load(&self) -> BackendWord {
        BackendWord::from_word(self.word.load())
    }
}

/// Where a backend's frames go. The MAC addresses are held as the words they are stored with: BPF has no fast copy of
/// twelve bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Bytes 0 to 7 of the frame: destination MAC and the source MAC's first two bytes.
    pub first: u64,
    /// Bytes 8 to 11 of the frame: the rest of the source MAC.
    pub rest: u32,
    /// Index of the interface to transmit on; 0 for the one the packet came from.
    pub interface: u32,
}

impl NextHop {
    /// The next hop with these MAC addresses.
    pub const fn new(destination: [u8; 6], source: [u8; 6], interface: u32) -> Self {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            rest: u32::from_ne_bytes([i, j, k, l]),
            interface,
        }
    }

    /// Destination and source MAC address.
    pub const fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let [a, b, c, d, e, f, g, h] = self.first.to_ne_bytes();
        let [i, j, k, l] = self.rest.to_ne_bytes();
        ([a, b, c, d, e, f], [g, h, i, j, k, l])
    }
}
