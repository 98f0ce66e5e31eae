//! The program ring: named frames through the program in the kernel, without a network.

mod support;

use std::net::IpAddr;

use lb_common::abi::{ICMP_PER_TICK, TOO_BIG_PER_SENDER, TOO_BIG_PER_TICK, Traffic, vip_key};
use lb_common::hash;
use lb_common::net::{Be16, Protocol};
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{VipKey, Wanted};
use lb_userspace::io::datapath::Datapath;

use support::frames::tunnels::of_bytes;
use support::frames::wire::{self, FAMILIES, Family, Packet, TCP, ip_bytes, ip_offset};
use support::frames::{self, CLIENT, EDGE_MAC, Flags, Named, VIP, expect};
use support::parity::{SHORTEST, Twins};
use support::services::{Kind, L2_STICKY, PREFIXED, TUNNELS};
use support::{backend, capacity, service, wanted};

/// Runs frames one after the other through both implementations, and checks what leaves and what is counted.
fn run(wanted: &Wanted, frames: &[Named]) {
    let mut twins = Twins::new(wanted);
    let mut before = None;
    for named in frames {
        let name = &named.name;
        assert!(named.frame.len() >= SHORTEST, "{name}: too short to be run");
        let counted = twins.kernel.forwarded().unwrap();
        let (result, outcome) = twins.agreed(&named.frame);
        assert_eq!(result.verdict, named.verdict, "{name}");
        expect::check(name, &named.becomes, &named.frame, &result.frame);
        let action = match named.verdict.name().split('.').next() {
            Some("drop") => 1,
            Some("pass") => 2,
            _ if named.redirected => 4,
            _ => 3,
        };
        assert_eq!(result.action, action, "{name}");
        if named.follows {
            assert_eq!(before, Some(outcome.backend), "{name}: goes another way than the frame before");
        }
        before = Some(outcome.backend);

        let now = twins.kernel.forwarded().unwrap();
        let mut expected = counted.all;
        if named.verdict == Verdict::Forward {
            let packet = &named.frame[ip_offset(&named.frame)..];
            let bytes = ip_bytes(packet) as u64;
            let new_flows = u64::from(outcome.new_flow());
            let one = Traffic { packets: 1, bytes, new_flows, ..Traffic::default() };
            expected += one;
            let mut of_backend = counted.backends.get(&outcome.backend).copied().unwrap_or_default();
            of_backend += one;
            assert_eq!(basic(now.backends[&outcome.backend]), basic(of_backend), "{name}");
        }
        assert_eq!(basic(now.all), basic(expected), "{name}");
    }
}

/// What is counted of every flow.
fn basic(Traffic { packets, bytes, new_flows, .. }: Traffic) -> [u64; 3] {
    [packets, bytes, new_flows]
}

#[test]
fn every_named_frame_meets_its_verdict() {
    run(&wanted(), &frames::all());
}

#[test]
fn senders_are_told_though_their_packets_may_be_fragmented() {
    let mut wanted = wanted();
    wanted.globals.reply_oversized = true;
    run(&wanted, &frames::all_told());
}

/// Verdicts of translated flows: their frames come in the order of a conversation, in `program_nat.rs`.
const OF_TRANSLATED_FLOWS: [Verdict; 5] = [
    Verdict::ForwardReturn,
    Verdict::ReplyTimeExceeded,
    Verdict::DropTimeExceeded,
    Verdict::DropNatPorts,
    Verdict::DropNatTable,
];

/// Verdicts that no frame can bring about by itself: they have tests of their own below.
const NOT_BY_A_FRAME: [Verdict; 4] =
    [Verdict::PassOtherHost, Verdict::DropIcmpRate, Verdict::DropHeadroom, Verdict::DropInconsistent];

#[test]
fn every_verdict_has_a_frame() {
    let frames = frames::all();
    println!("{} named frames, {} more of answers", frames.len(), frames::all_told().len());
    assert!(frames.len() >= 200, "{}", frames.len());
    for verdict in Verdict::ALL {
        let elsewhere = OF_TRANSLATED_FLOWS.contains(verdict) || NOT_BY_A_FRAME.contains(verdict);
        let here = frames.iter().any(|named| named.verdict == *verdict);
        assert!(here != elsewhere, "{}: a frame {here}, elsewhere {elsewhere}", verdict.name());
    }
}

#[test]
fn names_are_unique() {
    let mut names = std::collections::HashSet::new();
    for named in frames::all() {
        assert!(names.insert(named.name.clone()), "{}", named.name);
    }
}

#[test]
fn a_frame_for_another_hosts_mac_is_left_alone() {
    let mut twins = Twins::new(&wanted());
    let frame = frames::tcp(VIP, 80, Flags::Syn);
    twins.set_own_mac(EDGE_MAC);
    assert_eq!(twins.agree(&frame).verdict, Verdict::Forward);
    twins.set_own_mac([2, 0, 0, 0, 0, 99]);
    assert_eq!(twins.agree(&frame).verdict, Verdict::PassOtherHost);
    let elsewhere = frames::tcp([203, 0, 113, 99], 80, Flags::Syn);
    assert_eq!(twins.agree(&elsewhere).verdict, Verdict::PassNotVip);
}

/// A ring that names a backend of another service is a fault; it must cost the packet, not the boundary.
#[test]
fn a_ring_that_names_a_foreign_backend_forwards_nothing() {
    use std::sync::Arc;

    use lb_userspace::core::plan::Action;
    use lb_userspace::core::ring::{Origin, Planned};
    let mut twins = Twins::new(&wanted());
    let image = twins.kernel.tables().image();
    let (web, dns) = (image.service_id("web").unwrap(), image.service_id("dns").unwrap());
    let (_, known) = image.services[&dns].ring.as_ref().unwrap();
    let Origin::Recipe(recipe) = &known.origin else { panic!("this process loaded it") };
    let ring = Arc::new(Planned::new(Arc::clone(recipe)));
    let slot = image.services[&web].ring.as_ref().unwrap().0;
    let action = Action::WriteRing { slot, ring };
    twins.kernel.apply(&action).unwrap();
    twins.memory.apply(&action).unwrap();
    let outcome = twins.agree(&frames::tcp(VIP, 80, Flags::Syn));
    assert_eq!(outcome.verdict, Verdict::DropInconsistent);
}

#[test]
fn traffic_is_counted_by_service_and_backend() {
    let mut twins = Twins::new(&wanted());
    let payload = [0; 100];
    let open = frames::tcp_from(frames::ipv4(CLIENT, VIP), 40_000, 80, Flags::Syn, b"");
    let data = frames::tcp_from(frames::ipv4(CLIENT, VIP), 40_000, 80, Flags::Ack, &payload);
    let outcome = twins.agree(&open);
    assert!(outcome.new_flow());
    assert!(!twins.agree(&data).new_flow());
    assert!(!twins.agree(&data).new_flow());
    let expected = Traffic {
        packets: 3,
        bytes: 40 + 2 * 140,
        new_flows: 1,
        opened: 1,
        answered: 1,
        ..Traffic::default()
    };
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.backends[&outcome.backend], expected);
    assert_eq!(forwarded.services[&outcome.service], expected);
    assert_eq!(forwarded.all, expected);

    // What was counted stays when the backend goes, and when the service does.
    let mut wanted = wanted();
    let name = twins.kernel.tables().image().backends[&outcome.backend].name.clone();
    wanted.services[0].backends.retain(|backend| backend.name != name);
    support::apply(&mut twins.kernel, &wanted);
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.backends.get(&outcome.backend), None);
    assert_eq!(forwarded.services[&outcome.service], expected);
    wanted.services.remove(0);
    support::apply(&mut twins.kernel, &wanted);
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.services.get(&outcome.service), None);
    assert_eq!(forwarded.all, expected);
}

/// Echo replies are limited, of whichever family, by themselves: a flood of pings keeps nobody from learning what is too big for the way.
#[test]
fn echo_replies_are_limited_in_a_tick() {
    let mut twins = Twins::new(&wanted());
    let all = frames::all();
    let answered = |verdict| all.iter().filter(move |named| named.verdict == verdict).take(30);
    let pings = answered(Verdict::ReplyIcmpEcho);
    assert!(pings.clone().count() > 1);
    for named in pings.clone().cycle().take(ICMP_PER_TICK.into()) {
        assert_eq!(twins.agree(&named.frame).verdict, named.verdict, "{}", named.name);
    }
    for named in pings {
        let (result, _) = twins.agreed(&named.frame);
        assert_eq!((result.verdict, result.action), (Verdict::DropIcmpRate, 1), "{}", named.name);
    }
    for named in answered(Verdict::ReplyTooBig) {
        assert_eq!(twins.agree(&named.frame).verdict, named.verdict, "{}", named.name);
    }
}

/// What is too big for a tunnel, of senders with these numbers, each of a network of its own, and of the same with other hosts of their
/// networks.
fn too_big(family: Family, sender: u8) -> [Vec<u8>; 2] {
    let tunnel = &TUNNELS[0];
    let packet = of_bytes(tunnel, family, TCP, tunnel.room() + 1);
    [1, 2].map(|host| {
        let from = match family {
            Family::V4 => IpAddr::from([192, 0, sender, host]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0xd, sender.into(), 0, 0, 0, host.into()]),
        };
        Packet { from, ..packet.clone() }.frame()
    })
}

#[test]
fn a_sender_that_floods_keeps_no_other_from_learning_what_is_too_big() {
    let mut twins = Twins::new(&wanted());
    for family in FAMILIES {
        let [flood, of_its_network] = too_big(family, 0);
        for _ in 0..TOO_BIG_PER_SENDER {
            assert_eq!(twins.agree(&flood).verdict, Verdict::ReplyTooBig);
        }
        let (result, _) = twins.agreed(&flood);
        assert_eq!((result.verdict, result.action), (Verdict::DropIcmpRate, 1));
        for sender in 1..100 {
            assert_eq!(twins.agree(&too_big(family, sender)[0]).verdict, Verdict::ReplyTooBig, "{sender}");
        }
        // Who has a network of IPv6 has all addresses in it.
        let told = if family == Family::V4 { Verdict::ReplyTooBig } else { Verdict::DropIcmpRate };
        assert_eq!(twins.agreed(&of_its_network).0.verdict, told);
    }
}

#[test]
fn all_senders_together_are_told_so_often_in_a_tick() {
    let mut twins = Twins::new(&wanted());
    twins.set_icmp_answers(0, TOO_BIG_PER_TICK - 1);
    let [last, one_more] = [0, 1].map(|sender| too_big(Family::V4, sender)[0].clone());
    assert_eq!(twins.agree(&last).verdict, Verdict::ReplyTooBig);
    assert_eq!(twins.agreed(&one_more).0.verdict, Verdict::DropIcmpRate);
}

/// The driver's room is for the kernel to give; over a slice, it can be too little.
#[test]
fn without_room_in_front_nothing_is_sent() {
    let mut twins = Twins::new(&wanted());
    let mut tried = 0;
    for named in frames::all() {
        let grows = match &named.becomes {
            expect::Becomes::Tunnelled(..) => true,
            expect::Becomes::OneOf(frames) => frames.iter().all(|frame| frame.len() > named.frame.len()),
            expect::Becomes::Unchanged => false,
        };
        if !grows || named.follows {
            continue;
        }
        let (result, _) = twins.through_slice_with(&named.frame, 3);
        assert_eq!((result.verdict, result.action), (Verdict::DropHeadroom, 1), "{}", named.name);
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
}

/// What of a tunnel's header is filled by flow stays with the flow, and spreads flows.
#[test]
fn a_flow_keeps_its_outer_header_and_others_have_another() {
    const FLOWS: u16 = 64;
    let mut twins = Twins::new(&wanted());
    for tunnel in TUNNELS.iter().chain(&PREFIXED) {
        let mut outer = Vec::new();
        // Not one after the other: the hash makes regular steps of regular steps, and in few bits those may come round soon.
        for port in (0..FLOWS).map(|flow| 10_000 + flow * flow * 13) {
            let packet = |payload: &[u8]| {
                let (from, to) = (Family::V4.client(), Family::V4.vip(tunnel.vip));
                Packet::tcp(from, to, [port, 443], wire::ACK, payload).frame()
            };
            let name = format!("{}, port {port}", tunnel.name());
            let [first, second] = [b"".as_slice(), b"GET /"].map(|payload| {
                let frame = packet(payload);
                let (result, _) = twins.agreed(&frame);
                expect::strip(&name, tunnel, &[], &frame, &result.frame)
            });
            assert_eq!(first, second, "{name}");
            outer.push(first);
        }
        let differing = |of: &dyn Fn(&expect::Entropy) -> Vec<u8>| {
            outer.iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
        };
        let name = tunnel.name();
        let ports = differing(&|outer| outer.port.to_be_bytes().to_vec());
        assert_eq!(ports > 32, tunnel.kind == Kind::Gue, "{name}: {ports} ports");
        let labels = differing(&|outer| outer.label.to_be_bytes().to_vec());
        assert_eq!(labels > 32, tunnel.outer == Family::V6, "{name}: {labels} flow labels");
        let sources = differing(&|outer| outer.source.clone());
        assert_eq!(sources > 16, tunnel.free_bits > 0, "{name}: {sources} sources");
    }
}

/// With affinity `client`, all that comes from one address goes to one backend, whichever port and VIP it uses.
#[test]
fn a_clients_flows_stay_together() {
    let mut wanted = wanted();
    let (number, _) = L2_STICKY;
    let name = format!("l2-{number}");
    let sticky = wanted.services.iter_mut().find(|service| service.name == name).unwrap();
    let second = FAMILIES.map(|family| VipKey { address: family.vip(200).into(), ..sticky.vips[0] });
    sticky.vips.extend(second);
    let mut twins = Twins::new(&wanted);
    let mut used = std::collections::BTreeSet::new();
    for client in 0..60_u8 {
        for family in FAMILIES {
            let from = match family {
                Family::V4 => IpAddr::from([198, 51, 100, client + 1]),
                Family::V6 => format!("2001:db8:c::{client:x}1").parse().unwrap(),
            };
            let mut backends = std::collections::BTreeSet::new();
            for (port, vip) in [(1, number), (2, number), (3, 200), (4, 200), (5, number)] {
                let frame = Packet::tcp(from, family.vip(vip), [port, 80], wire::SYN, b"").frame();
                let outcome = twins.agree(&frame);
                assert_eq!(outcome.verdict, Verdict::Forward);
                backends.insert(outcome.backend);
            }
            assert_eq!(backends.len(), 1, "{from}");
            used.extend(backends);
        }
    }
    assert_eq!(used.len(), 3, "{used:?}");
}

/// A bucket holds two VIPs: of five that their hash leads to one bucket three are found further on, and a sixth is found missing.
#[test]
fn vips_that_their_bucket_has_no_room_for_are_found() {
    for family in FAMILIES {
        let key = |port| VipKey { address: family.vip(10).into(), port, protocol: Protocol::TCP };
        let bucket = |port| {
            let VipKey { address, protocol, .. } = key(port);
            hash::vip(address, vip_key(address, Be16::new(port), protocol)) & (capacity().vip_buckets - 1)
        };
        let meeting: Vec<u16> = (1..u16::MAX).filter(|port| bucket(*port) == bucket(1)).take(6).collect();
        let [served @ .., missing] = meeting.as_slice() else { panic!("{meeting:?}") };
        let vips = served.iter().map(|port| key(*port)).collect();
        let web = service("web", vips, vec![backend("web1", 1)]);
        let mut twins = Twins::new(&Wanted { services: vec![web], ..wanted() });
        let mut meets = |port, verdict| {
            let frame = Packet::tcp(family.client(), family.vip(10), [2_000, port], wire::SYN, b"").frame();
            assert_eq!(twins.agree(&frame).verdict, verdict, "{family:?} {port}");
        };
        assert_eq!(served.len(), 5);
        served.iter().for_each(|port| meets(*port, Verdict::Forward));
        meets(*missing, Verdict::PassNotVip);
    }
}

/// Every entry that a full table loses is counted, once, by what it was.
#[test]
fn what_makes_way_in_the_flow_table_is_counted() {
    const FLOWS: u64 = 6_000;
    for established in [false, true] {
        let mut twins = Twins::new(&wanted());
        let (mut lost, mut new) = ([0; 4], 0);
        for flow in 0..FLOWS {
            let port = flow as u16 + 1;
            for flags in [Flags::Syn, Flags::Ack].into_iter().take(if established { 2 } else { 1 }) {
                let frame = frames::tcp_from(frames::ipv4(CLIENT, VIP), port, 80, flags, b"");
                let (result, outcome) = twins.agreed(&frame);
                new += u64::from(outcome.new_flow());
                for (sum, evicted) in lost.iter_mut().zip(result.evictions) {
                    *sum += evicted;
                }
            }
        }
        let [kernel, memory] = twins.flow_tables();
        assert_eq!(kernel, memory);
        let held = kernel.iter().filter(|entry| **entry != 0).count() as u64;
        let [translated, expired, probation, old] = lost;
        assert_eq!(new, FLOWS);
        assert_eq!((translated, expired), (0, 0), "what finds an empty place costs nobody one");
        assert_eq!(held + probation + old, FLOWS);
        assert!(probation + old > 1_000, "{lost:?}");
        assert_eq!(if established { probation } else { old }, 0, "{lost:?}");
    }
}

/// Bounds of the design: the program is far from the verifier's limit of a million instructions.
#[test]
fn the_verifier_is_content_with_the_program() {
    let mut twins = Twins::new(&wanted());
    let verified = twins.kernel.verified_instructions().unwrap().unwrap();
    println!("verified instructions: {verified}");
    assert!(verified < 500_000, "{verified}");
}
