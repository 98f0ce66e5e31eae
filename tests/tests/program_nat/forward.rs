//! A customer's packet and its answer, each translated → exactly the frames that must leave.

use lb_common::abi::ICMP_PER_TICK;
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;

use crate::support::nat_frames::{
    EDGE, Nat, OTHER_ROUTER, ROUTER, Setup, UNTAGGED, answer, answered, retagged,
};
use crate::support::packets::{ACK, Body, DESTINATION_OPTIONS, FIN, HOP_BY_HOP, Packet, ROUTING, RST, SYN};
use crate::support::parity::INTERFACE;

const TAG: &[u8] = &[0x81, 0, 0, 100];
/// With a priority.
const OTHER_TAG: &[u8] = &[0x81, 0, 0x61, 0x2c];
const SERVICE_TAG: &[u8] = &[0x88, 0xa8, 0, 100];
const TWO_TAGS: &[u8] = &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 101];

/// A connection from its first packet to its last, with answers.
fn connection(nat: &mut Nat, first: &Packet) {
    let (left, outcome) = nat.forward(first);
    assert!(outcome.new_flow(), "{first:?}");
    for (flags, payload, answer_flags, answer_payload) in [
        (SYN, &b""[..], SYN | ACK, &b""[..]),
        (ACK, b"", ACK, b""),
        (ACK, b"a question of odd length!", ACK, b"an answer of odd length"),
        (ACK | FIN, b"", ACK | FIN, b"x"),
        (ACK | RST, b"", ACK | RST, b""),
    ] {
        let mut next = first.clone();
        next.body = match &first.body {
            Body::Tcp { ports, .. } => Body::Tcp { ports: *ports, flags, payload: payload.to_vec() },
            udp => udp.with_payload(payload.to_vec()),
        };
        let (again, outcome) = nat.forward(&next);
        assert!(!outcome.new_flow(), "{next:?}");
        assert_eq!((again.source, again.body.ports()), (left.source, left.body.ports()), "{next:?}");
        let answer = answer(&left, answer_flags, answer_payload);
        nat.back(&answer, &answered(first, &answer));
    }
    let flows = nat.translations();
    assert_eq!(flows, 2);
}

#[test]
fn connections_of_every_kind_are_translated_both_ways() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        for (vip_port, backend_port) in [(80, 8_080), (80, 0), (0, 8_080), (0, 0)] {
            for sources in [0, 1, 4] {
                let setup = Setup { vip_port, backend_port, sources, ..setup };
                nat.change(setup);
                connection(&mut nat, &setup.customer(40_000, SYN, b""));
            }
        }
    }
}

#[test]
fn tags_are_those_of_the_way_that_a_packet_takes() {
    let mut nat = Nat::any();
    for (tags, vlan) in [
        (&[][..], 0),
        (&[], UNTAGGED),
        (&[], 300),
        (TAG, 0),
        (TAG, UNTAGGED),
        (TAG, 100),
        (TAG, 300),
        (OTHER_TAG, 0),
        (SERVICE_TAG, 0),
        (SERVICE_TAG, UNTAGGED),
        (SERVICE_TAG, 300),
        (TWO_TAGS, 0),
        (TWO_TAGS, 100),
        (TWO_TAGS, 300),
        // The server knows of no tag, and the customer's router needs both.
        (TWO_TAGS, UNTAGGED),
    ] {
        for setup in Setup::all() {
            let setup = Setup { vlan, ..setup };
            let customer = Packet { tags: tags.to_vec(), ..setup.customer(40_000, SYN, b"") };
            nat.change(setup);
            connection(&mut nat, &customer);
        }
    }
}

/// A tag that is put in has no priority, and one that is changed keeps it.
#[test]
fn a_priority_stays_with_its_tag() {
    let setup = Setup { vlan: 5, ..Setup::all().next().unwrap() };
    let mut nat = Nat::new(setup);
    let customer = Packet { tags: OTHER_TAG.to_vec(), ..setup.customer(40_000, SYN, b"") };
    let (left, _) = nat.forward(&customer);
    assert_eq!(left.tags, [0x81, 0, 0x60, 5]);
    assert_eq!(retagged(&left.tags, 300), OTHER_TAG);
    let answer = answer(&left, SYN | ACK, b"");
    nat.back(&answer, &answered(&customer, &answer));
}

#[test]
fn packets_behind_options_and_extension_headers_are_translated() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        let v4 = setup.family.vip().is_ipv4();
        let extras: &[&[u8]] = if v4 {
            &[&[1; 4], &[1; 40]]
        } else {
            &[&[HOP_BY_HOP], &[HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS], &[DESTINATION_OPTIONS; 6]]
        };
        for extra in extras {
            nat.change(setup);
            let customer = Packet { extra: extra.to_vec(), ..setup.customer(40_000, SYN, b"data") };
            let (left, _) = nat.forward(&customer);
            let answer = Packet { extra: extra.to_vec(), ..answer(&left, SYN | ACK, b"more") };
            nat.back(&answer, &answered(&customer, &answer));
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let setup = Setup::all().find(|setup| !setup.tcp && setup.family.vip().is_ipv4()).unwrap();
    let mut nat = Nat::new(setup);
    let mut customer = setup.customer(40_000, 0, b"question");
    if let Body::Udp { checksum, .. } = &mut customer.body {
        *checksum = false;
    }
    let (left, _) = nat.forward(&customer);
    assert_eq!(left.packet()[26..28], [0, 0]);
    let answer = answer(&left, 0, b"answer");
    nat.back(&answer, &answered(&customer, &answer));
}

/// A payload for which the checksum comes out as zero, which stands for none, is sent with its other zero.
#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    let mut nat = Nat::any();
    for setup in Setup::all().filter(|setup| !setup.tcp) {
        nat.change(setup);
        let transport = if setup.family.vip().is_ipv4() { 20 } else { 40 };
        let (left, _) = nat.forward(&setup.customer(40_000, 0, &[0; 2]));
        let checksum = left.packet()[transport + 6..transport + 8].to_vec();
        // Adding the checksum itself makes the sum all ones.
        let customer = setup.customer(40_000, 0, &checksum);
        let (left, _) = nat.forward(&customer);
        assert_eq!(left.packet()[transport + 6..transport + 8], [0xff, 0xff]);
        // And back: the customer's side comes out as zero.
        let silent = answer(&left, 0, &[0; 2]);
        let expected = answered(&customer, &silent).packet();
        let answer = answer(&left, 0, &expected[transport + 6..transport + 8]);
        let expected = answered(&customer, &answer);
        assert_eq!(expected.packet()[transport + 6..transport + 8], [0xff, 0xff]);
        nat.back(&answer, &expected);
    }
}

#[test]
fn answers_follow_the_customers_router() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let customer = setup.customer(40_000, SYN, b"");
        let (left, _) = nat.forward(&customer);
        let answer = answer(&left, SYN | ACK, b"");
        nat.back(&answer, &answered(&customer, &answer));
        let moved = Packet { macs: [EDGE, OTHER_ROUTER], ..setup.customer(40_000, ACK, b"") };
        nat.forward(&moved);
        let expected = answered(&moved, &answer);
        assert_eq!(expected.macs, [OTHER_ROUTER, EDGE]);
        nat.back(&answer, &expected);
        nat.forward(&customer);
        nat.back(&answer, &answered(&customer, &answer));
        assert_eq!(answered(&customer, &answer).macs, [ROUTER, EDGE]);
    }
}

#[test]
fn what_is_padded_keeps_its_padding() {
    let setup = Setup::all().next().unwrap();
    let mut nat = Nat::new(setup);
    let customer = setup.customer(40_000, SYN, b"");
    let (left, _) = nat.forward(&customer);
    let padding = [0x5a; 6];
    let (_, frame) = nat.twins.agree_on(&[&customer.frame()[..], &padding].concat());
    assert_eq!(frame, [&left.frame()[..], &padding].concat());
}

#[test]
fn what_is_no_answer_passes_bit_identical() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let (left, _) = nat.forward(&setup.customer(40_000, SYN, b""));
        let right = answer(&left, ACK, b"answer");
        let [server_port, port] = right.body.ports();
        let wrong_ports = |ports| Packet { body: right.body.with_ports(ports), ..right.clone() };
        let other_protocol = match &right.body {
            Body::Tcp { ports, payload, .. } => {
                Body::Udp { ports: *ports, payload: payload.clone(), checksum: true }
            }
            other => Body::Tcp { ports: other.ports(), flags: ACK, payload: vec![] },
        };
        for wrong in [
            wrong_ports([server_port, port ^ 1]),
            wrong_ports([server_port + 1, port]),
            Packet { source: setup.family.server(77), ..right.clone() },
            Packet { source: setup.family.client(7), ..right.clone() },
            Packet { destination: setup.family.snat(77), ..right.clone() },
            Packet { body: other_protocol, ..right.clone() },
            // A frame for another host's MAC address.
            Packet { macs: [OTHER_ROUTER, right.macs[1]], ..right.clone() },
            // Its time to live is of no interest if it is not routed.
            Packet { hops: 1, ..wrong_ports([server_port, port ^ 1]) },
        ] {
            nat.unchanged(&wrong, Verdict::PassNotVip);
        }
        assert_eq!(nat.translations(), 2);
        nat.unchanged(
            &Packet { macs: [OTHER_ROUTER, ROUTER], ..setup.customer(40_000, ACK, b"") },
            Verdict::PassOtherHost,
        );
    }
}

/// The answer to a packet that cannot go on, built from scratch.
fn expected_reply(packet: &Packet, kind: [u8; 2], rest: [u8; 4]) -> Vec<u8> {
    let [edge, sender] = packet.macs;
    let quoted = packet.packet().len().min(256) & !3;
    let reply = Packet { hops: 64, ..packet.error([sender, edge], packet.destination, kind, rest, quoted) };
    reply.frame()
}

#[test]
fn the_end_of_a_packets_time_is_told_to_its_sender() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        let v4 = setup.family.vip().is_ipv4();
        let kind = if v4 { [11, 0] } else { [3, 0] };
        for tags in [&[][..], TAG, TWO_TAGS] {
            nat.change(setup);
            let customer = Packet { tags: tags.to_vec(), ..setup.customer(40_000, SYN, b"hello") };
            for hops in [0, 1] {
                let late = Packet { hops, ..customer.clone() };
                let (outcome, frame) = nat.twins.agree_on(&late.frame());
                assert_eq!(outcome.verdict, Verdict::ReplyTimeExceeded);
                assert_eq!(frame, expected_reply(&late, kind, [0; 4]), "{late:?}");
            }
            assert_eq!(nat.translations(), 0, "what ends here opens nothing");
            let (left, _) = nat.forward(&Packet { hops: 2, ..customer.clone() });
            assert_eq!(left.hops, 1);
            // The server's packet comes back to the server.
            let late = Packet { hops: 1, ..answer(&left, SYN | ACK, &[7; 400]) };
            let (outcome, frame) = nat.twins.agree_on(&late.frame());
            assert_eq!(outcome.verdict, Verdict::ReplyTimeExceeded);
            assert_eq!(frame, expected_reply(&late, kind, [0; 4]), "{late:?}");
        }
    }
}

#[test]
fn what_is_too_big_is_told_to_its_sender_or_dropped_as_configured() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        let setup = Setup { mtu: 1_400, ..setup };
        let v4 = setup.family.vip().is_ipv4();
        let headers = if v4 { 20 } else { 40 } + if setup.tcp { 20 } else { 8 };
        let (kind, rest) = if v4 { ([3, 4], [0, 0, 5, 120]) } else { ([2, 0], [0, 0, 5, 120]) };
        for reply_oversized in [false, true] {
            let setup = Setup { reply_oversized, ..setup };
            nat.change(setup);
            let fits = setup.customer(40_000, ACK, &vec![7; 1_400 - headers]);
            let too_big = setup.customer(40_001, ACK, &vec![7; 1_401 - headers]);
            nat.forward(&fits);
            let (outcome, frame) = nat.twins.agree_on(&too_big.frame());
            assert_eq!(outcome.verdict, Verdict::ReplyTooBig);
            assert_eq!(frame, expected_reply(&too_big, kind, rest));
            if v4 {
                let may_be_cut = Packet { dont_fragment: false, ..too_big };
                let verdict = if reply_oversized { Verdict::ReplyTooBig } else { Verdict::DropTooBig };
                assert_eq!(nat.twins.agree(&may_be_cut.frame()).verdict, verdict);
            }
            assert_eq!(nat.translations(), 2, "what does not fit opens nothing");
        }
    }
}

/// A flood of packets whose time is over must not keep anybody from learning what is too big.
#[test]
fn the_end_of_packets_times_is_told_within_a_limit_of_its_own() {
    let setup = Setup { mtu: 1_400, ..Setup::all().next().expect("one") };
    let mut nat = Nat::new(setup);
    let late = Packet { hops: 1, ..setup.customer(40_000, SYN, b"") };
    for _ in 0..ICMP_PER_TICK {
        assert_eq!(nat.twins.agree(&late.frame()).verdict, Verdict::ReplyTimeExceeded);
    }
    assert_eq!(nat.twins.agreed(&late.frame()).0.verdict, Verdict::DropIcmpRate);
    let too_big = setup.customer(40_001, ACK, &[7; 1_400]);
    assert_eq!(nat.twins.agree(&too_big.frame()).verdict, Verdict::ReplyTooBig);
}

/// An answer that comes in on another interface than its customer's packets did, as this one's MTU is known. The kernel's programs ask the
/// kernel: `tests/tests/lab/paths.rs`.
#[test]
fn an_answer_too_big_for_its_way_back_is_told_to_its_sender() {
    const BEHIND: u32 = INTERFACE + 1;
    for setup in Setup::all() {
        let mut nat = Nat::new(setup);
        nat.twins.memory.tables().set_interfaces(&[(INTERFACE, EDGE), (BEHIND, EDGE)]);
        let customer = setup.customer(40_000, ACK, b"");
        let (left, _) = nat.forward(&customer);
        let tables = nat.twins.memory.tables();
        let processed = |answer: &Packet, interface, mtu| {
            let mut buffer = [vec![0; 256], answer.frame()].concat();
            let (tables, mtus) =
                (SliceTables::new(tables.slices().unwrap(), nat.twins.memory.now), [(INTERFACE, mtu)]);
            let mut packet = SlicePacket::new(&mut buffer, 256, interface).with_mtus(&mtus);
            let outcome = tables.process(&mut packet);
            (outcome.verdict, packet.bytes().to_vec())
        };
        let v4 = setup.family.vip().is_ipv4();
        let headers = if v4 { 20 } else { 40 } + if setup.tcp { 20 } else { 8 };
        let (kind, rest) = if v4 { ([3, 4], [0, 0, 5, 120]) } else { ([2, 0], [0, 0, 5, 120]) };
        let [fits, too_big] = [1_400, 1_401].map(|bytes| answer(&left, ACK, &vec![7; bytes - headers]));
        // The first one changes something about the flow, the next ones do not.
        for _ in 0..2 {
            let told = (Verdict::ReplyTooBig, expected_reply(&too_big, kind, rest));
            assert_eq!(processed(&too_big, BEHIND, 1_400), told);
            assert_eq!(
                processed(&fits, BEHIND, 1_400),
                (Verdict::ForwardReturn, answered(&customer, &fits).frame())
            );
        }
        for (interface, mtu) in [(INTERFACE, 1_400), (BEHIND, 1_401), (BEHIND, 0)] {
            assert_eq!(processed(&too_big, interface, mtu).0, Verdict::ForwardReturn, "{interface} {mtu}");
        }
        if v4 {
            let may_be_cut = Packet { dont_fragment: false, ..too_big };
            assert_eq!(processed(&may_be_cut, BEHIND, 1_400), (Verdict::DropTooBig, may_be_cut.frame()));
        }
    }
}
