//! The object of the measuring programs → programs in the kernel that run a program under test on fresh frames.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};

use crate::samples::cpu_time;

/// Names the file with the object, if it is not where it is built to.
pub const OBJECT: &str = "SLUICE_BENCH_OBJECT";
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/bpfel-unknown-none/release/bench");

#[path = "../../../lb-ebpf/src/bench/settings.rs"]
mod settings;

pub use settings::{Settings, WORDS};

// SAFETY: plain integers without padding between them.
unsafe impl Pod for Settings {}

/// Where the object is.
pub fn built() -> PathBuf {
    std::env::var_os(OBJECT).map_or_else(|| PathBuf::from(BUILT), PathBuf::from)
}

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
        let mut start = [0; WORDS[WORDS.len() - 1] + size_of::<u64>()];
        let known = self.frame.len().min(start.len());
        start[..known].copy_from_slice(&self.frame[..known]);
        // Neither checksum nor source; of another family it is not used.
        let sum = sum(&start[14..24]) + sum(&start[30..34]);
        let replaced: &[Range<usize>] = match self.family {
            4 => &[24..26, 26..30, 34..36],
            6 => &[34..38, 54..56],
            _ => &[],
        };
        replaced.iter().for_each(|range| start[range.clone()].fill(0));
        let word = |at| u64::from_ne_bytes(std::array::from_fn(|byte| start[at + byte]));
        Settings {
            flows: self.flows,
            next: self.next,
            family: self.family,
            start: WORDS.map(word),
            sum,
            ..Settings::default()
        }
    }
}

impl Frames {
    /// Goes on by so many frames.
    fn advance(&mut self, sent: u32) {
        self.next += u64::from(sent);
        if self.flows != 0 {
            self.next %= self.flows;
        }
    }
}

/// What the 16-bit words of some bytes add up to.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]]))).sum()
}

/// Bytes as words.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    std::array::from_fn(|index| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * index + byte])))
}

/// The settings by which `forward` and `encapsulate` send everything from one host to another.
pub fn sending(macs: [[u8; 6]; 2], addresses: [Ipv4Addr; 2]) -> Settings {
    let [from, to] = addresses.map(|address| address.octets());
    let mut outer = [0; 20];
    // IPv4 without options, a hop limit, a packet of IPv4 inside.
    (outer[0], outer[8], outer[9]) = (0x45, 64, 4);
    outer[12..16].copy_from_slice(&from);
    outer[16..].copy_from_slice(&to);
    let sum = sum(&outer);
    let sum = (sum & 0xffff) + (sum >> 16);
    outer[10..12].copy_from_slice(&(sum as u16).to_ne_bytes());
    let [from, to] = macs;
    Settings { addresses: words(&[to, from].concat()), outer: words(&outer), ..Settings::default() }
}

/// Puts a program in the place of the one that a pinned link has on its interface, without a packet in between.
pub fn replace(link: &Path, program: &mut Xdp) -> Result<()> {
    let pinned = PinnedLink::from_pin(link).with_context(|| format!("opening {}", link.display()))?;
    let link = program.attach_to_link(XdpLink::try_from(FdLink::from(pinned))?)?;
    Ok(program.take_link(link).map(drop)?)
}

/// The loaded object. It runs on one CPU at a time.
pub struct Object {
    bpf: Ebpf,
    settings: Array<MapData, Settings>,
    subject: ProgramArray<MapData>,
}

impl Object {
    /// With a table of so many lines for `touch`.
    pub fn load(lines: u32) -> Result<Self> {
        let file = built();
        let mut loader = EbpfLoader::new();
        let loaded = loader.map_max_entries("lines", lines).load_file(&file);
        let mut bpf = loaded.with_context(|| format!("loading {}", file.display()))?;
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

    /// Attaches one of its programs to an interface of this thread's namespace, in driver mode.
    pub fn attach(&mut self, name: &str, interface: &str) -> Result<XdpLink> {
        let program = self.program(name)?;
        let link = program.attach(interface, XdpMode::Driver).with_context(|| format!("attaching {name}"))?;
        Ok(program.take_link(link)?)
    }

    pub fn set(&mut self, settings: Settings) -> Result<()> {
        Ok(self.settings.set(0, settings, 0)?)
    }

    /// Lets the program under test send so many frames, as [`Settings`] and `frames` say, out of an interface of this thread's
    /// namespace that one of this object's programs is attached to; says how much CPU time that took.
    pub fn send(&mut self, frames: &mut Frames, interface: u32, repeat: u32) -> Result<Duration> {
        self.set(frames.settings())?;
        // The context as the program would see it: no metadata, where the frame ends, the interface, its queue.
        let length = frames.frame.len() as u32;
        let context = [0, length, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
        let program = self.program("again")?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frames.frame);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        options.attrs = TestRunAttrs::new().xdp_live_frames(64);
        let before = cpu_time()?;
        program.test_run(options)?;
        let took = cpu_time()? - before;
        frames.advance(repeat);
        Ok(took)
    }

    /// Frames that `count` has counted.
    pub fn counted(&mut self) -> Result<u64> {
        let map = self.bpf.map("counted").context("no map `counted`")?;
        let counted: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map)?;
        Ok(counted.get(&0, 0)?.iter().sum())
    }

    /// Runs the program under test on so many frames, beside a table of so many lines, and says how long one took on average: in
    /// whole nanoseconds, as the kernel counts them.
    pub fn run(&mut self, frames: &mut Frames, growth: u32, lines: u32, repeat: u32) -> Result<Duration> {
        self.set(Settings { growth, lines, ..frames.settings() })?;
        let program = self.program("again")?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frames.frame);
        options.repeat = repeat;
        let took = program.test_run(options)?.duration;
        frames.advance(repeat);
        Ok(took)
    }
}
