//! What the kernel's program and the agent share: map names, limits, and the records in the maps.
//!
//! Records are `repr(C)` of fixed-size integers with named padding. What the agent changes while packets are read is
//! one aligned word and an atomic; everything else is written before it is published, and not touched again until no
//! packet can see it.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

use crate::hash::Key;
use crate::net::{Address, Be16, Protocol};
use crate::verdict::VERDICT_SLOTS;

/// Grows with every change of a record, a map or what a hash yields. Pinned state of another version is not adopted.
pub const ABI_VERSION: u32 = 1;

/// Names of the maps, in the object and under `PIN_DIR/maps`.
pub mod map {
    /// One [`Control`](super::Control).
    pub const CONTROL: &str = "control";
    /// Two halves of [`VipBucket`](super::VipBucket)s, of which one is in force.
    pub const VIPS: &str = "vips";
    /// [`Service`](super::Service)s by id.
    pub const SERVICES: &str = "services";
    /// [`Backend`](super::Backend)s by id.
    pub const BACKENDS: &str = "backends";
    /// [`Ring`](super::Ring)s by slot.
    pub const RINGS: &str = "rings";
    /// The flow table: [`FlowBucket`](super::FlowBucket)s.
    pub const FLOWS: &str = "flows";
    /// One [`Verdicts`](super::Verdicts), per CPU.
    pub const VERDICTS: &str = "verdicts";
    /// [`Traffic`](super::Traffic) by service id, per CPU.
    pub const SERVICE_TRAFFIC: &str = "service_traffic";
    /// [`Traffic`](super::Traffic) by backend id, per CPU.
    pub const BACKEND_TRAFFIC: &str = "backend_traffic";
    /// [`Name`](super::Name) by service id; only the agent reads it.
    pub const SERVICE_NAMES: &str = "service_names";
    /// [`Name`](super::Name) by backend id; only the agent reads it.
    pub const BACKEND_NAMES: &str = "backend_names";
    /// All of them.
    pub const ALL: [&str; 11] = [
        CONTROL,
        VIPS,
        SERVICES,
        BACKENDS,
        RINGS,
        FLOWS,
        VERDICTS,
        SERVICE_TRAFFIC,
        BACKEND_TRAFFIC,
        SERVICE_NAMES,
        BACKEND_NAMES,
    ];
}

/// Name of the main program in the object and under the pin directory.
pub const PROGRAM: &str = "prog";
/// Name of the program that tells the time of the flow table's clock, in the object and under the pin directory.
pub const CLOCK_PROGRAM: &str = "clock";
/// Name of the object's switch for the log of every packet's verdict (aya-log); 0 turns it into dead code.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// Entries of a ring: a prime (Maglev needs one), 1 above 2¹⁶ so that a thousand backends share within 2 %.
pub const RING_SIZE: usize = 65_537;
/// Flow entries in a bucket: one cache line of 64-bit words.
pub const FLOW_WAYS: usize = 8;
/// VIPs in a bucket: one cache line.
pub const VIP_WAYS: usize = 2;
/// Buckets a VIP may lie away from where its hash points. The agent builds the table so.
pub const VIP_PROBES: u32 = 8;
/// Interfaces the program may be attached to.
pub const MAX_INTERFACES: usize = 16;
/// Services at most; ids are `0..MAX_SERVICES`.
pub const MAX_SERVICES: u32 = 4_096;
/// Backends of all services at most; ids are `1..=MAX_BACKENDS`, 0 is none.
pub const MAX_BACKENDS: u32 = 65_534;
/// Bytes by which a frame may grow on its way, at most.
pub const HEADROOM: usize = 256;
/// Flows in the flow table at least.
pub const MIN_FLOWS: u32 = 1 << 12;
/// Flows in the flow table at most (512 MiB).
pub const MAX_FLOWS: u32 = 1 << 26;

/// A 64-bit word that the agent and the program read and write while the other does: it cannot tear.
///
/// BPF's word loads and stores are single instructions, but LLVM knows them as atomics only from `cpu=v4` on; so there
/// they are volatile accesses.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// A word of this value.
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// The value as it is now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        #[cfg(target_arch = "bpf")]
        // SAFETY: the pointer is that of a live, aligned word.
        return unsafe { self.0.as_ptr().read_volatile() };
        #[cfg(not(target_arch = "bpf"))]
        self.0.load(Relaxed)
    }

    /// Replaces the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as above; all who share the word use this type.
        return unsafe { self.0.as_ptr().write_volatile(value) };
        #[cfg(not(target_arch = "bpf"))]
        self.0.store(value, Relaxed)
    }

    /// Replaces the value if it still is `current`; says whether it was.
    #[cfg(not(target_arch = "bpf"))]
    pub fn replace(&self, current: u64, new: u64) -> bool {
        self.0.compare_exchange(current, new, Relaxed, Relaxed).is_ok()
    }
}

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
    /// Buckets in one half of the VIP table.
    pub vip_buckets: u32,
    /// A tick is `jiffies >> tick_shift`, about a second: see [`crate::flow::Tick`].
    pub tick_shift: u32,
    /// Key of the flow table's hash: random, drawn with the table, so that nobody outside can aim at a bucket.
    pub flow_key: Key,
    /// Key of the ring's hash, expanded from the configuration's `ring_seed`: the same on all nodes.
    pub ring_key: Key,
    /// To the end of the cache line.
    pub padding: [u8; 20],
    /// Where the program is attached; the first entry with index 0 ends the list.
    pub interfaces: [Interface; MAX_INTERFACES],
}

/// The word [`Control::vip_table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipTable {
    /// The half in force.
    pub second_half: bool,
    /// Whether a VIP of port 0 exists: else the second lookup is spared.
    pub any_port: bool,
}

impl VipTable {
    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { second_half: word & 1 != 0, any_port: word & 2 != 0 }
    }

    /// The word for the map.
    pub const fn to_word(self) -> u64 {
        self.second_half as u64 | (self.any_port as u64) << 1
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

/// One VIP, port and protocol, and the service it belongs to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VipSlot {
    /// The virtual address.
    pub address: Address,
    /// The service's id.
    pub service: u32,
    /// The port; 0 for every port.
    pub port: Be16,
    /// IP protocol number. ICMP marks that the address is a VIP at all.
    pub protocol: u8,
    /// 1 if the slot holds a VIP, 0 if it is empty.
    pub used: u8,
    /// To half a cache line.
    pub padding: [u8; 8],
}

impl VipSlot {
    /// Whether this slot holds this VIP.
    #[inline(always)]
    pub fn is(&self, address: Address, port: Be16, protocol: Protocol) -> bool {
        self.used != 0 && self.address == address && self.port == port && self.protocol == protocol.0
    }
}

/// Two VIPs: a cache line. An empty slot ends the search.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct VipBucket {
    /// Filled from the front.
    pub slots: [VipSlot; VIP_WAYS],
}

/// A service: one [`ServiceWord`], replaced as a whole.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Service {
    /// See [`ServiceWord`].
    pub word: Word,
}

/// The word [`Service::word`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceWord {
    /// Whether the id is taken.
    pub used: bool,
    /// Slot of the ring in force; none if no backend may take new flows.
    pub ring: Option<u16>,
}

impl ServiceWord {
    const USED: u64 = 1;
    const HAS_RING: u64 = 2;

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            used: word & Self::USED != 0,
            ring: if word & Self::HAS_RING != 0 { Some((word >> 16) as u16) } else { None },
        }
    }

    /// The word for the map.
    pub const fn to_word(self) -> u64 {
        let used = if self.used { Self::USED } else { 0 };
        let ring = match self.ring {
            Some(slot) => Self::HAS_RING | (slot as u64) << 16,
            None => 0,
        };
        used | ring
    }
}

impl Service {
    /// The word as it is now.
    #[inline(always)]
    pub fn load(&self) -> ServiceWord {
        ServiceWord::from_word(self.word.load())
    }
}

/// A backend: everything its packets need, in one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Backend {
    /// See [`BackendWord`].
    pub word: Word,
    /// Two next hops of which the word names the one in force: the other may be rewritten.
    pub hops: [NextHop; 2],
    /// To the end of the cache line.
    pub padding: [u8; 24],
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
    /// Healthy, or standing in for healthy ones: flows without a connection to lose may stay here.
    pub healthy: bool,
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

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            used: word & Self::USED != 0,
            enabled: word & Self::ENABLED != 0,
            healthy: word & Self::HEALTHY != 0,
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

/// A ring: the backend id of every slot.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Ring {
    /// Backend ids.
    pub slots: [u16; RING_SIZE],
}

/// A bucket of the flow table: eight [`crate::flow::Entry`]s in a cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// Words of [`crate::flow::Entry`]; 0 is empty.
    pub ways: [Word; FLOW_WAYS],
}

/// What went to a service or a backend.
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

/// Packets by [`crate::verdict::Verdict`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Verdicts {
    /// Packets, by [`crate::verdict::Verdict::index`].
    pub packets: [u64; VERDICT_SLOTS],
}

/// A service's or backend's name: up to 63 bytes of UTF-8, then zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// The bytes.
    pub bytes: [u8; 64],
}

impl Name {
    /// From a text of at most 63 bytes; a longer one is cut.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 64];
        for (byte, from) in bytes.iter_mut().take(63).zip(text.bytes()) {
            *byte = from;
        }
        Self { bytes }
    }

    /// The text; empty if the record is.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

macro_rules! assert_layout {
    ($($record:ty: $size:literal { $($field:ident: $offset:literal),* })*) => {
        $(
            const _: () = assert!(size_of::<$record>() == $size);
            $(const _: () = assert!(core::mem::offset_of!($record, $field) == $offset);)*
        )*
    };
}

assert_layout! {
    Control: 384 { abi_version: 0, vip_table: 8, flow_buckets: 16, flow_key: 28, ring_key: 68, interfaces: 128 }
    Interface: 16 { mac: 0, index: 8 }
    VipSlot: 32 { address: 0, service: 16, port: 20, protocol: 22, used: 23 }
    VipBucket: 64 { slots: 0 }
    Service: 8 { word: 0 }
    Backend: 64 { word: 0, hops: 8 }
    NextHop: 16 { first: 0, rest: 8, interface: 12 }
    Ring: 131_080 { slots: 0 }
    FlowBucket: 64 { ways: 0 }
    Traffic: 32 { packets: 0, bytes: 8, new_flows: 16 }
    Verdicts: 256 { packets: 0 }
    Name: 64 { bytes: 0 }
}

/// Lets aya read and write the records that go through map system calls.
#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` of plain integers without padding between them; every bit pattern is a value.
    unsafe impl aya::Pod for super::Traffic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Verdicts {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_round_trip() {
        for bits in 0..64_u16 {
            let bit = |n: u16| bits & (1 << n) != 0;
            let backend = BackendWord {
                used: bit(0),
                enabled: bit(1),
                healthy: bit(2),
                resolved: bit(3),
                second_hop: bit(4),
                forwarding: Forwarding::L2Dsr,
                service: bits * 1000,
            };
            assert_eq!(BackendWord::from_word(backend.to_word()), backend);
            let service = ServiceWord { used: bit(0), ring: bit(1).then_some(bits * 999) };
            assert_eq!(ServiceWord::from_word(service.to_word()), service);
            let vips = VipTable { second_half: bit(0), any_port: bit(1) };
            assert_eq!(VipTable::from_word(vips.to_word()), vips);
        }
    }

    #[test]
    fn names_are_cut_not_split() {
        assert_eq!(Name::new("web1").as_str(), "web1");
        assert_eq!(Name::new("").as_str(), "");
        assert_eq!(Name::new(&"x".repeat(80)).as_str().len(), 63);
    }
}
