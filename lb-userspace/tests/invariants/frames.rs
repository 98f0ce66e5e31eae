//! Choices → frames: every header the datapath looks at, valid, and then perhaps damaged.

use std::net::IpAddr;

use lb_common::checksum::full;

use super::bytes::Bytes;
use super::wire::{self, ICMP, ICMPV6, TCP, UDP};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// An IP packet in a frame, to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub macs: [[u8; 6]; 2],
    /// VLAN ids of tags, the outermost first.
    pub tags: Vec<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub tos: u8,
    pub ttl: u8,
    /// The word of flags and offset of IPv4; of the offset and "more fragments" of IPv6, if not zero.
    pub fragment: u16,
    /// Words of IPv4 options.
    pub options: usize,
    /// Numbers of IPv6 extension headers, eight bytes each.
    pub extensions: Vec<u8>,
    pub protocol: u8,
    /// What the IP headers carry; its checksum is filled in, if `checksum` says so.
    pub payload: Vec<u8>,
    pub checksum: bool,
}

impl Spec {
    pub fn packet(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let pseudo = [octets(self.source), octets(self.destination)].concat();
        if self.checksum {
            fill_checksum(self.protocol, &pseudo, &mut payload);
        }
        match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.ipv4(from.octets(), to.octets(), &payload),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.ipv6(from.octets(), to.octets(), &payload),
            _ => panic!("of one family"),
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.macs.concat();
        for (index, id) in self.tags.iter().enumerate() {
            let kind = if index == 0 && self.tags.len() > 1 { [0x88, 0xa8] } else { [0x81, 0] };
            frame.extend(kind);
            frame.extend(id.to_be_bytes());
        }
        frame.extend(if self.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] });
        frame.extend(self.packet());
        frame
    }

    fn ipv4(&self, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let bytes = 20 + self.options * 4;
        let mut header = vec![1; bytes];
        header[0] = 0x40 | (bytes / 4) as u8;
        header[1] = self.tos;
        header[2..4].copy_from_slice(&((bytes + payload.len()) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&[0, 7]);
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        header[8..12].copy_from_slice(&[self.ttl, self.protocol, 0, 0]);
        header[12..16].copy_from_slice(&from);
        header[16..20].copy_from_slice(&to);
        let sum = full(&header).get().to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        [&header, payload].concat()
    }

    fn ipv6(&self, from: [u8; 16], to: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let mut kinds = self.extensions.clone();
        if self.fragment & !6 != 0 {
            kinds.push(44);
        }
        let mut behind = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let next = kinds.get(index + 1).copied().unwrap_or(self.protocol);
            let [high, low] = if *kind == 44 { (self.fragment & !6).to_be_bytes() } else { [1, 0] };
            // A routing header without segments left; PadN options in the others.
            let tail =
                if *kind == 43 { [next, 0, 4, 0, 0, 0, 0, 0] } else { [next, 0, high, low, 0, 0, 0, 7] };
            behind.extend(tail);
        }
        behind.extend(payload);
        let [high, low] = (behind.len() as u16).to_be_bytes();
        let first = kinds.first().copied().unwrap_or(self.protocol);
        let head = [0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34, high, low, first, self.ttl];
        [&head[..], &from, &to, &behind].concat()
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Writes the checksum of a protocol that has one, where there is room for it, as a full computation.
fn fill_checksum(protocol: u8, addresses: &[u8], payload: &mut [u8]) {
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        _ => return,
    };
    if payload.len() < at + 2 {
        return;
    }
    payload[at..at + 2].fill(0);
    let mut bytes = payload.to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    if protocol != ICMP {
        bytes.extend(addresses);
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend([0, protocol]);
    }
    let sum = match full(&bytes).get() {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

pub fn tcp(ports: [u16; 2], flags: u8, data: &[u8]) -> Vec<u8> {
    let [from, to] = ports.map(u16::to_be_bytes);
    let rest = [0, 0, 3, 232, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    [&from[..], &to, &rest, data].concat()
}

pub fn udp(ports: [u16; 2], data: &[u8]) -> Vec<u8> {
    let [from, to] = ports.map(u16::to_be_bytes);
    [&from[..], &to, &(8 + data.len() as u16).to_be_bytes(), &[0, 0], data].concat()
}

/// An ICMP or ICMPv6 error about an IP packet, to its source.
pub fn icmp_error(bytes: &mut Bytes<'_>, v4: bool, mtu: u16, about: &[u8]) -> Vec<u8> {
    let kind = if v4 {
        bytes.pick(&[[3, 4], [11, 0], [3, 1], [12, 0]])
    } else {
        bytes.pick(&[[2, 0], [3, 0], [1, 4]])
    };
    let [high, low] = mtu.to_be_bytes();
    let quoted = about.len().min(bytes.pick(&[28, 48, 128, 548, 9]));
    [&kind[..], &[0, 0, 0, 0, high, low], &about[..quoted]].concat()
}

/// The frame as its receiver would answer it: MAC addresses, IP addresses and ports exchanged. Checksums stay right.
pub fn reflected(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    swap(&mut frame, 0, 6);
    let Some(ip) = wire::ip(&frame) else { return frame };
    let (at, length) = if ip.v4 { (ip.at + 12, 4) } else { (ip.at + 8, 16) };
    swap(&mut frame, at, length);
    if (ip.protocol == TCP || ip.protocol == UDP) && !ip.later && frame.len() >= ip.transport + 4 {
        swap(&mut frame, ip.transport, 2);
    }
    frame
}

/// Exchanges two neighbouring pieces of so many bytes.
fn swap(bytes: &mut [u8], at: usize, length: usize) {
    bytes[at..at + 2 * length].rotate_left(length);
}

/// Some bytes changed, and perhaps cut or padded.
pub fn damage(bytes: &mut Bytes<'_>, frame: &mut Vec<u8>) {
    for _ in 0..bytes.below(4) {
        let (at, byte) = (bytes.below(120), bytes.u8());
        if let Some(place) = frame.get_mut(at) {
            *place = byte;
        }
    }
    if bytes.one_in(3) {
        let length = usize::from(bytes.u16()) % 1_600;
        frame.resize(length, 0);
    }
}
