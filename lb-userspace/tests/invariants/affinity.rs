//! Flows of a few clients while backends change: an established flow leaves only a backend that is disabled, a client's new
//! flows go where its flows are, and nothing goes to a backend that is disabled or of another service.

use std::collections::BTreeMap;

use lb_common::abi::Forwarding;
use lb_common::net::Protocol;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{Globals, VipKey, WantedBackend};

use super::bytes::Bytes;
use super::frames::{CLIENT_MAC, Spec, tcp, udp};
use super::wire::{TCP, UDP};
use super::world::{INTERFACES, World, client, service, vip};

const SERVICES: usize = 3;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What is known of a flow.
struct Flow {
    backend: u16,
    /// Only its first packet was seen.
    opening: bool,
}

/// The flows, and where each client's are, as they should be.
#[derive(Default)]
struct Model {
    flows: BTreeMap<(usize, u8, u16), Flow>,
    clients: BTreeMap<(usize, u8), u16>,
}

pub fn check(input: &[u8]) {
    kept(input);
}

/// The same; yields how many packets found their flow's backend, and how many new flows their client's.
pub fn kept(input: &[u8]) -> (usize, usize) {
    let mut bytes = Bytes::new(input);
    let mut world = world();
    let mut model = Model::default();
    let (mut by_flow, mut by_client) = (0, 0);
    while !bytes.is_empty() {
        if bytes.one_in(6) {
            change(&mut world, &mut bytes);
            continue;
        }
        let (number, from, port) = (bytes.below(SERVICES), bytes.u8() % 3, 1_024 + u16::from(bytes.u8() % 4));
        let syn = number != 2 && bytes.one_in(3);
        let sent = world.send(&frame(number, from, port, syn), 1);
        let serving = |id: u16| world.image.backends.get(&id).filter(|backend| backend.enabled);
        if sent.outcome.verdict != Verdict::Forward {
            assert_eq!(sent.outcome.verdict, Verdict::DropNoBackend);
            continue;
        }
        let id = sent.outcome.backend;
        let backend = serving(id).expect("not a disabled one");
        assert_eq!(world.image.services[&backend.service].name, world.wanted.services[number].name);

        let key = (number, from, port);
        let flow = model.flows.get(&key);
        let stays = flow.filter(|flow| {
            !syn && serving(flow.backend).is_some_and(|backend| number != 2 || backend.healthy)
        });
        if let Some(flow) = stays {
            assert_eq!((id, sent.outcome.new_flow()), (flow.backend, false), "a flow keeps its backend");
            by_flow += 1;
        }
        let at = (number, from);
        if number != 0 && sent.outcome.new_flow() {
            let home = model.clients.get(&at).copied();
            if let Some(home) = home.filter(|id| serving(*id).is_some_and(|b| b.healthy && b.takes_new)) {
                assert_eq!(id, home, "a client keeps its backend");
                by_client += 1;
            }
        }
        let settles = stays.is_some_and(|flow| flow.opening);
        if sent.outcome.new_flow() || settles {
            model.clients.insert(at, id);
        }
        if sent.outcome.new_flow() || !syn {
            model.flows.insert(key, Flow { backend: id, opening: sent.outcome.new_flow() });
        }
    }
    (by_flow, by_client)
}

/// TCP by connection, TCP by client, UDP by client.
fn world() -> World {
    let services = (0..SERVICES).map(|number| {
        let protocol = if number == 2 { Protocol::UDP } else { Protocol::TCP };
        let key = VipKey { address: vip(true, number).into(), port: 80, protocol };
        let mut service = service(number, Forwarding::L2Dsr, key, true);
        service.client_affinity = number != 0;
        service
    });
    World::of(services.collect(), 0, Globals::default())
}

fn change(world: &mut World, bytes: &mut Bytes<'_>) {
    let service = &mut world.wanted.services[bytes.below(SERVICES)];
    let index = bytes.below(service.backends.len());
    let backend: &mut WantedBackend = &mut service.backends[index];
    (backend.enabled, backend.healthy, backend.ring_weight) = bytes.pick(&[
        (true, true, 100),
        (true, true, 1),
        (true, true, 0),
        (true, false, 0),
        (false, true, 0),
    ]);
    world.apply();
}

fn frame(number: usize, from: u8, port: u16, syn: bool) -> Vec<u8> {
    let ports = [port, 80];
    let is_udp = number == 2;
    let spec = Spec {
        macs: [INTERFACES[0].1, CLIENT_MAC],
        tags: vec![],
        source: client(true, from),
        destination: vip(true, number),
        tos: 0,
        ttl: 64,
        fragment: 0,
        options: 0,
        extensions: vec![],
        protocol: if is_udp { UDP } else { TCP },
        payload: if is_udp { udp(ports, b"") } else { tcp(ports, if syn { SYN } else { ACK }, b"") },
        checksum: true,
    };
    spec.frame()
}
