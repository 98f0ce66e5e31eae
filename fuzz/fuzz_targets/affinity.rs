//! Flows while backends change: an input → a panic if an invariant is broken.
#![no_main]

#[path = "../../lb-userspace/tests/invariants/mod.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::affinity::check(input));
