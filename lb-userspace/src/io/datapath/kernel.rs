//! The embedded object and the pin directory → the program and maps in the kernel.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfError, Pod};
use lb_common::abi::{self, ABI_VERSION, Control, Traffic, Verdicts, map};
use lb_common::flow::Tick;
use lb_common::hash;

use super::accounts::{by_cpu, sum, write_failed};
use super::counts::{Counts, PacketsByCpu, by_first_cpu};
use super::fragments::KernelFragments;
use super::fresh::{nat_ports, random_key, tick_shift};
use super::object::{OBJECT, load_programs, pin_programs, program};
use super::pins::{PinDir, PinError, Pinned, records_in};
use super::region::{Access, Large, Record, Region};
use super::rings::Rings;
use super::{Account, Datapath, DatapathError, Forwarded, TableSet};
use crate::core::image::Capacity;
use crate::core::stats::ProgramRuns;

/// How long to wait where the kernel cannot say when packets under way are done.
const NO_MEMBARRIER_WAIT: Duration = Duration::from_millis(50);

/// Why the datapath cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel refused the object.
    #[error("the kernel does not load the program: {cause} (needs root, Linux 6.1 or later with BTF)", cause = chain(.0))]
    Object(#[from] EbpfError),
    /// The verifier refused the program.
    #[error("the kernel does not load the program: {cause}", cause = chain(.0))]
    Program(#[from] ProgramError),
    /// A map or program is missing or cannot be used.
    #[error("{name}: {cause}")]
    Part {
        /// Its name.
        name: &'static str,
        /// Why.
        cause: String,
    },
    /// Nothing is pinned.
    #[error("{path}: nothing is loaded there; start `sluice agent`, or name its --pin-dir", path = .0.display())]
    NothingPinned(PathBuf),
    /// The flow table is to be made smaller than what it holds.
    #[error(
        "agent.flow_table_size: {0} live flows would find no place in a flow table of that size: choose a larger one, or \
         wait until they have ended"
    )]
    FlowTableTooSmall(u64),
    /// The table of translations is to be made smaller than what it holds.
    #[error(
        "agent.nat_table_size: {connections} connections are open, and {without_place} of them would find no place in a table \
         of that size: choose a larger one, or wait until they have ended"
    )]
    NatTableTooSmall {
        /// Connections there are.
        connections: u64,
        /// Those that do not fit.
        without_place: u64,
    },
    /// The operating system said no.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// The XDP action it returned.
    pub action: u32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
    /// Time one run took, on average.
    pub duration: Duration,
}

/// The datapath in the kernel.
pub struct Kernel {
    pub(super) tables: TableSet,
    pub(super) verdicts: PerCpuArray<MapData, Verdicts>,
    pub(super) service_traffic: Counts,
    pub(super) backend_traffic: Counts,
    clock: SchedClassifier,
    pub(super) program: Option<Ebpf>,
    /// What the program is loaded from.
    pub(super) object: Cow<'static, [u8]>,
}

impl Kernel {
    /// Loads the program over the pinned maps, or over new ones of this capacity, and pins both. Says whether maps were
    /// adopted, which keep their sizes. What a former agent left of a change of sizes is brought to its end.
    pub fn load(pins: &PinDir, wanted: Capacity, log_packets: bool) -> Result<(Self, bool), LoadError> {
        Self::load_from(Cow::Borrowed(OBJECT), pins, wanted, log_packets)
    }

    /// The same with another object than the one that is built in; it must use maps of the same names and records.
    pub fn load_from(
        object: Cow<'static, [u8]>,
        pins: &PinDir,
        wanted: Capacity,
        log_packets: bool,
    ) -> Result<(Self, bool), LoadError> {
        let adopted = adopted_capacity(pins)?;
        if adopted.is_none() {
            pins.remove_maps()?;
        }
        let mut bpf = load_programs(&object, pins, adopted.unwrap_or(wanted), log_packets)?;
        pin_programs(pins, &mut bpf)?;
        let mut kernel = Self { program: Some(bpf), object, ..Self::open(pins, Access::Write)? };
        match adopted {
            None => kernel.initialise()?,
            Some(_) => kernel.finish_resize(pins)?,
        }
        Ok((kernel, adopted.is_some()))
    }

    /// Opens what is pinned. With [`Access::Read`] this disturbs nobody, and nothing may be changed.
    pub fn open(pins: &PinDir, access: Access) -> Result<Self, LoadError> {
        if access == Access::Read && adopted_capacity(pins)?.is_none() {
            return Err(LoadError::NothingPinned(pins.path().to_owned()));
        }
        let clock = SchedClassifier::from_pin(pins.program(abi::CLOCK_PROGRAM))?;
        Ok(Self {
            tables: TableSet {
                control: region(pins, map::CONTROL, access)?,
                vips: region(pins, map::VIPS, access)?,
                services: region(pins, map::SERVICES, access)?,
                backends: region(pins, map::BACKENDS, access)?,
                rings: rings(pins)?,
                flows: large(pins, map::FLOWS, access)?,
                openings: region(pins, map::OPENINGS, access)?,
                service_latency: region(pins, map::SERVICE_LATENCY, access)?,
                backend_latency: region(pins, map::BACKEND_LATENCY, access)?,
                service_names: region(pins, map::SERVICE_NAMES, access)?,
                backend_names: region(pins, map::BACKEND_NAMES, access)?,
                translations: large(pins, map::TRANSLATIONS, access)?,
                fragments: Box::new(fragments(pins)?),
                senders: region(pins, map::SENDERS, access)?,
                known_rings: RefCell::default(),
                fresh_hops: HashSet::new(),
                copies: false,
            },
            verdicts: counters(pins, map::VERDICTS)?,
            service_traffic: counts(pins, map::SERVICE_TRAFFIC)?,
            backend_traffic: counts(pins, map::BACKEND_TRAFFIC)?,
            clock,
            program: None,
            object: Cow::Borrowed(OBJECT),
        })
    }

    /// The program, to attach it.
    pub(super) fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        let bpf = self
            .program
            .as_mut()
            .ok_or(LoadError::Part { name: abi::PROGRAM, cause: "not loaded".into() })?;
        program(bpf, abi::PROGRAM)
    }

    /// The loaded object, for the log of packets.
    pub fn object(&mut self) -> Option<&mut Ebpf> {
        self.program.as_mut()
    }

    /// Sends one frame through the program, `repeat` times, without a network (`BPF_PROG_TEST_RUN`).
    pub fn run_frame(&mut self, frame: &[u8], repeat: u32) -> Result<FrameRun, LoadError> {
        let mut out = vec![0; frame.len() + abi::HEADROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        let result = self.program()?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(FrameRun { action: result.return_value, frame: out, duration: result.duration })
    }

    /// Instructions the verifier went through for the program.
    pub fn verified_instructions(&mut self) -> Result<Option<u32>, LoadError> {
        Ok(self.program()?.info()?.verified_instruction_count())
    }

    /// How long the program ran so far; none while the kernel does not count that (`kernel.bpf_stats_enabled`).
    pub fn runs(&self) -> Option<ProgramRuns> {
        let counts =
            std::fs::read("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|value| value.starts_with(b"1"));
        let info = self.program.as_ref().filter(|_| counts)?.program(abi::PROGRAM)?.info().ok()?;
        let nanoseconds = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
        Some(ProgramRuns { count: info.run_count(), nanoseconds })
    }

    /// Lets rings be asked with the key of this seed.
    pub fn set_ring_seed(&mut self, seed: u64) {
        let key = hash::expand(seed);
        if let Some(control) = self.tables.control_mut()
            && control.ring_key != key
        {
            control.ring_key = key;
        }
    }

    /// Leaves to the host the ports that it gives to its own connections now; says whether they have changed. What is translated goes on
    /// with the ports that it has.
    pub fn leave_host_ports(&mut self) -> bool {
        let Some(ports) = nat_ports() else { return false };
        let Some(control) = self.tables.control_mut().filter(|control| control.nat_ports != ports) else {
            return false;
        };
        control.nat_ports = ports;
        true
    }

    /// Fills in what new maps need before they may be called finished.
    fn initialise(&mut self) -> Result<(), LoadError> {
        let flow_key = random_key()?;
        let tick_shift = tick_shift()?;
        let nat_ports = nat_ports().unwrap_or_default();
        let capacity = self.tables.capacity();
        if let Some(control) = self.tables.control_mut() {
            control.flow_buckets = capacity.flow_buckets;
            control.vip_buckets = capacity.vip_buckets;
            control.translation_buckets = capacity.translation_buckets();
            control.tick_shift = tick_shift;
            control.flow_key = flow_key;
            control.nat_ports = nat_ports;
            control.abi_version.store(ABI_VERSION.into());
        }
        Ok(())
    }
}

impl Datapath for Kernel {
    fn tables(&self) -> &TableSet {
        &self.tables
    }

    fn tables_mut(&mut self) -> &mut TableSet {
        &mut self.tables
    }

    fn wait_for_grace(&self) -> Result<(), DatapathError> {
        wait_for_grace()
    }

    fn now(&self) -> Result<Tick, DatapathError> {
        let failed = |cause: String| DatapathError { action: "reading the datapath's clock", cause };
        let mut options = TestRunOptions::new();
        // The shortest frame the kernel lets a program be run on.
        options.data_in = Some(&[0; 14]);
        let result = self.clock.test_run(options).map_err(|error| failed(chain(&error)))?;
        Ok(Tick(result.return_value))
    }

    fn not_forwarded(&self) -> Result<Verdicts, DatapathError> {
        Ok(sum(&by_cpu(&self.verdicts)?))
    }

    fn traffic(&self, account: Account) -> Result<Traffic, DatapathError> {
        Ok(self.traffic_by_cpu(account)?.iter().copied().sum())
    }

    fn traffic_by_backend(&self) -> Result<BTreeMap<u16, Traffic>, DatapathError> {
        self.of_backends(&mut PacketsByCpu::default())
    }

    fn accounts(&self) -> Result<Forwarded, DatapathError> {
        let mut cpus = PacketsByCpu::default();
        let gone = self.traffic_by_cpu(Account::Gone)?;
        cpus.add(gone.iter().map(|traffic| traffic.packets));
        let (backends, services) = (self.of_backends(&mut cpus)?, self.of_services(&mut cpus)?);
        Ok(Forwarded { backends, services, all: gone.iter().copied().sum(), cpus })
    }

    fn set_traffic(&mut self, account: Account, traffic: Traffic) -> Result<(), DatapathError> {
        self.set_traffic_by_cpu(account, by_first_cpu(traffic).map_err(write_failed)?)
    }

    /// For each CPU by itself.
    fn add_traffic(&mut self, from: Account, to: Account) -> Result<(), DatapathError> {
        let mut sums = self.traffic_by_cpu(to)?;
        for (sum, traffic) in sums.iter_mut().zip(self.traffic_by_cpu(from)?.iter()) {
            *sum += *traffic;
        }
        self.set_traffic_by_cpu(to, sums)
    }
}

/// Returns when no packet is under way in any program: membarrier(2)'s global command returns after an RCU grace period, and XDP programs run within RCU read sections.
pub(super) fn wait_for_grace() -> Result<(), DatapathError> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) {
        // Refused on kernels with full dynticks CPUs: a packet's way through the program takes microseconds.
        std::thread::sleep(NO_MEMBARRIER_WAIT);
        return Ok(());
    }
    Err(DatapathError { action: "waiting for packets under way", cause: error.to_string() })
}

/// The capacity of the pinned maps if they are finished and of this version.
pub(super) fn adopted_capacity(pins: &PinDir) -> Result<Option<Capacity>, LoadError> {
    let Pinned::Maps(capacity) = pins.pinned()? else { return Ok(None) };
    let control: Region<Control> = region(pins, map::CONTROL, Access::Read)?;
    match control.records().first().map(|control| control.abi_version.load()) {
        None | Some(0) => Ok(None),
        Some(version) if version == u64::from(ABI_VERSION) => Ok(Some(capacity)),
        Some(version) => {
            let age = if version > u64::from(ABI_VERSION) { "later" } else { "earlier" };
            let what = format!("ABI version {version}, {age} than this one's {ABI_VERSION}");
            Err(pins.incompatible(what).into())
        }
    }
}

/// The sizes of the maps that have no fixed one.
pub(super) fn sizes(capacity: Capacity) -> [(&'static str, u32); 12] {
    [
        (map::VIPS, capacity.vip_buckets * 2),
        (map::SERVICES, capacity.services),
        (map::BACKENDS, capacity.backends + 1),
        (map::RINGS, capacity.rings),
        (map::FLOWS, capacity.flow_buckets),
        (map::SERVICE_TRAFFIC, capacity.services + 1),
        (map::BACKEND_TRAFFIC, capacity.backends + 1),
        (map::SERVICE_LATENCY, capacity.services + 1),
        (map::BACKEND_LATENCY, capacity.backends + 1),
        (map::SERVICE_NAMES, capacity.services),
        (map::BACKEND_NAMES, capacity.backends + 1),
        (map::TRANSLATIONS, capacity.translation_buckets()),
    ]
}

fn region<T: Record>(pins: &PinDir, name: &'static str, access: Access) -> Result<Region<T>, LoadError> {
    let map = pinned_map(pins, name)?;
    Region::map(map.fd(), entries(&map, name)?, access)
        .map_err(|error| LoadError::Part { name, cause: format!("cannot be mapped: {error}") })
}

/// Records in a pinned map.
pub(super) fn entries(map: &MapData, name: &'static str) -> Result<u32, LoadError> {
    let part = |cause: String| LoadError::Part { name, cause };
    let info = map.info().map_err(|error| part(chain(&error)))?;
    records_in(name, &info).ok_or_else(|| part("of another shape".into()))
}

fn large<T: Record>(pins: &PinDir, name: &'static str, access: Access) -> Result<Large<T>, LoadError> {
    let map = pinned_map(pins, name)?;
    Large::new(map.fd(), entries(&map, name)?, access)
        .map_err(|error| LoadError::Part { name, cause: error.to_string() })
}

fn rings(pins: &PinDir) -> Result<Rings, LoadError> {
    let map = pinned_map(pins, map::RINGS)?;
    let count = entries(&map, map::RINGS)?;
    Rings::kernel(map, count).map_err(|error| LoadError::Part { name: map::RINGS, cause: chain(&error) })
}

fn fragments(pins: &PinDir) -> Result<KernelFragments, LoadError> {
    KernelFragments::new(pinned_map(pins, map::FRAGMENTS)?)
        .map_err(|error| LoadError::Part { name: map::FRAGMENTS, cause: chain(&error) })
}

fn counters<T: Pod>(pins: &PinDir, name: &'static str) -> Result<PerCpuArray<MapData, T>, LoadError> {
    PerCpuArray::try_from(Map::PerCpuArray(pinned_map(pins, name)?))
        .map_err(|error| LoadError::Part { name, cause: chain(&error) })
}

fn counts(pins: &PinDir, name: &'static str) -> Result<Counts, LoadError> {
    Counts::new(pinned_map(pins, name)?).map_err(|error| LoadError::Part { name, cause: chain(&error) })
}

pub(super) fn pinned_map(pins: &PinDir, name: &'static str) -> Result<MapData, LoadError> {
    MapData::from_pin(pins.map(name)).map_err(|error| LoadError::Part { name, cause: chain(&error) })
}
