//! A health check's packet → the packet of a customer, forwarded as one by its backend's record; and its answer → one that
//! the host's own connection takes.
//!
//! The host has a connection to the backend's own address, so its routes and neighbours are those of the backend, whatever
//! it thinks of the VIP. On the way out the destination becomes the VIP, and what then happens is what happens to
//! customers' packets. The backend answers from the VIP; on the way in that becomes the backend's address again.

use core::ops::Deref;

use super::parse::{self, Parsed};
use super::pick::Pick;
use super::signals::Seen;
use super::{Exit, Packet, rewrite};
use crate::abi::{Backend, Control, PROBE_MARK, PROBE_MARK_MASK, ProbeTarget, TupleKey};
use crate::flow::Tick;
use crate::hash;
use crate::net::{Address, Ports, Protocol};
use crate::verdict::Verdict;

/// Which of a packet's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A packet of a host's own TCP connection: what its checksums are, only the host knows, for it may leave them to the
/// interface.
pub trait OwnPacket: Packet {
    /// Replaces one of the addresses by one of the same family, with the checksums that follow from it.
    fn readdress(&mut self, parsed: &Parsed, side: Side, to: Address) -> Option<()>;
}

/// The tables that probing needs.
pub trait ProbeTables {
    /// Settings for the whole datapath.
    fn control(&self) -> Option<&Control>;
    /// A backend's record.
    fn backend(&self, id: u16) -> Option<&Backend>;
    /// Where packets of this index go.
    fn target(&self, index: u32) -> Option<&ProbeTarget>;
    /// The target whose answers have these five fields.
    fn expected(&self, answer: &TupleKey) -> Option<impl Deref<Target = u32>>;
    /// Notes which target's answers will have these five fields.
    fn expect(&self, answer: &TupleKey, target: u32);
    /// The time.
    fn now(&self, control: &Control) -> Tick;
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// Leave it alone: it is nothing of a health check.
    Leave,
    /// Let it go on: it is rewritten.
    GoOn,
    /// Transmit it on the interface with this index.
    Redirect(u32),
    /// Discard it: it cannot be forwarded.
    Drop,
}

/// Sends a packet that the host transmits with this mark.
#[inline(always)]
pub fn probe_out<P: OwnPacket, T: ProbeTables>(packet: &mut P, tables: &T, mark: u32) -> ProbeAction {
    if mark & PROBE_MARK_MASK != PROBE_MARK {
        return ProbeAction::Leave;
    }
    let index = mark & !PROBE_MARK_MASK;
    let (Some(target), Ok((parsed, fragment))) = (tables.target(index), parse::whole(packet)) else {
        return ProbeAction::Leave;
    };
    let tuple = &parsed.tuple;
    // What is encapsulated already, or of somebody who uses such marks, too.
    if tuple.protocol != Protocol::TCP || fragment.is || tuple.destination != target.address {
        return ProbeAction::Leave;
    }
    if parsed.transport.opens() {
        let ports = tuple.ports.word();
        tables.expect(&answer_key(target.vip, tuple.source, ports.rotate_right(16)), index);
    }
    match forward(packet, tables, target, &parsed) {
        Ok(0) => ProbeAction::GoOn,
        Ok(interface) => ProbeAction::Redirect(interface),
        Err(_) => ProbeAction::Drop,
    }
}

#[inline(always)]
fn forward<P: OwnPacket, T: ProbeTables>(
    packet: &mut P,
    tables: &T,
    target: &ProbeTarget,
    parsed: &Parsed,
) -> Result<u32, Exit> {
    let lost = Verdict::DropInconsistent;
    let control = tables.control().ok_or(lost)?;
    let id = target.backend.load() as u16;
    let backend = tables.backend(id).filter(|_| id != 0).ok_or(lost)?;
    let word = backend.load();
    if !word.is_resolved() {
        return Err(Verdict::DropNoNextHop.into());
    }
    packet.readdress(parsed, Side::Destination, target.vip).ok_or(lost)?;
    let mut parsed = *parsed;
    parsed.tuple.destination = target.vip;
    let hash = hash::flow(&control.flow_key, &parsed.tuple);
    let pick = Pick { id, backend, word, seen: Seen::NOTHING, hash, now: tables.now(control) };
    let hop = backend.hop(word);
    // A tag, if the way needs one, is the business of the interface that the host chose.
    rewrite::wrap(packet, control, &parsed, &pick, hop)?;
    let interface = rewrite::address_frame(packet, hop.first, hop.rest, hop.interface)?;
    target.sent.store(target.sent.load().wrapping_add(1));
    Ok(interface)
}

/// Takes a packet that came in, if it is the answer to a health check.
#[inline(always)]
pub fn probe_in<P: OwnPacket, T: ProbeTables>(packet: &mut P, tables: &T) -> ProbeAction {
    let Ok((parsed, fragment)) = parse::whole(packet) else { return ProbeAction::Leave };
    let tuple = &parsed.tuple;
    if tuple.protocol != Protocol::TCP || fragment.is {
        return ProbeAction::Leave;
    }
    let key = answer_key(tuple.source, tuple.destination, tuple.ports.word());
    let Some(index) = tables.expected(&key) else { return ProbeAction::Leave };
    let Some(target) = tables.target(*index) else { return ProbeAction::Leave };
    // It may have been given to another backend meanwhile.
    if target.vip != tuple.source || packet.readdress(&parsed, Side::Source, target.address).is_none() {
        return ProbeAction::Leave;
    }
    target.answered.store(target.answered.load().wrapping_add(1));
    ProbeAction::GoOn
}

#[inline(always)]
fn answer_key(vip: Address, own: Address, ports: u32) -> TupleKey {
    TupleKey::of(&crate::net::Tuple {
        source: vip,
        destination: own,
        ports: Ports::from_word(ports),
        protocol: Protocol::TCP,
    })
}

#[cfg(test)]
mod tests;
