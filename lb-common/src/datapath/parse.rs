//! A frame → its flow's five fields and where its headers are, or why it is not plainly a packet for us.

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use super::ethernet::ethernet;
use super::icmp::is_error;
use super::{Exit, Header, Packet, Stage, Transport};
use crate::abi::MAX_EXTENSION_HEADERS;
use crate::net::{Address, EtherType, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// Bytes of an ICMP or ICMPv6 header.
pub(super) const ICMP_BYTES: usize = Icmpv4Hdr::LEN;

/// A packet understood.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The flow's five fields.
    pub tuple: Tuple,
    /// What the transport header says beyond the ports.
    pub transport: Transport,
    /// Offset of the IP header in bytes.
    pub ip_offset: usize,
    /// Offset of the transport header in bytes.
    pub transport_offset: usize,
    /// Bytes of the packet by the IP header.
    pub bytes: u16,
}

impl Parsed {
    /// Offset of the packet's end in bytes, by the IP header: the frame may go on, or be cut before it.
    #[inline(always)]
    pub(super) const fn end(&self) -> usize {
        self.ip_offset + self.bytes as usize
    }
}

/// Whether a packet is a fragment, and of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment {
    /// The datagram's identification as it lies in the header.
    pub(super) identification: u32,
    /// Whether it is one.
    pub(super) is: bool,
    /// Whether it is one without the transport header.
    pub(super) later: bool,
}

impl Fragment {
    const NONE: Self = Self { identification: 0, is: false, later: false };
}

/// An IP header understood.
#[derive(Clone, Copy)]
struct Network {
    source: Address,
    destination: Address,
    protocol: Protocol,
    /// Bytes of the header.
    header_bytes: usize,
    /// Bytes of the packet by the header.
    bytes: u16,
    fragment: Fragment,
}

/// Understands an untagged frame that holds a whole TCP segment or UDP datagram right behind an IPv4 header without options; sends
/// others to the stage that looks after them.
#[inline(always)]
pub(super) fn plain_v4<P: Packet>(packet: &P) -> Result<Parsed, Exit> {
    let words: [u32; Ipv4Hdr::LEN / 4] = packet.read(EthHdr::LEN).ok_or(Verdict::PassMalformedIpv4)?;
    if words[0].to_ne_bytes()[0] != 0x45 {
        return Err(Stage::Rare.into());
    }
    plain(packet, &ipv4_header(words)?, Protocol::ICMP)
}

/// The same for an IPv6 header without extension headers.
#[inline(always)]
pub(super) fn plain_v6<P: Packet>(packet: &P) -> Result<Parsed, Exit> {
    let network = ipv6(packet, EthHdr::LEN)?;
    if is_extension(network.protocol) {
        return Err(Stage::Rare.into());
    }
    plain(packet, &network, Protocol::ICMPV6)
}

#[inline(always)]
fn plain<P: Packet>(packet: &P, network: &Network, icmp: Protocol) -> Result<Parsed, Exit> {
    if network.fragment.is {
        return Err(Stage::Rare.into());
    }
    let transport_offset = EthHdr::LEN + network.header_bytes;
    let room = usize::from(network.bytes) - network.header_bytes;
    let (ports, transport) = if network.protocol == Protocol::TCP {
        tcp(packet, transport_offset, room)?
    } else if network.protocol == Protocol::UDP {
        udp(packet, transport_offset, room)?
    } else if network.protocol == icmp {
        return Err(icmp_stage(packet, transport_offset, room, icmp == Protocol::ICMP));
    } else {
        return Err(Verdict::PassNotVip.into());
    };
    Ok(parsed(network, ports, transport, EthHdr::LEN, transport_offset))
}

/// Understands any frame that holds an IP packet. Of a protocol without ports, and of a fragment without its transport
/// header, the ports are zero. Behind IPv6 extension headers that are too many or of an unknown kind, the protocol is the
/// header's at which the search ended.
#[inline(always)]
pub(super) fn whole<P: Packet>(packet: &P) -> Result<(Parsed, Fragment), Verdict> {
    let (ether_type, ip_offset) = ethernet(packet).ok_or(Verdict::PassMalformedEthernet)?;
    let v4 = ether_type == EtherType::IPV4;
    let network = if v4 {
        ipv4(packet, ip_offset)?
    } else if ether_type == EtherType::IPV6 {
        extended(packet, ip_offset, ipv6(packet, ip_offset)?)?
    } else {
        return Err(Verdict::PassNotIp);
    };
    let transport_offset = ip_offset + network.header_bytes;
    let room = usize::from(network.bytes).saturating_sub(network.header_bytes);
    let (ports, transport) = match network.protocol {
        _ if network.fragment.later => (0, Transport::OTHER),
        Protocol::TCP => tcp(packet, transport_offset, room)?,
        Protocol::UDP => udp(packet, transport_offset, room)?,
        _ => (0, Transport::OTHER),
    };
    Ok((parsed(&network, ports, transport, ip_offset, transport_offset), network.fragment))
}

/// The stage for an ICMP or ICMPv6 packet.
#[inline(always)]
pub(super) fn icmp_stage<P: Packet>(packet: &P, offset: usize, room: usize, v4: bool) -> Exit {
    match transport_header::<P, [u8; ICMP_BYTES]>(packet, offset, room) {
        Ok([kind, ..]) if is_error(kind, v4) => Stage::IcmpError.into(),
        Ok(_) => Stage::Icmp.into(),
        Err(verdict) => verdict.into(),
    }
}

#[inline(always)]
fn parsed(
    network: &Network,
    ports: u32,
    transport: Transport,
    ip_offset: usize,
    transport_offset: usize,
) -> Parsed {
    let tuple = Tuple {
        source: network.source,
        destination: network.destination,
        ports: Ports::from_word(ports),
        protocol: network.protocol,
    };
    Parsed { tuple, transport, ip_offset, transport_offset, bytes: network.bytes }
}

/// The IPv4 header at this offset (RFC 791 section 3.1).
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, offset: usize) -> Result<Network, Verdict> {
    let network = ipv4_header(packet.read(offset).ok_or(Verdict::PassMalformedIpv4)?)?;
    // Of a later fragment nothing behind the header is read, so it is to be there whole, with its options.
    let _: u32 = packet.read(offset + network.header_bytes - 4).ok_or(Verdict::PassMalformedIpv4)?;
    Ok(network)
}

/// The IPv4 header of these words.
#[inline(always)]
fn ipv4_header(
    [first, second, third, source, destination]: [u32; Ipv4Hdr::LEN / 4],
) -> Result<Network, Verdict> {
    let [version_and_length, _, high, low] = first.to_ne_bytes();
    let header_bytes = usize::from(version_and_length & 0xf) * 4;
    let bytes = u16::from_be_bytes([high, low]);
    if version_and_length & 0xf0 != 0x40 || header_bytes < Ipv4Hdr::LEN || usize::from(bytes) < header_bytes {
        return Err(Verdict::PassMalformedIpv4);
    }
    // "More fragments" or an offset: without both, the packet is whole.
    let is = second & u32::from_ne_bytes([0, 0, 0x3f, 0xff]) != 0;
    let fragment = Fragment {
        identification: second & u32::from_ne_bytes([0xff, 0xff, 0, 0]),
        is,
        later: second & u32::from_ne_bytes([0, 0, 0x1f, 0xff]) != 0,
    };
    Ok(Network {
        source: Address::v4(source.to_ne_bytes()),
        destination: Address::v4(destination.to_ne_bytes()),
        protocol: Protocol(third.to_ne_bytes()[1]),
        header_bytes,
        bytes,
        fragment,
    })
}

/// The IPv6 header at this offset (RFC 8200 section 3).
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, offset: usize) -> Result<Network, Verdict> {
    let words: [u32; Ipv6Hdr::LEN / 4] = packet.read(offset).ok_or(Verdict::PassMalformedIpv6)?;
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = words;
    let [high, low, next, _] = second.to_ne_bytes();
    let source = Address::from_words([s0, s1, s2, s3]);
    let destination = Address::from_words([d0, d1, d2, d3]);
    // An IPv4-mapped address is on no wire (RFC 4291 section 2.5.5.2), and here it would be taken for IPv4.
    if first.to_ne_bytes()[0] & 0xf0 != 0x60 || source.is_v4() || destination.is_v4() {
        return Err(Verdict::PassMalformedIpv6);
    }
    Ok(Network {
        source,
        destination,
        protocol: Protocol(next),
        header_bytes: Ipv6Hdr::LEN,
        bytes: u16::from_be_bytes([high, low]).saturating_add(Ipv6Hdr::LEN as u16),
        fragment: Fragment::NONE,
    })
}

/// Whether this is the number of an IPv6 extension header that may stand before what we look for.
#[inline(always)]
pub(crate) fn is_extension(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::HOP_BY_HOP | Protocol::ROUTING | Protocol::FRAGMENT | Protocol::DESTINATION_OPTIONS
    )
}

/// What stands behind an IPv6 header, as one word: to be handed from one function of the program to another.
#[derive(Clone, Copy, Debug)]
pub struct Extensions(u64);

impl Extensions {
    const HEADER_BYTES_SHIFT: u32 = 8;
    const IS_FRAGMENT: u64 = 1 << 24;
    const LATER_FRAGMENT: u64 = 1 << 25;
    const MALFORMED: u64 = 1 << 26;
    const IDENTIFICATION_SHIFT: u32 = 32;

    /// From its word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }
}

/// Steps over the extension headers behind the IPv6 header at this offset (RFC 8200 section 4), of which the first is `next`, in a
/// packet of so many bytes.
#[inline(always)]
pub fn extensions<P: Packet>(packet: &P, ip_offset: usize, next: u8, bytes: u16) -> Extensions {
    let mut protocol = Protocol(next);
    let mut header_bytes = Ipv6Hdr::LEN;
    let (mut flags, mut identification) = (0, 0);
    let mut headers = 0;
    while headers < MAX_EXTENSION_HEADERS {
        if !is_extension(protocol) || flags & Extensions::LATER_FRAGMENT != 0 {
            break;
        }
        let Some([next, length, high, low, a, b, c, d]) = packet.read::<[u8; 8]>(ip_offset + header_bytes)
        else {
            return Extensions(Extensions::MALFORMED);
        };
        if protocol == Protocol::FRAGMENT {
            let place = u16::from_be_bytes([high, low]);
            identification = u32::from_ne_bytes([a, b, c, d]);
            // One that is the first and the last is a whole packet (RFC 6946).
            flags = if place & !6 != 0 { Extensions::IS_FRAGMENT } else { 0 }
                | if place & !7 != 0 { Extensions::LATER_FRAGMENT } else { 0 };
            header_bytes += 8;
        } else {
            // Segments left: the packet's way does not end here.
            if protocol == Protocol::ROUTING && low != 0 {
                break;
            }
            header_bytes += (usize::from(length) + 1) * 8;
        }
        if usize::from(bytes) < header_bytes {
            return Extensions(Extensions::MALFORMED);
        }
        protocol = Protocol(next);
        headers += 1;
    }
    Extensions(
        u64::from(protocol.0)
            | (header_bytes as u64) << Extensions::HEADER_BYTES_SHIFT
            | flags
            | u64::from(identification) << Extensions::IDENTIFICATION_SHIFT,
    )
}

/// An IPv6 header together with the extension headers behind it.
#[inline(always)]
fn extended<P: Packet>(packet: &P, ip_offset: usize, network: Network) -> Result<Network, Verdict> {
    let found = packet.extensions(ip_offset, network.protocol.0, network.bytes).word();
    if found & Extensions::MALFORMED != 0 {
        return Err(Verdict::PassMalformedIpv6);
    }
    Ok(Network {
        protocol: Protocol(found as u8),
        header_bytes: (found >> Extensions::HEADER_BYTES_SHIFT) as usize & MAX_IPV6_HEADERS_MASK,
        fragment: Fragment {
            identification: (found >> Extensions::IDENTIFICATION_SHIFT) as u32,
            is: found & Extensions::IS_FRAGMENT != 0,
            later: found & Extensions::LATER_FRAGMENT != 0,
        },
        ..network
    })
}

/// An IPv6 header and the most and longest of extension headers have fewer bytes than this mask allows.
const MAX_IPV6_HEADERS_MASK: usize = (1 << 14) - 1;

const _: () = assert!(Ipv6Hdr::LEN + MAX_EXTENSION_HEADERS * 2_048 <= MAX_IPV6_HEADERS_MASK);

/// Reads a transport header; `room` is what the IP header leaves for it, in bytes.
#[inline(always)]
fn transport_header<P: Packet, T: Header>(packet: &P, offset: usize, room: usize) -> Result<T, Verdict> {
    if room < size_of::<T>() {
        return Err(Verdict::PassMalformedTransport);
    }
    packet.read(offset).ok_or(Verdict::PassMalformedTransport)
}

/// Ports and flags of a TCP header (RFC 9293 section 3.1).
#[inline(always)]
fn tcp<P: Packet>(packet: &P, offset: usize, room: usize) -> Result<(u32, Transport), Verdict> {
    let [ports, _, _, flags, _]: [u32; TcpHdr::LEN / 4] = transport_header(packet, offset, room)?;
    Ok((u32::from_le(ports), Transport::tcp(flags.to_ne_bytes()[1])))
}

/// Ports of a UDP header (RFC 768).
#[inline(always)]
fn udp<P: Packet>(packet: &P, offset: usize, room: usize) -> Result<(u32, Transport), Verdict> {
    let [ports, _]: [u32; UdpHdr::LEN / 4] = transport_header(packet, offset, room)?;
    Ok((u32::from_le(ports), Transport::OTHER))
}

/// No header that is looked at lies further on, in bytes; a mask. It has room for the most and longest extension headers of a packet
/// and of the one that it quotes.
pub const MAX_OFFSET: usize = (1 << 15) - 1;

/// A packet quoted in an ICMP error, of which only the beginning need be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quoted {
    /// Its five fields; the ports are zero for protocols without.
    pub(super) tuple: Tuple,
    /// Offset of its transport header in bytes.
    pub(super) transport_offset: usize,
}

/// Understands the packet quoted at this offset; `None` if too little of it is there, or it is a fragment without ports.
#[inline(always)]
pub(super) fn quoted<P: Packet>(packet: &P, ip_offset: usize, v4: bool) -> Option<Quoted> {
    let network = if v4 {
        ipv4(packet, ip_offset).ok()?
    } else {
        extended(packet, ip_offset, ipv6(packet, ip_offset).ok()?).ok()?
    };
    if network.fragment.later {
        return None;
    }
    let transport_offset = ip_offset + network.header_bytes;
    let mut ports = 0;
    if network.protocol == Protocol::TCP || network.protocol == Protocol::UDP {
        ports = u32::from_le_bytes(packet.read(transport_offset)?);
    }
    let tuple = Tuple {
        source: network.source,
        destination: network.destination,
        ports: Ports::from_word(ports),
        protocol: network.protocol,
    };
    Some(Quoted { tuple, transport_offset })
}
