//! The configuration's health checks → probe tasks; their reports → health.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::paths::is_asked_through;
use super::start::adopted_health;
use super::state::Agent;
use super::{AgentError, Next};
use crate::core::config::{self, Config, Written};
use crate::core::events::Event;
use crate::core::health::{Health, Held, Monitor, Transition, first_probe_delay, next_probe_delay};
use crate::core::image::Image;
use crate::core::names;
use crate::core::slow_start::Ramp;
use crate::core::wanted::BackendKey;
use crate::io::probes::{Check, ProbeError, ProbeReport, Target, probe_loop};

/// A probe's outcome. The target tells a backend's server from one that had its name before.
pub(super) type Report = ProbeReport<Arc<(BackendKey, SocketAddr)>>;

/// What is known of servers, by backend and address.
pub(super) type KnownHealth = BTreeMap<(BackendKey, IpAddr), Health>;

/// A backend that is probed.
pub(super) struct Probed {
    pub(super) monitor: Monitor,
    target: Target,
    check: Arc<Check>,
    task: AbortHandle,
    /// Why the last probe failed, if it did.
    pub(super) failure: Option<String>,
}

impl Probed {
    /// Why it is not well.
    fn reason(&self, now: Duration) -> Option<String> {
        let failure = self.failure.clone().or_else(|| self.monitor.shown().map(str::to_owned));
        match (failure, self.monitor.held(now)) {
            (failure, None) => failure,
            (None, Some(held)) => Some(held_text(held)),
            (Some(failure), Some(held)) => Some(format!("{failure}; {}", held_text(held))),
        }
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The checks of a configuration, by service: what they need of this host is there.
pub(super) type Checks = BTreeMap<String, Arc<Check>>;

impl Agent {
    /// Time since the agent was started: what health is counted by.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The checks of a configuration, by service.
    pub(super) fn checks(&mut self, config: &Config) -> Result<Checks, AgentError> {
        let clients = &mut self.tls;
        let check = |service: &config::Service| match Check::new(&service.health, clients) {
            Ok(check) => Ok((service.name.clone(), Arc::new(check))),
            Err(cause) => Err(AgentError::Check { service: service.name.clone(), cause }),
        };
        config.services.iter().map(check).collect()
    }

    /// Starts, restarts and ends probes so that they are those of the configuration. What is known of a backend stays
    /// as long as the server is the same; `loaded` is what the tables say of servers that were not probed till now. Services that
    /// are as they were in the configuration `before` are left alone. Says whether what is known of any backend changed.
    pub(super) fn sync_probes(&mut self, before: Option<&Config>, loaded: &Image) -> bool {
        let same = before.map(|before| self.probed_as(before)).unwrap_or_default();
        let wanted = self.targets(|service| !same.contains(service));
        let keys: HashSet<&BackendKey> = wanted.iter().map(|(key, _)| key).collect();
        let stays = |key: &BackendKey| same.contains(&key.service) || keys.contains(key);
        self.probed.retain(|key, _| stays(key));
        self.knowledge.health.retain(|key, _| stays(key));
        self.ramps.retain(|key, _| stays(key));
        let shares = self.knowledge.shares.len();
        self.knowledge.shares.retain(|key, _| stays(key));
        let (count, now) = (wanted.len(), self.now());
        let is_new = |key: &BackendKey| !self.probed.contains_key(key);
        let adopted =
            if keys.iter().any(|key| is_new(key)) { adopted_health(loaded) } else { KnownHealth::new() };
        let mut changed = self.knowledge.shares.len() != shares;
        for (index, (key, target)) in wanted.iter().enumerate() {
            let Some(check) = self.checks.get(&key.service) else { continue };
            let health = check.health();
            let mut monitor = Monitor::new(health.into());
            if let Some(probed) = self.probed.get_mut(key) {
                let is_same = probed.target == *target && probed.check.health() == health;
                if is_same && probed.check.trusts_as(check) {
                    continue;
                }
                // Another address is another server; the same one, asked otherwise, keeps what is known of it.
                if probed.target.address.ip() == target.address.ip() {
                    monitor = probed.monitor.clone();
                    monitor.reconfigure(health.into(), now);
                }
            } else if let Some(&health) = adopted.get(&(key.clone(), target.address.ip())) {
                monitor.adopt(health);
            }
            let known = monitor.health();
            changed |= self.knowledge.health.insert(key.clone(), known).unwrap_or_default() != known;
            let first = first_probe_delay(index, count, health.interval, fastrand::u64(..));
            let task = tokio::spawn(probe_loop(
                Arc::new((key.clone(), target.address)),
                target.clone(),
                check.clone(),
                first,
                |interval| next_probe_delay(interval, fastrand::u64(..)),
                self.reports.clone(),
            ));
            let probed = Probed {
                monitor,
                target: target.clone(),
                check: check.clone(),
                task: task.abort_handle(),
                failure: None,
            };
            self.probed.insert(key.clone(), probed);
        }
        changed
    }

    /// What is known of the health of servers that others take the place of in a configuration, under their names: as in
    /// [`Agent::sync_probes`], another address is another server.
    pub(super) fn health_of_replaced(&self, config: &Config) -> Vec<(BackendKey, Health)> {
        let former = by_name(&self.config);
        let changed =
            config.services.iter().filter(|service| former.get(service.name.as_str()) != Some(service));
        let replaced = changed.flat_map(|service| {
            service.backends.iter().filter_map(|backend| {
                let key = BackendKey::new(&service.name, &backend.name);
                let probed = self.probed.get(&key)?;
                let is_other = probed.target.address.ip() != backend.address;
                is_other.then(|| (key, probed.monitor.health()))
            })
        });
        replaced.collect()
    }

    /// The services that are checked as they were in another configuration, which was in force till now.
    fn probed_as(&self, before: &Config) -> HashSet<String> {
        let former = by_name(before);
        let trusts_as_before = |service: &config::Service| {
            let probed = service
                .backends
                .iter()
                .find_map(|backend| self.probed.get(&BackendKey::new(&service.name, &backend.name)));
            let check = self.checks.get(&service.name);
            probed.zip(check).is_none_or(|(probed, check)| probed.check.trusts_as(check))
        };
        let same = self.config.services.iter().filter(|service| {
            former.get(service.name.as_str()) == Some(service)
                && !is_asked_through(service)
                && trusts_as_before(service)
        });
        same.map(|service| service.name.clone()).collect()
    }

    /// Judges a probe; says whether the backend's health changed.
    pub(super) fn judge(&mut self, report: Report) -> bool {
        let (key, target) = &*report.target_key;
        let now = self.now();
        let Some(probed) = self.probed.get_mut(key).filter(|probed| probed.target.address == *target) else {
            return false;
        };
        self.histograms.probed(&key.service, report.duration);
        let result = match report.result {
            // That says nothing about the backend.
            Err(error) if error.is_local() => {
                let said = Some(error.to_string());
                if probed.failure != said {
                    log::error!("service {}: backend {}: not checked: {error}", key.service, key.backend);
                    probed.failure = said;
                }
                return false;
            }
            result => result,
        };
        if probed.failure.is_none() && result.as_ref().is_err_and(ProbeError::is_silence) {
            self.doubted.insert(target.ip());
        }
        let result = result.map_err(|error| error.to_string());
        probed.failure = result.as_ref().err().cloned();
        let Some(transition) = probed.monitor.on_result(result, now) else { return false };
        self.on_transition(key.clone(), transition);
        true
    }

    /// A backend's health changed.
    pub(super) fn on_transition(&mut self, key: BackendKey, transition: Transition) {
        let now = self.now();
        let slow_start =
            self.probed.get(&key).map(|probed| probed.check.health().slow_start).unwrap_or_default();
        self.ramps.remove(&key);
        if transition.from == Health::Unhealthy && !slow_start.is_zero() {
            self.ramps.insert(key.clone(), Ramp::new(now, slow_start));
        }
        let (from, to) = (names::health(transition.from), names::health(transition.to));
        let reason = transition.reason.map(|reason| match transition.held {
            held if held.is_zero() => reason,
            held if transition.flaps => format!("{reason}; it flaps: held down for {}", Written(held)),
            held => format!("{reason}; held down for {}", Written(held)),
        });
        self.stale.insert(key.service.clone());
        self.events.record(Event::health(&key.service, &key.backend, from, to, reason));
        self.knowledge.health.insert(key, transition.to);
    }

    /// Notes what share of their weight recovering backends have by now.
    pub(super) fn advance_ramps(&mut self) {
        let now = self.now();
        let shares = self.ramps.iter().filter_map(|(key, ramp)| Some((key.clone(), ramp.share(now)?)));
        let shares: BTreeMap<_, _> = shares.collect();
        self.ramps.retain(|key, _| shares.contains_key(key));
        let before = std::mem::replace(&mut self.knowledge.shares, shares);
        let shares = &self.knowledge.shares;
        let grown = shares.iter().filter(|(key, share)| before.get(key) != Some(share));
        let changed = grown.map(|(key, _)| key).chain(before.keys().filter(|key| !shares.contains_key(key)));
        self.stale.extend(changed.map(|key| key.service.clone()));
    }

    /// Returns when a recovering backend is due more of its weight; never if there is none.
    pub(super) async fn ramp_due(&self) {
        let (now, shares) = (self.now(), &self.knowledge.shares);
        match self.ramps.iter().filter_map(|(key, ramp)| ramp.due(now, shares.get(key).copied())).min() {
            Some(due) => tokio::time::sleep_until(Instant::from_std(self.started) + due).await,
            None => std::future::pending().await,
        }
    }

    /// A probe reported, and perhaps others meanwhile: the consequences of all are brought about at once.
    pub(super) async fn on_probes(&mut self, first: Report, more: &mut mpsc::Receiver<Report>) {
        let mut changed = self.judge(first);
        while let Ok(report) = more.try_recv() {
            changed |= self.judge(report);
        }
        if changed {
            self.reconcile_stale();
        }
        self.verify_doubted().await;
    }

    /// A recovering backend is due more of its weight.
    pub(super) fn on_ramp(&mut self) -> Next {
        self.reconcile_stale();
        Next::Continue
    }

    /// Why backends are not well, by their checks.
    pub(super) fn check_reasons(&self) -> BTreeMap<BackendKey, String> {
        let now = self.now();
        let reasons = self.probed.iter().filter_map(|(key, probed)| Some((key.clone(), probed.reason(now)?)));
        reasons.collect()
    }

    /// Whether every probed backend's health is known.
    pub(super) fn all_known(&self) -> bool {
        self.probed.values().all(|probed| probed.monitor.health() != Health::Unknown)
    }
}

fn by_name(config: &Config) -> HashMap<&str, &config::Service> {
    config.services.iter().map(|service| (service.name.as_str(), service)).collect()
}

fn held_text(held: Held) -> String {
    let seconds = held.left.as_secs_f64().ceil();
    let times = match held.flaps {
        0 => return format!("held down for {seconds} s more"),
        1 => "once".to_owned(),
        flaps => format!("{flaps} times in a row"),
    };
    format!("held down for {seconds} s more, for it fell {times} soon after it had recovered")
}
