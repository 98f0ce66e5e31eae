//! A translated service and its customers: what a customer sends → what must leave, and what the answer must become.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::abi::{Forwarding, NextHop};
use lb_common::datapath::Outcome;
use lb_common::net::Protocol;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{Globals, VipKey, Wanted, WantedBackend, WantedService};
use lb_userspace::io::datapath::Datapath;

use super::packets::{Body, Packet};
use super::parity::Twins;

pub const EDGE: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const OTHER_ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 10];
/// [`NextHop::vlan`] of frames without a tag.
pub const UNTAGGED: u16 = 0x1000;
/// The ports that translated packets are sent from in these tests: those that the host does not use.
pub const HOST_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn address(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => match network {
                0 => Ipv4Addr::new(198, 51, 100, host).into(),
                1 => Ipv4Addr::new(203, 0, 113, host).into(),
                2 => Ipv4Addr::new(192, 0, 2, host).into(),
                _ => Ipv4Addr::new(10, 0, 1, host).into(),
            },
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, network.into(), 0, 0, 0, 0x1234, host.into()).into(),
        }
    }

    pub fn client(self, host: u8) -> IpAddr {
        self.address(0, host)
    }

    pub fn vip(self) -> IpAddr {
        self.virtual_address(10)
    }

    pub fn virtual_address(self, host: u8) -> IpAddr {
        self.address(1, host)
    }

    pub fn snat(self, host: u8) -> IpAddr {
        self.address(2, host)
    }

    pub fn server(self, host: u8) -> IpAddr {
        self.address(3, host)
    }

    /// The address of a router somewhere.
    pub fn router(self) -> IpAddr {
        self.address(3, 254)
    }
}

/// The MAC address of a server.
pub fn server_mac(host: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, host]
}

/// A translated service.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub family: Family,
    pub tcp: bool,
    pub vip_port: u16,
    pub backend_port: u16,
    /// [`NextHop::vlan`] of all backends.
    pub vlan: u16,
    pub mtu: u16,
    pub backends: u8,
    /// How many addresses packets are sent from; without any, the next hop's.
    pub sources: u8,
    pub reply_oversized: bool,
}

impl Setup {
    pub fn new(family: Family, tcp: bool) -> Self {
        let (vip_port, backend_port, backends, sources) = (80, 8_080, 2, 1);
        Self {
            family,
            tcp,
            vip_port,
            backend_port,
            vlan: 0,
            mtu: 0,
            backends,
            sources,
            reply_oversized: false,
        }
    }

    /// Both families, TCP and UDP.
    pub fn all() -> impl Iterator<Item = Self> {
        FAMILIES.into_iter().flat_map(|family| [true, false].map(|tcp| Self::new(family, tcp)))
    }

    fn backend(&self, host: u8) -> WantedBackend {
        let mut hop = NextHop::new(server_mac(host), EDGE, 0);
        (hop.vlan, hop.mtu) = (self.vlan, self.mtu);
        if self.sources == 0 {
            hop.source = self.family.snat(100).into();
        }
        WantedBackend {
            name: format!("web{host}"),
            address: self.family.server(host).into(),
            enabled: true,
            healthy: true,
            probed_healthy: true,
            ring_weight: 100,
            port: self.backend_port,
            hop: Some(hop),
        }
    }

    pub fn snat(&self) -> Vec<IpAddr> {
        let configured: Vec<IpAddr> = (1..=self.sources).map(|host| self.family.snat(host)).collect();
        if configured.is_empty() { vec![self.family.snat(100)] } else { configured }
    }

    pub fn wanted(&self) -> Wanted {
        let protocol = if self.tcp { Protocol::TCP } else { Protocol::UDP };
        let mut globals = Globals { reply_oversized: self.reply_oversized, ..Globals::default() };
        let list = &mut globals.snat[usize::from(self.family == Family::V6)];
        list.extend((1..=self.sources).map(|host| lb_common::net::Address::from(self.family.snat(host))));
        Wanted {
            ring_seed: super::SEED,
            globals,
            snat: self.snat().into_iter().map(Into::into).collect::<BTreeSet<_>>(),
            services: vec![WantedService {
                name: "web".into(),
                forwarding: Forwarding::Nat,
                client_affinity: false,
                vips: vec![VipKey { address: self.family.vip().into(), port: self.vip_port, protocol }],
                backends: (1..=self.backends).map(|host| self.backend(host)).collect(),
            }],
            ..Wanted::default()
        }
    }

    /// What a customer sends from this port.
    pub fn customer(&self, port: u16, flags: u8, payload: &[u8]) -> Packet {
        let to = if self.vip_port == 0 { 4_433 } else { self.vip_port };
        let (ports, payload) = ([port, to], payload.to_vec());
        let body = if self.tcp {
            Body::Tcp { ports, flags, payload }
        } else {
            Body::Udp { ports, payload, checksum: true }
        };
        Packet::new([EDGE, ROUTER], self.family.client(7), self.family.vip(), body)
    }
}

/// The tags of a frame that must be on this VLAN.
pub fn retagged(tags: &[u8], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    match (vlan, tags) {
        (0, _) => tags.to_vec(),
        (UNTAGGED, _) => vec![],
        (_, []) => vec![0x81, 0, high, low],
        (_, [a, b, c, _, rest @ ..]) => [&[*a, *b, c & 0xf0 | high, low], rest].concat(),
        _ => panic!("half a tag: {tags:?}"),
    }
}

/// A translated service in kernel and memory.
pub struct Nat {
    pub twins: Twins,
    pub setup: Setup,
}

impl Nat {
    pub fn new(setup: Setup) -> Self {
        Self::with(Twins::new(&setup.wanted()), setup)
    }

    /// One that is yet to become another by [`Nat::change`].
    pub fn any() -> Self {
        Self::new(Setup::new(Family::V4, true))
    }

    /// Makes it this service, without a trace of what was before.
    pub fn change(&mut self, setup: Setup) {
        self.twins.apply(&Wanted { services: vec![], ..setup.wanted() });
        self.twins.apply(&setup.wanted());
        self.setup = setup;
        assert_eq!(self.translations(), 0);
    }

    pub fn with(twins: Twins, setup: Setup) -> Self {
        twins.set_own_mac(EDGE);
        Self { twins, setup }
    }

    /// Sends a customer's packet, insists on what leaves, and hands that over.
    pub fn forward(&mut self, packet: &Packet) -> (Packet, Outcome) {
        let (outcome, frame) = self.twins.agree_on(&packet.frame());
        assert_eq!(outcome.verdict, Verdict::Forward, "{packet:?}");
        let host = frame[5];
        let (source, _, [port, _]) = addresses(&frame).unwrap_or_else(|| panic!("{frame:02x?}"));
        assert!(self.setup.snat().contains(&source), "{source}");
        assert!(port >= 1_024 && !HOST_PORTS.contains(&port), "port {port}");
        let [_, to] = packet.body.ports();
        let to_port = if self.setup.backend_port == 0 { to } else { self.setup.backend_port };
        let tags = retagged(&packet.tags, self.setup.vlan);
        let to = self.setup.family.server(host);
        let left = packet.passed_on([server_mac(host), EDGE], &tags, source, to, [port, to_port]);
        assert_eq!(frame, left.frame(), "of {packet:?} must become {left:?}");
        (left, outcome)
    }

    /// Sends an answer, and insists that it becomes this.
    pub fn back(&mut self, answer: &Packet, becomes: &Packet) {
        let (outcome, frame) = self.twins.agree_on(&answer.frame());
        assert_eq!(outcome.verdict, Verdict::ForwardReturn, "{answer:?}");
        assert_eq!(frame, becomes.frame(), "of {answer:?} must become {becomes:?}");
    }

    /// Sends a packet that must leave, or be left alone, as it came.
    pub fn unchanged(&mut self, packet: &Packet, verdict: Verdict) {
        let (outcome, frame) = self.twins.agree_on(&packet.frame());
        assert_eq!(outcome.verdict, verdict, "{packet:?}");
        assert_eq!(frame, packet.frame(), "{packet:?}");
    }

    /// How many translations there are; insists that kernel and memory have the same.
    pub fn translations(&self) -> usize {
        let [kernel, memory] = self.twins.changed();
        assert_eq!(kernel, memory, "kernel (left) and memory (right)");
        kernel.translations.len()
    }

    /// The translations' backends, of customers' packets.
    pub fn held_by(&self) -> Vec<u16> {
        let all = self.twins.kernel.tables().translations().map(|(_, translation, _)| translation);
        all.filter(|translation| translation.reply == 0).map(|translation| translation.backend).collect()
    }
}

/// What a server answers to a packet that was sent to it.
pub fn answer(left: &Packet, flags: u8, payload: &[u8]) -> Packet {
    let [from, to] = left.body.ports();
    let [server, edge] = left.macs;
    let (ports, payload) = ([to, from], payload.to_vec());
    let body = match &left.body {
        Body::Tcp { .. } => Body::Tcp { ports, flags, payload },
        Body::Udp { checksum, .. } => Body::Udp { ports, payload, checksum: *checksum },
        other => panic!("no answer to {other:?}"),
    };
    Packet { tags: left.tags.clone(), ..Packet::new([edge, server], left.destination, left.source, body) }
}

/// What a customer gets for the answer to what it sent: with its addresses, from where it sent it to, back where it came
/// from.
pub fn answered(customer: &Packet, answer: &Packet) -> Packet {
    let [edge, router] = customer.macs;
    let [from, to] = customer.body.ports();
    answer.passed_on([router, edge], &customer.tags, customer.destination, customer.source, [to, from])
}

/// Addresses and ports of a frame.
pub fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr, [u16; 2])> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        NetSlice::Arp(_) => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => [tcp.source_port(), tcp.destination_port()],
        Some(TransportSlice::Udp(udp)) => [udp.source_port(), udp.destination_port()],
        _ => [0, 0],
    };
    Some((source, destination, ports))
}
