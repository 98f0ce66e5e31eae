//! What the pipeline needs of the world: a frame, the tables, and somebody who follows its steps.

use core::ops::DerefMut;

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::Ipv4Hdr;
use network_types::tcp::TcpHdr;

use super::Outcome;
use super::nat::{Scratch, add, attempt, clear_ended, locate, make_room};
use super::parse::{Extensions, extensions};
use super::pick::pick_settled;
use super::signals::{self, Instant};
use super::vips::vip_beyond;
use crate::abi::{
    Backend, Control, FlowBucket, FragmentRoute, Latency, NextHop, Service, TupleKey, VipBucket, Word,
};
use crate::flow::{Eviction, State, Tick, Victim};
#[cfg(doc)]
use crate::hash;
use crate::net::{Address, Tuple};
use crate::translations::{Buckets, Inserted};
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
// SAFETY: as above.
unsafe impl Header for u16 {}
// SAFETY: plain integers.
unsafe impl<const N: usize> Header for [u32; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Header for [u16; N] {}
// SAFETY: plain bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

/// A frame: reads and writes that are checked against its bounds.
pub trait Packet: Sized {
    /// The header at `offset` bytes, unless it reaches beyond the frame. At least two bytes: from the check for a single one the
    /// kernel's verifier learns nothing.
    fn read<T: Header>(&self, offset: usize) -> Option<T>;
    /// Overwrites the bytes at `offset`; `None`, and nothing done, if they reach beyond the frame.
    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()>;
    /// The same with two headers, one right behind the other.
    #[inline(always)]
    fn write_both<A: Header, B: Header>(&mut self, offset: usize, first: A, second: B) -> Option<()> {
        // If there is room for the second, there is for the first.
        self.write(offset + size_of::<A>(), second)?;
        self.write(offset, first)
    }
    /// Makes room for `bytes` more in front: offset 0 is then `bytes` earlier, and what lies there is undefined. `None`,
    /// and nothing done, if there is no room.
    fn grow_head(&mut self, bytes: usize) -> Option<()>;
    /// Takes `bytes` away in front; `None`, and nothing done, if the frame would not have an Ethernet header left.
    fn shrink_head(&mut self, bytes: usize) -> Option<()>;
    /// Cuts the frame to `bytes`; `None`, and nothing done, if it is shorter or would not have an Ethernet header left.
    fn truncate(&mut self, bytes: usize) -> Option<()>;
    /// Index of the interface the frame came in on.
    fn interface(&self) -> u32;
    /// Bytes of the largest IP packet that an interface sends; 0 if that is not known.
    #[inline(always)]
    fn mtu(&self, _interface: u32) -> u16 {
        0
    }
    /// Asks the kernel's routes and neighbours for the way from one address to another of its family, and puts MAC addresses and
    /// interface into `hop`. Says whether it leads straight to the host; `None` if they do not know.
    #[inline(always)]
    fn route(&self, _from: Address, _to: Address, _hop: &mut NextHop) -> Option<bool> {
        None
    }
    /// What stands behind an IPv6 header: [`extensions`]. The kernel's implementation does it in a function by itself, for the
    /// verifier to go through once.
    #[inline(always)]
    fn extensions(&self, ip_offset: usize, next: u8, bytes: u16) -> Extensions {
        extensions(self, ip_offset, next, bytes)
    }
}

/// The tables of the datapath and the clock.
pub trait Tables: Buckets {
    /// Settings for the whole datapath.
    fn control(&self) -> Option<&Control>;
    /// [`Control::icmp_budget`].
    fn icmp_budget(&self) -> Option<&Word>;
    /// A word of the map `senders`.
    fn sender_budget(&self, slot: u32) -> Option<&Word>;
    /// A bucket of the VIP table, by its index over both halves.
    fn vip_bucket(&self, index: u32) -> Option<&VipBucket>;
    /// Where a VIP is that its first bucket has no room for: [`vip_beyond`]. The kernel's implementation does it in a function by itself,
    /// for it is rare.
    #[inline(always)]
    fn vip_beyond(&self, address: Address, key: u32) -> u64
    where
        Self: Sized,
    {
        vip_beyond(self, address, key)
    }
    /// A service's record.
    fn service(&self, id: u32) -> Option<&Service>;
    /// A backend's record.
    fn backend(&self, id: u16) -> Option<&Backend>;
    /// Writes [`Backend::noted`].
    fn note(&self, id: u16, word: u64);
    /// The backend id in a slot of a ring; `slot` is below [`crate::abi::RING_SIZE`].
    fn ring_slot(&self, ring: u16, slot: u32) -> Option<u16>;
    /// The bucket of the flow table for flows of this hash, and its index: [`hash::reduce`] to [`Control::flow_buckets`], which the kernel's
    /// implementation knows from the beginning.
    fn flow_bucket(&self, control: &Control, hash: u64) -> Option<(u32, &FlowBucket)>;
    /// The place for a new entry in this bucket, whose index is given, too: [`FlowBucket::victim`]. The kernel's implementation does it
    /// in a function by itself, for the verifier to go through once.
    #[inline(always)]
    fn victim(&self, _index: u32, bucket: &FlowBucket, now: Tick) -> Victim {
        bucket.victim(now)
    }
    /// Picks a backend: [`pick_settled`], which takes the scratch room. The kernel's implementation does it in a function by itself.
    #[inline(always)]
    fn pick(&self, asked: u64) -> u64
    where
        Self: Sized,
    {
        pick_settled(self, asked)
    }
    /// Where the translation of such packets is: [`locate`]. The kernel's implementation does it in a function by itself, for the
    /// verifier to go through once.
    #[inline(always)]
    fn locate(&self, key: &TupleKey) -> u64
    where
        Self: Sized,
    {
        locate(self, key)
    }
    /// Adds the translation in the scratch room, which it takes: [`add`]. The kernel's implementation does it in a function by itself.
    #[inline(always)]
    fn add_translation(&self) -> Inserted
    where
        Self: Sized,
    {
        add(self)
    }
    /// Chooses a port for a new translated flow: [`attempt`], which takes the scratch room. The kernel's implementation does it in a
    /// function by itself.
    #[inline(always)]
    fn attempt(&self, sequence: u64) -> bool
    where
        Self: Sized,
    {
        attempt(self, sequence)
    }
    /// Lets the flow that has the last port tried make way, if its connection has ended; says whether: [`clear_ended`], a function by
    /// itself as well.
    #[inline(always)]
    fn clear_ended(&self) -> bool
    where
        Self: Sized,
    {
        clear_ended(self).is_some()
    }
    /// Lets a flow that nobody has followed up make way for the translation in the scratch room; says whether: [`make_room`], a
    /// function by itself as well.
    #[inline(always)]
    fn make_room(&self) -> bool
    where
        Self: Sized,
    {
        make_room(self).is_some()
    }
    /// Room to translate a packet in; whatever lies there. `None` while it is in use.
    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>>;
    /// Hands over which way the fragments of a datagram go, if that is known.
    fn fragment<R>(&self, key: &TupleKey, then: impl FnOnce(&FragmentRoute) -> R) -> Option<R>;
    /// Remembers which way the fragments of a datagram go.
    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute);
    /// The time.
    fn now(&self, control: &Control) -> Tick;
    /// The time, finer.
    fn instant(&self) -> Instant;
    /// A place for the note of a flow that is being opened; `slot` is below [`crate::abi::OPENING_SLOTS`].
    fn opening(&self, slot: u32) -> Option<&Word>;
    /// How long connections with a backend took to open.
    fn latency(&self, backend: u16) -> Option<&Latency>;
    /// Notes that the flow of this hash is being opened: [`signals::note_opening`]. The kernel's implementation does it in a function
    /// by itself, for it is rare.
    #[inline(always)]
    fn note_opening(&self, hash: u64)
    where
        Self: Sized,
    {
        signals::note_opening(self, hash);
    }
    /// Adds up how long the flow of this hash took to be opened: [`signals::note_answer`]. As above.
    #[inline(always)]
    fn note_answer(&self, hash: u64, backend: u16)
    where
        Self: Sized,
    {
        signals::note_answer(self, hash, backend);
    }
    /// Counts a packet that goes to no backend.
    fn count(&self, verdict: Verdict);
    /// Counts a flow that made way for a new one.
    fn count_eviction(&self, eviction: Eviction);
    /// Counts a forwarded packet, once, for its backend: what a service or all of them forwarded is the sum of that.
    fn count_forwarded(&self, forwarded: &Outcome);
    /// Is told each step; `explain` listens, the kernel does not.
    #[inline(always)]
    fn observe(&self, _step: Step) {}
}

/// A step of the pipeline, for who wants to follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame is a packet with a flow's five fields.
    Parsed(Tuple),
    /// The packet is an error about a packet with these five fields.
    Quoted(Tuple),
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
    /// The client's entry was asked, for its flows go to one backend; the backend there.
    ClientLookup(Option<u16>),
    /// The ring was asked.
    RingLookup {
        /// The ring's slot in the ring table.
        ring: u16,
        /// The slot in the ring.
        slot: u32,
        /// The backend there.
        backend: u16,
    },
    /// A fragment that is not the first: the backend its datagram goes to, 0 for the host, if that is known.
    FragmentLookup(Option<u16>),
    /// The packet is translated: it leaves with these five fields.
    Translated {
        /// The five fields.
        tuple: Tuple,
        /// Whether the translation was made just now.
        new: bool,
        /// Whether this is an answer.
        reply: bool,
    },
    /// The packet is an answer of this backend.
    AnswerOf(u16),
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
