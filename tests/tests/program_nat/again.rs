//! A SYN where there is a connection already, and what a server has reset → which connection goes on.

use std::collections::BTreeSet;

use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;

use super::connections::{ANEW, LATER, START, tcp, way};
use crate::support::nat_frames::{Family, Nat, answer, answered};
use crate::support::packets::{ACK, FIN, Packet, RST, SYN};

/// What came before the SYN decides whether it opens a new connection: both sides have ended the one before, or its server gives no sign
/// of life.
#[test]
fn a_syn_on_an_old_connections_ports_makes_a_new_translation() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::any();
    let customer = |flags| setup.customer(40_000, flags, b"");
    let histories =
        [(&[SYN, ACK, ACK | FIN][..], ACK | FIN), (&[SYN, ACK, RST], RST), (&[SYN, ACK | FIN], RST)];
    for ((history, answers), later) in
        histories.into_iter().flat_map(|history| [(history, ANEW), (history, LATER)])
    {
        nat.change(setup);
        nat.twins.set_time(START);
        let left: Vec<_> = history.iter().map(|flags| nat.forward(&customer(*flags)).0).collect();
        let end = answer(&left[0], answers, b"");
        nat.back(&end, &answered(&customer(ACK), &end));
        nat.twins.set_time(later);
        opens_anew(&mut nat, &left[0]);
    }
    for (silent, later) in [(ANEW, 28), (ANEW, LATER)] {
        nat.change(setup);
        nat.twins.set_time(START);
        let (left, _) = nat.forward(&customer(SYN));
        nat.forward(&customer(ACK));
        nat.twins.set_time(silent);
        nat.forward(&customer(SYN));
        nat.twins.set_time(later);
        opens_anew(&mut nat, &left);
    }
}

fn opens_anew(nat: &mut Nat, before: &Packet) {
    let customer = nat.setup.customer(40_000, SYN, b"");
    let (second, outcome) = nat.forward(&customer);
    assert!(outcome.new_flow());
    assert_ne!(way(&second), way(before));
    assert_eq!(nat.translations(), 2, "the old one is gone, in both directions");
    nat.unchanged(&answer(before, ACK, b""), Verdict::PassNotVip);
    let new = answer(&second, SYN | ACK, b"");
    nat.back(&new, &answered(&customer, &new));
}

/// Whoever may have sent it: the server knows whether its connection is still there, and says so to the customer.
#[test]
fn a_syn_in_a_connection_that_goes_on_is_translated_as_it_is() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::any();
    let histories =
        [&[SYN, ACK][..], &[ACK], &[ACK, ACK], &[SYN, RST, ACK], &[SYN, ACK, ACK | FIN], &[SYN, ACK, RST]];
    for (history, later) in histories.into_iter().flat_map(|history| [(history, ANEW), (history, LATER)]) {
        nat.change(setup);
        nat.twins.set_time(START);
        let packets = history.iter().map(|flags| way(&nat.forward(&setup.customer(40_000, *flags, b"")).0));
        let before: BTreeSet<_> = packets.collect();
        nat.twins.set_time(later);
        let (left, outcome) = nat.forward(&setup.customer(40_000, SYN, b""));
        assert!(!outcome.new_flow() && before.contains(&way(&left)), "{history:?}");
        let challenge = answer(&left, ACK, b"");
        nat.back(&challenge, &answered(&setup.customer(40_000, ACK, b""), &challenge));
        assert_eq!(way(&nat.forward(&setup.customer(40_000, ACK, b"")).0), way(&left), "{history:?}");
        assert_eq!((before.len(), nat.translations()), (1, 2));
    }
}

/// An established connection stays with an unhealthy backend; that somebody sends a SYN in it changes nothing, and is no sign that the
/// backend does not answer.
#[test]
fn a_syn_in_a_connection_with_an_unhealthy_backend_does_not_end_it() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    let customers: Vec<_> = (40_000..40_008).collect();
    let packet = |port, flags| setup.customer(port, flags, b"");
    for &port in &customers {
        nat.forward(&packet(port, SYN));
        nat.forward(&packet(port, ACK));
    }
    let held = |nat: &mut Nat, flags| -> Vec<_> {
        customers.iter().map(|port| way(&nat.forward(&packet(*port, flags)).0)).collect()
    };
    let before = held(&mut nat, ACK);
    let mut wanted = setup.wanted();
    let unhealthy = &mut wanted.services[0].backends[0];
    (unhealthy.healthy, unhealthy.probed_healthy, unhealthy.ring_weight) = (false, false, 0);
    nat.twins.apply(&wanted);
    nat.twins.set_time(LATER);
    let repeated =
        |nat: &Nat| nat.twins.changed()[0].traffic.values().map(|traffic| traffic.repeated).sum::<u64>();
    for flags in [SYN, ACK] {
        assert_eq!(held(&mut nat, flags), before);
    }
    assert_eq!((nat.translations(), repeated(&nat)), (16, 0));
}

/// Who sends a SYN, something else and a SYN again from an invented address has no connection, for the server says so in between.
#[test]
fn what_a_server_has_reset_is_to_be_followed_up_again() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    let customer = |flags| setup.customer(40_000, flags, b"");
    let (left, _) = nat.forward(&customer(SYN));
    for (flags, answers) in [(SYN, SYN | ACK), (ACK, RST), (SYN, SYN | ACK)] {
        nat.forward(&customer(flags));
        let answer = answer(&left, answers, b"");
        nat.back(&answer, &answered(&customer(ACK), &answer));
    }
    let established = |nat: &Nat| -> Vec<u16> {
        let all = nat.twins.kernel.tables().translations().collect::<Vec<_>>();
        assert_eq!((all.len(), nat.translations()), (2, 2));
        all.iter()
            .filter(|(.., state)| state.established)
            .map(|(_, translation, _)| translation.reply)
            .collect()
    };
    assert_eq!(established(&nat), [1], "the answers only");
    nat.forward(&customer(ACK));
    assert_eq!(established(&nat).len(), 2);
}

/// A server that was not ready refused the first one.
#[test]
fn a_connection_whose_first_attempt_was_reset_is_none_that_was() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    let customer = |flags| setup.customer(40_000, flags, b"");
    let (left, _) = nat.forward(&customer(SYN));
    for flags in [RST | ACK, SYN | ACK] {
        let answer = answer(&left, flags, b"");
        nat.forward(&customer(SYN));
        nat.back(&answer, &answered(&customer(SYN), &answer));
    }
    nat.forward(&customer(ACK));
    assert_eq!(nat.translations(), 2);
    let states = nat.twins.kernel.tables().translations();
    let ended = states.filter(|(.., state)| state.reset || state.closing).count();
    assert_eq!(ended, 0);
}
