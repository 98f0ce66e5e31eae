//! What the agent sees in passing or at a regular look → events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::FLOW_WAYS;
use lb_common::flow::Tick;

use super::hops::MAX_NEWS;
use super::state::Agent;
use crate::core::config::{BackendState, Config};
use crate::core::events::{Event, clip, state_changes};
use crate::core::health::ServiceStatus;
use crate::core::pressure::{Look, PressureWatch};
use crate::core::signals::PassiveWatch;
use crate::core::wanted::BackendKey;
use crate::io::api::ApplyReport;
use crate::io::datapath::{Datapath, DatapathError};

/// What was last seen of what is told when it changes.
#[derive(Debug, Default)]
pub(super) struct Observed {
    statuses: BTreeMap<String, ServiceStatus>,
    pressure: PressureWatch,
    pub(super) signals: PassiveWatch,
    /// Interfaces that the program is to be on and is not, with why, once that was told.
    pub(super) off: BTreeMap<String, Option<String>>,
    /// Drained backends that are known to have no live flow left.
    drained: BTreeSet<BackendKey>,
}

impl Agent {
    /// Something happened: it is logged, kept, and told to who follows. This is the one way in for every kind of event.
    pub(super) fn record(&self, event: Event) {
        self.events.record(event);
    }

    /// A configuration came into force.
    pub(super) fn record_applied(&self, by: &str, report: &ApplyReport) {
        let flows = [report.flows_lost, report.flows_in_doubt];
        self.record(Event::applied(by, report.revision, &report.changes, flows));
    }

    /// What an operator wants of backends changed. One that is to be drained may have no flow already.
    pub(super) fn record_state_changes(&mut self, before: &Config) {
        let changes = state_changes(before, &self.config);
        if changes.is_empty() {
            return;
        }
        for event in changes {
            self.record(event);
        }
        if let Ok(now) = self.kernel.now() {
            self.look_for_drained(now);
        }
    }

    /// Addresses whose next hop is not known any more, with the reason, and those for which it is known again.
    pub(super) fn record_hops(&self, lost: &[(IpAddr, String)], found: &[IpAddr]) {
        for (address, reason) in lost.iter().take(MAX_NEWS) {
            self.record(Event::NextHopLost { reason: clip(reason), address: Some(address.to_string()) });
        }
        let more = lost.len().saturating_sub(MAX_NEWS);
        if more > 0 {
            let reason = format!("{more} more addresses; `sluice status` shows each");
            self.record(Event::NextHopLost { reason, address: None });
        }
        for address in found.iter().take(MAX_NEWS) {
            self.record(Event::NextHopFound { address: address.to_string() });
        }
    }

    /// Tells of services, or of some of them, whose status is another one. A new service is told of only if it is not well.
    pub(super) fn record_statuses(&mut self, some: Option<&BTreeSet<String>>) {
        if some.is_none() {
            let names: BTreeSet<&str> =
                self.config.services.iter().map(|service| service.name.as_str()).collect();
            self.observed.statuses.retain(|name, _| names.contains(name.as_str()));
        }
        let services = self.config.services.iter();
        for service in services.filter(|service| some.is_none_or(|some| some.contains(&service.name))) {
            let was = self.observed.statuses.get(&service.name).copied();
            let serving = self.knowledge.serving(service);
            let news = serving.news(was);
            if news.is_some_and(|status| was.is_some() || status != ServiceStatus::Healthy) {
                self.record(Event::service_status(&service.name, was, &serving));
            }
            if let Some(told) = news {
                self.observed.statuses.insert(service.name.clone(), told);
            }
        }
    }

    /// Looks whether tables run full; so many translations there are.
    pub(super) fn look_for_pressure(&mut self, translations: u64) {
        let look = match self.look(translations) {
            Ok(look) => look,
            Err(error) => return log::error!("no look at the tables: {error}"),
        };
        for event in self.observed.pressure.look(&look) {
            self.record(event);
        }
    }

    fn look(&self, translations: u64) -> Result<Look, DatapathError> {
        let capacity = self.kernel.tables().capacity();
        Ok(Look {
            verdicts: self.kernel.not_forwarded()?,
            flows: (self.kernel.tables().flow_entries(), u64::from(capacity.flow_buckets) * FLOW_WAYS as u64),
            nat: (translations, capacity.translations.into()),
        })
    }

    /// Looks whether backends that are drained have live flows left.
    pub(super) fn look_for_drained(&mut self, now: Tick) {
        let draining = draining(&self.config);
        self.observed.drained.retain(|key| draining.contains(key));
        let open: Vec<&BackendKey> =
            draining.iter().filter(|key| !self.observed.drained.contains(key)).collect();
        if open.is_empty() {
            return;
        }
        let image = self.kernel.tables().image();
        let flows = self.kernel.tables().live_flows(now);
        let mut flows_by_key: BTreeMap<BackendKey, u64> = BTreeMap::new();
        for (id, backend) in &image.backends {
            if let Some(service) = image.services.get(&backend.service) {
                let key = BackendKey::new(&service.name, &backend.name);
                *flows_by_key.entry(key).or_default() += flows.get(id).copied().unwrap_or(0);
            }
        }
        let done: Vec<BackendKey> = open
            .into_iter()
            .filter(|key| flows_by_key.get(key).is_none_or(|&flows| flows == 0))
            .cloned()
            .collect();
        for key in done {
            self.record(Event::Drained { service: key.service.clone(), backend: key.backend.clone() });
            self.observed.drained.insert(key);
        }
    }
}

/// The backends that are to be drained.
fn draining(config: &Config) -> BTreeSet<BackendKey> {
    let mut draining = BTreeSet::new();
    for service in &config.services {
        let drained = service.backends.iter().filter(|backend| backend.state == BackendState::Drain);
        draining.extend(drained.map(|backend| BackendKey::new(&service.name, &backend.name)));
    }
    draining
}
