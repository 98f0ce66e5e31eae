//! Any frame at a tunnel's end: an input → a panic if an invariant is broken.
#![no_main]

use lb_fuzz::invariants::decap;

libfuzzer_sys::fuzz_target!(|input: &[u8]| decap::check(input));
