//! The maps that only the capturing programs have → what is wanted, room for a packet, and the way to the agent.

use aya_ebpf::btf_maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{CaptureControl, CaptureCounts, CaptureRecord, CaptureSeen, MAX_SNAP};

/// The agent maps this into its memory.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;
/// A page: the agent sets the size when it loads the programs.
const RECORDS_BYTES: usize = 4_096;

#[btf_map(name = "capture")]
static CONTROL: Array<CaptureControl, 1, MAPPED> = Array::new();
#[btf_map(name = "captured")]
static CAPTURED: PerCpuArray<Captured, 1> = PerCpuArray::new();
#[btf_map(name = "capture_counts")]
static COUNTS: PerCpuArray<CaptureCounts, 1> = PerCpuArray::new();
#[btf_map(name = "capture_records")]
static RECORDS: RingBuf<CaptureRecord, RECORDS_BYTES> = RingBuf::new();

/// A packet on its way through the programs.
#[repr(C)]
pub struct Captured {
    /// 1 if it is looked at.
    pub active: u32,
    /// Packets since the last one that was.
    pub turn: u32,
    /// What is known of it.
    pub seen: CaptureSeen,
    /// What is handed over: this, and as much as there is of the bytes.
    pub record: CaptureRecord,
    /// Before, then after.
    pub bytes: [u8; 2 * MAX_SNAP],
}

/// What is wanted.
#[inline(always)]
pub fn control() -> Option<&'static CaptureControl> {
    CONTROL.get(0)
}

/// Room for the packet of this CPU.
#[inline(always)]
pub fn captured() -> Option<&'static mut Captured> {
    // SAFETY: this CPU's own record, which nobody else reads or writes meanwhile, and of which every bit pattern is a value.
    CAPTURED.get_ptr_mut(0).map(|captured| unsafe { &mut *captured })
}

/// The counters of this CPU.
#[inline(always)]
pub fn counts() -> Option<&'static mut CaptureCounts> {
    // SAFETY: as above.
    COUNTS.get_ptr_mut(0).map(|counts| unsafe { &mut *counts })
}

/// Hands a record over; `false` if there is no room.
#[inline(always)]
pub fn hand_over(record: &[u8]) -> bool {
    RECORDS.output_untyped::<[u8]>(record, 0).is_ok()
}
