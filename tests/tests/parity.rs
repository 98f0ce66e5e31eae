//! The datapath in the kernel and over slices is the same: random and mutated frames meet the same verdict, leave as
//! the same bytes and change the flow table alike.

mod support;

use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use support::frames::{self, Flags};
use support::parity::Twins;
use support::wanted;

/// Cases a run; `SLUICE_PARITY_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("SLUICE_PARITY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100_000)
}

/// A named frame with some bytes changed, and perhaps cut or grown.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let named: Vec<Vec<u8>> = frames::all().into_iter().map(|named| named.frame).collect();
    let edits = prop::collection::vec((0_usize..80, any::<u8>()), 0..4);
    (prop::sample::select(named), edits, prop::option::weighted(0.2, 0_usize..120)).prop_map(
        |(mut frame, edits, length)| {
            for (at, byte) in edits {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(length) = length {
                frame.resize(length, 0);
            }
            frame
        },
    )
}

/// Packets of few flows, so that they meet again in the flow table in every state.
fn flow_packets() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop::sample::select(vec![Flags::Syn, Flags::SynAck, Flags::Ack, Flags::Fin, Flags::Rst]);
    let vip = prop::sample::select(vec![[203, 0, 113, 10], [203, 0, 113, 11], [203, 0, 113, 20]]);
    (0_u16..2_000, vip, flags).prop_map(|(port, vip, flags)| {
        frames::tcp_from(frames::ipv4(frames::CLIENT, vip), port, 80, flags, b"")
    })
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

#[test]
fn kernel_and_slice_agree() {
    // A tick that passes in the middle ages the twins' entries differently: then once more.
    assert!((0..2).any(|_| agree_within_a_tick()), "ticks pass too fast");
}

/// Compares the twins; says whether that happened within one tick.
fn agree_within_a_tick() -> bool {
    let twins = std::cell::RefCell::new(Twins::new(&wanted()));
    let seen = std::cell::RefCell::new(std::collections::BTreeMap::<&str, u32>::new());
    let began = twins.borrow().kernel.now().unwrap();
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let frames = prop_oneof![4 => mutated(), 4 => flow_packets(), 1 => noise()];
    TestRunner::new(config)
        .run(&frames, |frame| {
            let outcome = twins.borrow_mut().agree(&frame);
            *seen.borrow_mut().entry(outcome.verdict.name()).or_default() += 1;
            Ok(())
        })
        .unwrap();
    if twins.borrow().kernel.now().unwrap() != began {
        return false;
    }
    let [kernel, memory] = twins.borrow().flow_tables();
    let differing = kernel.iter().zip(&memory).filter(|(kernel, memory)| kernel != memory).count();
    // The kernel sees no frame shorter than an Ethernet header; those do not reach the flow table in either.
    assert_eq!(differing, 0, "of {} entries", kernel.len());
    println!("{:?}", seen.borrow());
    let reachable = Verdict::ALL.len() - 2;
    assert!(seen.borrow().len() >= reachable, "verdicts met: {:?}", seen.borrow());
    true
}
