//! The configuration's health checks → probe tasks; their reports → health.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::state::Agent;
use crate::core::config::{self, Config};
use crate::core::events::Event;
use crate::core::health::{Health, Monitor, first_probe_delay, next_probe_delay};
use crate::core::names;
use crate::core::wanted::BackendKey;
use crate::io::probes::{ProbeReport, probe_loop};

/// A probe's outcome. The target tells a backend's server from one that had its name before.
pub(super) type Report = ProbeReport<(BackendKey, SocketAddr)>;

/// What is known of servers, by backend and address.
pub(super) type KnownHealth = BTreeMap<(BackendKey, IpAddr), Health>;

/// A backend that is probed.
pub(super) struct Probed {
    pub(super) monitor: Monitor,
    target: SocketAddr,
    health: config::Health,
    task: AbortHandle,
    /// Why the last probe failed, if it did.
    pub(super) failure: Option<String>,
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// Starts, restarts and ends probes so that they are those of the configuration. What is known of a backend stays
    /// as long as the server is the same; `adopted` is what the tables say of servers that were not probed till now.
    pub(super) fn sync_probes(&mut self, adopted: &KnownHealth) {
        let wanted = targets(&self.config);
        let keys: BTreeSet<&BackendKey> = wanted.iter().map(|(key, ..)| key).collect();
        self.probed.retain(|key, _| keys.contains(key));
        self.knowledge.health.retain(|key, _| keys.contains(key));
        let count = wanted.len();
        for (index, (key, target, health)) in wanted.iter().enumerate() {
            let mut monitor = Monitor::new(health.rise, health.fall);
            if let Some(probed) = self.probed.get_mut(key) {
                if probed.target == *target && probed.health == *health {
                    continue;
                }
                // Another address is another server; the same one, asked otherwise, keeps what is known of it.
                if probed.target.ip() == target.ip() {
                    monitor = probed.monitor.clone();
                    monitor.reconfigure(health.rise, health.fall);
                }
            } else if let Some(&health) = adopted.get(&(key.clone(), target.ip())) {
                monitor.adopt(health);
            }
            self.knowledge.health.insert(key.clone(), monitor.health());
            let first = first_probe_delay(index, count, health.interval, fastrand::u64(..));
            let task = tokio::spawn(probe_loop(
                (key.clone(), *target),
                *target,
                health.clone(),
                first,
                |interval| next_probe_delay(interval, fastrand::u64(..)),
                self.reports.clone(),
            ));
            let probed = Probed {
                monitor,
                target: *target,
                health: health.clone(),
                task: task.abort_handle(),
                failure: None,
            };
            self.probed.insert(key.clone(), probed);
        }
    }

    /// Judges a probe; says whether the backend's health changed.
    pub(super) fn judge(&mut self, report: Report) -> bool {
        let (key, target) = report.target_key;
        let Some(probed) = self.probed.get_mut(&key).filter(|probed| probed.target == target) else {
            return false;
        };
        self.histograms.probed(&key.service, report.duration);
        let result = match report.result {
            // That says nothing about the backend.
            Err(error) if error.is_local() => {
                log::error!("{}: {}: not probed: {error}", key.service, key.backend);
                return false;
            }
            result => result.map_err(|error| error.to_string()),
        };
        probed.failure = result.as_ref().err().cloned();
        let Some(transition) = probed.monitor.on_result(result) else { return false };
        let (from, to) = (names::health(transition.from), names::health(transition.to));
        self.events.record(Event::health(&key.service, &key.backend, from, to, transition.reason));
        self.knowledge.health.insert(key, transition.to);
        true
    }

    /// A probe reported, and perhaps others meanwhile: the consequences of all are brought about at once.
    pub(super) fn on_probes(&mut self, first: Report, more: &mut mpsc::Receiver<Report>) {
        let mut changed = self.judge(first);
        while let Ok(report) = more.try_recv() {
            changed |= self.judge(report);
        }
        if changed {
            self.reconcile();
        }
    }

    /// Whether every probed backend's health is known.
    pub(super) fn all_known(&self) -> bool {
        self.probed.values().all(|probed| probed.monitor.health() != Health::Unknown)
    }
}

fn targets(config: &Config) -> Vec<(BackendKey, SocketAddr, config::Health)> {
    let of_service = |service: &'_ config::Service| {
        let probed = service.backends.iter().filter_map(|backend| {
            let target = SocketAddr::new(backend.address, service.probe_port(backend)?);
            Some((BackendKey::new(&service.name, &backend.name), target, service.health.clone()))
        });
        probed.collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of_service).collect()
}
