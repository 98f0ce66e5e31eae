//! The datapath's counters every few seconds → the last hour that the web console charts.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::state::Agent;
use crate::core::live::is_drop;
use crate::core::stats::verdicts;
use crate::core::trend::{Counters, TrendReport};
use crate::io::api::ApiError;
use crate::io::datapath::{Datapath, DatapathError};

impl Agent {
    /// Adds what the datapath has counted up to now.
    pub(super) fn note_trend(&mut self) {
        if let Err(error) = self.read_trend() {
            log::warn!("the console's last hour misses a point: {error}");
        }
    }

    fn read_trend(&mut self) -> Result<(), DatapathError> {
        let forwarded = self.kernel.forwarded()?;
        let verdicts = verdicts(&self.kernel.verdicts(&forwarded)?);
        let dropped = verdicts.iter().filter(|(verdict, _)| is_drop(verdict)).map(|(_, packets)| packets);
        let of = |traffic: &lb_common::abi::Traffic| Counters {
            packets: traffic.packets,
            bytes: traffic.bytes,
            new_flows: traffic.new_flows,
            drops: 0,
        };
        let total = Counters { drops: dropped.sum(), ..of(&forwarded.all) };
        let names = self.kernel.tables().service_names();
        let ids: BTreeMap<&str, u32> = names.iter().map(|(id, name)| (name.as_str(), *id)).collect();
        let services = self.config.services.iter().map(|service| {
            let traffic = ids.get(service.name.as_str()).and_then(|id| forwarded.services.get(id));
            (service.name.clone(), traffic.map(of).unwrap_or_default())
        });
        let now_ms = Timestamp::now().as_millisecond();
        self.trends.push(total, services, self.started.elapsed(), now_ms);
        Ok(())
    }

    /// The last hour of a service, or of everything together.
    pub(super) fn trend(&self, service: Option<&str>) -> Result<TrendReport, ApiError> {
        self.trends.report(service).ok_or_else(|| {
            ApiError::invalid(format!(
                "service: there is no {:?}, or it is not among those whose last hour is kept",
                service.unwrap_or_default()
            ))
        })
    }
}
