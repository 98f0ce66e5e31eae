//! An ICMP packet to a VIP → its answer in place, or the host's.

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::Ipv4Hdr;

use super::parse::{Parsed, Transport};
use super::{Packet, Tables, admit, is_vip};
use crate::abi::Control;
use crate::checksum;
use crate::net::{Address, Be16};
use crate::verdict::Verdict;

/// Type of an echo request.
pub(super) const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Time to live of what we send (RFC 1700, "IP TIME TO LIVE PARAMETER").
const TTL: u8 = 64;

/// Answers an echo request to a VIP (RFC 792); leaves everything else as it is.
#[inline(always)]
pub(super) fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
) -> Verdict {
    if !is_vip(tables, control, &parsed.tuple) {
        return Verdict::PassNotVip;
    }
    if let Err(verdict) = admit(packet, control, parsed) {
        return verdict;
    }
    if parsed.transport != Transport::ECHO_REQUEST || !can_be_answered(parsed) {
        return Verdict::PassIcmp;
    }
    match reply(packet, parsed) {
        Some(()) => Verdict::ReplyIcmpEcho,
        None => Verdict::PassMalformedTransport,
    }
}

/// Whether the source is a host that an answer can go to (RFC 1122 section 3.2.1.3).
#[inline(always)]
fn can_be_answered(parsed: &Parsed) -> bool {
    let first = parsed.tuple.source.words()[3] as u8;
    parsed.tuple.source != parsed.tuple.destination
        && parsed.tuple.source != Address::v4([255; 4])
        && first != 0
        && first != 127
        && first & 0xf0 != 0xe0
}

/// Turns the request into its reply. All reads come before the first write, so it is done whole or not at all.
#[inline(always)]
fn reply<P: Packet>(packet: &mut P, parsed: &Parsed) -> Option<()> {
    let mut ethernet: EthHdr = packet.read(0)?;
    let mut ip: Ipv4Hdr = packet.read(parsed.ip_offset)?;
    let mut icmp: Icmpv4Hdr = packet.read(parsed.transport_offset)?;

    core::mem::swap(&mut ethernet.src_addr, &mut ethernet.dst_addr);
    core::mem::swap(&mut ip.src_addr, &mut ip.dst_addr);
    let (old, new) = (Be16::from_wire([ip.ttl, ip.proto]), Be16::from_wire([TTL, ip.proto]));
    ip.check = checksum::update(Be16::from_wire(ip.check), old, new).raw().to_ne_bytes();
    ip.ttl = TTL;
    let (old, new) = (Be16::from_wire([ECHO_REQUEST, 0]), Be16::from_wire([ECHO_REPLY, 0]));
    icmp.check = checksum::update(Be16::from_wire(icmp.check), old, new).raw().to_ne_bytes();
    icmp.type_ = ECHO_REPLY;

    packet.write(0, ethernet)?;
    packet.write(parsed.ip_offset, ip)?;
    packet.write(parsed.transport_offset, icmp)
}
