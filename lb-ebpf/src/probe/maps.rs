//! BPF maps → the pipeline's [`ProbeTables`]. The only place where the probing programs' maps are declared: the first two are
//! the load balancer's own, which the agent lends them.

use core::ops::Deref;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::{Array, LruHashMap};
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::btf_map;
use lb_common::abi::{Backend, Control, PROBE_CONNECTIONS, ProbeTarget, TupleKey, direct};
use lb_common::datapath::ProbeTables;
use lb_common::flow::Tick;
use lb_ebpf::table::Table;

/// The agent maps these into its memory.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

static CONTROL: Table<Control, { direct::CONTROL }> = Table::new();
static BACKENDS: Table<Backend, { direct::BACKENDS }> = Table::new();
#[btf_map(name = "probe_targets")]
static TARGETS: Array<ProbeTarget, 1, MAPPED> = Array::new();
#[btf_map(name = "probe_answers")]
static ANSWERS: LruHashMap<TupleKey, u32, { PROBE_CONNECTIONS as usize }> = LruHashMap::new();

/// The maps of these programs.
pub struct Maps;

impl ProbeTables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        Some(CONTROL.first())
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<&Backend> {
        BACKENDS.get(id.into())
    }

    #[inline(always)]
    fn target(&self, index: u32) -> Option<&ProbeTarget> {
        TARGETS.get(index)
    }

    #[inline(always)]
    fn expected(&self, answer: &TupleKey) -> Option<impl Deref<Target = u32>> {
        // SAFETY: an entry that is used again meanwhile leads to another target, and that is checked.
        unsafe { ANSWERS.get(answer) }
    }

    #[inline(always)]
    fn expect(&self, answer: &TupleKey, target: u32) {
        // Without it the answer finds no connection, and the check fails.
        let _ = ANSWERS.insert(answer, &target, BPF_ANY.into());
    }

    #[inline(always)]
    fn now(&self, control: &Control) -> Tick {
        // SAFETY: the helper takes nothing and reads a counter.
        Tick((unsafe { bpf_jiffies64() } >> (control.tick_shift & 31)) as u32)
    }
}
