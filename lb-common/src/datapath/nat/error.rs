//! An ICMP error about a translated flow → the same for who it is for, translated with the packet that it quotes.

use super::super::parse::{self, Parsed, Quoted};
use super::super::pick::Pick;
use super::super::settled::{settle, settle_quoted};
use super::super::signals::Seen;
use super::super::{Exit, Outcome, Packet, Step, Tables, classify, rare};
use super::state::{Found, Leaves, Scratch, entry_of};
use super::{TCP_CHECKSUM, UDP_CHECKSUM, address_packet, check, leave, leave_to, observe};
use crate::abi::{Control, TupleKey};
use crate::checksum::Change;
use crate::net::{Be16, Protocol};
use crate::verdict::Verdict;

/// Translates an ICMP error about a translated flow, and the packet it quotes.
#[inline(always)]
pub(in crate::datapath) fn steer_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, _) = settle(tables, parse::whole(packet)?)?;
    let to = parsed.tuple.destination;
    let quoted_offset = parsed.transport_offset + parse::ICMP_BYTES;
    let quoted = parse::quoted(packet, quoted_offset, to.is_v4()).ok_or(Verdict::DropInconsistent)?;
    let quoted = settle_quoted(tables, &quoted).ok_or(Verdict::DropInconsistent)?;
    let flow = quoted.tuple.reversed();
    let service = classify(tables, control, &flow).map(|classified| classified.service);
    // About no flow that is translated: of a VIP all the same, or one of the host's own.
    let untouched = if service.is_some() { Verdict::PassIcmp } else { Verdict::PassNotVip };
    let (translation, _) =
        entry_of(tables, control, &TupleKey::of(&flow)).and_then(|entry| entry.read()).ok_or(untouched)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    scratch.work.found = Found::of(&translation, false, false, false);
    scratch.work.path = translation.path;
    send_error(packet, tables, control, &mut scratch, &parsed, &quoted, service.unwrap_or(u32::MAX))
}

/// Sends an error on, for whose flow the translation is in [`Work::found`].
#[inline(always)]
fn send_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    scratch: &mut Scratch,
    parsed: &Parsed,
    quoted: &Quoted,
    service: u32,
) -> Result<Outcome, Exit> {
    let Scratch { hop: room, work } = scratch;
    let Found { leaves, backend: id, reply, .. } = &work.found;
    let (id, reply) = (*id, *reply);
    let backend = tables.backend(id).ok_or(Verdict::PassIcmp)?;
    let word = backend.load();
    check(packet, control, parsed, 0)?;
    if reply {
        let path = work.path;
        observe(tables, parsed, leaves, false, true);
        translate_quoted(packet, parsed, quoted, leaves).ok_or(Verdict::PassIcmp)?;
        let interface = leave(packet, parsed, &path)?;
        return Ok(Outcome::without_backend(Verdict::ForwardReturn, interface));
    }
    if !word.serves(service) {
        return Err(Verdict::DropNoBackend.into());
    }
    let pick = Pick { id, backend, word, seen: Seen::NOTHING, hash: 0, now: tables.now(control) };
    let hop = rare::resolve(packet, control, parsed, &pick, room)?;
    observe(tables, parsed, leaves, false, false);
    translate_quoted(packet, parsed, quoted, leaves).ok_or(Verdict::PassIcmp)?;
    tables.observe(Step::NextHop { backend: id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service, id, parsed.bytes, Seen::NOTHING))
}

/// Writes what a quoted packet and the error around it leave with: the quoted one goes the other way, so its source is the
/// error's destination, which was looked at before.
#[inline(always)]
fn translate_quoted<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    quoted: &Quoted,
    leaves: &Leaves,
) -> Option<()> {
    let v4 = parsed.tuple.destination.is_v4();
    let inner = parsed.transport_offset + parse::ICMP_BYTES;
    let tuple = &quoted.tuple;
    let ports = leaves.ports.swapped();
    let addresses = Change::NONE
        .and_address(parsed.tuple.destination, leaves.destination)
        .and_address(tuple.destination, leaves.source);
    // What changes under the error's own checksum.
    let mut change = addresses.and(tuple.ports.word(), ports.word());
    let at =
        quoted.transport_offset + if tuple.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    // A quotation may end before it, and the frame go on with padding.
    if at + size_of::<Be16>() <= parsed.end()
        && let Some(wire) = packet.read(at)
    {
        let old = Be16::from_wire(wire);
        let new = if tuple.protocol == Protocol::TCP { change.apply(old) } else { change.apply_udp(old) };
        packet.write(at, new.raw())?;
        change = change.and_half(old, new);
    }
    packet.write(quoted.transport_offset, ports.word())?;
    if v4 {
        let old = Be16::from_wire(packet.read(inner + 10)?);
        let new = addresses.apply(old);
        packet.write(inner + 10, new.raw())?;
        packet.write(inner + 12, [leaves.destination.words()[3], leaves.source.words()[3]])?;
        change = change.and_half(old, new);
    } else {
        let ([a, b, c, d], [e, f, g, h]) = (leaves.destination.words(), leaves.source.words());
        packet.write(inner + 8, [a, b, c, d, e, f, g, h])?;
        // ICMPv6 has a pseudo-header.
        change = change
            .and_address(parsed.tuple.source, leaves.source)
            .and_address(parsed.tuple.destination, leaves.destination);
    }
    let at = parsed.transport_offset + 2;
    let checksum = change.apply(Be16::from_wire(packet.read(at)?));
    packet.write(at, checksum.raw())?;
    let outer = Change::NONE
        .and_address(parsed.tuple.source, leaves.source)
        .and_address(parsed.tuple.destination, leaves.destination);
    address_packet(packet, parsed, leaves, outer, 1)
}
