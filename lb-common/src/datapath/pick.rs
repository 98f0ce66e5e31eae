//! A service's packet → the backend it goes to: the one its flow is with, else the ring's choice.

use super::parse::{Parsed, Transport};
use super::{Refusal, Step, Tables};
use crate::abi::{Backend, BackendWord, Control, RING_SIZE};
use crate::flow::{Entry, RETRANSMISSION_TICKS, State, Tick};
use crate::hash;
use crate::verdict::Verdict;

/// The choice.
#[derive(Clone, Copy)]
pub(super) struct Pick<'a> {
    /// The backend's id.
    pub(super) id: u16,
    /// Its record, and the word the choice was made by.
    pub(super) backend: &'a Backend,
    pub(super) word: BackendWord,
    /// Whether it was chosen just now.
    pub(super) new_flow: bool,
}

/// Picks the backend and remembers it.
#[inline(always)]
pub(super) fn pick<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    parsed: &Parsed,
    service: u32,
) -> Result<Pick<'a>, Verdict> {
    let now = tables.now(control);
    let hash = hash::flow(&control.flow_key, &parsed.tuple);
    let index = hash::reduce(hash, control.flow_buckets);
    let signature = hash as u32;
    let bucket = tables.flow_bucket(index).ok_or(Verdict::DropInconsistent)?;
    let found = bucket.find(signature);
    tables.observe(Step::FlowLookup {
        bucket: index,
        signature,
        found: found.map(|found| (found.entry.backend(), found.entry.state(), found.entry.age(now))),
    });
    if let Some(found) = found {
        match keep(tables, found.entry, parsed.transport, service, now) {
            Ok((backend, word)) => {
                let kept = advance(found.entry, parsed.transport, now);
                if kept != found.entry {
                    bucket.store(found.way, kept);
                }
                return Ok(Pick { id: kept.backend(), backend, word, new_flow: false });
            }
            Err(refusal) => tables.observe(Step::EntryRefused(refusal)),
        }
    }
    let (id, backend, word) = choose(tables, control, parsed, service)?;
    let way = match found {
        Some(found) => found.way,
        None => bucket.victim(now),
    };
    bucket.store(way, Entry::new(signature, id, State::Opening, now));
    Ok(Pick { id, backend, word, new_flow: true })
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
    // An established TCP connection stays even so: the server may have failed its check and still be serving it.
    let may_move = transport.opens() || !transport.is_tcp();
    if may_move && !word.is_healthy() { Err(Refusal::BackendUnhealthy) } else { Ok((backend, word)) }
}

/// The entry after a packet that followed it. Written at most once a tick, unless the state changes.
#[inline(always)]
fn advance(entry: Entry, transport: Transport, now: Tick) -> Entry {
    if transport.opens() {
        // A retransmitted SYN keeps its first one's time, so that it cannot be a retransmission for ever.
        return entry;
    }
    let state = match entry.state() {
        _ if transport.closes() => State::Closing,
        State::Opening => State::Established,
        state => state,
    };
    Entry::new(entry.signature(), entry.backend(), state, now)
}

/// Asks the service's ring.
#[inline(always)]
fn choose<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    parsed: &Parsed,
    service: u32,
) -> Result<(u16, &'a Backend, BackendWord), Verdict> {
    let ring = tables.service(service).ok_or(Verdict::DropInconsistent)?.load().ring;
    let ring = ring.ok_or(Verdict::DropNoBackend)?;
    let slot = hash::reduce(hash::flow(&control.ring_key, &parsed.tuple), RING_SIZE as u32);
    let id = tables.ring_slot(ring, slot).ok_or(Verdict::DropInconsistent)?;
    tables.observe(Step::RingLookup { ring, slot, backend: id });
    let backend = tables.backend(id).ok_or(Verdict::DropInconsistent)?;
    let word = backend.load();
    if word.serves(service) { Ok((id, backend, word)) } else { Err(Verdict::DropInconsistent) }
}
