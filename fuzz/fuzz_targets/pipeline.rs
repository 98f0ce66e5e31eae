//! Any tables and frames through the whole pipeline: an input → a panic if an invariant is broken.
#![no_main]

use lb_fuzz::invariants::pipeline;

libfuzzer_sys::fuzz_target!(|input: &[u8]| pipeline::check(input));
