//! Connections that begin, end, begin again and meet limits → the translations that are made for them.

use std::collections::BTreeSet;

use lb_common::abi::{Moving, Traffic};
use lb_common::verdict::Verdict;
use lb_userspace::core::image::Wanted;
use lb_userspace::io::datapath::Datapath;

use crate::support::nat_frames::{Family, Nat, Setup, answer, answered};
use crate::support::packets::{ACK, FIN, Packet, SYN};
use crate::support::parity::Twins;

/// Shifts that make time go on by two, by four, and by so much that nothing is a retransmission any more: by eight, when other packets
/// would change nothing, and by far more.
pub const START: u32 = 31;
pub const SOON: u32 = 30;
pub const ANEW: u32 = 29;
pub const LATER: u32 = 26;

pub fn tcp(family: Family) -> Setup {
    Setup::new(family, true)
}

/// Addresses and ports that tell a translation.
pub fn way(left: &Packet) -> (std::net::IpAddr, std::net::IpAddr, [u16; 2]) {
    (left.source, left.destination, left.body.ports())
}

#[test]
fn a_retransmitted_syn_keeps_its_translation() {
    for setup in Setup::all().filter(|setup| setup.tcp) {
        let mut nat = Nat::new(setup);
        nat.twins.set_time(START);
        let syn = setup.customer(40_000, SYN, b"");
        let (first, outcome) = nat.forward(&syn);
        assert!(outcome.new_flow());
        nat.twins.set_time(SOON);
        let (again, outcome) = nat.forward(&syn);
        assert!(!outcome.new_flow());
        assert_eq!(way(&again), way(&first));
        assert_eq!(nat.translations(), 2);
    }
}

#[test]
fn a_connection_keeps_its_address_when_new_ones_are_sent_from_another() {
    for setup in Setup::all() {
        let mut nat = Nat::new(setup);
        let packet = setup.customer(40_000, ACK, b"");
        let (left, _) = nat.forward(&packet);
        let other = Setup { sources: 0, ..setup };
        nat.twins.apply(&other.wanted());
        assert_eq!(way(&nat.forward(&packet).0), way(&left));
        let answer = answer(&left, ACK, b"");
        nat.back(&answer, &answered(&packet, &answer));
        nat.setup = other;
        nat.forward(&other.customer(40_001, SYN, b""));
        let tables = nat.twins.kernel.tables();
        let marked: BTreeSet<_> = tables.image().sources().collect();
        assert_eq!(marked.len(), 2);
        assert_eq!(tables.without_flows(marked.clone()), BTreeSet::new());
        assert_eq!(tables.image().former_sources(), BTreeSet::from([left.source.into()]));
        nat.twins.apply(&Wanted { unused: BTreeSet::from([left.source.into()]), ..other.wanted() });
        nat.unchanged(&answer, Verdict::PassNotVip);
        let tables = nat.twins.kernel.tables();
        tables.sweep_backends(&nat.held_by().into_iter().map(|id| (id, 0)).collect());
        assert_eq!(tables.without_flows(marked.clone()), marked, "nobody is left");
    }
}

/// Else one packet each from invented sources would push out established flows.
#[test]
fn one_packet_leaves_a_flow_on_probation() {
    for setup in Setup::all() {
        let mut nat = Nat::new(setup);
        let packet = setup.customer(40_000, ACK, b"");
        let established = |nat: &Nat| {
            let tables = nat.twins.kernel.tables();
            assert_eq!(tables.flow_entries(), 1);
            tables.live_flows(nat.twins.memory.now).values().sum::<u64>()
        };
        let (_, outcome) = nat.forward(&packet);
        assert!(outcome.new_flow());
        assert_eq!(established(&nat), 0, "{setup:?}");
        nat.forward(&packet);
        assert_eq!(established(&nat), 1, "{setup:?}");
    }
}

/// Nearly all packets change nothing but the time of their flow.
#[test]
fn every_packet_keeps_its_translation_from_expiring() {
    for setup in Setup::all().filter(|setup| setup.tcp) {
        let mut nat = Nat::new(setup);
        nat.twins.set_time(START);
        let customers = setup.customer(40_000, ACK, b"");
        let left =
            [&setup.customer(40_000, SYN, b""), &customers, &customers].map(|packet| nat.forward(packet).0);
        let answer = answer(&left[0], ACK, b"");
        let back = answered(&customers, &answer);
        nat.back(&answer, &back);
        nat.back(&answer, &back);
        nat.twins.set_time(SOON);
        nat.forward(&customers);
        nat.back(&answer, &back);
        let now = nat.twins.memory.now.0;
        let ticks: Vec<u32> =
            nat.twins.kernel.tables().translations().map(|(.., state)| state.tick).collect();
        assert_eq!(ticks, [now, now]);
    }
}

/// The former tables may know it. Here there is no program that has them, and nothing else is done with the packet.
#[test]
fn while_tables_change_their_size_what_is_not_known_is_left_to_the_former_program() {
    let mut nat = Nat::any();
    for setup in Setup::all() {
        nat.change(setup);
        let before = setup.customer(39_999, ACK, b"");
        nat.forward(&before);
        nat.twins.set_moving(Moving::In);
        nat.forward(&before);
        let unknown = setup.customer(40_000, ACK, b"");
        nat.unchanged(&unknown, Verdict::DropInconsistent);
        if setup.tcp {
            let syn = setup.customer(40_001, SYN, b"");
            let (left, _) = nat.forward(&syn);
            let known = answer(&left, SYN | ACK, b"");
            nat.back(&known, &answered(&syn, &known));
            let unknown = Packet { source: setup.family.server(99), ..known };
            nat.unchanged(&unknown, Verdict::DropInconsistent);
            nat.twins.set_moving(Moving::No);
            nat.unchanged(&unknown, Verdict::PassNotVip);
        }
        nat.twins.set_moving(Moving::No);
        nat.forward(&unknown);
    }
}

/// What is written to one program's tables must not make wrong what the other's say.
#[test]
fn while_tables_change_their_size_ports_keep_their_translations_and_programs_share_none() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::any();
    for (moving, odd) in [(Moving::Out, 0), (Moving::In, 1)] {
        nat.change(setup);
        nat.twins.set_time(START);
        let (first, _) = nat.forward(&setup.customer(40_000, SYN, b""));
        for flags in [ACK, ACK | FIN] {
            nat.forward(&setup.customer(40_000, flags, b""));
        }
        nat.twins.set_time(ANEW);
        nat.twins.set_moving(moving);
        let (second, _) = nat.forward(&setup.customer(40_000, SYN, b""));
        assert_eq!(way(&second), way(&first));
        let ports = nat.twins.kernel.tables().control().unwrap().nat_ports;
        for customer in 41_000..41_050 {
            let (left, _) = nat.forward(&setup.customer(customer, SYN, b""));
            let [port, _] = left.body.ports();
            let number = (0..ports.count()).find(|number| ports.port(*number) == port).unwrap();
            assert_eq!(number % 2, odd, "port {port}");
        }
        nat.twins.set_moving(Moving::No);
    }
}

#[test]
fn a_backend_that_is_gone_or_disabled_costs_its_connections_their_translations() {
    for remove in [true, false] {
        let setup = tcp(Family::V6);
        let mut nat = Nat::new(setup);
        let (first, _) = nat.forward(&setup.customer(40_000, SYN, b""));
        nat.forward(&setup.customer(40_000, ACK, b""));
        let mut wanted = setup.wanted();
        let name = format!("web{}", first.macs[0][5]);
        let backends = &mut wanted.services[0].backends;
        if remove {
            backends.retain(|backend| backend.name != name);
        } else {
            for backend in backends.iter_mut().filter(|backend| backend.name == name) {
                (backend.enabled, backend.ring_weight) = (false, 0);
            }
        }
        nat.twins.apply(&wanted);
        let (second, outcome) = nat.forward(&setup.customer(40_000, ACK, b""));
        assert!(outcome.new_flow());
        assert_ne!(second.destination, first.destination);
        assert_eq!(nat.translations(), 2);
    }
}

/// The flow table is full of others, and the ring says otherwise: the translation is right.
#[test]
fn a_translation_wins_over_a_lost_entry_of_the_flow_table() {
    for tcp in [true, false] {
        let setup = Setup::new(Family::V4, tcp);
        let mut nat = Nat::new(setup);
        let packet = setup.customer(40_000, ACK, b"");
        let (first, _) = nat.forward(&packet);
        let host = first.macs[0][5];
        let mut drained = setup.wanted();
        for backend in &mut drained.services[0].backends {
            let is = backend.name == format!("web{host}");
            backend.ring_weight = if is { 0 } else { 100 };
        }
        nat.twins.apply(&drained);
        for tables in [nat.twins.kernel.tables(), nat.twins.memory.tables()] {
            for way in tables.slices().unwrap().flows.iter().flat_map(|bucket| &bucket.ways) {
                way.store(0);
            }
        }
        let (again, outcome) = nat.forward(&packet);
        assert_eq!(way(&again), way(&first));
        assert!(!outcome.new_flow(), "it had its backend before");
        let (other, _) = nat.forward(&setup.customer(40_001, SYN, b""));
        assert_ne!(other.destination, first.destination, "the ring says otherwise");
    }
}

/// UDP has no connection to lose: it leaves a backend that is unhealthy. TCP stays.
#[test]
fn an_unhealthy_backend_keeps_connections_only() {
    for tcp in [true, false] {
        let setup = Setup::new(Family::V6, tcp);
        let mut nat = Nat::new(setup);
        let packet = setup.customer(40_000, ACK, b"");
        let (first, _) = nat.forward(&packet);
        let mut wanted = setup.wanted();
        for backend in &mut wanted.services[0].backends {
            if backend.name == format!("web{}", first.macs[0][5]) {
                (backend.healthy, backend.ring_weight) = (false, 0);
            }
        }
        nat.twins.apply(&wanted);
        let (second, outcome) = nat.forward(&packet);
        assert_eq!(way(&second) == way(&first), tcp);
        assert_eq!(outcome.new_flow(), !tcp);
        assert_eq!(nat.translations(), 2);
    }
}

#[test]
fn new_connections_and_traffic_are_counted_for_their_backend() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::new(setup);
    let mut expected = std::collections::BTreeMap::<u16, Traffic>::new();
    for port in 40_000..40_020 {
        for (flags, payload) in [(SYN, &b""[..]), (ACK, b"12345"), (ACK | FIN, b"")] {
            let packet = setup.customer(port, flags, payload);
            let (left, outcome) = nat.forward(&packet);
            let traffic = expected.entry(outcome.backend).or_default();
            let (bytes, new_flows) = (packet.packet().len() as u64, u64::from(flags == SYN));
            let [opened, went_on, fins] = [SYN, ACK, ACK | FIN].map(|seen| u64::from(flags == seen));
            *traffic += Traffic {
                packets: 1,
                bytes,
                new_flows,
                opened,
                answered: went_on,
                fins,
                ..Traffic::default()
            };
            let answer = answer(&left, ACK, b"not counted for the backend");
            nat.back(&answer, &answered(&packet, &answer));
        }
    }
    assert_eq!(expected.len(), 2, "both backends serve");
    let forwarded = nat.twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.backends, expected);
    assert_eq!(forwarded.all.new_flows, 20);
    let verdicts = nat.twins.kernel.verdicts(&forwarded).unwrap();
    assert_eq!(verdicts.packets[Verdict::ForwardReturn.index()], 60);
    assert_eq!(verdicts.packets[Verdict::Forward.index()], 60);
    nat.translations();
}

#[test]
fn ports_cannot_be_told_from_those_before() {
    let setup = Setup { sources: 4, ..tcp(Family::V4) };
    let mut nat = Nat::new(setup);
    let flows = 400;
    let mut ways = BTreeSet::new();
    let (mut ports, mut steps) = (Vec::new(), BTreeSet::new());
    for port in 0..flows {
        let (left, _) = nat.forward(&setup.customer(20_000 + port, SYN, b""));
        assert!(ways.insert((left.source, left.body.ports(), left.destination)), "used twice: {left:?}");
        ports.push(left.body.ports()[0]);
    }
    for pair in ports.windows(2) {
        steps.insert(pair[1].wrapping_sub(pair[0]));
    }
    // By chance a few are alike: with 36,280 ports some two or three pairs of 400.
    assert!(ports.iter().collect::<BTreeSet<_>>().len() > 380);
    assert!(steps.len() > 380, "{} different steps", steps.len());
    let below = ports.iter().filter(|port| **port < 32_768).count();
    assert!((300..399).contains(&below), "{below} below the host's, of which there are seven times more");
    let sources: BTreeSet<_> = ways.iter().map(|(source, ..)| *source).collect();
    assert_eq!(sources.len(), 4, "all addresses are used");
    let with_first = ways.iter().filter(|(source, ..)| *source == setup.snat()[0]).count();
    assert!((60..140).contains(&with_first), "{with_first} of {flows}");

    // Another key, other ports.
    nat.change(setup);
    nat.twins.set_flow_key(lb_common::hash::expand(0x5eed));
    let (left, _) = nat.forward(&setup.customer(20_000, SYN, b""));
    assert_ne!(left.body.ports()[0], ports[0]);
}

#[test]
fn without_an_address_to_send_from_nothing_is_translated() {
    let setup = Setup { sources: 0, ..tcp(Family::V4) };
    let mut wanted = setup.wanted();
    for backend in &mut wanted.services[0].backends {
        backend.hop.as_mut().unwrap().source = lb_common::net::Address::ZERO;
    }
    let mut nat = Nat::with(Twins::new(&wanted), setup);
    nat.unchanged(&setup.customer(40_000, SYN, b""), Verdict::DropNatSource);
    assert_eq!(nat.translations(), 0);
}

/// The agent's clock is the program's: what was just made is not idle.
#[test]
fn what_was_just_translated_is_not_swept() {
    let setup = tcp(Family::V4);
    let mut nat = Nat::new(setup);
    // About a second, as the agent has it; both clocks are asked again and again, for a tick may pass.
    nat.twins.kernel.tables_mut().control_mut().unwrap().tick_shift = 8;
    let frame = setup.customer(40_000, SYN, b"").frame();
    nat.twins.through_kernel(&frame);
    let now = nat.twins.kernel.now().unwrap();
    assert_eq!(nat.twins.kernel.tables().sweep_translations(now), 2);
}
