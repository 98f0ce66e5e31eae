//! One frame through the kernel and through the slice implementation, over equal tables.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{
    FragmentRoute, HEADROOM, Moving, NatPorts, Traffic, Translation, TranslationState, TupleKey, Verdicts,
    Word,
};
use lb_common::datapath::{self, Action, Outcome, TimedOpenings};
use lb_common::hash::Key;
use lb_common::slice::{Fragments, SlicePacket, SliceTables};
use lb_common::verdict::Verdict;
use lb_tests::Netns;
use lb_userspace::core::image::{Capacity, Wanted};
use lb_userspace::core::plan::{self, RingCache};
use lb_userspace::io::datapath::{Account, Datapath, Kernel, Memory};

use super::{Pins, SEED, capacity};

/// The interface that `BPF_PROG_TEST_RUN` has frames come in on: the loopback.
pub const INTERFACE: u32 = 1;
/// The shortest frame that the kernel lets a program be run on.
pub const SHORTEST: usize = 14;

/// How far jiffies may be shifted to become ticks that are long enough for tests.
pub const TICK_SHIFTS: std::ops::RangeInclusive<u32> = 18..=31;
/// Jiffies for which a tick has to last: a test must not see it end.
const CALM_JIFFIES: u32 = 30_000;

/// The kernel's datapath and its twin in memory.
pub struct Twins {
    pub kernel: Kernel,
    pub memory: Memory,
    counted: Verdicts,
    rings: RingCache,
    /// The keys under which the slice implementation remembered fragments.
    fragments: RefCell<BTreeSet<TupleKey>>,
    _pins: Pins,
}

/// What became of a frame, in both.
#[derive(Debug, PartialEq, Eq)]
pub struct Result {
    pub action: u32,
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    /// Flows that made way, by kind.
    pub evictions: [u64; 4],
}

/// All that packets change in a datapath's tables.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    pub flows: Vec<u64>,
    pub translations: BTreeMap<TupleKey, (Translation, TranslationState)>,
    pub fragments: BTreeMap<TupleKey, Vec<u64>>,
    /// By backend, its word and what routers told of the way to it.
    pub backends: Vec<(u64, u64)>,
    pub icmp_budget: u64,
    pub senders: Vec<u64>,
    pub verdicts: Verdicts,
    pub traffic: BTreeMap<u16, Traffic>,
    /// For each place where openings are noted, whose is. Not since when: the clocks differ.
    pub openings: Vec<u32>,
    /// How many connections with a backend were timed. Not how long they took.
    pub timed: BTreeMap<u16, u64>,
}

impl Twins {
    pub fn new(wanted: &Wanted) -> Self {
        Self::with_capacity(wanted, capacity())
    }

    /// Twins with tables of this size. The calling thread moves to a network without routes: those of the host are no
    /// matter of the tests.
    pub fn with_capacity(wanted: &Wanted, capacity: Capacity) -> Self {
        Netns::new().and_then(|netns| netns.enter()).expect("program tests need root");
        let pins = Pins::new();
        let (kernel, adopted) = Kernel::load(&pins.0, capacity, false).unwrap();
        assert!(!adopted);
        let memory = Memory::new(capacity, SEED);
        let (rings, fragments) = Default::default();
        let counted = Verdicts::default();
        let mut twins = Self { kernel, memory, counted, rings, fragments, _pins: pins };
        twins.equal_settings();
        twins.set_time(*TICK_SHIFTS.start());
        twins.apply(wanted);
        twins.counted = twins.kernel.not_forwarded().unwrap();
        twins
    }

    /// Gives the kernel's tables the keys of those in memory.
    fn equal_settings(&mut self) {
        let memory = self.memory.tables().control().unwrap();
        let (flow_key, ring_key, ports) = (memory.flow_key, memory.ring_key, memory.nat_ports);
        let kernel = self.kernel.tables_mut().control_mut().unwrap();
        (kernel.flow_key, kernel.ring_key, kernel.nat_ports) = (flow_key, ring_key, ports);
    }

    /// Has one in so many openings be timed.
    pub fn set_timed(&mut self, one_in: u32) {
        for tables in [self.memory.tables_mut(), self.kernel.tables_mut()] {
            tables.control_mut().unwrap().timed_openings = TimedOpenings::one_in(one_in);
        }
    }

    /// Has flows be hashed by this key.
    pub fn set_flow_key(&mut self, key: Key) {
        self.memory.tables_mut().control_mut().unwrap().flow_key = key;
        self.equal_settings();
    }

    /// Has translated packets be sent from these ports.
    pub fn set_nat_ports(&mut self, ports: NatPorts) {
        self.memory.tables_mut().control_mut().unwrap().nat_ports = ports;
        self.equal_settings();
    }

    /// Makes ticks so long, or longer if one is about to end: time then stands still. With each shift less it is about twice
    /// as late, from tick 2 to tick 16,384.
    pub fn set_time(&mut self, tick_shift: u32) {
        self.kernel.tables_mut().control_mut().unwrap().tick_shift = 0;
        let jiffies = self.kernel.now().unwrap().0;
        let ends_soon = |shift: &u32| (1 << shift) - (jiffies & ((1 << shift) - 1)) < CALM_JIFFIES;
        let shift = (tick_shift..*TICK_SHIFTS.end()).find(|shift| !ends_soon(shift));
        self.kernel.tables_mut().control_mut().unwrap().tick_shift = shift.unwrap_or(*TICK_SHIFTS.end());
        self.memory.now = self.kernel.now().unwrap();
    }

    /// Says in both how far a change of the tables' sizes has come.
    pub fn set_moving(&self, moving: Moving) {
        for tables in [self.kernel.tables(), self.memory.tables()] {
            tables.control().unwrap().moving.store(moving as u64);
        }
    }

    /// Says in both how many echo replies, and how many answers that a packet is too big, have been sent in this tick.
    pub fn set_icmp_answers(&mut self, echoes: u16, too_big: u16) {
        let word = u64::from(self.memory.now.0) << 48 | u64::from(too_big) << 16 | u64::from(echoes);
        for tables in [self.kernel.tables(), self.memory.tables()] {
            tables.control().unwrap().icmp_budget.store(word);
        }
    }

    /// Says in both which interface frames come in on.
    pub fn set_own_mac(&self, mac: [u8; 6]) {
        self.kernel.tables().set_interfaces(&[(INTERFACE, mac)]);
        self.memory.tables().set_interfaces(&[(INTERFACE, mac)]);
    }

    /// Brings both to what is wanted.
    pub fn apply(&mut self, wanted: &Wanted) {
        let plan = plan::plan(&self.memory.tables().image(), wanted, &mut self.rings).unwrap();
        for action in &plan.actions {
            self.memory.apply(action).unwrap();
            self.kernel.apply(action).unwrap();
        }
    }

    /// Runs a frame through the kernel.
    pub fn through_kernel(&mut self, frame: &[u8]) -> Result {
        let forwarded = |kernel: &Kernel| kernel.forwarded().unwrap().all.packets;
        let before = forwarded(&self.kernel);
        let run = self.kernel.run_frame(frame, 1).unwrap();
        let (mut counted, evictions) = self.newly_counted();
        let forward = forwarded(&self.kernel) - before;
        counted.extend((0..forward).map(|_| Verdict::Forward));
        let [verdict] = counted[..] else { panic!("one frame counted as {counted:?}") };
        Result { action: run.action, verdict, frame: run.frame, evictions }
    }

    /// The verdicts but `forward`, and the evictions, that the kernel counted since it was asked last.
    fn newly_counted(&mut self) -> (Vec<Verdict>, [u64; 4]) {
        let now = self.kernel.not_forwarded().unwrap();
        let mut verdicts = Vec::new();
        for (&verdict, (now, before)) in Verdict::ALL.iter().zip(now.packets.iter().zip(self.counted.packets))
        {
            verdicts.extend((before..*now).map(|_| verdict));
        }
        let mut evictions = now.evictions;
        for (now, before) in evictions.iter_mut().zip(self.counted.evictions) {
            *now -= before;
        }
        self.counted = now;
        (verdicts, evictions)
    }

    /// Runs a frame through the slice implementation, and counts it in memory.
    pub fn through_slice(&mut self, frame: &[u8]) -> (Result, Outcome) {
        self.through_slice_with(frame, HEADROOM)
    }

    /// The same with so many bytes of room in front.
    pub fn through_slice_with(&mut self, frame: &[u8], headroom: usize) -> (Result, Outcome) {
        let mut buffer = [vec![0; headroom], frame.to_vec()].concat();
        let mut slices = self.memory.tables().slices().unwrap();
        let noting = Noting { map: slices.fragments, keys: &self.fragments };
        slices.fragments = &noting;
        let tables = SliceTables::new(slices, self.memory.now);
        let mut packet = SlicePacket::new(&mut buffer, headroom, INTERFACE);
        let outcome = tables.process(&mut packet);
        slices.control.icmp_budget.store(tables.icmp_budget.load());
        let verdicts = tables.verdicts.into_inner();
        assert_eq!(verdicts.packets.iter().sum::<u64>(), 1, "counted once");
        assert_eq!(verdicts.packets[outcome.verdict.index()], 1);
        let action = match outcome.action {
            Action::Drop => 1,
            Action::Pass => 2,
            Action::Transmit => 3,
            Action::Redirect => 4,
        };
        let evictions = verdicts.evictions;
        let frame = packet.bytes().to_vec();
        let result = Result { action, verdict: outcome.verdict, frame, evictions };
        self.count(&verdicts, &outcome);
        (result, outcome)
    }

    fn count(&mut self, verdicts: &Verdicts, outcome: &Outcome) {
        let evictions = self.memory.not_forwarded.evictions.iter_mut().zip(verdicts.evictions);
        evictions.for_each(|(sum, count)| *sum += count);
        if outcome.verdict == Verdict::Forward {
            let traffic = self.memory.traffic.entry(Account::Backend(outcome.backend)).or_default();
            traffic.count(outcome);
        } else {
            self.memory.not_forwarded.packets[outcome.verdict.index()] += 1;
        }
    }

    /// Runs a frame through both, and insists that they agree.
    pub fn agree(&mut self, frame: &[u8]) -> Outcome {
        self.agreed(frame).1
    }

    /// The same, with the frame as it leaves.
    pub fn agree_on(&mut self, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let (result, outcome) = self.agreed(frame);
        (outcome, result.frame)
    }

    /// The same, with what became of it. What the kernel cannot be given, for it is too short, has no twin.
    pub fn agreed(&mut self, frame: &[u8]) -> (Result, Outcome) {
        let (in_slice, outcome) = self.through_slice(frame);
        if frame.len() < SHORTEST {
            self.memory.not_forwarded.packets[outcome.verdict.index()] -= 1;
            return (in_slice, outcome);
        }
        let run = self.kernel.run_frame(frame, 1).unwrap();
        // What is forwarded is counted by backend: see `changed`.
        let (verdicts, evictions) = self.newly_counted();
        let [verdict] = verdicts[..] else {
            assert_eq!(outcome.verdict, Verdict::Forward, "slice over {frame:02x?}");
            assert_eq!(run.action, in_slice.action, "kernel (left) and slice differ over {frame:02x?}");
            assert_eq!(run.frame, in_slice.frame, "kernel (left) and slice differ over {frame:02x?}");
            return (in_slice, outcome);
        };
        let in_kernel = Result { action: run.action, verdict, frame: run.frame, evictions };
        assert_eq!(in_kernel, in_slice, "kernel (left) and slice (right) differ over {frame:02x?}");
        (in_slice, outcome)
    }

    /// What the packets so far have made of the tables, in the kernel and in memory.
    pub fn changed(&self) -> [Changed; 2] {
        let keys = self.fragments.borrow();
        [changed(&self.kernel, &keys), changed(&self.memory, &keys)]
    }

    /// The flow tables of both.
    pub fn flow_tables(&self) -> [Vec<u64>; 2] {
        self.changed().map(|changed| changed.flows)
    }
}

impl Changed {
    /// What is different about it.
    pub fn difference(&self, other: &Self) -> String {
        let mut texts = Vec::new();
        let words = |flows: &[u64], way: usize| flows.get(way).copied();
        let ways = (0..self.flows.len()).filter(|&way| words(&self.flows, way) != words(&other.flows, way));
        texts.extend(ways.map(|way| format!("flow {:x?} {:x?}", self.flows[way], words(&other.flows, way))));
        let keys: BTreeSet<&TupleKey> = self.translations.keys().chain(other.translations.keys()).collect();
        for key in keys {
            let (one, two) = (self.translations.get(key), other.translations.get(key));
            texts.extend((one != two).then(|| format!("translation {key:?} {one:x?} {two:x?}")));
        }
        for (key, route) in &self.fragments {
            let two = other.fragments.get(key);
            texts.extend((Some(route) != two).then(|| format!("fragment {key:?} {route:x?} {two:x?}")));
        }
        let backends = self.backends.iter().zip(&other.backends).filter(|(one, two)| one != two);
        texts.extend(backends.map(|both| format!("backend {both:x?}")));
        let openings = self.openings.iter().zip(&other.openings).filter(|(one, two)| one != two);
        texts.extend(openings.map(|both| format!("opening {both:x?}")));
        texts.push(format!("timed {:?} {:?}", self.timed, other.timed));
        let senders = self.senders.iter().zip(&other.senders).filter(|(one, two)| one != two);
        texts.extend(senders.map(|both| format!("sender {both:x?}")));
        texts.push(format!("budget {:x} {:x}", self.icmp_budget, other.icmp_budget));
        texts.join("\n")
    }
}

fn changed(from: &impl Datapath, fragments: &BTreeSet<TupleKey>) -> Changed {
    let tables = from.tables();
    let slices = tables.slices().unwrap();
    let ways = slices.flows.iter().flat_map(|bucket| &bucket.ways);
    let fragment = |key: &TupleKey| Some((*key, route_words(&slices.fragments.fragment(key)?)));
    Changed {
        flows: ways.map(Word::load).collect(),
        translations: tables
            .translations()
            .map(|(key, translation, state)| (key, (translation, state)))
            .collect(),
        fragments: fragments.iter().filter_map(fragment).collect(),
        backends: slices.backends.iter().map(|backend| (backend.word.load(), backend.noted.load())).collect(),
        icmp_budget: slices.control.icmp_budget.load(),
        senders: slices.senders.iter().map(Word::load).collect(),
        verdicts: from.not_forwarded().unwrap(),
        traffic: from.forwarded().unwrap().backends,
        openings: datapath::noted(slices.openings).collect(),
        timed: from.timings().backends.iter().map(|(&id, timing)| (id, timing.count())).collect(),
    }
}

/// What a way of fragments says. What it does not need, its kind decides; there lies whatever lay there before.
fn route_words(route: &FragmentRoute) -> Vec<u64> {
    let FragmentRoute { source, destination, tick, service, backend, first, rest, vlan, kind } = *route;
    let mut words = vec![kind.into(), tick.into(), backend.into()];
    if kind != FragmentRoute::ANSWER {
        words.push(service.into());
    } else {
        words.extend([first, rest, vlan.into()]);
    }
    if kind != FragmentRoute::PLAIN {
        words.extend([source, destination].iter().flat_map(|address| address.words()).map(u64::from));
    }
    words
}

/// The map `fragments`, and a note of the keys in it: the kernel's map keeps no list.
struct Noting<'a> {
    map: &'a dyn Fragments,
    keys: &'a RefCell<BTreeSet<TupleKey>>,
}

impl Fragments for Noting<'_> {
    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.map.fragment(key)
    }

    fn set_fragment(&self, key: &TupleKey, route: &FragmentRoute) {
        self.keys.borrow_mut().insert(*key);
        self.map.set_fragment(key, route);
    }
}
