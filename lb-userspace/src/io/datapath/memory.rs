//! A datapath in plain memory: the same tables and actions, no kernel.

use std::collections::BTreeMap;

use lb_common::abi::{Traffic, Verdicts};
use lb_common::flow::Tick;
use lb_common::hash;

use super::{Counted, Datapath, DatapathError, TableSet};
use crate::core::image::Capacity;

/// The datapath in memory.
pub struct Memory {
    tables: TableSet,
    /// What was counted.
    pub traffic: BTreeMap<Counted, Traffic>,
    /// Packets by verdict.
    pub verdicts: Verdicts,
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
            control.flow_key = hash::expand(!ring_seed);
            control.ring_key = hash::expand(ring_seed);
        }
        Self { tables, traffic: BTreeMap::new(), verdicts: Verdicts::default(), now: Tick(1 << 20) }
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

    fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        Ok(self.verdicts)
    }

    fn traffic(&self, counted: Counted) -> Result<Traffic, DatapathError> {
        Ok(self.traffic.get(&counted).copied().unwrap_or_default())
    }

    fn reset_traffic(&mut self, counted: Counted) -> Result<(), DatapathError> {
        self.traffic.remove(&counted);
        Ok(())
    }
}
