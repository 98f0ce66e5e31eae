//! The backend's side of tunnels: XDP context in, XDP action out. All decisions are `lb-common`'s.

#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::decap;
use lb_ebpf::packet::XdpPacket;

use maps::Maps;

/// The decapsulating program.
#[xdp(frags)]
pub fn decap(context: XdpContext) -> u32 {
    let verdict = decap::process(&mut XdpPacket(&context), &Maps);
    if verdict.is_drop() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}
