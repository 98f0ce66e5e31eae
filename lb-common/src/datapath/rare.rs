//! A packet with something unusual about it → the same steering: VLAN tags, IPv4 options, IPv6 extension headers,
//! fragments, what is to be remembered of a client, next hops that only the kernel's tables know.

use super::parse::{self, Fragment, Parsed, icmp_stage, is_extension};
use super::pick::{Asked, Pick, pick};
use super::settled::{ip_offset, settle};
use super::{
    Exit, Outcome, Packet, Stage, Step, Tables, admit, answers_flow, classify, fragment, is_vip, rewrite,
};
use crate::abi::{Control, Forwarding, FragmentRoute, NextHop};
use crate::flow::Tick;
use crate::net::Protocol;
use crate::verdict::Verdict;

/// parse → classify → admit → pick → rewrite, of whatever kind the packet is.
#[inline(always)]
pub(super) fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (mut parsed, fragment) = settle(tables, parse::whole(packet)?)?;
    tables.observe(Step::Parsed(parsed.tuple));
    has_ports(packet, tables, control, &parsed, fragment)?;
    if fragment.later {
        return fragment::follow(packet, tables, control, &mut parsed, fragment);
    }
    let Some(classified) = classify(tables, control, &parsed.tuple) else {
        if answers_flow(tables, control, &parsed.tuple) {
            return Err(Stage::NatReturn.into());
        }
        if fragment.is && is_vip(tables, control, parsed.tuple.destination) {
            // The rest of it is the host's, too.
            remember(tables, &parsed, fragment, tables.now(control), 0, 0)?;
        }
        return Err(Verdict::PassNotVip.into());
    };
    if classified.flags.nat() {
        return Err(Stage::Nat.into());
    }
    admit(packet, control)?;
    let pick = pick(tables, Asked { classified, transport: parsed.transport, held: 0 })?;
    if fragment.is {
        remember(tables, &parsed, fragment, pick.now, classified.service as u16, pick.id)?;
    }
    deliver(packet, tables, control, &mut parsed, &pick, classified.service)
}

/// Sends away what holds neither TCP nor UDP.
#[inline(always)]
fn has_ports<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    fragment: Fragment,
) -> Result<(), Exit> {
    let protocol = parsed.tuple.protocol;
    if protocol == Protocol::TCP || protocol == Protocol::UDP {
        return Ok(());
    }
    let v4 = parsed.tuple.destination.is_v4();
    // What is behind the options that its first fragment begins with, a later one does not tell.
    if !v4 && fragment.later && is_extension(protocol) {
        return Ok(());
    }
    let icmp = protocol == if v4 { Protocol::ICMP } else { Protocol::ICMPV6 };
    if icmp && !fragment.is {
        let room = usize::from(parsed.bytes) - (parsed.transport_offset - parsed.ip_offset);
        return Err(icmp_stage(packet, parsed.transport_offset, room, v4));
    }
    let verdict = if !is_vip(tables, control, parsed.tuple.destination) {
        Verdict::PassNotVip
    } else if icmp {
        Verdict::PassIcmp
    } else if !v4 && is_extension(protocol) {
        Verdict::DropIpv6Headers
    } else {
        Verdict::PassNotVip
    };
    Err(verdict.into())
}

/// Remembers where the rest of a datagram goes that is not translated.
#[inline(always)]
fn remember<T: Tables>(
    tables: &T,
    parsed: &Parsed,
    fragment: Fragment,
    now: Tick,
    service: u16,
    backend: u16,
) -> Result<(), Verdict> {
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let route = &mut scratch.work.route;
    (route.tick, route.service, route.backend, route.kind) = (now.0, service, backend, FragmentRoute::PLAIN);
    fragment::remember(tables, parsed, fragment, &mut scratch.work);
    Ok(())
}

/// Sends a packet to its backend, whose next hop may have to be asked of the kernel and may be on another VLAN.
#[inline(always)]
pub(super) fn deliver<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &mut Parsed,
    pick: &Pick<'_>,
    service: u32,
) -> Result<Outcome, Exit> {
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let hop = resolve(packet, control, parsed, pick, &mut scratch.hop)?;
    // Before anything is changed: the answer to what does not fit goes back as it came.
    rewrite::check_fit(packet, control, parsed, pick, hop)?;
    let moved = rewrite::retag(packet, parsed.ip_offset, hop.vlan)?;
    parsed.ip_offset = ip_offset(parsed.ip_offset.wrapping_add_signed(moved) as u8);
    let on = packet.interface();
    let interface = rewrite::send(packet, tables, control, parsed, pick, hop, on)?;
    Ok(Outcome::forwarded(interface, service, pick.id, parsed.bytes, pick.seen))
}

/// The next hop in force, else the one that the kernel's routes and neighbours tell, which is put into `room`.
#[inline(always)]
pub(super) fn resolve<'a, P: Packet>(
    packet: &P,
    control: &Control,
    parsed: &Parsed,
    pick: &Pick<'a>,
    room: &'a mut NextHop,
) -> Result<&'a NextHop, Verdict> {
    if pick.word.is_resolved() {
        return Ok(pick.backend.hop(pick.word));
    }
    let to = pick.backend.address;
    let own = control.sources[usize::from(!to.is_v4())];
    let from = if own.is_zero() { parsed.tuple.source } else { own };
    let direct = packet.route(from, to, room).ok_or(Verdict::DropNoNextHop)?;
    if !direct && pick.word.forwarding() == Forwarding::L2Dsr {
        return Err(Verdict::DropNoNextHop);
    }
    room.source = own;
    Ok(room)
}
