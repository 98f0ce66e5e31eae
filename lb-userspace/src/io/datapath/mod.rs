//! The datapath as the agent sees it: tables in memory, a grace period, counters. One implementation is the kernel's
//! program and its maps, the other plain memory for tests.

mod attach;
mod kernel;
mod memory;
mod pins;
mod region;
mod tables;

pub use attach::{AttachError, Attached};
pub use kernel::{FrameRun, Kernel, LoadError};
pub use memory::Memory;
pub use pins::{PinDir, PinError, PinLock};
pub use region::Access;
pub use tables::TableSet;

use lb_common::abi::{Traffic, Verdicts};
use lb_common::flow::Tick;

use crate::core::image::Capacity;
use crate::core::plan::Action;
use crate::core::vips;

/// An effect on the datapath that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}")]
pub struct DatapathError {
    /// What was being done.
    pub action: &'static str,
    /// Why it failed.
    pub cause: String,
}

/// Whose [`Traffic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// The service with this id.
    Service(u32),
    /// The backend with this id.
    Backend(u16),
}

/// The datapath.
pub trait Datapath {
    /// Its tables.
    fn tables(&self) -> &TableSet;
    /// Its tables, to change them.
    fn tables_mut(&mut self) -> &mut TableSet;
    /// Returns when no packet is under way that saw what was before.
    fn wait_for_grace(&self) -> Result<(), DatapathError>;
    /// The time that the datapath's entries are written with.
    fn now(&self) -> Result<Tick, DatapathError>;
    /// Packets by verdict, over all CPUs.
    fn verdicts(&self) -> Result<Verdicts, DatapathError>;
    /// Traffic over all CPUs.
    fn traffic(&self, counted: Counted) -> Result<Traffic, DatapathError>;
    /// Lets counting begin at zero.
    fn reset_traffic(&mut self, counted: Counted) -> Result<(), DatapathError>;

    /// Waits for a grace period, after which replaced next hops may be overwritten.
    fn grace(&mut self) -> Result<(), DatapathError> {
        self.wait_for_grace()?;
        self.tables_mut().fresh_hops.clear();
        Ok(())
    }

    /// Carries out one action.
    fn apply(&mut self, action: &Action) -> Result<(), DatapathError> {
        match action {
            Action::WriteBackend { id, backend, new } => {
                if *new {
                    self.reset_traffic(Counted::Backend(*id))?;
                }
                if self.tables_mut().write_backend(*id, backend).is_err() {
                    self.grace()?;
                    let _ = self.tables_mut().write_backend(*id, backend);
                }
            }
            Action::WriteRing { slot, ring } => self.tables_mut().write_ring(*slot, ring),
            Action::WriteService { id, name, word, new } => {
                if *new {
                    self.reset_traffic(Counted::Service(*id))?;
                }
                self.tables_mut().write_service(*id, name, *word);
            }
            Action::WriteVips { table, buckets } => self.tables_mut().write_vips(*table, buckets),
            Action::Grace => self.grace()?,
            Action::ClearBackend(id) => self.tables_mut().clear_backend(*id),
            Action::ClearService(id) => {
                self.tables_mut().write_service(*id, "", lb_common::abi::ServiceWord::default());
            }
            Action::SweepFlows(gone) => self.tables().sweep_backends(gone),
        }
        Ok(())
    }
}

/// What to load for so many services, backends, VIP entries and flows: with headroom, and never tiny.
pub fn capacity_for(services: usize, backends: usize, vip_entries: usize, flows: u32) -> Capacity {
    use lb_common::abi::{FLOW_WAYS, MAX_BACKENDS, MAX_SERVICES};
    let double = |count: usize, least: u32, most: u32| {
        u32::try_from(count.saturating_mul(2)).unwrap_or(u32::MAX).clamp(least, most)
    };
    let services = double(services, 16, MAX_SERVICES);
    Capacity {
        services,
        backends: double(backends, 1_024, MAX_BACKENDS),
        // A few beyond one a service: those that are being built.
        rings: services + 4,
        vip_buckets: vips::buckets_for(vip_entries.saturating_mul(2)),
        flow_buckets: flows.div_ceil(FLOW_WAYS as u32),
    }
}
