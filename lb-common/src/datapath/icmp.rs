//! An ICMP or ICMPv6 packet → its answer in place, the backend whose flow it is about, or the host's.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use super::answer::MIN_IPV6_MTU;
use super::parse::{self, ICMP_BYTES, Parsed, Quoted};
use super::pick::{Pick, by_client, peek};
use super::rewrite::{DONT_FRAGMENT, FLOW_LABEL, TTL, gue_port};
use super::settled::{settle, settle_quoted};
use super::{Exit, Outcome, Packet, Stage, Step, Tables, admit, classify, is_vip, rare};
use crate::abi::{
    Control, GUE_PORT, ICMP_PER_TICK, PathMtu, SENDER_SLOTS, TOO_BIG_PER_SENDER, TOO_BIG_PER_TICK, Word,
};
use crate::checksum::{Change, Sum};
use crate::flow::Tick;
use crate::hash;
use crate::net::{Address, Be16, Protocol, Tuple};
use crate::verdict::Verdict;

/// Types of an echo request and of its answer (RFC 792).
const V4_ECHO: (u8, u8) = (8, 0);
/// The same of ICMPv6 (RFC 4443 section 4).
const V6_ECHO: (u8, u8) = (128, 129);
/// The least that a tunnel's MTU is believed to be, over IPv4 as over IPv6: what is told beyond is an attack, not a network between an edge host
/// and its servers. The datagrams of QUIC, which cannot be smaller than 1,200 bytes (RFC 9000 section 14), fit into every tunnel then.
const MIN_PATH_MTU: u16 = MIN_IPV6_MTU;

/// Whether this is the type of an error: destination unreachable, redirect's elder source quench, time exceeded, parameter
/// problem (RFC 792, RFC 1122 section 3.2.2); ICMPv6 marks errors by the upper bit (RFC 4443 section 2.1).
#[inline(always)]
pub(super) const fn is_error(kind: u8, v4: bool) -> bool {
    if v4 { matches!(kind, 3 | 4 | 11 | 12) } else { kind < 128 }
}

/// Whether the source is a host that an answer can go to (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7).
#[inline(always)]
pub(super) fn may_be_answered(tuple: &Tuple) -> bool {
    let words = tuple.source.words();
    if tuple.source == tuple.destination {
        return false;
    }
    if tuple.source.is_v4() {
        let first = words[3] as u8;
        tuple.source != Address::v4([255; 4]) && first != 0 && first != 127 && first & 0xf0 != 0xe0
    } else {
        words[0] as u8 != 0xff && !tuple.source.is_zero()
    }
}

/// Where the numbers begin in [`Control::icmp_budget`], each of which is limited by itself: a flood of pings, or of packets whose time is
/// over, must not keep a sender from learning what is too big.
const ECHO_SHIFT: u32 = 0;
const TOO_BIG_SHIFT: u32 = 16;
const EXPIRED_SHIFT: u32 = 32;
/// Where the tick begins there, and in the words of senders.
const TICK_SHIFT: u32 = 48;

/// Takes one from the number of echo replies that may be sent in this tick.
#[inline(always)]
fn spend_echo<T: Tables>(tables: &T, control: &Control) -> Result<(), Verdict> {
    let budget = tables.icmp_budget().ok_or(Verdict::DropInconsistent)?;
    spend(budget, tables.now(control), ECHO_SHIFT, 1, ICMP_PER_TICK.into())
}

/// Takes one from the number of errors that may be sent in this tick to the sender of a packet too big for an MTU, and to all senders together;
/// 0: whose packet's time is exceeded, of whom are none by themselves. Without a branch between the two, both ways of which a verifier
/// would go.
#[inline(always)]
pub(super) fn spend_error<T: Tables>(
    tables: &T,
    control: &Control,
    tuple: &Tuple,
    mtu: u16,
) -> Result<(), Verdict> {
    let lost = Verdict::DropInconsistent;
    let now = tables.now(control);
    let expired = tables.hide(mtu.into()).wrapping_sub(1) >> 63;
    let of_sender = tables.sender_budget(sender_slot(control, tuple)).ok_or(lost)?;
    spend(of_sender, now, 0, 1 - expired, u64::from(TOO_BIG_PER_SENDER) | expired << 16)?;
    let shift = TOO_BIG_SHIFT + (EXPIRED_SHIFT - TOO_BIG_SHIFT) * expired as u32;
    let limit = u64::from(TOO_BIG_PER_TICK) - u64::from(TOO_BIG_PER_TICK - ICMP_PER_TICK) * expired;
    spend(tables.icmp_budget().ok_or(lost)?, now, shift, 1, limit)
}

/// Adds to a number that is for one tick, if it is below its limit.
#[inline(always)]
fn spend(budget: &Word, now: Tick, shift: u32, more: u64, limit: u64) -> Result<(), Verdict> {
    let now = u64::from(now.0) << TICK_SHIFT;
    let word = budget.load();
    let sent = if (word ^ now) >> TICK_SHIFT == 0 { word } else { now };
    if sent >> shift & 0xffff >= limit {
        return Err(Verdict::DropIcmpRate);
    }
    // Two CPUs may count as one: the number is a limit, not an account.
    budget.store(sent + (more << shift));
    Ok(())
}

const _: () = assert!(ICMP_PER_TICK <= TOO_BIG_PER_TICK && TOO_BIG_PER_TICK < 0xffff);

/// A sender's place in the map `senders`, which nobody outside can aim at. One of IPv6 has all addresses of a network (RFC 4291 section
/// 2.5.1) to draw from.
#[inline(always)]
fn sender_slot(control: &Control, tuple: &Tuple) -> u32 {
    let source = tuple.source;
    let [a, b, _, _] = source.words();
    let source = if source.is_v4() { source } else { Address::from_words([a, b, 0, 0]) };
    let sender = Tuple { source, ..by_client(tuple) };
    hash::reduce(hash::flow(&control.flow_key, &sender), SENDER_SLOTS)
}

/// Answers an echo request to a VIP; leaves everything else as it is.
#[inline(always)]
pub(super) fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, _) = parse::whole(packet)?;
    tables.observe(Step::Parsed(parsed.tuple));
    if !is_vip(tables, control, parsed.tuple.destination) {
        return Err(Verdict::PassNotVip.into());
    }
    admit(packet, control)?;
    let v4 = parsed.tuple.destination.is_v4();
    let (request, reply) = if v4 { V4_ECHO } else { V6_ECHO };
    let [kind, code, high, low]: [u8; 4] =
        packet.read(parsed.transport_offset).ok_or(Verdict::PassMalformedTransport)?;
    if kind != request || code != 0 || !may_be_answered(&parsed.tuple) {
        return Err(Verdict::PassIcmp.into());
    }
    spend_echo(tables, control)?;
    let change = Change::NONE.and_half(Be16::from_wire([request, 0]), Be16::from_wire([reply, 0]));
    let [high, low] = change.apply(Be16::from_wire([high, low])).raw().to_ne_bytes();
    echo(packet, &parsed, [reply, 0, high, low]).ok_or(Verdict::PassMalformedTransport)?;
    Ok(Outcome::without_backend(Verdict::ReplyIcmpEcho, 0))
}

/// Turns the request into its reply. All reads come before the first write, so it is done whole or not at all.
#[inline(always)]
fn echo<P: Packet>(packet: &mut P, parsed: &Parsed, icmp: [u8; 4]) -> Option<()> {
    let mut ethernet: EthHdr = packet.read(0)?;
    core::mem::swap(&mut ethernet.src_addr, &mut ethernet.dst_addr);
    if parsed.tuple.destination.is_v4() {
        let mut ip: Ipv4Hdr = packet.read(parsed.ip_offset)?;
        core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
        let (old, new) = (Be16::from_wire([ip.ttl, ip.proto]), Be16::from_wire([TTL, ip.proto]));
        ip.check = Change::NONE.and_half(old, new).apply(Be16::from_wire(ip.check)).raw().to_ne_bytes();
        ip.ttl = TTL;
        packet.write(parsed.ip_offset, ip)?;
    } else {
        // The pseudo-header's sum is the same with the addresses exchanged.
        let [a, b, s0, s1, s2, s3, d0, d1, d2, d3]: [u32; Ipv6Hdr::LEN / 4] =
            packet.read(parsed.ip_offset)?;
        let [high, low, next, _] = b.to_ne_bytes();
        let b = u32::from_ne_bytes([high, low, next, TTL]);
        packet.write(parsed.ip_offset, [a, b, d0, d1, d2, d3, s0, s1, s2, s3])?;
    }
    packet.write(0, ethernet)?;
    packet.write(parsed.transport_offset, icmp)
}

/// Writes an IPv4 header of an ICMP packet of our own; `length` is the packet's, as it is stored.
#[inline(always)]
pub(super) fn write_ipv4<P: Packet>(
    packet: &mut P,
    at: usize,
    length: [u8; 2],
    from: u32,
    to: u32,
) -> Option<()> {
    let first = u32::from_ne_bytes([0x45, 0, length[0], length[1]]);
    let third = u32::from_ne_bytes([TTL, Protocol::ICMP.0, 0, 0]);
    let sum = Sum::default().and(first).and(DONT_FRAGMENT).and(third).and(from).and(to);
    packet.write(at, [first, DONT_FRAGMENT, third | u32::from(sum.checksum().raw()) << 16, from, to])
}

/// Sends an error to the backend whose flow it is about; translates one about a translated flow; notes what one about a
/// tunnel tells.
#[inline(always)]
pub(super) fn steer_error<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (mut parsed, _) = settle(tables, parse::whole(packet)?)?;
    tables.observe(Step::Parsed(parsed.tuple));
    let to = parsed.tuple.destination;
    let vip = is_vip(tables, control, to);
    let untouched = if vip { Verdict::PassIcmp } else { Verdict::PassNotVip };
    let quoted_offset = parsed.transport_offset + ICMP_BYTES;
    let quoted = parse::quoted(packet, quoted_offset, to.is_v4()).ok_or(untouched)?;
    let quoted = settle_quoted(tables, &quoted).ok_or(Verdict::DropInconsistent)?;
    tables.observe(Step::Quoted(quoted.tuple));
    // What lies in the frame behind the error's end is not quoted.
    let is_whole = quoted.transport_offset + size_of::<u32>() <= parsed.end();
    if !is_whole || quoted.tuple.source != to {
        return Err(untouched.into());
    }
    admit(packet, control).map_err(|verdict| if vip { verdict } else { untouched })?;
    let ported = quoted.tuple.protocol == Protocol::TCP || quoted.tuple.protocol == Protocol::UDP;
    if !vip {
        let noted = note_path(packet, tables, control, &parsed, &quoted);
        let otherwise = if ported { Stage::NatError.into() } else { untouched.into() };
        return Err(noted.map_or(otherwise, Exit::from));
    }
    if !ported {
        return Err(untouched.into());
    }
    let flow = quoted.tuple.reversed();
    let classified = classify(tables, control, &flow).ok_or(untouched)?;
    if classified.flags.nat() {
        return Err(Stage::NatError.into());
    }
    let pick = peek(tables, control, &flow, classified)?;
    rare::deliver(packet, tables, control, &mut parsed, &pick, classified.service)
}

#[inline(always)]
fn is_gue(quoted: &Quoted) -> bool {
    quoted.tuple.protocol == Protocol::UDP && quoted.tuple.ports.destination() == Be16::new(GUE_PORT)
}

/// Notes the MTU that a router on a tunnel's way tells, with the backend at its end. Packets of ours are told from others by the
/// packet within, which must be of a service's flow, and by the outer header, which must be the one that it was sent with: what is
/// filled in by flow, nobody outside can foretell.
#[inline(always)]
fn note_path<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    quoted: &Quoted,
) -> Option<Verdict> {
    let [kind, code, _, _, a, b, high, low]: [u8; ICMP_BYTES] = packet.read(parsed.transport_offset)?;
    let too_big = if parsed.tuple.destination.is_v4() { kind == 3 && code == 4 } else { kind == 2 };
    let told = u32::from_be_bytes([if kind == 2 { a } else { 0 }, if kind == 2 { b } else { 0 }, high, low]);
    let outer_v4 = quoted.tuple.destination.is_v4();
    if !too_big || told < u32::from(MIN_PATH_MTU) || told > u32::from(u16::MAX) {
        return None;
    }
    let (inner_offset, v4) = match quoted.tuple.protocol {
        Protocol::IPIP => (quoted.transport_offset, true),
        Protocol::IPV6 => (quoted.transport_offset, false),
        _ if is_gue(quoted) => {
            let [_, protocol, ..]: [u8; 4] = packet.read(quoted.transport_offset + UdpHdr::LEN)?;
            (quoted.transport_offset + UdpHdr::LEN + 4, protocol == Protocol::IPIP.0)
        }
        _ => return None,
    };
    let inner = settle_quoted(tables, &parse::quoted(packet, inner_offset, v4)?)?;
    let classified = classify(tables, control, &inner.tuple)?;
    let pick = peek(tables, control, &inner.tuple, classified).ok()?;
    let spread = hash::spread(pick.hash);
    let label: u32 = packet.read(parsed.transport_offset + ICMP_BYTES)?;
    let is_ours = pick.backend.address == quoted.tuple.destination
        && tunnel_source(control, &pick, spread) == quoted.tuple.source
        && (!is_gue(quoted) || quoted.tuple.ports.source() == gue_port(spread))
        && (outer_v4 || (u32::from_be(label) ^ spread) & FLOW_LABEL == 0);
    if !is_ours {
        return None;
    }
    tables.note(pick.id, PathMtu { mtu: told as u16, told: pick.now }.to_word());
    Some(Verdict::PassPathMtu)
}

/// Where packets to this backend are sent from, in a tunnel.
#[inline(always)]
fn tunnel_source(control: &Control, pick: &Pick<'_>, spread: u32) -> Address {
    if pick.word.is_resolved() {
        let hop = pick.backend.hop(pick.word);
        hop.source.with_low_bits(spread & hop.source_mask)
    } else {
        control.sources[usize::from(!pick.backend.address.is_v4())]
    }
}
