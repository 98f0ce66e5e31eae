//! Any text as a configuration: an input → a panic if an invariant is broken.
#![no_main]

use lb_fuzz::invariants::config;

libfuzzer_sys::fuzz_target!(|input: &[u8]| config::check(input));
