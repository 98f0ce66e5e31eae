//! The decapsulating program's object → the program on an interface. Nothing is pinned: it goes with the process.

use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp, XdpMode};
use lb_common::abi::{self, DECAP_BUCKETS, DecapControl, SourcePrefix, Verdicts, VipBucket, decap_map};

use super::accounts::{by_cpu, sum};
use super::attach::is_busy;
use super::kernel::{FrameRun, LoadError, chain, wait_for_grace};
use super::loader;
use super::object::{load_program, program};
use super::region::{Access, Record, Region};
use super::{Attached, DatapathError};

/// The eBPF object, aligned as the loader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap.bpf.o"));

/// Why the program cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum DecapAttachError {
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no such interface.
    #[error("there is no interface {0:?} here; `ip link` lists those there are")]
    NoInterface(String),
    /// Another XDP program is on the interface.
    #[error(
        "{0}: another XDP program is attached; if it is not needed: `ip link set dev {0} xdp off`, or, where a BPF link holds \
         it (`bpftool link` shows it), end the process that does, or `sluice detach --pin-dir DIR` if it is another Sluice's"
    )]
    Busy(String),
    /// Anything else.
    #[error("{interface}: cannot attach the program: {cause}")]
    Other {
        /// The interface.
        interface: String,
        /// Why.
        cause: String,
    },
}

/// The program in the kernel, and its maps.
pub struct Decapsulator {
    // Dropped first: without a link no packet meets the rest.
    link: Option<FdLink>,
    control: Region<DecapControl>,
    addresses: Region<VipBucket>,
    verdicts: PerCpuArray<MapData, Verdicts>,
    object: Ebpf,
}

impl Decapsulator {
    /// Loads the program, which accepts tunnels from these sources, at most [`abi::MAX_DECAP_SOURCES`]. No address is
    /// known to it yet, so it leaves everything to the host.
    pub fn load(sources: &[SourcePrefix]) -> Result<Self, LoadError> {
        let mut object = loader::load(OBJECT, |_| ())?;
        load_program::<Xdp>(&mut object, abi::DECAP_PROGRAM, Xdp::load)?;
        let mut control: Region<DecapControl> = region(&object, decap_map::CONTROL)?;
        let mut listed: Region<SourcePrefix> = region(&object, decap_map::SOURCES)?;
        if sources.len() > listed.records().len() {
            let cause = format!("no room for {} sources", sources.len());
            return Err(LoadError::Part { name: decap_map::SOURCES, cause });
        }
        let mut count = 0;
        for (record, source) in listed.records_mut().iter_mut().zip(sources) {
            *record = *source;
            count += 1;
        }
        if let Some(control) = control.records_mut().first_mut() {
            control.sources = count;
        }
        let addresses = region(&object, decap_map::ADDRESSES)?;
        let part = |cause: String| LoadError::Part { name: decap_map::VERDICTS, cause };
        let verdicts = object.take_map(decap_map::VERDICTS).ok_or_else(|| part(MISSING.into()))?;
        let verdicts = PerCpuArray::try_from(verdicts).map_err(|error| part(chain(&error)))?;
        Ok(Self { link: None, control, addresses, verdicts, object })
    }

    /// Puts another table of addresses in force, of [`DECAP_BUCKETS`] buckets: in any instant a packet meets the old one
    /// or the new one, whole.
    pub fn set_addresses(&mut self, table: &[VipBucket]) -> Result<(), DatapathError> {
        let Some(control) = self.control.records().first() else { return Ok(()) };
        let first = if control.first_bucket.load() == 0 { DECAP_BUCKETS } else { 0 };
        // A packet may still be looking at the half that was in force before the last time.
        wait_for_grace()?;
        let half = self.addresses.records_mut().iter_mut().skip(first as usize);
        for (bucket, wanted) in half.zip(table) {
            *bucket = *wanted;
        }
        control.first_bucket.store(first.into());
        Ok(())
    }

    /// Attaches the program: in the driver, or in generic mode where that is not possible. It stays until
    /// [`Self::detach`], or until the process ends in any way.
    pub fn attach(&mut self, interface: &str) -> Result<Attached, DecapAttachError> {
        let program = program::<Xdp>(&mut self.object, abi::DECAP_PROGRAM)?;
        match link(program, interface, XdpMode::Driver) {
            Ok(link) => {
                self.link = Some(link);
                Ok(Attached::New)
            }
            Err(DecapAttachError::Other { cause, .. }) => {
                self.link = Some(link(program, interface, XdpMode::Skb)?);
                Ok(Attached::Fallback(cause))
            }
            Err(error) => Err(error),
        }
    }

    /// Detaches the program; when this returns no packet is under way in it.
    pub fn detach(&mut self) -> Result<(), DatapathError> {
        self.link = None;
        wait_for_grace()
    }

    /// Packets by [`lb_common::decap::Verdict`], over all CPUs.
    pub fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        Ok(sum(&by_cpu(&self.verdicts)?))
    }

    /// Sends one frame through the program without a network (`BPF_PROG_TEST_RUN`).
    pub fn run_frame(&mut self, frame: &[u8]) -> Result<FrameRun, LoadError> {
        let mut out = vec![0; frame.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = program::<Xdp>(&mut self.object, abi::DECAP_PROGRAM)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(FrameRun { action: result.return_value, frame: out, duration: result.duration })
    }

    /// Instructions the verifier went through for the program.
    pub fn verified_instructions(&mut self) -> Result<Option<u32>, LoadError> {
        let program = program::<Xdp>(&mut self.object, abi::DECAP_PROGRAM)?;
        Ok(program.info()?.verified_instruction_count())
    }
}

const MISSING: &str = "not in the object";

fn region<T: Record>(object: &Ebpf, name: &'static str) -> Result<Region<T>, LoadError> {
    let part = |cause: String| LoadError::Part { name, cause };
    let Some(Map::Array(map)) = object.map(name) else { return Err(part(MISSING.into())) };
    let entries = map.info().map_err(|error| part(chain(&error)))?.max_entries();
    Region::map(map.fd(), entries, Access::Write).map_err(|error| part(format!("cannot be mapped: {error}")))
}

/// Attaches by a link that the kernel removes with its last descriptor.
fn link(program: &mut Xdp, interface: &str, mode: XdpMode) -> Result<FdLink, DecapAttachError> {
    let other = |error: &dyn std::error::Error| DecapAttachError::Other {
        interface: interface.to_owned(),
        cause: chain(error),
    };
    let id = program.attach(interface, mode).map_err(|error| match &error {
        ProgramError::UnknownInterface { .. } => DecapAttachError::NoInterface(interface.to_owned()),
        ProgramError::SyscallError(call) if is_busy(&call.io_error) => {
            DecapAttachError::Busy(interface.to_owned())
        }
        _ => other(&error),
    })?;
    let link = program.take_link(id).map_err(|error| other(&error))?;
    FdLink::try_from(link).map_err(|error| other(&error))
}
