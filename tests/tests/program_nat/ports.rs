//! Few free ports → who gets one, who gives one up, and what looking for one costs.

use std::cell::Cell;
use std::collections::BTreeSet;

use lb_common::abi::{NatPorts, TranslationBucket};
use lb_common::flow::Tick;
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::translations::Buckets;
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;

use super::connections::{LATER, START, tcp};
use crate::support::nat_frames::{FAMILIES, Family, Nat, Setup, answer, answered};
use crate::support::packets::{ACK, FIN, RST, SYN};
use crate::support::parity::INTERFACE;

/// Eight ports for one server: the ninth connection to it finds none.
#[test]
fn ports_may_be_exhausted() {
    let setup = Setup { backends: 1, ..tcp(Family::V4) };
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    nat.twins.set_nat_ports(NatPorts { hole: 1_032, hole_size: 64_504 });
    const ENDED: usize = 3;
    const HALF_OPEN: usize = 5;
    let (mut left, mut port) = (Vec::new(), 40_000);
    while left.len() < 8 {
        let syn = setup.customer(port, SYN, b"");
        // With few ports left, chance does not always find them.
        let (outcome, _) = nat.twins.agree_on(&syn.frame());
        match outcome.verdict {
            Verdict::Forward => left.push((syn.clone(), nat.forward(&syn).0)),
            verdict => assert_eq!(verdict, Verdict::DropNatPorts),
        }
        port += 1;
        assert!(port < 41_000, "{} found", left.len());
    }
    let ports: BTreeSet<u16> = left.iter().map(|(_, left)| left.body.ports()[0]).collect();
    assert_eq!(ports, (1_024..1_032).collect());
    for port in port..port + 50 {
        nat.unchanged(&setup.customer(port, SYN, b""), Verdict::DropNatPorts);
    }
    assert_eq!(nat.translations(), 16);
    // Those that are there go on; the customer of one has never answered.
    for (at, (syn, left)) in left.iter().enumerate() {
        let answer = answer(left, SYN | ACK, b"");
        nat.back(&answer, &answered(syn, &answer));
        if at != HALF_OPEN {
            nat.forward(&setup.customer(syn.body.ports()[0], ACK, b""));
        }
    }
    // A connection that both sides have ended, and one that never came about, make way, a while later.
    let (syn, gone) = &left[ENDED];
    nat.forward(&setup.customer(syn.body.ports()[0], ACK | FIN, b""));
    let fin = answer(gone, ACK | FIN, b"");
    nat.back(&fin, &answered(syn, &fin));
    for port in port..port + 50 {
        nat.unchanged(&setup.customer(port, SYN, b""), Verdict::DropNatPorts);
    }
    nat.twins.set_time(LATER);
    // Its server answers again and again.
    let (syn, half_open) = &left[HALF_OPEN];
    let again = answer(half_open, SYN | ACK, b"");
    nat.back(&again, &answered(syn, &again));
    let forwarded: Vec<_> = (port..port + 400)
        .filter(|port| nat.twins.agree(&setup.customer(*port, SYN, b"").frame()).verdict == Verdict::Forward)
        .collect();
    let taken = forwarded.iter().map(|port| nat.forward(&setup.customer(*port, SYN, b"")).0.body.ports()[0]);
    let given_up = [ENDED, HALF_OPEN].map(|at| left[at].1.body.ports()[0]);
    assert_eq!(taken.collect::<BTreeSet<u16>>(), given_up.into());
    assert_eq!(nat.translations(), 16);
}

/// A server may answer a datagram late: its port is not another customer's by then.
#[test]
fn the_port_of_a_datagram_is_not_given_up() {
    let setup = Setup { backends: 1, ..Setup::new(Family::V4, false) };
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    nat.twins.set_nat_ports(NatPorts { hole: 1_025, hole_size: 64_511 });
    let asked = setup.customer(40_000, 0, b"");
    let (left, _) = nat.forward(&asked);
    nat.twins.set_time(LATER);
    for port in 40_001..40_020 {
        nat.unchanged(&setup.customer(port, 0, b""), Verdict::DropNatPorts);
    }
    let late = answer(&left, 0, b"");
    nat.back(&late, &answered(&asked, &late));
}

/// Where nearly all of very many ports are held by connections that are over, a new one gets its port at the first attempt.
#[test]
fn a_port_that_is_given_up_is_taken_at_once() {
    let setup = Setup { backends: 1, ..tcp(Family::V4) };
    let mut nat = Nat::new(setup);
    nat.twins.set_time(START);
    nat.twins.set_nat_ports(NatPorts { hole: 1_024 + 512, hole_size: 64_000 });
    let (mut held, mut port) = (0, 10_000);
    while held < 500 {
        let syn = setup.customer(port, SYN, b"");
        if nat.twins.agree(&syn.frame()).verdict == Verdict::Forward {
            let (left, _) = nat.forward(&syn);
            let answer = answer(&left, RST, b"");
            nat.back(&answer, &answered(&syn, &answer));
            held += 1;
        }
        port += 1;
        assert!(port < 20_000, "{held} ports found");
    }
    nat.twins.set_time(LATER);
    for port in 30_000..30_010 {
        nat.forward(&setup.customer(port, SYN, b""));
    }
}

/// A table of translations that counts how often it is looked into.
struct Looked<'a>(&'a [TranslationBucket], Cell<u32>);

impl Buckets for Looked<'_> {
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        self.1.set(self.1.get() + 1);
        self.0.translation_bucket(index)
    }
}

/// Looks into the table that a customer's SYN from this port takes, which finds no port.
fn looks(nat: &Nat, port: u16, ticks: u32) -> u32 {
    let slices = nat.twins.memory.tables().slices().unwrap();
    let looked = Looked(slices.translations, Cell::new(0));
    let mut tables = SliceTables::new(slices, Tick(nat.twins.memory.now.0 + ticks));
    tables.aside = Some(&looked);
    let mut frame = nat.setup.customer(port, SYN, b"").frame();
    let outcome = tables.process(&mut SlicePacket::new(&mut frame, 0, INTERFACE));
    assert_eq!(outcome.verdict, Verdict::DropNatPorts);
    looked.1.get()
}

/// A flood of new flows without a port costs little: only the first one of a tick tries many.
#[test]
fn few_ports_are_tried_where_none_was_found() {
    for family in FAMILIES {
        let setup = Setup { backends: 1, ..tcp(family) };
        let mut nat = Nat::new(setup);
        nat.twins.set_time(START);
        nat.twins.set_nat_ports(NatPorts { hole: 1_025, hole_size: 64_511 });
        nat.forward(&setup.customer(40_000, SYN, b""));
        let first = looks(&nat, 40_001, 0);
        let others: Vec<_> = (40_002..40_010).map(|port| looks(&nat, port, 0)).collect();
        assert!(others.iter().all(|looks| 5 * looks < first), "{first}, then {others:?}");
        assert_eq!(looks(&nat, 40_010, 1), first, "a tick later");
    }
}
