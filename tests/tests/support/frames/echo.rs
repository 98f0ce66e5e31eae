//! Echo requests and what else of ICMP and ICMPv6 comes to a VIP.

use std::net::IpAddr;

use lb_common::verdict::Verdict::{PassIcmp, PassNotVip, ReplyIcmpEcho};

use super::wire::{FAMILIES, Family, MF, Packet, returned};
use super::{Named, exactly, unchanged};

/// Types of an echo request and its reply.
fn kinds(family: Family) -> (u8, u8) {
    if family == Family::V4 { (8, 0) } else { (128, 129) }
}

/// An echo request to the VIP.
pub fn request(family: Family, from: IpAddr, data: &[u8]) -> Packet {
    Packet::icmp(from, family.vip(10), [kinds(family).0, 0], [0, 7, 0, 1], data)
}

fn reply(family: Family, data: &[u8]) -> Packet {
    let from = family.vip(10);
    let reply = Packet::icmp(from, family.client(), [kinds(family).1, 0], [0, 7, 0, 1], data);
    Packet { hops: 64, ..reply }
}

pub fn frames() -> Vec<Named> {
    let of = |family| answered(family).into_iter().chain(left_alone(family));
    FAMILIES.into_iter().flat_map(of).collect()
}

fn answered(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let ping = |what: &str, data: &[u8]| {
        let frame = request(family, family.client(), data).frame();
        exactly(name(what), frame, ReplyIcmpEcho, returned(&[], &reply(family, data).bytes()))
    };
    let both = |what: &str, tags: &[u8], padding: &[u8], change: &dyn Fn(Packet) -> Packet| {
        let request = change(request(family, family.client(), b"ping"));
        let answer = Packet { hops: 64, ..change(reply(family, b"ping")) };
        let frame = [request.tagged(tags), padding.to_vec()].concat();
        let answer = [returned(tags, &answer.bytes()), padding.to_vec()].concat();
        exactly(name(what), frame, ReplyIcmpEcho, answer)
    };
    let extended = |packet: Packet| match family {
        Family::V4 => Packet { extra: vec![1; 40], ..packet },
        Family::V6 => Packet { extra: vec![family.icmp(), 0, 1, 4, 0, 0, 0, 0], first: 60, ..packet },
    };
    vec![
        ping("ping", b"ping"),
        ping("ping without data", b""),
        ping("ping of an odd number of bytes", b"pin"),
        ping("ping of 1400 bytes", &[0x5a; 1_400]),
        ping("ping of 8,900 bytes", &[0x5a; 8_900]),
        ping("ping whose reply's checksum wraps", &[0xff; 64]),
        both("ping on a VLAN", &[0x81, 0, 0, 5], &[], &|packet| packet),
        both("ping on two VLANs", &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], &[], &|packet| packet),
        both("ping with padding behind", &[], &[0; 18], &|packet| packet),
        both("ping behind options", &[], &[], &extended),
        both("ping with time to live 1", &[], &[], &|packet| Packet { hops: 1, ..packet }),
        both("ping with time to live 64", &[], &[], &|packet| Packet { hops: 64, ..packet }),
        both("ping with a type of service", &[], &[], &|packet| Packet { tos: 0x2e, ..packet }),
    ]
}

fn left_alone(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let of_kind = |kind: u8, code: u8| {
        Packet::icmp(family.client(), family.vip(10), [kind, code], [0; 4], &[0; 24]).frame()
    };
    let elsewhere = Packet { to: family.vip(99), ..request(family, family.client(), b"ping") };
    let (request_kind, reply_kind) = kinds(family);
    let v4 = family == Family::V4;
    let mut frames = vec![
        unchanged(name("ping to the host"), elsewhere.frame(), PassNotVip),
        unchanged(name("an echo reply to a VIP"), of_kind(reply_kind, 0), PassIcmp),
        unchanged(name("an echo request with code 1"), of_kind(request_kind, 1), PassIcmp),
        unchanged(name("unreachable about nothing"), of_kind(if v4 { 3 } else { 1 }, 3), PassIcmp),
        unchanged(
            name("too big about nothing"),
            of_kind(if v4 { 3 } else { 2 }, if v4 { 4 } else { 0 }),
            PassIcmp,
        ),
        unchanged(name("time exceeded about nothing"), of_kind(if v4 { 11 } else { 3 }, 0), PassIcmp),
        unchanged(name("parameter problem about nothing"), of_kind(if v4 { 12 } else { 4 }, 0), PassIcmp),
        unchanged(name("redirect to a VIP"), of_kind(if v4 { 5 } else { 137 }, 1), PassIcmp),
        unchanged(name("a router's advertisement to a VIP"), of_kind(if v4 { 9 } else { 134 }, 0), PassIcmp),
        unchanged(name("an unknown type to a VIP"), of_kind(if v4 { 200 } else { 250 }, 0), PassIcmp),
    ];
    let sources: &[(&str, &str)] = if v4 {
        &[
            ("the VIP itself", "203.0.113.10"),
            ("broadcast", "255.255.255.255"),
            ("multicast", "224.0.0.1"),
            ("the last multicast address", "239.255.255.255"),
            ("loopback", "127.0.0.1"),
            ("nowhere", "0.0.0.0"),
        ]
    } else {
        &[("the VIP itself", "2001:db8:1::a"), ("multicast", "ff02::1"), ("nowhere", "::")]
    };
    frames.extend(sources.iter().map(|(what, from)| {
        let frame = request(family, from.parse().unwrap(), b"x").frame();
        unchanged(name(&format!("ping from {what}")), frame, PassIcmp)
    }));
    frames.extend(if v4 { fragmented_v4() } else { neighbours() });
    frames
}

fn fragmented_v4() -> Vec<Named> {
    let family = Family::V4;
    let ping = |fragmentation| Packet { fragmentation, ..request(family, family.client(), b"ping") }.frame();
    vec![
        unchanged("IPv4: a first fragment of a ping", ping(MF), PassIcmp),
        unchanged("IPv4: a later fragment of a ping", ping(100), PassIcmp),
    ]
}

/// Neighbour discovery is the host's, and so are fragments of pings.
fn neighbours() -> Vec<Named> {
    let family = Family::V6;
    let target = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
    let option = [1, 1, 2, 0, 0, 0, 0, 9];
    let about = |to: IpAddr, kind: u8| {
        let data = [&target[..], &option].concat();
        Packet { hops: 255, ..Packet::icmp(family.client(), to, [kind, 0], [0; 4], &data) }.frame()
    };
    let solicited: IpAddr = "ff02::1:ff00:a".parse().unwrap();
    let fragment = |offset: u16, more: u16| {
        let [high, low] = (offset | more).to_be_bytes();
        let extra = vec![family.icmp(), 0, high, low, 0, 0, 0, 77];
        Packet { extra, first: 44, ..request(family, family.client(), b"ping") }.frame()
    };
    vec![
        unchanged("IPv6: who has the VIP", about(solicited, 135), PassNotVip),
        unchanged("IPv6: is the VIP still there", about(family.vip(10), 135), PassIcmp),
        unchanged("IPv6: a neighbour's advertisement to a VIP", about(family.vip(10), 136), PassIcmp),
        unchanged("IPv6: all nodes are asked", about("ff02::1".parse().unwrap(), 130), PassNotVip),
        unchanged("IPv6: a first fragment of a ping", fragment(0, 1), PassIcmp),
        unchanged("IPv6: a later fragment of a ping", fragment(80, 0), PassIcmp),
    ]
}
