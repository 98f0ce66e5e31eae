//! One frame through the kernel and through the slice implementation, over equal tables.

use lb_common::abi::{HEADROOM, Verdicts, Word};
use lb_common::datapath::{self, Action, Outcome};
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::verdict::Verdict;
use lb_userspace::core::image::Wanted;
use lb_userspace::io::datapath::{Datapath, Kernel, Memory};

use super::{Pins, SEED, apply, capacity, kernel};

/// The interface that `BPF_PROG_TEST_RUN` has frames come in on: the loopback.
const INTERFACE: u32 = 1;
/// The shortest frame that the kernel lets a program be run on.
pub const SHORTEST: usize = 14;

/// The longest tick that 32 bits of jiffies tell all 14 bits of.
const LONG_TICK_SHIFT: u32 = 18;

/// The kernel's datapath and its twin in memory.
pub struct Twins {
    pub kernel: Kernel,
    pub memory: Memory,
    counted: Verdicts,
    _pins: Pins,
}

/// What became of a frame, in both.
#[derive(Debug, PartialEq, Eq)]
pub struct Result {
    pub action: u32,
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    /// Entries of the flow table that made way, by kind.
    pub evictions: [u64; 4],
}

impl Twins {
    pub fn new(wanted: &Wanted) -> Self {
        let pins = Pins::new();
        let mut kernel = kernel(&pins, wanted);
        let mut memory = Memory::new(capacity(), SEED);
        let control = kernel.tables_mut().control_mut().unwrap();
        // Ticks of a quarter of an hour: the twins are to run within one, or they age entries differently.
        control.tick_shift = LONG_TICK_SHIFT;
        memory.tables_mut().control_mut().unwrap().flow_key = control.flow_key;
        apply(&mut memory, wanted);
        let counted = kernel.verdicts(&kernel.forwarded().unwrap()).unwrap();
        Self { kernel, memory, counted, _pins: pins }
    }

    /// Says in both which interface frames come in on.
    pub fn set_own_mac(&self, mac: [u8; 6]) {
        self.kernel.tables().set_interfaces(&[(INTERFACE, mac)]);
        self.memory.tables().set_interfaces(&[(INTERFACE, mac)]);
    }

    /// Runs a frame through the kernel.
    pub fn through_kernel(&mut self, frame: &[u8]) -> Result {
        let run = self.kernel.run_frame(frame, 1).unwrap();
        let now = self.kernel.verdicts(&self.kernel.forwarded().unwrap()).unwrap();
        let counted = now.packets.iter().zip(self.counted.packets).map(|(now, before)| now - before);
        let counted: Vec<(usize, u64)> = counted.enumerate().filter(|(_, count)| *count > 0).collect();
        let mut evictions = now.evictions;
        for (now, before) in evictions.iter_mut().zip(self.counted.evictions) {
            *now -= before;
        }
        self.counted = now;
        let [(verdict, 1)] = counted[..] else { panic!("one frame counted as {counted:?}") };
        Result { action: run.action, verdict: Verdict::ALL[verdict], frame: run.frame, evictions }
    }

    /// Runs a frame through the slice implementation.
    pub fn through_slice(&mut self, frame: &[u8]) -> (Result, Outcome) {
        self.through_slice_with(frame, HEADROOM)
    }

    /// The same with so many bytes of room in front.
    pub fn through_slice_with(&mut self, frame: &[u8], headroom: usize) -> (Result, Outcome) {
        self.memory.now = self.kernel.now().unwrap();
        let mut buffer = [vec![0; headroom], frame.to_vec()].concat();
        let mut tables = SliceTables::new(self.memory.tables().slices().unwrap(), self.memory.now, |_| ());
        let control = self.memory.tables().control().unwrap();
        tables.icmp_budget = Word::new(control.icmp_budget.load());
        let mut packet = SlicePacket::new(&mut buffer, headroom, INTERFACE);
        let outcome = datapath::process(&mut packet, &tables);
        control.icmp_budget.store(tables.icmp_budget.load());
        let verdicts = tables.verdicts.into_inner();
        assert_eq!(verdicts.packets.iter().sum::<u64>(), 1, "counted once");
        assert_eq!(verdicts.packets[outcome.verdict.index()], 1);
        let action = match outcome.action {
            Action::Drop => 1,
            Action::Pass => 2,
            Action::Transmit => 3,
            Action::Redirect => 4,
        };
        let (verdict, evictions) = (outcome.verdict, verdicts.evictions);
        (Result { action, verdict, frame: packet.bytes().to_vec(), evictions }, outcome)
    }

    /// Runs a frame through both, and insists that they agree.
    pub fn agree(&mut self, frame: &[u8]) -> Outcome {
        self.agreed(frame).1
    }

    /// The same, with what became of it.
    pub fn agreed(&mut self, frame: &[u8]) -> (Result, Outcome) {
        let (in_slice, outcome) = self.through_slice(frame);
        if frame.len() >= SHORTEST {
            let in_kernel = self.through_kernel(frame);
            assert_eq!(in_kernel, in_slice, "kernel (left) and slice (right) differ over {frame:02x?}");
        }
        (in_slice, outcome)
    }

    /// The flow tables of both.
    pub fn flow_tables(&self) -> [Vec<u64>; 2] {
        let entries = |tables: &lb_userspace::io::datapath::TableSet| {
            let slices = tables.slices().unwrap();
            slices.flows.iter().flat_map(|bucket| bucket.ways.iter().map(|way| way.load())).collect()
        };
        [entries(self.kernel.tables()), entries(self.memory.tables())]
    }
}
