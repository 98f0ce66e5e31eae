//! A service's packet → the backend it goes to: the one its flow is with, else the ring's choice.

mod apart;

pub use apart::pick_settled;
pub(super) use apart::{Asked, Picked, pick};

use super::signals::{self, Seen};
use super::transport::Transport;
use super::{Classified, Exit, Refusal, Stage, Step, Tables};
use crate::abi::{Backend, BackendWord, Control, FlowBucket, RING_SIZE};
use crate::flow::{Entry, RETRANSMISSION_TICKS, State, Tick, Victim, client_signature, flow_signature};
use crate::hash;
use crate::net::{Address, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// The choice.
#[derive(Clone, Copy)]
pub(super) struct Pick<'a> {
    /// The backend's id.
    pub(super) id: u16,
    /// Its record, and the word the choice was made by.
    pub(super) backend: &'a Backend,
    pub(super) word: BackendWord,
    /// What the packet showed of its connection; whether the backend was chosen just now is part of it.
    pub(super) seen: Seen,
    /// The flow's hash, which nobody outside can tell.
    pub(super) hash: u64,
    /// The time.
    pub(super) now: Tick,
}

/// Where a flow's five fields are.
pub(super) trait Fields {
    /// The five fields.
    fn tuple(&self) -> Tuple;
}

impl Fields for Tuple {
    #[inline(always)]
    fn tuple(&self) -> Tuple {
        *self
    }
}

/// What is asked of the flow table and the ring.
pub(super) struct Flow<'a, F> {
    /// The flow's five fields.
    pub(super) fields: &'a F,
    /// What the packet does to it.
    pub(super) transport: Transport,
    /// The backend that a new entry names, if it may: that of a translation.
    pub(super) held: u16,
}

/// Picks in the first stage, which leaves to another what is to be remembered of clients.
#[inline(always)]
pub(super) fn pick_plain<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    flow: &Flow<'_, Tuple>,
    classified: Classified,
    hash: u64,
) -> Result<Pick<'a>, Exit> {
    pick_in::<_, _, true>(tables, control, flow, classified, hash)
}

#[inline(always)]
fn pick_in<'a, T: Tables, F: Fields, const PLAIN: bool>(
    tables: &'a T,
    control: &Control,
    flow: &Flow<'_, F>,
    classified: Classified,
    hash: u64,
) -> Result<Pick<'a>, Exit> {
    let service = classified.service;
    let place = Place { hash, now: tables.now(control) };
    let found = place.find(tables, control)?;
    let mut former = None;
    if let Some(entry) = found {
        if PLAIN && let Some(pick) = settled(tables, place, entry, flow.transport, service) {
            return Ok(pick);
        }
        match keep(tables, entry, flow.transport, service, place.now) {
            Ok(to) => return stay::<_, _, PLAIN>(tables, control, place, entry, to, flow, classified),
            Err(refusal) => {
                tables.observe(Step::EntryRefused(refusal));
                if control.is_moving() {
                    if PLAIN {
                        return Err(Stage::Rare.into());
                    }
                    former = former_of(tables, entry, service);
                }
            }
        }
    }
    let (id, backend, word) = match former.or_else(|| held(tables, flow, service)) {
        Some(chosen) => chosen,
        None if PLAIN => {
            if classified.flags.client_affinity() {
                return Err(Stage::Rare.into());
            }
            ring(tables, control, &flow.fields.tuple(), service)?
        }
        None => choose(tables, control, flow.fields, classified, place.now)?,
    };
    if PLAIN && !word.is_plain() {
        return Err(Stage::Rare.into());
    }
    let place = place.anew(tables);
    let Place { hash, now } = place;
    let (index, bucket) = place.bucket(tables, control)?;
    let signature = flow_signature(hash);
    let known = found.and_then(|_| bucket.find(signature));
    let way = match known {
        Some(found) => found.way,
        None => make_way(tables, bucket, index, signature, now),
    };
    bucket.store(way, Entry::new(signature, id, State::Opening, now));
    if flow.transport.opens() {
        signals::opened(tables, control, hash);
    }
    Ok(Pick { id, backend, word, seen: Seen::of(flow.transport).new_flow(true), hash, now })
}

/// Nearly every packet: it changes nothing about its flow, and nothing has changed about its backend.
#[inline(always)]
fn settled<'a, T: Tables>(
    tables: &'a T,
    place: Place,
    entry: Entry,
    transport: Transport,
    service: u32,
) -> Option<Pick<'a>> {
    if !entry.is_settled(place.now) || !transport.goes_on() {
        return None;
    }
    let backend = tables.backend(entry.backend())?;
    let word = backend.load();
    let Place { hash, now } = place;
    let id = entry.backend();
    word.serves_plainly(service).then_some(Pick { id, backend, word, seen: Seen::of(transport), hash, now })
}

/// Has a packet stay with its flow's backend, and notes what it tells of the flow.
#[inline(always)]
fn stay<'a, T: Tables, F: Fields, const PLAIN: bool>(
    tables: &'a T,
    control: &Control,
    place: Place,
    entry: Entry,
    (backend, word): (&'a Backend, BackendWord),
    flow: &Flow<'_, F>,
    classified: Classified,
) -> Result<Pick<'a>, Exit> {
    // The other stage picks again, and it is that one's to note what is new.
    if PLAIN && !word.is_plain() {
        return Err(Stage::Rare.into());
    }
    let Place { hash, now } = place;
    let kept = advance(entry, flow.transport, now);
    let mut seen = Seen::of(flow.transport);
    if kept != entry {
        let client = classified.flags.client_affinity() && entry.state() == State::Opening;
        if PLAIN && client {
            return Err(Stage::Rare.into());
        }
        let place = place.anew(tables);
        let (_, bucket) = place.bucket(tables, control)?;
        // It can have made way for another meanwhile.
        if let Some(found) = bucket.find(flow_signature(place.hash)) {
            bucket.store(found.way, kept);
        }
        if is_answered(entry, kept, flow.transport) {
            seen = seen.and_answered();
            signals::answered(tables, control, hash, kept.backend());
        }
        if client {
            Client::of(tables, control, &flow.fields.tuple(), classified.service)?.remember(
                tables,
                kept.backend(),
                State::Established,
                now,
            );
        }
    }
    Ok(Pick { id: kept.backend(), backend, word, seen, hash, now })
}

/// The backend that packets of a flow go to, without a trace in the tables: for what only quotes the flow.
#[inline(always)]
pub(super) fn peek<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    tuple: &Tuple,
    classified: Classified,
) -> Result<Pick<'a>, Verdict> {
    let service = classified.service;
    let (hash, now) = (hash::flow(&control.flow_key, tuple), tables.now(control));
    if let Some(found) = (Place { hash, now }).find(tables, control)?
        && let Some(backend) = tables.backend(found.backend())
    {
        let word = backend.load();
        if word.serves(service) {
            return Ok(Pick { id: found.backend(), backend, word, seen: Seen::NOTHING, hash, now });
        }
    }
    let (id, backend, word) = if classified.flags.client_affinity() {
        ring(tables, control, &by_client(tuple), service)
    } else {
        ring(tables, control, tuple, service)
    }?;
    Ok(Pick { id, backend, word, seen: Seen::NOTHING, hash, now })
}

/// A flow's place in the flow table, which its hash names, and the time.
#[derive(Clone, Copy)]
struct Place {
    hash: u64,
    now: Tick,
}

impl Place {
    /// The same place, of which nothing that was made of it is kept: what hardly any packet needs again is cheaper made again than written
    /// to the stack for each.
    #[inline(always)]
    fn anew<T: Tables>(self, tables: &T) -> Self {
        Self { hash: tables.hide(self.hash), ..self }
    }

    /// The flow's bucket and its index.
    #[inline(always)]
    fn bucket<'a, T: Tables>(
        &self,
        tables: &'a T,
        control: &Control,
    ) -> Result<(u32, &'a FlowBucket), Verdict> {
        tables.flow_bucket(control, self.hash).ok_or(Verdict::DropInconsistent)
    }

    /// Finds the flow's entry.
    #[inline(always)]
    fn find<T: Tables>(&self, tables: &T, control: &Control) -> Result<Option<Entry>, Verdict> {
        let (index, bucket) = self.bucket(tables, control)?;
        let signature = flow_signature(self.hash);
        let found = bucket.entry(signature);
        tables.observe(Step::FlowLookup {
            bucket: index,
            signature,
            found: found.map(|entry| (entry.backend(), entry.state(), entry.age(self.now))),
        });
        Ok(found)
    }
}

/// Whether a packet follows the entry found for it.
#[inline(always)]
fn keep<T: Tables>(
    tables: &T,
    entry: Entry,
    transport: Transport,
    service: u32,
    now: Tick,
) -> Result<(&Backend, BackendWord), Refusal> {
    let backend = tables.backend(entry.backend()).ok_or(Refusal::BackendGone)?;
    let word = backend.load();
    if !word.serves(service) {
        return Err(Refusal::BackendGone);
    }
    if transport.opens() && !(entry.state() == State::Opening && entry.age(now) <= RETRANSMISSION_TICKS) {
        return Err(Refusal::OpensAnew);
    }
    if may_stay(transport, word) { Ok((backend, word)) } else { Err(Refusal::BackendUnhealthy) }
}

/// Whether a flow may stay with a backend that serves. An established TCP connection may even with an unhealthy one: the server may
/// have failed its check and still be serving it.
#[inline(always)]
pub(super) fn may_stay(transport: Transport, word: BackendWord) -> bool {
    word.is_healthy() || transport.is_tcp() && !transport.opens()
}

/// The entry after a packet that followed it. Written at most once a tick, unless the state changes.
#[inline(always)]
fn advance(entry: Entry, transport: Transport, now: Tick) -> Entry {
    if transport.opens() {
        // A retransmitted SYN keeps its first one's time, so that it cannot be a retransmission for ever.
        return entry;
    }
    entry.followed(transport.closes(), now)
}

/// Whether a packet is the first one of a TCP connection after its opening, and closes nothing.
#[inline(always)]
fn is_answered(before: Entry, after: Entry, transport: Transport) -> bool {
    transport.is_tcp() && before.state() == State::Opening && after.state() == State::Established
}

/// The backend that a former connection on the same ports was with, if it is healthy.
#[inline(always)]
fn former_of<T: Tables>(tables: &T, entry: Entry, service: u32) -> Option<(u16, &Backend, BackendWord)> {
    let backend = tables.backend(entry.backend())?;
    let word = backend.load();
    (word.serves(service) && word.is_healthy()).then_some((entry.backend(), backend, word))
}

/// The backend that a translation holds the flow with, if it still may.
#[inline(always)]
fn held<'a, T: Tables, F>(
    tables: &'a T,
    flow: &Flow<'_, F>,
    service: u32,
) -> Option<(u16, &'a Backend, BackendWord)> {
    if flow.held == 0 {
        return None;
    }
    let backend = tables.backend(flow.held)?;
    let word = backend.load();
    (word.serves(service) && may_stay(flow.transport, word)).then_some((flow.held, backend, word))
}

/// Chooses a backend for a new flow.
#[inline(always)]
fn choose<'a, T: Tables, F: Fields>(
    tables: &'a T,
    control: &Control,
    fields: &F,
    classified: Classified,
    now: Tick,
) -> Result<(u16, &'a Backend, BackendWord), Verdict> {
    let service = classified.service;
    if !classified.flags.client_affinity() {
        return ring(tables, control, &fields.tuple(), service);
    }
    let client = Client::of(tables, control, &fields.tuple(), service)?;
    let found = client.bucket.entry(client.signature);
    tables.observe(Step::ClientLookup(found.map(Entry::backend)));
    if let Some(entry) = found
        && let Some(backend) = tables.backend(entry.backend())
    {
        let word = backend.load();
        if word.serves(service) && word.takes_new() && word.is_healthy() {
            client.remember(tables, entry.backend(), entry.state(), now);
            return Ok((entry.backend(), backend, word));
        }
    }
    let (id, backend, word) = ring(tables, control, &by_client(&fields.tuple()), service)?;
    client.remember(tables, id, State::Opening, now);
    Ok((id, backend, word))
}

/// A client by itself, whichever VIP it uses: what the ring is asked with where its flows go to one backend.
#[inline(always)]
pub(super) fn by_client(tuple: &Tuple) -> Tuple {
    Tuple {
        source: tuple.source,
        destination: Address::ZERO,
        ports: Ports::from_word(0),
        protocol: Protocol(0),
    }
}

/// A client's place in the flow table, where its flows go to one backend. It is on probation until one of them is
/// established.
struct Client<'a> {
    bucket: &'a FlowBucket,
    index: u32,
    signature: u32,
}

impl<'a> Client<'a> {
    #[inline(always)]
    fn of<T: Tables>(tables: &'a T, control: &Control, tuple: &Tuple, service: u32) -> Result<Self, Verdict> {
        let named = Tuple { ports: Ports::from_word(service), ..by_client(tuple) };
        let hash = hash::flow(&control.flow_key, &named);
        let (index, bucket) = tables.flow_bucket(control, hash).ok_or(Verdict::DropInconsistent)?;
        Ok(Self { bucket, index, signature: client_signature(hash) })
    }

    #[inline(always)]
    fn remember<T: Tables>(&self, tables: &T, id: u16, state: State, now: Tick) {
        let way = match self.bucket.find(self.signature) {
            Some(found) => found.way,
            None => make_way(tables, self.bucket, self.index, self.signature, now),
        };
        self.bucket.store(way, Entry::new(self.signature, id, state, now));
    }
}

/// The place for a new entry; what is lost by that is counted.
#[inline(always)]
fn make_way<T: Tables>(tables: &T, bucket: &FlowBucket, index: u32, signature: u32, now: Tick) -> usize {
    let light = bucket.light(signature >> 29, now);
    let Victim { way, eviction } = light.unwrap_or_else(|| tables.victim(index, bucket, now));
    if let Some(eviction) = eviction {
        tables.count_eviction(eviction);
    }
    way
}

/// Asks the service's ring.
#[inline(always)]
fn ring<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    tuple: &Tuple,
    service: u32,
) -> Result<(u16, &'a Backend, BackendWord), Verdict> {
    let ring = tables.service(service).ok_or(Verdict::DropInconsistent)?.load().ring;
    let ring = ring.ok_or(Verdict::DropNoBackend)?;
    let slot = hash::reduce(hash::flow(&control.ring_key, tuple), RING_SIZE as u32);
    let id = tables.ring_slot(ring, slot).ok_or(Verdict::DropInconsistent)?;
    tables.observe(Step::RingLookup { ring, slot, backend: id });
    let backend = tables.backend(id).ok_or(Verdict::DropInconsistent)?;
    let word = backend.load();
    if word.serves(service) { Ok((id, backend, word)) } else { Err(Verdict::DropInconsistent) }
}
