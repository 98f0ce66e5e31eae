//! Tunnel packets by hand: addresses, headers and payloads → frames.

pub const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];

/// The addresses of one family: the host, the balancer, a customer, the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

pub const FAMILIES: [Family; 2] = [V4, V6];

/// A place in the tests' network; 10.0.0.X or 2001:db8::X.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Host = 1,
    Edge = 2,
    Stranger = 3,
    OtherHost = 4,
    Client = 5,
    Vip = 6,
    NoVip = 7,
}

impl Family {
    pub fn address(self, place: Place) -> Vec<u8> {
        let last = place as u8;
        match self {
            V4 => vec![10, 0, 0, last],
            V6 => vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last],
        }
    }

    /// The protocol number of a packet of this family in another.
    pub fn protocol(self) -> u8 {
        match self {
            V4 => 4,
            V6 => 41,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            V4 => "IPv4",
            V6 => "IPv6",
        }
    }
}

/// An IP packet to be written.
#[derive(Clone, Debug)]
pub struct Ip {
    pub family: Family,
    pub from: Place,
    pub to: Place,
    pub protocol: u8,
    pub traffic_class: u8,
    /// Bytes of IPv4 options; of IPv6 extension headers, as they are.
    pub extra: Vec<u8>,
    /// The IPv4 field: flags and offset.
    pub fragmentation: u16,
    pub payload: Vec<u8>,
}

impl Ip {
    pub fn bytes(&self) -> Vec<u8> {
        let (from, to) = (self.family.address(self.from), self.family.address(self.to));
        match self.family {
            V4 => {
                let header_bytes = 20 + self.extra.len();
                let total = u16::try_from(header_bytes + self.payload.len()).unwrap();
                let [high, low] = total.to_be_bytes();
                let [flags, offset] = self.fragmentation.to_be_bytes();
                let version = 0x40 | u8::try_from(header_bytes / 4).unwrap();
                let head = [version, self.traffic_class, high, low, 0, 7, flags, offset];
                let mut header = [&head[..], &[60, self.protocol, 0, 0], &from, &to, &self.extra].concat();
                let sum = lb_common::checksum::full(&header).raw().to_ne_bytes();
                header[10..12].copy_from_slice(&sum);
                [header, self.payload.clone()].concat()
            }
            V6 => {
                let length = u16::try_from(self.extra.len() + self.payload.len()).unwrap();
                let [high, low] = length.to_be_bytes();
                let class = [0x60 | self.traffic_class >> 4, self.traffic_class << 4 | 5, 0, 9];
                let head = [&class[..], &[high, low, self.protocol, 60]].concat();
                [head, from, to, self.extra.clone(), self.payload.clone()].concat()
            }
        }
    }
}

/// From the customer to the VIP.
pub fn inner(family: Family) -> Ip {
    let payload = udp(40_000, 443, b"question");
    let (from, to) = (Place::Client, Place::Vip);
    Ip { family, from, to, protocol: 17, traffic_class: 0, extra: vec![], fragmentation: 0x4000, payload }
}

/// From the balancer to the host, with this inside.
pub fn outer(family: Family, protocol: u8, payload: Vec<u8>) -> Ip {
    let (from, to) = (Place::Edge, Place::Host);
    Ip { family, from, to, protocol, traffic_class: 0, extra: vec![], fragmentation: 0, payload }
}

pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let [ports, lengths] =
        [[from, to], [length, 0]].map(|[a, b]| [a.to_be_bytes(), b.to_be_bytes()].concat());
    [&ports, &lengths, payload].concat()
}

/// An inner packet as what it is in IP, UDP or GUE.
#[derive(Clone, Copy, Debug)]
pub enum Wrap {
    Ipip,
    /// GUE of variant 0 with so many words of private data.
    Gue(u8),
    /// GUE of variant 1.
    GueDirect,
}

/// A packet of the inner family in a tunnel of the outer.
pub fn wrapped(how: Wrap, outer_family: Family, inner: &Ip) -> Ip {
    let bytes = inner.bytes();
    match how {
        Wrap::Ipip => outer(outer_family, inner.family.protocol(), bytes),
        Wrap::Gue(words) => {
            let head = [words, inner.family.protocol(), 0, 0];
            gue(outer_family, &[&head[..], &vec![0xee; usize::from(words) * 4], &bytes].concat())
        }
        Wrap::GueDirect => gue(outer_family, &bytes),
    }
}

/// UDP to the port of GUE.
pub fn gue(family: Family, payload: &[u8]) -> Ip {
    outer(family, 17, udp(50_000, 6_080, payload))
}

/// The packet in a frame; `tags` come behind the MAC addresses.
pub fn tagged(tags: &[u8], packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&MACS[..], tags, &ether_type, packet].concat()
}

pub fn framed(packet: &Ip) -> Vec<u8> {
    tagged(&[], &packet.bytes())
}
