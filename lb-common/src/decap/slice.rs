//! Table slices → the pipeline's [`DecapTables`], for userspace.

use core::cell::RefCell;

use super::{DecapTables, Verdict};
use crate::abi::{DecapControl, SourcePrefix, Verdicts, VipBucket};

/// The maps as slices.
#[derive(Debug)]
pub struct DecapSlices<'a> {
    /// What is in force.
    pub control: &'a DecapControl,
    /// The accepted outer sources.
    pub sources: &'a [SourcePrefix],
    /// The table of addresses: both halves.
    pub addresses: &'a [VipBucket],
    /// What was counted.
    pub verdicts: RefCell<Verdicts>,
}

impl<'a> DecapSlices<'a> {
    /// Tables with nothing counted.
    pub fn new(control: &'a DecapControl, sources: &'a [SourcePrefix], addresses: &'a [VipBucket]) -> Self {
        Self { control, sources, addresses, verdicts: RefCell::default() }
    }
}

impl DecapTables for DecapSlices<'_> {
    fn control(&self) -> Option<&DecapControl> {
        Some(self.control)
    }

    fn source(&self, index: u32) -> Option<&SourcePrefix> {
        self.sources.get(index as usize)
    }

    fn address_bucket(&self, index: u32) -> Option<&VipBucket> {
        self.addresses.get(index as usize)
    }

    fn count(&self, verdict: Verdict) {
        if let Some(count) = self.verdicts.borrow_mut().packets.get_mut(verdict.index()) {
            *count += 1;
        }
    }
}
