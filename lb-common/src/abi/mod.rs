//! What the kernel's program and the agent share: map names, limits, and the records in the maps.
//!
//! Records are `repr(C)` of fixed-size integers with named padding. What the agent changes while packets are read is
//! one aligned word and an atomic; everything else is written before it is published, and not touched again until no
//! packet can see it.

mod backend;
mod capture;
mod control;
mod counters;
mod decap;
mod exact;
mod latency;
mod probe;
mod service;
mod vips;
mod word;

pub use backend::{Backend, BackendFlags, BackendWord, Forwarding, NextHop, NoPort, PathMtu};
pub use capture::{
    CAPTURE_STAGES, CaptureControl, CaptureCounts, CaptureRecord, CaptureSeen, MAX_SNAP, NO_SERVICE,
    capture_map,
};
pub use control::{
    Control, Interface, MAC_MASK, Moving, NatPorts, Settings, VipTable, interface_slot, mac_word,
};
pub use counters::{Traffic, Verdicts};
pub use decap::{DecapControl, DecapRoles, SourcePrefix, decap_map};
pub use exact::{
    FragmentRoute, MIN_TRANSLATION_BUCKETS, ReturnPath, TRANSLATION_WAYS, TRANSLATIONS_A_BUCKET, Translation,
    TranslationBucket, TranslationLine, TranslationState, TupleKey,
};
pub(crate) use exact::{KEY_WORDS, REPLY_TRANSLATION, TRANSLATION_WORDS, V4_KEY, V4_WORDS};
pub use latency::{LATENCY_BUCKETS, Latency};
pub use probe::{PROBE_MARK, PROBE_MARK_MASK, ProbeTarget, probe_map};
pub use service::{Ring, Service, ServiceWord};
pub use vips::{SNAT_MARK, VipBucket, VipFlags, VipSlot, vip_key};
pub use word::Word;

use crate::datapath::Stage;

/// Grows with every change of a record, a map or what a hash yields. Pinned state of another version is not adopted.
pub const ABI_VERSION: u32 = 7;

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
    /// One [`Verdicts`](super::Verdicts), per CPU: all but `forward`, which is the sum of all traffic.
    pub const VERDICTS: &str = "verdicts";
    /// [`Traffic`](super::Traffic) of backends that are gone, by service id, per CPU; the last entry is that of services
    /// that are gone. Only the agent writes it.
    pub const SERVICE_TRAFFIC: &str = "service_traffic";
    /// [`Traffic`](super::Traffic) by backend id, per CPU.
    pub const BACKEND_TRAFFIC: &str = "backend_traffic";
    /// [`OPENING_SLOTS`](super::OPENING_SLOTS) words: which flows are being opened, and since when.
    pub const OPENINGS: &str = "openings";
    /// [`Latency`](super::Latency) of backends that are gone, by service id. Only the agent writes it.
    pub const SERVICE_LATENCY: &str = "service_latency";
    /// [`Latency`](super::Latency) by backend id.
    pub const BACKEND_LATENCY: &str = "backend_latency";
    /// [`Name`](super::Name) by service id; only the agent reads it.
    pub const SERVICE_NAMES: &str = "service_names";
    /// [`Name`](super::Name) by backend id; only the agent reads it.
    pub const BACKEND_NAMES: &str = "backend_names";
    /// [`TranslationBucket`](super::TranslationBucket)s: two translations for a connection.
    pub const TRANSLATIONS: &str = "translations";
    /// [`FragmentRoute`](super::FragmentRoute)s by [`TupleKey`](super::TupleKey); the least recently used go first.
    pub const FRAGMENTS: &str = "fragments";
    /// [`SENDER_SLOTS`](super::SENDER_SLOTS) words: how many of a sender's packets were answered with "too big" in a tick, in the lowest 16
    /// bits, and in the uppermost the tick's lower ones. The program's.
    pub const SENDERS: &str = "senders";
    /// The programs of the stages, by [`Stage`](crate::datapath::Stage).
    pub const STAGES: &str = "stages";
    /// All of them.
    pub const ALL: [&str; 18] = [
        CONTROL,
        VIPS,
        SERVICES,
        BACKENDS,
        RINGS,
        FLOWS,
        VERDICTS,
        SERVICE_TRAFFIC,
        BACKEND_TRAFFIC,
        OPENINGS,
        SERVICE_LATENCY,
        BACKEND_LATENCY,
        SERVICE_NAMES,
        BACKEND_NAMES,
        TRANSLATIONS,
        FRAGMENTS,
        SENDERS,
        STAGES,
    ];
}

/// Tables whose address is in the programs themselves. Each of their maps has one value, which is all records of the table.
///
/// The object has numbers in their place, each in an instruction that loads 64 bits. Whoever has it loaded puts there what they stand
/// for: address (`BPF_PSEUDO_MAP_VALUE`), or how many records there are.
pub mod direct {
    use super::map;

    /// The maps.
    pub const ALL: [&str; 5] = [map::CONTROL, map::VIPS, map::SERVICES, map::BACKENDS, map::FLOWS];
    /// Place of [`Control`](super::Control) in [`ALL`].
    pub const CONTROL: u64 = 0;
    /// Place of the [`VipBucket`](super::VipBucket)s.
    pub const VIPS: u64 = 1;
    /// Place of the [`Service`](super::Service)s.
    pub const SERVICES: u64 = 2;
    /// Place of the [`Backend`](super::Backend)s.
    pub const BACKENDS: u64 = 3;
    /// Place of the [`FlowBucket`](super::FlowBucket)s.
    pub const FLOWS: u64 = 4;
    /// With a place in it, what stands for a table's address.
    pub const ADDRESS: u64 = 0x5175_1ce1_add4_e500;
    /// With a place in it, what stands for the number of a table's records.
    pub const RECORDS: u64 = 0x5175_1ce1_4ec0_4d00;
    /// The bits of the place.
    pub const PLACE: u64 = 0xff;
}

/// Name of the main program in the object and under the pin directory.
pub const PROGRAM: &str = "prog";
/// Names of the programs that the main one goes on with, in the object and under the pin directory, by their place in the map
/// `stages`.
pub const STAGE_PROGRAMS: [(&str, Stage); 8] = [
    ("rare", Stage::Rare),
    ("icmp", Stage::Icmp),
    ("icmp_error", Stage::IcmpError),
    ("nat", Stage::Nat),
    ("nat_return", Stage::NatReturn),
    ("nat_new", Stage::NatNew),
    ("nat_error", Stage::NatError),
    ("answer", Stage::Answer),
];
/// Names of all programs that are pinned.
pub fn programs() -> impl Iterator<Item = &'static str> {
    [PROGRAM, CLOCK_PROGRAM].into_iter().chain(STAGE_PROGRAMS.map(|(name, _)| name))
}

/// Room in the map `stages`: for those of the load balancer, and from [`CAPTURE_STAGES`] on for those that capture.
pub const STAGE_SLOTS: u32 = 32;
/// Name of the program that tells the time of the flow table's clock, in the object and under the pin directory.
pub const CLOCK_PROGRAM: &str = "clock";
/// Name of the decapsulating program in its object, which is not the main program's.
pub const DECAP_PROGRAM: &str = "decap";
/// Names of the programs that send health checks through the forwarding path and take their answers, in their object.
pub const PROBE_PROGRAMS: [&str; 2] = ["probe_out", "probe_in"];
/// Connections of health checks through the forwarding path that are known at once; the least recently used go first.
pub const PROBE_CONNECTIONS: u32 = 16_384;
/// Outer sources that `sluice decap` may be told of.
pub const MAX_DECAP_SOURCES: u32 = 64;
/// Buckets of one half of the table of addresses that `sluice decap` looks things up in: a power of two.
pub const DECAP_BUCKETS: u32 = 1_024;
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
/// UDP port that GUE packets are sent to (IANA "gue").
pub const GUE_PORT: u16 = 6_080;
/// IPv6 extension headers that are stepped over.
pub const MAX_EXTENSION_HEADERS: usize = 6;
/// Datagrams whose fragments are under way at the same time.
pub const FRAGMENTED_DATAGRAMS: u32 = 16_384;
/// ICMP answers of a kind that are sent in a tick, by all CPUs together: echo replies, and "time exceeded".
pub const ICMP_PER_TICK: u16 = 1_000;
/// The same of "too big": on each of them a connection waits.
pub const TOO_BIG_PER_TICK: u16 = 32_000;
/// Of these, those that go to one sender: to who has many hosts behind an address, and not all to a flood.
pub const TOO_BIG_PER_SENDER: u16 = 128;
/// Places that senders are told apart by.
pub const SENDER_SLOTS: u32 = 4_096;
/// Timed openings that are under way at the same time; a later one may take an earlier one's place.
pub const OPENING_SLOTS: u32 = 8_192;
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
/// Connections that `nat` holds at once, at least.
pub const MIN_NAT_CONNECTIONS: u32 = 1 << 10;
/// Connections that `nat` holds at once, at most.
pub const MAX_NAT_CONNECTIONS: u32 = 1 << 22;
/// Source addresses and prefixes of one family at most.
pub const MAX_SOURCES: usize = 16;

/// A bucket of the flow table: eight [`crate::flow::Entry`]s in a cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// Words of [`crate::flow::Entry`]; 0 is empty.
    pub ways: [Word; FLOW_WAYS],
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
    Control: 960 {
        abi_version: 0, vip_table: 8, flow_buckets: 16, flow_key: 28, ring_key: 68, settings: 108, nat_ports: 112,
        timed_openings: 116, translation_buckets: 120, icmp_budget: 128, snat_counts: 136, sources: 144, moving: 176,
        snat_v4: 192, snat_v6: 448, interfaces: 704
    }
    Interface: 16 { mac: 0, index: 8 }
    VipSlot: 32 { address: 0, key: 16, service: 20, flags: 22 }
    VipBucket: 64 { slots: 0 }
    Service: 8 { word: 0 }
    Backend: 128 { word: 0, noted: 8, address: 16, hops: 32 }
    NextHop: 48 { first: 0, rest: 8, interface: 12, source: 16, source_mask: 32, mtu: 36, vlan: 38 }
    Ring: 131_080 { slots: 0 }
    FlowBucket: 64 { ways: 0 }
    Traffic: 64 { packets: 0, bytes: 8, new_flows: 16, opened: 24, repeated: 32, answered: 40, fins: 48, resets: 56 }
    Latency: 168 { sum: 0, buckets: 8 }
    Verdicts: 544 { packets: 0, evictions: 512 }
    Name: 64 { bytes: 0 }
    TupleKey: 40 { source: 0, destination: 16, ports: 32, protocol: 36 }
    Translation: 64 { source: 0, destination: 16, ports: 32, backend: 36, path: 40 }
    TranslationLine: 128 { words: 0 }
    TranslationBucket: 1_024 { lines: 0 }
    FragmentRoute: 64 { source: 0, destination: 16, tick: 32, service: 36, backend: 38, first: 40, rest: 48, vlan: 56 }
    ProbeTarget: 64 { vip: 0, address: 16, backend: 32, sent: 40, answered: 48 }
    CaptureControl: 8_272 {
        until: 0, verdicts: 8, service: 16, by_backend: 24, snap: 32, sample: 36, network: 40, mask: 56, port: 72, backends: 80
    }
    CaptureSeen: 80 { source: 0, destination: 16, other_source: 32, other_destination: 48, ports: 64, service: 72, backend: 76 }
    CaptureCounts: 32 { seen: 0, wanted: 8, lost: 16 }
    CaptureRecord: 56 {
        time: 0, verdict: 8, action: 12, ingress: 16, egress: 20, service: 24, backend: 28, before_length: 32, after_length: 36,
        before_bytes: 40, after_bytes: 44, new_flow: 48
    }
    DecapControl: 16 { first_bucket: 0, sources: 8 }
    SourcePrefix: 32 { address: 0, mask: 16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, Be16};

    #[test]
    fn words_survive_the_round_trip() {
        for bits in 0..256_u16 {
            let bit = |n: u16| bits & (1 << n) != 0;
            let backend = BackendFlags {
                used: bit(0),
                enabled: bit(1),
                healthy: bit(2),
                probed_healthy: bit(5),
                takes_new: bit(6),
                resolved: bit(3),
                plain: bit(7),
                second_hop: bit(4),
                forwarding: [Forwarding::L2Dsr, Forwarding::Ipip, Forwarding::Gue, Forwarding::Nat]
                    [usize::from(bits % 4)],
                service: bits * 250,
                port: Be16::new(bits * 250),
            };
            assert_eq!(BackendWord::new(backend).flags(), backend);
            let service = ServiceWord { used: bit(0), ring: bit(1).then_some(bits * 250) };
            assert_eq!(ServiceWord::from_word(service.to_word()), service);
            let vips = VipTable {
                first_bucket: u32::from(bits) << 10,
                any_port: bit(1),
                nat: bit(2),
                never_snat: bits << 9,
            };
            assert_eq!(VipTable::from_word(vips.to_word()), vips);
        }
    }

    #[test]
    fn replies_are_looked_up_for_kinds_of_addresses_that_packets_are_sent_from() {
        let [sent, like, other] = [[10, 9, 0, 2], [10, 8, 7, 18], [10, 9, 0, 3]].map(Address::v4);
        let table = VipTable { nat: true, never_snat: !VipTable::kind(sent), ..VipTable::default() };
        assert_eq!([sent, like, other].map(|address| table.may_be_snat(address)), [true, true, false]);
        assert!(!VipTable { nat: false, ..table }.may_be_snat(sent));
        // As written by who does not know of kinds.
        assert!(VipTable { never_snat: 0, ..table }.may_be_snat(other));
    }

    #[test]
    fn names_are_cut_not_split() {
        assert_eq!(Name::new("web1").as_str(), "web1");
        assert_eq!(Name::new("").as_str(), "");
        assert_eq!(Name::new(&"x".repeat(80)).as_str().len(), 63);
    }
}
