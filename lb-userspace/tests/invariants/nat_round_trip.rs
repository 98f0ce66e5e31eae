//! Customers' packets to a translated service, and its answers: what was translated and translated back is what it was.

use std::collections::BTreeMap;

use lb_common::abi::Forwarding;
use lb_common::net::{Address, Protocol};
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{Globals, VipKey};

use super::bytes::Bytes;
use super::frames::{CLIENT_MAC, Spec, reflected, tcp, udp};
use super::pipeline::address;
use super::wire::{self, Sum, TCP, UDP};
use super::world::{INTERFACES, UNTAGGED, World, client, own, service, vip};

/// Packets of one input.
const MAX_PACKETS: usize = 24;

/// A customer's side of a flow: address and ports.
type Outside = (Address, [u16; 2]);
/// A backend's side of it: backend, and the address and port it sees.
type Inside = (Address, Address, [u16; 2]);

pub fn check(input: &[u8]) {
    round_trips(input);
}

/// The same; yields how many packets went there and back.
pub fn round_trips(input: &[u8]) -> usize {
    let mut bytes = Bytes::new(input);
    let [v4, is_tcp, configured] = [bytes.bool(), bytes.bool(), bytes.bool()];
    let world = world(&mut bytes, v4, is_tcp, configured);
    let mut flows: BTreeMap<Outside, Inside> = BTreeMap::new();
    let mut count = 0;
    while !bytes.is_empty() && count < MAX_PACKETS {
        let spec = packet(&mut bytes, v4, is_tcp);
        let frame = spec.frame();
        let before = wire::ip(&frame).expect("IP");
        let there = world.send(&frame, 1);
        assert_eq!(there.outcome.verdict, Verdict::Forward, "{spec:?}");
        let after = wire::ip(&there.frame).expect("IP");
        for (ip, frame) in [(&before, &frame), (&after, &there.frame)] {
            assert_ne!(ip.header_sum(frame), Sum::Wrong);
            assert_ne!(ip.transport_sum(frame), Sum::Wrong);
        }
        let outside = (address(before.source(&frame)), ports(&frame, before.transport));
        let seen = address(after.source(&there.frame));
        assert_eq!(seen, own(v4).into(), "from an address of ours");
        let inside = (address(after.destination(&there.frame)), seen, ports(&there.frame, after.transport));
        let known = *flows.entry(outside).or_insert(inside);
        assert_eq!(known, inside, "a flow keeps its translation");

        let mut answer = reflected(&there.frame);
        answer[..6].copy_from_slice(&INTERFACES[0].1);
        let back = world.send(&answer, 1);
        assert_eq!(back.outcome.verdict, Verdict::ForwardReturn);
        let ip = wire::ip(&back.frame).expect("IP");
        assert_ne!(ip.header_sum(&back.frame), Sum::Wrong);
        assert_eq!(ip.ttl(&back.frame), spec.ttl - 2);
        assert_eq!(restored(&back.frame, &frame), frame, "the customer sees what it sent, from the VIP");
        count += 1;
    }
    let inside: Vec<_> = flows.values().collect();
    assert!((1..inside.len()).all(|at| !inside[..at].contains(&inside[at])), "no two flows look the same");
    count
}

/// The answer as a packet in the other direction, with the time to live that was used up, and the checksum over it.
fn restored(back: &[u8], original: &[u8]) -> Vec<u8> {
    let mut frame = reflected(back);
    let ip = wire::ip(&frame).expect("IP");
    let at = if ip.v4 { ip.at + 8..ip.at + 12 } else { ip.at + 7..ip.at + 8 };
    let to_be = &original[at.clone()];
    // The protocol between the two is not to be restored.
    if ip.v4 {
        assert_eq!(frame[ip.at + 9], to_be[1]);
    }
    frame[at].copy_from_slice(to_be);
    frame
}

fn ports(frame: &[u8], at: usize) -> [u16; 2] {
    [0, 2].map(|offset| wire::half(frame, at + offset).expect("ports"))
}

fn world(bytes: &mut Bytes<'_>, v4: bool, is_tcp: bool, configured: bool) -> World {
    let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
    let key = VipKey { address: vip(v4, 0).into(), port: bytes.pick(&[80, 0]), protocol };
    let mut service = service(0, Forwarding::Nat, key, v4);
    let port = bytes.pick(&[0, 8_080]);
    let vlan = bytes.pick(&[0, UNTAGGED, 7, 100]);
    for backend in &mut service.backends {
        backend.port = port;
        backend.hop = backend.hop.map(|hop| lb_common::abi::NextHop { vlan, ..hop });
    }
    let snat =
        if configured { [vec![own(true).into()], vec![own(false).into()]] } else { Default::default() };
    World::of(vec![service], 256, Globals { snat, ..Globals::default() })
}

/// A customer's packet that can be sent on.
fn packet(bytes: &mut Bytes<'_>, v4: bool, is_tcp: bool) -> Spec {
    let ports = [1_024 + u16::from(bytes.u8() % 8), 80];
    let length = bytes.pick(&[0, 1, 7, 600]);
    let data = vec![bytes.u8(); length];
    let payload =
        if is_tcp { tcp(ports, bytes.pick(&[2, 0x10, 0x10, 0x11, 4]), &data) } else { udp(ports, &data) };
    Spec {
        macs: [INTERFACES[0].1, CLIENT_MAC],
        tags: if bytes.bool() { vec![100] } else { vec![] },
        source: client(v4, bytes.u8() % 4),
        destination: vip(v4, 0),
        tos: bytes.u8(),
        ttl: bytes.pick(&[64, 255, 3]),
        fragment: if v4 { bytes.pick(&[0, 0x4000]) } else { 0 },
        options: bytes.pick(&[0, 1, 10]),
        extensions: [vec![], vec![0], vec![60, 43]][bytes.below(3)].clone(),
        protocol: if is_tcp { TCP } else { UDP },
        payload,
        checksum: is_tcp || !v4 || !bytes.one_in(4),
    }
}
