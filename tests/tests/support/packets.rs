//! Packets by hand: what their headers say → frames, with every checksum computed in full.

use std::net::IpAddr;

/// A frame with one IP packet, told by what its headers say.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination and source MAC address.
    pub macs: [[u8; 6]; 2],
    /// VLAN tags as they lie behind the MAC addresses.
    pub tags: Vec<u8>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub hops: u8,
    pub dont_fragment: bool,
    /// IPv4 options; with IPv6, for each byte an extension header of this number with eight bytes.
    pub extra: Vec<u8>,
    /// Which part of the datagram this is, if it is not the whole.
    pub piece: Option<Piece>,
    pub body: Body,
}

/// A fragment: its datagram's identification, and which bytes of that datagram's payload it has.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub identification: u32,
    /// A multiple of eight.
    pub offset: usize,
    pub length: usize,
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Body {
    Tcp { ports: [u16; 2], flags: u8, payload: Vec<u8> },
    Udp { ports: [u16; 2], payload: Vec<u8>, checksum: bool },
    Icmp { kind: u8, code: u8, rest: [u8; 4], payload: Vec<u8> },
    Other { protocol: u8, payload: Vec<u8> },
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// "Hop-by-hop options", "routing" and "destination options" (RFC 8200 section 4).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

impl Body {
    /// With these ports, if it has any.
    pub fn with_ports(&self, to: [u16; 2]) -> Self {
        let mut body = self.clone();
        if let Self::Tcp { ports, .. } | Self::Udp { ports, .. } = &mut body {
            *ports = to;
        }
        body
    }

    /// The ports; zero if it has none.
    pub fn ports(&self) -> [u16; 2] {
        match self {
            Self::Tcp { ports, .. } | Self::Udp { ports, .. } => *ports,
            _ => [0, 0],
        }
    }

    fn payload_mut(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Tcp { payload, .. }
            | Self::Udp { payload, .. }
            | Self::Icmp { payload, .. }
            | Self::Other { payload, .. } => payload,
        }
    }

    pub fn with_payload(&self, bytes: Vec<u8>) -> Self {
        let mut body = self.clone();
        *body.payload_mut() = bytes;
        body
    }
}

impl Packet {
    /// From one address to another, without anything unusual.
    pub fn new(macs: [[u8; 6]; 2], source: IpAddr, destination: IpAddr, body: Body) -> Self {
        let (tags, extra) = (Vec::new(), Vec::new());
        Self { macs, tags, source, destination, hops: 60, dont_fragment: true, extra, piece: None, body }
    }

    fn v4(&self) -> bool {
        self.destination.is_ipv4()
    }

    /// Protocol, and the datagram's payload with its checksum.
    fn transport(&self) -> (u8, Vec<u8>) {
        let words = |ports: [u16; 2]| ports.map(u16::to_be_bytes).concat();
        let (protocol, mut bytes, checksum_at) = match &self.body {
            Body::Tcp { ports, flags, payload } => {
                let rest = [0, 0, 1, 2, 0, 0, 3, 4, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0];
                (6, [&words(*ports), &rest[..], payload].concat(), Some(16))
            }
            Body::Udp { ports, payload, checksum } => {
                let length = u16::try_from(payload.len() + 8).unwrap();
                let bytes = [&words(*ports)[..], &words([length, 0]), payload].concat();
                (17, bytes, checksum.then_some(6))
            }
            Body::Icmp { kind, code, rest, payload } => {
                let protocol = if self.v4() { 1 } else { 58 };
                (protocol, [&[*kind, *code, 0, 0], &rest[..], payload].concat(), Some(2))
            }
            Body::Other { protocol, payload } => (*protocol, payload.clone(), None),
        };
        if let Some(at) = checksum_at {
            let mut under = bytes.clone();
            if protocol != 1 {
                under = [self.pseudo_header(protocol, bytes.len()), bytes.clone()].concat();
            }
            let mut sum = checksum(&under);
            if protocol == 17 && sum == [0, 0] {
                sum = [0xff, 0xff];
            }
            bytes[at..at + 2].copy_from_slice(&sum);
        }
        (protocol, bytes)
    }

    fn pseudo_header(&self, protocol: u8, length: usize) -> Vec<u8> {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        [octets(self.source), octets(self.destination), length.to_vec(), vec![0, 0, 0, protocol]].concat()
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let (protocol, payload) = self.transport();
        let (part, offset, more, identification) = match self.piece {
            None => (&payload[..], 0, false, 0),
            Some(Piece { identification, offset, length }) => {
                let end = payload.len().min(offset + length);
                (&payload[offset..end], offset, end < payload.len(), identification)
            }
        };
        let (more_v4, more_v6): (u16, u16) = if more { (0x2000, 1) } else { (0, 0) };
        let offset = u16::try_from(offset).unwrap();
        if self.v4() {
            let fragmentation = if self.dont_fragment { 0x4000 } else { 0 } | more_v4 | (offset / 8);
            return self.ipv4(protocol, identification as u16, fragmentation, part);
        }
        let mut rest = Vec::new();
        let mut numbers = self.extra.clone();
        if self.piece.is_some() {
            numbers.push(FRAGMENT);
        }
        let following = numbers.iter().skip(1).copied().chain([protocol]);
        for (number, next) in numbers.iter().zip(following) {
            if *number == FRAGMENT {
                rest.extend([next, 0]);
                rest.extend((offset | more_v6).to_be_bytes());
                rest.extend(identification.to_be_bytes());
            } else {
                // Padding; of a routing header, a type and no segments left.
                rest.extend([
                    next,
                    0,
                    if *number == ROUTING { 2 } else { 1 },
                    if *number == ROUTING { 0 } else { 4 },
                    0,
                    0,
                    0,
                    0,
                ]);
            }
        }
        rest.extend(part);
        let [high, low] = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let first = numbers.first().copied().unwrap_or(protocol);
        let head = vec![0x60, 0, 0, 0, high, low, first, self.hops];
        [head, octets(self.source), octets(self.destination), rest].concat()
    }

    fn ipv4(&self, protocol: u8, identification: u16, fragmentation: u16, payload: &[u8]) -> Vec<u8> {
        let header_bytes = 20 + self.extra.len();
        let version = 0x40 | u8::try_from(header_bytes / 4).unwrap();
        let total = u16::try_from(header_bytes + payload.len()).unwrap();
        let numbers = [total, identification, fragmentation].map(u16::to_be_bytes).concat();
        let mut header = [&[version, 0], &numbers[..], &[self.hops, protocol, 0, 0]].concat();
        header.extend([octets(self.source), octets(self.destination), self.extra.clone()].concat());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        [&header, payload].concat()
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let ether_type: [u8; 2] = if self.v4() { [8, 0] } else { [0x86, 0xdd] };
        [&self.macs.concat()[..], &self.tags, &ether_type, &self.packet()].concat()
    }

    /// With these addresses, MAC addresses exchanged for these, and one hop less: as a router or translator passes it on.
    pub fn passed_on(
        &self,
        macs: [[u8; 6]; 2],
        tags: &[u8],
        source: IpAddr,
        destination: IpAddr,
        ports: [u16; 2],
    ) -> Self {
        let (tags, body) = (tags.to_vec(), self.body.with_ports(ports));
        Self { macs, tags, source, destination, hops: self.hops - 1, body, ..self.clone() }
    }

    /// An ICMP or ICMPv6 error about this packet, from a router to its source; it quotes so many bytes.
    pub fn error(
        &self,
        macs: [[u8; 6]; 2],
        from: IpAddr,
        kind: [u8; 2],
        rest: [u8; 4],
        quoted: usize,
    ) -> Self {
        let mut payload = self.packet();
        payload.truncate(quoted);
        let [kind, code] = kind;
        Self {
            tags: self.tags.clone(),
            ..Self::new(macs, from, self.source, Body::Icmp { kind, code, rest, payload })
        }
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071), in the plainest way.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
