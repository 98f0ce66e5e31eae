//! What must leave, and what leaves → whether it is that. The outer header of a tunnel is taken off, each of its fields is checked,
//! and the rest must be the packet as it came.

use super::EDGE_MAC;
use super::wire::{self, DF, Family, Packet, ether_type, ip_bytes, ip_offset, octets};
use crate::support::services::{Kind, Tunnel, mac};

/// What leaves.
#[derive(Clone, Debug)]
pub enum Becomes {
    /// The frame as it came.
    Unchanged,
    /// Exactly one of these frames.
    OneOf(Vec<Vec<u8>>),
    /// What comes, behind the header of this tunnel, with these VLAN tags.
    Tunnelled(Tunnel, Vec<u8>),
}

/// What of an outer header depends on the flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entropy {
    pub source: Vec<u8>,
    pub label: u32,
    pub port: u16,
}

/// Checks what left against what came.
pub fn check(name: &str, becomes: &Becomes, came: &[u8], left: &[u8]) {
    match becomes {
        Becomes::Unchanged => assert_eq!(left, came, "{name}"),
        Becomes::OneOf(frames) => {
            assert!(
                frames.iter().any(|frame| frame == left),
                "{name}: left\n{left:02x?}, expected one of\n{frames:02x?}"
            );
        }
        Becomes::Tunnelled(tunnel, tags) => {
            strip(name, tunnel, tags, came, left);
        }
    }
}

/// Checks a frame that left through a tunnel, and yields what of its header depends on the flow.
pub fn strip(name: &str, tunnel: &Tunnel, tags: &[u8], came: &[u8], left: &[u8]) -> Entropy {
    let inner = &came[ip_offset(came)..];
    let server = left[5];
    assert!(tunnel.servers.contains(&server), "{name}: sent to server {server}");
    let at = 12 + tags.len() + 2;
    let outer = &left[at..];
    assert!(outer.len() >= tunnel.overhead(), "{name}: only {} bytes left", outer.len());

    let v4 = tunnel.outer == Family::V4;
    let source = if v4 { outer[12..16].to_vec() } else { outer[8..24].to_vec() };
    check_source(name, tunnel, &source);
    let label = if v4 { 0 } else { u32::from_be_bytes([0, outer[1] & 0xf, outer[2], outer[3]]) };
    let port = match tunnel.kind {
        Kind::Ipip => 0,
        Kind::Gue => u16::from_be_bytes([outer[tunnel.overhead() - 12], outer[tunnel.overhead() - 11]]),
    };
    let tos = if inner[0] >> 4 == 4 { inner[1] } else { inner[0] << 4 | inner[1] >> 4 };

    let inner_protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let inner_bytes = ip_bytes(inner);
    let (protocol, between) = match tunnel.kind {
        Kind::Ipip => (inner_protocol, vec![]),
        Kind::Gue => {
            assert!(port >= 49_152, "{name}: source port {port} is not of the dynamic range");
            let length = u16::try_from(inner_bytes + 12).unwrap();
            let words = [port, 6_080, length, 0].map(u16::to_be_bytes).concat();
            (wire::UDP, [&words[..], &[0, inner_protocol, 0, 0]].concat())
        }
    };
    let edge = tunnel.outer.edge();
    let mut header = Packet::new(edge, tunnel.outer.server(server), protocol, vec![]);
    header.from = if v4 {
        <[u8; 4]>::try_from(&source[..]).unwrap().into()
    } else {
        <[u8; 16]>::try_from(&source[..]).unwrap().into()
    };
    (header.hops, header.tos, header.label, header.fragmentation) = (64, tos, label, DF);
    let header = header.header(between.len() + inner_bytes);
    let expected =
        [&mac(server)[..], &EDGE_MAC, tags, &ether_type(&header), &header, &between, inner].concat();
    assert_eq!(left, expected, "{name}");
    Entropy { source, label, port }
}

/// The source is the tunnel's, but for the bits that are filled by flow.
fn check_source(name: &str, tunnel: &Tunnel, source: &[u8]) {
    let edge = octets(tunnel.outer.edge());
    let fixed = edge.len() - tunnel.free_bits as usize / 8;
    assert_eq!(source[..fixed], edge[..fixed], "{name}: outer source {source:?}");
    if tunnel.free_bits == 0 {
        assert_eq!(source, edge, "{name}");
    }
}
