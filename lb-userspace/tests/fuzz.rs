//! The fuzz targets' invariants, with the seeds, with every input that once broke one, and with random ones.

mod invariants;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lb_common::decap;
use lb_common::verdict::Verdict;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A target's name, and what its input goes through.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("pipeline", invariants::pipeline::check),
    ("decap", invariants::decap::check),
    ("nat_round_trip", invariants::nat_round_trip::check),
    ("affinity", invariants::affinity::check),
    ("config", invariants::config::check),
];

/// The inputs in one of the folders of `fuzz`, by name.
fn inputs(folder: &str, target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder).join(target);
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|file| (file.file_name().to_string_lossy().into_owned(), fs::read(file.path()).unwrap()))
        .collect()
}

#[test]
fn seeds_and_regressions_break_nothing() {
    for (target, check) in TARGETS {
        let seeds = inputs("seeds", target);
        assert!(!seeds.is_empty(), "fuzz/seeds/{target} is empty");
        for (name, input) in seeds.into_iter().chain(inputs("regressions", target)) {
            println!("{target}/{name}");
            check(&input);
        }
    }
}

/// Runs random inputs of up to so many bytes.
fn with_random(cases: u32, length: usize, check: impl Fn(&[u8])) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&vec(any::<u8>(), 0..length), |input| {
        check(&input);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn any_frames_leave_any_tables_as_their_verdict_says() {
    let met = RefCell::new(BTreeSet::new());
    with_random(20_000, 600, |input| met.borrow_mut().extend(invariants::pipeline::verdicts(input)));
    let met = met.into_inner();
    // No frame grows beyond the room in front, a second's rate and the ports are not used up by so few, and a router's word on
    // a tunnel's way must fit a flow.
    use Verdict::{DropHeadroom, DropIcmpRate, DropInconsistent, DropNatPorts, PassPathMtu};
    let rare = [DropHeadroom, DropIcmpRate, DropInconsistent, DropNatPorts, PassPathMtu];
    let missed: Vec<_> =
        Verdict::ALL.iter().filter(|verdict| !met.contains(verdict) && !rare.contains(verdict)).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn every_kind_of_packet_comes_out_of_every_tunnel_as_it_was() {
    let met = RefCell::new(BTreeSet::new());
    with_random(10_000, 300, |input| {
        met.borrow_mut().extend(invariants::pipeline::tunnelled_packets(input));
    });
    // Two tunnels, two families in two, frames with up to two tags, with and without further headers.
    assert_eq!(met.into_inner().len(), 2 * 4 * 3 * 2);
}

/// The invariants can be broken: hardly a bit of a frame can be another without one telling. Those that can are what is not
/// promised, an outer flow label and hop limit, or under a checksum that was wrong before.
#[test]
fn a_wrong_bit_in_a_frame_is_noticed() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let count = RefCell::new((0, 0));
    with_random(500, 600, |input| {
        let (changed, noticed) = invariants::pipeline::noticed(input);
        let mut count = count.borrow_mut();
        *count = (count.0 + changed, count.1 + noticed);
    });
    std::panic::set_hook(hook);
    let (changed, noticed) = count.into_inner();
    println!("{noticed} of {changed}");
    assert!(changed > 1_000 && noticed * 100 > changed * 95, "{noticed} of {changed}");
}

#[test]
fn any_frame_leaves_a_tunnels_end_as_its_verdict_says() {
    let met = RefCell::new(BTreeSet::new());
    with_random(20_000, 200, |input| {
        met.borrow_mut().insert(invariants::decap::verdict(input));
    });
    let met = met.into_inner();
    let missed: Vec<_> = decap::Verdict::ALL
        .iter()
        .filter(|verdict| !met.contains(verdict) && **verdict != decap::Verdict::DropInconsistent)
        .collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn what_is_translated_and_back_is_what_it_was() {
    let count = RefCell::new(0);
    with_random(10_000, 300, |input| *count.borrow_mut() += invariants::nat_round_trip::round_trips(input));
    assert!(*count.borrow() > 10_000);
}

#[test]
fn flows_and_clients_keep_their_backends() {
    let count = RefCell::new((0, 0));
    with_random(300, 400, |input| {
        let (flows, clients) = invariants::affinity::kept(input);
        let mut count = count.borrow_mut();
        *count = (count.0 + flows, count.1 + clients);
    });
    let (flows, clients) = count.into_inner();
    assert!(flows > 1_000 && clients > 300, "{flows} and {clients}");
}

#[test]
fn configurations_damaged_anywhere_are_read_or_refused() {
    let seeds: Vec<_> = inputs("seeds", "config").into_values().collect();
    let accepted = seeds
        .iter()
        .filter(|seed| invariants::config::accepted(std::str::from_utf8(seed).unwrap()).is_some());
    assert!(accepted.count() > 0, "a seed is valid");
    let edits = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(prop::sample::select(seeds), edits), |(mut text, edits)| {
        for (at, byte) in edits {
            let at = at.index(text.len());
            text[at] = byte;
        }
        invariants::config::check(&text);
        Ok(())
    });
    result.unwrap();
}
