//! Settings for the whole datapath, and the word that puts one half of the VIP table in force.

use super::{MAX_INTERFACES, MAX_SOURCES, Word};
use crate::datapath::TimedOpenings;
use crate::hash::Key;
use crate::net::Address;

/// Settings for the whole datapath.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Control {
    /// [`ABI_VERSION`]; written last when the maps are new, so 0 means unfinished.
    pub abi_version: Word,
    /// Which half of the VIP table is in force: see [`VipTable`].
    pub vip_table: Word,
    /// Buckets of the flow table.
    pub flow_buckets: u32,
    /// Buckets in one half of the VIP table: a power of two.
    pub vip_buckets: u32,
    /// A tick is `jiffies >> tick_shift`, about a second: see [`crate::flow::Tick`].
    pub tick_shift: u32,
    /// Key of the flow table's hash: random, drawn with the table, so that nobody outside can aim at a bucket.
    pub flow_key: Key,
    /// Key of the ring's hash, expanded from the configuration's `ring_seed`: the same on all nodes.
    pub ring_key: Key,
    /// See [`Settings`].
    pub settings: Settings,
    /// `nat`: the ports that translated packets are sent from.
    pub nat_ports: NatPorts,
    /// Which openings are timed.
    pub timed_openings: TimedOpenings,
    /// `nat`: buckets of the table of translations.
    pub translation_buckets: u32,
    /// To the end of the cache line.
    pub padding: [u8; 4],
    /// ICMP answers sent in a tick, 16 bits each: in the lowest the number of echo replies, then of "too big", of "time exceeded", and in the
    /// uppermost the tick's lower bits. The program's.
    pub icmp_budget: Word,
    /// `nat`: how many of `snat_v4` and of `snat_v6` there are.
    pub snat_counts: [u32; 2],
    /// Sources for where the next hop names none, by family: IPv4, IPv6. All zero if there is none.
    pub sources: [Address; 2],
    /// How far a change of the tables' sizes has come: see [`Moving`].
    pub moving: Word,
    /// To the end of the cache line.
    pub more_padding: [u8; 8],
    /// `nat`: addresses that translated IPv4 packets are sent from, filled from the front.
    pub snat_v4: [Address; MAX_SOURCES],
    /// The same for IPv6.
    pub snat_v6: [Address; MAX_SOURCES],
    /// Where the program is attached, each entry at the first free [`interface_slot`] of its index.
    pub interfaces: [Interface; MAX_INTERFACES],
}

/// The word [`Control::moving`]: whether flows are being carried to tables of another size. Two programs see packets then, first
/// the one with the former tables, then the one with the new ones, to which what was written to the former ones follows a little later.
/// Meanwhile neither may write what makes the other's tables wrong: who opens a connection on the ports of a former one stays with its
/// backend, if that is healthy, and its translation; and each program has ports of its own for new translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Moving {
    /// No.
    No = 0,
    /// Out of these tables.
    Out = 1,
    /// Into these tables. What they do not know of translations is left to the former program.
    In = 2,
}

/// The word [`Control::vip_table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipTable {
    /// Index of the first bucket of the half in force: 0, or the number of buckets in a half.
    pub first_bucket: u32,
    /// Whether a VIP of port 0 exists: else the second lookup is spared.
    pub any_port: bool,
    /// Whether a service is translated: else the lookup of replies is spared.
    pub nat: bool,
    /// For which addresses it is spared even then, a bit each by [`VipTable::kind`]: none of that kind is one that translated packets
    /// are sent from.
    pub never_snat: u16,
}

impl Control {
    /// Whether tables are changing their size.
    #[inline(always)]
    pub fn is_moving(&self) -> bool {
        self.moving.load() != Moving::No as u64
    }

    /// Whether the former program may know what these tables do not.
    #[inline(always)]
    pub fn is_moving_in(&self) -> bool {
        self.moving.load() == Moving::In as u64
    }
}

impl VipTable {
    const ANY_PORT: u64 = 1 << 32;
    const NAT: u64 = 1 << 33;
    const NEVER_SNAT_SHIFT: u32 = 48;

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            first_bucket: word as u32,
            any_port: word & Self::ANY_PORT != 0,
            nat: word & Self::NAT != 0,
            never_snat: (word >> Self::NEVER_SNAT_SHIFT) as u16,
        }
    }

    /// The bit of an address in [`VipTable::never_snat`], by four bits of its last byte.
    #[inline(always)]
    pub const fn kind(address: Address) -> u16 {
        1 << (address.words()[3] >> 24 & 15)
    }

    /// Whether translated packets may be sent from this address.
    #[inline(always)]
    pub const fn may_be_snat(self, address: Address) -> bool {
        self.nat && self.never_snat & Self::kind(address) == 0
    }

    /// The word for the map.
    pub const fn to_word(self) -> u64 {
        let any_port = if self.any_port { Self::ANY_PORT } else { 0 };
        let never_snat = (self.never_snat as u64) << Self::NEVER_SNAT_SHIFT;
        self.first_bucket as u64 | any_port | if self.nat { Self::NAT } else { 0 } | never_snat
    }
}

/// Choices for the whole datapath: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Settings(u32);

impl Settings {
    const REPLY_OVERSIZED: u32 = 1;

    /// `reply_oversized`: whether the sender of an IPv4 packet that does not fit and may be fragmented is told, too.
    pub const fn new(reply_oversized: bool) -> Self {
        Self(if reply_oversized { Self::REPLY_OVERSIZED } else { 0 })
    }

    /// Whether the sender of an IPv4 packet that does not fit and may be fragmented is told, too.
    #[inline(always)]
    pub const fn reply_oversized(self) -> bool {
        self.0 & Self::REPLY_OVERSIZED != 0
    }
}

/// The ports that translated packets are sent from: from [`NatPorts::FIRST`] on, but for those that the host gives to its own
/// connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NatPorts {
    /// The first port of the host's own range.
    pub hole: u16,
    /// How many ports that range has.
    pub hole_size: u16,
}

impl NatPorts {
    /// Ports below are left to the host's services.
    pub const FIRST: u16 = 1_024;
    /// Fewer ports than this are too few.
    const LEAST: u16 = 8_192;

    /// All ports from [`NatPorts::FIRST`] on but those from one to another, both included. Where these are nearly all, they are
    /// shared: a host without ports of its own is no use.
    pub const fn around(first: u16, last: u16) -> Self {
        let first = if first < Self::FIRST { Self::FIRST } else { first };
        if last < first || last - first > u16::MAX - Self::FIRST - Self::LEAST {
            return Self { hole: 0, hole_size: 0 };
        }
        Self { hole: first, hole_size: last - first + 1 }
    }

    /// How many ports there are.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        (1 << 16) - Self::FIRST as u32 - self.hole_size as u32
    }

    /// The port with this number, which is below the count.
    #[inline(always)]
    pub const fn port(self, number: u32) -> u16 {
        let port = Self::FIRST as u32 + number;
        (if port < self.hole as u32 || self.hole_size == 0 { port } else { port + self.hole_size as u32 })
            as u16
    }
}

/// An attached interface.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Interface {
    /// The interface's own MAC address in the low 48 bits, as the first eight bytes of a frame to it would be loaded.
    pub mac: Word,
    /// The kernel's index of the interface; 0 for none.
    pub index: Word,
}

/// Masks the MAC address out of the first eight bytes of a frame, loaded little-endian.
pub const MAC_MASK: u64 = 0x0000_ffff_ffff_ffff;

/// A MAC address as [`Interface::mac`] holds it.
pub fn mac_word(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The place in [`Control::interfaces`] where the interface with this index is looked for at the `probe`th time. An entry
/// with index 0 ends the search.
#[inline(always)]
pub const fn interface_slot(index: u32, probe: usize) -> usize {
    (index as usize).wrapping_add(probe) & (MAX_INTERFACES - 1)
}

const _: () = assert!(MAX_INTERFACES.is_power_of_two());
