//! The datapath as the agent sees it: tables in memory, a grace period, counters. One implementation is the kernel's
//! program and its maps, the other plain memory for tests.

mod accounts;
mod attach;
mod capture;
mod carry;
mod counts;
mod decap;
mod direct;
mod flows;
mod fragments;
mod fresh;
mod kernel;
mod latency;
mod loader;
mod memory;
mod object;
mod pins;
mod probe_path;
mod read;
mod region;
mod resize;
mod rings;
mod tables;
mod translations;

pub use attach::{AttachError, Attached, link_of};
pub use capture::{CaptureFeed, CapturePrograms, CaptureRecords, forget_capture, since_epoch_ns};
pub use counts::PacketsByCpu;
pub use decap::{DecapAttachError, Decapsulator};
pub use kernel::{FrameRun, Kernel, LoadError};
pub use memory::Memory;
pub use pins::{PinDir, PinError, Pinned};
pub use probe_path::{ProbeCounts, ProbePath, ProbePathError};
pub use region::Access;
pub use resize::Resized;
pub use tables::TableSet;

use std::collections::BTreeMap;

use lb_common::abi::{Traffic, Verdicts};
use lb_common::flow::Tick;
use lb_common::verdict::Verdict;

use crate::core::image::Capacity;
use crate::core::plan::Action;
use crate::core::signals::{Timing, Timings};
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

/// Whose [`Traffic`] a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// The backend's with this id.
    Backend(u16),
    /// That of backends which the service with this id had before.
    Service(u32),
    /// That of services there were before.
    Gone,
}

/// All that was forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// To each backend, by id.
    pub backends: BTreeMap<u16, Traffic>,
    /// To each service, by id, backends it had before included.
    pub services: BTreeMap<u32, Traffic>,
    /// To all, services there were before included.
    pub all: Traffic,
    /// The packets of that, by CPU; nothing where no CPU is known.
    pub cpus: PacketsByCpu,
}

impl Forwarded {
    /// Packets by verdict: these, and those that went to no backend.
    fn beside(&self, mut not_forwarded: Verdicts) -> Verdicts {
        if let Some(forward) = not_forwarded.packets.get_mut(Verdict::Forward.index()) {
            *forward = self.all.packets;
        }
        not_forwarded
    }
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
    /// Packets that went to no backend, by verdict, over all CPUs.
    fn not_forwarded(&self) -> Result<Verdicts, DatapathError>;
    /// What an account holds, over all CPUs.
    fn traffic(&self, account: Account) -> Result<Traffic, DatapathError>;
    /// Replaces what an account holds; no packet is counted for it meanwhile.
    fn set_traffic(&mut self, account: Account, traffic: Traffic) -> Result<(), DatapathError>;

    /// What the account of each backend holds, by its id.
    fn traffic_by_backend(&self) -> Result<BTreeMap<u16, Traffic>, DatapathError> {
        self.tables().backend_ids().map(|(id, _)| Ok((id, self.traffic(Account::Backend(id))?))).collect()
    }

    /// What each account holds: of services and of all, that of backends and services there were before.
    fn accounts(&self) -> Result<Forwarded, DatapathError> {
        let of_service = |id| Ok((id, self.traffic(Account::Service(id))?));
        Ok(Forwarded {
            backends: self.traffic_by_backend()?,
            services: self.tables().service_ids().map(of_service).collect::<Result<_, DatapathError>>()?,
            all: self.traffic(Account::Gone)?,
            cpus: PacketsByCpu::default(),
        })
    }

    /// All that was forwarded.
    fn forwarded(&self) -> Result<Forwarded, DatapathError> {
        let mut forwarded = self.accounts()?;
        for (id, service) in self.tables().backend_ids() {
            let traffic = forwarded.backends.get(&id).copied().unwrap_or_default();
            *forwarded.services.entry(service).or_default() += traffic;
        }
        forwarded.all += forwarded.services.values().copied().sum();
        Ok(forwarded)
    }

    /// Packets by verdict.
    fn verdicts(&self, forwarded: &Forwarded) -> Result<Verdicts, DatapathError> {
        Ok(forwarded.beside(self.not_forwarded()?))
    }

    /// Empties an account.
    fn begin(&mut self, account: Account) -> Result<(), DatapathError> {
        self.set_traffic(account, Traffic::default())?;
        self.tables().set_timing(account, &Timing::default());
        Ok(())
    }

    /// How long connections took to open: of each backend, and of each service, backends it had before included.
    fn timings(&self) -> Timings {
        let mut timings = Timings::default();
        for id in self.tables().service_ids() {
            timings.services.insert(id, self.tables().timing(Account::Service(id)));
        }
        for (id, service) in self.tables().backend_ids() {
            let timing = self.tables().timing(Account::Backend(id));
            if timing.count() > 0 {
                timings.services.entry(service).or_default().add(&timing);
                timings.backends.insert(id, timing);
            }
        }
        timings
    }

    /// Adds what an account holds to another; no packet is counted for that one meanwhile.
    fn add_traffic(&mut self, from: Account, to: Account) -> Result<(), DatapathError> {
        let mut sum = self.traffic(to)?;
        sum += self.traffic(from)?;
        self.set_traffic(to, sum)
    }

    /// Moves what an account holds to another.
    fn fold(&mut self, from: Account, to: Account) -> Result<(), DatapathError> {
        self.add_traffic(from, to)?;
        self.set_traffic(from, Traffic::default())?;
        let timing = self.tables().timing(from);
        self.tables().add_timing(to, &timing);
        self.tables().set_timing(from, &Timing::default());
        Ok(())
    }

    /// Waits for a grace period, after which replaced next hops may be overwritten.
    fn grace(&mut self) -> Result<(), DatapathError> {
        self.wait_for_grace()?;
        self.tables_mut().fresh_hops.clear();
        Ok(())
    }

    /// Carries out one action.
    fn apply(&mut self, action: &Action) -> Result<(), DatapathError> {
        match action {
            Action::WriteGlobals(globals) => self.tables_mut().write_globals(globals),
            Action::WriteBackend { id, backend, new } => {
                if *new {
                    self.begin(Account::Backend(*id))?;
                }
                if self.tables_mut().write_backend(*id, backend).is_err() {
                    self.grace()?;
                    let _ = self.tables_mut().write_backend(*id, backend);
                }
            }
            Action::WriteRing { slot, ring } => self.tables_mut().write_ring(*slot, ring)?,
            Action::WriteService { id, name, word, new } => {
                if *new {
                    self.begin(Account::Service(*id))?;
                }
                self.tables_mut().write_service(*id, name, *word);
            }
            Action::WriteVips { table, buckets } => self.tables_mut().write_vips(*table, buckets),
            Action::Grace => self.grace()?,
            Action::ClearBackend(id) => self.tables_mut().clear_backend(*id),
            Action::ClearService(id) => {
                self.tables_mut().write_service(*id, "", lb_common::abi::ServiceWord::default());
            }
            Action::Retire { backends, services } => {
                self.tables().sweep_backends(backends);
                for (&id, &service) in backends {
                    let to =
                        if services.contains(&service) { Account::Gone } else { Account::Service(service) };
                    self.fold(Account::Backend(id), to)?;
                }
                for &id in services {
                    self.fold(Account::Service(id), Account::Gone)?;
                }
            }
        }
        Ok(())
    }
}

/// What to load for so many services, backends, VIP entries, flows and translated connections: with headroom, and never tiny. Where
/// nothing is translated, the table for it is as small as can be, for an array takes its memory at once.
pub fn capacity_for(
    services: usize,
    backends: usize,
    vip_entries: usize,
    flows: u32,
    nat_connections: u32,
) -> Capacity {
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
        translations: Capacity::translations_for(nat_connections),
    }
}
