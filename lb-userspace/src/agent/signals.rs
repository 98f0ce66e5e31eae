//! The datapath's counters at regular looks → events about what customers' packets show, and health where that is wished for.

use std::collections::BTreeSet;

use lb_common::abi::Traffic;

use super::state::Agent;
use crate::core::config::{Passive, Protocol};
use crate::core::events::Event;
use crate::core::signals::{Judged, Sight};
use crate::core::wanted::BackendKey;
use crate::io::datapath::{Account, Datapath, DatapathError};

impl Agent {
    /// Looks at what customers' packets show of backends.
    pub(super) fn look_for_signals(&mut self) {
        let services = match self.sights() {
            Ok(services) => services,
            Err(error) => return log::error!("no look at customers' packets: {error}"),
        };
        if services.iter().map(|(_, sights)| sights.len()).sum::<usize>() < self.observed.signals.len() {
            let sights = services.iter().flat_map(|(_, sights)| sights);
            let seen: BTreeSet<&BackendKey> = sights.map(|sight| &sight.key).collect();
            self.observed.signals.retain(|key| seen.contains(key));
        }
        let mut changed = false;
        for (passive, sights) in &services {
            let (showings, judged) = self.observed.signals.look(sights);
            let counts = *passive == Passive::Fail;
            for showing in &showings {
                self.record(Event::signal(showing, counts));
            }
            if counts {
                for judged in judged {
                    changed |= self.judge_shown(judged);
                }
            }
        }
        if changed {
            self.reconcile_stale();
        }
    }

    /// What was counted for the backends of each TCP service that is looked at.
    fn sights(&self) -> Result<Vec<(Passive, Vec<Sight>)>, DatapathError> {
        let tables = self.kernel.tables();
        let names = tables.names();
        let ids = names.backend_ids();
        let mut services = Vec::new();
        for service in &self.config.services {
            let passive = service.health.passive;
            if service.protocol != Protocol::Tcp || passive == Passive::Off {
                continue;
            }
            let Some(service_id) = names.service_id(&service.name) else { continue };
            let mut sights = Vec::with_capacity(service.backends.len());
            for backend in &service.backends {
                let named = (service_id, backend.name.as_str(), backend.address.into());
                let Some(&id) = ids.get(&named) else { continue };
                let traffic: Traffic = self.kernel.traffic(Account::Backend(id))?;
                sights.push(Sight { key: BackendKey::new(&service.name, &backend.name), id, traffic });
            }
            services.push((passive, sights));
        }
        Ok(services)
    }

    /// Lets what customers' packets show count as a check; says whether the backend's health changed.
    fn judge_shown(&mut self, judged: Judged) -> bool {
        let now = self.now();
        let Some(probed) = self.probed.get_mut(&judged.key) else { return false };
        let result = judged.result.map_err(|(signal, counted)| signal.reason(&counted));
        match probed.monitor.on_shown(result, now) {
            Some(transition) => {
                self.on_transition(judged.key, transition);
                true
            }
            None => false,
        }
    }
}
