//! Any frame at a tunnel's end: it goes on unwrapped, goes on as it is, or is dropped.

use std::net::IpAddr;

use lb_common::abi::{DecapControl, DecapRoles, HEADROOM, SourcePrefix, VipBucket};
use lb_common::decap::{self, DecapSlices, Verdict};
use lb_common::slice::SlicePacket;
use lb_userspace::core::decap::{Roles, table};

use super::bytes::Bytes;
use super::frames::{CLIENT_MAC, Spec, damage, tcp, udp};
use super::pipeline::address;
use super::wire::{self, TCP, UDP};
use super::world::{INTERFACES, client, own, vip};

/// The tunnel's end of every address that a world's backends have, for every VIP there is in one.
struct End {
    table: Vec<VipBucket>,
    sources: [SourcePrefix; 2],
    control: DecapControl,
}

thread_local! {
    static END: End = End::new();
}

impl End {
    fn new() -> Self {
        let mut roles = Roles::new();
        for v4 in [true, false] {
            for number in 0..16 {
                roles.insert(vip(v4, number).into(), DecapRoles::VIP);
                roles.insert(backend(v4, number as u8).into(), DecapRoles::LOCAL);
            }
        }
        // The source of a tunnel may be any address of a prefix.
        let sources = [SourcePrefix::new(own(true).into(), 16), SourcePrefix::new(own(false).into(), 64)];
        let control = DecapControl { sources: 2, ..DecapControl::default() };
        Self { table: table(&roles).expect("they fit"), sources, control }
    }

    fn receive(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let tables = DecapSlices::new(&self.control, &self.sources, &self.table);
        let mut buffer = [&[0; HEADROOM], frame].concat();
        let mut packet = SlicePacket::new(&mut buffer, HEADROOM, 1);
        let verdict = decap::process(&mut packet, &tables);
        let counted = tables.verdicts.into_inner().packets;
        assert_eq!((counted.iter().sum::<u64>(), counted[verdict.index()]), (1, 1), "counted once");
        (verdict, packet.bytes().to_vec())
    }
}

fn backend(v4: bool, number: u8) -> IpAddr {
    super::world::address(v4, 2, number)
}

/// The frame as the host behind a tunnel's end sees it, if it was unwrapped.
pub fn unwrapped(frame: &[u8]) -> Option<Vec<u8>> {
    let (verdict, left) = END.with(|end| end.receive(frame));
    matches!(verdict, Verdict::Ipip | Verdict::Gue).then_some(left)
}

pub fn check(input: &[u8]) {
    verdict(input);
}

/// The same; yields the verdict that was met.
pub fn verdict(input: &[u8]) -> Verdict {
    let mut bytes = Bytes::new(input);
    let frame = if bytes.one_in(8) { bytes.rest().to_vec() } else { tunnel_packet(&mut bytes) };
    let (verdict, left) = END.with(|end| end.receive(&frame));
    if !matches!(verdict, Verdict::Ipip | Verdict::Gue) {
        assert!(verdict.is_drop() || left == frame, "left as it came");
        return verdict;
    }
    let outer = wire::ip(&frame).expect("IP");
    let source = address(outer.source(&frame));
    END.with(|end| assert!(end.sources.iter().any(|prefix| prefix.contains(source)), "a listed source"));
    assert_eq!(left[..outer.at - 2], frame[..outer.at - 2], "the Ethernet header and its tags");
    let (at, v4) = wire::place(&left).expect("IP");
    assert_eq!(at, outer.at);
    let removed = frame.len() - left.len();
    // But for the congestion mark, and the checksum over it, the packet is what was wrapped.
    let may = |place: usize| place == at + 1 || v4 && (at + 10..at + 12).contains(&place);
    let same = (at..left.len()).all(|place| may(place) || left[place] == frame[place + removed]);
    assert!(same, "the packet is untouched");
    // Behind its first header it may be cut.
    if let (Some(wrapped), Some(inner)) = (wire::ip_at(&frame, at + removed, v4), wire::ip_at(&left, at, v4))
    {
        assert_eq!(wrapped.header_sum(&frame), inner.header_sum(&left), "its checksum");
        assert_eq!(wrapped.transport_sum(&frame), inner.transport_sum(&left));
        assert!(inner.total <= outer.total, "no more than was wrapped");
    }
    verdict
}

/// A packet as the edge, or somebody else, might send it.
fn tunnel_packet(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let [inner_v4, outer_v4] = [bytes.bool(), bytes.bool()];
    let length = bytes.pick(&[0, 1, 32, 600]);
    let data = vec![bytes.u8(); length];
    let tcp_inside = bytes.bool();
    let inner = Spec {
        macs: [[0; 6]; 2],
        tags: vec![],
        source: client(inner_v4, 1),
        destination: if bytes.one_in(8) { client(inner_v4, 2) } else { vip(inner_v4, bytes.below(16)) },
        tos: bytes.u8(),
        ttl: 64,
        fragment: 0,
        options: bytes.pick(&[0, 0, 5]),
        extensions: vec![],
        protocol: if tcp_inside { bytes.pick(&[TCP, TCP, TCP, 4]) } else { UDP },
        payload: if tcp_inside { tcp([1, 80], 2, &data) } else { udp([1, 80], &data) },
        checksum: true,
    };
    let mut protocol = if inner_v4 { 4 } else { 41 };
    let mut payload = inner.packet();
    if bytes.bool() {
        let words = bytes.pick(&[0, 0, 1, 8, 9]);
        let first = words | bytes.pick(&[0, 0, 0, 0x20, 0x40]);
        let header = [&[first, protocol, 0, 0][..], &vec![0; usize::from(words) * 4]].concat();
        let header = if bytes.one_in(4) { Vec::new() } else { header };
        payload = udp([0xc001, lb_common::abi::GUE_PORT], &[header, payload].concat());
        protocol = UDP;
    }
    let outer = Spec {
        macs: [INTERFACES[0].1, CLIENT_MAC],
        tags: [vec![], vec![100], vec![7, 100]][bytes.below(3)].clone(),
        source: if bytes.one_in(8) { client(outer_v4, 3) } else { own(outer_v4) },
        destination: if bytes.one_in(8) { client(outer_v4, 4) } else { backend(outer_v4, bytes.u8() % 16) },
        tos: bytes.u8(),
        fragment: bytes.pick(&[0, 0, 0, 0x4000, 0x2000, 0x10]),
        options: bytes.pick(&[0, 0, 10]),
        extensions: [vec![], vec![], vec![60], vec![0], vec![60; 7]][bytes.below(5)].clone(),
        checksum: bytes.bool(),
        ttl: 64,
        protocol,
        payload,
    };
    let mut frame = outer.frame();
    if bytes.one_in(3) {
        damage(bytes, &mut frame);
    }
    frame
}
