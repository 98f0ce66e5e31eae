//! BPF maps → the pipeline's [`DecapTables`]. The only place where the decapsulating program's maps are declared.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    DECAP_BUCKETS, DecapControl, DecapRoles, MAX_DECAP_SOURCES, SourcePrefix, Verdicts, VipBucket,
};
use lb_common::decap::{self, DecapTables, Verdict};
use lb_common::net::Address;

/// `sluice decap` maps these into its memory: it writes them without system calls, and the word that switches between
/// halves atomically.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map(name = "decap_control")]
static CONTROL: Array<DecapControl, 1, MAPPED> = Array::new();
#[btf_map(name = "decap_sources")]
static SOURCES: Array<SourcePrefix, { MAX_DECAP_SOURCES as usize }, MAPPED> = Array::new();
#[btf_map(name = "decap_addresses")]
static ADDRESSES: Array<VipBucket, { 2 * DECAP_BUCKETS as usize }, MAPPED> = Array::new();
#[btf_map(name = "decap_verdicts")]
static VERDICTS: PerCpuArray<Verdicts, 1> = PerCpuArray::new();

/// The maps of this program.
pub struct Maps;

impl DecapTables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&DecapControl> {
        CONTROL.get(0)
    }

    #[inline(always)]
    fn source(&self, index: u32) -> Option<&SourcePrefix> {
        SOURCES.get(index)
    }

    #[inline(always)]
    fn address_bucket(&self, index: u32) -> Option<&VipBucket> {
        ADDRESSES.get(index)
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict) {
        if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
            // SAFETY: this CPU's own record; an XDP program is not interrupted by another on its CPU.
            unsafe { (*verdicts).packets[verdict.index()] += 1 };
        }
    }

    #[inline(always)]
    fn roles(&self, address: Address) -> DecapRoles {
        let [a, b, c, d] = address.words();
        DecapRoles(roles_of(a, b, c, d))
    }

    #[inline(always)]
    fn accepts(&self, source: Address) -> bool {
        let [a, b, c, d] = source.words();
        is_accepted(a, b, c, d) != 0
    }
}

/// A global function, which the verifier checks once and by itself, whatever is called with.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn roles_of(a: u32, b: u32, c: u32, d: u32) -> u32 {
    decap::roles(&Maps, Address::from_words([a, b, c, d])).0
}

/// A global function as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_accepted(a: u32, b: u32, c: u32, d: u32) -> u32 {
    decap::accepts(&Maps, Address::from_words([a, b, c, d])).into()
}
