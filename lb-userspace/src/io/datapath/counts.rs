//! A per-CPU array of counters → its entries by CPU or the sums over all CPUs: of one entry, or of many with few system calls, for one
//! for each of thousands takes longer than the agent may be busy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use lb_common::abi::Traffic;

/// A command of linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Bytes that are read at once, unless a single entry takes more.
const AT_ONCE: usize = 64 << 10;
/// Words of an entry on each CPU.
const WORDS: usize = size_of::<Traffic>() / size_of::<u64>();

/// `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// An entry that one CPU has counted.
pub(super) fn by_first_cpu(traffic: Traffic) -> Result<Vec<Traffic>, MapError> {
    let cpus = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    let mut values = vec![Traffic::default(); cpus];
    if let Some(first) = values.first_mut() {
        *first = traffic;
    }
    Ok(values)
}

/// Packets by the CPU that the program ran on, from CPU 0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketsByCpu(pub Vec<u64>);

impl PacketsByCpu {
    /// Adds packets of each CPU, from CPU 0 on.
    pub(super) fn add(&mut self, packets: impl Iterator<Item = u64>) {
        for (cpu, packets) in packets.enumerate() {
            match self.0.get_mut(cpu) {
                Some(sum) => *sum += packets,
                None => self.0.push(packets),
            }
        }
    }
}

/// What is counted for backends or services, by id.
pub(super) struct Counts {
    array: PerCpuArray<MapData, Traffic>,
    fd: OwnedFd,
}

impl Counts {
    /// What is counted in a map.
    pub(super) fn new(map: MapData) -> Result<Self, MapError> {
        let fd = map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
        Ok(Self { array: PerCpuArray::try_from(Map::PerCpuArray(map))?, fd })
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u32 {
        self.array.len()
    }

    /// One entry, by CPU.
    pub(super) fn get(&self, at: u32) -> Result<Vec<Traffic>, MapError> {
        Ok(self.array.get(&at, 0)?.to_vec())
    }

    /// Replaces an entry.
    pub(super) fn set(&mut self, at: u32, by_cpu: Vec<Traffic>) -> Result<(), MapError> {
        self.array.set(at, PerCpuValues::try_from(by_cpu)?, 0)
    }

    /// The sums of the first entries, so many, in their order; the packets of all of these by CPU are added.
    pub(super) fn first(&self, count: usize, cpus: &mut PacketsByCpu) -> io::Result<Vec<Traffic>> {
        let entry = nr_cpus().map_err(|(_, error)| error)? * WORDS;
        let chunk = (AT_ONCE / (entry * size_of::<u64>())).clamp(1, count.max(1));
        let (mut keys, mut values) = (vec![0_u32; chunk], vec![0_u64; chunk * entry]);
        let mut sums = Vec::with_capacity(count);
        let mut last = None;
        while sums.len() < count {
            let (read, is_end) = lookup(&self.fd, &mut last, &mut keys, &mut values)?;
            let entries = values.chunks_exact(entry).take(read.min(count - sums.len()));
            sums.extend(entries.map(|entry| {
                let by_cpu = || entry.chunks_exact(WORDS).map(traffic);
                cpus.add(by_cpu().map(|traffic| traffic.packets));
                by_cpu().sum::<Traffic>()
            }));
            if is_end || read == 0 {
                break;
            }
        }
        Ok(sums)
    }
}

/// Reads the entries behind the key `last`, which becomes that of the last one; how many, and whether these were all.
fn lookup(
    array: &OwnedFd,
    last: &mut Option<u32>,
    keys: &mut [u32],
    values: &mut [u64],
) -> io::Result<(usize, bool)> {
    let mut next = 0_u32;
    let mut attributes = LookupBatch {
        in_batch: last.as_ref().map_or(0, |last| std::ptr::from_ref(last) as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: array.as_raw_fd().unsigned_abs(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and live; the keys and values they point to have room for `count` of
    // this map's: 4 bytes, and 64 for each possible CPU.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<LookupBatch>())
    };
    let error = io::Error::last_os_error();
    let is_end = result < 0 && error.raw_os_error() == Some(libc::ENOENT);
    if result < 0 && !is_end {
        return Err(error);
    }
    *last = Some(next);
    Ok((attributes.count as usize, is_end))
}

/// One CPU's counters, in the order of the record.
fn traffic(words: &[u64]) -> Traffic {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    Traffic {
        packets: word(0),
        bytes: word(1),
        new_flows: word(2),
        opened: word(3),
        repeated: word(4),
        answered: word(5),
        fins: word(6),
        resets: word(7),
    }
}
