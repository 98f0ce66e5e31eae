//! The object of the measuring programs → programs in the kernel that run a program under test on fresh frames.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};

use crate::samples::cpu_time;

/// Names the file with the object; `cargo xtask bench` builds it.
const OBJECT: &str = "SLUICE_BENCH_OBJECT";

/// What is asked of the programs; `lb-ebpf/src/bench/maps.rs` has the same.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Settings {
    pub flows: u64,
    pub next: u64,
    pub length: u32,
    pub family: u32,
    pub start: [u8; 32],
    pub start_rest: [u8; 32],
    pub more: [u8; 16],
    pub growth: u32,
    pub addresses: [u8; 12],
    pub outer: [u8; 20],
    pub padding: u32,
}

// SAFETY: plain integers without padding between them.
unsafe impl Pod for Settings {}

const _: () = assert!(size_of::<Settings>() == 144);

/// Frames to run a program on.
#[derive(Clone, Debug)]
pub struct Frames {
    pub frame: Vec<u8>,
    /// Whose source is made that of the next flow: 4, 6, or 0 for none.
    pub family: u32,
    /// Flows that take turns; 0 for ever-new ones.
    pub flows: u64,
    /// The flow of the next frame.
    pub next: u64,
}

impl Frames {
    pub fn settings(&self) -> Settings {
        let mut start = [0; 80];
        let known = self.frame.len().min(start.len());
        start[..known].copy_from_slice(&self.frame[..known]);
        let part = |from: usize| start[from..from + 32].try_into().expect("32 of 80 bytes");
        Settings {
            flows: self.flows,
            next: self.next,
            length: self.frame.len() as u32,
            family: self.family,
            start: part(0),
            start_rest: part(32),
            more: start[64..].try_into().expect("16 of 80 bytes"),
            ..Settings::default()
        }
    }
}

/// The loaded object. It runs on one CPU at a time.
pub struct Object {
    bpf: Ebpf,
    settings: Array<MapData, Settings>,
    subject: ProgramArray<MapData>,
}

impl Object {
    pub fn load() -> Result<Self> {
        let file = PathBuf::from(std::env::var_os(OBJECT).with_context(|| format!("{OBJECT} is not set"))?);
        let mut bpf = Ebpf::load_file(&file).with_context(|| format!("loading {}", file.display()))?;
        let names: Vec<String> = bpf.programs().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let program: &mut Xdp = bpf.program_mut(&name).context("listed just now")?.try_into()?;
            program.load().with_context(|| format!("loading the measuring program {name}"))?;
        }
        let settings = Array::try_from(bpf.take_map("settings").context("no map `settings`")?)?;
        let subject = ProgramArray::try_from(bpf.take_map("subject").context("no map `subject`")?)?;
        Ok(Self { bpf, settings, subject })
    }

    /// One of its programs.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.bpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Makes one of its own programs the one under test.
    pub fn test_own(&mut self, name: &str) -> Result<()> {
        let program = self.program(name)?.fd()?.try_clone()?;
        self.test(&program)
    }

    /// Makes this the program under test.
    pub fn test(&mut self, program: &ProgramFd) -> Result<()> {
        Ok(self.subject.set(0, program, 0)?)
    }

    pub fn set(&mut self, settings: Settings) -> Result<()> {
        Ok(self.settings.set(0, settings, 0)?)
    }

    /// Runs the program under test on so many frames, and says how much CPU time that took.
    pub fn run(&mut self, frames: &mut Frames, growth: u32, repeat: u32) -> Result<Duration> {
        self.set(Settings { growth, ..frames.settings() })?;
        let program = self.program("again")?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frames.frame);
        options.repeat = repeat;
        let before = cpu_time()?;
        program.test_run(options)?;
        let took = cpu_time()? - before;
        frames.next += u64::from(repeat);
        if frames.flows != 0 {
            frames.next %= frames.flows;
        }
        Ok(took)
    }
}
