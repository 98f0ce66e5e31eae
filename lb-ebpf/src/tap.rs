//! Where the capturing programs look at a packet, these do not: nothing is done, and nothing costs.

use aya_ebpf::programs::XdpContext;
use lb_common::datapath::{Outcome, Step};

/// Place of these programs in the map `stages`.
pub const FIRST_STAGE: u32 = 0;

/// A packet comes in.
#[inline(always)]
pub fn enter(_: &XdpContext) {}

/// A step of the pipeline.
#[inline(always)]
pub fn observe(_: Step) {}

/// The packet leaves.
#[inline(always)]
pub fn leave(_: &XdpContext, _: &Outcome) {}
