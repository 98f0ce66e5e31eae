//! What is loaded and what is wanted → the actions that lead from one to the other, each of them safe by itself.
//!
//! Make before break: whatever packets are about to be pointed at is complete before the one word that points there is
//! switched; whatever they were pointed at before stays until none can see it. So the actions may stop anywhere, and
//! an agent that reads the maps back can go on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::{Forwarding, Ring, ServiceWord, VipBucket, VipTable};
use lb_common::net::Protocol;

use super::image::{Capacity, Image, LoadedBackend, Wanted, WantedBackend, WantedService};
use super::{ring, vips};

/// One change of the maps.
#[derive(Clone, Debug)]
pub enum Action {
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
    /// Removes the flows of these backends from the flow table.
    SweepFlows(BTreeSet<u16>),
}

/// Why no plan can be made. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More of something than the loaded maps hold.
    #[error(
        "the loaded tables hold {capacity} {what}, this configuration needs {needed}: run `sluice detach` and start \
         the agent again to load larger ones (this ends the forwarding in between)"
    )]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many there would be.
        needed: usize,
        /// How many fit.
        capacity: u32,
    },
}

/// Plans the way from `loaded` to `wanted`.
pub fn plan(loaded: &Image, wanted: &Wanted) -> Result<Vec<Action>, PlanError> {
    let ids = Ids::assign(loaded, wanted)?;
    let mut actions = Vec::new();
    make_backends(loaded, wanted, &ids, &mut actions);
    switch_services(loaded, wanted, &ids, &mut actions)?;
    switch_vips(loaded, wanted, &ids, &mut actions)?;
    break_rest(loaded, wanted, &ids, &mut actions);
    Ok(actions)
}

/// Ids of everything wanted: those it has, else free ones.
pub struct Ids {
    services: BTreeMap<String, u32>,
    backends: BTreeMap<(u32, String), u16>,
}

impl Ids {
    /// Assigns them.
    fn assign(loaded: &Image, wanted: &Wanted) -> Result<Self, PlanError> {
        let Capacity { services: service_room, backends: backend_room, .. } = loaded.capacity;
        let mut free = (0..service_room).filter(|id| !loaded.services.contains_key(id));
        let mut services = BTreeMap::new();
        for service in &wanted.services {
            let id = loaded.service_id(&service.name).or_else(|| free.next()).ok_or(PlanError::Full {
                what: "services",
                needed: loaded.services.len().max(wanted.services.len()),
                capacity: service_room,
            })?;
            services.insert(service.name.clone(), id);
        }
        let last = u16::try_from(backend_room).unwrap_or(u16::MAX);
        let mut free = (1..=last).filter(|id| !loaded.backends.contains_key(id));
        let held: BTreeMap<(u32, &str), u16> = loaded
            .backends
            .iter()
            .map(|(&id, backend)| ((backend.service, backend.name.as_str()), id))
            .collect();
        let mut backends = BTreeMap::new();
        for service in &wanted.services {
            let Some(&service_id) = services.get(&service.name) else { continue };
            for backend in &service.backends {
                let held = held.get(&(service_id, backend.name.as_str())).copied();
                let id = held.or_else(|| free.next()).ok_or_else(|| PlanError::Full {
                    what: "backends",
                    needed: wanted.services.iter().map(|service| service.backends.len()).sum(),
                    capacity: backend_room,
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
    fn ring(&self, seed: u64, id: u32, service: &WantedService) -> Option<Arc<Ring>> {
        let members: Vec<ring::Member<'_>> = service
            .backends
            .iter()
            .filter_map(|backend| {
                let id = self.backend(id, &backend.name)?;
                Some(ring::Member { name: &backend.name, id, weight: backend.ring_weight })
            })
            .collect();
        ring::build(seed, &members).map(|ring| Arc::new(Ring { slots: *ring.slots() }))
    }
}

/// The rings that `wanted` leads to, by service name, with the ids it would assign: what a dry run compares.
pub fn rings(loaded: &Image, wanted: &Wanted) -> Result<BTreeMap<String, Option<Arc<Ring>>>, PlanError> {
    let ids = Ids::assign(loaded, wanted)?;
    Ok(ids
        .of(wanted)
        .map(|(id, service)| (service.name.clone(), ids.ring(wanted.ring_seed, id, service)))
        .collect())
}

/// Writes new and changed backends. One that is to be disabled stays enabled until no ring names it.
fn make_backends(loaded: &Image, wanted: &Wanted, ids: &Ids, actions: &mut Vec<Action>) {
    for (service, forwarding, backend, id) in backends(wanted, ids) {
        let before = loaded.backends.get(&id);
        let hop = backend.hop.or(before.and_then(|before| before.hop));
        let enabled = backend.enabled || before.is_some_and(|before| before.enabled);
        let after = LoadedBackend {
            name: backend.name.clone(),
            service,
            enabled,
            healthy: backend.healthy,
            forwarding,
            hop,
        };
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
    actions: &mut Vec<Action>,
) -> Result<(), PlanError> {
    let in_use = loaded.rings_in_use();
    let slots = u16::try_from(loaded.capacity.rings).unwrap_or(u16::MAX);
    let mut free: Vec<u16> = (0..slots).rev().filter(|slot| !in_use.contains(slot)).collect();
    let mut released = Vec::new();
    for (id, service) in ids.of(wanted) {
        let before = loaded.services.get(&id);
        let ring = ids.ring(wanted.ring_seed, id, service);
        let loaded_ring = before.and_then(|before| before.ring.as_ref());
        let same = match (&ring, loaded_ring) {
            (None, None) => true,
            (Some(ring), Some((_, loaded))) => ring.slots == loaded.slots,
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
    let entries: Vec<_> = wanted
        .vip_entries()
        .into_iter()
        .filter_map(|(vip, name)| Some((vip, *ids.services.get(name)?)))
        .collect();
    let holds = |entry| loaded.vips.contains(entry);
    if entries.len() == loaded.vips.len() && entries.iter().all(holds) {
        return Ok(());
    }
    let buckets = vips::build(&entries, loaded.capacity.vip_buckets).ok_or(PlanError::Full {
        what: "VIP buckets",
        needed: vips::buckets_for(entries.len()) as usize,
        capacity: loaded.capacity.vip_buckets,
    })?;
    let table = VipTable {
        second_half: !loaded.vip_table.second_half,
        any_port: entries.iter().any(|(vip, _)| vip.port == 0 && vip.protocol != Protocol::ICMP),
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
            let backend = LoadedBackend {
                name: backend.name.clone(),
                service,
                enabled: false,
                healthy: backend.healthy,
                forwarding,
                hop: backend.hop.or(before.hop),
            };
            actions.push(Action::WriteBackend { id, backend, new: false });
        }
    }
    let wanted_services: BTreeSet<u32> = ids.services.values().copied().collect();
    let wanted_backends: BTreeSet<u16> = ids.backends.values().copied().collect();
    let gone: BTreeSet<u16> =
        loaded.backends.keys().filter(|id| !wanted_backends.contains(id)).copied().collect();
    actions.extend(gone.iter().map(|&id| Action::ClearBackend(id)));
    let services = loaded.services.keys().filter(|id| !wanted_services.contains(id));
    actions.extend(services.map(|&id| Action::ClearService(id)));
    if !gone.is_empty() {
        actions.push(Action::Grace);
        actions.push(Action::SweepFlows(gone));
    }
}
