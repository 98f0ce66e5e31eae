//! A datapath in plain memory: the same tables and actions, no kernel.

use std::collections::BTreeMap;

use lb_common::abi::{NatPorts, Traffic, Verdicts};
use lb_common::flow::Tick;
use lb_common::hash;

use super::{Account, Datapath, DatapathError, TableSet};
use crate::core::image::Capacity;

/// The datapath in memory.
pub struct Memory {
    tables: TableSet,
    /// What was counted.
    pub traffic: BTreeMap<Account, Traffic>,
    /// Packets that went to no backend, by verdict.
    pub not_forwarded: Verdicts,
    /// The time.
    pub now: Tick,
}

impl Memory {
    /// An empty datapath.
    pub fn new(capacity: Capacity, ring_seed: u64) -> Self {
        let mut tables = TableSet::heap(capacity);
        if let Some(control) = tables.control_mut() {
            control.vip_buckets = capacity.vip_buckets;
            control.flow_buckets = capacity.flow_buckets;
            control.translation_buckets = capacity.translation_buckets();
            control.flow_key = hash::expand(!ring_seed);
            control.ring_key = hash::expand(ring_seed);
            control.nat_ports = NatPorts { hole: 32_768, hole_size: 28_232 };
        }
        Self { tables, traffic: BTreeMap::new(), not_forwarded: Verdicts::default(), now: Tick(1 << 20) }
    }
}

impl Datapath for Memory {
    fn tables(&self) -> &TableSet {
        &self.tables
    }

    fn tables_mut(&mut self) -> &mut TableSet {
        &mut self.tables
    }

    fn wait_for_grace(&self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn now(&self) -> Result<Tick, DatapathError> {
        Ok(self.now)
    }

    fn not_forwarded(&self) -> Result<Verdicts, DatapathError> {
        Ok(self.not_forwarded)
    }

    fn traffic(&self, account: Account) -> Result<Traffic, DatapathError> {
        Ok(self.traffic.get(&account).copied().unwrap_or_default())
    }

    fn set_traffic(&mut self, account: Account, traffic: Traffic) -> Result<(), DatapathError> {
        self.traffic.insert(account, traffic);
        Ok(())
    }
}
