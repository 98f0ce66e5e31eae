//! A packet and its backend → the frame as it leaves.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use super::answer::MIN_IPV6_MTU;
use super::ethernet::VLAN_TAG_BYTES;
use super::parse::Parsed;
use super::pick::Pick;
use super::{Exit, Packet, Stage, Step, Tables};
use crate::abi::{Control, Forwarding, GUE_PORT, NextHop, PathMtu};
use crate::checksum::Sum;
use crate::hash;
use crate::net::{Be16, EtherType, Protocol};
use crate::verdict::Verdict;

/// Time to live of what we send (RFC 1700, "IP TIME TO LIVE PARAMETER").
pub(super) const TTL: u8 = 64;
/// "Don't fragment" in the word of an IPv4 header that begins with the identification.
pub(super) const DONT_FRAGMENT: u32 = u32::from_ne_bytes([0, 0, 0x40, 0]);
/// Bytes of a GUE header without extensions (draft-ietf-intarea-gue-09 section 3).
const GUE_BYTES: usize = 4;
/// The flow label in the first word of an IPv6 header, in host order.
pub(super) const FLOW_LABEL: u32 = 0xf_ffff;
/// The VLAN id in tag control information.
const VLAN_ID_MASK: u16 = 0x0fff;
pub(super) const UNTAGGED: u16 = NextHop::UNTAGGED;

/// Rewrites a packet whose frame has the tags that the next hop needs, for its backend's forwarding mode. Yields the index of the interface to
/// transmit on; 0 for the one the packet came from, which `on` is.
#[inline(always)]
pub(super) fn send<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    pick: &Pick<'_>,
    hop: &NextHop,
    on: u32,
) -> Result<u32, Exit> {
    wrap(packet, control, parsed, pick, hop)?;
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    write_addresses(packet, hop.first, hop.rest)?;
    Ok(leaves_on(hop.interface, on))
}

/// Puts in front of a packet what its backend's forwarding mode needs there.
#[inline(always)]
pub(super) fn wrap<P: Packet>(
    packet: &mut P,
    control: &Control,
    parsed: &Parsed,
    pick: &Pick<'_>,
    hop: &NextHop,
) -> Result<(), Exit> {
    if pick.word.is_l2_dsr() {
        return Ok(());
    }
    match pick.word.forwarding() {
        Forwarding::L2Dsr => Ok(()),
        Forwarding::Ipip => encapsulate(packet, control, parsed, pick, hop, false),
        Forwarding::Gue => encapsulate(packet, control, parsed, pick, hop, true),
        // Its service is just becoming one.
        Forwarding::Nat => Err(Stage::Nat.into()),
    }
}

/// Writes both MAC addresses, given as [`NextHop`] has them. Yields the index of the interface to transmit on; 0 for the one the packet came from.
#[inline(always)]
pub(super) fn address_frame<P: Packet>(
    packet: &mut P,
    first: u64,
    rest: u32,
    interface: u32,
) -> Result<u32, Exit> {
    write_addresses(packet, first, rest)?;
    Ok(leaves_on(interface, packet.interface()))
}

#[inline(always)]
fn write_addresses<P: Packet>(packet: &mut P, first: u64, rest: u32) -> Result<(), Verdict> {
    packet.write_both(0, first, rest).ok_or(Verdict::PassMalformedEthernet)
}

/// The interface that a packet which came in `on` one leaves on: 0 for the same.
#[inline(always)]
const fn leaves_on(interface: u32, on: u32) -> u32 {
    if interface == on { 0 } else { interface }
}

/// The frame's VLAN id, as [`NextHop::vlan`] has it.
#[inline(always)]
pub(super) fn vlan<P: Packet>(packet: &P, ip_offset: usize) -> Result<u16, Verdict> {
    if ip_offset == EthHdr::LEN {
        return Ok(UNTAGGED);
    }
    let tag = packet.read(EthHdr::LEN).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(Be16::from_wire(tag).get() & VLAN_ID_MASK)
}

/// Gives the frame the tag that the next hop's VLAN needs: by changing the outermost tag's id, by a tag put in, or by all of
/// them taken away. Yields by how many bytes everything behind lies further on.
#[inline(always)]
pub(super) fn retag<P: Packet>(packet: &mut P, ip_offset: usize, wanted: u16) -> Result<isize, Verdict> {
    let now = vlan(packet, ip_offset)?;
    if wanted == 0 || wanted == now {
        return Ok(0);
    }
    let ether_type: u16 = packet.read(ip_offset - 2).ok_or(Verdict::PassMalformedEthernet)?;
    if wanted == UNTAGGED {
        let tags = ip_offset - EthHdr::LEN;
        packet.shrink_head(tags).ok_or(Verdict::DropHeadroom)?;
        packet.write(EthHdr::LEN - 2, ether_type).ok_or(Verdict::DropInconsistent)?;
        return Ok(-(tags as isize));
    }
    if now == UNTAGGED {
        packet.grow_head(VLAN_TAG_BYTES).ok_or(Verdict::DropHeadroom)?;
        packet.write(EthHdr::LEN - 2, EtherType::VLAN.0.raw()).ok_or(Verdict::DropInconsistent)?;
        packet.write(EthHdr::LEN, Be16::new(wanted).raw()).ok_or(Verdict::DropInconsistent)?;
        return Ok(VLAN_TAG_BYTES as isize);
    }
    let tag = packet.read(EthHdr::LEN).ok_or(Verdict::PassMalformedEthernet)?;
    let tag = Be16::from_wire(tag).get() & !VLAN_ID_MASK | wanted;
    packet.write(EthHdr::LEN, Be16::new(tag).raw()).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(0)
}

/// In [`ReturnPath::vlan`](crate::abi::ReturnPath::vlan): the outer tag is a service VLAN's.
const SERVICE: u32 = 1 << 14;
/// There is a second tag, whose id and kind stand as those of the first, but higher up.
const INNER: u32 = 1 << 28;
const INNER_SHIFT: u32 = 16;

/// A frame's VLAN tags, as in [`ReturnPath::vlan`](crate::abi::ReturnPath::vlan).
#[inline(always)]
pub(super) fn tags<P: Packet>(packet: &P, ip_offset: usize) -> Result<u32, Verdict> {
    let tag = |at: usize| {
        let [kind, control]: [u16; 2] = packet.read(at - 2).ok_or(Verdict::PassMalformedEthernet)?;
        let service = if kind == EtherType::SERVICE_VLAN.0.raw() { SERVICE } else { 0 };
        Ok(service | u32::from(Be16::from_wire(control.to_ne_bytes()).get() & VLAN_ID_MASK))
    };
    match ip_offset - EthHdr::LEN {
        0 => Ok(UNTAGGED.into()),
        VLAN_TAG_BYTES => tag(EthHdr::LEN),
        _ => Ok(tag(EthHdr::LEN)? | INNER | tag(EthHdr::LEN + VLAN_TAG_BYTES)? << INNER_SHIFT),
    }
}

/// Gives the frame these tags, in the place of those it has.
#[inline(always)]
pub(super) fn tag_as<P: Packet>(packet: &mut P, ip_offset: usize, wanted: u32) -> Result<(), Verdict> {
    let now = tags(packet, ip_offset)?;
    if wanted == now {
        return Ok(());
    }
    let lost = Verdict::PassMalformedEthernet;
    let ether_type: u16 = packet.read(ip_offset - 2).ok_or(lost)?;
    let control: u16 = packet.read(EthHdr::LEN).ok_or(lost)?;
    let priority =
        if now == UNTAGGED.into() { 0 } else { Be16::from_wire(control.to_ne_bytes()).get() & !VLAN_ID_MASK };
    let has = ip_offset - EthHdr::LEN;
    let needs = match (wanted == UNTAGGED.into(), wanted & INNER) {
        (true, _) => 0,
        (_, 0) => VLAN_TAG_BYTES,
        _ => 2 * VLAN_TAG_BYTES,
    };
    if needs > has {
        packet.grow_head(needs - has).ok_or(Verdict::DropHeadroom)?;
    } else if needs < has {
        packet.shrink_head(has - needs).ok_or(Verdict::DropHeadroom)?;
    }
    let tag = |tag: u32, priority: u16| {
        let kind = if tag & SERVICE == 0 { EtherType::VLAN } else { EtherType::SERVICE_VLAN };
        [kind.0.raw(), Be16::new(tag as u16 & VLAN_ID_MASK | priority).raw()]
    };
    if needs > 0 {
        packet.write(EthHdr::LEN - 2, tag(wanted, priority)).ok_or(Verdict::DropInconsistent)?;
    }
    if needs > VLAN_TAG_BYTES {
        let inner = tag(wanted >> INNER_SHIFT, priority);
        packet.write(EthHdr::LEN + 2, inner).ok_or(Verdict::DropInconsistent)?;
    }
    packet.write(EthHdr::LEN - 2 + needs, ether_type).ok_or(Verdict::DropInconsistent)
}

/// Type of service or traffic class of a packet.
#[inline(always)]
fn tos<P: Packet>(packet: &P, parsed: &Parsed) -> Result<u8, Verdict> {
    let [a, b]: [u8; 2] = packet.read(parsed.ip_offset).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(if parsed.tuple.destination.is_v4() { b } else { a << 4 | b >> 4 })
}

/// Whether nobody on the way may fragment a packet.
#[inline(always)]
fn is_whole<P: Packet>(packet: &P, parsed: &Parsed) -> Result<bool, Verdict> {
    let [flags, _]: [u8; 2] = packet.read(parsed.ip_offset + 6).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(!parsed.tuple.destination.is_v4() || flags & 0x40 != 0)
}

/// Says whether a packet is too big to go on: the exit it then takes. `room` is how many bytes it may have; 0 for any number.
#[inline(always)]
pub(super) fn check_size(control: &Control, bytes: u16, room: u16, whole: bool) -> Result<(), Exit> {
    if room == 0 || bytes <= room {
        return Ok(());
    }
    Err(if whole || control.settings.reply_oversized() {
        Exit::too_big(room)
    } else {
        Verdict::DropTooBig.into()
    })
}

/// Bytes that go in front of the packet's own IP header.
#[inline(always)]
const fn overhead(forwarding: Forwarding, outer_v4: bool) -> usize {
    let ip = if outer_v4 { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN };
    match forwarding {
        Forwarding::Ipip => ip,
        Forwarding::Gue => ip + UdpHdr::LEN + GUE_BYTES,
        Forwarding::L2Dsr | Forwarding::Nat => 0,
    }
}

/// Whether the packet, with what goes in front of it, is small enough for the way to its backend. With `l2-dsr` it came in
/// on the segment that it goes out on. What a router tells of less than any IPv6 packet may have does not keep one of that size back:
/// its sender could not send a smaller one.
#[inline(always)]
pub(super) fn check_fit<P: Packet>(
    packet: &P,
    control: &Control,
    parsed: &Parsed,
    pick: &Pick<'_>,
    hop: &NextHop,
) -> Result<(), Exit> {
    let overhead = overhead(pick.word.forwarding(), pick.backend.address.is_v4());
    if overhead == 0 {
        return Ok(());
    }
    let noted = pick.backend.noted.load();
    if noted == 0 && u32::from(parsed.bytes) + overhead as u32 <= u32::from(limit(hop.mtu)) {
        return Ok(());
    }
    let within = |mtu: u16| limit(mtu).saturating_sub(overhead as u16);
    let mut room = within(PathMtu::from_word(noted).with(hop.mtu, pick.now));
    if room < MIN_IPV6_MTU && !parsed.tuple.destination.is_v4() {
        room = within(hop.mtu).min(MIN_IPV6_MTU);
    }
    check_size(control, parsed.bytes, room, is_whole(packet, parsed)?)
}

/// Where no MTU is known, the length that an IP header can tell is the limit.
#[inline(always)]
const fn limit(mtu: u16) -> u16 {
    if mtu == 0 { u16::MAX } else { mtu }
}

/// The source port of a flow's GUE packets: one of the dynamic range.
#[inline(always)]
pub(super) const fn gue_port(spread: u32) -> Be16 {
    Be16::new(0xc000 | spread as u16 & 0x3fff)
}

/// Puts an IP header, and for GUE a UDP and a GUE header, in front of the packet.
///
/// The header's own "don't fragment" is always set: what does not fit is told to its sender, and is not to be put
/// together again by a backend. Type of service or traffic class are copied, ECN with them (RFC 6040 section 4.1).
#[inline(always)]
fn encapsulate<P: Packet>(
    packet: &mut P,
    control: &Control,
    parsed: &Parsed,
    pick: &Pick<'_>,
    hop: &NextHop,
    gue: bool,
) -> Result<(), Exit> {
    let tos = tos(packet, parsed)?;
    let outer_v4 = pick.backend.address.is_v4();
    let between = if gue { UdpHdr::LEN + GUE_BYTES } else { 0 };
    let overhead = overhead(if gue { Forwarding::Gue } else { Forwarding::Ipip }, outer_v4);
    check_fit(packet, control, parsed, pick, hop)?;
    // It is of the server's family, if there is one.
    if if outer_v4 { hop.source.words()[3] == 0 } else { hop.source.is_zero() } {
        return Err(Verdict::DropNatSource.into());
    }
    let lost = Verdict::DropInconsistent;
    if parsed.ip_offset == EthHdr::LEN {
        packet.grow_head(overhead).ok_or(Verdict::DropHeadroom)?;
    } else {
        // The tags lie between the MAC addresses and the IP header, of which a part may come with them.
        let tags: u64 = packet.read(12).ok_or(Verdict::PassMalformedEthernet)?;
        packet.grow_head(overhead).ok_or(Verdict::DropHeadroom)?;
        packet.write(12, tags).ok_or(lost)?;
    }
    let protocol = if parsed.tuple.destination.is_v4() { Protocol::IPIP } else { Protocol::IPV6 };
    let next = if gue { Protocol::UDP } else { protocol };
    let spread = hash::spread(pick.hash);
    let source = hop.source.with_low_bits(spread & hop.source_mask);
    let at = parsed.ip_offset;
    let payload = parsed.bytes + between as u16;
    if outer_v4 {
        let [high, low] = (payload + Ipv4Hdr::LEN as u16).to_be_bytes();
        let first = u32::from_ne_bytes([0x45, tos, high, low]);
        let third = u32::from_ne_bytes([TTL, next.0, 0, 0]);
        let (from, to) = (source.words()[3], pick.backend.address.words()[3]);
        let sum = Sum::default().and(first).and(DONT_FRAGMENT).and(third).and(from).and(to);
        let third = third | (sum.checksum().raw() as u32) << 16;
        let words = [first, DONT_FRAGMENT, third, from, to];
        packet.write_both(at - 2, EtherType::IPV4.0.raw(), words).ok_or(lost)?;
    } else {
        // Twenty bits of the flow's hash, for balancing on the way (RFC 6438).
        let first = 6 << 28 | u32::from(tos) << 20 | spread & FLOW_LABEL;
        let [high, low] = payload.to_be_bytes();
        let second = u32::from_ne_bytes([high, low, next.0, TTL]);
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source.words(), pick.backend.address.words());
        let words = [first.to_be(), second, s0, s1, s2, s3, d0, d1, d2, d3];
        packet.write_both(at - 2, EtherType::IPV6.0.raw(), words).ok_or(lost)?;
    }
    if gue {
        // No checksum: the packet within has its own (RFC 6935).
        let ports = u32::from(gue_port(spread).raw()) | u32::from(Be16::new(GUE_PORT).raw()) << 16;
        let length = u32::from(Be16::new(payload).raw());
        let header = u32::from_ne_bytes([0, protocol.0, 0, 0]);
        packet.write(at + overhead - between, [ports, length, header]).ok_or(lost)?;
    }
    Ok(())
}
