//! Byte slices and table slices → the datapath's [`Packet`] and [`Tables`], for userspace.

use core::cell::RefCell;
use core::ops::DerefMut;

use network_types::eth::EthHdr;

use crate::abi::{
    Backend, Control, FlowBucket, FragmentRoute, Latency, MAX_BACKENDS, RING_SIZE, Ring, Service,
    TranslationBucket, TupleKey, Verdicts, VipBucket, Word,
};
use crate::datapath::{self, Header, Instant, Outcome, Packet, Scratch, Step, Tables};
use crate::flow::{Eviction, Tick};
use crate::hash;
use crate::translations::Buckets;
use crate::verdict::Verdict;

/// A frame in memory, with room in front of it.
#[derive(Debug)]
pub struct SlicePacket<'a> {
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
    interface: u32,
    mtus: &'a [(u32, u16)],
}

impl<'a> SlicePacket<'a> {
    /// The frame that begins `headroom` bytes into the buffer and ends with it; `interface` is the index of the
    /// interface it came in on.
    pub fn new(buffer: &'a mut [u8], headroom: usize, interface: u32) -> Self {
        let end = buffer.len();
        Self { buffer, start: headroom.min(end), end, interface, mtus: &[] }
    }

    /// The same where the MTUs of these interfaces are known, by index.
    #[must_use]
    pub fn with_mtus(self, mtus: &'a [(u32, u16)]) -> Self {
        Self { mtus, ..self }
    }

    /// The frame, from the destination MAC to the end of its payload.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn range(&self, offset: usize, size: usize) -> Option<core::ops::Range<usize>> {
        let start = self.start.checked_add(offset)?;
        let end = start.checked_add(size)?;
        (end <= self.end).then_some(start..end)
    }
}

impl Packet for SlicePacket<'_> {
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let bytes = self.buffer.get(self.range(offset, size_of::<T>())?)?;
        // SAFETY: `bytes` is as long as `T`, and every bit pattern of a `Header` is a value.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        let range = self.range(offset, size_of::<T>())?;
        let bytes = self.buffer.get_mut(range)?;
        // SAFETY: `bytes` is as long as `T`, and a `Header` has no padding that would leave bytes undefined.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(header) };
        Some(())
    }

    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        self.start = self.start.checked_sub(bytes)?;
        Some(())
    }

    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        let start = self.range(bytes, EthHdr::LEN)?.start;
        self.start = start;
        Some(())
    }

    fn truncate(&mut self, bytes: usize) -> Option<()> {
        let range = self.range(0, bytes)?;
        (bytes >= EthHdr::LEN).then_some(())?;
        self.end = range.end;
        Some(())
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn mtu(&self, interface: u32) -> u16 {
        self.mtus.iter().find(|(index, _)| *index == interface).map_or(0, |(_, mtu)| *mtu)
    }
}

/// The map `fragments`, which is no array.
pub trait Fragments {
    /// Which way the fragments of a datagram go.
    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute>;
    /// Remembers which way the fragments of a datagram go.
    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute);
}

/// The maps as slices.
#[derive(Clone, Copy)]
pub struct TableSlices<'a> {
    /// The map `control`.
    pub control: &'a Control,
    /// The map `vips`: both halves.
    pub vips: &'a [VipBucket],
    /// The map `services`.
    pub services: &'a [Service],
    /// The map `backends`.
    pub backends: &'a [Backend],
    /// The map `rings`.
    pub rings: &'a [Ring],
    /// The map `flows`.
    pub flows: &'a [FlowBucket],
    /// The map `openings`.
    pub openings: &'a [Word],
    /// The map `backend_latency`.
    pub latency: &'a [Latency],
    /// The map `translations`.
    pub translations: &'a [TranslationBucket],
    /// The map `fragments`.
    pub fragments: &'a dyn Fragments,
    /// The map `senders`.
    pub senders: &'a [Word],
}

/// [`Tables`] over slices, at a time that stands still, and with someone who follows the steps.
pub struct SliceTables<'a> {
    /// The maps.
    pub tables: TableSlices<'a>,
    /// The time.
    pub now: Tick,
    /// The time, finer.
    pub instant: Instant,
    /// Stands in for every bucket of the flow table that is asked for: with it, and with [`Self::aside`], a packet leaves all arrays as
    /// they were.
    pub scratch: Option<&'a FlowBucket>,
    /// Stands in for [`TableSlices::translations`].
    pub aside: Option<&'a dyn Buckets>,
    /// Stands in for [`Control::icmp_budget`]; it begins as that is.
    pub icmp_budget: Word,
    /// Stands in for the word of [`TableSlices::senders`] that is asked for, if a packet is to leave these as they were.
    pub sender_budget: Word,
    /// Room to translate packets in.
    pub work: RefCell<Scratch>,
    /// What was counted.
    pub verdicts: RefCell<Verdicts>,
    /// Is told each step.
    pub observer: &'a dyn Fn(Step),
}

impl<'a> SliceTables<'a> {
    /// Tables that packets change, as the kernel's do; nobody is told the steps.
    pub fn new(tables: TableSlices<'a>, now: Tick) -> Self {
        Self {
            tables,
            now,
            instant: Instant::default(),
            scratch: None,
            aside: None,
            icmp_budget: Word::new(tables.control.icmp_budget.load()),
            sender_budget: Word::default(),
            work: RefCell::default(),
            verdicts: RefCell::default(),
            observer: &|_| (),
        }
    }

    /// Runs the datapath over a packet. Everyone in memory does so by this one function, for the datapath takes long to compile.
    pub fn process(&self, packet: &mut SlicePacket) -> Outcome {
        datapath::process(packet, self)
    }
}

impl Buckets for SliceTables<'_> {
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        match self.aside {
            Some(aside) => aside.translation_bucket(index),
            None => self.tables.translations.translation_bucket(index),
        }
    }
}

impl Tables for SliceTables<'_> {
    fn control(&self) -> Option<&Control> {
        Some(self.tables.control)
    }

    fn icmp_budget(&self) -> Option<&Word> {
        Some(&self.icmp_budget)
    }

    fn sender_budget(&self, slot: u32) -> Option<&Word> {
        let budget = self.tables.senders.get(slot as usize)?;
        if self.scratch.is_none() {
            return Some(budget);
        }
        self.sender_budget.store(budget.load());
        Some(&self.sender_budget)
    }

    fn vip_bucket(&self, index: u32) -> Option<&VipBucket> {
        self.tables.vips.get(index as usize)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.tables.services.get(id as usize)
    }

    fn backend(&self, id: u16) -> Option<&Backend> {
        self.tables.backends.get(id as usize)
    }

    fn note(&self, id: u16, word: u64) {
        if self.scratch.is_none()
            && let Some(backend) = self.backend(id)
        {
            backend.noted.store(word);
        }
    }

    fn ring_slot(&self, ring: u16, slot: u32) -> Option<u16> {
        self.tables.rings.get(ring as usize)?.slots.get(slot as usize).copied()
    }

    fn flow_bucket(&self, control: &Control, hash: u64) -> Option<(u32, &FlowBucket)> {
        let index = hash::reduce(hash, control.flow_buckets);
        let bucket = self.tables.flows.get(index as usize)?;
        let Some(scratch) = self.scratch else { return Some((index, bucket)) };
        for (copy, way) in scratch.ways.iter().zip(&bucket.ways) {
            copy.store(way.load());
        }
        Some((index, scratch))
    }

    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>> {
        self.work.try_borrow_mut().ok()
    }

    fn fragment<R>(&self, key: &TupleKey, then: impl FnOnce(&FragmentRoute) -> R) -> Option<R> {
        self.tables.fragments.fragment(key).as_ref().map(then)
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        self.tables.fragments.set_fragment(key, route);
    }

    fn now(&self, _: &Control) -> Tick {
        self.now
    }

    fn instant(&self) -> Instant {
        self.instant
    }

    fn opening(&self, slot: u32) -> Option<&Word> {
        if self.scratch.is_some() {
            return None;
        }
        self.tables.openings.get(slot as usize)
    }

    fn latency(&self, backend: u16) -> Option<&Latency> {
        self.tables.latency.get(backend as usize)
    }

    fn count(&self, verdict: Verdict) {
        if let Some(count) = self.verdicts.borrow_mut().packets.get_mut(verdict.index()) {
            *count += 1;
        }
    }

    fn count_eviction(&self, eviction: Eviction) {
        if let Some(count) = self.verdicts.borrow_mut().evictions.get_mut(eviction as usize) {
            *count += 1;
        }
    }

    fn count_forwarded(&self, _: &Outcome) {
        self.count(Verdict::Forward);
    }

    fn observe(&self, step: Step) {
        (self.observer)(step);
    }
}

const _: () = assert!(MAX_BACKENDS < u16::MAX as u32 && RING_SIZE > u16::MAX as usize);
