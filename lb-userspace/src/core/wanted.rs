//! Configuration, health and next hops → what the maps should hold, and how each service is.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{self, NextHop};
use lb_common::datapath::TimedOpenings;
use lb_common::net::{Address, Protocol};

use super::config::{self, Affinity, BackendState, Config, Oversized, Probe, Source};
use super::health::{Candidate, Health, Serving, serving};
use super::image::{Globals, VipKey, Wanted, WantedBackend, WantedService};
use super::reach::{Target, reach};
use super::slow_start::{self, Share};

/// What names a backend: its service's name and its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
}

impl BackendKey {
    /// The key of a backend.
    pub fn new(service: &str, backend: &str) -> Self {
        Self { service: service.to_owned(), backend: backend.to_owned() }
    }
}

/// What the agent knows about the backends of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Health by backend; absent means unknown.
    pub health: BTreeMap<BackendKey, Health>,
    /// Next hops by what they lead to; absent means not known now.
    pub hops: BTreeMap<Target, NextHop>,
    /// Backends that have only a share of their weight yet.
    pub shares: BTreeMap<BackendKey, Share>,
}

impl Knowledge {
    /// A backend's health.
    pub fn health_of(&self, service: &str, backend: &str) -> Health {
        self.health.get(&BackendKey::new(service, backend)).copied().unwrap_or_default()
    }

    /// The same, as it will be if backends that have not been probed yet turn out well.
    pub fn hopeful(mut self, config: &Config) -> Self {
        for service in &config.services {
            for backend in &service.backends {
                let health = self.health.entry(BackendKey::new(&service.name, &backend.name)).or_default();
                if *health == Health::Unknown {
                    *health = Health::Healthy;
                }
            }
        }
        self
    }

    /// How a service is, and which of its backends take new flows, in their order.
    ///
    /// A backend that no frame can be sent to, for its MAC address was never known, takes none while another can.
    pub fn serving(&self, service: &config::Service) -> Serving {
        let mut serving = self.serving_by_health(service);
        let mode = reach(service.forwarding);
        let reachable = |backend: &config::Backend| self.hops.contains_key(&(backend.address, mode));
        let takes_flows = service.backends.iter().zip(&serving.eligible).filter(|(_, eligible)| **eligible);
        if takes_flows.map(|(backend, _)| backend).any(reachable) {
            for (eligible, backend) in serving.eligible.iter_mut().zip(&service.backends) {
                *eligible &= reachable(backend);
            }
        }
        serving
    }

    fn serving_by_health(&self, service: &config::Service) -> Serving {
        let checked = service.health.probe != Probe::None;
        let candidates: Vec<Candidate> = service
            .backends
            .iter()
            .map(|backend| Candidate {
                state: backend.state,
                weight: backend.weight,
                checked,
                health: self.health_of(&service.name, &backend.name),
            })
            .collect();
        serving(&candidates, service.all_down, service.min_healthy)
    }

    /// What the maps should hold.
    pub fn wanted(&self, config: &Config) -> Wanted {
        let services: Vec<WantedService> =
            config.services.iter().map(|service| self.wanted_service(service, config)).collect();
        let globals = self.globals(config);
        let snat = snat(&services, &globals);
        Wanted { ring_seed: config.agent.ring_seed, globals, snat, services }
    }

    fn wanted_service(&self, service: &config::Service, config: &Config) -> WantedService {
        let checked = service.health.probe != Probe::None;
        let eligible = self.serving(service).eligible;
        let share = |backend: &config::Backend| {
            self.shares.get(&BackendKey::new(&service.name, &backend.name)).copied()
        };
        let ramping =
            !self.shares.is_empty() && service.backends.iter().any(|backend| share(backend).is_some());
        let greatest = service.backends.iter().map(|backend| backend.weight).max().unwrap_or(0);
        let scale = if ramping { slow_start::scale(greatest) } else { 1 };
        let backends = service.backends.iter().zip(eligible).map(|(backend, eligible)| {
            let health = self.health_of(&service.name, &backend.name);
            WantedBackend {
                name: backend.name.clone(),
                address: backend.address.into(),
                enabled: keeps_flows(backend.state, checked, health),
                // One that takes new flows because nothing better is left counts as healthy: flows may stay with it.
                healthy: eligible || !checked || health != Health::Unhealthy,
                probed_healthy: !checked || health == Health::Healthy,
                ring_weight: if eligible {
                    slow_start::weight(backend.weight, scale, share(backend))
                } else {
                    0
                },
                port: backend.port.unwrap_or(0),
                hop: self.hop((backend.address, reach(service.forwarding)), config),
            }
        });
        WantedService {
            name: service.name.clone(),
            forwarding: forwarding(service.forwarding),
            client_affinity: service.affinity == Affinity::Client,
            vips: service.vips.iter().map(|vip| vip_key(vip, service.protocol)).collect(),
            backends: backends.collect(),
        }
    }

    /// A backend's next hop; its source is the first configured one of the family, else the one that the kernel would use.
    fn hop(&self, target: Target, config: &Config) -> Option<NextHop> {
        let hop = self.hops.get(&target).copied()?;
        let sources = if target.0.is_ipv4() { &config.agent.source_v4 } else { &config.agent.source_v6 };
        Some(match sources.first() {
            Some(source) => {
                NextHop { source: source.address.into(), source_mask: source_mask(*source), ..hop }
            }
            None => hop,
        })
    }

    fn globals(&self, config: &Config) -> Globals {
        let configured = [&config.agent.source_v4, &config.agent.source_v6];
        let [own_v4, own_v6] = [true, false].map(|v4| {
            let known = self.hops.iter().filter(|((address, _), _)| address.is_ipv4() == v4);
            known.map(|(_, hop)| hop.source).find(|source| !source.is_zero()).unwrap_or_default()
        });
        let first =
            |sources: &[Source], otherwise| sources.first().map_or(otherwise, |first| first.address.into());
        let [v4, v6] = configured;
        Globals {
            reply_oversized: config.agent.oversized == Oversized::Reply,
            timed_openings: TimedOpenings::one_in(config.agent.time_openings),
            sources: [first(v4, own_v4), first(v6, own_v6)],
            snat: configured.map(|sources| {
                sources
                    .iter()
                    .filter(|source| source.is_single())
                    .map(|source| source.address.into())
                    .collect()
            }),
        }
    }
}

/// Whether a backend's established flows may go on there. An unhealthy one may still be serving them; but one that is drained
/// is on its way out, and what it no longer serves is better chosen afresh than kept.
fn keeps_flows(state: BackendState, checked: bool, health: Health) -> bool {
    match state {
        BackendState::Enabled => true,
        BackendState::Drain => !checked || health != Health::Unhealthy,
        BackendState::Disabled => false,
    }
}

/// The addresses that translated packets are sent from: those configured, else those of the next hops.
fn snat(services: &[WantedService], globals: &Globals) -> BTreeSet<Address> {
    let [v4, v6] = &globals.snat;
    let translated = services.iter().filter(|service| service.forwarding == abi::Forwarding::Nat);
    let mut snat = BTreeSet::new();
    for backend in translated.flat_map(|service| &service.backends) {
        let configured = if backend.address.is_v4() { v4 } else { v6 };
        if configured.is_empty() {
            snat.extend(backend.hop.map(|hop| hop.source).filter(|source| !source.is_zero()));
        } else {
            snat.extend(configured);
        }
    }
    snat
}

/// The bits of a source's last word that its prefix leaves free, in network byte order.
fn source_mask(source: Source) -> u32 {
    let bits = if source.address.is_ipv4() { 32 } else { 128 };
    let free = u32::from(bits - source.prefix.min(bits)).min(32);
    u32::MAX.checked_shr(32 - free).unwrap_or(0).to_be()
}

/// A forwarding mode as the maps have it.
pub fn forwarding(forwarding: config::Forwarding) -> abi::Forwarding {
    match forwarding {
        config::Forwarding::L2Dsr => abi::Forwarding::L2Dsr,
        config::Forwarding::Ipip => abi::Forwarding::Ipip,
        config::Forwarding::Gue => abi::Forwarding::Gue,
        config::Forwarding::Nat => abi::Forwarding::Nat,
    }
}

fn vip_key(vip: &config::Vip, protocol: config::Protocol) -> VipKey {
    let protocol = match protocol {
        config::Protocol::Tcp => Protocol::TCP,
        config::Protocol::Udp => Protocol::UDP,
    };
    VipKey { address: Address::from(vip.address), port: vip.port, protocol }
}
