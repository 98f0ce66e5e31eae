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

/// The word [`Backend::word`]. It stays one word on the packet path: taken apart and put together again, it would cost more
/// there than all that is asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct BackendWord(u64);

/// What a [`BackendWord`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendFlags {
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
    const SERVICE_SHIFT: u32 = 16;

    /// The word that says this.
    pub fn new(flags: BackendFlags) -> Self {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        Self(
            bit(flags.used, Self::USED)
                | bit(flags.enabled, Self::ENABLED)
                | bit(flags.healthy, Self::HEALTHY)
                | bit(flags.probed_healthy, Self::PROBED_HEALTHY)
                | bit(flags.resolved, Self::RESOLVED)
                | bit(flags.second_hop, Self::SECOND_HOP)
                | (flags.forwarding as u64) << 8
                | u64::from(flags.service) << Self::SERVICE_SHIFT,
        )
    }

    /// The word as it lies in the map.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What the word says.
    pub const fn flags(self) -> BackendFlags {
        BackendFlags {
            used: self.0 & Self::USED != 0,
            enabled: self.0 & Self::ENABLED != 0,
            healthy: self.is_healthy(),
            probed_healthy: self.0 & Self::PROBED_HEALTHY != 0,
            resolved: self.is_resolved(),
            second_hop: self.0 & Self::SECOND_HOP != 0,
            forwarding: self.forwarding(),
            service: (self.0 >> Self::SERVICE_SHIFT) as u16,
        }
    }

    /// Whether flows of this service may go here.
    #[inline(always)]
    pub const fn serves(self, service: u32) -> bool {
        const MAY: u64 = BackendWord::USED | BackendWord::ENABLED;
        self.0 & MAY == MAY && (self.0 >> Self::SERVICE_SHIFT) as u32 == service
    }

    /// [`BackendFlags::healthy`].
    #[inline(always)]
    pub const fn is_healthy(self) -> bool {
        self.0 & Self::HEALTHY != 0
    }

    /// [`BackendFlags::resolved`].
    #[inline(always)]
    pub const fn is_resolved(self) -> bool {
        self.0 & Self::RESOLVED != 0
    }

    /// [`BackendFlags::forwarding`].
    #[inline(always)]
    pub const fn forwarding(self) -> Forwarding {
        Forwarding::L2Dsr
    }
}

impl Backend {
    /// The next hop that a word of this backend puts in force.
    #[inline(always)]
    pub const fn hop(&self, word: BackendWord) -> &NextHop {
        let [first, second] = &self.hops;
        if word.0 & BackendWord::SECOND_HOP != 0 { second } else { first }
    }

    /// The word as it is now.
    #[inline(always)]
    pub fn load(&self) -> BackendWord {
        BackendWord(self.word.load())
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
