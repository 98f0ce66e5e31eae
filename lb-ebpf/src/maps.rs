//! BPF maps → the datapath's [`Tables`]. The only place where maps are declared.

use core::arch::asm;

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Backend, Control, FlowBucket, Name, RING_SIZE, Ring, Service, Traffic, Verdicts, VipBucket,
};
use lb_common::datapath::{Outcome, Tables};
use lb_common::flow::Tick;
use lb_common::verdict::Verdict;

/// The agent maps these into its memory: it reads and writes them without system calls, and atomically.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

// One entry each here: the agent sets the sizes when it loads the program.
#[btf_map(name = "control")]
static CONTROL: Array<Control, 1, MAPPED> = Array::new();
#[btf_map(name = "vips")]
static VIPS: Array<VipBucket, 1, MAPPED> = Array::new();
#[btf_map(name = "services")]
static SERVICES: Array<Service, 1, MAPPED> = Array::new();
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, 1, MAPPED> = Array::new();
#[btf_map(name = "rings")]
static RINGS: Array<Ring, 1, MAPPED> = Array::new();
#[btf_map(name = "flows")]
static FLOWS: Array<FlowBucket, 1, MAPPED> = Array::new();
#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<Verdicts, 1> = PerCpuArray::new();
#[btf_map(name = "service_traffic")]
static SERVICE_TRAFFIC: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map(name = "backend_traffic")]
static BACKEND_TRAFFIC: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map(name = "service_names")]
static SERVICE_NAMES: Array<Name, 1, MAPPED> = Array::new();
#[btf_map(name = "backend_names")]
static BACKEND_NAMES: Array<Name, 1, MAPPED> = Array::new();

/// The maps of this program.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }

    #[inline(always)]
    fn vip_bucket(&self, index: u32) -> Option<&VipBucket> {
        VIPS.get(index)
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&Service> {
        SERVICES.get(id)
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<&Backend> {
        BACKENDS.get(id.into())
    }

    #[inline(always)]
    fn ring_slot(&self, ring: u16, slot: u32) -> Option<u16> {
        let ring = RINGS.get(ring.into())?;
        let mut slot = u64::from(slot);
        // SAFETY: the instruction adds nothing; it hides from the compiler that `slot` is in range, so that the
        // check below, which the verifier needs, stays.
        unsafe { asm!("{0} += 0", inout(reg) slot) };
        if slot < RING_SIZE as u64 { Some(ring.slots[slot as usize]) } else { None }
    }

    #[inline(always)]
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        FLOWS.get(index)
    }

    #[inline(always)]
    fn now(&self, control: &Control) -> Tick {
        // SAFETY: the helper takes nothing and reads a counter.
        Tick((unsafe { bpf_jiffies64() } >> (control.tick_shift & 31)) as u32)
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict) {
        if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
            // SAFETY: this CPU's own record; an XDP program is not interrupted by another on its CPU.
            unsafe { (*verdicts).packets[verdict.index()] += 1 };
        }
    }

    #[inline(always)]
    fn count_forwarded(&self, forwarded: &Outcome) {
        let Some(traffic) = BACKEND_TRAFFIC.get_ptr_mut(forwarded.backend.into()) else { return };
        // SAFETY: as above.
        let traffic = unsafe { &mut *traffic };
        traffic.packets += 1;
        traffic.bytes += u64::from(forwarded.bytes);
        traffic.new_flows += u64::from(forwarded.new_flow);
    }
}
