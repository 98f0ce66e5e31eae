//! Plans, carried out on the datapath in memory: whatever is wanted next and wherever the way there is broken off, each
//! packet meets tables that are whole, and no flow loses a backend that stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use lb_common::abi::{Forwarding, NextHop, VipFlags};
use lb_common::datapath::Outcome;
use lb_common::net::{Address, Protocol};
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::verdict::Verdict;
use lb_userspace::core::explain::{Ingress, PacketSpec, SpecProtocol, frame};
use lb_userspace::core::image::{
    Capacity, Image, LoadedBackend, VipKey, VipTarget, Wanted, WantedBackend, WantedService,
};
use lb_userspace::core::plan::{self, Action, Plan, PlanError, RingCache};
use lb_userspace::core::ring::{Origin, slots_by_id};
use lb_userspace::io::datapath::{Datapath, Memory, TableSet, capacity_for};
use proptest::prelude::*;

const SERVICES: usize = 3;
const BACKENDS: usize = 5;

fn capacity() -> Capacity {
    // As many rings as services, and one to build aside: slots must be used again within one plan.
    Capacity {
        rings: SERVICES as u32 + 1,
        ..capacity_for(SERVICES, SERVICES * BACKENDS, 2 * SERVICES, 4_096, 1_024)
    }
}

/// Plans without rings built before.
fn plan(image: &Image, wanted: &Wanted) -> Result<Plan, PlanError> {
    plan::plan(image, wanted, &mut RingCache::default())
}

/// The id of the one backend of this name in a service.
fn backend_id(image: &Image, service: u32, name: &str) -> Option<u16> {
    let mut found =
        image.backend_ids().into_iter().filter(|((id, found, _), _)| *id == service && *found == name);
    let id = found.next().map(|(_, id)| id);
    assert!(found.next().is_none(), "two backends {name}");
    id
}

fn vip(service: usize) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + service as u8)
}

/// What may be wanted of one backend: absent, or with these settings.
fn any_backend() -> impl Strategy<Value = Option<(bool, bool, u16, u8, u8)>> {
    prop::option::weighted(0.7, (any::<bool>(), any::<bool>(), 0..4_u16, 0..3_u8, 1..3_u8))
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let backends = prop::collection::vec(any_backend(), BACKENDS);
    let services = prop::collection::vec(prop::option::weighted(0.8, backends), SERVICES);
    (services, 0..2_u64).prop_map(|(services, ring_seed)| {
        let services = services.into_iter().enumerate().filter_map(|(n, backends)| {
            let backends = backends?.into_iter().enumerate().filter_map(|(m, settings)| {
                let (enabled, healthy, weight, hop, address) = settings?;
                Some(WantedBackend {
                    name: format!("b{m}"),
                    address: Address::v4([10, 0, m as u8, address]),
                    enabled,
                    healthy,
                    probed_healthy: healthy,
                    ring_weight: if enabled && healthy { weight } else { 0 },
                    port: 0,
                    // The MAC says whose it is: another address, another server.
                    hop: (hop > 0).then(|| NextHop::new([2, address, 0, n as u8, m as u8, hop], [2; 6], 0)),
                })
            });
            Some(WantedService {
                name: format!("s{n}"),
                forwarding: Forwarding::L2Dsr,
                client_affinity: n == 2,
                vips: vec![VipKey { address: Address::from(vip(n)), port: 80, protocol: Protocol::TCP }],
                backends: backends.collect(),
            })
        });
        Wanted { ring_seed, services: services.collect(), ..Wanted::default() }
    })
}

/// Sends a customer's packet.
fn send(memory: &Memory, service: usize, customer: u16, syn: bool) -> Outcome {
    let packet = PacketSpec::Tuple {
        source: (Ipv4Addr::new(198, 51, 100, 1), customer).into(),
        destination: (vip(service), 80).into(),
        protocol: SpecProtocol::Tcp,
        syn,
    };
    let mut bytes = frame(&packet, Ingress::default()).unwrap();
    let tables = SliceTables::new(memory.tables().slices().unwrap(), memory.now);
    tables.process(&mut SlicePacket::new(&mut bytes, 0, 1))
}

/// Whatever is in force is whole: packets of every service meet backends of that very service, or none.
fn check_whole(tables: &TableSet, checked: &mut BTreeSet<u16>) {
    let image = tables.image();
    for &(vip, VipTarget { service, .. }) in &image.vips {
        assert!(image.services.contains_key(&service), "{vip:?} names service {service}, which is gone");
    }
    let mut slots = BTreeSet::new();
    for (id, service) in &image.services {
        let Some((slot, known)) = &service.ring else { continue };
        assert!(slots.insert(*slot), "ring slot {slot} serves two services");
        if checked.insert(*slot) {
            let ring = tables.ring(*slot).unwrap();
            assert_eq!(known.slots, slots_by_id(&ring), "what is known of the ring");
            let Origin::Recipe(recipe) = &known.origin else { panic!("this process has written it") };
            assert!(recipe.build().unwrap().slots == ring.slots, "what is known to have made the ring");
        }
        for backend in known.slots.keys() {
            let backend = image.backends.get(backend).expect("a ring names a backend that is gone");
            assert_eq!(backend.service, *id, "a ring names a backend of another service");
            assert!(backend.enabled, "a ring names a disabled backend");
        }
    }
    let marked: BTreeSet<Address> = image.sources().collect();
    let translated = |id| image.vips.iter().any(|(_, target)| target.service == id && target.flags.nat());
    let translates =
        |backend: &&LoadedBackend| backend.forwarding == Forwarding::Nat && translated(backend.service);
    for backend in image.backends.values().filter(translates) {
        let configured = &image.globals.snat[usize::from(!backend.address.is_v4())];
        let own = backend.hop.iter().map(|hop| &hop.source).filter(|_| configured.is_empty());
        assert!(own.chain(configured).all(|source| marked.contains(source)), "answers would be the host's");
    }
}

/// Checks that an action touches nothing that a packet may be reading.
struct Guard {
    /// Ring slots that were in force since the last grace period.
    seen: BTreeSet<u16>,
    /// Those whose ring is known to be what it should.
    checked: BTreeSet<u16>,
}

impl Guard {
    fn new(image: &Image) -> Self {
        Self { seen: image.rings_in_use(), checked: BTreeSet::new() }
    }

    fn before(&mut self, action: &Action, image: &Image) {
        self.seen.extend(image.rings_in_use());
        match action {
            Action::WriteRing { slot, .. } => {
                assert!(!self.seen.contains(slot), "ring slot {slot} is written while packets may read it");
                self.checked.remove(slot);
            }
            Action::Grace => self.seen = image.rings_in_use(),
            _ => {}
        }
    }
}

/// Carries a plan out, up to `stop` actions, checking every state on the way.
fn carry_out(memory: &mut Memory, wanted: &Wanted, stop: usize) {
    let actions = plan(&memory.tables().image(), wanted).unwrap().actions;
    carry_out_actions(memory, &actions, stop);
}

fn carry_out_actions(memory: &mut Memory, actions: &[Action], stop: usize) {
    let mut guard = Guard::new(&memory.tables().image());
    for action in actions.iter().take(stop) {
        guard.before(action, &memory.tables().image());
        memory.apply(action).unwrap();
        check_whole(memory.tables(), &mut guard.checked);
        for service in 0..SERVICES {
            let verdict = send(memory, service, 9, true).verdict;
            assert_ne!(verdict, Verdict::DropInconsistent, "after {action:?}");
        }
    }
}

fn check_reached(image: &Image, wanted: &Wanted) {
    assert_eq!(image.services.len(), wanted.services.len());
    let mut backends = 0;
    for service in &wanted.services {
        let id = image.service_id(&service.name).unwrap();
        let ring = image.services[&id].ring.as_ref();
        let weighted: Vec<&WantedBackend> =
            service.backends.iter().filter(|backend| backend.ring_weight > 0).collect();
        assert_eq!(ring.is_some(), !weighted.is_empty());
        for backend in &service.backends {
            backends += 1;
            let backend_id = backend_id(image, id, &backend.name).unwrap();
            let loaded = &image.backends[&backend_id];
            assert_eq!((loaded.enabled, loaded.healthy), (backend.enabled, backend.healthy));
            assert_eq!(loaded.address, backend.address);
            if let Some(hop) = loaded.hop {
                let ([_, whose, ..], _) = hop.macs();
                assert!(
                    loaded.address.to_ip().to_string().ends_with(&format!(".{whose}")),
                    "another server's MAC"
                );
            }
            assert!(backend.hop.is_none() || loaded.hop == backend.hop);
            if let Some((_, ring)) = ring {
                assert_eq!(ring.slots.contains_key(&backend_id), backend.ring_weight > 0);
            }
        }
        let flags = VipFlags::new(false, service.client_affinity);
        let target = VipTarget { service: id, flags };
        assert!(service.vips.iter().all(|vip| image.vips.contains(&(*vip, target))));
    }
    assert_eq!(image.backends.len(), backends);
    assert_eq!(image.vips.len(), 2 * wanted.services.len(), "a VIP and a mark for ping each");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_state_on_the_way_is_whole(
        steps in prop::collection::vec((any_wanted(), prop::option::of(0..6_usize)), 1..6),
    ) {
        let mut memory = Memory::new(capacity(), 0);
        for (wanted, broken_off) in &steps {
            // Broken off somewhere, as by a kill; whoever comes next reads the maps and goes on from there.
            if let Some(stop) = broken_off {
                carry_out(&mut memory, wanted, *stop);
                memory.apply(&Action::Grace).unwrap();
            }
            carry_out(&mut memory, wanted, usize::MAX);
            check_reached(&memory.tables().image(), wanted);
            prop_assert!(plan(&memory.tables().image(), wanted).unwrap().actions.is_empty(), "nothing is left to do");
        }
    }

    #[test]
    fn what_is_planned_for_some_services_comes_to_what_is_planned_for_all(
        first in any_wanted(),
        others in any_wanted(),
        change in prop::collection::vec(any::<bool>(), SERVICES),
    ) {
        let mut memory = Memory::new(capacity(), 0);
        carry_out(&mut memory, &first, usize::MAX);
        let (mut wanted, mut some) = (first.clone(), Wanted { services: Vec::new(), ..first });
        for (service, _) in wanted.services.iter_mut().zip(change).filter(|(_, change)| *change) {
            let other = others.services.iter().find(|other| other.name == service.name);
            service.backends = other.map(|other| other.backends.clone()).unwrap_or_default();
            some.services.push(service.clone());
        }
        let names: Vec<&str> = some.services.iter().map(|service| service.name.as_str()).collect();
        let image = memory.tables().image_of(&names);
        let actions = plan::plan_some(&image, &some, &mut RingCache::default()).unwrap().actions;
        carry_out_actions(&mut memory, &actions, usize::MAX);
        check_reached(&memory.tables().image(), &wanted);
        prop_assert!(plan(&memory.tables().image(), &wanted).unwrap().actions.is_empty(), "nothing is left to do");
    }

    #[test]
    fn no_flow_loses_a_backend_that_stays(steps in prop::collection::vec(any_wanted(), 2..5)) {
        let mut memory = Memory::new(capacity(), 0);
        let mut flows: BTreeMap<(usize, u16), ((String, Address), u16)> = BTreeMap::new();
        for wanted in &steps {
            carry_out(&mut memory, wanted, usize::MAX);
            let image = memory.tables().image();
            for (&(service, customer), (name, id)) in &flows {
                let outcome = send(&memory, service, customer, false);
                let stays = image
                    .backends
                    .get(id)
                    .is_some_and(|backend| backend.enabled && (&backend.name, backend.address) == (&name.0, name.1));
                if stays && outcome.verdict == Verdict::Forward {
                    prop_assert_eq!(outcome.backend, *id, "flow {} of service {}", customer, service);
                }
            }
            flows.clear();
            for service in 0..SERVICES {
                for customer in 1_000..1_050 {
                    send(&memory, service, customer, true);
                    let outcome = send(&memory, service, customer, false);
                    if outcome.verdict == Verdict::Forward {
                        let backend = &image.backends[&outcome.backend];
                        let name = (backend.name.clone(), backend.address);
                        flows.insert((service, customer), (name, outcome.backend));
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_changes() {
    let backend = |n: usize| WantedBackend {
        name: format!("b{n}"),
        address: Address::v4([10, 1, 0, 0]),
        enabled: true,
        healthy: true,
        probed_healthy: true,
        ring_weight: 1,
        port: 0,
        hop: None,
    };
    let service = |n: usize, backends: usize| WantedService {
        name: format!("s{n}"),
        forwarding: Forwarding::L2Dsr,
        client_affinity: false,
        vips: Vec::new(),
        backends: (0..backends).map(backend).collect(),
    };
    let image = Memory::new(capacity(), 0).tables().image();
    let services = Wanted { services: (0..17).map(|n| service(n, 1)).collect(), ..Wanted::default() };
    let full = |what, needed, capacity| PlanError::Full { what, needed, gone: 0, capacity };
    assert_eq!(plan(&image, &services).unwrap_err(), full("services", 17, 16));
    let backends = Wanted { services: vec![service(0, 1_025)], ..Wanted::default() };
    assert_eq!(plan(&image, &backends).unwrap_err(), full("backends", 1_025, 1_024));
}

/// One service with this one backend.
fn with_backend(name: &str) -> Wanted {
    Wanted {
        services: vec![WantedService {
            name: "s0".into(),
            forwarding: Forwarding::L2Dsr,
            client_affinity: false,
            vips: vec![VipKey { address: Address::from(vip(0)), port: 80, protocol: Protocol::TCP }],
            backends: vec![WantedBackend {
                name: name.into(),
                address: Address::v4([10, 0, 0, 1]),
                enabled: true,
                healthy: true,
                probed_healthy: true,
                ring_weight: 1,
                port: 0,
                hop: Some(NextHop::new([2; 6], [2; 6], 0)),
            }],
        }],
        ..Wanted::default()
    }
}

#[test]
fn an_id_is_used_again_only_after_its_flows_are_swept() {
    let mut memory = Memory::new(capacity(), 0);
    carry_out(&mut memory, &with_backend("old"), usize::MAX);
    send(&memory, 0, 1_000, true);
    let old = send(&memory, 0, 1_000, false).backend;
    assert_eq!(memory.tables().live_flows(memory.now)[&old], 1);
    carry_out(&mut memory, &with_backend("other"), usize::MAX);
    assert_eq!(memory.tables().live_flows(memory.now).get(&old), None);
    carry_out(&mut memory, &with_backend("third"), usize::MAX);
    let third = backend_id(&memory.tables().image(), 0, "third").unwrap();
    assert_eq!(third, old, "the id is free again");
    let outcome = send(&memory, 0, 1_000, false);
    assert!(outcome.new_flow(), "and no flow of its former owner comes with it");
}

/// An agent killed between freeing a backend and sweeping its flows leaves entries that name a free id.
#[test]
fn flows_left_by_a_killed_agent_are_swept() {
    let mut memory = Memory::new(capacity(), 0);
    carry_out(&mut memory, &with_backend("old"), usize::MAX);
    send(&memory, 0, 1_000, true);
    send(&memory, 0, 1_000, false);
    let actions = plan(&memory.tables().image(), &with_backend("new")).unwrap().actions;
    for action in actions.iter().filter(|action| !matches!(action, Action::Retire { .. })) {
        memory.apply(action).unwrap();
    }
    assert!(memory.tables().flow_entries() > 0);
    memory.tables().sweep_orphans(&memory.tables().image().backends);
    assert_eq!(memory.tables().flow_entries(), 0);
}

/// One service that is translated, its packets sent from this address, or from those configured.
fn translated(own: u8, configured: &[u8]) -> Wanted {
    let source = |host| Address::v4([192, 0, 2, host]);
    let mut wanted = with_backend("b");
    let service = &mut wanted.services[0];
    service.forwarding = Forwarding::Nat;
    service.backends[0].hop.as_mut().unwrap().source = source(own);
    wanted.globals.snat[0] = configured.iter().map(|host| source(*host)).collect();
    wanted.snat = wanted.globals.snat[0].iter().copied().collect();
    if configured.is_empty() {
        wanted.snat.insert(source(own));
    }
    wanted
}

/// The last bytes of the addresses to which answers are looked up.
fn sources(memory: &Memory) -> Vec<u8> {
    let mut hosts: Vec<u8> =
        memory.tables().image().sources().map(|source| source.words()[3].to_ne_bytes()[3]).collect();
    hosts.sort_unstable();
    hosts
}

#[test]
fn answers_are_looked_up_before_anything_is_sent_from_an_address_and_as_long_as_flows_are() {
    let mut memory = Memory::new(capacity(), 0);
    let mut go = |wanted: &Wanted| {
        carry_out(&mut memory, wanted, usize::MAX);
        assert!(plan(&memory.tables().image(), wanted).unwrap().actions.is_empty(), "nothing is left to do");
        sources(&memory)
    };
    assert_eq!(go(&translated(1, &[])), [1]);
    assert_eq!(go(&translated(2, &[])), [1, 2]);
    assert_eq!(go(&translated(2, &[3, 4])), [1, 2, 3, 4]);
    assert_eq!(go(&translated(2, &[5])), [1, 2, 3, 4, 5]);
    let unused = [1, 3, 5].map(|host| Address::v4([192, 0, 2, host]));
    let known = Wanted { unused: unused.into(), ..translated(2, &[5]) };
    assert_eq!(go(&known), [2, 4, 5], "new flows are sent from the last");
    assert_eq!(go(&translated(6, &[])), [2, 4, 5, 6]);
    assert_eq!(go(&with_backend("b")), [0_u8; 0], "nothing is translated any more");
}

#[test]
fn addresses_of_before_make_way_where_the_table_is_full() {
    let mut memory = Memory::new(Capacity { vip_buckets: 16, ..capacity() }, 0);
    let (first, second): (Vec<u8>, Vec<u8>) = ((1..=16).collect(), (17..=32).collect());
    for hosts in [&first, &second, &first] {
        for action in &plan(&memory.tables().image(), &translated(0, hosts)).unwrap().actions {
            memory.apply(action).unwrap();
        }
        assert_eq!(sources(&memory), *hosts);
    }
}
