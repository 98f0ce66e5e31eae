//! A SYN where there is a connection already, and what a server has reset → which connection goes on.

use std::collections::BTreeSet;

use lb_common::verdict::Verdict;

use super::connections::{ANEW, LATER, START, tcp, way};
use crate::support::nat_frames::{Family, Nat, answer, answered};
use crate::support::packets::{ACK, FIN, RST, SYN};

/// What came before the SYN decides whether it opens a new connection: its customer has ended the one before.
#[test]
fn a_syn_on_an_old_connections_ports_makes_a_new_translation() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::any();
    let customer = |flags| setup.customer(40_000, flags, b"");
    let histories = [&[SYN, ACK, ACK | FIN][..], &[SYN, RST], &[ACK, RST]];
    for (history, later) in histories.into_iter().flat_map(|history| [(history, ANEW), (history, LATER)]) {
        nat.change(setup);
        nat.twins.set_time(START);
        let left: Vec<_> = history.iter().map(|flags| nat.forward(&customer(*flags)).0).collect();
        let first = &left[0];
        assert!(left.iter().all(|left| way(left) == way(first)));
        nat.twins.set_time(later);
        let (second, outcome) = nat.forward(&customer(SYN));
        assert!(outcome.new_flow(), "{history:?}");
        assert_ne!(way(&second), way(first), "{history:?}");
        assert_eq!(nat.translations(), 2, "the old one is gone, in both directions: {history:?}");
        nat.unchanged(&answer(first, ACK, b""), Verdict::PassNotVip);
        let new = answer(&second, SYN | ACK, b"");
        nat.back(&new, &answered(&customer(SYN), &new));
    }
}

/// Whoever may have sent it: the server knows whether its connection is still there, and says so to the customer.
#[test]
fn a_syn_in_a_connection_that_goes_on_is_translated_as_it_is() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::any();
    let histories = [&[SYN, ACK][..], &[ACK], &[ACK, ACK], &[SYN, RST, ACK]];
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
