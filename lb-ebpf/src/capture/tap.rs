//! A packet before and after, and the steps between → a record for the agent, if it is wanted.

use core::arch::asm;
use core::ptr;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{CAPTURE_STAGES, CaptureRecord, CaptureSeen, MAX_SNAP};
use lb_common::datapath::{Action, Outcome, Step};
use lb_ebpf::packet::XdpPacket;

use crate::capture_maps::{self, Captured};

/// Place of these programs in the map `stages`.
pub const FIRST_STAGE: u32 = CAPTURE_STAGES;

/// A packet comes in: its bytes are kept, if it is to be looked at.
#[inline(always)]
pub fn enter(context: &XdpContext) {
    let Some(captured) = capture_maps::captured() else { return };
    captured.active = 0;
    let Some(control) = capture_maps::control() else { return };
    captured.turn += 1;
    if captured.turn < control.sample {
        return;
    }
    captured.turn = 0;
    // SAFETY: the helper takes nothing and reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > control.until.load() {
        return;
    }
    let packet = XdpPacket(context);
    let length = packet.length();
    let bytes = snap(length, control.snap);
    // SAFETY: so many bytes are there, the buffer being twice as long as `bytes` can be.
    if !unsafe { packet.copy(captured.bytes.as_mut_ptr(), bytes) } {
        return;
    }
    captured.seen = CaptureSeen::NOTHING;
    captured.record.time = now;
    captured.record.ingress = context.ingress_ifindex() as u32;
    captured.record.before_length = length;
    captured.record.before_bytes = bytes;
    captured.active = 1;
    if let Some(counts) = capture_maps::counts() {
        counts.seen += 1;
    }
}

/// A step of the pipeline: what packets are looked for by.
#[inline(always)]
pub fn observe(step: Step) {
    let Some(Captured { seen, .. }) = capture_maps::captured() else { return };
    match step {
        Step::Parsed(tuple) => {
            (seen.source, seen.destination) = (tuple.source.words(), tuple.destination.words());
            seen.ports = tuple.ports.word();
        }
        Step::Quoted(tuple) | Step::Translated { tuple, .. } => {
            (seen.other_source, seen.other_destination) = (tuple.source.words(), tuple.destination.words());
            seen.other_ports = tuple.ports.word();
        }
        Step::Classified { service, .. } => seen.service = service,
        Step::RingLookup { backend, .. } | Step::NextHop { backend, .. } | Step::AnswerOf(backend) => {
            seen.backend = backend.into();
        }
        _ => {}
    }
}

/// The packet leaves.
#[inline(always)]
pub fn leave(context: &XdpContext, outcome: &Outcome) {
    let Some(captured) = capture_maps::captured() else { return };
    if captured.active == 0 {
        return;
    }
    captured.active = 0;
    if outcome.backend != 0 {
        (captured.seen.service, captured.seen.backend) = (outcome.service, outcome.backend.into());
    }
    let (Some(control), Some(counts)) = (capture_maps::control(), capture_maps::counts()) else { return };
    if !control.wants(&captured.seen, outcome.verdict) {
        return;
    }
    counts.wanted += 1;
    let before = within(captured.record.before_bytes);
    let mut all = size_of::<CaptureRecord>() + before as usize;
    let (mut length, mut after) = (0, 0);
    if matches!(outcome.action, Action::Transmit | Action::Redirect) {
        let packet = XdpPacket(context);
        length = packet.length();
        after = snap(length, control.snap);
        // SAFETY: `before` and `after` are at most half of the buffer each.
        if !unsafe { packet.copy(captured.bytes.as_mut_ptr().add(before as usize), after) } {
            (length, after) = (0, 0);
        }
        all += after as usize;
    }
    let record = &mut captured.record;
    record.verdict = outcome.verdict as u32;
    record.action = outcome.action as u32;
    record.egress = if outcome.interface == 0 { record.ingress } else { outcome.interface };
    record.service = captured.seen.service;
    record.backend = captured.seen.backend;
    record.after_length = length;
    record.before_bytes = before;
    record.after_bytes = after;
    record.new_flow = outcome.new_flow().into();
    record.padding = 0;
    // SAFETY: the record and its bytes lie one behind the other, and `all` is no more than both.
    let record = unsafe { core::slice::from_raw_parts(ptr::from_ref(record).cast::<u8>(), all) };
    if !capture_maps::hand_over(record) {
        counts.lost += 1;
    }
}

/// Bytes that are kept of so many.
#[inline(always)]
fn snap(length: u32, wanted: u32) -> u32 {
    within(if length < wanted { length } else { wanted })
}

/// The number itself, which is from 1 to the most: now the verifier knows.
#[inline(always)]
fn within(bytes: u32) -> u32 {
    let mut bytes = u64::from(bytes).wrapping_sub(1);
    // SAFETY: the instruction adds nothing; it hides from the compiler what it knows, so that it leaves the mask.
    unsafe { asm!("{0} += 0", inout(reg) bytes) };
    (bytes & (MAX_SNAP as u64 - 1)) as u32 + 1
}
