//! An eBPF object and the pin directory → programs in the kernel, over the maps that are pinned or over new ones.

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, ProgramArray};
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use lb_common::abi::{self, map};

use super::direct::DirectTables;
use super::kernel::{LoadError, chain, pinned_map, sizes};
use super::loader;
use super::pins::PinDir;
use crate::core::image::Capacity;

/// The eBPF object, aligned as the loader wants it.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.bpf.o"));

/// Loads all programs over the maps that are pinned, or else over new ones of this capacity, which are pinned.
pub(super) fn load_programs(
    object: &[u8],
    pins: &PinDir,
    capacity: Capacity,
    log_packets: bool,
) -> Result<Ebpf, LoadError> {
    let tables = DirectTables::open_or_make(pins, capacity)?;
    let mut bpf = load_object(&tables.put_into(object), pins, capacity, log_packets)?;
    load_program::<Xdp>(&mut bpf, abi::PROGRAM, Xdp::load)?;
    load_program::<SchedClassifier>(&mut bpf, abi::CLOCK_PROGRAM, SchedClassifier::load)?;
    load_stages(&mut bpf)?;
    Ok(bpf)
}

/// Pins the programs in the place of those that are pinned.
pub(super) fn pin_programs(pins: &PinDir, bpf: &mut Ebpf) -> Result<(), LoadError> {
    for name in abi::programs() {
        let part = |cause: String| LoadError::Part { name, cause };
        pins.remove(&pins.program(name))?;
        let program = bpf.program_mut(name).ok_or_else(|| part("not in the object".into()))?;
        program.pin(pins.program(name)).map_err(|error| part(chain(&error)))?;
    }
    Ok(())
}

fn load_object(
    object: &[u8],
    pins: &PinDir,
    capacity: Capacity,
    log_packets: bool,
) -> Result<Ebpf, LoadError> {
    let log_level: &'static u8 = if log_packets { &u8::MAX } else { &0 };
    Ok(loader::load(object, |loader| {
        for (name, size) in sizes(capacity) {
            loader.map_max_entries(name, size);
        }
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        loader.override_global(abi::LOG_LEVEL, log_level, false);
    })?)
}

/// A program of the object, as the type it has there.
pub(super) fn program<'a, P>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let part = |cause: String| LoadError::Part { name, cause };
    let program = bpf.program_mut(name).ok_or_else(|| part("not in the object".into()))?;
    program.try_into().map_err(|error: ProgramError| part(chain(&error)))
}

/// How often the kernel is asked again to load a program, when it broke off because a signal came.
const INTERRUPTED_LOADS: u32 = 10;

/// Has the kernel verify and load a program of the object. A signal that comes meanwhile makes it break off.
pub(super) fn load_program<'a, P: 'a>(
    bpf: &'a mut Ebpf,
    name: &'static str,
    load: impl Fn(&mut P) -> Result<(), ProgramError>,
) -> Result<(), LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    Ok(again_if_interrupted(program(bpf, name)?, load, is_interrupted)?)
}

fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

fn again_if_interrupted<P, E>(
    program: &mut P,
    load: impl Fn(&mut P) -> Result<(), E>,
    is_interrupted: fn(&E) -> bool,
) -> Result<(), E> {
    for _ in 0..INTERRUPTED_LOADS {
        match load(program) {
            Err(error) if is_interrupted(&error) => {}
            result => return result,
        }
    }
    load(program)
}

/// Loads the programs of the stages, and lets the main one go on with them. A program that is attached meanwhile goes on with
/// them as well: of the same ABI version, they read and write the same tables.
fn load_stages(bpf: &mut Ebpf) -> Result<(), LoadError> {
    let failed = |error: MapError| LoadError::Part { name: map::STAGES, cause: chain(&error) };
    let stages = bpf.take_map(map::STAGES);
    let stages = stages.ok_or(LoadError::Part { name: map::STAGES, cause: "not in the object".into() })?;
    let mut stages = ProgramArray::try_from(stages).map_err(failed)?;
    for (name, stage) in abi::STAGE_PROGRAMS {
        load_program::<Xdp>(bpf, name, Xdp::load)?;
        let stage_program = program::<Xdp>(bpf, name)?;
        let descriptor = stage_program.fd()?;
        stages.set(stage as u32, descriptor, 0).map_err(failed)?;
    }
    Ok(())
}

/// The map `stages` that is pinned.
pub(super) fn stages(pins: &PinDir) -> Result<ProgramArray<MapData>, LoadError> {
    ProgramArray::try_from(Map::ProgramArray(pinned_map(pins, map::STAGES)?))
        .map_err(|error| LoadError::Part { name: map::STAGES, cause: chain(&error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads that fail with this error so many times: how many there are, and whether the last one is well.
    fn loads(error: libc::c_int, failures: u32) -> (u32, bool) {
        let mut loads = 0;
        let load = |loads: &mut u32| {
            *loads += 1;
            if *loads > failures { Ok(()) } else { Err(error) }
        };
        let loaded = again_if_interrupted(&mut loads, load, |error| *error == libc::EAGAIN);
        (loads, loaded.is_ok())
    }

    #[test]
    fn a_load_that_a_signal_breaks_off_is_begun_again() {
        assert_eq!(loads(libc::EAGAIN, 3), (4, true));
        assert_eq!(loads(libc::EAGAIN, u32::MAX), (INTERRUPTED_LOADS + 1, false));
        assert_eq!(loads(libc::EACCES, 1), (1, false), "what the verifier refuses");
    }
}
