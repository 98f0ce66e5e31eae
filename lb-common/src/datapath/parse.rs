//! A frame → its flow's five fields and where its headers are, or the verdict of what is not a packet for us.

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::Ipv4Hdr;
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use super::icmp::ECHO_REQUEST;
use super::{Header, Packet};
use crate::net::{Address, Be16, EtherType, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// VLAN tags a frame may carry.
const MAX_VLAN_TAGS: usize = 2;
/// Bytes of an EtherType.
const ETHER_TYPE_BYTES: usize = 2;
/// Bytes of a VLAN tag: tag control information and the EtherType that follows (IEEE 802.1Q).
const VLAN_TAG_BYTES: usize = 4;

/// What a transport header says beyond the ports: a set of flags in a byte, which stays in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(u8);

impl Transport {
    /// Nothing: a fragment, UDP, or a protocol without ports.
    pub const OTHER: Self = Self(0);
    /// A TCP segment that does not change its connection's state.
    pub const TCP: Self = Self(1);
    /// A TCP segment that opens a connection: SYN without ACK.
    pub const TCP_OPENS: Self = Self(1 | 2);
    /// A TCP segment that closes its connection: FIN or RST.
    pub const TCP_CLOSES: Self = Self(1 | 4);
    /// An ICMP echo request.
    pub const ECHO_REQUEST: Self = Self(8);

    /// Whether the packet is part of a connection, or opens one.
    #[inline(always)]
    pub const fn is_tcp(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the packet opens a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether the packet closes a connection.
    #[inline(always)]
    pub const fn closes(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A packet understood.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The flow's five fields.
    pub tuple: Tuple,
    /// What the transport header says beyond the ports.
    pub transport: Transport,
    /// Offset of the IPv4 header in bytes.
    pub ip_offset: usize,
    /// Offset of the transport header in bytes.
    pub transport_offset: usize,
    /// Bytes of the packet by the IP header.
    pub bytes: u16,
    fragment: bool,
}

impl Parsed {
    /// Whether the packet is a fragment, the first one included.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment
    }
}

/// Understands a frame.
#[inline(always)]
pub(super) fn parse<P: Packet>(packet: &P) -> Result<Parsed, Verdict> {
    let (ether_type, ip_offset) = ethernet(packet)?;
    if ether_type == EtherType::IPV4 {
        ipv4(packet, ip_offset)
    } else if ether_type == EtherType::IPV6 {
        // No VIP is IPv6 in this version.
        Err(Verdict::PassNotVip)
    } else {
        Err(Verdict::PassNotIp)
    }
}

/// Steps over the Ethernet header and VLAN tags.
#[inline(always)]
fn ethernet<P: Packet>(packet: &P) -> Result<(EtherType, usize), Verdict> {
    let wire = packet.read(EthHdr::LEN - ETHER_TYPE_BYTES).ok_or(Verdict::PassMalformedEthernet)?;
    let mut ether_type = EtherType(Be16::from_wire(wire));
    let mut offset = EthHdr::LEN;
    let mut tags = 0;
    while tags < MAX_VLAN_TAGS && ether_type.is_vlan() {
        let [_, _, high, low] =
            packet.read::<[u8; VLAN_TAG_BYTES]>(offset).ok_or(Verdict::PassMalformedEthernet)?;
        ether_type = EtherType(Be16::from_wire([high, low]));
        offset += VLAN_TAG_BYTES;
        tags += 1;
    }
    Ok((ether_type, offset))
}

/// Words of an IPv4 header without options: version, IHL, TOS and total length; identification and fragmentation; TTL,
/// protocol and checksum; source; destination. Read as words, for BPF loads bytes one by one.
const IPV4_WORDS: usize = Ipv4Hdr::LEN / size_of::<u32>();

/// Reads an IPv4 header (RFC 791), with options, and what follows it.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, ip_offset: usize) -> Result<Parsed, Verdict> {
    let [first, second, third, source, destination] =
        packet.read::<[u32; IPV4_WORDS]>(ip_offset).ok_or(Verdict::PassMalformedIpv4)?;
    let [version_and_length, _, bytes @ ..] = first.to_ne_bytes();
    let bytes = Be16::from_wire(bytes).get();
    let header_bytes = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length & 0xf0 != 0x40 || header_bytes < Ipv4Hdr::LEN || usize::from(bytes) < header_bytes {
        return Err(Verdict::PassMalformedIpv4);
    }
    let protocol = Protocol(third.to_ne_bytes()[1]);
    let transport_offset = ip_offset + header_bytes;
    let room = usize::from(bytes) - header_bytes;
    // "More fragments" or an offset: without both, the packet is whole.
    let fragment = second & u32::from_ne_bytes([0, 0, 0x3f, 0xff]) != 0;
    let mut ports = 0;
    let mut transport = Transport::OTHER;
    if !fragment {
        match protocol {
            Protocol::TCP => {
                let header: TcpHdr = transport_header(packet, transport_offset, room)?;
                ports = ports_word(header.source, header.dest);
                transport = tcp(&header);
            }
            Protocol::UDP => {
                let header: [u8; UdpHdr::LEN] = transport_header(packet, transport_offset, room)?;
                let [a, b, c, d, ..] = header;
                ports = ports_word([a, b], [c, d]);
            }
            Protocol::ICMP => {
                let header: Icmpv4Hdr = transport_header(packet, transport_offset, room)?;
                if header.type_ == ECHO_REQUEST && header.code == 0 {
                    transport = Transport::ECHO_REQUEST;
                }
            }
            _ => {}
        }
    }
    let tuple = Tuple {
        source: Address::v4(source.to_ne_bytes()),
        destination: Address::v4(destination.to_ne_bytes()),
        ports: Ports::from_word(ports),
        protocol,
    };
    Ok(Parsed { tuple, transport, ip_offset, transport_offset, bytes, fragment })
}

/// Reads a transport header; `room` is what the IP header leaves for it, in bytes.
#[inline(always)]
fn transport_header<P: Packet, T: Header>(packet: &P, offset: usize, room: usize) -> Result<T, Verdict> {
    if room < size_of::<T>() {
        return Err(Verdict::PassMalformedTransport);
    }
    packet.read(offset).ok_or(Verdict::PassMalformedTransport)
}

/// The four bytes of two ports as one little-endian word.
#[inline(always)]
fn ports_word(source: [u8; 2], destination: [u8; 2]) -> u32 {
    u32::from_le_bytes([source[0], source[1], destination[0], destination[1]])
}

/// What a TCP segment does to its connection (RFC 9293 section 3.1).
#[inline(always)]
fn tcp(header: &TcpHdr) -> Transport {
    if header.fin() != 0 || header.rst() != 0 {
        Transport::TCP_CLOSES
    } else if header.syn() != 0 && header.ack() == 0 {
        Transport::TCP_OPENS
    } else {
        Transport::TCP
    }
}
