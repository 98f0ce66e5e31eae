//! Frames that are cut, or whose headers contradict themselves.

use lb_common::verdict::Verdict::{
    PassMalformedEthernet, PassMalformedIpv4, PassMalformedIpv6, PassMalformedTransport,
};

use super::echo::request;
use super::wire::{self, FAMILIES, Family, MF, Packet, TCP, UDP};
use super::{IP, Named, cut, patched, tagged, unchanged};

pub fn frames() -> Vec<Named> {
    let mut frames = ethernet();
    frames.extend(ipv4());
    frames.extend(ipv6());
    for family in FAMILIES {
        frames.extend(transport(family));
    }
    frames
}

fn packet(family: Family, protocol: u8, port: u16) -> Packet {
    Packet::ported(protocol, family.client(), family.vip(10), [40_000, port], b"")
}

fn ethernet() -> Vec<Named> {
    let syn = || packet(Family::V4, TCP, 80).frame();
    let two = [0x88, 0xa8, 0, 1, 0x81, 0, 0, 2];
    vec![
        unchanged("cut within a VLAN tag", cut(tagged(syn(), &two[4..]), 15), PassMalformedEthernet),
        unchanged("cut behind a VLAN tag's id", cut(tagged(syn(), &two[4..]), 17), PassMalformedEthernet),
        unchanged("cut within the second VLAN tag", cut(tagged(syn(), &two), 21), PassMalformedEthernet),
        unchanged("cut behind two VLAN tags", cut(tagged(syn(), &two), 22), PassMalformedIpv4),
    ]
}

fn ipv4() -> Vec<Named> {
    let syn = || packet(Family::V4, TCP, 80).frame();
    let total = |length: u16| patched(syn(), IP + 2, &length.to_be_bytes());
    vec![
        unchanged("cut behind the Ethernet header", cut(syn(), 14), PassMalformedIpv4),
        unchanged("cut within the IPv4 header", cut(syn(), 33), PassMalformedIpv4),
        unchanged("IPv4: version 5", patched(syn(), IP, &[0x55]), PassMalformedIpv4),
        unchanged("IPv4: version 6", patched(syn(), IP, &[0x65]), PassMalformedIpv4),
        unchanged("IPv4: version 0", patched(syn(), IP, &[0x05]), PassMalformedIpv4),
        unchanged("IPv4: a header of 0 bytes", patched(syn(), IP, &[0x40]), PassMalformedIpv4),
        unchanged("IPv4: a header of 16 bytes", patched(syn(), IP, &[0x44]), PassMalformedIpv4),
        unchanged("IPv4: a total length of 0", total(0), PassMalformedIpv4),
        unchanged("IPv4: a total length below the header's", total(19), PassMalformedIpv4),
        unchanged("IPv4: no room for TCP by the total length", total(39), PassMalformedTransport),
        unchanged("IPv4: no room for anything behind the header", total(20), PassMalformedTransport),
        unchanged("IPv4: options beyond the total length", patched(syn(), IP, &[0x4f]), PassMalformedIpv4),
        unchanged(
            "IPv4: options beyond the frame",
            patched(patched(syn(), IP, &[0x4f]), IP + 2, &[0, 80]),
            PassMalformedIpv4,
        ),
        unchanged(
            "IPv4: options up to the frame's end",
            patched(patched(syn(), IP, &[0x4a]), IP + 2, &[0, 60]),
            PassMalformedTransport,
        ),
        unchanged(
            "IPv4: a first fragment of less than a TCP header",
            Packet { fragmentation: MF, body: vec![0; 16], ..packet(Family::V4, TCP, 80) }.frame(),
            PassMalformedTransport,
        ),
        unchanged(
            "IPv4: a first fragment of less than a UDP header",
            Packet { fragmentation: MF, body: vec![0; 7], ..packet(Family::V4, UDP, 53) }.frame(),
            PassMalformedTransport,
        ),
    ]
}

fn ipv6() -> Vec<Named> {
    let family = Family::V6;
    let syn = || packet(family, TCP, 80);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 10];
    let first =
        |length| Packet { extra: vec![TCP, 0, 0, 1, 0, 0, 0, 1], first: 44, body: vec![0; length], ..syn() };
    let length = |length: u16| patched(syn().frame(), IP + 4, &length.to_be_bytes());
    vec![
        unchanged("IPv6: cut behind the Ethernet header", cut(syn().frame(), 14), PassMalformedIpv6),
        unchanged("IPv6: cut within its header", cut(syn().frame(), IP + 39), PassMalformedIpv6),
        unchanged("IPv6: version 4", patched(syn().frame(), IP, &[0x45]), PassMalformedIpv6),
        unchanged("IPv6: version 7", patched(syn().frame(), IP, &[0x70]), PassMalformedIpv6),
        unchanged(
            "IPv6: from an IPv4-mapped address",
            patched(syn().frame(), IP + 8, &mapped),
            PassMalformedIpv6,
        ),
        unchanged("IPv6: to an IPv4-mapped VIP", patched(syn().frame(), IP + 24, &mapped), PassMalformedIpv6),
        unchanged("IPv6: a payload length of 0", length(0), PassMalformedTransport),
        unchanged("IPv6: no room for TCP by the payload length", length(19), PassMalformedTransport),
        unchanged(
            "IPv6: a first fragment of less than a TCP header",
            first(16).frame(),
            PassMalformedTransport,
        ),
        unchanged(
            "IPv6: cut behind the fragment header",
            cut(first(0).frame(), IP + 48),
            PassMalformedTransport,
        ),
        unchanged("IPv6: cut within the fragment header", cut(first(0).frame(), IP + 47), PassMalformedIpv6),
    ]
}

fn transport(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let at = IP + if family == Family::V4 { 20 } else { 40 };
    let (tcp, udp) = (packet(family, TCP, 80), packet(family, UDP, 53));
    let ping = request(family, family.client(), b"");
    let short = |packet: &Packet, bytes: usize| {
        let body = packet.body[..bytes].to_vec();
        [Packet { body, ..packet.clone() }.frame(), vec![0; 40]].concat()
    };
    let malformed = PassMalformedTransport;
    vec![
        unchanged(name("cut within the TCP header"), cut(tcp.frame(), at + 19), malformed),
        unchanged(name("cut within the UDP header"), cut(udp.frame(), at + 7), malformed),
        unchanged(name("cut within the ICMP header"), cut(ping.frame(), at + 7), malformed),
        unchanged(name("cut before the TCP header"), cut(tcp.frame(), at), malformed),
        unchanged(name("padding in place of a TCP header"), short(&tcp, 19), malformed),
        unchanged(name("padding in place of a UDP header"), short(&udp, 7), malformed),
        unchanged(name("padding in place of an ICMP header"), short(&ping, 7), malformed),
        unchanged(name("cut on a VLAN"), cut(tcp.tagged(&[0x81, 0, 0, 1]), at + 4 + 19), malformed),
        unchanged(
            name("a malformed packet for nobody"),
            cut(
                Packet {
                    to: family.vip(99),
                    ..Packet::tcp(family.client(), family.vip(99), [1, 1], wire::SYN, b"")
                }
                .frame(),
                at + 5,
            ),
            malformed,
        ),
    ]
}
