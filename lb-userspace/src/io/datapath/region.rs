//! Memory that holds an array of shared records: a mapped BPF array, all the time or while someone looks at it, or the heap.

use std::alloc::{self, Layout};
use std::cell::OnceCell;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use lb_common::abi::{
    Backend, CaptureControl, Control, DecapControl, FlowBucket, Latency, Name, ProbeTarget, Ring, Service,
    SourcePrefix, TranslationBucket, VipBucket, Word,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of the parts in which many records are looked at: whole pages, and whole records of all that are so many.
const PART_BYTES: usize = 1 << 20;

/// A record that may live in a region.
///
/// # Safety
///
/// Every bit pattern is a value; it needs no drop.
pub unsafe trait Record {}

// SAFETY: integers, and arrays and structures of them.
unsafe impl Record for Backend {}
// SAFETY: as above.
unsafe impl Record for CaptureControl {}
// SAFETY: as above.
unsafe impl Record for Control {}
// SAFETY: as above.
unsafe impl Record for DecapControl {}
// SAFETY: as above.
unsafe impl Record for FlowBucket {}
// SAFETY: as above.
unsafe impl Record for Latency {}
// SAFETY: as above.
unsafe impl Record for Name {}
// SAFETY: as above.
unsafe impl Record for ProbeTarget {}
// SAFETY: as above.
unsafe impl Record for Ring {}
// SAFETY: as above.
unsafe impl Record for Service {}
// SAFETY: as above.
unsafe impl Record for SourcePrefix {}
// SAFETY: as above.
unsafe impl Record for TranslationBucket {}
// SAFETY: as above.
unsafe impl Record for VipBucket {}
// SAFETY: as above.
unsafe impl Record for Word {}

/// An array of records that the kernel's program may read, and change through [`lb_common::abi::Word`]s, at any time.
pub struct Region<T: Record> {
    records: NonNull<T>,
    count: usize,
    mapped: bool,
}

// SAFETY: the region owns its memory; nothing in it is bound to a thread.
unsafe impl<T: Record> Send for Region<T> {}
// SAFETY: a shared region gives out shared records only, in which nothing but words changes.
unsafe impl<T: Record + Sync> Sync for Region<T> {}

/// May the region be written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only: writes end the process.
    Read,
    /// Reading and writing.
    Write,
}

impl<T: Record> Region<T> {
    /// Maps the values of a BPF array of `count` records of exactly this type.
    pub fn map(array: impl AsFd, count: u32, access: Access) -> io::Result<Self> {
        Self::map_part(array, 0, count, access)
    }

    /// Maps `count` of them from the one on at `first`, which begins a page.
    fn map_part(array: impl AsFd, first: u32, count: u32, access: Access) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(size_of::<T>() * count as usize)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the map has no entries"))?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let offset = i64::try_from(size_of::<T>() * first as usize).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it is page-aligned, as are the map's values.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, array, offset) }?;
        Ok(Self { records: start.cast(), count: count as usize, mapped: true })
    }

    /// `count` zeroed records on the heap.
    pub fn heap(count: u32) -> Self {
        let layout = Self::layout(count as usize);
        // SAFETY: `layout` is not empty.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let Some(records) = NonNull::new(start.cast()) else { alloc::handle_alloc_error(layout) };
        Self { records, count: count.max(1) as usize, mapped: false }
    }

    fn layout(count: usize) -> Layout {
        // SAFETY: the size is a multiple of the alignment, and far below the limit for every map we load.
        unsafe { Layout::from_size_align_unchecked(size_of::<T>() * count.max(1), align_of::<T>()) }
    }

    /// The records.
    pub fn records(&self) -> &[T] {
        // SAFETY: `count` initialised records for as long as `self` lives. What others change meanwhile is `Word`s.
        unsafe { std::slice::from_raw_parts(self.records.as_ptr(), self.count) }
    }

    /// The records, to write those that no packet can see yet.
    pub fn records_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `&mut self` keeps others in this process away, and the program does not write records.
        unsafe { std::slice::from_raw_parts_mut(self.records.as_ptr(), self.count) }
    }

    /// Takes over the first records of another region, as many as fit, byte for byte. Nobody else may see these yet.
    pub fn copy_from(&mut self, other: &Self) {
        let count = self.count.min(other.count);
        // SAFETY: both hold at least `count` records, and do not overlap: each region has memory of its own. Words that a
        // program changes in `other` meanwhile are aligned, and copied in units of at least that size.
        unsafe { std::ptr::copy_nonoverlapping(other.records.as_ptr(), self.records.as_ptr(), count) };
    }
}

/// An array of many records, which is mapped only while someone looks at them: the kernel counts every page of a mapping as the
/// process' memory from the beginning.
pub struct Large<T: Record> {
    /// The BPF array; none if the records are on the heap, where they stay.
    array: Option<(OwnedFd, Access)>,
    count: u32,
    records: OnceCell<Region<T>>,
}

impl<T: Record> Large<T> {
    /// Records in a part.
    const PART: u32 = (PART_BYTES / size_of::<T>()) as u32;

    /// The values of a BPF array of `count` records of exactly this type.
    pub fn new(array: impl AsFd, count: u32, access: Access) -> io::Result<Self> {
        let array = array.as_fd().try_clone_to_owned()?;
        Ok(Self { array: Some((array, access)), count, records: OnceCell::new() })
    }

    /// `count` zeroed records on the heap.
    pub fn heap(count: u32) -> Self {
        Self { array: None, count, records: OnceCell::from(Region::heap(count)) }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The records, if they are on the heap or mapped already.
    pub fn at_hand(&self) -> Option<&[T]> {
        self.records.get().map(Region::records)
    }

    /// The records, if they are on the heap, to write them.
    pub fn on_heap(&mut self) -> Option<&mut [T]> {
        let is_heap = self.array.is_none();
        self.records.get_mut().filter(|_| is_heap).map(Region::records_mut)
    }

    /// The records, mapped until [`Large::unmap`].
    pub fn records(&self) -> io::Result<&[T]> {
        if let (Some((array, access)), None) = (&self.array, self.records.get()) {
            // Nobody else can have set it meanwhile.
            let _ = self.records.set(Region::map(array, self.count, *access)?);
        }
        self.at_hand().ok_or_else(|| io::Error::other("not mapped"))
    }

    /// What `work` makes of the first records: a sample of a table that hashes fill, of which no more is mapped.
    pub fn sample<R>(&self, work: impl FnOnce(&[T]) -> R) -> io::Result<R> {
        let count = self.count.min(Self::PART);
        match (&self.array, self.at_hand()) {
            (Some((array, access)), None) => Ok(work(Region::map_part(array, 0, count, *access)?.records())),
            (_, records) => Ok(work(records.and_then(|all| all.get(..count as usize)).unwrap_or_default())),
        }
    }

    /// Has `work` look at all records, one part after the other: without need, no more is mapped at a time than a part.
    pub fn each_part(&self, mut work: impl FnMut(&[T])) -> io::Result<()> {
        let (Some((array, access)), None) = (&self.array, self.records.get()) else {
            work(self.records()?);
            return Ok(());
        };
        for first in (0..self.count).step_by(Self::PART as usize) {
            let part = Region::map_part(array, first, Self::PART.min(self.count - first), *access)?;
            work(part.records());
        }
        Ok(())
    }

    /// Gives the mapping up.
    pub fn unmap(&mut self) {
        if self.array.is_some() {
            self.records = OnceCell::new();
        }
    }
}

impl<T: Record> Drop for Region<T> {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: the mapping made in `map`, whole; nothing borrows from it any more.
            // An error would leave it mapped: harmless.
            let _ = unsafe { munmap(self.records.cast(), size_of::<T>() * self.count) };
        } else {
            // SAFETY: allocated in `heap` with this very layout.
            unsafe { alloc::dealloc(self.records.as_ptr().cast(), Self::layout(self.count)) };
        }
    }
}
