//! The datapath in memory fails at the n-th action, for every n: what is left is whole, and leads to the old state as well as
//! to the new one.

use std::collections::BTreeMap;

use lb_common::abi::{Forwarding, NextHop, Traffic, Verdicts};
use lb_common::flow::{Entry, State, Tick};
use lb_common::net::{Address, Protocol};

use super::*;
use crate::core::image::{VipKey, WantedBackend, WantedService};
use crate::io::datapath::{Account, DatapathError, Memory, TableSet, capacity_for};

/// The datapath in memory, which refuses one effect.
struct Failing {
    memory: Memory,
    /// Effects until the one that fails; none fails if it is `None`.
    left: Option<usize>,
    /// Whether actions fail as a whole, before they have done anything; else it is what they are made of that fails.
    whole: bool,
}

impl Failing {
    fn new() -> Self {
        Self { memory: Memory::new(capacity_for(3, 20, 6, 1_024, 16), 7), left: None, whole: true }
    }

    fn step(&mut self) -> Result<(), DatapathError> {
        match &mut self.left {
            Some(0) => Err(DatapathError { action: "failing", cause: "as asked".to_owned() }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Datapath for Failing {
    fn tables(&self) -> &TableSet {
        self.memory.tables()
    }

    fn tables_mut(&mut self) -> &mut TableSet {
        self.memory.tables_mut()
    }

    fn wait_for_grace(&self) -> Result<(), DatapathError> {
        self.memory.wait_for_grace()
    }

    fn now(&self) -> Result<Tick, DatapathError> {
        self.memory.now()
    }

    fn not_forwarded(&self) -> Result<Verdicts, DatapathError> {
        self.memory.not_forwarded()
    }

    fn traffic(&self, account: Account) -> Result<Traffic, DatapathError> {
        self.memory.traffic(account)
    }

    fn set_traffic(&mut self, account: Account, traffic: Traffic) -> Result<(), DatapathError> {
        if !self.whole {
            self.step()?;
        }
        self.memory.set_traffic(account, traffic)
    }

    fn grace(&mut self) -> Result<(), DatapathError> {
        if !self.whole {
            self.step()?;
        }
        self.memory.grace()
    }

    fn apply(&mut self, action: &Action) -> Result<(), DatapathError> {
        if self.whole {
            self.step()?;
            return self.memory.apply(action);
        }
        // As the trait has it, but with effects that may fail.
        match action {
            Action::WriteBackend { id, new: true, .. } => {
                self.set_traffic(Account::Backend(*id), Traffic::default())?
            }
            Action::WriteService { id, new: true, .. } => {
                self.set_traffic(Account::Service(*id), Traffic::default())?
            }
            Action::Grace => return self.grace(),
            Action::Retire { .. } => self.step()?,
            _ => {}
        }
        self.memory.apply(action)
    }
}

fn backend(name: &str, last: u8, weight: u16) -> WantedBackend {
    WantedBackend {
        name: name.to_owned(),
        address: Address::v4([10, 0, 0, last]),
        enabled: true,
        healthy: true,
        probed_healthy: true,
        ring_weight: weight,
        port: 0,
        hop: Some(NextHop::new([2, 0, 0, 0, 0, last], [2; 6], 0)),
    }
}

fn service(name: &str, port: u16, backends: Vec<WantedBackend>) -> WantedService {
    WantedService {
        name: name.to_owned(),
        forwarding: Forwarding::L2Dsr,
        client_affinity: false,
        vips: vec![VipKey { address: Address::v4([203, 0, 113, 10]), port, protocol: Protocol::TCP }],
        backends,
    }
}

/// Two configurations between which everything happens that can.
fn two() -> [Wanted; 2] {
    let before = vec![
        service("web", 80, vec![backend("stays", 1, 100), backend("goes", 2, 100), backend("moves", 3, 50)]),
        service("old", 81, vec![backend("x", 4, 1)]),
    ];
    let disabled = WantedBackend { enabled: false, ring_weight: 0, ..backend("off", 5, 0) };
    let after = vec![
        service("web", 80, vec![backend("stays", 1, 300), disabled, backend("moves", 9, 50)]),
        service("new", 82, vec![backend("x", 4, 1), backend("y", 6, 2)]),
    ];
    [before, after].map(|services| Wanted { services, ..Wanted::default() })
}

/// What tables hold, by names: ids and ring slots may differ.
fn by_name(tables: &TableSet) -> BTreeMap<String, String> {
    let image = tables.image();
    let mut held = BTreeMap::new();
    for (id, service) in &image.services {
        let owner = |id: &u16| image.backends.get(id).map(|backend| backend.name.clone());
        let ring: Option<Vec<Option<String>>> = service
            .ring
            .as_ref()
            .map(|(slot, _)| tables.ring(*slot).unwrap().slots.iter().map(owner).collect());
        held.insert(service.name.clone(), format!("{ring:?}"));
        for backend in image.backends.values().filter(|backend| backend.service == *id) {
            let backend = crate::core::image::LoadedBackend { service: 0, ..backend.clone() };
            held.insert(
                format!("{}/{}/{:?}", service.name, backend.name, backend.address),
                format!("{backend:?}"),
            );
        }
    }
    for (vip, target) in &image.vips {
        let name = image.services.get(&target.service).map(|service| &service.name);
        held.insert(format!("{vip:?}"), format!("{name:?} {:?}", target.flags));
    }
    held
}

/// The datapath with `wanted` loaded, and a flow of the backend that stays.
fn loaded(wanted: &Wanted, rings: &mut RingCache) -> Failing {
    let mut datapath = Failing::new();
    bring_about(&mut datapath, wanted, rings, &mut false).unwrap();
    let image = datapath.tables().image();
    let (&stays, _) = image.backends.iter().find(|(_, backend)| backend.name == "stays").unwrap();
    let entry = Entry::new(6 << 8, stays, State::Established, datapath.now().unwrap());
    datapath.tables().slices().unwrap().flows[0].store(0, entry);
    datapath
}

#[test]
fn wherever_a_change_is_broken_off_the_old_and_the_new_state_can_be_reached() {
    let [before, after] = two();
    let mut rings = RingCache::default();
    let old = by_name(loaded(&before, &mut rings).tables());
    let mut whole = loaded(&before, &mut rings);
    let (actions, _) = bring_about(&mut whole, &after, &mut rings, &mut false).unwrap();
    let new = by_name(whole.tables());
    assert!(actions > 12 && old != new, "{actions} actions");

    for kind in [true, false] {
        let mut failures = 0;
        for n in 0.. {
            for (goal, expected) in [(&before, &old), (&after, &new)] {
                let mut datapath = loaded(&before, &mut rings);
                let mut unsettled = false;
                (datapath.left, datapath.whole) = (Some(n), kind);
                let broken = bring_about(&mut datapath, &after, &mut rings, &mut unsettled);
                assert_eq!(broken.is_err(), unsettled, "a change that was broken off is known as such");
                failures += usize::from(broken.is_err());
                // The way back may fail as well, and is tried again.
                datapath.left = Some(n / 2);
                let _ = bring_about(&mut datapath, goal, &mut rings, &mut unsettled);
                datapath.left = None;
                bring_about(&mut datapath, goal, &mut rings, &mut unsettled).unwrap();
                assert!(!unsettled);
                let image = datapath.tables().image();
                assert_eq!(&by_name(datapath.tables()), expected, "broken off at {n}");
                let flows = datapath.tables().live_flows(datapath.now().unwrap());
                let stays = image.backends.iter().find(|(_, backend)| backend.name == "stays").unwrap().0;
                assert_eq!(flows.get(stays), Some(&1), "the flow of a backend that stays, broken off at {n}");
                assert_eq!(
                    bring_about(&mut datapath, goal, &mut rings, &mut unsettled).unwrap().0,
                    0,
                    "nothing is left"
                );
            }
            if failures < 2 * (n + 1) {
                break;
            }
        }
        assert!(failures > 10, "{failures} failures");
    }
}
