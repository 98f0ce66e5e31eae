//! Packets that are translated, and back: an input → a panic if an invariant is broken.
#![no_main]

use lb_fuzz::invariants::nat_round_trip;

libfuzzer_sys::fuzz_target!(|input: &[u8]| nat_round_trip::check(input));
