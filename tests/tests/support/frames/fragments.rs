//! Fragments of both families: those that follow their first, and those that cannot.

use lb_common::verdict::Verdict::{DropFragment, PassFragment, PassMalformedIpv4, PassNotVip};

use super::tunnels::tunnelled;
use super::wire::{DF, FAMILIES, Family, MF, Packet, TCP, UDP};
use super::{DNS, IP, Named, WEB, forward, patched, to_server, unchanged};
use crate::support::services::{L2_ON_VLAN, ON_VLAN, TUNNELS};

/// Bytes of every fragment but the last.
const SLICE: usize = 1_200;

/// The packet in fragments, of a datagram with this identification.
fn fragments(packet: &Packet, identification: u16) -> Vec<Packet> {
    let count = packet.body.len().div_ceil(SLICE);
    let one = |(at, body): (usize, &[u8])| {
        let more = at + 1 < count;
        let (offset, body) = (u16::try_from(at * SLICE / 8).unwrap(), body.to_vec());
        if packet.from.is_ipv4() {
            let fragmentation = offset | if more { MF } else { 0 };
            return Packet { fragmentation, identification, body, ..packet.clone() };
        }
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        let [a, b] = identification.to_be_bytes();
        let extra = vec![packet.protocol, 0, high, low, 0, 0, a, b];
        Packet { extra, first: 44, body, ..packet.clone() }
    };
    packet.body.chunks(SLICE).enumerate().map(one).collect()
}

/// A datagram of three fragments.
fn datagram(family: Family, vip: u8, protocol: u8, ports: [u16; 2]) -> Packet {
    let payload: Vec<u8> = (0..3_000_u32).map(|at| at as u8).collect();
    Packet::ported(protocol, family.client(), family.vip(vip), ports, &payload)
}

pub fn frames() -> Vec<Named> {
    let mut frames = Vec::new();
    let mut identification = 1_000;
    for family in FAMILIES {
        // Several, for one that does not follow goes the right way half of the time.
        for port in 0..6 {
            let whole = datagram(family, 10, UDP, [47_000 + port, 53]);
            let name = format!("{} datagram {port}", family.name());
            identification += 1;
            frames.extend(in_order(&name, &fragments(&whole, identification), &|name, frame| {
                forward(name, frame, DNS)
            }));
        }
        let whole = datagram(family, 10, TCP, [47_000, 80]);
        frames.extend(in_order(
            &format!("{} segment", family.name()),
            &fragments(&whole, 900),
            &|name, frame| forward(name, frame, WEB),
        ));
        for tunnel in TUNNELS.iter().chain([&ON_VLAN]) {
            let whole = datagram(family, tunnel.vip, UDP, [48_000 + identification, 443]);
            let name = format!("{} datagram through {}", family.name(), tunnel.name());
            identification += 1;
            let named = |name: String, frame: Vec<u8>| {
                let named = tunnelled(name, tunnel, frame);
                if tunnel.vlan == 0 { named } else { onto_vlan(named) }
            };
            frames.extend(in_order(&name, &fragments(&whole, identification), &named));
        }
        frames.extend(disordered(family));
        frames.extend(strangers(family));
        frames.extend(left_to_the_host(family));
        frames.extend(on_vlan(family));
    }
    frames.extend(whole_in_a_fragment_header());
    frames
}

fn onto_vlan(named: Named) -> Named {
    Named { becomes: super::Becomes::Tunnelled(ON_VLAN, vec![0x81, 0, 0, 100]), ..named }
}

/// The first, then the others, which follow it.
fn in_order(name: &str, parts: &[Packet], named: &dyn Fn(String, Vec<u8>) -> Named) -> Vec<Named> {
    let one = |(at, part): (usize, &Packet)| {
        let named = named(format!("{name}, fragment {at}"), part.frame());
        if at == 0 { named } else { named.following() }
    };
    parts.iter().enumerate().map(one).collect()
}

fn disordered(family: Family) -> Vec<Named> {
    let parts = fragments(&datagram(family, 10, UDP, [47_100, 53]), 800);
    let name = |at: usize, when: &str| format!("{} fragment {at} {when}", family.name());
    vec![
        unchanged(name(2, "before the first"), parts[2].frame(), DropFragment),
        unchanged(name(1, "before the first"), parts[1].frame(), DropFragment),
        forward(name(0, "behind the others"), parts[0].frame(), DNS),
        forward(name(2, "sent again"), parts[2].frame(), DNS).following(),
        forward(name(1, "sent again"), parts[1].frame(), DNS).following(),
        forward(name(1, "sent twice"), parts[1].frame(), DNS).following(),
    ]
}

/// Later fragments that resemble those of a datagram under way.
fn strangers(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{} later fragment {what}", family.name());
    let whole = datagram(family, 10, UDP, [47_200, 53]);
    let parts = fragments(&whole, 700);
    let from_another = Packet { from: family.router(), ..parts[1].clone() };
    let to_another = Packet { to: family.vip(11), ..parts[1].clone() };
    let to_nobody = Packet { to: family.vip(99), ..parts[1].clone() };
    let of_another = fragments(&whole, 701)[1].frame();
    let of_tcp = fragments(&Packet { protocol: TCP, ..whole }, 700)[1].frame();
    vec![
        forward(format!("{} first fragment, resembled", family.name()), parts[0].frame(), DNS),
        unchanged(name("from another client"), from_another.frame(), DropFragment),
        unchanged(name("to another VIP"), to_another.frame(), DropFragment),
        unchanged(name("to no VIP"), to_nobody.frame(), PassNotVip),
        unchanged(name("of another datagram"), of_another, DropFragment),
        // IPv6 knows a datagram by addresses and number alone.
        match family {
            Family::V4 => unchanged(name("of another protocol"), of_tcp, DropFragment),
            Family::V6 => forward(name("of another protocol"), of_tcp, DNS),
        },
    ]
}

fn left_to_the_host(family: Family) -> Vec<Named> {
    let parts = fragments(&datagram(family, 10, UDP, [47_300, 9]), 600);
    let name = |at: usize| format!("{} fragment {at} to an unserved port", family.name());
    vec![
        unchanged(name(0), parts[0].frame(), PassNotVip),
        unchanged(name(1), parts[1].frame(), PassFragment),
        unchanged(name(2), parts[2].frame(), PassFragment),
    ]
}

fn on_vlan(family: Family) -> Vec<Named> {
    let (vip, servers) = L2_ON_VLAN;
    let parts = fragments(&datagram(family, vip, TCP, [47_400, 80]), 500);
    let one = |(at, part): (usize, &Packet)| {
        let name = format!("{} fragment {at} onto a VLAN", family.name());
        to_server(name, part.frame(), &part.tagged(&[0x81, 0, 0, 100]), servers)
    };
    parts.iter().enumerate().map(one).collect()
}

/// With options by the header, of which the frame has not all.
fn cut_in_options(frame: Vec<u8>) -> Vec<u8> {
    patched(patched(frame, IP, &[0x4f]), IP + 2, &[0, 100])
}

/// What has a fragment header, or the bits of one, without being a plain fragment.
fn whole_in_a_fragment_header() -> Vec<Named> {
    let family = Family::V6;
    let whole = Packet::udp(family.client(), family.vip(10), [47_500, 53], b"question");
    let atomic = Packet { extra: vec![UDP, 0, 0, 0, 0, 0, 0, 99], first: 44, ..whole.clone() };
    let reserved = Packet { extra: vec![UDP, 0xff, 0, 6, 0, 0, 0, 98], first: 44, ..whole.clone() };
    let later = |identification| {
        let extra = vec![UDP, 0, 0, 0x50, 0, 0, 0, identification];
        Packet { extra, first: 44, ..whole.clone() }.frame()
    };
    // A later fragment tells only that options came first, not what is behind them.
    let options_of = |identification| Packet {
        extra: vec![60, 0, 0, 0x50, 0, 0, 0, identification],
        first: 44,
        ..whole.clone()
    };
    let options = options_of(97);
    let destination_options = [UDP, 0, 1, 4, 0, 0, 0, 0];
    let first = Packet {
        extra: [&[60, 0, 0, 1, 0, 0, 0, 96][..], &destination_options].concat(),
        first: 44,
        ..whole.clone()
    };
    let v4 = Family::V4;
    let tiny = Packet::udp(v4.client(), v4.vip(10), [47_600, 53], b"");
    let tiny = |fragmentation| Packet { fragmentation, identification: 96, ..tiny.clone() }.frame();
    vec![
        forward("IPv6: a whole packet in a fragment header", atomic.frame(), DNS),
        unchanged("IPv6: a later fragment of its number", later(99), DropFragment),
        forward("IPv6: a fragment header with reserved bits", reserved.frame(), DNS),
        unchanged("IPv6: a later fragment of their number", later(98), DropFragment),
        unchanged("IPv6: a later fragment of options without a first", options.frame(), DropFragment),
        forward("IPv6: a first fragment that begins with options", first.frame(), DNS),
        forward("IPv6: a later fragment of the same", options_of(96).frame(), DNS).following(),
        unchanged("IPv4: a fragment at offset 8 without a first", tiny(1), DropFragment),
        forward("IPv4: a first fragment of a bare UDP header", tiny(MF), DNS),
        forward("IPv4: a fragment at offset 8", tiny(1), DNS).following(),
        forward("IPv4: a first fragment that says not to", patched(tiny(MF | DF), IP + 4, &[0, 95]), DNS),
        forward("IPv4: a later fragment that says not to", patched(tiny(100 | DF), IP + 4, &[0, 95]), DNS)
            .following(),
        unchanged("IPv4: a later fragment with half a header", cut_in_options(tiny(100)), PassMalformedIpv4),
    ]
}
