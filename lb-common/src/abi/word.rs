//! One 64-bit word, shared by the program and the agent without tearing.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::fence;
#[cfg(target_arch = "bpf")]
use core::sync::atomic::{Ordering::Acquire, compiler_fence};

/// A 64-bit word that the agent and the program read and write while the other does: it cannot tear.
///
/// BPF's word loads and stores are single instructions, but LLVM knows them as atomics only from `cpu=v4` on; so there
/// they are volatile accesses.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// A word of this value.
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// The value as it is now. What was written before it was stored is seen from here on.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            // SAFETY: the pointer is that of a live, aligned word.
            let value = unsafe { self.0.as_ptr().read_volatile() };
            compiler_fence(Acquire);
            return value;
        }
        #[cfg(not(target_arch = "bpf"))]
        self.0.load(Acquire)
    }

    /// Its upper half as it is now.
    #[inline(always)]
    pub fn load_upper(&self) -> u32 {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as above, and of its halves: the object is little-endian (`bpfel`), so the upper one comes second.
        return unsafe { self.0.as_ptr().cast::<u32>().add(1).read_volatile() };
        #[cfg(not(target_arch = "bpf"))]
        return (self.load() >> 32) as u32;
    }

    /// Its second lowest byte as it is now.
    #[inline(always)]
    pub fn load_second_byte(&self) -> u8 {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as above.
        return unsafe { self.0.as_ptr().cast::<u8>().add(1).read_volatile() };
        #[cfg(not(target_arch = "bpf"))]
        return (self.load() >> 8) as u8;
    }

    /// Replaces the value, and publishes what was written before.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as above; all who share the word use this type.
        return unsafe { self.0.as_ptr().write_volatile(value) };
        #[cfg(not(target_arch = "bpf"))]
        self.0.store(value, Release)
    }

    /// Adds to the value, which others may be adding to.
    #[inline(always)]
    pub fn add(&self, more: u64) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: the pointer is that of a live, aligned word; the instruction adds to it and does nothing else.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0.as_ptr(), in(reg) more);
        }
        #[cfg(not(target_arch = "bpf"))]
        self.0.fetch_add(more, Relaxed);
    }

    /// Replaces the value if it still is `current`; says whether it was. What follows is seen by others after that, and what
    /// others did before is seen from here on.
    #[inline(always)]
    pub fn replace(&self, current: u64, new: u64) -> bool {
        #[cfg(target_arch = "bpf")]
        {
            use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
            // SAFETY: the pointer is that of a live, aligned word; all who share it use this type.
            return unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.as_ptr(), current, new) }.1;
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            let replaced = self.0.compare_exchange(current, new, SeqCst, Relaxed).is_ok();
            fence(SeqCst);
            replaced
        }
    }
}
