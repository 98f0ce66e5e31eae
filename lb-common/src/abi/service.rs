//! A service, and the ring of its backends.

use super::{RING_SIZE, Word};

/// A service: one [`ServiceWord`], replaced as a whole.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Service {
    /// See [`ServiceWord`].
    pub word: Word,
}

/// The word [`Service::word`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceWord {
    /// Whether the id is taken.
    pub used: bool,
    /// Slot of the ring in force; none if no backend may take new flows.
    pub ring: Option<u16>,
}

impl ServiceWord {
    const USED: u64 = 1;
    const HAS_RING: u64 = 2;

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            used: word & Self::USED != 0,
            ring: if word & Self::HAS_RING != 0 { Some((word >> 16) as u16) } else { None },
        }
    }

    /// The word for the map.
    pub const fn to_word(self) -> u64 {
        let used = if self.used { Self::USED } else { 0 };
        let ring = match self.ring {
            Some(slot) => Self::HAS_RING | (slot as u64) << 16,
            None => 0,
        };
        used | ring
    }
}

impl Service {
    /// The word as it is now.
    #[inline(always)]
    pub fn load(&self) -> ServiceWord {
        ServiceWord::from_word(self.word.load())
    }
}

/// A ring: the backend id of every slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Ring {
    /// Backend ids.
    pub slots: [u16; RING_SIZE],
}

/// Lets aya read and write rings with map system calls.
#[cfg(feature = "user")]
mod pod {
    // SAFETY: an array of integers; every bit pattern is a value. What pads it to a multiple of 8 bytes is copied along, and
    // never looked at.
    unsafe impl aya::Pod for super::Ring {}
}
