//! The program's counters → what the accounts of backends and services hold, and packets by verdict: by CPU, and together.

use std::collections::BTreeMap;
use std::io;

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use lb_common::abi::{Traffic, Verdicts};

use super::counts::PacketsByCpu;
use super::kernel::{Kernel, chain};
use super::{Account, DatapathError, Forwarded};

impl Kernel {
    /// Packets by verdict, and by CPU: both are of the same ones.
    pub fn verdicts_by_cpu(&self, forwarded: &Forwarded) -> Result<(Verdicts, PacketsByCpu), DatapathError> {
        let not_forwarded = by_cpu(&self.verdicts)?;
        let mut cpus = forwarded.cpus.clone();
        cpus.add(not_forwarded.iter().map(|verdicts| verdicts.packets.iter().sum()));
        Ok((forwarded.beside(sum(&not_forwarded)), cpus))
    }

    /// What an account holds, by CPU.
    pub(super) fn traffic_by_cpu(&self, account: Account) -> Result<Vec<Traffic>, DatapathError> {
        let (counts, at) = match account {
            Account::Backend(id) => (&self.backend_traffic, id.into()),
            Account::Service(id) => (&self.service_traffic, id),
            Account::Gone => (&self.service_traffic, self.gone()),
        };
        counts.get(at).map_err(read_failed)
    }

    /// Replaces what an account holds.
    pub(super) fn set_traffic_by_cpu(
        &mut self,
        account: Account,
        by_cpu: Vec<Traffic>,
    ) -> Result<(), DatapathError> {
        let gone = self.gone();
        let (counts, at) = match account {
            Account::Backend(id) => (&mut self.backend_traffic, id.into()),
            Account::Service(id) => (&mut self.service_traffic, id),
            Account::Gone => (&mut self.service_traffic, gone),
        };
        counts.set(at, by_cpu).map_err(write_failed)
    }

    pub(super) fn of_backends(
        &self,
        cpus: &mut PacketsByCpu,
    ) -> Result<BTreeMap<u16, Traffic>, DatapathError> {
        let ids: Vec<u16> = self.tables.backend_ids().map(|(id, _)| id).collect();
        let count = ids.iter().max().map_or(0, |&last| usize::from(last) + 1);
        let sums = self.backend_traffic.first(count, cpus).map_err(counts_failed)?;
        Ok(ids.into_iter().filter_map(|id| Some((id, *sums.get(usize::from(id))?))).collect())
    }

    pub(super) fn of_services(
        &self,
        cpus: &mut PacketsByCpu,
    ) -> Result<BTreeMap<u32, Traffic>, DatapathError> {
        let ids: Vec<u32> = self.tables.service_ids().collect();
        let count = ids.iter().max().map_or(0, |&last| last as usize + 1);
        let sums = self.service_traffic.first(count, cpus).map_err(counts_failed)?;
        Ok(ids.into_iter().filter_map(|id| Some((id, *sums.get(id as usize)?))).collect())
    }

    /// Where the traffic of services that are gone is kept: behind that of the last id.
    fn gone(&self) -> u32 {
        self.service_traffic.len().saturating_sub(1)
    }
}

/// The counters by verdict, of each CPU.
pub(super) fn by_cpu(
    verdicts: &PerCpuArray<MapData, Verdicts>,
) -> Result<PerCpuValues<Verdicts>, DatapathError> {
    verdicts.get(&0, 0).map_err(read_failed)
}

/// The counters by verdict, over all CPUs.
pub(super) fn sum(by_cpu: &[Verdicts]) -> Verdicts {
    let mut sum = Verdicts::default();
    for verdicts in by_cpu {
        for (sum, packets) in sum.packets.iter_mut().zip(verdicts.packets) {
            *sum += packets;
        }
        for (sum, flows) in sum.evictions.iter_mut().zip(verdicts.evictions) {
            *sum += flows;
        }
    }
    sum
}

fn counts_failed(error: io::Error) -> DatapathError {
    DatapathError { action: "reading the counters", cause: error.to_string() }
}

fn read_failed(error: MapError) -> DatapathError {
    DatapathError { action: "reading the counters", cause: chain(&error) }
}

pub(super) fn write_failed(error: MapError) -> DatapathError {
    DatapathError { action: "writing a counter", cause: chain(&error) }
}
