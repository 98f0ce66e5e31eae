//! Which backend a flow's next packet meets, in every state of the flow and of the backend; and what `explain` says of it.

use std::net::Ipv4Addr;

use lb_common::abi::{Forwarding, Moving, NextHop};
use lb_common::datapath::{Action, Exit, Outcome, Stage, run_stage};
use lb_common::flow::{OPENING_IDLE_TICKS, RETRANSMISSION_TICKS, Tick};
use lb_common::net::{Address, Protocol};
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::verdict::Verdict;
use lb_userspace::core::explain::{Ingress, PacketSpec, SpecProtocol, explain, frame};
use lb_userspace::core::image::{VipKey, Wanted, WantedBackend, WantedService};
use lb_userspace::core::plan::{RingCache, plan};
use lb_userspace::io::datapath::{Datapath, Memory, capacity_for};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Offset of the TCP flags in a frame without options.
const TCP_FLAGS: usize = 14 + 20 + 13;
const FIN_ACK: u8 = 0x11;

/// Two backends behind TCP and UDP port 80 of one VIP.
struct Lab {
    memory: Memory,
    wanted: Wanted,
}

impl Lab {
    fn new() -> Self {
        let backend = |n: u8| WantedBackend {
            name: format!("b{n}"),
            address: Address::v4([10, 0, 0, n]),
            enabled: true,
            healthy: true,
            probed_healthy: true,
            ring_weight: 100,
            port: 0,
            hop: Some(NextHop::new([2, 0, 0, 0, 0, n], [2; 6], 0)),
        };
        let service = |name: &str, protocol| WantedService {
            name: name.into(),
            forwarding: Forwarding::L2Dsr,
            client_affinity: false,
            vips: vec![VipKey { address: VIP.into(), port: 80, protocol }],
            backends: vec![backend(1), backend(2)],
        };
        let services = vec![service("tcp", Protocol::TCP), service("udp", Protocol::UDP)];
        let mut lab = Self {
            memory: Memory::new(capacity_for(2, 4, 4, 4_096, 1_024), 0),
            wanted: Wanted { services, ..Wanted::default() },
        };
        lab.apply();
        lab
    }

    fn apply(&mut self) {
        let plan = plan(&self.memory.tables().image(), &self.wanted, &mut RingCache::default()).unwrap();
        for action in &plan.actions {
            self.memory.apply(action).unwrap();
        }
    }

    /// Changes the backend with this id, wherever it is.
    fn change(&mut self, id: u16, change: impl Fn(&mut WantedBackend)) {
        let loaded = self.memory.tables().image().backends[&id].clone();
        let services = &mut self.wanted.services;
        let service = if loaded.service == 0 { &mut services[0] } else { &mut services[1] };
        change(service.backends.iter_mut().find(|backend| backend.name == loaded.name).unwrap());
        self.apply();
    }

    fn pass_ticks(&mut self, ticks: u32) {
        self.memory.now = Tick(self.memory.now.0 + ticks);
    }

    fn spec(protocol: SpecProtocol, syn: bool) -> PacketSpec {
        let source = (Ipv4Addr::new(198, 51, 100, 1), 40_000).into();
        PacketSpec::Tuple { source, destination: (VIP, 80).into(), protocol, syn }
    }

    fn send_frame(&self, mut bytes: Vec<u8>) -> Outcome {
        let tables = SliceTables::new(self.memory.tables().slices().unwrap(), self.memory.now);
        tables.process(&mut SlicePacket::new(&mut bytes, 0, 1))
    }

    fn send(&self, protocol: SpecProtocol, syn: bool) -> Outcome {
        self.send_frame(frame(&Self::spec(protocol, syn), Ingress::default()).unwrap())
    }

    fn syn(&self) -> Outcome {
        self.send(SpecProtocol::Tcp, true)
    }

    fn ack(&self) -> Outcome {
        self.send(SpecProtocol::Tcp, false)
    }

    fn fin(&self) -> Outcome {
        let mut bytes = frame(&Self::spec(SpecProtocol::Tcp, false), Ingress::default()).unwrap();
        bytes[TCP_FLAGS] = FIN_ACK;
        self.send_frame(bytes)
    }

    fn udp(&self) -> Outcome {
        self.send(SpecProtocol::Udp, false)
    }
}

fn unhealthy(backend: &mut WantedBackend) {
    (backend.healthy, backend.probed_healthy, backend.ring_weight) = (false, false, 0);
}

fn drained(backend: &mut WantedBackend) {
    backend.ring_weight = 0;
}

fn disabled(backend: &mut WantedBackend) {
    (backend.enabled, backend.ring_weight) = (false, 0);
}

#[test]
fn an_established_connection_stays_with_a_backend_that_takes_no_new_ones() {
    for change in [unhealthy, drained] {
        let mut lab = Lab::new();
        let first = lab.syn();
        lab.ack();
        lab.change(first.backend, change);
        let next = lab.ack();
        assert_eq!((next.backend, next.new_flow()), (first.backend, false));
        lab.pass_ticks(1);
        let reopened = lab.syn();
        assert_ne!(reopened.backend, first.backend, "a new connection from the same port is a new flow");
        assert!(reopened.new_flow());
    }
}

#[test]
fn a_connection_leaves_a_disabled_backend() {
    let mut lab = Lab::new();
    let first = lab.syn();
    lab.ack();
    lab.change(first.backend, disabled);
    let next = lab.ack();
    assert_eq!(next.verdict, Verdict::Forward);
    assert_ne!(next.backend, first.backend);
}

#[test]
fn a_retransmitted_syn_keeps_its_backend_for_seconds_only() {
    let mut lab = Lab::new();
    let first = lab.syn();
    // Whatever the ring says by then.
    lab.change(first.backend, drained);
    lab.pass_ticks(RETRANSMISSION_TICKS);
    assert_eq!((lab.syn().backend, lab.syn().new_flow()), (first.backend, false));
    lab.pass_ticks(1);
    let later = lab.syn();
    assert!(later.new_flow(), "retransmissions do not prolong themselves");
    assert_ne!(later.backend, first.backend);
}

/// What was carried to other tables before says so, too.
#[test]
fn while_tables_change_their_size_a_port_keeps_its_healthy_backend() {
    for (change, stays) in [(drained as fn(&mut WantedBackend), true), (unhealthy, false), (disabled, false)]
    {
        let mut lab = Lab::new();
        let first = lab.syn();
        lab.ack();
        lab.fin();
        lab.change(first.backend, change);
        lab.memory.tables().control().unwrap().moving.store(Moving::Out as u64);
        let second = lab.syn();
        assert!(second.new_flow());
        assert_eq!(second.backend == first.backend, stays);
        assert_eq!(lab.ack().backend, second.backend);
        assert_eq!(lab.memory.tables().live_flows(lab.memory.now)[&second.backend], 1);
    }
}

/// One of a flood must not be forgotten with the next, whose first packets come in the same tick.
#[test]
fn in_a_flood_most_flows_outlive_the_next_and_established_ones_all() {
    let lab = Lab::new();
    let send = |number: u32, syn: bool| {
        let source = (Ipv4Addr::from(0x0a00_0000 + number), 40_000).into();
        let destination = (VIP, 80).into();
        let spec = PacketSpec::Tuple { source, destination, protocol: SpecProtocol::Tcp, syn };
        lab.send_frame(frame(&spec, Ingress::default()).unwrap())
    };
    let room = 4_096;
    for number in 0..200 {
        send(number, true);
        send(number, false);
    }
    let open = |flows: std::ops::Range<u32>| {
        for number in flows {
            send(number, true);
        }
    };
    // Twenty for each place.
    open(1_000..1_000 + 20 * room);
    open(500..700);
    // One for each bucket, on average.
    open(100_000..100_000 + room / 8);
    let known = |flows: std::ops::Range<u32>| flows.filter(|&number| !send(number, false).new_flow()).count();
    assert_eq!(known(0..200), 200);
    let outlived = known(500..700);
    assert!(outlived > 150, "{outlived} of 200");
}

#[test]
fn a_syn_does_not_wait_for_a_dead_backend() {
    let mut lab = Lab::new();
    let first = lab.syn();
    lab.change(first.backend, unhealthy);
    assert_ne!(lab.syn().backend, first.backend);
}

#[test]
fn datagrams_leave_an_unhealthy_backend_but_not_a_drained_one() {
    for (change, stays) in [(unhealthy as fn(&mut WantedBackend), false), (drained, true)] {
        let mut lab = Lab::new();
        let first = lab.udp();
        lab.udp();
        lab.change(first.backend, change);
        assert_eq!(lab.udp().backend == first.backend, stays);
    }
}

#[test]
fn a_closing_connection_keeps_its_backend_and_is_soon_forgotten() {
    let mut lab = Lab::new();
    let first = lab.syn();
    lab.ack();
    assert_eq!(lab.memory.tables().live_flows(lab.memory.now)[&first.backend], 1);
    lab.change(first.backend, drained);
    assert_eq!(lab.fin().backend, first.backend);
    assert_eq!(lab.ack().backend, first.backend, "half-closed");
    assert!(lab.memory.tables().live_flows(lab.memory.now).is_empty());
    lab.pass_ticks(OPENING_IDLE_TICKS + 1);
    lab.memory.tables().sweep_idle(lab.memory.now, &Default::default());
    assert_eq!(lab.memory.tables().flow_entries(), 0);
}

#[test]
fn tcp_and_udp_of_one_port_are_apart() {
    let lab = Lab::new();
    let (tcp, udp) = (lab.syn(), lab.udp());
    assert_ne!(tcp.service, udp.service);
    assert_ne!(tcp.backend, udp.backend);
    assert_eq!(lab.memory.tables().flow_entries(), 2);
}

#[test]
fn explain_tells_the_way_and_leaves_no_trace() {
    let mut lab = Lab::new();
    let explained = |lab: &Lab, syn| {
        let tables = lab.memory.tables();
        let bytes = frame(&Lab::spec(SpecProtocol::Tcp, syn), Ingress::default()).unwrap();
        explain(tables.slices().unwrap(), &tables.image(), lab.memory.now, bytes, Ingress::default(), &[])
    };
    let before = explained(&lab, true);
    assert_eq!(lab.memory.tables().flow_entries(), 0, "nothing is remembered");
    let sent = lab.syn();
    lab.ack();
    let image = lab.memory.tables().image();
    assert_eq!(before.backend, image.backends[&sent.backend].name, "explain and the packet agree");
    assert!(before.steps.iter().any(|step| step.contains("no entry, a new flow")), "{before:?}");
    assert!(before.steps.iter().any(|step| step.starts_with("ring: slot ")), "{before:?}");
    assert!(before.rewritten.is_some());

    let after = explained(&lab, false);
    assert!(after.steps.iter().any(|step| step.contains("established")), "{after:?}");
    assert!(!after.steps.iter().any(|step| step.starts_with("ring: slot ")), "{after:?}");
    lab.change(sent.backend, disabled);
    let gone = explained(&lab, false);
    assert!(gone.steps.iter().any(|step| step.contains("gone, disabled")), "{gone:?}");
    assert_ne!(gone.backend, after.backend);
}

#[test]
fn an_answer_for_no_reason_is_a_fault_and_not_the_packet_itself() {
    let lab = Lab::new();
    let mut bytes = frame(&Lab::spec(SpecProtocol::Tcp, false), Ingress::default()).unwrap();
    let before = bytes.clone();
    let tables = SliceTables::new(lab.memory.tables().slices().unwrap(), lab.memory.now);
    let exit = Exit::from_word(0).with_stage(Stage::Answer);
    let outcome = run_stage(&mut SlicePacket::new(&mut bytes, 0, 1), &tables, exit).unwrap();
    assert_eq!((outcome.verdict, outcome.action), (Verdict::DropInconsistent, Action::Drop));
    assert_eq!(bytes, before);
}

/// Who reads the JSON is told which service's backends are missing.
#[test]
fn explain_names_the_service_that_has_no_backend() {
    let mut lab = Lab::new();
    lab.wanted.services[0].backends.iter_mut().for_each(drained);
    lab.apply();
    let bytes = frame(&Lab::spec(SpecProtocol::Tcp, true), Ingress::default()).unwrap();
    let tables = lab.memory.tables();
    let told =
        explain(tables.slices().unwrap(), &tables.image(), lab.memory.now, bytes, Ingress::default(), &[]);
    assert_eq!((told.verdict.as_str(), told.service.as_str()), ("drop.no_backend", "tcp"));
    assert_eq!(told.backend, "");
}
