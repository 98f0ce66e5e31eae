//! Configuration, health and next hops → what the maps should hold, and how each service is.

use std::collections::BTreeMap;

use lb_common::abi::{self, NextHop};
use lb_common::net::{Address, Protocol};

use super::config::{self, BackendState, Config, Probe};
use super::health::{Candidate, Health, Serving, serving};
use super::image::{VipKey, Wanted, WantedBackend, WantedService};
use super::reach::{Target, reach};

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
        let services = config.services.iter().map(|service| self.wanted_service(service)).collect();
        Wanted { ring_seed: config.agent.ring_seed, services }
    }

    fn wanted_service(&self, service: &config::Service) -> WantedService {
        let checked = service.health.probe != Probe::None;
        let eligible = self.serving(service).eligible;
        let backends = service.backends.iter().zip(eligible).map(|(backend, eligible)| {
            let health = self.health_of(&service.name, &backend.name);
            WantedBackend {
                name: backend.name.clone(),
                address: backend.address.into(),
                enabled: backend.state != BackendState::Disabled,
                // One that takes new flows because nothing better is left counts as healthy: flows may stay with it.
                healthy: eligible || !checked || health != Health::Unhealthy,
                probed_healthy: !checked || health == Health::Healthy,
                ring_weight: if eligible { backend.weight } else { 0 },
                hop: self.hops.get(&(backend.address, reach(service.forwarding))).copied(),
            }
        });
        WantedService {
            name: service.name.clone(),
            forwarding: forwarding(service.forwarding),
            vips: service.vips.iter().map(|vip| vip_key(vip, service.protocol)).collect(),
            backends: backends.collect(),
        }
    }
}

/// A forwarding mode as the maps have it.
pub fn forwarding(forwarding: config::Forwarding) -> abi::Forwarding {
    match forwarding {
        config::Forwarding::L2Dsr => abi::Forwarding::L2Dsr,
    }
}

fn vip_key(vip: &config::Vip, protocol: config::Protocol) -> VipKey {
    let protocol = match protocol {
        config::Protocol::Tcp => Protocol::TCP,
        config::Protocol::Udp => Protocol::UDP,
    };
    VipKey { address: Address::from(vip.address), port: vip.port, protocol }
}
