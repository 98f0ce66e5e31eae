//! The load balancer: XDP context in, XDP action out. All decisions are `lb-common`'s.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod stages;
mod steered;

use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use lb_common::datapath::{self, Action, Tables};
use lb_ebpf::packet::XdpPacket;

use maps::Maps;
use steered::Steered;

/// The load balancer's program.
#[xdp(frags)]
pub fn prog(context: XdpContext) -> u32 {
    let outcome = datapath::process(&mut Steered(XdpPacket(&context)), &Maps);
    // The agent overrides `AYA_LOG_LEVEL` when it loads the program, so that this is dead code unless asked for.
    debug!(&context, "verdict {}", outcome.verdict as u32);
    if outcome.action == Action::Redirect {
        // SAFETY: the helper takes two integers; an index that is no interface makes it answer XDP_ABORTED.
        return unsafe { bpf_redirect(outcome.interface, 0) as u32 };
    }
    outcome.action as u32
}

/// Answers with the tick that entries are written with now. Never attached: the agent runs it.
#[classifier]
pub fn clock(_: TcContext) -> i32 {
    Maps.control().map_or(0, |control| Maps.now(control).0 as i32)
}
