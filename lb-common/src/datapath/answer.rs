//! A packet that cannot go on → the ICMP or ICMPv6 error that tells its sender so.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::icmp::{self, is_error, may_be_answered};
use super::parse::{self, ICMP_BYTES};
use super::{Exit, Outcome, Packet, Tables};
use crate::checksum::Sum;
use crate::net::{Be16, Protocol};
use crate::verdict::Verdict;

/// Bytes of the packet that are quoted at most: well within the 576 of RFC 1812 section 4.3.2.3, and enough for QUIC's connection
/// ids, by which a sender knows its own packet (RFC 9000 section 14.2.1).
const MAX_QUOTE_BYTES: usize = 256;
/// The smallest MTU of IPv6: no sender may be told of a smaller one, nor heeds it (RFC 8200 section 5, RFC 8201 section 4).
pub(super) const MIN_IPV6_MTU: u16 = 1_280;
/// "Destination unreachable: fragmentation needed" (RFC 1191 section 4).
const FRAGMENTATION_NEEDED: u32 = u32::from_ne_bytes([3, 4, 0, 0]);
/// "Time exceeded in transit" (RFC 792).
const TIME_EXCEEDED: u32 = u32::from_ne_bytes([11, 0, 0, 0]);
/// "Packet too big" (RFC 4443 section 3.2).
const V6_TOO_BIG: u32 = u32::from_ne_bytes([2, 0, 0, 0]);
/// "Time exceeded: hop limit" (RFC 4443 section 3.3).
const V6_TIME_EXCEEDED: u32 = u32::from_ne_bytes([3, 0, 0, 0]);

/// Turns the frame into the answer to it; `exit` says why it cannot go on, and its verdict is that of a packet without one.
///
/// No answer goes to an ICMP error, to a fragment that is not the first, or to an address that is not one host's (RFC
/// 1812 section 4.3.2.7, RFC 4443 section 2.4).
#[inline(always)]
pub(super) fn send<P: Packet, T: Tables>(packet: &mut P, tables: &T, exit: Exit) -> Result<Outcome, Exit> {
    let (unanswered, mtu) = (exit.verdict(), exit.mtu());
    // From the program of a former agent, which hands over elsewhere, in the moment before this one's takes its place.
    if unanswered == Verdict::Forward {
        return Err(Verdict::DropInconsistent.into());
    }
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, fragment) = parse::whole(packet)?;
    let (from, to) = (parsed.tuple.destination, parsed.tuple.source);
    let v4 = from.is_v4();
    let icmp = parsed.tuple.protocol == if v4 { Protocol::ICMP } else { Protocol::ICMPV6 };
    if fragment.later || !may_be_answered(&parsed.tuple) {
        return Err(unanswered.into());
    }
    if icmp {
        let [kind, _] = packet.read(parsed.transport_offset).ok_or(unanswered)?;
        if is_error(kind, v4) {
            return Err(unanswered.into());
        }
    }
    icmp::spend_error(tables, control, &parsed.tuple, mtu)?;

    let at = parsed.ip_offset;
    let mut sum = Sum::default();
    let mut quoted = 0;
    while quoted < MAX_QUOTE_BYTES && quoted < usize::from(parsed.bytes) & !3 {
        let Some(word) = packet.read::<u32>(at + quoted) else { break };
        sum = sum.and(word);
        quoted += 4;
    }
    let (kind, rest) = match (mtu != 0, v4) {
        (true, true) => (FRAGMENTATION_NEEDED, u32::from(mtu).to_be()),
        (true, false) => (V6_TOO_BIG, u32::from(mtu.max(MIN_IPV6_MTU)).to_be()),
        (false, true) => (TIME_EXCEEDED, 0),
        (false, false) => (V6_TIME_EXCEEDED, 0),
    };
    let bytes = ICMP_BYTES + quoted;
    sum = sum.and(kind).and(rest);
    if !v4 {
        let length = (bytes as u32).to_be();
        let next = u32::from(Protocol::ICMPV6.0).to_be();
        sum = sum.and_address(from).and_address(to).and(length).and(next);
    }
    let checksum = u32::from(sum.checksum().raw()) << 16;

    let [d0, d1, d2, s0, s1, s2]: [u16; 6] = packet.read(0).ok_or(Verdict::PassMalformedEthernet)?;
    let tags: u64 = packet.read(12).ok_or(Verdict::PassMalformedEthernet)?;
    let ether_type: u16 = packet.read(at - 2).ok_or(Verdict::PassMalformedEthernet)?;
    let lost = Verdict::DropHeadroom;
    packet.truncate(at + quoted).ok_or(lost)?;
    packet.grow_head(ICMP_BYTES + if v4 { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN }).ok_or(lost)?;
    packet.write(0, [s0, s1, s2, d0, d1, d2]).ok_or(lost)?;
    packet.write(12, tags).ok_or(lost)?;
    packet.write(at - 2, ether_type).ok_or(lost)?;
    let end = if v4 {
        let [high, low] = Be16::new((Ipv4Hdr::LEN + bytes) as u16).raw().to_ne_bytes();
        icmp::write_ipv4(packet, at, [high, low], from.words()[3], to.words()[3]).ok_or(lost)?;
        at + Ipv4Hdr::LEN
    } else {
        let [high, low] = Be16::new(bytes as u16).raw().to_ne_bytes();
        let second = u32::from_ne_bytes([high, low, Protocol::ICMPV6.0, super::rewrite::TTL]);
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (from.words(), to.words());
        packet.write(at, [0x60, second, s0, s1, s2, s3, d0, d1, d2, d3]).ok_or(lost)?;
        at + Ipv6Hdr::LEN
    };
    packet.write(end, [kind | checksum, rest]).ok_or(lost)?;
    let verdict = if mtu != 0 { Verdict::ReplyTooBig } else { Verdict::ReplyTimeExceeded };
    Ok(Outcome::without_backend(verdict, 0))
}
