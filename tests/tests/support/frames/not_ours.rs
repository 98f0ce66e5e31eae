//! Frames for the host, which must be left to it bit by bit.

use lb_common::verdict::Verdict::{PassNotIp, PassNotVip};

use super::wire::{self, FAMILIES, Family, Packet, TCP, UDP};
use super::{Flags, Named, VIP, patched, tagged, tcp, unchanged};

pub fn frames() -> Vec<Named> {
    let three_tags = [0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3];
    let raw = |ether_type: [u8; 2]| patched(vec![0; 60], 12, &ether_type);
    let mut frames = vec![
        unchanged("arp", raw([8, 6]), PassNotIp),
        unchanged("a tagged arp", tagged(raw([8, 6]), &[0x81, 0, 0, 9]), PassNotIp),
        unchanged("lldp", raw([0x88, 0xcc]), PassNotIp),
        unchanged("mpls", raw([0x88, 0x47]), PassNotIp),
        unchanged("an 802.3 length", raw([0, 40]), PassNotIp),
        unchanged("a bare Ethernet header", raw([0x88, 0xcc])[..14].to_vec(), PassNotIp),
        unchanged("an elder tag of VLANs", tagged(tcp(VIP, 80, Flags::Syn), &[0x91, 0, 0, 1]), PassNotIp),
        unchanged("three VLAN tags", tagged(tcp(VIP, 80, Flags::Syn), &three_tags), PassNotIp),
    ];
    for family in FAMILIES {
        frames.extend(of_either_family(family));
    }
    let v4 = Family::V4;
    let fragment = |fragmentation| Packet {
        fragmentation,
        ..Packet::tcp(v4.client(), [10, 0, 0, 1].into(), [1, 80], wire::ACK, b"")
    };
    frames.extend([
        unchanged("a first fragment for another address", fragment(wire::MF).frame(), PassNotVip),
        unchanged("a later fragment for another address", fragment(9).frame(), PassNotVip),
    ]);
    frames
}

fn of_either_family(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let packet = |vip, protocol, port| {
        Packet::ported(protocol, family.client(), family.vip(vip), [40_000, port], b"question")
    };
    let numbered = |protocol| Packet { protocol, first: protocol, ..packet(10, TCP, 80) }.frame();
    let from_vip = Packet::tcp(family.vip(10), family.client(), [80, 40_000], wire::ACK, b"").frame();
    let strange_icmp = if family == Family::V4 { wire::ICMPV6 } else { wire::ICMP };
    vec![
        unchanged(name("another address"), packet(99, TCP, 80).frame(), PassNotVip),
        unchanged(name("another port of a VIP"), packet(10, TCP, 22).frame(), PassNotVip),
        unchanged(name("udp to a TCP port of a VIP"), packet(10, UDP, 80).frame(), PassNotVip),
        unchanged(name("tcp to a UDP port of a VIP"), packet(10, TCP, 53).frame(), PassNotVip),
        unchanged(name("udp to an address of all TCP ports"), packet(20, UDP, 80).frame(), PassNotVip),
        unchanged(
            name("a tagged packet to the host"),
            packet(99, UDP, 2).tagged(&[0x81, 0, 0, 9]),
            PassNotVip,
        ),
        unchanged(name("sctp to a VIP"), numbered(132), PassNotVip),
        unchanged(name("gre to a VIP"), numbered(47), PassNotVip),
        unchanged(name("esp to a VIP"), numbered(50), PassNotVip),
        unchanged(name("an authentication header to a VIP"), numbered(51), PassNotVip),
        unchanged(name("protocol 255 to a VIP"), numbered(255), PassNotVip),
        unchanged(name("IPv4 in IP to a VIP"), numbered(4), PassNotVip),
        unchanged(name("IPv6 in IP to a VIP"), numbered(41), PassNotVip),
        unchanged(name("the other family's ICMP to a VIP"), numbered(strange_icmp), PassNotVip),
        unchanged(name("an answer of the VIP"), from_vip, PassNotVip),
        unchanged(name("gue to a VIP's unserved port"), packet(10, UDP, 6_080).frame(), PassNotVip),
    ]
}
