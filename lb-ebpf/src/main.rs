//! The load balancer: XDP context in, XDP action out. All decisions are `lb-common`'s.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod stages;
mod steered;
mod tap;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::datapath::{Exit, Stage, Tables};

use maps::Maps;

/// The load balancer's program: the first stage, which is all that nearly all packets need.
#[xdp(frags)]
#[inline(always)]
pub fn prog(context: XdpContext) -> u32 {
    tap::enter(&context);
    stages::enter(&context, Exit::enter(Stage::Plain))
}

/// Answers with the tick that entries are written with now. Never attached: the agent runs it.
#[classifier]
pub fn clock(_: TcContext) -> i32 {
    Maps.control().map_or(0, |control| Maps.now(control).0 as i32)
}
