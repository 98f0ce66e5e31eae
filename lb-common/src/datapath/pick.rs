//! A service's packet → the backend it goes to: the one its flow is with, else the ring's choice.

use super::parse::{Opening, Parsed, Transport};
use super::{Refusal, Step, Tables};
use crate::abi::{Control, RING_SIZE, ServiceWord};
use crate::flow::{Entry, RETRANSMISSION_TICKS, State, Tick};
use crate::hash;
use crate::verdict::Verdict;

/// The choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    /// The backend's id.
    pub(super) backend: u16,
    /// Whether it was chosen just now.
    pub(super) new_flow: bool,
}

/// Picks the backend and remembers it.
#[inline(always)]
pub(super) fn pick<T: Tables>(
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    service: u32,
    word: ServiceWord,
) -> Result<Pick, Verdict> {
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
            Ok(()) => {
                let kept = advance(found.entry, parsed.transport, now);
                if kept != found.entry {
                    bucket.store(found.way, kept);
                }
                return Ok(Pick { backend: kept.backend(), new_flow: false });
            }
            Err(refusal) => tables.observe(Step::EntryRefused(refusal)),
        }
    }
    let backend = choose(tables, control, parsed, service, word)?;
    let way = match found {
        Some(found) => found.way,
        None => bucket.victim(now),
    };
    bucket.store(way, Entry::new(signature, backend, State::Opening, now));
    Ok(Pick { backend, new_flow: true })
}

/// Whether a packet follows the entry found for it.
#[inline(always)]
fn keep<T: Tables>(
    tables: &T,
    entry: Entry,
    transport: Transport,
    service: u32,
    now: Tick,
) -> Result<(), Refusal> {
    let backend = tables.backend(entry.backend()).ok_or(Refusal::BackendGone)?.load();
    if !backend.used || !backend.enabled || u32::from(backend.service) != service {
        return Err(Refusal::BackendGone);
    }
    let opens = transport == Transport::Tcp(Opening::Opens);
    if opens && !(entry.state() == State::Opening && entry.age(now) <= RETRANSMISSION_TICKS) {
        return Err(Refusal::OpensAnew);
    }
    // An established TCP connection stays even so: the server may have failed its check and still be serving it.
    let may_move = opens || !matches!(transport, Transport::Tcp(_));
    if may_move && !backend.healthy { Err(Refusal::BackendUnhealthy) } else { Ok(()) }
}

/// The entry after a packet that followed it. Written at most once a tick, unless the state changes.
#[inline(always)]
fn advance(entry: Entry, transport: Transport, now: Tick) -> Entry {
    let state = match (transport, entry.state()) {
        // A retransmitted SYN keeps its first one's time, so that it cannot be a retransmission for ever.
        (Transport::Tcp(Opening::Opens), _) => return entry,
        (Transport::Tcp(Opening::Closes), _) => State::Closing,
        (_, State::Opening) => State::Established,
        (_, state) => state,
    };
    Entry::new(entry.signature(), entry.backend(), state, now)
}

/// Asks the service's ring.
#[inline(always)]
fn choose<T: Tables>(
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    service: u32,
    word: ServiceWord,
) -> Result<u16, Verdict> {
    let ring = word.ring.ok_or(Verdict::DropNoBackend)?;
    let slot = hash::reduce(hash::flow(&control.ring_key, &parsed.tuple), RING_SIZE as u32);
    let id = tables.ring_slot(ring, slot).ok_or(Verdict::DropInconsistent)?;
    tables.observe(Step::RingLookup { ring, slot, backend: id });
    let backend = tables.backend(id).ok_or(Verdict::DropInconsistent)?.load();
    if !backend.used || !backend.enabled || u32::from(backend.service) != service {
        return Err(Verdict::DropInconsistent);
    }
    Ok(id)
}
