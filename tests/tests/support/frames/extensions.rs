//! IPv6 extension headers, as many as are stepped over and more.

use lb_common::verdict::Verdict::{DropIpv6Headers, PassMalformedIpv6, PassMalformedTransport, PassNotVip};

use super::tunnels::tunnelled;
use super::wire::{Family, Packet, TCP, UDP};
use super::{DNS, IP, Named, WEB, cut, forward, patched, unchanged};
use crate::support::services::TUNNELS;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// An extension header: its number, its length in words of eight bytes beyond the first, what it holds behind that.
type Header = (u8, u8, [u8; 6]);

const OPTIONS: [u8; 6] = [1, 4, 0, 0, 0, 0];
/// A segment routing header of which no segment is left, and one of which one is.
const ARRIVED: [u8; 6] = [4, 0, 0, 0, 0, 0];
const UNDER_WAY: [u8; 6] = [4, 1, 0, 0, 0, 0];
/// A fragment header of a whole packet.
const ATOMIC: [u8; 6] = [0, 0, 0, 0, 0, 9];

fn behind(headers: &[Header], protocol: u8, port: u16) -> Packet {
    let family = Family::V6;
    extended(headers, Packet::ported(protocol, family.client(), family.vip(10), [43_000, port], b"question"))
}

fn extended(headers: &[Header], packet: Packet) -> Packet {
    let mut extra = Vec::new();
    for (at, (_, length, content)) in headers.iter().enumerate() {
        let next = headers.get(at + 1).map_or(packet.protocol, |(number, ..)| *number);
        extra.extend([next, *length]);
        extra.extend(content);
        extra.extend(vec![0; usize::from(*length) * 8]);
    }
    Packet { extra, first: headers[0].0, ..packet }
}

pub fn frames() -> Vec<Named> {
    let mut frames = stepped_over();
    frames.extend(too_much());
    frames.extend(malformed());
    frames
}

fn stepped_over() -> Vec<Named> {
    let six = [
        (HOP_BY_HOP, 0, OPTIONS),
        (DESTINATION, 1, OPTIONS),
        (ROUTING, 2, ARRIVED),
        (FRAGMENT, 0, ATOMIC),
        (DESTINATION, 0, OPTIONS),
        (DESTINATION, 0, OPTIONS),
    ];
    let lists: [(&str, &[Header]); 9] = [
        ("hop-by-hop options", &six[..1]),
        ("long hop-by-hop options", &[(HOP_BY_HOP, 8, OPTIONS)]),
        ("the longest hop-by-hop options", &[(HOP_BY_HOP, 255, OPTIONS)]),
        ("destination options", &[(DESTINATION, 0, OPTIONS)]),
        ("a routing header at its end", &[(ROUTING, 2, ARRIVED)]),
        ("a fragment header of a whole packet", &[(FRAGMENT, 0, ATOMIC)]),
        ("three headers", &six[..3]),
        ("five headers", &six[..5]),
        ("six headers", &six),
    ];
    let mut frames = Vec::new();
    for (what, headers) in lists {
        frames.push(forward(format!("IPv6: tcp behind {what}"), behind(headers, TCP, 80).frame(), WEB));
        frames.push(forward(format!("IPv6: udp behind {what}"), behind(headers, UDP, 53).frame(), DNS));
    }
    let tagged = behind(&six, TCP, 80).tagged(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
    frames.push(forward("IPv6: tcp behind two tags and six headers", tagged, WEB));
    for tunnel in &TUNNELS {
        let family = Family::V6;
        let to = family.vip(tunnel.vip);
        let packet = extended(&six, Packet::udp(family.client(), to, [44_000, 443], b"question"));
        frames.push(tunnelled(
            format!("six extension headers through {}", tunnel.name()),
            tunnel,
            packet.frame(),
        ));
    }
    frames
}

fn too_much() -> Vec<Named> {
    let hops = |count| vec![(DESTINATION, 0, OPTIONS); count];
    let elsewhere = |headers: &[Header]| {
        let packet = behind(headers, TCP, 80);
        Packet { to: Family::V6.vip(99), ..packet }.frame()
    };
    let then = |protocol: u8| {
        let mut packet = behind(&hops(1), TCP, 80);
        packet.extra[0] = protocol;
        packet.frame()
    };
    let arriving = [(ROUTING, 2, UNDER_WAY)];
    vec![
        unchanged("IPv6: seven headers", behind(&hops(7), TCP, 80).frame(), DropIpv6Headers),
        unchanged(
            "IPv6: seven headers to an unserved port",
            behind(&hops(7), TCP, 22).frame(),
            DropIpv6Headers,
        ),
        unchanged("IPv6: twelve headers", behind(&hops(12), UDP, 53).frame(), DropIpv6Headers),
        unchanged("IPv6: seven headers for another address", elsewhere(&hops(7)), PassNotVip),
        unchanged("IPv6: a routing header under way", behind(&arriving, TCP, 80).frame(), DropIpv6Headers),
        unchanged("IPv6: a routing header under way elsewhere", elsewhere(&arriving), PassNotVip),
        unchanged("IPv6: options, then no next header", then(59), PassNotVip),
        unchanged("IPv6: options, then an authentication header", then(51), PassNotVip),
        unchanged("IPv6: options, then a mobility header", then(135), PassNotVip),
        unchanged("IPv6: options, then another port", behind(&hops(1), TCP, 22).frame(), PassNotVip),
        unchanged("IPv6: options, then tcp for another address", elsewhere(&hops(1)), PassNotVip),
    ]
}

fn malformed() -> Vec<Named> {
    let one = || behind(&[(DESTINATION, 0, OPTIONS)], TCP, 80).frame();
    let length = |bytes: u16| patched(one(), IP + 4, &bytes.to_be_bytes());
    vec![
        unchanged("IPv6: cut within options", cut(one(), IP + 47), PassMalformedIpv6),
        unchanged("IPv6: cut behind options", cut(one(), IP + 48), PassMalformedTransport),
        unchanged("IPv6: options beyond the payload length", length(7), PassMalformedIpv6),
        unchanged("IPv6: options up to the payload length", length(8), PassMalformedTransport),
        unchanged("IPv6: no room for TCP behind options", length(27), PassMalformedTransport),
        unchanged("IPv6: options longer than the packet", patched(one(), IP + 41, &[255]), PassMalformedIpv6),
        unchanged(
            "IPv6: options longer than the frame",
            patched(patched(one(), IP + 41, &[255]), IP + 4, &[0x10, 0]),
            PassMalformedTransport,
        ),
    ]
}
