//! BPF maps → the datapath's [`Tables`]. The only place where maps are declared.

use core::arch::asm;
use core::ops::DerefMut;

use aya_ebpf::bindings::{BPF_ANY, bpf_fib_lookup};
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{
    Backend, Control, FRAGMENTED_DATAGRAMS, FlowBucket, FragmentRoute, Latency, Name, OPENING_SLOTS,
    RING_SIZE, Ring, SENDER_SLOTS, STAGE_SLOTS, Service, Traffic, TranslationBucket, TupleKey, Verdicts,
    VipBucket, Word, direct,
};
use lb_common::datapath::{self, Exit, Instant, Outcome, Scratch, Stage, Step, Tables};
use lb_common::flow::{Eviction, Tick, Victim};
use lb_common::net::Address;
use lb_common::translations::{Buckets, Inserted};
use lb_common::verdict::{VERDICT_SLOTS, Verdict};
use lb_ebpf::table::Table;

use crate::tap;

/// The agent maps these into its memory: it reads and writes them without system calls, and atomically.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

// One entry each here: the agent sets the sizes when it loads the program.
static CONTROL: Table<Control, { direct::CONTROL }> = Table::new();
static VIPS: Table<VipBucket, { direct::VIPS }> = Table::new();
static SERVICES: Table<Service, { direct::SERVICES }> = Table::new();
static BACKENDS: Table<Backend, { direct::BACKENDS }> = Table::new();
#[btf_map(name = "rings")]
static RINGS: Array<Ring, 1, MAPPED> = Array::new();
static FLOWS: Table<FlowBucket, { direct::FLOWS }> = Table::new();
#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<Verdicts, 1> = PerCpuArray::new();
#[btf_map(name = "service_traffic")]
static SERVICE_TRAFFIC: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map(name = "backend_traffic")]
static BACKEND_TRAFFIC: PerCpuArray<Traffic, 1> = PerCpuArray::new();
#[btf_map(name = "openings")]
static OPENINGS: Array<Word, { OPENING_SLOTS as usize }, MAPPED> = Array::new();
#[btf_map(name = "service_latency")]
static SERVICE_LATENCY: Array<Latency, 1, MAPPED> = Array::new();
#[btf_map(name = "backend_latency")]
static BACKEND_LATENCY: Array<Latency, 1, MAPPED> = Array::new();
#[btf_map(name = "service_names")]
static SERVICE_NAMES: Array<Name, 1, MAPPED> = Array::new();
#[btf_map(name = "backend_names")]
static BACKEND_NAMES: Array<Name, 1, MAPPED> = Array::new();

#[btf_map(name = "translations")]
static TRANSLATIONS: Array<TranslationBucket, 1, MAPPED> = Array::new();
#[btf_map(name = "fragments")]
static FRAGMENTS: LruHashMap<TupleKey, FragmentRoute, { FRAGMENTED_DATAGRAMS as usize }> = LruHashMap::new();

#[btf_map(name = "senders")]
static SENDERS: Array<Word, { SENDER_SLOTS as usize }, MAPPED> = Array::new();

#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map(name = "fib")]
static FIB: PerCpuArray<[u64; FIB_WORDS], 1> = PerCpuArray::new();

#[btf_map(name = "stages")]
static STAGES: ProgramArray<{ STAGE_SLOTS as usize }> = ProgramArray::new();
#[btf_map(name = "handed_over")]
static HANDED_OVER: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Words in a question to the kernel's routes and neighbours.
const FIB_WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u64>();

/// Room for a question to the kernel's routes and neighbours: this CPU's own.
#[inline(always)]
pub fn fib_room() -> Option<*mut [u64; FIB_WORDS]> {
    FIB.get_ptr_mut(0)
}

/// Notes for the next stage why it is called.
#[inline(always)]
pub fn hand_over(exit: Exit) {
    if let Some(word) = HANDED_OVER.get_ptr_mut(0) {
        // SAFETY: this CPU's own record, which nobody else reads or writes meanwhile.
        unsafe { *word = exit.to_word() };
    }
}

/// Why this stage was called.
#[inline(always)]
pub fn handed_over() -> Exit {
    // SAFETY: as above.
    HANDED_OVER
        .get_ptr_mut(0)
        .map_or(Verdict::DropInconsistent.into(), |word| Exit::from_word(unsafe { *word }))
}

/// Goes on with the program of a stage; returns only if there is none.
#[inline(always)]
pub fn call(context: &XdpContext, stage: Stage) {
    match stage {
        Stage::None => {}
        Stage::Plain => jump::<{ Stage::Plain as u32 }>(context),
        Stage::Rare => jump::<{ Stage::Rare as u32 }>(context),
        Stage::Icmp => jump::<{ Stage::Icmp as u32 }>(context),
        Stage::IcmpError => jump::<{ Stage::IcmpError as u32 }>(context),
        Stage::Nat => jump::<{ Stage::Nat as u32 }>(context),
        Stage::NatReturn => jump::<{ Stage::NatReturn as u32 }>(context),
        Stage::NatNew => jump::<{ Stage::NatNew as u32 }>(context),
        Stage::NatError => jump::<{ Stage::NatError as u32 }>(context),
        Stage::Answer => jump::<{ Stage::Answer as u32 }>(context),
        Stage::Former => jump::<{ Stage::Former as u32 }>(context),
    }
}

/// The same for one stage. Where the kernel knows which program a tail call leads to, it makes a jump of it; any other is an indirect
/// one, which the mitigations of some CPUs make dear.
#[inline(always)]
fn jump<const STAGE: u32>(context: &XdpContext) {
    // SAFETY: nothing of this program is needed any more; the empty instruction keeps the compiler from making one call of several.
    unsafe {
        STAGES.tail_call(context, tap::FIRST_STAGE + STAGE);
        asm!("");
    }
}

/// See [`FlowBucket::victim`]: of the bucket with this index, as [`Victim::to_word`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn victim(index: u64, now: u64) -> u64 {
    FLOWS.get(index as u32).map_or(0, |bucket| bucket.victim(Tick(now as u32)).to_word())
}

/// See [`datapath::vip_beyond`]; the address is two pairs of words.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn vip_beyond(high: u64, low: u64, key: u64) -> u64 {
    let words = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
    datapath::vip_beyond(&Maps, Address::from_words(words), key as u32)
}

/// See [`datapath::pick_settled`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pick(asked: u64) -> u64 {
    datapath::pick_settled(&Maps, asked)
}

/// See [`datapath::attempt`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn attempt(sequence: u64) -> u64 {
    datapath::attempt(&Maps, sequence).into()
}

/// See [`datapath::clear_ended`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clear_ended() -> u64 {
    datapath::clear_ended(&Maps).is_some().into()
}

/// See [`datapath::make_room`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room() -> u64 {
    datapath::make_room(&Maps).is_some().into()
}

/// See [`datapath::locate`]; the arguments are [`TupleKey::words`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn locate(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    datapath::locate(&Maps, &TupleKey::from_words([a, b, c, d, e]))
}

/// See [`datapath::add`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn add() -> u64 {
    datapath::add(&Maps) as u64
}

/// See [`datapath::note_opening`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_opening(hash: u64) -> u64 {
    datapath::note_opening(&Maps, hash);
    0
}

/// See [`datapath::note_answer`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_answer(hash: u64, backend: u64) -> u64 {
    datapath::note_answer(&Maps, hash, backend as u16);
    0
}

/// The maps of this program.
pub struct Maps;

impl Buckets for Maps {
    #[inline(always)]
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        TRANSLATIONS.get(index)
    }

    #[inline(always)]
    fn hide(&self, mut value: u64) -> u64 {
        // SAFETY: the instruction adds nothing.
        unsafe { asm!("{0} += 0", inout(reg) value) };
        value
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        Some(CONTROL.first())
    }

    #[inline(always)]
    fn icmp_budget(&self) -> Option<&Word> {
        Some(&CONTROL.first().icmp_budget)
    }

    #[inline(always)]
    fn sender_budget(&self, slot: u32) -> Option<&Word> {
        SENDERS.get(slot)
    }

    #[inline(always)]
    fn vip_bucket(&self, index: u32) -> Option<&VipBucket> {
        VIPS.get(index)
    }

    #[inline(always)]
    fn vip_beyond(&self, address: Address, key: u32) -> u64 {
        let [a, b, c, d] = address.words().map(u64::from);
        vip_beyond(a | b << 32, c | d << 32, key.into())
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
    fn note(&self, id: u16, word: u64) {
        if let Some(backend) = BACKENDS.get(id.into()) {
            backend.noted.store(word);
        }
    }

    #[inline(always)]
    fn ring_slot(&self, ring: u16, slot: u32) -> Option<u16> {
        let mut slot = u64::from(slot);
        // SAFETY: the instruction adds nothing; it hides from the compiler that `slot` is in range, so that the
        // check below, which the verifier needs, stays. And `slot` is worked out before the call: else all that it is
        // made of would lie on the stack meanwhile.
        unsafe { asm!("{0} += 0", inout(reg) slot) };
        let ring = RINGS.get(ring.into())?;
        if slot < RING_SIZE as u64 { Some(ring.slots[slot as usize]) } else { None }
    }

    #[inline(always)]
    fn flow_bucket(&self, _: &Control, hash: u64) -> Option<(u32, &FlowBucket)> {
        Some(FLOWS.reduced(hash))
    }

    #[inline(always)]
    fn victim(&self, index: u32, _: &FlowBucket, now: Tick) -> Victim {
        Victim::from_word(victim(index.into(), now.0.into()))
    }

    #[inline(always)]
    fn pick(&self, asked: u64) -> u64 {
        pick(asked)
    }

    #[inline(always)]
    fn locate(&self, key: &TupleKey) -> u64 {
        let [a, b, c, d, e] = key.words();
        locate(a, b, c, d, e)
    }

    #[inline(always)]
    fn add_translation(&self) -> Inserted {
        Inserted::from_word(add())
    }

    #[inline(always)]
    fn attempt(&self, sequence: u64) -> bool {
        attempt(sequence) != 0
    }

    #[inline(always)]
    fn clear_ended(&self) -> bool {
        clear_ended() != 0
    }

    #[inline(always)]
    fn make_room(&self) -> bool {
        make_room() != 0
    }

    #[inline(always)]
    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: this CPU's own record, as above; the datapath has it once at a time.
        Some(unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn fragment<R>(&self, key: &TupleKey, then: impl FnOnce(&FragmentRoute) -> R) -> Option<R> {
        // SAFETY: an entry is replaced whole, not written to.
        unsafe { FRAGMENTS.get(key) }.map(then)
    }

    #[inline(always)]
    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        // Without it the fragments to come are dropped, and counted.
        let _ = FRAGMENTS.insert(key, route, BPF_ANY.into());
    }

    #[inline(always)]
    fn now(&self, control: &Control) -> Tick {
        // SAFETY: the helper takes nothing and reads a counter.
        Tick((unsafe { bpf_jiffies64() } >> (control.tick_shift & 31)) as u32)
    }

    #[inline(always)]
    fn instant(&self) -> Instant {
        // SAFETY: the helper takes nothing and reads a clock.
        Instant((unsafe { bpf_ktime_get_ns() } / Latency::UNIT_NS) as u32)
    }

    #[inline(always)]
    fn opening(&self, slot: u32) -> Option<&Word> {
        OPENINGS.get(slot)
    }

    #[inline(always)]
    fn latency(&self, backend: u16) -> Option<&Latency> {
        BACKEND_LATENCY.get(backend.into())
    }

    #[inline(always)]
    fn note_opening(&self, hash: u64) {
        note_opening(hash);
    }

    #[inline(always)]
    fn note_answer(&self, hash: u64, backend: u16) {
        note_answer(hash, backend.into());
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict) {
        if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
            let mut index = verdict.index();
            // SAFETY: the instruction adds nothing; it hides from the compiler that the index is in range, so that it leaves
            // the mask below. The verifier of Linux 6.1 goes ways on which it knows nothing of it.
            unsafe { asm!("{0} += 0", inout(reg) index) };
            // SAFETY: this CPU's own record; an XDP program is not interrupted by another on its CPU.
            unsafe { (*verdicts).packets[index & (VERDICT_SLOTS - 1)] += 1 };
        }
    }

    #[inline(always)]
    fn count_eviction(&self, eviction: Eviction) {
        if let Some(verdicts) = VERDICTS.get_ptr_mut(0) {
            // SAFETY: as above.
            unsafe { (*verdicts).evictions[eviction as usize & 3] += 1 };
        }
    }

    #[inline(always)]
    fn observe(&self, step: Step) {
        tap::observe(step);
    }

    #[inline(always)]
    fn count_forwarded(&self, forwarded: &Outcome) {
        let Some(traffic) = BACKEND_TRAFFIC.get_ptr_mut(forwarded.backend.into()) else { return };
        // SAFETY: as above.
        unsafe { (*traffic).count(forwarded) };
    }
}
