//! The VIP table: (VIP, port, protocol) → service id.

use super::VIP_WAYS;
use crate::net::{Address, Be16, Protocol};

/// One VIP, port and protocol, and the service it belongs to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VipSlot {
    /// The virtual address.
    pub address: Address,
    /// Port, protocol and family: see [`vip_key`]. 0 marks an empty slot.
    pub key: u32,
    /// The service's id.
    pub service: u16,
    /// What the service's packets need beyond a backend: [`VipFlags`].
    pub flags: VipFlags,
    /// To half a cache line.
    pub padding: [u8; 8],
}

/// Port (0 for every port), protocol and the address's family as one word to compare. ICMP marks that the address is a VIP at
/// all. Never 0.
#[inline(always)]
pub const fn vip_key(address: Address, port: Be16, protocol: Protocol) -> u32 {
    port.raw() as u32 | (protocol.0 as u32) << 16 | if address.is_v4() { V4 } else { V6 }
}

const V4: u32 = 1 << 24;
const V6: u32 = 1 << 25;

/// The mark of an address that translated packets are sent from: replies to it are looked up. 253 is a protocol number that
/// no packet in use has (RFC 3692).
pub const SNAT_MARK: Protocol = Protocol(253);

/// What a service's packets need beyond a backend: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct VipFlags(u16);

impl VipFlags {
    const NAT: u16 = 1;
    const CLIENT_AFFINITY: u16 = 2;

    /// Whether packets are translated, and whether all flows of a client go to one backend.
    pub const fn new(nat: bool, client_affinity: bool) -> Self {
        Self(if nat { Self::NAT } else { 0 } | if client_affinity { Self::CLIENT_AFFINITY } else { 0 })
    }

    /// As a word.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// From that word.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether packets are translated.
    #[inline(always)]
    pub const fn nat(self) -> bool {
        self.0 & Self::NAT != 0
    }

    /// Whether all flows of a client go to one backend.
    #[inline(always)]
    pub const fn client_affinity(self) -> bool {
        self.0 & Self::CLIENT_AFFINITY != 0
    }
}

impl VipSlot {
    /// Whether this slot holds this VIP.
    #[inline(always)]
    pub fn is(&self, address: Address, key: u32) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.address.words(), address.words());
        // One branch for all: the parts match together or, mostly, not at all. The key tells the family.
        let last = (d ^ h) | (self.key ^ key);
        if address.is_v4() { last == 0 } else { (a ^ e) | (b ^ f) | (c ^ g) | last == 0 }
    }

    /// Whether the slot is empty.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.key == 0
    }

    /// The port; 0 for every port.
    pub const fn port(&self) -> Be16 {
        Be16::from_wire((self.key as u16).to_ne_bytes())
    }

    /// The protocol.
    pub const fn protocol(&self) -> Protocol {
        Protocol((self.key >> 16) as u8)
    }
}

/// Two VIPs: a cache line. An empty slot ends the search.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct VipBucket {
    /// Filled from the front.
    pub slots: [VipSlot; VIP_WAYS],
}
