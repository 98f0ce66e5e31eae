use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::abi::{HEADROOM, VipSlot};
use crate::slice::SlicePacket;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];
const HOST: [u8; 4] = [10, 0, 1, 11];
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];
const EDGE: [u8; 4] = [10, 0, 1, 2];
const EDGE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const VIP: [u8; 4] = [203, 0, 113, 10];
const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// How the tests wrap a packet.
#[derive(Clone, Copy, Debug)]
enum Wrap {
    Ipip,
    /// Variant 0 with so many words of private data.
    Gue(u8),
    GueDirect,
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, class: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let header_bytes = 20 + options * 4;
    let total = (header_bytes + payload.len()) as u16;
    let mut header = std::vec![1; header_bytes];
    header[0] = 0x40 | (header_bytes / 4) as u8;
    header[1] = class;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..12].copy_from_slice(&[0, 7, 0x40, 0, 60, protocol, 0, 0]);
    header[12..16].copy_from_slice(&from);
    header[16..20].copy_from_slice(&to);
    let sum = crate::checksum::full(&header).raw().to_ne_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

fn ipv6(from: [u8; 16], to: [u8; 16], protocol: u8, class: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let head = [0x60 | class >> 4, class << 4, 0, 0, high, low, protocol, 60];
    [&head[..], &from, &to, payload].concat()
}

/// The inner packet with this traffic class, and whether it is IPv4.
fn inner(v4: bool, class: u8, payload: &[u8]) -> Vec<u8> {
    if v4 { ipv4(CLIENT, VIP, 17, class, 0, payload) } else { ipv6(CLIENT6, VIP6, 17, class, payload) }
}

/// The packet in an outer one of this family and traffic class.
fn wrap(packet: &[u8], how: Wrap, outer_v4: bool, class: u8, options: usize) -> Vec<u8> {
    let protocol = if packet[0] >> 4 == 4 { 4 } else { 41 };
    let (protocol, payload) = match how {
        Wrap::Ipip => (protocol, packet.to_vec()),
        Wrap::Gue(words) => {
            let gue = [&[words, protocol, 0, 0][..], &std::vec![0xee; usize::from(words) * 4]].concat();
            (17, udp(&[&gue, packet].concat()))
        }
        Wrap::GueDirect => (17, udp(packet)),
    };
    if outer_v4 {
        ipv4(EDGE, HOST, protocol, class, options, &payload)
    } else {
        ipv6(EDGE6, HOST6, protocol, class, &payload)
    }
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16 + 8).to_be_bytes();
    [&[0x9c, 0x40, 0x17, 0xc0, high, low, 0, 0][..], payload].concat()
}

/// The packet in a frame with so many VLAN tags.
fn frame(packet: &[u8], tags: usize) -> Vec<u8> {
    let tag = [0x81, 0, 0, 100, 0x81, 0, 0, 101];
    let ether_type: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&MACS[..], &tag[..tags * 4], &ether_type, packet].concat()
}

/// Sends a frame through the pipeline of a host with one address and VIP of each family.
fn run(frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buckets = std::vec![VipBucket::default(); DECAP_BUCKETS as usize];
    let addresses = [
        (Address::v4(HOST), DecapRoles::LOCAL),
        (v6(HOST6), DecapRoles::LOCAL),
        (Address::v4(VIP), DecapRoles::VIP),
        (v6(VIP6), DecapRoles::VIP),
    ];
    for (address, DecapRoles(service)) in addresses {
        let key = DecapRoles::key(address);
        let bucket = &mut buckets[(hash::vip(address, key) & (DECAP_BUCKETS - 1)) as usize];
        let slot = bucket.slots.iter_mut().find(|slot| slot.is_empty()).unwrap();
        *slot = VipSlot { address, key, service: service as u16, ..VipSlot::default() };
    }
    let sources = [SourcePrefix::new(Address::v4(EDGE), 24), SourcePrefix::new(v6(EDGE6), 64)];
    let control = DecapControl { sources: 2, ..DecapControl::default() };
    let tables = DecapSlices::new(&control, &sources, &buckets);
    let mut buffer = [&[0; HEADROOM], frame].concat();
    let mut packet = SlicePacket::new(&mut buffer, HEADROOM, 1);
    let verdict = process(&mut packet, &tables);
    let counted = tables.verdicts.into_inner().packets;
    assert_eq!((counted.iter().sum::<u64>(), counted[verdict.index()]), (1, 1), "counted once");
    (verdict, packet.bytes().to_vec())
}

fn v6(bytes: [u8; 16]) -> Address {
    core::net::IpAddr::from(bytes).into()
}

/// All of RFC 6040, figure 4: rows by the inner field, columns by the outer, both in the order of the bits.
#[test]
fn congestion_is_carried_over() {
    let expected = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (inner_ecn, row) in (0_u8..).zip(expected) {
        for (outer_ecn, expected) in (0_u8..).zip(row) {
            for (inner_v4, outer_v4) in [(true, true), (true, false), (false, true), (false, false)] {
                let class = 0b1011_1000;
                let packet = inner(inner_v4, class | inner_ecn, b"payload");
                let (verdict, left) = run(&frame(&wrap(&packet, Wrap::Ipip, outer_v4, outer_ecn, 0), 0));
                match expected {
                    Some(ecn) => {
                        assert_eq!(verdict, Verdict::Ipip);
                        // Built from scratch: the checksum is a full computation.
                        assert_eq!(left, frame(&inner(inner_v4, class | ecn, b"payload"), 0));
                    }
                    None => assert_eq!(verdict, Verdict::DropEcn),
                }
            }
        }
    }
}

fn wraps() -> impl Strategy<Value = Wrap> {
    let gue = (0..=MAX_GUE_EXTRA_WORDS as u8).prop_map(Wrap::Gue);
    prop_oneof![Just(Wrap::Ipip), gue, Just(Wrap::GueDirect)]
}

proptest! {
    /// Wrapped by hand, a packet comes out as it went in, in a frame with the same tags.
    #[test]
    fn what_was_wrapped_comes_out(
        how in wraps(),
        (inner_v4, outer_v4) in any::<(bool, bool)>(),
        (options, tags) in (0_usize..=10, 0_usize..=2),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let packet = inner(inner_v4, 0, &payload);
        let (verdict, left) = run(&frame(&wrap(&packet, how, outer_v4, 0, options), tags));
        let expected = if matches!(how, Wrap::Ipip) { Verdict::Ipip } else { Verdict::Gue };
        prop_assert_eq!(verdict, expected);
        prop_assert_eq!(left, frame(&packet, tags));
    }

    /// Any bytes get a verdict, and what is not decapsulated stays as it was.
    #[test]
    fn any_bytes_get_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (verdict, left) = run(&bytes);
        prop_assert!(left == bytes || matches!(verdict, Verdict::Ipip | Verdict::Gue));
    }

    #[test]
    fn a_damaged_tunnel_packet_gets_a_verdict(
        how in wraps(),
        (inner_v4, outer_v4) in any::<(bool, bool)>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frame(&wrap(&inner(inner_v4, 0, b"payload"), how, outer_v4, 0, 0), 0);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        let (verdict, left) = run(&bytes);
        prop_assert!(left == bytes || matches!(verdict, Verdict::Ipip | Verdict::Gue));
    }
}
