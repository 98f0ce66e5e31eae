use lb_common::abi::{FLOW_WAYS, Forwarding, NextHop};
use lb_common::flow::flow_signature;
use lb_common::net::{Address, Protocol};
use proptest::prelude::*;

use super::super::{Datapath, Memory};
use super::*;
use crate::core::image::{Capacity, VipKey, Wanted, WantedBackend, WantedService};
use crate::core::plan::{RingCache, plan};

const NOW: Tick = Tick(1 << 20);

fn table(buckets: u32) -> Vec<FlowBucket> {
    (0..buckets).map(|_| FlowBucket::default()).collect()
}

fn bucket(table: &[FlowBucket], hash: u64) -> &FlowBucket {
    &table[hash::reduce(hash, table.len() as u32) as usize]
}

/// Does what the program does with a flow's packet, if there is room.
fn send(table: &[FlowBucket], hash: u64, entry: Entry) -> bool {
    let bucket = bucket(table, hash);
    let way = bucket.find(flow_signature(hash)).map(|found| found.way);
    let free = bucket.ways.iter().position(|way| way.load() == 0);
    way.or(free).map(|way| bucket.store(way, entry)).is_some()
}

fn found(table: &[FlowBucket], hash: u64) -> Option<Entry> {
    bucket(table, hash).find(flow_signature(hash)).map(|found| found.entry)
}

fn entry(hash: u64, state: State, age: u32) -> Entry {
    Entry::new(flow_signature(hash), hash as u16 % 50 + 1, state, Tick(NOW.0 - age))
}

/// A table in which as many flows as fit have come to their buckets, and their hashes.
fn filled(buckets: u32) -> (Vec<FlowBucket>, Vec<u64>) {
    let table = table(buckets);
    let mut hash = 1;
    let hashes = (0..buckets * 16).map(|_| {
        hash = hash::step(hash);
        hash
    });
    let flows = hashes.filter(|&hash| send(&table, hash, entry(hash, State::Established, 5))).collect();
    (table, flows)
}

proptest! {
    #[test]
    fn a_flow_is_looked_for_in_a_bucket_that_gets_its_entry(hash: u64, old in 1..5_000_000_u32, new in 1..5_000_000_u32) {
        let places = candidates(hash::reduce(hash, old), old, new);
        prop_assert!(places.contains(&hash::reduce(hash, new)));
        prop_assert!(u64::from(places.end() - places.start()) <= u64::from(new.div_ceil(old)), "{:?}", places);
    }

    #[test]
    fn growth_by_a_whole_factor_puts_the_entries_of_one_bucket_into_each(bucket in 0..1_000_u32, factor in 1..70_u32) {
        let expected = bucket * factor..=bucket * factor + factor - 1;
        prop_assert_eq!(candidates(bucket, 1_000, 1_000 * factor), expected);
    }
}

#[test]
fn what_would_be_lost_is_foretold() {
    let (full, _) = filled(512);
    let tables = TableSet::heap(Capacity { flow_buckets: 512, ..Capacity::default() });
    for (own, of_full) in tables.flow_buckets().iter().zip(&full) {
        own.ways.iter().zip(&of_full.ways).for_each(|(own, of_full)| own.store(of_full.load()));
    }
    let smaller = Capacity { flow_buckets: 128, ..tables.capacity() };
    let lost = tables.lost_in(smaller, NOW).unwrap();
    assert_eq!(lost, Lost { flows: carry(&full, &table(128), NOW), translations: 0 });
    assert!(lost.flows > 2_000, "{lost:?}");
    assert_eq!(tables.lost_in(tables.capacity(), NOW).unwrap(), Lost::default());
}

#[test]
fn no_flow_of_a_full_table_is_lost_when_it_grows() {
    let (old, flows) = filled(512);
    assert!(flows.len() > 512 * FLOW_WAYS * 9 / 10, "{} flows", flows.len());
    let loaded = Capacity { flow_buckets: 512, ..Capacity::default() };
    for wanted in [513, 700, 1_024, 1_500, 5_000] {
        let grown = loaded.with_tables(Capacity { flow_buckets: wanted, ..loaded });
        assert!((wanted..wanted + 512).contains(&grown.flow_buckets), "{grown:?}");
        let new = table(grown.flow_buckets);
        assert_eq!(carry(&old, &new, NOW), 0);
        for &hash in &flows {
            assert_eq!(found(&new, hash), Some(entry(hash, State::Established, 5)), "{wanted}");
        }
    }
}

#[test]
fn what_came_to_the_former_table_follows_and_what_is_younger_stays() {
    let (old, new) = (table(64), table(192));
    let hashes: Vec<u64> = (0..6).map(|number| hash::step(number + 100)).collect();
    let put = |table: &[FlowBucket], at: usize, state, age| {
        assert!(send(table, hashes[at], entry(hashes[at], state, age)));
    };
    (0..4).for_each(|at| put(&old, at, State::Opening, 9));
    assert_eq!(carry(&old, &new, NOW), 0);
    put(&old, 0, State::Established, 3);
    put(&new, 1, State::Established, 2);
    put(&old, 2, State::Closing, 9);
    put(&old, 4, State::Opening, 1);
    put(&new, 5, State::Opening, 0);
    for _ in 0..2 {
        assert_eq!(carry(&old, &new, NOW), 0);
        let states: Vec<_> = hashes
            .iter()
            .map(|&hash| found(&new, hash).map(|entry| (entry.state(), entry.age(NOW))))
            .collect();
        let expected = [
            (State::Established, 3),
            (State::Established, 2),
            (State::Closing, 9),
            (State::Opening, 9),
            (State::Opening, 1),
            (State::Opening, 0),
        ];
        assert_eq!(states, expected.map(Some));
    }
}

#[test]
fn a_connection_on_the_ports_of_one_that_had_ended_is_not_taken_for_it() {
    let (old, new) = (table(64), table(192));
    let hash = hash::step(100);
    send(&old, hash, entry(hash, State::Closing, 9));
    carry(&old, &new, NOW);
    send(&old, hash, entry(hash, State::Opening, 0));
    let followed = found(&new, hash).unwrap().followed(false, NOW);
    assert_eq!(followed.state(), State::Closing);
    send(&new, hash, followed);
    carry(&old, &new, NOW);
    let carried = found(&new, hash).unwrap();
    assert_eq!(carried.followed(false, NOW).state(), State::Established);
}

#[test]
fn copies_count_once_and_go_when_the_flow_goes_on() {
    let (old, flows) = filled(64);
    let new = table(64 * 4);
    carry(&old, &new, NOW);
    let taken = || new.iter().flat_map(entries).count();
    assert_eq!(taken(), flows.len() * 4);
    assert_eq!(super::flows(&new).count(), flows.len());
    remove_copies(&new, NOW);
    assert_eq!(taken(), flows.len() * 4, "of none it is known where it belongs");
    let (used, idle) = flows.split_at(flows.len() / 2);
    for &hash in used {
        assert!(send(&new, hash, entry(hash, State::Established, 1)));
    }
    remove_copies(&new, NOW);
    assert_eq!(taken(), used.len() + idle.len() * 4);
    assert!(used.iter().all(|&hash| found(&new, hash) == Some(entry(hash, State::Established, 1))));
    assert!(idle.iter().all(|&hash| found(&new, hash).is_some()));
}

#[test]
fn a_smaller_table_keeps_what_is_worth_most_and_says_what_it_lost() {
    let (old, new) = (table(64), table(16));
    let hashes: Vec<u64> = (0..400).map(|number| hash::step(number + 7)).collect();
    let state = |number: usize| if number < 40 { State::Established } else { State::Opening };
    for (number, &hash) in hashes.iter().enumerate() {
        send(&old, hash, entry(hash, state(number), 5));
    }
    assert_eq!(carry(&old, &new, NOW), 0, "those that were only opened make way");
    assert!(hashes[..40].iter().all(|&hash| found(&new, hash).is_some()));
    let (full, flows) = filled(64);
    let lost = carry(&full, &table(16), NOW);
    assert_eq!(lost, (flows.len() - 16 * FLOW_WAYS) as u64);
}

fn wanted(services: u8) -> Wanted {
    let backend = |service: u8, number: u8| WantedBackend {
        name: format!("b{number}"),
        address: Address::v4([10, 0, service, number]),
        enabled: true,
        healthy: true,
        probed_healthy: true,
        ring_weight: 1,
        port: 0,
        hop: Some(NextHop::new([2; 6], [4; 6], 0)),
    };
    let service = |number: u8| WantedService {
        name: format!("s{number}"),
        forwarding: Forwarding::L2Dsr,
        client_affinity: false,
        vips: vec![VipKey { address: Address::v4([192, 0, 2, number]), port: 80, protocol: Protocol::TCP }],
        backends: (1..4).map(|at| backend(number, at)).collect(),
    };
    Wanted { services: (0..services).map(service).collect(), ..Wanted::default() }
}

#[test]
fn larger_tables_hold_what_the_smaller_ones_held() {
    let small =
        Capacity { services: 4, backends: 12, rings: 8, vip_buckets: 8, flow_buckets: 512, translations: 16 };
    let mut former = Memory::new(small, 1);
    let planned = plan(&former.tables().image(), &wanted(4), &mut RingCache::default()).unwrap();
    planned.actions.iter().for_each(|action| former.apply(action).unwrap());
    assert!(plan(&former.tables().image(), &wanted(9), &mut RingCache::default()).is_err(), "outgrown");
    let large = Capacity {
        services: 20,
        backends: 60,
        rings: 24,
        vip_buckets: 64,
        flow_buckets: 1_024,
        translations: 64,
    };
    let mut new = TableSet::heap(large);
    new.take_over(former.tables()).unwrap();
    let (before, after) = (former.tables().image(), new.image());
    assert_eq!(after.capacity, large);
    assert_eq!(after.backends, before.backends);
    let sorted = |mut vips: Vec<_>| {
        vips.sort_by_key(|entry| format!("{entry:?}"));
        vips
    };
    assert_eq!(sorted(after.vips.clone()), sorted(before.vips));
    assert_eq!(after.services.len(), 4);
    let of_former = former.tables();
    for (id, service) in &after.services {
        let (ring, former) = (service.ring.as_ref().unwrap(), before.services[id].ring.as_ref().unwrap());
        assert_eq!((&service.name, ring.0), (&before.services[id].name, former.0));
        assert_eq!(ring.1.slots, former.1.slots);
        assert!(new.ring(ring.0).unwrap().slots == of_former.ring(ring.0).unwrap().slots);
    }
    assert_eq!(new.control().unwrap().flow_key, former.tables().control().unwrap().flow_key);
    assert!(plan(&after, &wanted(9), &mut RingCache::default()).is_ok());
    assert!(plan(&after, &wanted(4), &mut RingCache::default()).unwrap().actions.is_empty());
}
