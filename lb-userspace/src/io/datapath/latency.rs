//! The mapped histograms → how long connections took to open, by account; and what is done with them when accounts come and go.

use lb_common::abi::Latency;

use super::{Account, TableSet};
use crate::core::signals::Timing;

impl TableSet {
    fn latency_of(&self, account: Account) -> Option<&Latency> {
        let services = self.service_latency.records();
        match account {
            Account::Backend(id) => self.backend_latency.records().get(usize::from(id)),
            Account::Service(id) => services.get(id as usize),
            Account::Gone => services.last(),
        }
    }

    /// How long an account's connections took to open.
    pub fn timing(&self, account: Account) -> Timing {
        let Some(latency) = self.latency_of(account) else { return Timing::default() };
        let (sum, buckets) = latency.read();
        Timing { sum, buckets }
    }

    /// Replaces what an account holds; the program does not write it meanwhile.
    pub(super) fn set_timing(&self, account: Account, timing: &Timing) {
        if let Some(latency) = self.latency_of(account) {
            latency.sum.store(timing.sum);
            for (word, count) in latency.buckets.iter().zip(timing.buckets) {
                word.store(count);
            }
        }
    }

    /// Adds to what an account holds; the program may go on adding.
    pub(super) fn add_timing(&self, account: Account, timing: &Timing) {
        if let Some(latency) = self.latency_of(account) {
            latency.sum.add(timing.sum);
            for (word, count) in latency.buckets.iter().zip(timing.buckets) {
                word.add(count);
            }
        }
    }
}
