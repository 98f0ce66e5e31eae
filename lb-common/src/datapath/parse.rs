//! A frame → its flow's five fields and where its headers are, or the verdict of what is not a packet for us.

use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::Ipv4Hdr;
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use super::Packet;
use crate::net::{Address, Be16, EtherType, Protocol, Tuple};
use crate::verdict::Verdict;

/// VLAN tags a frame may carry.
const MAX_VLAN_TAGS: usize = 2;
/// Bytes of an EtherType.
const ETHER_TYPE_BYTES: usize = 2;
/// Bytes of a VLAN tag: tag control information and the EtherType that follows (IEEE 802.1Q).
const VLAN_TAG_BYTES: usize = 4;

/// How a packet bears on the flow it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It opens a connection: TCP SYN without ACK.
    Opens,
    /// It closes one: TCP FIN or RST.
    Closes,
    /// It does neither.
    Neither,
}

/// What the transport header says beyond the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, and what the segment does to the connection.
    Tcp(Opening),
    /// UDP.
    Udp,
    /// ICMP: type and code.
    Icmp(u8, u8),
    /// A fragment, or a protocol without ports.
    Other,
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

/// Reads an IPv4 header (RFC 791), with options, and what follows it.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, ip_offset: usize) -> Result<Parsed, Verdict> {
    let header: Ipv4Hdr = packet.read(ip_offset).ok_or(Verdict::PassMalformedIpv4)?;
    let header_bytes = usize::from(header.ihl());
    let bytes = Be16::from_wire(header.tot_len).get();
    if header.version() != 4 || header_bytes < Ipv4Hdr::LEN || usize::from(bytes) < header_bytes {
        return Err(Verdict::PassMalformedIpv4);
    }
    let protocol = Protocol(header.proto);
    let transport_offset = ip_offset + header_bytes;
    // "More fragments" or an offset: without both, the packet is whole.
    let fragment = Be16::from_wire(header.frags).get() & 0x3fff != 0;
    let transport = if fragment {
        Ports { source: Be16::new(0), destination: Be16::new(0), transport: Transport::Other }
    } else {
        let room = usize::from(bytes) - header_bytes;
        ports(packet, protocol, transport_offset, room).ok_or(Verdict::PassMalformedTransport)?
    };
    Ok(Parsed {
        tuple: Tuple {
            source: Address::v4(header.src_addr),
            destination: Address::v4(header.dst_addr),
            source_port: transport.source,
            destination_port: transport.destination,
            protocol,
        },
        transport: transport.transport,
        ip_offset,
        transport_offset,
        bytes,
        fragment,
    })
}

/// What a transport header yields.
struct Ports {
    source: Be16,
    destination: Be16,
    transport: Transport,
}

/// Reads the transport header; `room` is what the IP header leaves for it, in bytes.
#[inline(always)]
fn ports<P: Packet>(packet: &P, protocol: Protocol, offset: usize, room: usize) -> Option<Ports> {
    match protocol {
        Protocol::TCP => {
            let header: TcpHdr = if room < TcpHdr::LEN { None } else { packet.read(offset) }?;
            Some(Ports {
                source: Be16::from_wire(header.source),
                destination: Be16::from_wire(header.dest),
                transport: Transport::Tcp(opening(&header)),
            })
        }
        Protocol::UDP => {
            let header: UdpHdr = if room < UdpHdr::LEN { None } else { packet.read(offset) }?;
            Some(Ports {
                source: Be16::from_wire(header.src),
                destination: Be16::from_wire(header.dst),
                transport: Transport::Udp,
            })
        }
        Protocol::ICMP => {
            let header: Icmpv4Hdr = if room < Icmpv4Hdr::LEN { None } else { packet.read(offset) }?;
            Some(Ports {
                source: Be16::new(0),
                destination: Be16::new(0),
                transport: Transport::Icmp(header.type_, header.code),
            })
        }
        _ => Some(Ports { source: Be16::new(0), destination: Be16::new(0), transport: Transport::Other }),
    }
}

/// What a TCP segment does to its connection (RFC 9293 section 3.1).
#[inline(always)]
fn opening(header: &TcpHdr) -> Opening {
    if header.fin() != 0 || header.rst() != 0 {
        Opening::Closes
    } else if header.syn() != 0 && header.ack() == 0 {
        Opening::Opens
    } else {
        Opening::Neither
    }
}
