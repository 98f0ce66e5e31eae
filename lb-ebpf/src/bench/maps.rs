//! What userspace asks of the measuring programs, and what these count → maps.

use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

use lb_common::abi::{FLOW_WAYS, RING_SIZE, Ring, Word};
use lb_common::hash;

use crate::settings::Settings;

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "subject")]
static SUBJECT: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "counted")]
static COUNTED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// As a flow table is: mapped, of cache lines. Who loads the object says how many.
#[btf_map(name = "lines")]
static LINES: Array<[Word; FLOW_WAYS], 1, { aya_ebpf::bindings::BPF_F_MMAPABLE as usize }> = Array::new();

/// As a service's ring is.
#[btf_map(name = "ring")]
static RING: Array<Ring, 1> = Array::new();

/// A line.
#[inline(always)]
pub fn words(index: u32) -> Option<&'static [Word; FLOW_WAYS]> {
    LINES.get(index)
}

/// A word of a line.
#[inline(always)]
pub fn line(index: u32) -> Option<u64> {
    words(index).map(|line| line[0].load())
}

/// The slot of the ring that a hash is reduced to.
#[inline(always)]
pub fn slot(hash: u64) -> Option<u16> {
    RING.get(0)?.slots.get(hash::reduce(hash, RING_SIZE as u32) as usize).copied()
}

/// What userspace asks for. An object runs on one CPU at a time.
#[inline(always)]
pub fn settings() -> Option<&'static mut Settings> {
    // SAFETY: nobody else writes to it while this object's programs run.
    SETTINGS.get_ptr_mut(0).map(|settings| unsafe { &mut *settings })
}

/// Goes on with the program under test; returns only if there is none.
#[inline(always)]
pub fn call(context: &XdpContext) {
    // SAFETY: nothing of this program is needed any more.
    unsafe { SUBJECT.tail_call(context, 0) };
}

/// Counts a frame.
#[inline(always)]
pub fn count() {
    if let Some(counted) = COUNTED.get_ptr_mut(0) {
        // SAFETY: this CPU's own record.
        unsafe { *counted += 1 };
    }
}
