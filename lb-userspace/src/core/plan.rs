//! What is loaded and what is wanted → the actions that lead from one to the other, each of them safe by itself.
//!
//! Make before break: whatever packets are about to be pointed at is complete before the one word that points there is
//! switched; whatever they were pointed at before stays until none can see it. So the actions may stop anywhere, and
//! an agent that reads the maps back can go on from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use lb_common::abi::{ServiceWord, VipBucket, VipTable};
use lb_common::net::Address;

use super::cut::{Cut, cut_off};
use super::image::{Capacity, Globals, Image, LoadedBackend, Wanted, WantedBackend, WantedService};
use super::ring::{Known, Member, Origin, Planned, Recipe, fingerprint};
use vips::{Vips, sources};

mod vips;

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
        ring: Arc<Planned>,
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
    /// The services that are then loaded.
    pub services: BTreeSet<u32>,
    /// The rings that change, by service id; none if the service has no ring any more.
    pub rings: BTreeMap<u32, Option<Arc<Planned>>>,
    /// Backends that then may keep their flows, by id.
    pub kept: BTreeSet<u16>,
    /// Services that stay, but not for all of their flows, by id.
    pub cut: BTreeMap<u32, Cut>,
}

/// Plans the way from `loaded` to `wanted`.
pub fn plan(loaded: &Image, wanted: &Wanted, cache: &mut RingCache) -> Result<Plan, PlanError> {
    cache.0.retain(|id, _| loaded.services.contains_key(id));
    way(loaded, wanted, cache, Extent::All)
}

/// The same for some services, of which both tell alone. Their VIPs stay what they are, as do the addresses that they are sent from, and
/// all others are left alone.
pub fn plan_some(loaded: &Image, wanted: &Wanted, cache: &mut RingCache) -> Result<Plan, PlanError> {
    way(loaded, wanted, cache, Extent::Some)
}

/// What a plan is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    Some,
}

fn way(loaded: &Image, wanted: &Wanted, cache: &mut RingCache, extent: Extent) -> Result<Plan, PlanError> {
    let ids = Ids::assign(loaded, wanted)?;
    let mut rings = BTreeMap::new();
    for service in ids.of(wanted) {
        let recipe = service.recipe(wanted.ring_seed);
        let before = loaded.services.get(&service.id).and_then(|loaded| loaded.ring.as_ref());
        let same = match (&recipe, before) {
            (None, None) => true,
            (Some(recipe), Some((_, known))) => cache.is(service.id, recipe, known),
            _ => false,
        };
        if !same {
            rings.insert(service.id, recipe.map(|recipe| Arc::new(Planned::new(Arc::new(recipe)))));
        }
    }
    let mut actions = Vec::new();
    let (mut vips, sources) = (Vips::loaded(loaded), sources(loaded, wanted));
    if extent == Extent::All {
        vips.mark_sources(&sources, &mut actions);
    }
    if loaded.globals != wanted.globals {
        actions.push(Action::WriteGlobals(wanted.globals.clone()));
    }
    make_backends(loaded, wanted, &ids, &mut actions);
    switch_services(loaded, wanted, &ids, &rings, &mut actions)?;
    let mut cut = BTreeMap::new();
    if extent == Extent::All {
        vips.switch_to_wanted(wanted, &sources, &ids, &mut actions)?;
        cut = cut_off(loaded, ids.of(wanted).map(|of| (of.id, of.service)));
    }
    break_rest(loaded, wanted, &ids, &mut actions);
    let kept = ids.backends(wanted).filter(|(_, backend, _)| backend.enabled).map(|(.., id)| id).collect();
    let services = ids.of(wanted).map(|service| service.id).collect();
    Ok(Plan { actions, services, rings, kept, cut })
}

/// What was found out about rings that another agent has loaded, by service id: which recipe makes them.
#[derive(Debug, Default)]
pub struct RingCache(BTreeMap<u32, (u64, Recipe)>);

impl RingCache {
    /// Whether a loaded ring is what a recipe makes.
    fn is(&mut self, service: u32, recipe: &Recipe, known: &Known) -> bool {
        let known = match &known.origin {
            Origin::Recipe(its) => return **its == *recipe,
            Origin::Fingerprint(known) => *known,
        };
        let found =
            self.0.get(&service).filter(|(_, found)| found == recipe).map(|(fingerprint, _)| *fingerprint);
        let fingerprint = match found {
            Some(fingerprint) => fingerprint,
            None => {
                let Some(ring) = recipe.build() else { return false };
                let fingerprint = fingerprint(&ring);
                self.0.insert(service, (fingerprint, recipe.clone()));
                fingerprint
            }
        };
        fingerprint == known
    }
}

/// Ids of everything wanted, in its order: those it has, else free ones.
struct Ids(Vec<ServiceIds>);

/// The backends that are loaded, by service id.
struct Held<'a>(HashMap<u32, Vec<(u16, &'a LoadedBackend)>>);

impl<'a> Held<'a> {
    fn new(loaded: &'a Image) -> Self {
        let mut by_service: HashMap<u32, Vec<(u16, &LoadedBackend)>> = HashMap::new();
        for (&id, backend) in &loaded.backends {
            if loaded.services.contains_key(&backend.service) {
                by_service.entry(backend.service).or_default().push((id, backend));
            }
        }
        Self(by_service)
    }

    /// The ids that a service's backends have.
    fn ids(&self, service: u32, wanted: &[WantedBackend]) -> Vec<Option<u16>> {
        let loaded = self.0.get(&service).map(Vec::as_slice).unwrap_or_default();
        let same = |wanted: &WantedBackend, loaded: &LoadedBackend| {
            loaded.name == wanted.name && loaded.address == wanted.address
        };
        // Mostly they are wanted in the order in which they got their ids.
        if loaded.len() == wanted.len() && wanted.iter().zip(loaded).all(|(one, (_, other))| same(one, other))
        {
            return loaded.iter().map(|(id, _)| Some(*id)).collect();
        }
        let ids: HashMap<(&str, Address), u16> =
            loaded.iter().map(|(id, backend)| ((backend.name.as_str(), backend.address), *id)).collect();
        wanted.iter().map(|wanted| ids.get(&(wanted.name.as_str(), wanted.address)).copied()).collect()
    }
}

/// Those of a service and its backends.
struct ServiceIds {
    id: u32,
    backends: Vec<u16>,
}

/// A wanted service with its ids.
#[derive(Clone, Copy)]
struct Identified<'a> {
    id: u32,
    service: &'a WantedService,
    backends: &'a [u16],
}

impl Identified<'_> {
    /// What its ring is made of.
    fn recipe(&self, seed: u64) -> Option<Recipe> {
        let backends = self.service.backends.iter().zip(self.backends);
        let members =
            backends.map(|(backend, &id)| Member { name: &backend.name, id, weight: backend.ring_weight });
        Recipe::new(seed, members)
    }
}

impl Ids {
    /// Assigns them.
    fn assign(loaded: &Image, wanted: &Wanted) -> Result<Self, PlanError> {
        let Capacity { services: service_room, backends: backend_room, .. } = loaded.capacity;
        let named: HashMap<&str, u32> =
            loaded.services.iter().map(|(&id, service)| (service.name.as_str(), id)).collect();
        let mut free_services = (0..service_room).filter(|&id| !loaded.has_service(id));
        let last = u16::try_from(backend_room).unwrap_or(u16::MAX);
        let mut free_backends = (1..=last).filter(|&id| !loaded.has_backend(id));
        let held = Held::new(loaded);
        let mut ids = Vec::with_capacity(wanted.services.len());
        for service in &wanted.services {
            let id = named.get(service.name.as_str()).copied().or_else(|| free_services.next());
            let id = id.ok_or_else(|| {
                let gone = named.len() - named.keys().filter(|name| wanted.has_service(name)).count();
                let needed = wanted.services.len();
                PlanError::Full { what: "services", needed, gone, capacity: service_room }
            })?;
            let mut backends = Vec::with_capacity(service.backends.len());
            for held in held.ids(id, &service.backends) {
                let id = held.or_else(|| free_backends.next()).ok_or_else(|| {
                    let needed = wanted.services.iter().map(|service| service.backends.len()).sum();
                    let earlier = ids.iter().flat_map(|ids: &ServiceIds| &ids.backends);
                    let kept: BTreeSet<&u16> = earlier.chain(&backends).collect();
                    let gone = loaded.backends.keys().filter(|id| !kept.contains(id)).count();
                    PlanError::Full { what: "backends", needed, gone, capacity: backend_room }
                })?;
                backends.push(id);
            }
            ids.push(ServiceIds { id, backends });
        }
        Ok(Self(ids))
    }

    /// The services with their ids.
    fn of<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = Identified<'a>> {
        let services = wanted.services.iter().zip(&self.0);
        services.map(|(service, ids)| Identified { id: ids.id, service, backends: &ids.backends })
    }

    /// The backends with the services they are of and their ids.
    fn backends<'a>(
        &'a self,
        wanted: &'a Wanted,
    ) -> impl Iterator<Item = (Identified<'a>, &'a WantedBackend, u16)> {
        self.of(wanted).flat_map(|of| {
            of.service.backends.iter().zip(of.backends).map(move |(backend, &id)| (of, backend, id))
        })
    }
}

/// A backend as it is loaded when it is as wanted. A next hop that is not known now stays what it was, unless the forwarding
/// mode changes: where `l2-dsr` comes after a tunnel, it may be a gateway's.
fn as_loaded(of: Identified<'_>, wanted: &WantedBackend, before: Option<&LoadedBackend>) -> LoadedBackend {
    let (service, forwarding) = (of.id, of.service.forwarding);
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
    for (of, backend, id) in ids.backends(wanted) {
        let before = loaded.backends.get(&id);
        let mut after = as_loaded(of, backend, before);
        after.enabled |= before.is_some_and(|before| before.enabled);
        if before != Some(&after) {
            actions.push(Action::WriteBackend { id, backend: after, new: before.is_none() });
        }
    }
}

/// Builds changed rings aside and switches to them. Slots that were released are used again after a grace period.
fn switch_services(
    loaded: &Image,
    wanted: &Wanted,
    ids: &Ids,
    rings: &BTreeMap<u32, Option<Arc<Planned>>>,
    actions: &mut Vec<Action>,
) -> Result<(), PlanError> {
    let in_use = loaded.rings_in_use();
    let slots = u16::try_from(loaded.capacity.rings).unwrap_or(u16::MAX);
    let mut free: Vec<u16> = (0..slots).rev().filter(|slot| !in_use.contains(slot)).collect();
    let mut released = Vec::new();
    for Identified { id, service, .. } in ids.of(wanted) {
        let before = loaded.services.get(&id);
        let ring = match (rings.get(&id), before) {
            (Some(ring), _) => ring.clone(),
            (None, Some(_)) => continue,
            (None, None) => None,
        };
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
        let loaded_ring = before.and_then(|before| before.ring.as_ref());
        released.extend(loaded_ring.map(|(slot, _)| *slot).filter(|&old| Some(old) != slot));
    }
    Ok(())
}

/// Disables and removes what is no longer wanted, once no packet can be on its way there.
fn break_rest(loaded: &Image, wanted: &Wanted, ids: &Ids, actions: &mut Vec<Action>) {
    if actions.iter().any(|action| matches!(action, Action::WriteService { .. } | Action::WriteVips { .. })) {
        actions.push(Action::Grace);
    }
    for (of, backend, id) in ids.backends(wanted) {
        if let Some(before) = loaded.backends.get(&id)
            && before.enabled
            && !backend.enabled
        {
            let backend = as_loaded(of, backend, Some(before));
            actions.push(Action::WriteBackend { id, backend, new: false });
        }
    }
    let wanted_services: BTreeSet<u32> = ids.0.iter().map(|ids| ids.id).collect();
    let wanted_backends: HashSet<u16> = ids.0.iter().flat_map(|ids| &ids.backends).copied().collect();
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
