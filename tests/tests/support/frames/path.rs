//! What routers on a tunnel's way tell of it, and what becomes of the packets that no longer fit.

use std::net::IpAddr;

use lb_common::hash;
use lb_common::net::{Ports, Protocol, Tuple};
use lb_common::verdict::Verdict::{PassNotVip, PassPathMtu};

use super::answers::answered;
use super::tunnels::{of_bytes, packet, tunnelled};
use super::wire::{DF, FAMILIES, Family, Packet, TCP};
use super::{Named, unchanged};
use crate::support::SEED;
use crate::support::services::{Kind, NARROW, Tunnel};

/// The smallest MTU that an IPv6 sender is told of.
const LEAST_V6: usize = 1_280;

/// What a router quotes of a packet in the tunnel to this server: the outer header and the beginning of the inner packet.
fn quote(tunnel: &Tunnel, server: u8, inner: &Packet, port: u16) -> Vec<u8> {
    let mut inner_bytes = inner.bytes();
    let length = inner_bytes.len();
    inner_bytes.truncate(if inner.from.is_ipv4() { 28 } else { 60 });
    let inner_protocol = Family::of(inner.from).protocol();
    let (protocol, between) = match tunnel.kind {
        Kind::Ipip => (inner_protocol, vec![]),
        Kind::Gue => {
            let from = 0xc000 | spread(inner) as u16 & 0x3fff;
            let udp = [from, port, u16::try_from(length + 12).unwrap(), 0].map(u16::to_be_bytes).concat();
            (super::wire::UDP, [&udp[..], &[0, inner_protocol, 0, 0]].concat())
        }
    };
    let outer = Packet::new(tunnel.outer.edge(), tunnel.outer.server(server), protocol, vec![]);
    let outer = Packet { hops: 61, fragmentation: DF, label: spread(inner) & 0xf_ffff, ..outer };
    [outer.header(between.len() + length), between, inner_bytes].concat()
}

/// What of a flow's outer header is filled by flow.
fn spread(inner: &Packet) -> u32 {
    let [from, to] = [0, 2].map(|at| u16::from_be_bytes([inner.body[at], inner.body[at + 1]]));
    let tuple = Tuple {
        source: inner.from.into(),
        destination: inner.to.into(),
        ports: Ports::new(from, to),
        protocol: Protocol(inner.protocol),
    };
    hash::spread(hash::flow(&hash::expand(!SEED), &tuple))
}

/// Where the source stands in the header, and what of an address does.
fn address(source: IpAddr) -> (usize, Vec<u8>) {
    match source {
        IpAddr::V4(source) => (12, source.octets().to_vec()),
        IpAddr::V6(source) => (8, source.octets().to_vec()),
    }
}

/// A router's word that a packet is too big, to where the tunnel begins.
fn note(tunnel: &Tunnel, mtu: u32, quote: &[u8]) -> Vec<u8> {
    let kind = if tunnel.outer == Family::V4 { [3, 4] } else { [2, 0] };
    let from = tunnel.outer.router();
    Packet::icmp(from, tunnel.outer.edge(), kind, mtu.to_be_bytes(), quote).frame()
}

pub fn frames() -> Vec<Named> {
    let mut frames = Vec::new();
    for tunnel in &NARROW {
        for inner in FAMILIES {
            frames.extend(ignored(tunnel, inner));
            frames.extend(noted(tunnel, inner));
        }
    }
    frames
}

/// What must not be believed: afterwards, the largest packet still goes.
fn ignored(tunnel: &Tunnel, inner: Family) -> Vec<Named> {
    let name = |what: &str| format!("{} {}: {what}", inner.name(), tunnel.name());
    let server = tunnel.servers[0];
    let ours = packet(tunnel, inner, TCP, b"GET /");
    let quoted = quote(tunnel, server, &ours, 6_080);
    let not_served = Packet { to: inner.vip(99), ..ours.clone() };
    let (edge, router) = (tunnel.outer.edge(), tunnel.outer.router());
    let too_big = if tunnel.outer == Family::V4 { [3, 4] } else { [2, 0] };
    let unreachable = if tunnel.outer == Family::V4 { [3, 1] } else { [1, 3] };
    let mtu = 1_300_u32.to_be_bytes();
    let beyond = Packet::icmp(router, tunnel.outer.server(99), too_big, mtu, &quoted).frame();
    let of_another_kind = Packet::icmp(router, edge, unreachable, mtu, &quoted).frame();
    let mut frames = vec![
        unchanged(name("a path MTU of 500"), note(tunnel, 500, &quoted), PassNotVip),
        unchanged(name("a path MTU of 0"), note(tunnel, 0, &quoted), PassNotVip),
        unchanged(
            name("of another server"),
            note(tunnel, 1_300, &quote(tunnel, 99, &ours, 6_080)),
            PassNotVip,
        ),
        unchanged(
            name("of a packet that is for no service"),
            note(tunnel, 1_300, &quote(tunnel, server, &not_served, 6_080)),
            PassNotVip,
        ),
        unchanged(
            name("cut within the inner packet"),
            note(tunnel, 1_300, &quoted[..tunnel.overhead() + 12]),
            PassNotVip,
        ),
        unchanged(name("to another host"), beyond, PassNotVip),
        unchanged(name("unreachable"), of_another_kind, PassNotVip),
    ];
    let forged = |source: IpAddr, of: &Packet| {
        let [mut quoted, of_another] =
            [quote(tunnel, server, &ours, 6_080), quote(tunnel, server, of, 6_080)];
        quoted[..tunnel.overhead()].copy_from_slice(&of_another[..tunnel.overhead()]);
        let (at, bytes) = address(source);
        quoted[at..at + bytes.len()].copy_from_slice(&bytes);
        Packet::icmp(router, source, too_big, mtu, &quoted).frame()
    };
    let another = Packet::tcp(ours.from, ours.to, [40_007, 443], super::wire::ACK, b"GET /");
    frames.push(unchanged(name("from another source"), forged(tunnel.outer.server(99), &ours), PassNotVip));
    if tunnel.kind == Kind::Gue || tunnel.outer == Family::V6 {
        frames.push(unchanged(name("with another flow's outer header"), forged(edge, &another), PassNotVip));
    }
    if tunnel.kind == Kind::Gue {
        let elsewhere = quote(tunnel, server, &ours, 6_081);
        frames.push(unchanged(name("of another port"), note(tunnel, 1_300, &elsewhere), PassNotVip));
    }
    if tunnel.outer == Family::V6 {
        frames.push(unchanged(name("a path MTU of 70,000"), note(tunnel, 70_000, &quoted), PassNotVip));
    }
    frames.push(unchanged(name("a path MTU of 1,279"), note(tunnel, 1_279, &quoted), PassNotVip));
    let largest = of_bytes(tunnel, inner, TCP, tunnel.room());
    frames.push(tunnelled(name("nothing was believed"), tunnel, largest.frame()));
    frames
}

fn noted(tunnel: &Tunnel, inner: Family) -> Vec<Named> {
    let name = |what: &str| format!("{} {}: {what}", inner.name(), tunnel.name());
    let quoted = quote(tunnel, tunnel.servers[0], &packet(tunnel, inner, TCP, b"GET /"), 6_080);
    let of = |bytes| of_bytes(tunnel, inner, TCP, bytes);
    let room = 1_400 - tunnel.overhead();
    let narrow = 1_290 - tunnel.overhead();
    let least = if inner == Family::V6 { narrow.max(LEAST_V6) } else { narrow };
    let smallest = if inner == Family::V6 { LEAST_V6 } else { narrow };
    vec![
        unchanged(name("a path MTU of 1,400"), note(tunnel, 1_400, &quoted), PassPathMtu),
        tunnelled(name("fits 1,400"), tunnel, of(room).frame()),
        answered(name("does not fit 1,400"), &of(room + 1), room),
        unchanged(name("a path MTU of 1,290"), note(tunnel, 1_290, &quoted), PassPathMtu),
        tunnelled(name("fits 1,290"), tunnel, of(narrow).frame()),
        tunnelled(name("what any packet of its family may have"), tunnel, of(smallest).frame()),
        answered(name("does not fit 1,290"), &of(room), least),
        unchanged(name("a path MTU above the next hop's"), note(tunnel, 1_600, &quoted), PassPathMtu),
        tunnelled(name("fits the next hop's"), tunnel, of(tunnel.room()).frame()),
        answered(name("does not fit the next hop's"), &of(tunnel.room() + 1), tunnel.room()),
    ]
}
