//! Choices → services of every mode and family with their backends, the tables they make, and frames sent through them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{
    Forwarding, HEADROOM, NextHop, TRANSLATION_WAYS, Translation, TranslationState, TupleKey,
};
use lb_common::datapath::{Action, Outcome, Step};
use lb_common::flow::Tick;
use lb_common::net::{Address, Protocol};
use lb_common::slice::{SlicePacket, SliceTables};
use lb_common::translations::Translations;
use lb_userspace::core::image::{Capacity, Globals, Image, VipKey, Wanted, WantedBackend, WantedService};
use lb_userspace::core::plan::{self, RingCache, plan};
use lb_userspace::core::ring::Planned;
use lb_userspace::io::datapath::{Datapath, Memory};

use super::bytes::Bytes;
use super::frames::{CLIENT_MAC, Spec, icmp_error, tcp, udp};
use super::wire::{ICMP, ICMPV6, TCP, UDP};

pub const MODES: [Forwarding; 4] = [Forwarding::L2Dsr, Forwarding::Ipip, Forwarding::Gue, Forwarding::Nat];
/// The interfaces that frames come in on, and their MAC addresses.
pub const INTERFACES: [(u32, [u8; 6]); 2] = [(1, [2, 0, 0, 0, 0, 1]), (2, [2, 0, 0, 0, 0, 2])];
/// The value of [`NextHop::vlan`] for frames without a tag.
pub const UNTAGGED: u16 = 0x1000;
const SERVICES: usize = 4;
const BACKENDS: usize = 3;

thread_local! {
    /// Rings are the dear part of a world, and those of most worlds are the same.
    static RINGS: RefCell<Vec<Arc<Planned>>> = RefCell::default();
}

/// Rings that are kept: 131 KB each.
const MOST_RINGS: usize = 256;

/// The same ring, built if it was before.
fn known(ring: &Arc<Planned>) -> Arc<Planned> {
    RINGS.with_borrow_mut(|rings| {
        if let Some(known) = rings.iter().find(|known| known.recipe() == ring.recipe()) {
            return Arc::clone(known);
        }
        if rings.len() < MOST_RINGS {
            ring.keep();
            rings.push(Arc::clone(ring));
        }
        Arc::clone(ring)
    })
}

/// Services, their tables, and a clock.
pub struct World {
    pub memory: Memory,
    pub wanted: Wanted,
    pub image: Image,
}

/// What became of a frame.
#[derive(Debug)]
pub struct Sent {
    pub outcome: Outcome,
    pub frame: Vec<u8>,
    /// The next hop it was sent to, if it went to a backend.
    pub hop: Option<NextHop>,
}

pub fn address(v4: bool, net: u8, last: u8) -> IpAddr {
    if v4 {
        [10, net, 0, last].into()
    } else {
        [0x20, 1, 0xd, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into()
    }
}

pub fn vip(v4: bool, service: usize) -> IpAddr {
    address(v4, 1, service as u8)
}

pub fn client(v4: bool, number: u8) -> IpAddr {
    address(v4, 9, number)
}

/// A client, or now and then a group, to which no answer may go.
fn any_source(bytes: &mut Bytes<'_>, v4: bool) -> IpAddr {
    match (bytes.u8() % 16, v4) {
        (15, true) => [224, 0, 0, 1].into(),
        (15, false) => [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].into(),
        (number, _) => client(v4, number % 4),
    }
}

/// What translated packets are sent from, and tunnels.
pub fn own(v4: bool) -> IpAddr {
    address(v4, 3, 1)
}

/// A next hop to a backend's MAC address.
pub fn hop(v4: bool, number: u8) -> NextHop {
    let hop = NextHop::new([2, 0, 0, 0, 2, number], INTERFACES[0].1, 0);
    NextHop { source: own(v4).into(), ..hop }
}

fn any_hop(bytes: &mut Bytes<'_>, v4: bool, number: u8) -> NextHop {
    let mut hop = hop(v4, number);
    hop.interface = bytes.pick(&[0, 1, 2, 3]);
    hop.vlan = bytes.pick(&[0, 0, UNTAGGED, 7, 100]);
    hop.mtu = bytes.pick(&[0, 1_500, 9_000, 1_280, 576, 68]);
    hop.source_mask = if bytes.bool() { 0xffff_u32.to_be() } else { 0 };
    if bytes.one_in(8) {
        hop.source = Address::ZERO;
    }
    hop
}

/// A service whose backends all take flows.
pub fn service(number: usize, forwarding: Forwarding, vip: VipKey, backend_v4: bool) -> WantedService {
    let backends = (0..BACKENDS).map(|index| {
        let last = (number * BACKENDS + index) as u8;
        WantedBackend {
            name: format!("b{index}"),
            address: address(backend_v4, 2, last).into(),
            enabled: true,
            healthy: true,
            probed_healthy: true,
            ring_weight: if index == 2 { 0 } else { 100 },
            port: 0,
            hop: Some(hop(backend_v4, last)),
        }
    });
    let backends = backends.collect();
    WantedService {
        name: format!("s{number}"),
        forwarding,
        client_affinity: false,
        vips: vec![vip],
        backends,
    }
}

fn any_service(bytes: &mut Bytes<'_>, number: usize) -> WantedService {
    let forwarding = bytes.pick(&MODES);
    let v4 = bytes.bool();
    let tunnel = matches!(forwarding, Forwarding::Ipip | Forwarding::Gue);
    let backend_v4 = v4 != (tunnel && bytes.bool());
    let protocol = if bytes.bool() { Protocol::UDP } else { Protocol::TCP };
    let key = VipKey { address: vip(v4, number).into(), port: bytes.pick(&[80, 80, 0]), protocol };
    let mut service = service(number, forwarding, key, backend_v4);
    service.client_affinity = bytes.bool();
    for (index, backend) in service.backends.iter_mut().enumerate() {
        backend.enabled = !bytes.one_in(8);
        backend.healthy = !bytes.one_in(8);
        backend.port = if forwarding == Forwarding::Nat { bytes.pick(&[0, 8_080]) } else { 0 };
        let number = (number * BACKENDS + index) as u8;
        backend.hop = (!bytes.one_in(8)).then(|| any_hop(bytes, backend_v4, number));
    }
    if bytes.one_in(16) {
        service.backends.clear();
    }
    service
}

impl World {
    /// Of these services, with room for so many translations.
    pub fn of(services: Vec<WantedService>, translations: u32, globals: Globals) -> Self {
        let capacity = Capacity {
            services: SERVICES as u32,
            backends: (SERVICES * BACKENDS) as u32 + 4,
            rings: SERVICES as u32 + 4,
            vip_buckets: 16,
            flow_buckets: 64,
            translations,
        };
        let snat: BTreeSet<Address> = [true, false].map(|v4| own(v4).into()).into();
        let mut world = Self {
            memory: Memory::new(capacity, 0),
            wanted: Wanted { globals, snat, services, ..Wanted::default() },
            image: Image::default(),
        };
        world.memory.tables().set_interfaces(&INTERFACES);
        world.apply();
        world
    }

    /// Any world.
    pub fn any(bytes: &mut Bytes<'_>) -> Self {
        let room = bytes.pick(&[64, 64, 2, 0]);
        let reply_oversized = bytes.bool();
        let snat =
            if bytes.bool() { [vec![own(true).into()], vec![own(false).into()]] } else { Default::default() };
        let services = (0..SERVICES).map(|number| any_service(bytes, number)).collect();
        let world = Self::of(services, room, Globals { reply_oversized, snat, ..Globals::default() });
        if room < 64 {
            world.crowd(room as usize);
        }
        world
    }

    /// Fills the table of translations with others', but for so many places.
    fn crowd(&self, room: usize) {
        let slices = self.memory.tables().slices().expect("whole");
        let table = Translations::new(slices.translations, slices.control);
        let state = TranslationState::from_word(self.memory.now.0.into());
        let places = slices.translations.len() * TRANSLATION_WAYS - room;
        let mut number = 0;
        while table.tags().count() < places {
            number += 1;
            let key = TupleKey { ports: number, ..TupleKey::default() };
            table.insert(&key, &Translation::default(), state);
        }
    }

    /// Brings the tables to what is wanted.
    pub fn apply(&mut self) {
        let image = self.memory.tables().image();
        let plan = plan(&image, &self.wanted, &mut RingCache::default()).expect("it fits");
        for mut action in plan.actions {
            if let plan::Action::WriteRing { ring, .. } = &mut action {
                *ring = known(ring);
            }
            self.memory.apply(&action).expect("memory does not fail");
        }
        self.image = self.memory.tables().image();
    }

    /// Enables or disables a backend, changes its health, or lets time pass.
    pub fn change(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(3) {
            0 => {
                let ticks = bytes.pick(&[1, 3, 10, 40, 700]);
                self.memory.now = Tick(self.memory.now.0.wrapping_add(ticks));
                return;
            }
            1 => self.any_backend(bytes, |backend| backend.enabled = !backend.enabled),
            _ => self.any_backend(bytes, |backend| backend.healthy = !backend.healthy),
        }
        self.apply();
    }

    /// Whether a ring names a backend that is disabled.
    pub fn has_stale_ring(&self) -> bool {
        let backends = self.wanted.services.iter().flat_map(|service| &service.backends);
        backends.into_iter().any(|backend| !backend.enabled && backend.ring_weight > 0)
    }

    fn any_backend(&mut self, bytes: &mut Bytes<'_>, change: impl Fn(&mut WantedBackend)) {
        let service = bytes.below(self.wanted.services.len());
        let index = bytes.below(BACKENDS);
        self.wanted.services[service].backends.get_mut(index).into_iter().for_each(change);
    }

    /// Sends a frame through the datapath; it is counted once, under its verdict.
    pub fn send(&self, frame: &[u8], interface: u32) -> Sent {
        let mut buffer = [&[0; HEADROOM], frame].concat();
        let mut packet = SlicePacket::new(&mut buffer, HEADROOM, interface);
        let hop = Cell::new(None);
        let note = |step| {
            if let Step::NextHop { hop: next, .. } = step {
                hop.set(Some(next));
            }
        };
        let mut tables = SliceTables::new(self.memory.tables().slices().expect("whole"), self.memory.now);
        tables.observer = &note;
        let outcome = tables.process(&mut packet);
        let counted = tables.verdicts.into_inner().packets;
        assert_eq!(counted.iter().sum::<u64>(), 1, "counted once");
        assert_eq!(counted[outcome.verdict.index()], 1, "counted under its verdict");
        let action = if outcome.verdict.is_dropped() {
            Action::Drop
        } else if !outcome.verdict.is_sent() {
            Action::Pass
        } else if outcome.interface == 0 {
            Action::Transmit
        } else {
            Action::Redirect
        };
        assert_eq!(outcome.action, action);
        Sent { outcome, frame: packet.bytes().to_vec(), hop: hop.get() }
    }

    /// A customer's packet to a VIP, or nearly, of every kind.
    pub fn any_packet(&self, bytes: &mut Bytes<'_>) -> Spec {
        let service = bytes.below(SERVICES);
        let vip = self.wanted.services[service].vips[0];
        let v4 = vip.address.is_v4();
        let mut spec = Spec {
            macs: [INTERFACES[0].1, CLIENT_MAC],
            tags: [vec![], vec![], vec![100], vec![7, 100]][bytes.below(4)].clone(),
            source: any_source(bytes, v4),
            destination: vip.address.to_ip(),
            tos: bytes.u8(),
            ttl: bytes.pick(&[64, 64, 255, 1, 0, 2]),
            fragment: bytes.pick(&[0, 0, 0, 0x4000, 0x2000, 0x2008, 0x10]),
            options: bytes.pick(&[0, 0, 1, 10]),
            extensions: [vec![], vec![], vec![0], vec![60], vec![0, 43, 60], vec![60; 9]][bytes.below(6)]
                .clone(),
            protocol: vip.protocol.0,
            payload: Vec::new(),
            checksum: !bytes.one_in(8),
        };
        if !v4 {
            // The same bits say "more fragments" and the offset, elsewhere.
            spec.fragment = spec.fragment >> 13 & 1 | (spec.fragment & 0x1fff) << 3;
        }
        let length = bytes.pick(&[0, 1, 8, 33, 600, 1_460, 3_000]);
        let ports =
            [1_024 + u16::from(bytes.u8() % 8), if vip.port == 0 || bytes.one_in(8) { 443 } else { 80 }];
        let data = vec![bytes.u8(); length];
        spec.payload = match spec.protocol {
            TCP => tcp(ports, bytes.pick(&[0x02, 0x10, 0x12, 0x11, 0x04]), &data),
            _ => udp(ports, &data),
        };
        match bytes.below(8) {
            0 => {
                spec.protocol = if v4 { ICMP } else { ICMPV6 };
                let echo = [if v4 { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 2];
                spec.payload = [&echo[..], &data].concat();
            }
            1 => self.become_error(bytes, &mut spec),
            2 if spec.protocol == UDP => spec.protocol = TCP,
            _ => {}
        }
        spec
    }

    /// An ICMP error from a router about an answer that the customer was sent.
    fn become_error(&self, bytes: &mut Bytes<'_>, spec: &mut Spec) {
        let v4 = spec.source.is_ipv4();
        let mut answer = Spec { fragment: 0, options: 0, extensions: vec![], ..spec.clone() };
        std::mem::swap(&mut answer.source, &mut answer.destination);
        if answer.payload.len() >= 4 {
            answer.payload[..4].rotate_left(2);
        }
        spec.protocol = if v4 { ICMP } else { ICMPV6 };
        spec.payload = icmp_error(bytes, v4, 1_400, &answer.packet());
    }
}
