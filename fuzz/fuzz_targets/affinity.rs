//! Flows while backends change: an input → a panic if an invariant is broken.
#![no_main]

use lb_fuzz::invariants::affinity;

libfuzzer_sys::fuzz_target!(|input: &[u8]| affinity::check(input));
