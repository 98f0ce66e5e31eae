//! ICMP and ICMPv6 errors about translated flows → the errors that must leave, quoting what their receiver knows.

use lb_common::verdict::Verdict;

use crate::support::nat_frames::{
    EDGE, Family, Nat, OTHER_ROUTER, ROUTER, Setup, UNTAGGED, answer, answered, retagged, server_mac,
};
use crate::support::packets::{ACK, Body, DESTINATION_OPTIONS, HOP_BY_HOP, Packet, Piece, SYN};

/// Errors of the family, and what they tell beyond.
pub fn kinds(family: Family) -> &'static [([u8; 2], [u8; 4])] {
    match family {
        Family::V4 => &[
            ([3, 4], [0, 0, 5, 120]),
            ([3, 1], [0; 4]),
            ([3, 3], [0; 4]),
            ([11, 0], [0; 4]),
            ([11, 1], [0; 4]),
            ([12, 0], [9, 0, 0, 0]),
        ],
        Family::V6 => &[
            ([1, 4], [0; 4]),
            ([2, 0], [0, 0, 5, 120]),
            ([3, 0], [0; 4]),
            ([3, 1], [0; 4]),
            ([4, 1], [0, 0, 0, 6]),
        ],
    }
}

/// Bytes of the IP header and what else stands before the transport header.
fn header_bytes(packet: &Packet) -> usize {
    if packet.source.is_ipv4() { 20 + packet.extra.len() } else { 40 + 8 * packet.extra.len() }
}

/// A connection as each side sees it.
pub struct Connection {
    customer: Packet,
    left: Packet,
    answer: Packet,
    answered: Packet,
}

pub fn connection(nat: &mut Nat, customer: Packet) -> Connection {
    let (left, _) = nat.forward(&customer);
    let answer = Packet { extra: customer.extra.clone(), ..answer(&left, SYN | ACK, &[5; 99]) };
    let answered = answered(&customer, &answer);
    nat.back(&answer, &answered);
    Connection { customer, left, answer, answered }
}

/// An error about the answer reaches the server, and one about the customer's packet the customer.
pub fn errors_of(nat: &mut Nat, connection: &Connection, kind: [u8; 2], rest: [u8; 4], quoted: usize) {
    let Connection { customer, left, answer, answered } = connection;
    let family = nat.setup.family;
    let from_customers =
        answered.error([EDGE, ROUTER], family.client(200), kind, rest, header_bytes(answered) + quoted);
    // As the server would have it: about its own answer, which had some hops less to go by then.
    let known = Packet { hops: answered.hops, ..answer.clone() };
    let server = [left.macs[0], EDGE];
    let mut expected = known.error(server, left.source, kind, rest, header_bytes(answered) + quoted);
    (expected.hops, expected.tags) = (from_customers.hops - 1, retagged(&customer.tags, nat.setup.vlan));
    let (outcome, frame) = nat.twins.agree_on(&from_customers.frame());
    assert_eq!(outcome.verdict, Verdict::Forward, "{from_customers:?}");
    assert!(!outcome.new_flow());
    assert_eq!(frame, expected.frame(), "of {from_customers:?} must become {expected:?}");

    let from_servers =
        left.error([EDGE, left.macs[0]], family.router(), kind, rest, header_bytes(left) + quoted);
    let known = Packet { hops: left.hops, ..customer.clone() };
    let back = [customer.macs[1], EDGE];
    let mut expected = known.error(back, customer.destination, kind, rest, header_bytes(left) + quoted);
    (expected.hops, expected.tags) = (from_servers.hops - 1, customer.tags.clone());
    nat.back(&from_servers, &expected);
}

#[test]
fn errors_about_a_translated_flow_are_translated_both_ways() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        for (tags, vlan) in [(&[][..], 0), (&[], 300), (&[0x81, 0, 0, 100], UNTAGGED)] {
            let setup = Setup { vlan, ..setup };
            nat.change(setup);
            let customer = Packet { tags: tags.to_vec(), ..setup.customer(40_000, SYN, &[3; 77]) };
            let connection = connection(&mut nat, customer);
            for (kind, rest) in kinds(setup.family) {
                // Ports only; up to the checksum of TCP, and with it; an odd number; all that there is.
                for quoted in [8, 12, 16, 18, 20, 33, 1_000] {
                    errors_of(&mut nat, &connection, *kind, *rest, quoted);
                }
            }
            assert_eq!(nat.translations(), 2);
        }
    }
}

#[test]
fn quoted_packets_may_have_options_and_extension_headers() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let extra =
            if setup.family == Family::V4 { vec![1; 8] } else { vec![HOP_BY_HOP, DESTINATION_OPTIONS] };
        let customer = Packet { extra, ..setup.customer(40_000, SYN, b"data") };
        let connection = connection(&mut nat, customer);
        for quoted in [8, 20, 1_000] {
            let (kind, rest) = kinds(setup.family)[0];
            errors_of(&mut nat, &connection, kind, rest, quoted);
        }
    }
}

#[test]
fn a_quoted_udp_datagram_without_checksum_stays_without() {
    let setup = Setup::new(Family::V4, false);
    let mut nat = Nat::new(setup);
    let mut customer = setup.customer(40_000, 0, b"data");
    if let Body::Udp { checksum, .. } = &mut customer.body {
        *checksum = false;
    }
    let connection = connection(&mut nat, customer);
    for quoted in [8, 1_000] {
        errors_of(&mut nat, &connection, [3, 3], [0; 4], quoted);
    }
}

#[test]
fn a_quoted_first_fragment_is_translated_and_a_later_one_is_not() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let connection = connection(&mut nat, setup.customer(40_000, SYN, &[3; 77]));
        let part = |packet: &Packet, offset| {
            let piece = Some(Piece { identification: 7, offset, length: 48 });
            Packet { piece, dont_fragment: false, ..packet.clone() }
        };
        let (kind, rest) = kinds(setup.family)[0];
        let quoted = 1_000;
        let first =
            part(&connection.left, 0).error([EDGE, ROUTER], setup.family.router(), kind, rest, quoted);
        let known = Packet { hops: connection.left.hops, ..part(&connection.customer, 0) };
        let mut expected = known.error([ROUTER, EDGE], setup.family.vip(), kind, rest, quoted);
        expected.hops -= 1;
        nat.back(&first, &expected);
        let later =
            part(&connection.left, 48).error([EDGE, ROUTER], setup.family.router(), kind, rest, quoted);
        nat.unchanged(&later, Verdict::PassNotVip);
        let later = part(&connection.answered, 48);
        let later = later.error([EDGE, ROUTER], setup.family.client(200), kind, rest, quoted);
        nat.unchanged(&later, Verdict::PassIcmp);
    }
}

#[test]
fn errors_about_what_is_not_translated_pass_bit_identical() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let Connection { left, answered, .. } = connection(&mut nat, setup.customer(40_000, SYN, b""));
        let (kind, rest) = kinds(setup.family)[0];
        let macs = [EDGE, ROUTER];
        let (router, all) = (setup.family.router(), 1_000);
        let [server_port, port] = answered.body.ports();
        let with_ports =
            |packet: &Packet, ports| Packet { body: packet.body.with_ports(ports), ..packet.clone() };

        // To a VIP: about another customer's port, about what the VIP never sent, about another port of it.
        let unknown = with_ports(&answered, [server_port, port ^ 1]);
        nat.unchanged(&unknown.error(macs, router, kind, rest, all), Verdict::PassIcmp);
        let foreign = Packet { source: setup.family.server(3), ..answered.clone() };
        let to_vip =
            Packet { destination: setup.family.vip(), ..foreign.error(macs, router, kind, rest, all) };
        nat.unchanged(&to_vip, Verdict::PassIcmp);
        let closed = with_ports(&answered, [22, port]);
        nat.unchanged(&closed.error(macs, router, kind, rest, all), Verdict::PassIcmp);
        let not_for_us = answered.error([OTHER_ROUTER, ROUTER], router, kind, rest, all);
        nat.unchanged(&not_for_us, Verdict::PassOtherHost);

        // To an address that packets are sent from: the same, and it is no VIP.
        let [port, server_port] = left.body.ports();
        let unknown = with_ports(&left, [port ^ 1, server_port]);
        nat.unchanged(&unknown.error(macs, router, kind, rest, all), Verdict::PassNotVip);
        let not_for_us = left.error([OTHER_ROUTER, ROUTER], router, kind, rest, all);
        nat.unchanged(&not_for_us, Verdict::PassNotVip);
        // About a connection of the host's own.
        let own = Packet { source: setup.family.snat(77), ..left.clone() };
        nat.unchanged(&own.error(macs, router, kind, rest, all), Verdict::PassNotVip);

        // Quotations that end before the ports do.
        for quoted in [0, 8, 19, header_bytes(&answered), header_bytes(&answered) + 3] {
            nat.unchanged(&answered.error(macs, router, kind, rest, quoted), Verdict::PassIcmp);
            nat.unchanged(&left.error(macs, router, kind, rest, quoted), Verdict::PassNotVip);
        }
        assert_eq!(nat.translations(), 2);
    }
}

/// Errors are not answered with errors.
#[test]
fn an_error_whose_time_ends_is_dropped() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let Connection { left, answered, .. } = connection(&mut nat, setup.customer(40_000, SYN, b""));
        let (kind, rest) = kinds(setup.family)[0];
        for quoted in [left, answered] {
            let error = quoted.error([EDGE, ROUTER], setup.family.router(), kind, rest, 1_000);
            nat.unchanged(&Packet { hops: 1, ..error }, Verdict::DropTimeExceeded);
        }
    }
}

/// A quotation of the ports only, and behind the packet what an interface has padded it with: that is not the quotation's
/// checksum.
#[test]
fn padding_is_no_part_of_a_quotation() {
    let setup = Setup::new(Family::V4, true);
    let mut nat = Nat::new(setup);
    let Connection { customer, left, .. } = connection(&mut nat, setup.customer(40_000, SYN, b""));
    let error = left.error([EDGE, server_mac(1)], setup.family.router(), [11, 0], [0; 4], 28);
    let known = Packet { hops: left.hops, ..customer };
    let mut expected = known.error([ROUTER, EDGE], setup.family.vip(), [11, 0], [0; 4], 28);
    expected.hops -= 1;
    let padding = [0x5a; 16];
    let (outcome, frame) = nat.twins.agree_on(&[&error.frame()[..], &padding].concat());
    assert_eq!(outcome.verdict, Verdict::ForwardReturn);
    assert_eq!(frame, [&expected.frame()[..], &padding].concat());
}
