//! A frame → its outer IP header as a tunnel's end reads it, or the verdict of what is no tunnel packet.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use super::{Ecn, Verdict};
use crate::abi::{GUE_PORT, MAX_EXTENSION_HEADERS};
use crate::datapath::{Packet, ethernet, is_extension};
use crate::net::{Address, Be16, EtherType, Protocol};

/// Words of an IPv4 header without options.
const IPV4_WORDS: usize = Ipv4Hdr::LEN / size_of::<u32>();
/// Words of an IPv6 header.
const IPV6_WORDS: usize = Ipv6Hdr::LEN / size_of::<u32>();

/// What a tunnel's end must know of the outer IP header and what is in front of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    /// Offset of the outer IP header in bytes: the length of the Ethernet header with its tags.
    pub(super) ip_offset: usize,
    /// Offset of what the IP header carries, behind options and extension headers.
    pub(super) payload_offset: usize,
    /// Bytes of that by the IP header.
    pub(super) payload_bytes: usize,
    /// What it is.
    pub(super) protocol: Protocol,
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) ecn: Ecn,
    /// A fragment, the first one included.
    pub(super) is_fragment: bool,
    /// A fragment other than the first: it carries no transport header.
    is_later_fragment: bool,
    /// Behind IPv6 extension headers other than destination options.
    pub(super) has_foreign_extensions: bool,
    /// Behind more IPv6 extension headers than are followed: the protocol is not known.
    pub(super) is_unknown: bool,
}

/// How a packet is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tunnel {
    /// The inner IP packet follows the outer header.
    Ipip,
    /// UDP and GUE are in between.
    Gue,
}

impl Outer {
    /// How a packet is wrapped in this one, if one is.
    #[inline(always)]
    pub(super) fn tunnel<P: Packet>(&self, packet: &P) -> Option<Tunnel> {
        if self.protocol == Protocol::IPIP || self.protocol == Protocol::IPV6 {
            return Some(Tunnel::Ipip);
        }
        // A later fragment has no ports; without the first one, which is recognised, nothing becomes of it.
        if self.protocol != Protocol::UDP || self.is_later_fragment || self.payload_bytes < UdpHdr::LEN {
            return None;
        }
        let [_, _, high, low] = packet.read::<[u8; 4]>(self.payload_offset)?;
        (Be16::from_wire([high, low]) == Be16::new(GUE_PORT)).then_some(Tunnel::Gue)
    }
}

/// Reads a frame up to what its IP header carries.
#[inline(always)]
pub(super) fn read<P: Packet>(packet: &P) -> Result<Outer, Verdict> {
    let (ether_type, ip_offset) = ethernet(packet).ok_or(Verdict::PassMalformedEthernet)?;
    if ether_type == EtherType::IPV4 {
        ipv4(packet, ip_offset).ok_or(Verdict::PassMalformedIpv4)
    } else if ether_type == EtherType::IPV6 {
        ipv6(packet, ip_offset).ok_or(Verdict::PassMalformedIpv6)
    } else {
        Err(Verdict::PassNotIp)
    }
}

/// Reads an IPv4 header (RFC 791), with options. Its checksum is not verified.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, ip_offset: usize) -> Option<Outer> {
    let [first, second, third, source, destination] = packet.read::<[u32; IPV4_WORDS]>(ip_offset)?;
    let [version_and_length, traffic_class, high, low] = first.to_ne_bytes();
    let header_bytes = usize::from(version_and_length & 0x0f) * 4;
    let total_bytes = usize::from(Be16::from_wire([high, low]).get());
    if version_and_length >> 4 != 4 || header_bytes < Ipv4Hdr::LEN || total_bytes < header_bytes {
        return None;
    }
    let [_, _, high, low] = second.to_ne_bytes();
    let fragmentation = Be16::from_wire([high, low]).get();
    Some(Outer {
        ip_offset,
        payload_offset: ip_offset + header_bytes,
        payload_bytes: total_bytes - header_bytes,
        protocol: Protocol(third.to_ne_bytes()[1]),
        source: Address::v4(source.to_ne_bytes()),
        destination: Address::v4(destination.to_ne_bytes()),
        ecn: Ecn::of(traffic_class),
        // "More fragments" or an offset: without both, the packet is whole.
        is_fragment: fragmentation & 0x3fff != 0,
        is_later_fragment: fragmentation & 0x1fff != 0,
        has_foreign_extensions: false,
        is_unknown: false,
    })
}

/// Reads an IPv6 header (RFC 8200), with extension headers.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, ip_offset: usize) -> Option<Outer> {
    let [first, second, a, b, c, d, e, f, g, h] = packet.read::<[u32; IPV6_WORDS]>(ip_offset)?;
    let [version_and_class, class_and_label, ..] = first.to_ne_bytes();
    let [high, low, next, _] = second.to_ne_bytes();
    let source = Address::from_words([a, b, c, d]);
    // On the wire an IPv4-mapped address is nobody's; it must not be taken for a listed IPv4 source.
    if version_and_class >> 4 != 6 || source.is_v4() {
        return None;
    }
    let mut outer = Outer {
        ip_offset,
        payload_offset: ip_offset + Ipv6Hdr::LEN,
        payload_bytes: usize::from(Be16::from_wire([high, low]).get()),
        protocol: Protocol(next),
        source,
        destination: Address::from_words([e, f, g, h]),
        ecn: Ecn::of(version_and_class << 4 | class_and_label >> 4),
        is_fragment: false,
        is_later_fragment: false,
        has_foreign_extensions: false,
        is_unknown: false,
    };
    let mut followed = 0;
    while is_extension(outer.protocol) && !outer.is_later_fragment {
        if followed == MAX_EXTENSION_HEADERS {
            outer.is_unknown = true;
            break;
        }
        extension(packet, &mut outer)?;
        followed += 1;
    }
    Some(outer)
}

/// Steps over one extension header.
#[inline(always)]
fn extension<P: Packet>(packet: &P, outer: &mut Outer) -> Option<()> {
    // All four are at least eight bytes long and begin with the protocol of what follows them.
    let [next, length, high, low, ..] = packet.read::<[u8; 8]>(outer.payload_offset)?;
    let mut bytes = 8;
    if outer.protocol == Protocol::FRAGMENT {
        let fragmentation = Be16::from_wire([high, low]).get();
        // An "atomic" fragment (RFC 6946), with neither, is a whole packet.
        outer.is_fragment |= fragmentation & 0xfff9 != 0;
        outer.is_later_fragment = fragmentation & 0xfff8 != 0;
    } else {
        // The second byte counts units of eight bytes beyond the first.
        bytes += usize::from(length) * 8;
    }
    outer.has_foreign_extensions |= outer.protocol != Protocol::DESTINATION_OPTIONS;
    outer.protocol = Protocol(next);
    outer.payload_offset += bytes;
    outer.payload_bytes = outer.payload_bytes.checked_sub(bytes)?;
    Some(())
}
