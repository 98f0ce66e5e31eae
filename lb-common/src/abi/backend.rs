//! A backend: where its packets go, and whether they may.

use super::Word;
use crate::flow::Tick;
use crate::net::{Address, Be16};

/// A backend: everything its packets need, in two cache lines.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Backend {
    /// See [`BackendWord`].
    pub word: Word,
    /// What the program noted of it. Tunnels: what routers on the way told, see [`PathMtu`]; `nat`: see [`NoPort`].
    pub noted: Word,
    /// The server's own address: with the name, the backend's identity.
    pub address: Address,
    /// Two next hops of which the word names the one in force: the other may be rewritten.
    pub hops: [NextHop; 2],
}

/// How a service's packets reach its backends; the number is that of the shared record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Forwarding {
    /// Destination MAC rewritten, packet otherwise untouched.
    #[default]
    L2Dsr = 0,
    /// An IPv4 or IPv6 header in front (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 1,
    /// An IPv4 or IPv6, a UDP and a GUE header in front (draft-ietf-intarea-gue-09).
    Gue = 2,
    /// Addresses and ports translated, both ways.
    Nat = 3,
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
    /// In its service's ring: new flows may come here.
    pub takes_new: bool,
    /// Whether the next hop in force is known.
    pub resolved: bool,
    /// Whether it is, and frames without a tag go there without one.
    pub plain: bool,
    /// Which of the two next hops is in force.
    pub second_hop: bool,
    /// The forwarding mode of its service.
    pub forwarding: Forwarding,
    /// The service it belongs to.
    pub service: u16,
    /// `nat`: the port it serves on; 0 keeps the VIP's.
    pub port: Be16,
}

impl BackendWord {
    const USED: u64 = 1;
    const ENABLED: u64 = 2;
    const HEALTHY: u64 = 4;
    const RESOLVED: u64 = 8;
    const SECOND_HOP: u64 = 16;
    const PROBED_HEALTHY: u64 = 32;
    const TAKES_NEW: u64 = 64;
    const PLAIN: u64 = 128;
    const FORWARDING_SHIFT: u32 = 8;
    const SERVICE_SHIFT: u32 = 16;
    const PORT_SHIFT: u32 = 32;

    /// The word that says this.
    pub fn new(flags: BackendFlags) -> Self {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        Self(
            bit(flags.used, Self::USED)
                | bit(flags.enabled, Self::ENABLED)
                | bit(flags.healthy, Self::HEALTHY)
                | bit(flags.probed_healthy, Self::PROBED_HEALTHY)
                | bit(flags.resolved, Self::RESOLVED)
                | bit(flags.plain, Self::PLAIN)
                | bit(flags.second_hop, Self::SECOND_HOP)
                | bit(flags.takes_new, Self::TAKES_NEW)
                | (flags.forwarding as u64) << Self::FORWARDING_SHIFT
                | u64::from(flags.service) << Self::SERVICE_SHIFT
                | u64::from(flags.port.raw()) << Self::PORT_SHIFT,
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
            takes_new: self.takes_new(),
            resolved: self.is_resolved(),
            plain: self.is_plain(),
            second_hop: self.0 & Self::SECOND_HOP != 0,
            forwarding: self.forwarding(),
            service: (self.0 >> Self::SERVICE_SHIFT) as u16,
            port: self.port(),
        }
    }

    /// Whether it belongs to this service, and all of these bits are set.
    #[inline(always)]
    const fn is_of(self, service: u32, bits: u64) -> bool {
        const SERVICE: u64 = (u16::MAX as u64) << BackendWord::SERVICE_SHIFT;
        self.0 & (bits | SERVICE) == bits | (service as u64) << Self::SERVICE_SHIFT
    }

    /// Whether flows of this service may go here.
    #[inline(always)]
    pub const fn serves(self, service: u32) -> bool {
        self.is_of(service, Self::USED | Self::ENABLED)
    }

    /// The same, and nothing about it needs another look: it is healthy, and frames go there as they are.
    #[inline(always)]
    pub const fn serves_plainly(self, service: u32) -> bool {
        self.is_of(service, Self::USED | Self::ENABLED | Self::HEALTHY | Self::PLAIN)
    }

    /// [`BackendFlags::port`].
    #[inline(always)]
    pub const fn port(self) -> Be16 {
        Be16::from_wire(((self.0 >> Self::PORT_SHIFT) as u16).to_ne_bytes())
    }

    /// [`BackendFlags::healthy`].
    #[inline(always)]
    pub const fn is_healthy(self) -> bool {
        self.0 & Self::HEALTHY != 0
    }

    /// [`BackendFlags::takes_new`].
    #[inline(always)]
    pub const fn takes_new(self) -> bool {
        self.0 & Self::TAKES_NEW != 0
    }

    /// [`BackendFlags::resolved`].
    #[inline(always)]
    pub const fn is_resolved(self) -> bool {
        self.0 & Self::RESOLVED != 0
    }

    /// [`BackendFlags::plain`].
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 & Self::PLAIN != 0
    }

    /// Whether the packet goes as it is, but for its MAC addresses.
    #[inline(always)]
    pub const fn is_l2_dsr(self) -> bool {
        self.0 & 3 << Self::FORWARDING_SHIFT == (Forwarding::L2Dsr as u64) << Self::FORWARDING_SHIFT
    }

    /// [`BackendFlags::forwarding`].
    #[inline(always)]
    pub const fn forwarding(self) -> Forwarding {
        match (self.0 >> Self::FORWARDING_SHIFT) & 3 {
            0 => Forwarding::L2Dsr,
            1 => Forwarding::Ipip,
            2 => Forwarding::Gue,
            _ => Forwarding::Nat,
        }
    }
}

impl Backend {
    /// The next hop that a word of this backend puts in force.
    #[inline(always)]
    pub const fn hop(&self, word: BackendWord) -> &NextHop {
        &self.hops[(word.0 / BackendWord::SECOND_HOP) as usize & 1]
    }

    /// The word as it is now.
    #[inline(always)]
    pub fn load(&self) -> BackendWord {
        BackendWord(self.word.load())
    }
}

/// The word [`Backend::noted`] with tunnels: the MTU that a router on the way told of, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// Bytes the largest IP packet may have; 0 if none told.
    pub mtu: u16,
    /// When that was.
    pub told: Tick,
}

impl PathMtu {
    /// Ticks after which a larger packet is tried again: RFC 1191 section 6.3 recommends ten minutes.
    const LIFE_TICKS: u32 = 600;

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { mtu: (word >> 32) as u16, told: Tick(word as u32) }
    }

    /// The word for the map.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.mtu as u64) << 32 | self.told.0 as u64
    }

    /// The smaller of this MTU, while it is fresh, and another; 0 is none.
    #[inline(always)]
    pub const fn with(self, mtu: u16, now: Tick) -> u16 {
        let fresh = self.mtu != 0 && now.since(self.told.0) <= Self::LIFE_TICKS;
        if fresh && (mtu == 0 || self.mtu < mtu) { self.mtu } else { mtu }
    }
}

/// The word [`Backend::noted`] with `nat`: when a new flow found no port to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPort(pub Tick);

impl NoPort {
    /// Tells the word from [`PathMtu`]'s and from none.
    const NOTED: u64 = 1 << 63;

    /// The word for the map.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        Self::NOTED | self.0.0 as u64
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
    /// Tunnels: the outer source. `nat`: the source where [`super::Control`] names none. Of the server's family; all zero if
    /// it is not known.
    pub source: Address,
    /// The bits of the source's last word that are filled by flow, as they lie in memory: those a prefix leaves free.
    pub source_mask: u32,
    /// Bytes the largest IP packet on the way there may have; 0 if any.
    pub mtu: u16,
    /// VLAN id that frames there must carry, or [`NextHop::UNTAGGED`]; 0 leaves their tags as they are.
    pub vlan: u16,
    /// To a multiple of eight.
    pub padding: [u8; 8],
}

impl NextHop {
    /// The value of [`NextHop::vlan`] for frames that must carry no tag.
    pub const UNTAGGED: u16 = 0x1000;

    /// Whether frames without a tag go there without one.
    pub const fn takes_untagged(&self) -> bool {
        self.vlan & !Self::UNTAGGED == 0
    }

    /// The next hop with these MAC addresses, and no word on source, MTU and VLAN.
    pub const fn new(destination: [u8; 6], source: [u8; 6], interface: u32) -> Self {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            rest: u32::from_ne_bytes([i, j, k, l]),
            interface,
            source: Address::ZERO,
            source_mask: 0,
            mtu: 0,
            vlan: 0,
            padding: [0; 8],
        }
    }

    /// Destination and source MAC address.
    pub const fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let [a, b, c, d, e, f, g, h] = self.first.to_ne_bytes();
        let [i, j, k, l] = self.rest.to_ne_bytes();
        ([a, b, c, d, e, f], [g, h, i, j, k, l])
    }
}
