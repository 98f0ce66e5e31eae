//! A packet of a translated service, or a backend's answer → the same with addresses and ports translated.
//!
//! The state is exact: one translation for each direction, found by the packet's five fields as it arrives. The flow table
//! chooses and remembers the backend as for every other service; where the two differ, the translation is right.

mod error;
mod known;
mod new;
mod state;

pub(super) use error::steer_error;
pub(super) use known::{Frame, steer_known};
pub(super) use new::translate_new;
pub use new::{attempt, clear_ended, make_room};
pub use state::{Scratch, Work, add, locate};

use super::parse::{self, Fragment, Parsed};
use super::pick::{self, Asked, Pick};
use super::rewrite::{self, address_frame, check_size};
use super::settled::settle;
use super::signals::Seen;
use super::{Classified, Exit, Outcome, Packet, Stage, Step, Tables, admit, classify, fragment, rare};
use crate::abi::{Control, FragmentRoute, NextHop, ReturnPath, TupleKey};
use crate::checksum::Change;
use crate::flow::Tick;
use crate::net::{Be16, Protocol, Tuple};
use crate::verdict::Verdict;

use state::{Leaves, find};

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Bytes of a packet that every host takes (RFC 791 section 3.1), and so every interface that is worth it.
const ALWAYS_FITS: u16 = 576;

/// Translates a customer's packet.
#[inline(always)]
pub(super) fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, fragment) = settle(tables, parse::whole(packet)?)?;
    let classified = classify(tables, control, &parsed.tuple).ok_or(Verdict::DropInconsistent)?;
    admit(packet, control)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let work = &mut scratch.work;
    work.key = TupleKey::of(&parsed.tuple);
    work.path = came_from(packet, parsed.ip_offset)?;
    let found = find(tables, control, work, parsed.transport, tables.now(control), true);
    if found && work.found.reply {
        return Err(Stage::NatReturn.into());
    }
    if !found && control.is_moving_in() && !parsed.transport.opens() {
        return Err(Stage::Former.into());
    }
    if !found || work.found.over && !control.is_moving() {
        return Err(Stage::NatNew.into());
    }
    let (id, told) = (work.found.backend, work.found.told);
    // The choice takes it.
    drop(scratch);
    // To tell the flow table of the flow once a tick is enough to keep it there.
    let known =
        if told { translated_to(tables, id, &parsed, classified.service, tables.now(control)) } else { None };
    let pick = match known {
        Some(pick) => pick,
        None => remember(tables, id, &parsed, classified)?,
    };
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    forward(packet, tables, control, work, room, &parsed, fragment, classified.service, &pick)
}

/// Translates a backend's answer, or a fragment without ports of either direction.
#[inline(always)]
pub(super) fn steer_return<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, fragment) = settle(tables, parse::whole(packet)?)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    if fragment.later {
        return follow(packet, tables, control, work, room, &parsed, fragment);
    }
    work.key = TupleKey::of(&parsed.tuple);
    let now = tables.now(control);
    if !find(tables, control, work, parsed.transport, now, false) || !work.found.reply {
        return Err(if control.is_moving_in() { Stage::Former.into() } else { Verdict::PassNotVip.into() });
    }
    admit(packet, control).map_err(|_| Verdict::PassNotVip)?;
    answer(packet, tables, control, work, &parsed, fragment)
}

/// Sends a customer's packet to its backend.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a structure of them would be laid out on the BPF stack")]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    room: &mut NextHop,
    parsed: &Parsed,
    fragment: Fragment,
    service: u32,
    pick: &Pick<'_>,
) -> Result<Outcome, Exit> {
    let hop = rare::resolve(packet, control, parsed, pick, room)?;
    check(packet, control, parsed, hop.mtu)?;
    let new = work.found.fresh;
    if fragment.is {
        let leaves = work.found.leaves;
        let route = &mut work.route;
        (route.source, route.destination) = (leaves.source, leaves.destination);
        (route.tick, route.service, route.backend) = (pick.now.0, service as u16, pick.id);
        route.kind = FragmentRoute::TRANSLATED;
        fragment::remember(tables, parsed, fragment, work);
    }
    observe(tables, parsed, &work.found.leaves, new, false);
    translate(packet, parsed, &work.found.leaves, false)?;
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service, pick.id, parsed.bytes, pick.seen.new_flow(new)))
}

/// The backend of the translation, if it may serve the packet.
#[inline(always)]
fn translated_to<'a, T: Tables>(
    tables: &'a T,
    id: u16,
    parsed: &Parsed,
    service: u32,
    now: Tick,
) -> Option<Pick<'a>> {
    let backend = tables.backend(id)?;
    let word = backend.load();
    (word.serves(service) && pick::may_stay(parsed.transport, word)).then_some(Pick {
        id,
        backend,
        word,
        seen: Seen::of(parsed.transport),
        hash: 0,
        now,
    })
}

/// Asks the flow table, which remembers the flow.
#[inline(always)]
fn remember<'a, T: Tables>(
    tables: &'a T,
    id: u16,
    parsed: &Parsed,
    classified: Classified,
) -> Result<Pick<'a>, Exit> {
    let pick = pick::pick(tables, Asked { classified, transport: parsed.transport, held: id })?;
    if id == pick.id {
        return Ok(pick);
    }
    // An established flow stays with its translation, whatever the flow table has forgotten of it.
    translated_to(tables, id, parsed, classified.service, pick.now).ok_or_else(|| Stage::NatNew.into())
}

/// Sends a backend's answer to the customer.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    parsed: &Parsed,
    fragment: Fragment,
) -> Result<Outcome, Exit> {
    let (leaves, path) = (work.found.leaves, work.path);
    check(packet, control, parsed, room_back(packet, parsed, &path))?;
    if fragment.is {
        let route = &mut work.route;
        (route.source, route.destination) = (leaves.source, leaves.destination);
        (route.tick, route.backend) = (tables.now(control).0, work.found.backend);
        (route.first, route.rest, route.vlan) = (path.first, path.rest, path.vlan as u32);
        route.kind = FragmentRoute::ANSWER;
        fragment::remember(tables, parsed, fragment, work);
    }
    observe(tables, parsed, &leaves, false, true);
    tables.observe(Step::AnswerOf(work.found.backend));
    translate(packet, parsed, &leaves, false)?;
    let interface = leave(packet, parsed, &path)?;
    Ok(Outcome::without_backend(Verdict::ForwardReturn, interface))
}

#[inline(always)]
fn observe<T: Tables>(tables: &T, parsed: &Parsed, leaves: &Leaves, new: bool, reply: bool) {
    let protocol = parsed.tuple.protocol;
    let Leaves { source, destination, ports } = *leaves;
    tables.observe(Step::Translated { tuple: Tuple { source, destination, ports, protocol }, new, reply });
}

/// Sends a fragment without ports after the first.
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    room: &mut NextHop,
    parsed: &Parsed,
    fragment: Fragment,
) -> Result<Outcome, Exit> {
    let now = tables.now(control);
    work.key = TupleKey::of_fragment(&parsed.tuple, fragment.identification);
    let Work { key, route, .. } = work;
    tables.fragment(key, |found| *route = *found).ok_or(Verdict::DropFragment)?;
    if !fragment::is_fresh(route, now) {
        return Err(Verdict::DropFragment.into());
    }
    admit(packet, control)?;
    let FragmentRoute { source, destination, service, backend: id, .. } = work.route;
    let leaves = Leaves { source, destination, ports: parsed.tuple.ports };
    if work.route.kind == FragmentRoute::ANSWER {
        let FragmentRoute { first, rest, vlan, .. } = work.route;
        let path = ReturnPath { first, rest, vlan: vlan.into() };
        check(packet, control, parsed, room_back(packet, parsed, &path))?;
        translate(packet, parsed, &leaves, true)?;
        let interface = leave(packet, parsed, &path)?;
        return Ok(Outcome::without_backend(Verdict::ForwardReturn, interface));
    }
    let backend = tables.backend(id).ok_or(Verdict::DropFragment)?;
    let word = backend.load();
    if !word.serves(service.into()) {
        return Err(Verdict::DropFragment.into());
    }
    let pick = Pick { id, backend, word, seen: Seen::NOTHING, hash: 0, now };
    let hop = rare::resolve(packet, control, parsed, &pick, room)?;
    check(packet, control, parsed, hop.mtu)?;
    translate(packet, parsed, &leaves, true)?;
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service.into(), pick.id, parsed.bytes, Seen::NOTHING))
}

/// Bytes of the largest packet that fits on an answer's way back; 0 if any does that came as far as this: on the interface that it came
/// in on, or one so small that every interface takes it.
#[inline(always)]
fn room_back<P: Packet>(packet: &P, parsed: &Parsed, path: &ReturnPath) -> u16 {
    let interface = (path.rest >> 32) as u32;
    if parsed.bytes <= ALWAYS_FITS || interface == packet.interface() { 0 } else { packet.mtu(interface) }
}

/// Whether the packet may be routed on: it is small enough, and its time to live is not at its end.
#[inline(always)]
fn check<P: Packet>(packet: &P, control: &Control, parsed: &Parsed, mtu: u16) -> Result<(), Exit> {
    let v4 = parsed.tuple.destination.is_v4();
    let [_, _, _, _, _, _, flags, hops, ttl, ..]: [u8; 12] =
        packet.read(parsed.ip_offset).ok_or(Verdict::PassMalformedEthernet)?;
    check_size(control, parsed.bytes, mtu, !v4 || flags & 0x40 != 0)?;
    if (if v4 { ttl } else { hops }) <= 1 { Err(Exit::expired()) } else { Ok(()) }
}

/// Gives the frame tags and addresses for the way back to the customer.
#[inline(always)]
fn leave<P: Packet>(packet: &mut P, parsed: &Parsed, path: &ReturnPath) -> Result<u32, Exit> {
    rewrite::tag_as(packet, parsed.ip_offset, path.vlan as u32)?;
    address_frame(packet, path.first, path.rest as u32, (path.rest >> 32) as u32)
}

/// Gives the frame tag and addresses for the way to a backend.
#[inline(always)]
fn leave_to<P: Packet>(packet: &mut P, parsed: &Parsed, hop: &NextHop) -> Result<u32, Exit> {
    rewrite::retag(packet, parsed.ip_offset, hop.vlan)?;
    address_frame(packet, hop.first, hop.rest, hop.interface)
}

/// Where a customer's packet came from.
#[inline(always)]
fn came_from<P: Packet>(packet: &P, ip_offset: usize) -> Result<ReturnPath, Verdict> {
    let lost = Verdict::PassMalformedEthernet;
    let start: u64 = packet.read(0).ok_or(lost)?;
    let rest: u32 = packet.read(8).ok_or(lost)?;
    Ok(ReturnPath {
        first: start >> 48 | u64::from(rest) << 16 | start << 48,
        rest: start >> 16 & 0xffff_ffff | u64::from(packet.interface()) << 32,
        vlan: rewrite::tags(packet, ip_offset)?.into(),
    })
}

/// Writes the addresses and, where there are any, the ports that a packet leaves with; its time to live is one less.
#[inline(always)]
fn translate<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    leaves: &Leaves,
    later_fragment: bool,
) -> Result<(), Exit> {
    let tuple = &parsed.tuple;
    let lost = Verdict::PassMalformedTransport;
    let addresses = Change::NONE
        .and_address(tuple.source, leaves.source)
        .and_address(tuple.destination, leaves.destination);
    if !later_fragment {
        let change = addresses.and(tuple.ports.word(), leaves.ports.word());
        let at = parsed.transport_offset
            + if tuple.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        let checksum = Be16::from_wire(packet.read(at).ok_or(lost)?);
        let checksum =
            if tuple.protocol == Protocol::TCP { change.apply(checksum) } else { change.apply_udp(checksum) };
        packet.write(at, checksum.raw()).ok_or(lost)?;
        packet.write(parsed.transport_offset, leaves.ports.word()).ok_or(lost)?;
    }
    address_packet(packet, parsed, leaves, addresses, 1).ok_or(lost)?;
    Ok(())
}

/// Writes the addresses into an IP header, and takes `hops` from its time to live; `addresses` is what that changes.
#[inline(always)]
fn address_packet<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    leaves: &Leaves,
    addresses: Change,
    hops: u8,
) -> Option<()> {
    let at = parsed.ip_offset;
    if parsed.tuple.destination.is_v4() {
        let [ttl, protocol, high, low]: [u8; 4] = packet.read(at + 8)?;
        let (old, new) =
            (Be16::from_wire([ttl, protocol]), Be16::from_wire([ttl.wrapping_sub(hops), protocol]));
        let checksum = addresses.and_half(old, new).apply(Be16::from_wire([high, low]));
        let [high, low] = checksum.raw().to_ne_bytes();
        let third = u32::from_ne_bytes([ttl.wrapping_sub(hops), protocol, high, low]);
        packet.write(at + 8, [third, leaves.source.words()[3], leaves.destination.words()[3]])
    } else {
        let [next, limit]: [u8; 2] = packet.read(at + 6)?;
        packet.write(at + 6, [next, limit.wrapping_sub(hops)])?;
        let ([a, b, c, d], [e, f, g, h]) = (leaves.source.words(), leaves.destination.words());
        packet.write(at + 8, [a, b, c, d, e, f, g, h])
    }
}
