//! Packets that go to their backend in a tunnel: both families in both, both protocols.

use lb_common::verdict::Verdict;

use super::wire::{FAMILIES, Family, Packet, TCP, UDP};
use super::{Becomes, IP, Named, TRANSPORT, patched, unchanged};
use crate::support::services::{BOUNDLESS, JUMBO, PREFIXED, TUNNELS, Tunnel, UNSOURCED};

/// The frame through the tunnel, with the tags that it came with.
pub fn tunnelled(name: impl Into<String>, tunnel: &Tunnel, frame: Vec<u8>) -> Named {
    let tags = frame[12..super::wire::ip_offset(&frame) - 2].to_vec();
    Named::new(name, frame, Verdict::Forward, Becomes::Tunnelled(*tunnel, tags))
}

/// A packet for the services of a tunnel.
pub fn packet(tunnel: &Tunnel, family: Family, protocol: u8, payload: &[u8]) -> Packet {
    let to = family.vip(tunnel.vip);
    Packet::ported(protocol, family.client(), to, [50_000, 443], payload)
}

/// A packet of so many bytes.
pub fn of_bytes(tunnel: &Tunnel, family: Family, protocol: u8, bytes: usize) -> Packet {
    let headers = if family == Family::V4 { 20 } else { 40 } + if protocol == TCP { 20 } else { 8 };
    packet(tunnel, family, protocol, &vec![0xa5; bytes - headers])
}

/// Every combination of tunnel, inner family and protocol, with how it is named.
pub fn combinations() -> impl Iterator<Item = (Tunnel, Family, u8, String)> {
    TUNNELS.into_iter().flat_map(|tunnel| {
        FAMILIES.into_iter().flat_map(move |family| {
            [(TCP, "tcp"), (UDP, "udp")].map(|(protocol, what)| {
                (tunnel, family, protocol, format!("{} {what} through {}", family.name(), tunnel.name()))
            })
        })
    })
}

pub fn frames() -> Vec<Named> {
    let mut frames = Vec::new();
    for (tunnel, family, protocol, name) in combinations() {
        frames.extend(of_a_combination(&tunnel, family, protocol, &name));
    }
    for tunnel in &PREFIXED {
        for family in FAMILIES {
            let name = format!("{} through {} from a prefix", family.name(), tunnel.name());
            frames.push(tunnelled(name, tunnel, packet(tunnel, family, UDP, b"question").frame()));
        }
    }
    for tunnel in &UNSOURCED {
        for family in FAMILIES {
            let name = format!("{} through {} without a source", family.name(), tunnel.name());
            let frame = packet(tunnel, family, TCP, b"").frame();
            frames.push(unchanged(name, frame, Verdict::DropNatSource));
        }
    }
    for family in FAMILIES {
        frames.extend(large(family));
    }
    frames.extend(of_ipv4());
    frames
}

fn of_a_combination(tunnel: &Tunnel, family: Family, protocol: u8, name: &str) -> Vec<Named> {
    let packet = || packet(tunnel, family, protocol, b"");
    let marked = Packet { tos: 0xb9, hops: 1, ..packet() };
    vec![
        tunnelled(format!("{name}, the smallest"), tunnel, packet().frame()),
        tunnelled(
            format!("{name}, the largest"),
            tunnel,
            of_bytes(tunnel, family, protocol, tunnel.room()).frame(),
        ),
        tunnelled(format!("{name}, marked, time to live 1"), tunnel, marked.frame()),
        tunnelled(format!("{name}, with padding"), tunnel, [packet().frame(), vec![0; 18]].concat()),
        tunnelled(format!("{name}, on a VLAN"), tunnel, packet().tagged(&[0x81, 0, 0x60, 0x64])),
        tunnelled(
            format!("{name}, on two VLANs"),
            tunnel,
            packet().tagged(&[0x88, 0xa8, 0, 0x64, 0x81, 0, 0, 0x65]),
        ),
    ]
}

fn large(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let [boundless, _] = BOUNDLESS;
    vec![
        tunnelled(name("8,948 bytes in 9,000"), &JUMBO, of_bytes(&JUMBO, family, UDP, 8_948).frame()),
        tunnelled(
            name("8,948 bytes on a way without an MTU"),
            &boundless,
            of_bytes(&boundless, family, TCP, 8_948).frame(),
        ),
    ]
}

fn of_ipv4() -> Vec<Named> {
    let family = Family::V4;
    let mut frames = Vec::new();
    for tunnel in &TUNNELS {
        let name = |what: &str| format!("IPv4 {what} through {}", tunnel.name());
        let options = Packet { extra: vec![1; 40], ..packet(tunnel, family, TCP, b"") };
        let unchecked = patched(packet(tunnel, family, UDP, b"question").frame(), TRANSPORT + 6, &[0, 0]);
        let may_fragment = Packet { fragmentation: 0, identification: 5, ..packet(tunnel, family, UDP, b"") };
        let wrong = patched(packet(tunnel, family, TCP, b"").frame(), IP + 10, &[1, 2]);
        frames.extend([
            tunnelled(name("with options"), tunnel, options.frame()),
            tunnelled(name("udp without a checksum"), tunnel, unchecked),
            tunnelled(name("that may be fragmented"), tunnel, may_fragment.frame()),
            tunnelled(name("with a wrong checksum"), tunnel, wrong),
        ]);
    }
    frames
}
