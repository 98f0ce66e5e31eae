//! Settings for the whole datapath, and the word that puts one half of the VIP table in force.

use super::{MAX_INTERFACES, Word};
use crate::hash::Key;

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
    /// To the end of the cache line.
    pub padding: [u8; 20],
    /// Where the program is attached, each entry at the first free [`interface_slot`] of its index.
    pub interfaces: [Interface; MAX_INTERFACES],
}

/// The word [`Control::vip_table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipTable {
    /// Index of the first bucket of the half in force: 0, or the number of buckets in a half.
    pub first_bucket: u32,
    /// Whether a VIP of port 0 exists: else the second lookup is spared.
    pub any_port: bool,
}

impl VipTable {
    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { first_bucket: word as u32, any_port: word >> 32 != 0 }
    }

    /// The word for the map.
    pub const fn to_word(self) -> u64 {
        self.first_bucket as u64 | (self.any_port as u64) << 32
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
