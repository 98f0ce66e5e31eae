//! Packets forwarded by their MAC address, of either family; those for which there is no backend; those on another interface.

use lb_common::verdict::Verdict;

use super::wire::{self, FAMILIES, Family, Packet, TCP, UDP};
use super::{
    ALL, CLIENT, DNS, Flags, IP, Named, TRANSPORT, VIP, WEB, forward, ipv4, patched, tagged, tcp, tcp_from,
    to_server, udp, unchanged,
};
use crate::support::services::{L2_HALF_OFF, L2_OFF, L2_REDIRECTED, L2_STICKY};

pub fn frames() -> Vec<Named> {
    let mut frames = ipv4_frames();
    for family in FAMILIES {
        frames.extend(of_either_family(family));
    }
    frames.extend(ipv6_frames());
    frames
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let family = Family::V4;
    let mut packet = Packet::tcp(family.client(), family.vip(10), [40_000, 80], wire::SYN, b"");
    packet.extra = options.to_vec();
    packet.frame()
}

fn ipv4_frames() -> Vec<Named> {
    let jumbo = |bytes| tcp_from(ipv4(CLIENT, VIP), 40_000, 80, Flags::Ack, &vec![7; bytes]);
    let padded = [tcp(VIP, 80, Flags::Ack), vec![0; 6]].concat();
    let no_checksum = patched(udp(VIP, 53), TRANSPORT + 6, &[0, 0]);
    let router_alert = [0x94, 4, 0, 0];
    let source_route = [&[0x83, 7, 4, 10, 0, 0, 1][..], &[0]].concat();
    vec![
        forward("tcp syn", tcp(VIP, 80, Flags::Syn), WEB),
        forward("tcp syn with the second VIP", tcp([203, 0, 113, 11], 80, Flags::Syn), WEB),
        forward(
            "tcp ack of a flow never seen",
            tcp_from(ipv4(CLIENT, VIP), 40_001, 80, Flags::Ack, b"GET /"),
            WEB,
        ),
        forward("tcp syn ack", tcp(VIP, 80, Flags::SynAck), WEB),
        forward("tcp fin", tcp(VIP, 80, Flags::Fin), WEB),
        forward("tcp rst", tcp(VIP, 80, Flags::Rst), WEB),
        forward("tcp from port 0", tcp_from(ipv4(CLIENT, VIP), 0, 80, Flags::Syn, b""), WEB),
        forward("tcp of 3000 bytes", jumbo(3_000), WEB),
        forward("tcp of 8,960 bytes", jumbo(8_960), WEB),
        forward("tcp, padded to 60 bytes", padded, WEB),
        forward("tcp behind IPv4 options of 4 bytes", with_options(&[1; 4]), WEB),
        forward("tcp behind IPv4 options of 40 bytes", with_options(&[1; 40]), WEB),
        forward("tcp behind a router alert", with_options(&router_alert), WEB),
        forward("tcp behind a source route", with_options(&source_route), WEB),
        forward(
            "tcp with the reserved IPv4 flag",
            patched(tcp(VIP, 80, Flags::Ack), IP + 6, &[0x80, 0]),
            WEB,
        ),
        forward("tcp with DF", patched(tcp(VIP, 80, Flags::Ack), IP + 6, &[0x40, 0]), WEB),
        forward("tcp with a wrong checksum", patched(tcp(VIP, 80, Flags::Ack), TRANSPORT + 16, &[1, 2]), WEB),
        forward("IPv4 with a wrong checksum", patched(tcp(VIP, 80, Flags::Ack), IP + 10, &[1, 2]), WEB),
        forward("all TCP flags", patched(tcp(VIP, 80, Flags::Ack), TRANSPORT + 13, &[0xff]), WEB),
        forward("no TCP flags", patched(tcp(VIP, 80, Flags::Ack), TRANSPORT + 13, &[0]), WEB),
        forward("udp", udp(VIP, 53), DNS),
        forward("udp without a checksum", no_checksum, DNS),
        forward(
            "a total length beyond the frame",
            patched(tcp(VIP, 80, Flags::Ack), IP + 2, &1_400_u16.to_be_bytes()),
            WEB,
        ),
        forward("tcp to a VIP of every port", tcp([203, 0, 113, 20], 8_443, Flags::Syn), ALL),
        forward("tcp to port 0 of a VIP of every port", tcp([203, 0, 113, 20], 0, Flags::Syn), ALL),
    ]
}

fn of_either_family(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{}: {what}", family.name());
    let packet = |vip: u8, protocol, port, payload: &[u8]| {
        Packet::ported(protocol, family.client(), family.vip(vip), [41_000, port], payload)
    };
    let hops = |hops| Packet { hops, ..packet(10, TCP, 80, b"") }.frame();
    let one = [0x81, 0, 0, 0x64];
    let service_tag = [0x88, 0xa8, 0, 0x64];
    let two = [0x88, 0xa8, 0, 0x64, 0x81, 0, 0, 0x65];
    let twice = [0x81, 0, 0, 0x64, 0x81, 0, 0, 0x65];
    let syn = || packet(10, TCP, 80, b"").frame();
    let from_vip = Packet::tcp(family.vip(10), family.vip(10), [1, 80], wire::SYN, b"").frame();
    let redirected = packet(L2_REDIRECTED.0, TCP, 80, b"").frame();
    let sticky = packet(L2_STICKY.0, TCP, 80, b"").frame();
    let another = Packet::tcp(family.client(), family.vip(L2_STICKY.0), [5, 80], wire::SYN, b"").frame();
    let half_off = packet(L2_HALF_OFF.0, TCP, 80, b"").frame();
    vec![
        forward(name("tcp"), packet(10, TCP, 80, b"GET /").frame(), WEB),
        forward(name("udp"), packet(10, UDP, 53, b"question").frame(), DNS),
        forward(name("udp without a byte"), packet(10, UDP, 53, b"").frame(), DNS),
        forward(name("udp of 8,900 bytes"), packet(10, UDP, 53, &[3; 8_900]).frame(), DNS),
        forward(name("any port"), packet(20, TCP, 65_535, b"").frame(), ALL),
        forward(name("time to live 1"), hops(1), WEB),
        forward(name("time to live 0"), hops(0), WEB),
        forward(name("type of service"), Packet { tos: 0xb9, ..packet(10, TCP, 80, b"") }.frame(), WEB),
        forward(name("one VLAN tag"), tagged(syn(), &one), WEB),
        forward(name("a service tag"), tagged(syn(), &service_tag), WEB),
        forward(name("two VLAN tags"), tagged(syn(), &two), WEB),
        forward(name("two customer tags"), tagged(syn(), &twice), WEB),
        forward(name("a priority tag"), tagged(syn(), &[0x81, 0, 0xe0, 0]), WEB),
        forward(name("padding behind"), [syn(), vec![0xee; 46]].concat(), WEB),
        forward(name("from the VIP itself"), from_vip, WEB),
        Named {
            redirected: true,
            ..to_server(name("to another interface"), redirected.clone(), &redirected, L2_REDIRECTED.1)
        },
        to_server(name("a client for its one backend"), sticky.clone(), &sticky, L2_STICKY.1),
        to_server(name("the same client again"), another.clone(), &another, L2_STICKY.1).following(),
        to_server(name("one backend is disabled"), half_off.clone(), &half_off, &[L2_HALF_OFF.1[1]]),
        unchanged(name("all are disabled"), packet(L2_OFF.0, TCP, 80, b"").frame(), Verdict::DropNoBackend),
        unchanged(name("no backends"), packet(30, TCP, 80, b"").frame(), Verdict::DropNoBackend),
        unchanged(name("no next hop"), packet(40, TCP, 80, b"").frame(), Verdict::DropNoNextHop),
    ]
}

fn ipv6_frames() -> Vec<Named> {
    let family = Family::V6;
    let packet = || Packet::tcp(family.client(), family.vip(10), [42_000, 80], wire::SYN, b"");
    let no_checksum = {
        let packet = Packet::udp(family.client(), family.vip(10), [42_000, 53], b"question");
        patched(packet.frame(), IP + 40 + 6, &[0, 0])
    };
    vec![
        forward("IPv6: a flow label", Packet { label: 0xf_fffe, ..packet() }.frame(), WEB),
        forward("IPv6: udp without a checksum", no_checksum, DNS),
        forward(
            "IPv6: a payload length beyond the frame",
            patched(packet().frame(), IP + 4, &1_400_u16.to_be_bytes()),
            WEB,
        ),
    ]
}
