//! What the maps hold, and what they should hold, as plain values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lb_common::abi::{
    Forwarding, MIN_TRANSLATION_BUCKETS, NextHop, SNAT_MARK, TRANSLATIONS_A_BUCKET, VipFlags, VipTable,
};
use lb_common::datapath::TimedOpenings;
use lb_common::net::{Address, Protocol};

use super::ring::Known;

/// What names an entry of the VIP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VipKey {
    /// The virtual address.
    pub address: Address,
    /// The port in host byte order; 0 for every port.
    pub port: u16,
    /// The protocol; ICMP, with port 0, marks the address as a VIP, and [`SNAT_MARK`] as one that translated packets are
    /// sent from.
    pub protocol: Protocol,
}

/// What an entry of the VIP table leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VipTarget {
    /// The service's id; 0 for addresses that translated packets are sent from.
    pub service: u32,
    /// What its packets need.
    pub flags: VipFlags,
}

/// Settings for all services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// Whether the sender of an IPv4 packet that does not fit and may be fragmented is told so.
    pub reply_oversized: bool,
    /// Which TCP openings are timed.
    pub timed_openings: TimedOpenings,
    /// Sources where no next hop names one, of IPv4 and of IPv6; zero if there is none.
    pub sources: [Address; 2],
    /// Addresses that translated packets are sent from, of IPv4 and of IPv6; where there are none, the next hop's source is.
    pub snat: [Vec<Address>; 2],
}

/// What is loaded, as read back from the maps.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Services by id.
    pub services: BTreeMap<u32, LoadedService>,
    /// Backends by id.
    pub backends: BTreeMap<u16, LoadedBackend>,
    /// The VIP table in force.
    pub vips: Vec<(VipKey, VipTarget)>,
    /// Which half that is.
    pub vip_table: VipTable,
    /// Settings for all services.
    pub globals: Globals,
    /// How much fits.
    pub capacity: Capacity,
    /// What else there is, if this is only what is loaded of some services.
    pub beside: Beside,
}

/// What is in use beside what an [`Image`] of some services shows: ids in their order, and ring slots.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Of services.
    pub services: Vec<u32>,
    /// Of backends.
    pub backends: Vec<u16>,
    /// Ring slots.
    pub rings: BTreeSet<u16>,
}

/// How much the loaded maps hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Services; ids are below it.
    pub services: u32,
    /// Backends of all services; ids are `1..=backends`.
    pub backends: u32,
    /// Rings, those being built included.
    pub rings: u32,
    /// Buckets in one half of the VIP table.
    pub vip_buckets: u32,
    /// Buckets of the flow table.
    pub flow_buckets: u32,
    /// Translations that there is to be room for: two for a connection, and a multiple of those in a bucket.
    pub translations: u32,
}

impl Capacity {
    /// Translations for so many connections: two each, and whole buckets.
    pub fn translations_for(connections: u32) -> u32 {
        let least = MIN_TRANSLATION_BUCKETS * TRANSLATIONS_A_BUCKET;
        connections.saturating_mul(2).max(least).next_multiple_of(TRANSLATIONS_A_BUCKET)
    }

    /// Buckets for the translations.
    pub fn translation_buckets(self) -> u32 {
        self.translations.div_ceil(TRANSLATIONS_A_BUCKET).max(MIN_TRANSLATION_BUCKETS)
    }

    /// With the tables of flows and translations as large as wanted. A flow table grows by a whole factor, by which no bucket
    /// overflows when flows are carried over; one that is less than twice as large as wanted stays.
    pub fn with_tables(self, wanted: Self) -> Self {
        let (loaded, wanted_flows) = (self.flow_buckets.max(1), wanted.flow_buckets.max(1));
        let flow_buckets = match loaded / wanted_flows {
            0 => loaded.saturating_mul(wanted_flows.div_ceil(loaded)),
            1 => loaded,
            _ => wanted_flows,
        };
        Self { flow_buckets, translations: wanted.translations, ..self }
    }

    /// With at least as much room for services, backends and VIPs as wanted.
    pub fn with_room(self, wanted: Self) -> Self {
        Self {
            services: self.services.max(wanted.services),
            backends: self.backends.max(wanted.backends),
            rings: self.rings.max(wanted.rings),
            vip_buckets: self.vip_buckets.max(wanted.vip_buckets),
            ..self
        }
    }
}

/// A loaded service.
#[derive(Clone, Debug)]
pub struct LoadedService {
    /// Its name.
    pub name: String,
    /// The slot of the ring in force, and what is known of that.
    pub ring: Option<(u16, Arc<Known>)>,
}

/// A loaded backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedBackend {
    /// Its name.
    pub name: String,
    /// The server's own address.
    pub address: Address,
    /// The id of its service.
    pub service: u32,
    /// Whether established flows may go to it.
    pub enabled: bool,
    /// Whether it counts as healthy.
    pub healthy: bool,
    /// Whether its probes succeed, or it needs none.
    pub probed_healthy: bool,
    /// Whether its service's ring names it.
    pub takes_new: bool,
    /// The forwarding mode of its service.
    pub forwarding: Forwarding,
    /// The port that packets are translated to; 0 keeps the VIP's.
    pub port: u16,
    /// Its next hop, if it is known.
    pub hop: Option<NextHop>,
}

#[cfg(test)]
impl LoadedBackend {
    /// One that is well and takes new flows, at 10.0.1.11, of a service that steers by direct server return.
    pub(crate) fn well(name: &str, service: u32) -> Self {
        Self {
            name: name.to_owned(),
            address: Address::v4([10, 0, 1, 11]),
            service,
            enabled: true,
            healthy: true,
            probed_healthy: true,
            takes_new: true,
            forwarding: Forwarding::L2Dsr,
            port: 0,
            hop: None,
        }
    }
}

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Seed of every ring.
    pub ring_seed: u64,
    /// Settings for all services.
    pub globals: Globals,
    /// Addresses that new translated flows are sent from: answers to them are looked up.
    pub snat: BTreeSet<Address>,
    /// Addresses that no translated flow is sent from any more: answers to others of before are looked up, too.
    pub unused: BTreeSet<Address>,
    /// The services.
    pub services: Vec<WantedService>,
}

/// A service as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedService {
    /// Its name, which is its identity.
    pub name: String,
    /// Its forwarding mode.
    pub forwarding: Forwarding,
    /// Whether all flows of a client go to one backend.
    pub client_affinity: bool,
    /// Its VIPs, without the marks for ICMP.
    pub vips: Vec<VipKey>,
    /// Its backends.
    pub backends: Vec<WantedBackend>,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedBackend {
    /// Its name.
    pub name: String,
    /// The server's own address: with the name, its identity within the service. Another address is another server.
    pub address: Address,
    /// Whether established flows may go to it.
    pub enabled: bool,
    /// Whether it counts as healthy.
    pub healthy: bool,
    /// Whether its probes succeed, or it needs none.
    pub probed_healthy: bool,
    /// Its weight in the ring; 0 if it takes no new flows.
    pub ring_weight: u16,
    /// The port that packets are translated to; 0 keeps the VIP's.
    pub port: u16,
    /// Its next hop; none leaves the loaded one as it is.
    pub hop: Option<NextHop>,
}

impl Image {
    /// The id of the service with this name.
    pub fn service_id(&self, name: &str) -> Option<u32> {
        self.services.iter().find(|(_, service)| service.name == name).map(|(&id, _)| id)
    }

    /// The ids of services by their names.
    pub fn ids_by_name(&self) -> HashMap<&str, u32> {
        self.services.iter().map(|(&id, service)| (service.name.as_str(), id)).collect()
    }

    /// The ids of backends whose service is loaded, by service id, name and address.
    pub fn backend_ids(&self) -> HashMap<(u32, &str, Address), u16> {
        let backends =
            self.backends.iter().filter(|(_, backend)| self.services.contains_key(&backend.service));
        backends
            .map(|(&id, backend)| ((backend.service, backend.name.as_str(), backend.address), id))
            .collect()
    }

    /// The addresses that translated packets are, or were, sent from.
    pub fn sources(&self) -> impl Iterator<Item = Address> {
        self.vips.iter().filter(|(key, _)| key.protocol == SNAT_MARK).map(|(key, _)| key.address)
    }

    /// Those of them that nothing which is loaded sends from any more.
    pub fn former_sources(&self) -> BTreeSet<Address> {
        let hops = self.backends.values().filter_map(|backend| backend.hop.as_ref());
        let otherwise = self.globals.snat.iter().flatten().chain(&self.globals.sources);
        let mut former: BTreeSet<Address> = self.sources().collect();
        for source in hops.map(|hop| &hop.source).chain(otherwise) {
            former.remove(source);
        }
        former
    }

    /// The ring slots in force.
    pub fn rings_in_use(&self) -> BTreeSet<u16> {
        let own = self.services.values().filter_map(|service| service.ring.as_ref().map(|(slot, _)| *slot));
        own.chain(self.beside.rings.iter().copied()).collect()
    }

    /// Whether a service has this id.
    pub fn has_service(&self, id: u32) -> bool {
        self.services.contains_key(&id) || self.beside.services.binary_search(&id).is_ok()
    }

    /// Whether a backend has this id.
    pub fn has_backend(&self, id: u16) -> bool {
        self.backends.contains_key(&id) || self.beside.backends.binary_search(&id).is_ok()
    }
}

impl Wanted {
    /// Whether a service of this name is wanted.
    pub fn has_service(&self, name: &str) -> bool {
        self.services.iter().any(|service| service.name == name)
    }

    /// Everything the VIP table should hold, with the id of each service by its name: the VIPs, for each address a mark by
    /// which a ping finds it, and the marks of the addresses that translated packets are sent from.
    pub fn vip_entries(
        &self,
        sources: &BTreeSet<Address>,
        id: impl Fn(&str) -> Option<u32>,
    ) -> Vec<(VipKey, VipTarget)> {
        let mut marked = BTreeSet::new();
        let mut entries = Vec::new();
        for service in &self.services {
            let Some(id) = id(&service.name) else { continue };
            let nat = service.forwarding == Forwarding::Nat;
            let target = VipTarget { service: id, flags: VipFlags::new(nat, service.client_affinity) };
            for &vip in &service.vips {
                entries.push((vip, target));
                if marked.insert(vip.address) {
                    entries.push((VipKey { port: 0, protocol: Protocol::ICMP, ..vip }, target));
                }
            }
        }
        entries.extend(sources.iter().map(source_mark));
        entries
    }
}

/// The entry of the VIP table by which answers to an address are looked up that translated packets are sent from.
pub fn source_mark(address: &Address) -> (VipKey, VipTarget) {
    (VipKey { address: *address, port: 0, protocol: SNAT_MARK }, VipTarget::default())
}
