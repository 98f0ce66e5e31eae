//! A stage of the pipeline → a program by itself, which the verifier goes through by itself and which has a stack of its own.
//!
//! One tail call leads from stage to stage: a function would cost every packet its return, which the mitigations of some CPUs
//! make dear, and share the stack.

use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::datapath::{self, Action, Exit, Outcome, Stage, Tables};
use lb_common::verdict::Verdict;
use lb_ebpf::packet::XdpPacket;

use crate::maps::{self, Maps};
use crate::steered::Steered;
use crate::tap;

/// Runs the stage that an exit leads to, and what follows.
#[inline(always)]
pub fn enter(context: &XdpContext, exit: Exit) -> u32 {
    let next = match datapath::run_stage(&mut Steered(XdpPacket(context)), &Maps, exit) {
        Ok(outcome) => return leave(context, &outcome),
        Err(next) => next,
    };
    if next.stage() == Stage::Answer {
        maps::hand_over(next);
    }
    maps::call(context, next.stage());
    // There is no such program, or too many were called: a fault.
    Maps.count(Verdict::DropInconsistent);
    tap::leave(context, &Outcome::without_backend(Verdict::DropInconsistent, 0));
    Action::Drop as u32
}

#[inline(always)]
fn leave(context: &XdpContext, outcome: &Outcome) -> u32 {
    // The agent overrides `AYA_LOG_LEVEL` when it loads the program, so that this is dead code unless asked for.
    debug!(context, "verdict {}", outcome.verdict as u32);
    tap::leave(context, outcome);
    if outcome.action == Action::Redirect {
        // SAFETY: the helper takes two integers; an index that is no interface makes it answer XDP_ABORTED.
        return unsafe { bpf_redirect(outcome.interface, 0) as u32 };
    }
    outcome.action as u32
}

/// See [`Stage::Rare`].
#[xdp(frags)]
#[inline(always)]
pub fn rare(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::Rare))
}

/// See [`Stage::Icmp`].
#[xdp(frags)]
#[inline(always)]
pub fn icmp(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::Icmp))
}

/// See [`Stage::IcmpError`].
#[xdp(frags)]
#[inline(always)]
pub fn icmp_error(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::IcmpError))
}

/// See [`Stage::Nat`].
#[xdp(frags)]
#[inline(always)]
pub fn nat(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::Nat))
}

/// See [`Stage::NatReturn`].
#[xdp(frags)]
#[inline(always)]
pub fn nat_return(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::NatReturn))
}

/// See [`Stage::NatNew`].
#[xdp(frags)]
#[inline(always)]
pub fn nat_new(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::NatNew))
}

/// See [`Stage::NatError`].
#[xdp(frags)]
#[inline(always)]
pub fn nat_error(context: XdpContext) -> u32 {
    enter(&context, Exit::enter(Stage::NatError))
}

/// See [`Stage::Answer`].
#[xdp(frags)]
#[inline(always)]
pub fn answer(context: XdpContext) -> u32 {
    enter(&context, maps::handed_over().with_stage(Stage::Answer))
}
