//! Health checks through the forwarding path: a packet of the host, and what to do with it. All decisions are `lb-common`'s.
//!
//! Both programs are on the host's own side of an interface (tc), where customers' packets do not pass.

#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::abi::{PROBE_MARK, PROBE_MARK_MASK};
use lb_common::datapath::{self, ProbeAction};
use lb_ebpf::own_packet::SkbPacket;

use maps::Maps;

/// Sends health checks through the forwarding path.
#[classifier]
pub fn probe_out(context: TcContext) -> i32 {
    // SAFETY: the context is the running program's.
    let mark = unsafe { (*context.skb.skb).mark };
    // Nearly all packets are nobody's health check.
    if mark & PROBE_MARK_MASK != PROBE_MARK {
        return TC_ACT_UNSPEC;
    }
    leave(datapath::probe_out(&mut SkbPacket::leaving(&context), &Maps, mark))
}

/// Takes the answers to health checks.
#[classifier]
pub fn probe_in(context: TcContext) -> i32 {
    leave(datapath::probe_in(&mut SkbPacket::entering(&context), &Maps))
}

/// Other programs on the interface are asked next, unless the packet takes another way.
#[inline(always)]
fn leave(action: ProbeAction) -> i32 {
    match action {
        ProbeAction::Leave | ProbeAction::GoOn => TC_ACT_UNSPEC,
        // SAFETY: the helper takes two integers.
        ProbeAction::Redirect(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
        ProbeAction::Drop => TC_ACT_SHOT,
    }
}
