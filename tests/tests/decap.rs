//! The decapsulating program: named frames through it in the kernel, and random ones through kernel and slices.

#[path = "support/decap.rs"]
mod table;
#[path = "support/tunnels.rs"]
mod tunnels;

use std::cell::RefCell;
use std::collections::BTreeMap;

use lb_common::abi::{DecapControl, DecapRoles, HEADROOM, SourcePrefix, Verdicts, VipBucket};
use lb_common::decap::{self, DecapSlices, Verdict};
use lb_common::net::Address;
use lb_common::slice::SlicePacket;
use lb_userspace::core::decap::{Prefix, Roles, table as addresses};
use lb_userspace::io::datapath::Decapsulator;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use tunnels::{FAMILIES, Family, Ip, Place, Wrap, framed, inner, wrapped};

/// The shortest frame that the kernel lets a program be run on.
const SHORTEST: usize = 14;

fn address(family: Family, place: Place) -> Address {
    let bytes = family.address(place);
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => Address::v4(v4),
        Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()).into(),
    }
}

/// The host and the VIP, in both families.
fn roles() -> Roles {
    let of = |family| {
        [(address(family, Place::Host), DecapRoles::LOCAL), (address(family, Place::Vip), DecapRoles::VIP)]
    };
    let mut roles: Roles = FAMILIES.into_iter().flat_map(of).collect();
    // A tunnel for the VIP's own address ends here as well.
    roles
        .values_mut()
        .filter(|roles| roles.has(DecapRoles::VIP))
        .for_each(|roles| *roles = roles.and(DecapRoles::LOCAL));
    roles
}

fn sources() -> Vec<SourcePrefix> {
    let texts = ["192.0.2.0/24", "10.0.0.2/32", "2001:db8:ffff::/48", "2001:db8::2/128"];
    texts.map(|text| text.parse::<Prefix>().unwrap().record()).to_vec()
}

/// The program in the kernel and its twin in memory.
struct Twins {
    kernel: Decapsulator,
    control: DecapControl,
    sources: Vec<SourcePrefix>,
    addresses: Vec<VipBucket>,
    counted: Verdicts,
}

impl Twins {
    fn new() -> Self {
        let (sources, addresses) = (sources(), addresses(&roles()).unwrap());
        let mut kernel = Decapsulator::load(&sources).expect("program tests need root");
        kernel.set_addresses(&addresses).unwrap();
        let control =
            DecapControl { sources: u32::try_from(sources.len()).unwrap(), ..DecapControl::default() };
        Self { kernel, control, sources, addresses, counted: Verdicts::default() }
    }

    fn through_kernel(&mut self, frame: &[u8]) -> (u32, Verdict, Vec<u8>) {
        let run = self.kernel.run_frame(frame).unwrap();
        let now = self.kernel.verdicts().unwrap();
        let counted = now.packets.iter().zip(self.counted.packets).map(|(now, before)| now - before);
        let counted: Vec<(usize, u64)> = counted.enumerate().filter(|(_, count)| *count > 0).collect();
        self.counted = now;
        let [(verdict, 1)] = counted[..] else { panic!("one frame counted as {counted:?}") };
        (run.action, Verdict::ALL[verdict], run.frame)
    }

    fn through_slices(&self, frame: &[u8]) -> (u32, Verdict, Vec<u8>) {
        let tables = DecapSlices::new(&self.control, &self.sources, &self.addresses);
        let mut buffer = [&[0; HEADROOM], frame].concat();
        let mut packet = SlicePacket::new(&mut buffer, HEADROOM, 1);
        let verdict = decap::process(&mut packet, &tables);
        let packets = tables.verdicts.into_inner().packets;
        assert_eq!((packets.iter().sum::<u64>(), packets[verdict.index()]), (1, 1), "counted once");
        (if verdict.is_drop() { 1 } else { 2 }, verdict, packet.bytes().to_vec())
    }

    /// Runs a frame through both, and insists that they agree.
    fn agree(&mut self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let in_slices = self.through_slices(frame);
        if frame.len() >= SHORTEST {
            let in_kernel = self.through_kernel(frame);
            assert_eq!(in_kernel, in_slices, "kernel (left) and slices (right) differ over {frame:02x?}");
        }
        (in_slices.1, in_slices.2)
    }
}

#[test]
fn every_named_frame_meets_its_verdict() {
    let mut twins = Twins::new();
    let frames = table::all();
    println!("{} frames", frames.len());
    for named in frames {
        let (verdict, left) = twins.agree(&named.frame);
        assert_eq!(verdict, named.verdict, "{}", named.name);
        assert_eq!(left, named.becomes.unwrap_or(named.frame), "{}", named.name);
    }
}

/// `drop.inconsistent` tells of a fault in the program, which no frame brings about.
#[test]
fn every_verdict_has_a_frame() {
    let frames = table::all();
    for verdict in Verdict::ALL.iter().filter(|verdict| **verdict != Verdict::DropInconsistent) {
        assert!(frames.iter().any(|named| named.verdict == *verdict), "no frame for {}", verdict.name());
    }
}

/// The table in force is replaced as a whole, as often as one likes.
#[test]
fn another_table_of_addresses_is_obeyed() {
    let mut twins = Twins::new();
    let frame = framed(&wrapped(Wrap::Ipip, Family::V4, &inner(Family::V4)));
    let vip = address(Family::V4, Place::Vip);
    let mut without = roles();
    without.remove(&vip);
    for _ in 0..2 {
        assert_eq!(twins.through_kernel(&frame).1, Verdict::Ipip);
        twins.kernel.set_addresses(&addresses(&without).unwrap()).unwrap();
        assert_eq!(twins.through_kernel(&frame).1, Verdict::DropNotVip);
        twins.kernel.set_addresses(&addresses(&Roles::new()).unwrap()).unwrap();
        assert_eq!(twins.through_kernel(&frame).1, Verdict::PassOtherHost);
        twins.kernel.set_addresses(&addresses(&roles()).unwrap()).unwrap();
    }
}

/// A program that was told of no source accepts none, and one that was told of none of its addresses touches nothing.
#[test]
fn without_tables_nothing_is_taken_off() {
    let frame = framed(&wrapped(Wrap::Gue(0), Family::V6, &inner(Family::V4)));
    let mut kernel = Decapsulator::load(&[]).unwrap();
    assert_eq!(
        (kernel.run_frame(&frame).unwrap().action, kernel.run_frame(&frame).unwrap().frame),
        (2, frame.clone())
    );
    kernel.set_addresses(&addresses(&roles()).unwrap()).unwrap();
    assert_eq!(kernel.run_frame(&frame).unwrap().action, 1);
    let counted = kernel.verdicts().unwrap().packets;
    assert_eq!((counted[Verdict::PassOtherHost.index()], counted[Verdict::DropSource.index()]), (2, 1));
}

/// Bounds of the design: the program is far from the verifier's limit of a million instructions.
#[test]
fn the_verifier_is_content_with_the_program() {
    let verified = Twins::new().kernel.verified_instructions().unwrap().unwrap();
    println!("verified instructions: {verified}");
    assert!(verified < 500_000, "{verified}");
}

/// Cases a run; `SLUICE_PARITY_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("SLUICE_PARITY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100_000)
}

/// A named frame with some bytes changed, and perhaps cut or grown.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let named: Vec<Vec<u8>> = table::all().into_iter().map(|named| named.frame).collect();
    let edits = prop::collection::vec((0_usize..140, any::<u8>()), 0..4);
    (prop::sample::select(named), edits, prop::option::weighted(0.2, 0_usize..200)).prop_map(
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

/// Well-formed tunnels of every kind, between places of every kind.
fn well_formed() -> impl Strategy<Value = Vec<u8>> {
    let family = || prop::sample::select(FAMILIES.to_vec());
    let how = prop_oneof![Just(Wrap::Ipip), (0_u8..12).prop_map(Wrap::Gue), Just(Wrap::GueDirect)];
    let to = prop::sample::select(vec![Place::Host, Place::Vip, Place::OtherHost]);
    let vip = prop::sample::select(vec![Place::Vip, Place::NoVip, Place::Host]);
    let from = prop::sample::select(vec![Place::Edge, Place::Edge, Place::Stranger]);
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    ((family(), family()), how, (to, vip, from), any::<(u8, u8)>(), (payload, 0_usize..=10)).prop_map(
        |((outside, inside), how, (to, vip, from), (outer_class, inner_class), (payload, options))| {
            let extra = if inside == Family::V4 { vec![1; options * 4] } else { vec![] };
            let packet = Ip { to: vip, traffic_class: inner_class, payload, extra, ..inner(inside) };
            framed(&Ip { to, from, traffic_class: outer_class, ..wrapped(how, outside, &packet) })
        },
    )
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

#[test]
fn kernel_and_slices_agree() {
    let twins = RefCell::new(Twins::new());
    let seen = RefCell::new(BTreeMap::<&str, u32>::new());
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop_oneof![4 => mutated(), 4 => well_formed(), 1 => noise()], |frame| {
            let (verdict, left) = twins.borrow_mut().agree(&frame);
            prop_assert!(left == frame || matches!(verdict, Verdict::Ipip | Verdict::Gue));
            *seen.borrow_mut().entry(verdict.name()).or_default() += 1;
            Ok(())
        })
        .unwrap();
    println!("{:?}", seen.borrow());
    assert_eq!(seen.borrow().len(), Verdict::ALL.len() - 1, "verdicts met: {:?}", seen.borrow());
}
