//! Fragments of translated datagrams, of customers and of servers → each with its own addresses translated.

use lb_common::verdict::Verdict;

use crate::support::nat_frames::{EDGE, Nat, OTHER_ROUTER, ROUTER, Setup, answer, answered};
use crate::support::packets::{ACK, HOP_BY_HOP, Packet, Piece, SYN};

/// Bytes of a fragment's payload.
const LENGTH: usize = 520;

/// The fragments of a datagram.
fn cut(packet: &Packet, identification: u32) -> Vec<Packet> {
    let pieces = [0, LENGTH, 2 * LENGTH].map(|offset| Piece { identification, offset, length: LENGTH });
    pieces.map(|piece| Packet { piece: Some(piece), dont_fragment: false, ..packet.clone() }).into()
}

struct Cut {
    customer: Vec<Packet>,
    /// What must leave to the server.
    left: Vec<Packet>,
    answer: Vec<Packet>,
    /// What must leave to the customer.
    answered: Vec<Packet>,
}

/// A flow, and a large datagram of each side, in fragments.
fn flow(nat: &mut Nat, tags: &[u8], extra: &[u8]) -> Cut {
    let setup = nat.setup;
    let plain = Packet { tags: tags.to_vec(), ..setup.customer(40_000, SYN, b"") };
    let (left, _) = nat.forward(&plain);
    let customer = setup.customer(40_000, ACK, &[0xa5; 1_400]);
    let customer = Packet { tags: tags.to_vec(), extra: extra.to_vec(), ..customer };
    // IPv6 knows a datagram by addresses and number alone, whatever its protocol.
    let number = if setup.tcp { 0x1234 } else { 0x2345 };
    let customer = cut(&customer, number);
    let ports = left.body.ports();
    let pass =
        |packet: &Packet| packet.passed_on(left.macs, &left.tags, left.source, left.destination, ports);
    let answer = cut(&Packet { extra: extra.to_vec(), ..answer(&left, ACK, &[0x5a; 1_400]) }, number);
    let answered = answer.iter().map(|packet| answered(&plain, packet)).collect();
    Cut { left: customer.iter().map(pass).collect(), customer, answer, answered }
}

fn forwards(nat: &mut Nat, packet: &Packet, left: &Packet) {
    let (outcome, frame) = nat.twins.agree_on(&packet.frame());
    assert_eq!(outcome.verdict, Verdict::Forward, "{packet:?}");
    assert!(!outcome.new_flow());
    assert_eq!(frame, left.frame(), "of {packet:?} must become {left:?}");
}

#[test]
fn fragments_follow_the_first_in_both_directions() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        let extra = if setup.family.vip().is_ipv4() { vec![1; 8] } else { vec![HOP_BY_HOP] };
        for (tags, vlan, extra) in [(&[][..], 0, &[][..]), (&[0x81, 0, 0, 100], 300, &[]), (&[], 300, &extra)]
        {
            nat.change(Setup { vlan, ..setup });
            let flow = flow(&mut nat, tags, extra);
            for order in [[0, 1, 2], [0, 2, 1]] {
                for part in order {
                    forwards(&mut nat, &flow.customer[part], &flow.left[part]);
                    nat.back(&flow.answer[part], &flow.answered[part]);
                }
            }
            assert_eq!(nat.translations(), 2);
        }
    }
}

/// The first fragment may be the first packet of a flow.
#[test]
fn a_first_fragment_opens_a_flow() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let parts = cut(&setup.customer(40_000, SYN, &[0xa5; 1_400]), 9);
        let (outcome, frame) = nat.twins.agree_on(&parts[0].frame());
        assert_eq!((outcome.verdict, outcome.new_flow()), (Verdict::Forward, true));
        assert_eq!(nat.translations(), 2);
        let (left, outcome) = nat.forward(&setup.customer(40_000, ACK, b""));
        assert!(!outcome.new_flow());
        let ports = left.body.ports();
        let pass = |part: &Packet| part.passed_on(left.macs, &[], left.source, left.destination, ports);
        assert_eq!(frame, pass(&parts[0]).frame());
        forwards(&mut nat, &parts[1], &pass(&parts[1]));
    }
}

#[test]
fn a_later_fragment_without_its_first_goes_nowhere() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        nat.twins.set_time(31);
        let Cut { customer, left, answer, answered } = flow(&mut nat, &[], &[]);
        // A customer's cannot be decided; one to an address that packets are sent from may be the host's.
        nat.unchanged(&customer[1], Verdict::DropFragment);
        nat.unchanged(&answer[1], Verdict::PassNotVip);
        forwards(&mut nat, &customer[0], &left[0]);
        nat.back(&answer[0], &answered[0]);
        for (part, verdict) in [(&customer[1], Verdict::DropFragment), (&answer[1], Verdict::PassNotVip)] {
            let piece = part.piece.map(|piece| Piece { identification: 0x1111, ..piece });
            nat.unchanged(&Packet { piece, ..part.clone() }, verdict);
            let source = if part.destination == setup.family.vip() {
                setup.family.client(8)
            } else {
                setup.family.server(9)
            };
            nat.unchanged(&Packet { source, ..part.clone() }, verdict);
        }
        forwards(&mut nat, &customer[1], &left[1]);
        let elsewhere = Packet { macs: [OTHER_ROUTER, ROUTER], ..customer[1].clone() };
        nat.unchanged(&elsewhere, Verdict::PassOtherHost);
        // Half a minute later it belongs to nothing any more.
        nat.twins.set_time(26);
        nat.unchanged(&customer[2], Verdict::DropFragment);
        nat.unchanged(&answer[2], Verdict::PassNotVip);
    }
}

#[test]
fn the_end_of_a_later_fragments_time_is_not_told() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let Cut { customer, left, answer, answered } = flow(&mut nat, &[], &[]);
        forwards(&mut nat, &customer[0], &left[0]);
        nat.back(&answer[0], &answered[0]);
        for part in [&customer[1], &answer[1]] {
            nat.unchanged(&Packet { hops: 1, ..part.clone() }, Verdict::DropTimeExceeded);
        }
        // Nothing of that is forgotten.
        forwards(&mut nat, &customer[1], &left[1]);
        nat.back(&answer[1], &answered[1]);
        assert_eq!(answer[0].macs[0], EDGE);
    }
}
