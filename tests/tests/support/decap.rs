//! The named frames of the decapsulating program: what comes in, what is expected of it.

use lb_common::decap::{MAX_GUE_EXTRA_WORDS, Verdict};

use super::tunnels::{FAMILIES, Family, Ip, Place, Wrap, framed, gue, inner, outer, tagged, udp, wrapped};
use Family::{V4, V6};

/// A frame and what must become of it.
pub struct Named {
    pub name: String,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    /// What leaves, if it is not the frame as it came.
    pub becomes: Option<Vec<u8>>,
}

fn unchanged(name: impl Into<String>, frame: Vec<u8>, verdict: Verdict) -> Named {
    Named { name: name.into(), frame, verdict, becomes: None }
}

fn taken_off(name: impl Into<String>, frame: Vec<u8>, verdict: Verdict, becomes: Vec<u8>) -> Named {
    Named { name: name.into(), frame, verdict, becomes: Some(becomes) }
}

/// Every frame of the table.
pub fn all() -> Vec<Named> {
    let mut frames = decapsulated();
    frames.extend(FAMILIES.into_iter().flat_map(options));
    frames.extend(not_ours());
    frames.extend(FAMILIES.into_iter().flat_map(not_a_tunnel));
    frames.extend(FAMILIES.into_iter().flat_map(refused_outer));
    frames.extend(extensions());
    frames.extend(FAMILIES.into_iter().flat_map(refused_gue));
    for outer_family in FAMILIES {
        for inner_family in FAMILIES {
            frames.extend(refused_inner(outer_family, inner_family));
            frames.extend(refused_destination(outer_family, inner_family));
            frames.extend(congestion(outer_family, inner_family));
        }
    }
    frames
}

/// Every way to wrap, every family in every other, with 0, 1 and 2 VLAN tags.
fn decapsulated() -> Vec<Named> {
    let most = u8::try_from(MAX_GUE_EXTRA_WORDS).unwrap();
    let ways = [Wrap::Ipip, Wrap::Gue(0), Wrap::Gue(1), Wrap::Gue(most), Wrap::GueDirect];
    let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0, 100], &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 101]];
    let mut frames = Vec::new();
    for (outer_family, inner_family) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
        for how in ways {
            for tags in tags {
                let inner = inner(inner_family);
                let verdict = if matches!(how, Wrap::Ipip) { Verdict::Ipip } else { Verdict::Gue };
                let (inside, outside) = (inner_family.name(), outer_family.name());
                frames.push(taken_off(
                    format!("{inside} in {outside} by {how:?}, {} bytes of tags", tags.len()),
                    tagged(tags, &wrapped(how, outer_family, &inner).bytes()),
                    verdict,
                    tagged(tags, &inner.bytes()),
                ));
            }
        }
    }
    frames
}

/// What may be different about a packet that is decapsulated.
fn options(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{what} in {}", family.name());
    let inner = inner(V4);
    let plain = wrapped(Wrap::Ipip, family, &inner);
    let with_options = Ip { extra: vec![1; 40], ..inner.clone() };
    let fragment = Ip { fragmentation: 0x2000, ..inner.clone() };
    let jumbo = Ip { payload: udp(40_000, 443, &[7; 3_000]), ..inner.clone() };
    let icmp = Ip { protocol: 1, payload: vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0], ..inner.clone() };
    let bare = Ip { payload: vec![], ..inner.clone() };
    let mut frames: Vec<Named> = [
        ("IPv4 options", with_options),
        ("a fragment", fragment),
        ("a jumbo frame", jumbo),
        ("a ping", icmp),
        ("nothing but an IP header", bare),
    ]
    .into_iter()
    .map(|(what, inner)| {
        taken_off(name(what), framed(&wrapped(Wrap::Ipip, family, &inner)), Verdict::Ipip, framed(&inner))
    })
    .collect();
    let padding = vec![0; 6];
    let padded = [framed(&plain), padding.clone()].concat();
    frames.push(taken_off(
        name("padding"),
        padded,
        Verdict::Ipip,
        [framed(&inner), padding.clone()].concat(),
    ));
    let mut longer = plain.clone();
    longer.payload.extend(&padding);
    frames.push(taken_off(
        name("padding within the tunnel"),
        framed(&longer),
        Verdict::Ipip,
        [framed(&inner), padding].concat(),
    ));
    if family == V4 {
        let options = Ip { extra: vec![1; 40], ..plain };
        frames.push(taken_off("outer IPv4 options", framed(&options), Verdict::Ipip, framed(&inner)));
    }
    frames
}

fn not_ours() -> Vec<Named> {
    let tunnel = |family| framed(&wrapped(Wrap::Ipip, family, &inner(V4)));
    let cut = |mut frame: Vec<u8>, length| {
        frame.truncate(length);
        frame
    };
    let patched = |mut frame: Vec<u8>, at: usize, byte| {
        frame[at] = byte;
        frame
    };
    let mut mapped_source = tunnel(V6);
    mapped_source[22..38].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
    let mut arp = tunnel(V4);
    arp[12..14].copy_from_slice(&[8, 6]);
    let three_tags = [0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3];
    let three_tags = tagged(&three_tags, &wrapped(Wrap::Ipip, V4, &inner(V4)).bytes());
    let tag_cut = cut(tagged(&[0x81, 0, 0, 1], &[0x45]), 15);
    vec![
        unchanged("ARP", arp, Verdict::PassNotIp),
        unchanged("three VLAN tags", three_tags, Verdict::PassNotIp),
        unchanged("cut within a VLAN tag", tag_cut, Verdict::PassMalformedEthernet),
        unchanged("an IPv4 header cut", cut(tunnel(V4), 33), Verdict::PassMalformedIpv4),
        unchanged("IPv4 of version 5", patched(tunnel(V4), 14, 0x55), Verdict::PassMalformedIpv4),
        unchanged("an IPv4 header of 16 bytes", patched(tunnel(V4), 14, 0x44), Verdict::PassMalformedIpv4),
        unchanged(
            "an IPv4 total length below the header's",
            patched(patched(tunnel(V4), 16, 0), 17, 19),
            Verdict::PassMalformedIpv4,
        ),
        unchanged("an IPv6 header cut", cut(tunnel(V6), 53), Verdict::PassMalformedIpv6),
        unchanged("IPv6 of version 4", patched(tunnel(V6), 14, 0x40), Verdict::PassMalformedIpv6),
        unchanged("an IPv4-mapped IPv6 source", mapped_source, Verdict::PassMalformedIpv6),
    ]
}

/// What the host gets untouched although it looks similar.
fn not_a_tunnel(family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{what}, {}", family.name());
    let packet = |protocol, payload: &[u8]| outer(family, protocol, payload.to_vec());
    let from_port = udp(6_080, 50_000, b"answer");
    let mut tcp = vec![0; 20];
    tcp[2..4].copy_from_slice(&6_080_u16.to_be_bytes());
    let elsewhere = |how| framed(&Ip { to: Place::OtherHost, ..wrapped(how, family, &inner(V4)) });
    let to_vip = |how| framed(&Ip { to: Place::NoVip, ..wrapped(how, family, &inner(V6)) });
    vec![
        unchanged(name("ssh"), framed(&packet(6, &[0, 22, 0, 22, 0, 0, 0, 0])), Verdict::PassNotTunnel),
        unchanged(name("TCP to port 6080"), framed(&packet(6, &tcp)), Verdict::PassNotTunnel),
        unchanged(name("UDP to port 53"), framed(&packet(17, &udp(1, 53, b"?"))), Verdict::PassNotTunnel),
        unchanged(name("UDP from port 6080"), framed(&packet(17, &from_port)), Verdict::PassNotTunnel),
        unchanged(
            name("UDP of 7 bytes"),
            framed(&packet(17, &[0, 1, 0x17, 0xc0, 0, 8, 0])),
            Verdict::PassNotTunnel,
        ),
        unchanged(name("GRE"), framed(&packet(47, &inner(V4).bytes())), Verdict::PassNotTunnel),
        unchanged(name("ICMP"), framed(&packet(1, &[8; 16])), Verdict::PassNotTunnel),
        unchanged(name("IP in IP to another host"), elsewhere(Wrap::Ipip), Verdict::PassOtherHost),
        unchanged(name("GUE to another host"), elsewhere(Wrap::Gue(0)), Verdict::PassOtherHost),
        unchanged(
            name("a tunnel to what is neither host nor VIP"),
            to_vip(Wrap::Ipip),
            Verdict::PassOtherHost,
        ),
    ]
}

fn refused_outer(family: Family) -> Vec<Named> {
    let mut frames = Vec::new();
    for how in [Wrap::Ipip, Wrap::Gue(0), Wrap::GueDirect] {
        for inner_family in FAMILIES {
            let packet = wrapped(how, family, &inner(inner_family));
            let name =
                |what: &str| format!("{what}: {how:?} of {} in {}", inner_family.name(), family.name());
            let foreign = Ip { from: Place::Stranger, ..packet.clone() };
            frames.push(unchanged(name("a foreign source"), framed(&foreign), Verdict::DropSource));
            let first = fragment(&packet, 0, true);
            frames.push(unchanged(name("a first fragment"), framed(&first), Verdict::DropFragment));
            // Only the protocol of the outer header tells of a tunnel in a later fragment.
            let later =
                if matches!(how, Wrap::Ipip) { Verdict::DropFragment } else { Verdict::PassNotTunnel };
            frames.push(unchanged(name("a fragment"), framed(&fragment(&packet, 7, true)), later));
            frames.push(unchanged(name("a last fragment"), framed(&fragment(&packet, 9, false)), later));
        }
    }
    frames
}

/// As a fragment at an offset in units of eight bytes.
fn fragment(packet: &Ip, offset: u16, more: bool) -> Ip {
    match packet.family {
        V4 => Ip { fragmentation: offset | u16::from(more) << 13, ..packet.clone() },
        V6 => {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            let extra = vec![packet.protocol, 0, high, low, 0, 0, 0, 7];
            Ip { protocol: 44, extra, ..packet.clone() }
        }
    }
}

/// With these extension headers, each of so many units of eight bytes.
fn extended(packet: Ip, headers: &[(u8, u8)]) -> Ip {
    let followers = headers.iter().skip(1).map(|(protocol, _)| *protocol).chain([packet.protocol]);
    let mut extra = Vec::new();
    for (next, (_, units)) in followers.zip(headers) {
        let mut header = vec![0; usize::from(*units) * 8];
        header[..2].copy_from_slice(&[next, units - 1]);
        extra.extend(header);
    }
    let protocol = headers.first().map_or(packet.protocol, |(protocol, _)| *protocol);
    Ip { protocol, extra, ..packet }
}

fn extensions() -> Vec<Named> {
    // Protocol number, and length in units of eight bytes.
    const HOP_BY_HOP: (u8, u8) = (0, 1);
    const ROUTING: (u8, u8) = (43, 3);
    const OPTIONS: (u8, u8) = (60, 1);
    let tunnel = |how| wrapped(how, V6, &inner(V4));
    let plain = || outer(V6, 17, udp(1, 53, b"?"));
    let kept = |name, packet: Ip, headers: &[(u8, u8)], verdict| {
        unchanged(name, framed(&extended(packet, headers)), verdict)
    };
    let taken = |name, how, headers: &[(u8, u8)], verdict| {
        taken_off(name, framed(&extended(tunnel(how), headers)), verdict, framed(&inner(V4)))
    };
    let foreign = Ip { from: Place::Stranger, ..tunnel(Wrap::Ipip) };
    let elsewhere = Ip { to: Place::OtherHost, ..tunnel(Wrap::Ipip) };
    let mut cut = framed(&extended(tunnel(Wrap::Ipip), &[OPTIONS]));
    cut.truncate(14 + 40 + 7);
    let mut beyond = extended(tunnel(Wrap::Ipip), &[OPTIONS]);
    beyond.extra[1] = 200;
    // Neither "more" nor an offset: a whole packet behind a fragment header (RFC 6946).
    let first = fragment(&tunnel(Wrap::Ipip), 0, true);
    let extra = [&[first.protocol, 0, 0, 0, 0, 0, 0, 0], &first.extra[..]].concat();
    let behind_options = Ip { protocol: OPTIONS.0, extra, ..first };
    let atomic = framed(&fragment(&tunnel(Wrap::Ipip), 0, false));
    vec![
        taken("ipip behind destination options", Wrap::Ipip, &[OPTIONS], Verdict::Ipip),
        taken("gue behind long destination options", Wrap::Gue(1), &[(60, 32)], Verdict::Gue),
        taken("ipip behind two headers of options", Wrap::Ipip, &[OPTIONS, (60, 2)], Verdict::Ipip),
        kept("ipip behind hop-by-hop options", tunnel(Wrap::Ipip), &[HOP_BY_HOP], Verdict::DropExtensions),
        kept("gue behind hop-by-hop options", tunnel(Wrap::Gue(0)), &[HOP_BY_HOP], Verdict::DropExtensions),
        kept(
            "ipip behind a routing header",
            tunnel(Wrap::Ipip),
            &[OPTIONS, ROUTING],
            Verdict::DropExtensions,
        ),
        kept("too many headers, from a foreign source", foreign, &[OPTIONS; 7], Verdict::DropSource),
        kept("too many headers", tunnel(Wrap::Ipip), &[OPTIONS; 7], Verdict::DropExtensions),
        kept("too many headers, to another host", elsewhere, &[OPTIONS; 7], Verdict::PassOtherHost),
        taken("as many headers as are followed", Wrap::Ipip, &[OPTIONS; 6], Verdict::Ipip),
        kept("UDP behind hop-by-hop and routing", plain(), &[HOP_BY_HOP, ROUTING], Verdict::PassNotTunnel),
        unchanged("a whole packet behind a fragment header", atomic, Verdict::DropExtensions),
        unchanged("an extension header cut", cut, Verdict::PassMalformedIpv6),
        unchanged("an extension header beyond the packet", framed(&beyond), Verdict::PassMalformedIpv6),
        unchanged(
            "a first fragment behind destination options",
            framed(&behind_options),
            Verdict::DropFragment,
        ),
    ]
}

fn refused_gue(family: Family) -> Vec<Named> {
    let inner = inner(V4).bytes();
    let with_head = |head: [u8; 4], rest: &[u8]| framed(&gue(family, &[&head[..], rest].concat()));
    let unsupported = |name: &str, head| {
        unchanged(
            format!("{name} in {}", family.name()),
            with_head(head, &inner),
            Verdict::DropGueUnsupported,
        )
    };
    let malformed = |name: &str, frame| {
        unchanged(format!("{name} in {}", family.name()), frame, Verdict::DropMalformedGue)
    };
    let udp_length = |length: u16| {
        let mut packet = gue(family, &[&[0, 4, 0, 0][..], &inner].concat());
        packet.payload[4..6].copy_from_slice(&length.to_be_bytes());
        framed(&packet)
    };
    let whole = u16::try_from(12 + inner.len()).unwrap();
    let mut cut = with_head([0, 4, 0, 0], &inner);
    cut.truncate(cut.len() - inner.len() - 1);
    let words = u8::try_from(MAX_GUE_EXTRA_WORDS).unwrap();
    vec![
        unsupported("a control message", [0x20, 4, 0, 0]),
        unsupported("a first flag", [0, 4, 0x80, 0]),
        unsupported("a last flag", [0, 4, 0, 1]),
        unsupported("more words than are skipped", [words + 1, 4, 0, 0]),
        unsupported("TCP", [0, 6, 0, 0]),
        unsupported("protocol 59", [0, 59, 0, 0]),
        unsupported("variant 1 of IP version 5", [0x50, 4, 0, 0]),
        unsupported("variant 1 of IP version 7", [0x70, 4, 0, 0]),
        unsupported("variant 2", [0x80, 4, 0, 0]),
        unsupported("variant 3", [0xc0, 4, 0, 0]),
        malformed("a UDP length of 0", udp_length(0)),
        malformed("no room for GUE", udp_length(11)),
        malformed("a UDP length beyond the packet", udp_length(whole + 1)),
        malformed("words beyond the datagram", with_head([words, 4, 0, 0], &[0; 31])),
        malformed("GUE cut by the frame", cut),
    ]
}

fn refused_inner(outer_family: Family, inner_family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{what}: {} in {}", inner_family.name(), outer_family.name());
    let packet = inner(inner_family);
    let in_tunnel = |bytes: Vec<u8>| framed(&outer(outer_family, inner_family.protocol(), bytes));
    let malformed = |what: &str, frame| unchanged(name(what), frame, Verdict::DropMalformedInner);
    let edited = |at: usize, byte: u8| {
        let mut bytes = packet.bytes();
        bytes[at] = byte;
        in_tunnel(bytes)
    };
    let bytes = packet.bytes();
    let header_bytes = if inner_family == V4 { 20 } else { 40 };
    let mut cut = in_tunnel(bytes.clone());
    cut.truncate(cut.len() - bytes.len() + header_bytes - 1);
    let (length_at, wrong_version) = if inner_family == V4 { (3, 0x65) } else { (5, 0x45) };
    let mut frames = vec![
        malformed("no inner packet", in_tunnel(vec![])),
        malformed("half an inner header", in_tunnel(bytes[..header_bytes - 1].to_vec())),
        malformed("an inner header cut by the frame", cut),
        malformed("another inner version", edited(0, wrong_version)),
        malformed("one byte more promised", edited(length_at, bytes[length_at] + 1)),
        malformed("one byte less wrapped", in_tunnel(bytes[..bytes.len() - 1].to_vec())),
    ];
    if inner_family == V4 {
        frames.push(malformed("an inner header of 0 bytes", edited(0, 0x40)));
        frames.push(malformed("an inner header of 16 bytes", edited(0, 0x44)));
        frames.push(malformed("inner options beyond the packet", edited(0, 0x4f)));
        frames.push(malformed("an inner total length below the header's", edited(3, 19)));
    } else {
        let mut mapped = bytes;
        mapped[24..40].copy_from_slice(&[
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0xff,
            0xff,
            10,
            0,
            0,
            Place::Vip as u8,
        ]);
        frames.push(malformed("an IPv4-mapped VIP", in_tunnel(mapped)));
    }
    frames
}

/// What must not come out of a tunnel, however well-formed it is.
fn refused_destination(outer_family: Family, inner_family: Family) -> Vec<Named> {
    let name = |what: &str| format!("{what}: {} in {}", inner_family.name(), outer_family.name());
    let packet = inner(inner_family);
    let foreign = Ip { to: Place::NoVip, ..packet.clone() };
    let to_host = Ip { to: Place::Host, ..packet.clone() };
    let nested = |family| {
        framed(&wrapped(
            Wrap::Ipip,
            outer_family,
            &Ip { to: Place::Vip, ..wrapped(Wrap::Ipip, inner_family, &inner(family)) },
        ))
    };
    vec![
        unchanged(
            name("not a VIP"),
            framed(&wrapped(Wrap::Ipip, outer_family, &foreign)),
            Verdict::DropNotVip,
        ),
        unchanged(
            name("not a VIP, GUE"),
            framed(&wrapped(Wrap::Gue(0), outer_family, &foreign)),
            Verdict::DropNotVip,
        ),
        unchanged(
            name("to the host"),
            framed(&wrapped(Wrap::Ipip, outer_family, &to_host)),
            Verdict::DropNotVip,
        ),
        unchanged(name("IPv4 nested"), nested(V4), Verdict::DropNested),
        unchanged(name("IPv6 nested"), nested(V6), Verdict::DropNested),
    ]
}

/// Every pair of inner and outer field of RFC 6040, figure 4.
fn congestion(outer_family: Family, inner_family: Family) -> Vec<Named> {
    let expected = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];
    let mut frames = Vec::new();
    for (inner_ecn, row) in (0_u8..).zip(expected) {
        for (outer_ecn, left) in (0_u8..).zip(row) {
            let class = 0b1011_1000;
            let packet = Ip { traffic_class: class | inner_ecn, ..inner(inner_family) };
            let tunnel = Ip { traffic_class: outer_ecn, ..wrapped(Wrap::Gue(0), outer_family, &packet) };
            let name = format!(
                "ECN {inner_ecn} of {} in {outer_ecn} of {}",
                inner_family.name(),
                outer_family.name()
            );
            frames.push(if left == 9 {
                unchanged(name, framed(&tunnel), Verdict::DropEcn)
            } else {
                let becomes = framed(&Ip { traffic_class: class | left, ..packet });
                taken_off(name, framed(&tunnel), Verdict::Gue, becomes)
            });
        }
    }
    frames
}
