//! Any packets of a translated flow → the frames that must leave, each compared with one that is built from scratch.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::errors::{connection, errors_of, kinds};
use crate::support::nat_frames::{Nat, Setup, answer, answered};
use crate::support::packets::{Body, Packet};

const CASES: u32 = 1_000;

/// What one side sends: flags, payload, hops, IPv4 options or extension headers, "don't fragment".
type Sent = (u8, Vec<u8>, u8, usize, bool);

fn sent() -> impl Strategy<Value = Sent> {
    (0_u8..64, prop::collection::vec(any::<u8>(), 0..200), 2_u8..=255, 0_usize..4, any::<bool>())
}

/// The packet with this in it.
fn with(packet: Packet, (flags, payload, hops, extra, dont_fragment): &Sent) -> Packet {
    let mut body = packet.body.with_payload(payload.clone());
    if let Body::Tcp { flags: of, .. } = &mut body {
        *of = *flags;
    }
    let extra = if packet.source.is_ipv4() { vec![1; extra * 4] } else { vec![60; *extra] };
    Packet { body, extra, hops: *hops, dont_fragment: *dont_fragment, ..packet }
}

fn run<S: Strategy>(strategy: S, test: impl Fn(&mut Nat, S::Value)) {
    for setup in Setup::all() {
        let nat = RefCell::new(Nat::new(setup));
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&strategy, |value| {
            test(&mut nat.borrow_mut(), value);
            Ok(())
        });
        result.unwrap();
        nat.borrow().translations();
    }
}

/// Forward, then the mirrored answer translated back: the customer sees its own addresses and ports, and the server's bytes.
#[test]
fn a_round_trip_gives_back_what_the_customer_should_see() {
    run((0_u16..100, sent(), sent()), |nat, (port, customer, server)| {
        let customer = with(nat.setup.customer(20_000 + port, 0, b""), &customer);
        let (left, _) = nat.forward(&customer);
        let answer = with(answer(&left, 0, b""), &server);
        nat.back(&answer, &answered(&customer, &answer));
    });
}

/// Whatever is quoted, and however much of it.
#[test]
fn errors_quote_what_their_receiver_sent() {
    run((0_u16..100, sent(), any::<prop::sample::Index>(), 8_usize..300, any::<[u8; 4]>()), |nat, value| {
        let (port, customer, kind, quoted, rest) = value;
        let (kind, _) = kinds(nat.setup.family)[kind.index(kinds(nat.setup.family).len())];
        let connection = connection(nat, with(nat.setup.customer(20_000 + port, 0, b""), &customer));
        // A checksum of which one byte is quoted cannot be kept right.
        let quoted = if nat.setup.tcp && quoted == 17 { 18 } else { quoted };
        errors_of(nat, &connection, kind, rest, quoted);
    });
}
