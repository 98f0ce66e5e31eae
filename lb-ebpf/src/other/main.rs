//! Another load balancer over the same maps: its first program does one thing more. Tests upgrade an agent to it and back.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[path = "../maps.rs"]
mod maps;
#[path = "../stages.rs"]
mod stages;
#[path = "../steered.rs"]
mod steered;
#[path = "../tap.rs"]
mod tap;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::datapath::{Exit, Stage, Tables};

use maps::Maps;

/// As in `sluice`, with a look at which CPU this is.
#[xdp(frags)]
#[inline(always)]
pub fn prog(context: XdpContext) -> u32 {
    // SAFETY: the helper takes nothing.
    let _ = unsafe { bpf_get_smp_processor_id() };
    stages::enter(&context, Exit::enter(Stage::Plain))
}

/// As in `sluice`.
#[classifier]
pub fn clock(_: TcContext) -> i32 {
    Maps.control().map_or(0, |control| Maps.now(control).0 as i32)
}
