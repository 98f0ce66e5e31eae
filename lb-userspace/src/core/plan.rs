//! What is loaded and what is wanted → the actions that lead from one to the other, each of them safe by itself.
//!
//! Make before break: whatever packets are about to be pointed at is complete before the one word that points there is
//! switched; whatever they were pointed at before stays until none can see it. So the actions may stop anywhere, and
//! an agent that reads the maps back can go on from there.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use lb_common::abi::{Forwarding, Ring, ServiceWord, VipBucket, VipTable};
use lb_common::net::Protocol;

use super::image::{
    Capacity, Globals, Image, LoadedBackend, VipKey, VipTarget, Wanted, WantedBackend, WantedService,
};
use super::{ring, vips};

/// One change of the maps.
#[derive(Clone, Debug)]
pub enum Action {
    /// Replaces the settings for all services.
    WriteGlobals(Globals),
    /// Writes a backend's record; its next hop changes together with its word.
    WriteBackend {
        /// Its id.
        id: u16,
        /// What it should be.
        backend: LoadedBackend,
        /// Whether the id was free, so that its counters start at zero.
        new: bool,
    },
    /// Fills a ring slot that no service uses.
    WriteRing {
        /// The slot.
        slot: u16,
        /// The ring.
        ring: Arc<Ring>,
    },
    /// Replaces a service's word: this switches its ring.
    WriteService {
        /// Its id.
        id: u32,
        /// Its name.
        name: String,
        /// The word.
        word: ServiceWord,
        /// Whether the id was free, so that its counters start at zero.
        new: bool,
    },
    /// Fills the half of the VIP table that is not in force, and switches to it.
    WriteVips {
        /// The table that is then in force.
        table: VipTable,
        /// Its buckets.
        buckets: Vec<VipBucket>,
    },
    /// Waits until no packet is under way that saw what was before.
    Grace,
    /// Frees a backend's id.
    ClearBackend(u16),
    /// Frees a service's id.
    ClearService(u32),
    /// Ends the accounts of what is gone: sweeps the backends' flows, and adds what was counted for a backend to its
    /// service, or, for a service that is gone, to what all of these had.
    Retire {
        /// Backends, and the services they were of.
        backends: BTreeMap<u16, u32>,
        /// Services.
        services: BTreeSet<u32>,
    },
}

/// Why no plan can be made. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More of something than the loaded maps hold.
    #[error(
        "there is room for {capacity} {what} at most, but {needed} are wanted, and {gone} that go are still held while \
         the new ones come: make the change in two steps if that helps"
    )]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many are wanted.
        needed: usize,
        /// How many that are not wanted any more have their place until the new ones are in force.
        gone: usize,
        /// How many fit.
        capacity: u32,
    },
}

/// The way from what is loaded to what is wanted.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// The rings that are then in force, by service name.
    pub rings: BTreeMap<String, Option<Arc<Ring>>>,
    /// Backends that then may keep their flows, by id.
    pub kept: BTreeSet<u16>,
}

/// Plans the way from `loaded` to `wanted`.
pub fn plan(loaded: &Image, wanted: &Wanted, cache: &mut RingCache) -> Result<Plan, PlanError> {
    let ids = Ids::assign(loaded, wanted)?;
    let rings: BTreeMap<String, Option<Arc<Ring>>> = ids
        .of(wanted)
        .map(|(id, service)| (service.name.clone(), ids.ring(wanted.ring_seed, id, service, cache)))
        .collect();
    cache.0.retain(|name, _| rings.contains_key(name));
    let mut actions = Vec::new();
    if loaded.globals != wanted.globals {
        actions.push(Action::WriteGlobals(wanted.globals.clone()));
    }
    make_backends(loaded, wanted, &ids, &mut actions);
    switch_services(loaded, wanted, &ids, &rings, &mut actions)?;
    switch_vips(loaded, wanted, &ids, &mut actions)?;
    break_rest(loaded, wanted, &ids, &mut actions);
    let kept = backends(wanted, &ids).filter(|(.., backend, _)| backend.enabled).map(|(.., id)| id).collect();
    Ok(Plan { actions, rings, kept })
}

/// Rings built before, by service name: one event seldom changes more than one of them. Two of each service are kept, for
/// a prediction looks at other members than what is loaded.
#[derive(Debug, Default)]
pub struct RingCache(BTreeMap<String, VecDeque<CachedRing>>);

#[derive(Debug)]
struct CachedRing {
    seed: u64,
    members: Vec<(String, u16, u16)>,
    ring: Option<Arc<Ring>>,
}

/// Ids of everything wanted: those it has, else free ones.
struct Ids {
    services: BTreeMap<String, u32>,
    backends: BTreeMap<(u32, String), u16>,
}

impl Ids {
    /// Assigns them.
    fn assign(loaded: &Image, wanted: &Wanted) -> Result<Self, PlanError> {
        let Capacity { services: service_room, backends: backend_room, .. } = loaded.capacity;
        let named: BTreeMap<&str, u32> =
            loaded.services.iter().map(|(&id, service)| (service.name.as_str(), id)).collect();
        let mut free = (0..service_room).filter(|id| !loaded.services.contains_key(id));
        let mut services = BTreeMap::new();
        for service in &wanted.services {
            let held = named.get(service.name.as_str()).copied();
            let id = held.or_else(|| free.next()).ok_or_else(|| {
                let gone = named.len() - named.keys().filter(|name| wanted.has_service(name)).count();
                PlanError::Full {
                    what: "services",
                    needed: wanted.services.len(),
                    gone,
                    capacity: service_room,
                }
            })?;
            services.insert(service.name.clone(), id);
        }
        let last = u16::try_from(backend_room).unwrap_or(u16::MAX);
        let mut free = (1..=last).filter(|id| !loaded.backends.contains_key(id));
        let held = loaded.backend_ids();
        let mut backends = BTreeMap::new();
        for service in &wanted.services {
            let Some(&service_id) = services.get(&service.name) else { continue };
            for backend in &service.backends {
                let held = held.get(&(service_id, backend.name.as_str(), backend.address)).copied();
                let id = held.or_else(|| free.next()).ok_or_else(|| {
                    let needed = wanted.services.iter().map(|service| service.backends.len()).sum();
                    let wanted: BTreeSet<&u16> = backends.values().collect();
                    let gone = loaded.backends.keys().filter(|id| !wanted.contains(id)).count();
                    PlanError::Full { what: "backends", needed, gone, capacity: backend_room }
                })?;
                backends.insert((service_id, backend.name.clone()), id);
            }
        }
        Ok(Self { services, backends })
    }

    fn of<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = (u32, &'a WantedService)> {
        wanted.services.iter().filter_map(|service| Some((*self.services.get(&service.name)?, service)))
    }

    fn backend(&self, service: u32, name: &str) -> Option<u16> {
        self.backends.get(&(service, name.to_owned())).copied()
    }

    /// The ring a service should have.
    fn ring(&self, seed: u64, id: u32, service: &WantedService, cache: &mut RingCache) -> Option<Arc<Ring>> {
        let members: Vec<(String, u16, u16)> = service
            .backends
            .iter()
            .filter_map(|backend| {
                Some((backend.name.clone(), self.backend(id, &backend.name)?, backend.ring_weight))
            })
            .collect();
        let cached = cache.0.entry(service.name.clone()).or_default();
        if let Some(found) = cached.iter().find(|cached| cached.seed == seed && cached.members == members) {
            return found.ring.clone();
        }
        let named: Vec<ring::Member<'_>> = members
            .iter()
            .map(|(name, id, weight)| ring::Member { name, id: *id, weight: *weight })
            .collect();
        let ring = ring::build(seed, &named).map(Arc::from);
        cached.push_front(CachedRing { seed, members, ring: ring.clone() });
        cached.truncate(2);
        ring
    }
}

/// A backend as it is loaded when it is as wanted. A next hop that is not known now stays what it was, unless the forwarding
/// mode changes: where `l2-dsr` comes after a tunnel, it may be a gateway's.
fn as_loaded(
    service: u32,
    forwarding: Forwarding,
    wanted: &WantedBackend,
    before: Option<&LoadedBackend>,
) -> LoadedBackend {
    LoadedBackend {
        name: wanted.name.clone(),
        address: wanted.address,
        service,
        enabled: wanted.enabled,
        healthy: wanted.healthy,
        probed_healthy: wanted.probed_healthy,
        takes_new: wanted.ring_weight > 0,
        forwarding,
        port: wanted.port,
        hop: wanted
            .hop
            .or(before.filter(|before| before.forwarding == forwarding).and_then(|before| before.hop)),
    }
}

/// Writes new and changed backends. One that is to be disabled stays enabled until no ring names it.
fn make_backends(loaded: &Image, wanted: &Wanted, ids: &Ids, actions: &mut Vec<Action>) {
    for (service, forwarding, backend, id) in backends(wanted, ids) {
        let before = loaded.backends.get(&id);
        let mut after = as_loaded(service, forwarding, backend, before);
        after.enabled |= before.is_some_and(|before| before.enabled);
        if before != Some(&after) {
            actions.push(Action::WriteBackend { id, backend: after, new: before.is_none() });
        }
    }
}

fn backends<'a>(
    wanted: &'a Wanted,
    ids: &'a Ids,
) -> impl Iterator<Item = (u32, Forwarding, &'a WantedBackend, u16)> {
    ids.of(wanted).flat_map(move |(service_id, service)| {
        service.backends.iter().filter_map(move |backend| {
            Some((service_id, service.forwarding, backend, ids.backend(service_id, &backend.name)?))
        })
    })
}

/// Builds changed rings aside and switches to them. Slots that were released are used again after a grace period.
fn switch_services(
    loaded: &Image,
    wanted: &Wanted,
    ids: &Ids,
    rings: &BTreeMap<String, Option<Arc<Ring>>>,
    actions: &mut Vec<Action>,
) -> Result<(), PlanError> {
    let in_use = loaded.rings_in_use();
    let slots = u16::try_from(loaded.capacity.rings).unwrap_or(u16::MAX);
    let mut free: Vec<u16> = (0..slots).rev().filter(|slot| !in_use.contains(slot)).collect();
    let mut released = Vec::new();
    for (id, service) in ids.of(wanted) {
        let before = loaded.services.get(&id);
        let ring = rings.get(&service.name).cloned().flatten();
        let loaded_ring = before.and_then(|before| before.ring.as_ref());
        let same = match (&ring, loaded_ring) {
            (None, None) => true,
            (Some(ring), Some((_, loaded))) => Arc::ptr_eq(ring, loaded) || ring.slots == loaded.slots,
            _ => false,
        };
        if same && before.is_some() {
            continue;
        }
        let slot = match ring {
            None => None,
            Some(ring) => {
                if free.is_empty() && !released.is_empty() {
                    actions.push(Action::Grace);
                    free.append(&mut released);
                }
                let slot = free.pop().ok_or(PlanError::Full {
                    what: "rings",
                    needed: wanted.services.len() + 1,
                    gone: loaded.services.len().saturating_sub(wanted.services.len()),
                    capacity: loaded.capacity.rings,
                })?;
                actions.push(Action::WriteRing { slot, ring });
                Some(slot)
            }
        };
        actions.push(Action::WriteService {
            id,
            name: service.name.clone(),
            word: ServiceWord { used: true, ring: slot },
            new: before.is_none(),
        });
        released.extend(loaded_ring.map(|(slot, _)| *slot).filter(|&old| Some(old) != slot));
    }
    Ok(())
}

/// Replaces the VIP table if it changes.
fn switch_vips(
    loaded: &Image,
    wanted: &Wanted,
    ids: &Ids,
    actions: &mut Vec<Action>,
) -> Result<(), PlanError> {
    let entries = wanted.vip_entries(|name| ids.services.get(name).copied());
    let held: HashSet<&(VipKey, VipTarget)> = loaded.vips.iter().collect();
    if entries.len() == held.len() && entries.iter().all(|entry| held.contains(entry)) {
        return Ok(());
    }
    let buckets = vips::build(&entries, loaded.capacity.vip_buckets).ok_or(PlanError::Full {
        what: "VIPs and VIP addresses",
        needed: entries.len(),
        gone: 0,
        capacity: loaded.capacity.vip_buckets,
    })?;
    let table = VipTable {
        first_bucket: if loaded.vip_table.first_bucket > 0 { 0 } else { loaded.capacity.vip_buckets },
        any_port: entries
            .iter()
            .any(|(vip, _)| vip.port == 0 && [Protocol::TCP, Protocol::UDP].contains(&vip.protocol)),
        nat: !wanted.snat.is_empty(),
    };
    actions.push(Action::WriteVips { table, buckets });
    Ok(())
}

/// Disables and removes what is no longer wanted, once no packet can be on its way there.
fn break_rest(loaded: &Image, wanted: &Wanted, ids: &Ids, actions: &mut Vec<Action>) {
    if actions.iter().any(|action| matches!(action, Action::WriteService { .. } | Action::WriteVips { .. })) {
        actions.push(Action::Grace);
    }
    for (service, forwarding, backend, id) in backends(wanted, ids) {
        if let Some(before) = loaded.backends.get(&id)
            && before.enabled
            && !backend.enabled
        {
            let backend = as_loaded(service, forwarding, backend, Some(before));
            actions.push(Action::WriteBackend { id, backend, new: false });
        }
    }
    let wanted_services: BTreeSet<u32> = ids.services.values().copied().collect();
    let wanted_backends: BTreeSet<u16> = ids.backends.values().copied().collect();
    let services: BTreeSet<u32> =
        loaded.services.keys().filter(|id| !wanted_services.contains(id)).copied().collect();
    let gone = loaded.backends.iter().filter(|(id, _)| !wanted_backends.contains(id));
    let backends: BTreeMap<u16, u32> = gone.map(|(&id, backend)| (id, backend.service)).collect();
    actions.extend(services.iter().map(|&id| Action::ClearService(id)));
    actions.extend(backends.keys().map(|&id| Action::ClearBackend(id)));
    if !backends.is_empty() || !services.is_empty() {
        actions.push(Action::Grace);
        actions.push(Action::Retire { backends, services });
    }
}
