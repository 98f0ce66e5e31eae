//! The datapath's counters at regular looks → events about what customers' packets show, and health where that is wished for.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::state::Agent;
use crate::core::config::{Passive, Protocol};
use crate::core::events::Event;
use crate::core::signals::{Judged, PassiveWatch, Showing, Sight};
use crate::io::datapath::{Datapath, DatapathError};

/// What is seen at the backends of a service.
struct Seen {
    /// Whether that counts as checks do.
    counts: bool,
    showings: Vec<Showing>,
    judged: Vec<Judged>,
}

impl Agent {
    /// Looks at what customers' packets show of backends.
    pub(super) fn look_for_signals(&mut self) {
        let mut watch = std::mem::take(&mut self.observed.signals);
        let seen = self.see(&mut watch);
        self.observed.signals = watch;
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => return log::error!("no look at customers' packets: {error}"),
        };
        let mut changed = false;
        for Seen { counts, showings, judged } in seen {
            for showing in &showings {
                self.record(Event::signal(showing, counts));
            }
            for judged in judged.into_iter().filter(|_| counts) {
                changed |= self.judge_shown(judged);
            }
        }
        if changed {
            self.reconcile_stale();
        }
    }

    /// What is seen at the backends of each TCP service that is looked at.
    fn see(&self, watch: &mut PassiveWatch) -> Result<Vec<Seen>, DatapathError> {
        let tables = self.kernel.tables();
        let names = tables.service_names();
        let passive: HashMap<&str, Passive> = (self.config.services.iter())
            .filter(|service| service.protocol == Protocol::Tcp && service.health.passive != Passive::Off)
            .map(|service| (service.name.as_str(), service.health.passive))
            .collect();
        let watched: BTreeMap<u32, (&str, Passive)> = names
            .iter()
            .filter_map(|(id, name)| Some((*id, (name.as_str(), *passive.get(name.as_str())?))))
            .collect();
        let traffic = self.kernel.traffic_by_backend()?;
        let mut services: BTreeMap<u32, Vec<Sight<'_>>> = BTreeMap::new();
        let mut ids = HashSet::new();
        for (id, service_id, backend) in tables.named_backends() {
            let Some(&(service, _)) = watched.get(&service_id) else { continue };
            let traffic = traffic.get(&id).copied().unwrap_or_default();
            services.entry(service_id).or_default().push(Sight { service, backend, id, traffic });
            ids.insert(id);
        }
        if ids.len() < watch.len() {
            watch.retain(|id| ids.contains(&id));
        }
        let seen = services.iter().map(|(id, sights)| {
            let (showings, judged) = watch.look(sights);
            let counts = watched.get(id).is_some_and(|(_, passive)| *passive == Passive::Fail);
            Seen { counts, showings, judged }
        });
        Ok(seen.collect())
    }

    /// Lets what customers' packets show count as a check; says whether the backend's health changed.
    fn judge_shown(&mut self, judged: Judged) -> bool {
        let now = self.now();
        let Some(probed) = self.probed.get_mut(&judged.key) else { return false };
        let result = judged.result.map_err(|counted| judged.signal.reason(&counted));
        match probed.monitor.on_shown(judged.signal, result, now) {
            Some(transition) => {
                self.on_transition(judged.key, transition);
                true
            }
            None => false,
        }
    }
}
