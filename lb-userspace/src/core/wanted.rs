//! Configuration, health and next hops → what the maps should hold, and how each service is.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::abi::{self, NextHop};
use lb_common::datapath::TimedOpenings;
use lb_common::net::{Address, Protocol};

use super::config::{self, Affinity, BackendState, Config, Oversized, Probe, Source};
use super::health::{Candidate, Health, Serving, serving};
use super::image::{Globals, VipKey, Wanted, WantedBackend, WantedService};
use super::reach::{Target, targets};
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
    pub health: HashMap<BackendKey, Health>,
    /// Next hops by what they lead to; absent means not known now.
    pub hops: HashMap<Target, NextHop>,
    /// Backends that have only a share of their weight yet.
    pub shares: BTreeMap<BackendKey, Share>,
}

impl Knowledge {
    /// The health of each of a service's backends, in their order.
    pub(super) fn health(&self, service: &config::Service) -> Vec<Health> {
        // One key for all: most of the work would be making them.
        let mut key = BackendKey::new(&service.name, "");
        let health = service.backends.iter().map(|backend| {
            key.backend.clone_from(&backend.name);
            self.health.get(&key).copied().unwrap_or_default()
        });
        health.collect()
    }

    /// How a service is, and which of its backends take new flows, in their order.
    ///
    /// A backend that no frame can be sent to, for its MAC address was never known, takes none while another can.
    pub fn serving(&self, service: &config::Service) -> Serving {
        let outlook = Outlook::new(self, None);
        outlook.serving(service, &outlook.health(service), &outlook.hops(service))
    }

    /// How a service will be if backends that have not been probed yet turn out well.
    pub fn hoped_serving(&self, service: &config::Service) -> Serving {
        let hops = BTreeSet::new();
        let outlook = Outlook::new(self, Some(&hops));
        outlook.serving(service, &outlook.health(service), &outlook.hops(service))
    }

    /// What the maps should hold.
    pub fn wanted(&self, config: &Config) -> Wanted {
        self.wanted_of(config, config.services.iter())
    }

    /// The same, of these services of it alone.
    pub fn wanted_of<'a>(
        &self,
        config: &Config,
        services: impl Iterator<Item = &'a config::Service>,
    ) -> Wanted {
        Outlook::new(self, None).wanted_of(config, services)
    }

    /// The same, as it will be if backends that have not been probed yet turn out well, and these next hops are found; whether
    /// anything rests on that.
    pub fn hoped(&self, config: &Config, hops: &BTreeSet<Target>) -> (Wanted, bool) {
        self.hoped_of(config, config.services.iter(), hops)
    }

    /// The same, of these services of it alone.
    pub fn hoped_of<'a>(
        &self,
        config: &Config,
        services: impl Iterator<Item = &'a config::Service>,
        hops: &BTreeSet<Target>,
    ) -> (Wanted, bool) {
        let outlook = Outlook::new(self, Some(hops));
        let wanted = outlook.wanted_of(config, services);
        (wanted, outlook.hopeful.get())
    }
}

/// What is known, and what is hoped for.
struct Outlook<'a> {
    knowledge: &'a Knowledge,
    /// Next hops that are not known; where there are such hopes, what has not been probed yet is healthy.
    hoped: Option<&'a BTreeSet<Target>>,
    /// Whether a hope was of use.
    hopeful: Cell<bool>,
}

impl<'a> Outlook<'a> {
    fn new(knowledge: &'a Knowledge, hoped: Option<&'a BTreeSet<Target>>) -> Self {
        Self { knowledge, hoped, hopeful: Cell::new(false) }
    }

    /// The health of a service's backends, in their order.
    fn health(&self, service: &config::Service) -> Vec<Health> {
        let mut known = self.knowledge.health(service);
        if self.hoped.is_some() && service.health.probe != Probe::None {
            for health in known.iter_mut().filter(|health| **health == Health::Unknown) {
                *health = Health::Healthy;
                self.hopeful.set(true);
            }
        }
        known
    }

    /// The next hops of a service's backends, in their order.
    fn hops(&self, service: &config::Service) -> Vec<Option<NextHop>> {
        let hop = |target| {
            let known = self.knowledge.hops.get(&target).copied();
            known.or_else(|| {
                let hoped = self.hoped.is_some_and(|hoped| hoped.contains(&target));
                hoped.then(|| {
                    self.hopeful.set(true);
                    NextHop::default()
                })
            })
        };
        targets(service).map(hop).collect()
    }

    fn serving(&self, service: &config::Service, health: &[Health], hops: &[Option<NextHop>]) -> Serving {
        let checked = service.health.probe != Probe::None;
        let candidates: Vec<Candidate> = (service.backends.iter().zip(health))
            .map(|(backend, &health)| Candidate {
                state: backend.state,
                weight: backend.weight,
                checked,
                health,
            })
            .collect();
        let mut serving = serving(&candidates, service.all_down, service.min_healthy);
        if serving.eligible.iter().zip(hops).any(|(&eligible, hop)| eligible && hop.is_some()) {
            for (eligible, hop) in serving.eligible.iter_mut().zip(hops) {
                *eligible &= hop.is_some();
            }
        }
        serving
    }

    fn wanted_of<'s>(&self, config: &Config, services: impl Iterator<Item = &'s config::Service>) -> Wanted {
        let services: Vec<WantedService> =
            services.map(|service| self.wanted_service(service, config)).collect();
        let globals = self.globals(config);
        let snat = snat(&services, &globals);
        Wanted { ring_seed: config.agent.ring_seed, globals, snat, unused: BTreeSet::new(), services }
    }

    fn wanted_service(&self, service: &config::Service, config: &Config) -> WantedService {
        let checked = service.health.probe != Probe::None;
        let health = self.health(service);
        let hops = self.hops(service);
        let eligible = self.serving(service, &health, &hops).eligible;
        let shares = &self.knowledge.shares;
        let share = |backend: &config::Backend| {
            (!shares.is_empty())
                .then(|| shares.get(&BackendKey::new(&service.name, &backend.name)).copied())?
        };
        let ramping = service.backends.iter().any(|backend| share(backend).is_some());
        let greatest = service.backends.iter().map(|backend| backend.weight).max().unwrap_or(0);
        let scale = if ramping { slow_start::scale(greatest) } else { 1 };
        let backends = service.backends.iter().zip(eligible).zip(health).zip(hops);
        let backends = backends.map(|(((backend, eligible), health), hop)| WantedBackend {
            name: backend.name.clone(),
            address: backend.address.into(),
            enabled: keeps_flows(backend.state, checked, health),
            // One that takes new flows because nothing better is left counts as healthy: flows may stay with it.
            healthy: eligible || !checked || health != Health::Unhealthy,
            probed_healthy: !checked || health == Health::Healthy,
            ring_weight: if eligible { slow_start::weight(backend.weight, scale, share(backend)) } else { 0 },
            port: backend.port.unwrap_or(0),
            hop: hop.map(|hop| with_source(hop, backend.address, config)),
        });
        WantedService {
            name: service.name.clone(),
            forwarding: forwarding(service.forwarding),
            client_affinity: service.affinity == Affinity::Client,
            vips: service.vips.iter().map(|vip| vip_key(vip, service.protocol)).collect(),
            backends: backends.collect(),
        }
    }

    fn globals(&self, config: &Config) -> Globals {
        let configured = [&config.agent.source_v4, &config.agent.source_v6];
        let [own_v4, own_v6] = [true, false].map(|v4| {
            let known = self.knowledge.hops.iter().filter(|((address, _), _)| address.is_ipv4() == v4);
            let named = known.filter(|(_, hop)| !hop.source.is_zero());
            named.min_by_key(|(target, _)| **target).map(|(_, hop)| hop.source).unwrap_or_default()
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

/// A next hop to an address; its source is the first configured one of the family, else the one that the kernel would use.
fn with_source(hop: NextHop, address: IpAddr, config: &Config) -> NextHop {
    let sources = if address.is_ipv4() { &config.agent.source_v4 } else { &config.agent.source_v6 };
    match sources.first() {
        Some(source) => NextHop { source: source.address.into(), source_mask: source_mask(*source), ..hop },
        None => hop,
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

/// The addresses that new translated flows are sent from: those configured, else those of the next hops.
fn snat(services: &[WantedService], globals: &Globals) -> BTreeSet<Address> {
    let ([v4, v6], [own_v4, own_v6]) = (&globals.snat, globals.sources);
    let translated = services.iter().filter(|service| service.forwarding == abi::Forwarding::Nat);
    let mut snat = BTreeSet::new();
    for backend in translated.flat_map(|service| &service.backends) {
        let (configured, own) = if backend.address.is_v4() { (v4, own_v4) } else { (v6, own_v6) };
        if configured.is_empty() {
            // Without a next hop the kernel is asked where to, and not what to send from.
            snat.insert(backend.hop.map_or(own, |hop| hop.source));
        } else {
            snat.extend(configured);
        }
    }
    snat.remove(&Address::ZERO);
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
