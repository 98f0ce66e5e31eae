//! The load balancer while somebody captures: the same programs over the same maps, which also hand over what they see.
//!
//! They are an object of their own, so that the load balancer's programs stay what they are, to the last instruction.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[path = "maps.rs"]
mod capture_maps;
#[path = "../maps.rs"]
mod maps;
#[path = "../stages.rs"]
mod stages;
#[path = "../steered.rs"]
mod steered;
mod tap;

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::datapath::{Exit, Stage};

/// See the load balancer's program of this name.
#[xdp(frags)]
#[inline(always)]
pub fn prog(context: XdpContext) -> u32 {
    tap::enter(&context);
    stages::enter(&context, Exit::enter(Stage::Plain))
}
