//! The capturing programs → the place of the load balancer's, as long as somebody reads, and back.
//!
//! They work on the same pinned maps, so packets fare as before. Each link's program is replaced in one step, as when an agent
//! takes over. If the agent dies meanwhile, they go on forwarding, and stop to look at packets within seconds: the time until
//! when they do has to be put off again and again. The next agent replaces them.

use std::io;
use std::ptr::NonNull;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, Xdp};
use lb_common::abi::{self, CAPTURE_STAGES, CaptureControl, CaptureCounts, STAGE_PROGRAMS, capture_map, map};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::attach::replace;
use super::direct::DirectTables;
use super::kernel::{Kernel, LoadError, chain, sizes};
use super::loader;
use super::object::{load_program, program, stages};
use super::pins::PinDir;
use super::region::{Access, Region};
use crate::core::capture::{Counts, Wanted, WantedIds};
use crate::core::image::Capacity;

/// The eBPF object, aligned as the loader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture.bpf.o"));

/// Bytes of the ring buffer: some thousand packets.
const RECORDS_BYTES: u32 = 2 << 20;
/// How long packets are looked at without a sign that somebody reads.
const PATIENCE: Duration = Duration::from_secs(5);

/// The capturing programs, loaded.
pub struct CapturePrograms {
    object: Ebpf,
    capacity: Capacity,
    feed: CaptureFeed,
    records: Map,
}

/// What the programs hand over, one record a packet.
pub type CaptureRecords = RingBuf<MapData>;

/// What they are told, and what they count.
pub struct CaptureFeed {
    control: Region<CaptureControl>,
    counts: PerCpuArray<MapData, CaptureCounts>,
}

impl std::fmt::Debug for CapturePrograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CapturePrograms").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Has the object itself take no memory beside its copy: its pages are read from this program's file again when they are wanted.
fn let_go_of_object() {
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
    let page = usize::try_from(page).unwrap_or(usize::MAX);
    let before_first_page = OBJECT.as_ptr().align_offset(page);
    let bytes = OBJECT.len().saturating_sub(before_first_page) / page * page;
    if let Some(start) = OBJECT
        .get(before_first_page..)
        .map(<[u8]>::as_ptr)
        .and_then(|start| NonNull::new(start.cast_mut().cast()))
    {
        // SAFETY: whole pages of a constant, which nobody can have written to. If the kernel refuses, nothing changes.
        let _ = unsafe { madvise(start, bytes, MmapAdvise::MADV_DONTNEED) };
    }
}

impl CapturePrograms {
    /// Loads them over the pinned maps, which have this capacity. This takes the kernel about a second.
    pub fn load(pins: &PinDir, capacity: Capacity) -> Result<Self, LoadError> {
        let tables = DirectTables::open(pins)?;
        let filled = tables.put_into(OBJECT);
        let_go_of_object();
        let loaded = loader::load(&filled, |loader| {
            for (name, size) in sizes(capacity) {
                loader.map_max_entries(name, size);
            }
            for name in map::ALL {
                loader.map_pin_path(name, pins.map(name));
            }
            loader.map_max_entries(capture_map::RECORDS, RECORDS_BYTES);
            loader.override_global(abi::LOG_LEVEL, &0_u8, false);
        });
        drop(filled);
        let mut object = loaded?;
        load_program::<Xdp>(&mut object, abi::PROGRAM, Xdp::load)?;
        for (name, _) in STAGE_PROGRAMS {
            load_program::<Xdp>(&mut object, name, Xdp::load)?;
        }
        let (feed, records) = CaptureFeed::new(&mut object)?;
        Ok(Self { object, capacity, feed, records })
    }
}

impl CaptureFeed {
    fn new(object: &mut Ebpf) -> Result<(Self, Map), LoadError> {
        let mut take = |name: &'static str| {
            object.take_map(name).ok_or(LoadError::Part { name, cause: "not in the object".into() })
        };
        let failed =
            |name: &'static str| move |error: MapError| LoadError::Part { name, cause: chain(&error) };
        let control = match take(capture_map::CONTROL)? {
            Map::Array(control) => Region::map(control.fd(), 1, Access::Write)
                .map_err(|cause| LoadError::Io { what: capture_map::CONTROL, cause })?,
            _ => return Err(LoadError::Part { name: capture_map::CONTROL, cause: "not an array".into() }),
        };
        let counts =
            PerCpuArray::try_from(take(capture_map::COUNTS)?).map_err(failed(capture_map::COUNTS))?;
        Ok((Self { control, counts }, take(capture_map::RECORDS)?))
    }

    /// Says what is wanted. The programs must not be attached yet.
    pub fn want(&mut self, wanted: &Wanted, ids: &WantedIds) {
        if let Some(control) = self.control.records_mut().first_mut() {
            control.verdicts.store(wanted.verdicts);
            (control.network, control.mask) = (wanted.network.address.words(), wanted.network.mask);
            (control.port, control.snap, control.sample) = (wanted.port, wanted.snap, wanted.sample);
        }
        self.set_ids(ids);
        self.keep_alive();
    }

    /// Services and backends have other ids by now.
    pub fn set_ids(&self, ids: &WantedIds) {
        let Some(control) = self.control.records().first() else { return };
        control.service.store(ids.service.into());
        control.by_backend.store(ids.by_backend.into());
        for (word, first) in control.backends.iter().zip((0_u16..).step_by(64)) {
            let of_word = ids.backends.range(first..=first | 63);
            word.store(of_word.fold(0, |bits, id| bits | 1 << (id & 63)));
        }
    }

    /// Somebody reads: packets are looked at for some more seconds.
    pub fn keep_alive(&self) {
        let until = now().saturating_add(PATIENCE);
        if let Some(control) = self.control.records().first() {
            control.until.store(u64::try_from(until.as_nanos()).unwrap_or(0));
        }
    }

    /// Packets so far.
    pub fn counts(&self) -> Counts {
        let Ok(per_cpu) = self.counts.get(&0, 0) else { return Counts::default() };
        per_cpu.iter().fold(Counts::default(), |sum, one| Counts {
            seen: sum.seen + one.seen,
            wanted: sum.wanted + one.wanted,
            lost: sum.lost + one.lost,
        })
    }
}

/// What is to be added to the programs' times to have nanoseconds since 1970.
pub fn since_epoch_ns() -> i64 {
    let real = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
    i64::try_from(real.as_nanos().saturating_sub(now().as_nanos())).unwrap_or(0)
}

/// The clock of the programs.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

impl Kernel {
    /// Puts capturing programs into the place of the load balancer's, on every interface. What they hand over is to be read
    /// from what this yields, with what they are told.
    pub fn begin_capture(
        &mut self,
        pins: &PinDir,
        programs: CapturePrograms,
        wanted: &Wanted,
        ids: &WantedIds,
    ) -> Result<(CaptureFeed, CaptureRecords), LoadError> {
        let CapturePrograms { mut object, capacity, mut feed, records } = programs;
        if capacity != self.tables.capacity() {
            let cause = "the tables were given another size meanwhile; try again".to_owned();
            return Err(LoadError::Part { name: map::STAGES, cause });
        }
        feed.want(wanted, ids);
        let mut stages = stages(pins)?;
        for (name, stage) in STAGE_PROGRAMS {
            let descriptor = program::<Xdp>(&mut object, name)?.fd()?;
            stages
                .set(CAPTURE_STAGES + stage as u32, descriptor, 0)
                .map_err(|error| LoadError::Part { name: map::STAGES, cause: chain(&error) })?;
        }
        let switched = switch(program::<Xdp>(&mut object, abi::PROGRAM)?, pins);
        // A mapping counts as the agent's memory, as what the programs were loaded from does: one after the other.
        drop(object);
        let records = switched.and_then(|()| {
            RingBuf::try_from(records)
                .map_err(|error| LoadError::Part { name: capture_map::RECORDS, cause: chain(&error) })
        });
        match records {
            Ok(records) => Ok((feed, records)),
            Err(error) => {
                self.end_capture(pins)?;
                Err(error)
            }
        }
    }

    /// Puts the load balancer's programs back into their place, and lets go of those that capture.
    pub fn end_capture(&mut self, pins: &PinDir) -> Result<(), LoadError> {
        switch(self.program()?, pins)?;
        // A packet under way may still go on with their stages.
        super::kernel::wait_for_grace()
            .map_err(|error| LoadError::Io { what: error.action, cause: io::Error::other(error.cause) })?;
        forget_capture(pins)
    }
}

/// Lets go of capturing programs that are on no interface any more.
pub fn forget_capture(pins: &PinDir) -> Result<(), LoadError> {
    let mut stages = stages(pins)?;
    for (_, stage) in STAGE_PROGRAMS {
        // Where there is none, there is nothing to be done.
        let _ = stages.clear_index(&(CAPTURE_STAGES + stage as u32));
    }
    Ok(())
}

/// Puts a program onto every link.
fn switch(program: &mut Xdp, pins: &PinDir) -> Result<(), LoadError> {
    for interface in pins.linked_interfaces()? {
        match replace(program, pins, &interface) {
            // The interface is gone.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) => {}
            result => result?,
        }
    }
    Ok(())
}
