//! Addresses, ports and payloads → packets and frames, byte by byte. Every checksum is computed in full, and none of the
//! datapath's own code takes part.

use std::net::IpAddr;

use super::{CLIENT_MAC, EDGE_MAC};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
/// "Don't fragment" and "more fragments" in the IPv4 field that ends in the offset.
pub const DF: u16 = 0x4000;
pub const MF: u16 = 0x2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The number of a packet of this family in another.
    pub fn protocol(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 41,
        }
    }

    pub fn icmp(self) -> u8 {
        match self {
            Self::V4 => ICMP,
            Self::V6 => ICMPV6,
        }
    }

    fn address(self, v4: [u8; 4], v6: &str) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.parse().unwrap(),
        }
    }

    pub fn client(self) -> IpAddr {
        self.address([198, 51, 100, 7], "2001:db8:c::7")
    }

    /// The VIP with this number.
    pub fn vip(self, number: u8) -> IpAddr {
        self.address([203, 0, 113, number], &format!("2001:db8:1::{number:x}"))
    }

    /// The address of the server with this number.
    pub fn server(self, number: u8) -> IpAddr {
        self.address([10, 0, 2, number], &format!("2001:db8:2::{number:x}"))
    }

    /// The balancer's own address, where tunnels begin; also a prefix with zeros behind.
    pub fn edge(self) -> IpAddr {
        self.address([10, 9, 0, 0], "2001:db8:9::")
    }

    /// A router somewhere.
    pub fn router(self) -> IpAddr {
        self.address([192, 0, 2, 1], "2001:db8:f::1")
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of these bytes.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// The message with its checksum at `at`, over the pseudo-header, too.
fn summed(from: IpAddr, to: IpAddr, protocol: u8, mut message: Vec<u8>, at: usize) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&octets(from)[..], &octets(to), &length, &[0, 0, 0, protocol], &message].concat();
    let sum = match checksum(&pseudo) {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        sum => sum,
    };
    message[at..at + 2].copy_from_slice(&sum);
    message
}

/// An IP packet to be written.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    /// Of the body.
    pub protocol: u8,
    pub hops: u8,
    pub tos: u8,
    pub label: u32,
    pub identification: u16,
    /// The IPv4 field: flags and offset.
    pub fragmentation: u16,
    /// IPv4 options; IPv6 extension headers, whose first has the number `first`.
    pub extra: Vec<u8>,
    pub first: u8,
    pub body: Vec<u8>,
}

impl Packet {
    pub fn new(from: IpAddr, to: IpAddr, protocol: u8, body: Vec<u8>) -> Self {
        Self {
            from,
            to,
            protocol,
            hops: 60,
            tos: 0,
            label: 0,
            identification: 0,
            fragmentation: DF,
            extra: vec![],
            first: protocol,
            body,
        }
    }

    pub fn tcp(from: IpAddr, to: IpAddr, ports: [u16; 2], flags: u8, payload: &[u8]) -> Self {
        let ports = ports.map(u16::to_be_bytes).concat();
        let rest = [0, 0, 3, 0xe8, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
        let message = [&ports[..], &rest, payload].concat();
        Self::new(from, to, TCP, summed(from, to, TCP, message, 16))
    }

    pub fn udp(from: IpAddr, to: IpAddr, ports: [u16; 2], payload: &[u8]) -> Self {
        let ports = ports.map(u16::to_be_bytes).concat();
        let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let message = [&ports[..], &length, &[0, 0], payload].concat();
        Self::new(from, to, UDP, summed(from, to, UDP, message, 6))
    }

    /// Of either protocol; an opening segment, if it is TCP without payload.
    pub fn ported(protocol: u8, from: IpAddr, to: IpAddr, ports: [u16; 2], payload: &[u8]) -> Self {
        match protocol {
            TCP => Self::tcp(from, to, ports, if payload.is_empty() { SYN } else { ACK }, payload),
            _ => Self::udp(from, to, ports, payload),
        }
    }

    pub fn icmp(from: IpAddr, to: IpAddr, kind: [u8; 2], rest: [u8; 4], data: &[u8]) -> Self {
        let message = [&kind[..], &[0, 0], &rest, data].concat();
        if from.is_ipv4() {
            let sum = checksum(&message);
            let message = [&message[..2], &sum, &message[4..]].concat();
            return Self::new(from, to, ICMP, message);
        }
        Self::new(from, to, ICMPV6, summed(from, to, ICMPV6, message, 2))
    }

    /// The header, as that of a packet of so many bytes behind it.
    pub fn header(&self, body_bytes: usize) -> Vec<u8> {
        if self.from.is_ipv4() {
            let header_bytes = 20 + self.extra.len();
            let [high, low] = u16::try_from(header_bytes + body_bytes).unwrap().to_be_bytes();
            let version = 0x40 | u8::try_from(header_bytes / 4).unwrap();
            let mut header = vec![version, self.tos, high, low];
            header.extend([self.identification, self.fragmentation].map(u16::to_be_bytes).concat());
            header.extend([self.hops, self.protocol, 0, 0]);
            header.extend([octets(self.from), octets(self.to), self.extra.clone()].concat());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            return header;
        }
        let [high, low] = u16::try_from(self.extra.len() + body_bytes).unwrap().to_be_bytes();
        let first = 6 << 28 | u32::from(self.tos) << 20 | self.label;
        let next = if self.extra.is_empty() { self.protocol } else { self.first };
        let fixed = [&first.to_be_bytes()[..], &[high, low, next, self.hops]].concat();
        [fixed, octets(self.from), octets(self.to), self.extra.clone()].concat()
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.header(self.body.len()), self.body.clone()].concat()
    }

    /// To the edge, from the customer's side.
    pub fn frame(&self) -> Vec<u8> {
        framed(&[], &self.bytes())
    }

    pub fn tagged(&self, tags: &[u8]) -> Vec<u8> {
        framed(tags, &self.bytes())
    }
}

/// The packet in a frame to the edge; `tags` come behind the MAC addresses.
pub fn framed(tags: &[u8], packet: &[u8]) -> Vec<u8> {
    [&EDGE_MAC[..], &CLIENT_MAC, tags, &ether_type(packet), packet].concat()
}

/// The packet in a frame from the edge back to where it came from.
pub fn returned(tags: &[u8], packet: &[u8]) -> Vec<u8> {
    [&CLIENT_MAC[..], &EDGE_MAC, tags, &ether_type(packet), packet].concat()
}

pub fn ether_type(packet: &[u8]) -> [u8; 2] {
    if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] }
}

/// Where the IP packet begins in a frame.
pub fn ip_offset(frame: &[u8]) -> usize {
    let mut offset = 12;
    while matches!(frame[offset..offset + 2], [0x81, 0] | [0x88, 0xa8]) {
        offset += 4;
    }
    offset + 2
}

/// Bytes of the packet by its IP header.
pub fn ip_bytes(packet: &[u8]) -> usize {
    let length = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 { length(2) } else { 40 + length(4) }
}
