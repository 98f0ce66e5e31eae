//! One frame and the tables → an action, a verdict and, perhaps, a rewritten frame.
//!
//! The pipeline is written once, over [`Packet`] and [`Tables`]: the kernel implements them over the XDP context and
//! BPF maps, userspace over a byte slice and the same maps read from outside.

mod icmp;
mod parse;
mod pick;
mod rewrite;

pub use parse::{Parsed, Transport};

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::Ipv4Hdr;
use network_types::tcp::TcpHdr;

use crate::abi::{
    Backend, Control, FlowBucket, Forwarding, MAC_MASK, MAX_INTERFACES, NextHop, Service, VIP_PROBES,
    VipBucket, VipTable, interface_slot, vip_key,
};
use crate::flow::{State, Tick};
use crate::hash;
use crate::net::{Be16, Protocol, Tuple};
use crate::verdict::Verdict;

/// A header as it lies in a frame.
///
/// # Safety
///
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Header: Copy {}

// SAFETY: `repr(C)` of bytes and 16-bit words without padding.
unsafe impl Header for EthHdr {}
// SAFETY: as above.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for TcpHdr {}
// SAFETY: as above.
unsafe impl Header for Icmpv4Hdr {}
// SAFETY: a plain integer.
unsafe impl Header for u64 {}
// SAFETY: as above.
unsafe impl Header for u32 {}
// SAFETY: plain integers.
unsafe impl<const N: usize> Header for [u32; N] {}
// SAFETY: plain bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

/// A frame: reads and writes that are checked against its bounds.
pub trait Packet {
    /// The header at `offset` bytes, unless it reaches beyond the frame.
    fn read<T: Header>(&self, offset: usize) -> Option<T>;
    /// Overwrites the bytes at `offset`; `None`, and nothing done, if they reach beyond the frame.
    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()>;
    /// Makes room for `bytes` more in front: offset 0 is then `bytes` earlier, and what lies there is undefined. `None`,
    /// and nothing done, if there is no room.
    fn grow_head(&mut self, bytes: usize) -> Option<()>;
    /// Takes `bytes` away in front; `None`, and nothing done, if the frame would not have an Ethernet header left.
    fn shrink_head(&mut self, bytes: usize) -> Option<()>;
    /// Cuts the frame to `bytes`; `None`, and nothing done, if it is shorter or would not have an Ethernet header left.
    fn truncate(&mut self, bytes: usize) -> Option<()>;
    /// Index of the interface the frame came in on.
    fn interface(&self) -> u32;
}

/// The tables of the datapath and the clock.
pub trait Tables {
    /// Settings for the whole datapath.
    fn control(&self) -> Option<&Control>;
    /// A bucket of the VIP table, by its index over both halves.
    fn vip_bucket(&self, index: u32) -> Option<&VipBucket>;
    /// A service's record.
    fn service(&self, id: u32) -> Option<&Service>;
    /// A backend's record.
    fn backend(&self, id: u16) -> Option<&Backend>;
    /// The backend id in a slot of a ring; `slot` is below [`crate::abi::RING_SIZE`].
    fn ring_slot(&self, ring: u16, slot: u32) -> Option<u16>;
    /// A bucket of the flow table.
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket>;
    /// The time.
    fn now(&self, control: &Control) -> Tick;
    /// Counts a packet that goes to no backend. Called by [`process`] alone.
    fn count(&self, verdict: Verdict);
    /// Counts a forwarded packet, once, for its backend: what a service or all of them forwarded is the sum of that.
    /// Called by [`process`] alone.
    fn count_forwarded(&self, forwarded: &Outcome);
    /// Is told each step; `explain` listens, the kernel does not.
    #[inline(always)]
    fn observe(&self, _step: Step) {}
}

/// What to do with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it to the host.
    Pass,
    /// Discard it.
    Drop,
    /// Transmit it on the interface it came from.
    Transmit,
    /// Transmit it on the interface that [`Outcome::interface`] names.
    Redirect,
}

/// How a packet leaves the pipeline. Flat, without payloads that only some variants have: on BPF those would be
/// undefined registers, which the verifier does not let be spilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to do with the frame.
    pub action: Action,
    /// What became of it, and why.
    pub verdict: Verdict,
    /// Index of the interface to transmit on; 0 for the one the packet came from.
    pub interface: u32,
    /// Id of the service it went to, if there is a backend.
    pub service: u32,
    /// Id of the backend it went to; 0 if it was not forwarded.
    pub backend: u16,
    /// Bytes by the IP header, if it was forwarded.
    pub bytes: u16,
    /// Whether the flow was given its backend just now.
    pub new_flow: bool,
}

impl Outcome {
    /// The outcome of a packet that goes to no backend.
    #[inline(always)]
    const fn without_backend(verdict: Verdict) -> Self {
        let action = match verdict {
            Verdict::Forward | Verdict::ReplyIcmpEcho => Action::Transmit,
            Verdict::DropNoBackend | Verdict::DropNoNextHop | Verdict::DropInconsistent => Action::Drop,
            Verdict::PassNotIp
            | Verdict::PassNotVip
            | Verdict::PassOtherHost
            | Verdict::PassFragment
            | Verdict::PassIcmp
            | Verdict::PassMalformedEthernet
            | Verdict::PassMalformedIpv4
            | Verdict::PassMalformedTransport => Action::Pass,
        };
        Self { action, verdict, interface: 0, service: 0, backend: 0, bytes: 0, new_flow: false }
    }
}

/// A step of the pipeline, for who wants to follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame is a packet with a flow's five fields.
    Parsed(Tuple),
    /// The destination belongs to a service: its id, and whether through a VIP of port 0.
    Classified {
        /// The service's id.
        service: u32,
        /// Found as a VIP of every port.
        any_port: bool,
    },
    /// The flow table was asked.
    FlowLookup {
        /// The bucket.
        bucket: u32,
        /// What tells the flow apart in it.
        signature: u32,
        /// Backend, state and age in ticks of the entry found.
        found: Option<(u16, State, u32)>,
    },
    /// The entry found was not followed.
    EntryRefused(Refusal),
    /// The ring was asked.
    RingLookup {
        /// The ring's slot in the ring table.
        ring: u16,
        /// The slot in the ring.
        slot: u32,
        /// The backend there.
        backend: u16,
    },
    /// The backend is chosen and its next hop known.
    NextHop {
        /// The backend's id.
        backend: u16,
        /// Where its frames go.
        hop: NextHop,
    },
}

/// Why an entry of the flow table was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its backend is gone, disabled, or of another service.
    BackendGone,
    /// Its backend is unhealthy and the packet has no connection to lose.
    BackendUnhealthy,
    /// The packet opens a connection anew, and is not a retransmission.
    OpensAnew,
}

/// Sends one frame through the datapath. Every packet leaves here, and here it is counted.
///
/// The two ways out are kept apart on purpose: joined, each of the many early exits would have to lay out a whole
/// outcome, and on BPF the path of a forwarded packet pays for that.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    match steer(packet, tables) {
        Ok(forwarded) => {
            tables.count_forwarded(&forwarded);
            forwarded
        }
        Err(verdict) => {
            tables.count(verdict);
            Outcome::without_backend(verdict)
        }
    }
}

/// parse → classify → admit → pick → rewrite. `Err` carries the verdict of a packet that goes to no backend.
#[inline(always)]
fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Verdict> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let parsed = parse::parse(packet)?;
    tables.observe(Step::Parsed(parsed.tuple));
    if parsed.tuple.protocol == Protocol::ICMP {
        return Err(icmp::answer(packet, tables, control, &parsed));
    }
    let service = classify(tables, control, &parsed)?;
    admit(packet, control, &parsed)?;
    let pick = pick::pick(tables, control, &parsed, service)?;
    let interface = match pick.word.forwarding() {
        Forwarding::L2Dsr => rewrite::l2_dsr(packet, tables, &pick)?,
    };
    Ok(Outcome {
        action: if interface == 0 { Action::Transmit } else { Action::Redirect },
        verdict: Verdict::Forward,
        interface,
        service,
        backend: pick.id,
        bytes: parsed.bytes,
        new_flow: pick.new_flow,
    })
}

/// Finds the service: by (VIP, port, protocol), then by (VIP, every port, protocol).
#[inline(always)]
fn classify<T: Tables>(tables: &T, control: &Control, parsed: &Parsed) -> Result<u32, Verdict> {
    let tuple = &parsed.tuple;
    let table = VipTable::from_word(control.vip_table.load());
    if !parsed.is_fragment()
        && let Some(service) = find_vip(tables, control, table, tuple.ports.destination(), tuple)
    {
        tables.observe(Step::Classified { service, any_port: false });
        return Ok(service);
    }
    if table.any_port
        && let Some(service) = find_vip(tables, control, table, Be16::new(0), tuple)
    {
        tables.observe(Step::Classified { service, any_port: true });
        return Ok(service);
    }
    if parsed.is_fragment() && is_vip(tables, control, tuple) {
        return Err(Verdict::PassFragment);
    }
    Err(Verdict::PassNotVip)
}

/// Whether the destination is a VIP of any service.
#[inline(always)]
fn is_vip<T: Tables>(tables: &T, control: &Control, tuple: &Tuple) -> bool {
    let table = VipTable::from_word(control.vip_table.load());
    let any = Tuple { protocol: Protocol::ICMP, ..*tuple };
    find_vip(tables, control, table, Be16::new(0), &any).is_some()
}

/// Walks the VIP table from where the hash points to the first empty slot.
#[inline(always)]
fn find_vip<T: Tables>(
    tables: &T,
    control: &Control,
    table: VipTable,
    port: Be16,
    tuple: &Tuple,
) -> Option<u32> {
    let mask = control.vip_buckets.wrapping_sub(1);
    let key = vip_key(port, tuple.protocol);
    let first = hash::vip(tuple.destination, key);
    let mut probe = 0;
    while probe < VIP_PROBES {
        let bucket = tables.vip_bucket(table.first_bucket.wrapping_add(first.wrapping_add(probe) & mask))?;
        for slot in &bucket.slots {
            if slot.is(tuple.destination, key) {
                return Some(slot.service);
            }
            if slot.is_empty() {
                return None;
            }
        }
        probe += 1;
    }
    None
}

/// What a packet for a service must still meet: a frame for this host's own MAC (a promiscuous port sees flooded
/// frames too), and no fragment.
#[inline(always)]
fn admit<P: Packet>(packet: &P, control: &Control, parsed: &Parsed) -> Result<(), Verdict> {
    let destination = packet.read::<u64>(0).ok_or(Verdict::PassMalformedEthernet)? & MAC_MASK;
    let on = packet.interface();
    let mut probe = 0;
    while probe < MAX_INTERFACES {
        let interface = &control.interfaces[interface_slot(on, probe)];
        let index = interface.index.load();
        if index == u64::from(on) {
            if interface.mac.load() != destination {
                return Err(Verdict::PassOtherHost);
            }
            break;
        }
        if index == 0 {
            break;
        }
        probe += 1;
    }
    if parsed.is_fragment() { Err(Verdict::PassFragment) } else { Ok(()) }
}
