//! What is counted of customers' connections, and how long they took to open, frame by frame through kernel and slices.

mod support;

use std::time::Duration;

use lb_common::abi::{Latency, Traffic};
use lb_common::net::Protocol;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::Wanted;
use lb_userspace::core::plan::{RingCache, plan};
use lb_userspace::core::signals::Timing;
use lb_userspace::io::datapath::{Account, Datapath, Kernel, capacity_for};

use support::frames::wire::{self, FAMILIES, Family, Packet};
use support::frames::{self, CLIENT, VIP};
use support::parity::Twins;
use support::services::{L2_OFF_VLAN, L2_ON_VLAN, L2_STICKY, OFF_VLAN, ON_VLAN, TUNNELS};
use support::{Pins, wanted};

const FIN: u8 = 1;
const RST: u8 = 4;

/// A VIP of each kind of service, by number and port: its packets take other ways through the program.
fn vips() -> Vec<(Family, u8, u16)> {
    let plain = [10, L2_STICKY.0, L2_ON_VLAN.0, L2_OFF_VLAN.0].into_iter().map(|vip| (vip, 80));
    let tunnels = TUNNELS.iter().chain([&ON_VLAN, &OFF_VLAN]).map(|tunnel| (tunnel.vip, 443));
    plain.chain(tunnels).flat_map(|(vip, port)| FAMILIES.map(|family| (family, vip, port))).collect()
}

#[test]
fn connections_are_counted_in_every_mode_and_timed_once() {
    let mut twins = Twins::new(&wanted());
    twins.set_timed(1);
    let (syn, ack, fin) = (wire::SYN, wire::ACK, wire::ACK | FIN);
    // A connection whose SYN came twice and that ends with a FIN, which comes twice, and an RST; then an opening that goes nowhere.
    let course =
        [(1, syn), (1, syn), (1, ack), (1, ack), (1, fin), (1, fin), (1, RST), (2, syn), (2, syn), (2, syn)];
    let vips = vips();
    for &(family, vip, port) in &vips {
        let before = twins.kernel.forwarded().unwrap().all;
        for (number, flags) in course {
            let packet = Packet::tcp(family.client(), family.vip(vip), [2_000 + number, port], flags, b"");
            assert_eq!(twins.agree(&packet.frame()).verdict, Verdict::Forward, "{family:?} {vip}");
        }
        let since = twins.kernel.forwarded().unwrap().all.since(&before);
        let Traffic { packets, new_flows, opened, repeated, answered, fins, resets, .. } = since;
        assert_eq!((packets, new_flows), (10, 2), "{family:?} {vip}");
        assert_eq!([opened, repeated, answered, fins, resets], [2, 3, 1, 2, 1], "{family:?} {vip}");
    }
    let [kernel, memory] = twins.changed();
    assert_eq!(kernel.timed.values().sum::<u64>(), vips.len() as u64, "each of them once");
    assert!(kernel == memory, "the tables differ: {}", kernel.difference(&memory));
    let timings = twins.kernel.timings();
    let sum = |timings: Vec<&Timing>| {
        let mut sum = Timing::default();
        timings.into_iter().for_each(|timing| sum.add(timing));
        sum
    };
    assert_eq!(sum(timings.backends.values().collect()), sum(timings.services.values().collect()));
}

/// The counters of thousands are read many at once.
#[test]
fn counters_of_many_are_those_of_each() {
    const BACKENDS: usize = 1_500;
    let pins = Pins::new();
    let capacity = capacity_for(1, BACKENDS, 1, 4_096, 16);
    let (mut kernel, _) = Kernel::load(&pins.0, capacity, false).unwrap();
    let backends = (0..BACKENDS).map(|number| support::backend(&format!("web{number}"), 1));
    let vip = support::vip("203.0.113.10", 80, Protocol::TCP);
    let service = support::service("web", vec![vip], backends.collect());
    let wanted = Wanted { services: vec![service], ..Wanted::default() };
    let plan = plan(&kernel.tables().image(), &wanted, &mut RingCache::default()).unwrap();
    plan.actions.iter().for_each(|action| kernel.apply(action).unwrap());
    let ids: Vec<u16> = kernel.tables().backend_ids().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), BACKENDS);
    let traffic = |id: u16| {
        let first = u64::from(id) * 10;
        let [packets, bytes, new_flows, opened] = [first, first + 1, first + 2, first + 3];
        let [repeated, answered, fins, resets] = [first + 4, first + 5, first + 6, first + 7];
        Traffic { packets, bytes, new_flows, opened, repeated, answered, fins, resets }
    };
    for &id in &ids {
        kernel.set_traffic(Account::Backend(id), traffic(id)).unwrap();
    }
    kernel.set_traffic(Account::Service(0), traffic(7)).unwrap();
    assert_eq!(kernel.traffic(Account::Backend(ids[700])).unwrap(), traffic(ids[700]));
    assert_eq!(kernel.traffic_by_backend().unwrap(), ids.iter().map(|&id| (id, traffic(id))).collect());
    assert_eq!(kernel.accounts().unwrap().services, [(0, traffic(7))].into());
}

fn tcp(port: u16, flags: frames::Flags) -> Vec<u8> {
    frames::tcp_from(frames::ipv4(CLIENT, VIP), port, 80, flags, b"")
}

/// By the kernel's own clock: no more than the time around it, and no less than the time within.
#[test]
fn the_time_from_syn_to_ack_is_that_on_the_clock() {
    const APART: Duration = Duration::from_millis(30);
    let units = |time: Duration| time.as_nanos() as u64 / Latency::UNIT_NS;
    let mut twins = Twins::new(&wanted());
    twins.set_timed(1);
    let began = std::time::Instant::now();
    let backend = twins.agree(&tcp(1, frames::Flags::Syn)).backend;
    let opened = std::time::Instant::now();
    std::thread::sleep(APART);
    // A SYN that comes again keeps the first one's time.
    twins.agree(&tcp(1, frames::Flags::Syn));
    let least = units(opened.elapsed());
    twins.agree(&tcp(1, frames::Flags::Ack));
    let most = units(began.elapsed()) + 1;
    let timing = twins.kernel.tables().timing(Account::Backend(backend));
    assert_eq!(timing.count(), 1);
    assert!((least..=most).contains(&timing.sum), "{least} to {most}: {}", timing.sum);
    let bucket = timing.buckets.iter().position(|&count| count == 1).unwrap();
    assert!(
        Latency::bound(bucket).unwrap() > timing.sum && Latency::bound(bucket - 1).unwrap() <= timing.sum
    );
}

#[test]
fn one_in_so_many_is_timed_or_none() {
    const FLOWS: u16 = 4_000;
    for (one_in, least, most) in [(0, 0, 0), (16, 180, 330)] {
        let mut twins = Twins::new(&wanted());
        twins.set_timed(one_in);
        for port in 0..FLOWS {
            twins.agree(&tcp(port, frames::Flags::Syn));
            twins.agree(&tcp(port, frames::Flags::Ack));
        }
        let [kernel, memory] = twins.changed();
        assert_eq!(kernel.timed, memory.timed);
        let timed = kernel.timed.values().sum::<u64>();
        assert!((least..=most).contains(&timed), "1 in {one_in}: {timed} of {FLOWS}");
    }
}

/// What a backend was timed with stays with its service when it goes, and none of it comes to who gets its id.
#[test]
fn times_stay_with_the_service() {
    let mut twins = Twins::new(&wanted());
    twins.set_timed(1);
    let mut outcome = twins.agree(&tcp(1, frames::Flags::Syn));
    for port in 1..40 {
        twins.agree(&tcp(port, frames::Flags::Syn));
        outcome = twins.agree(&tcp(port, frames::Flags::Ack));
    }
    let before = twins.kernel.timings();
    let (service, gone) = (outcome.service, outcome.backend);
    assert_eq!(before.services[&service].count(), 39);
    assert!(before.backends[&gone].count() > 0);
    let mut changed = wanted();
    let name = twins.kernel.tables().image().backends[&gone].name.clone();
    changed.services[0].backends.retain(|backend| backend.name != name);
    support::apply(&mut twins.kernel, &changed);
    let after = twins.kernel.timings();
    assert_eq!(after.services[&service], before.services[&service]);
    assert_eq!(after.backends.get(&gone), None);
    support::apply(&mut twins.kernel, &wanted());
    let again = twins.kernel.timings();
    assert_eq!(again.services[&service], before.services[&service]);
    assert!(again.backends.len() < before.backends.len(), "the new one has none");
}
