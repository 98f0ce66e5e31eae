//! The plan of the network: turns a topology and the MTUs that are wished for into what each host is attached to, the
//! MTU of its links and its routes.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use crate::segment::{Attachment, Segment};

/// The address that customers know.
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The IPv6 address that customers know.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x10);
/// Addresses of Sluice itself, for `source_v4`: every backend and router sends them to the edge host.
pub const SOURCES: &str = "192.0.2.0/24";
/// The same for `source_v6`.
pub const SOURCES6: &str = "2001:db8:192::/64";

pub(crate) const EDGE: u8 = 2;
pub(crate) const CDN: u8 = 50;
pub(crate) const CUSTOMER: u8 = 100;

/// How customers, edge host and web servers are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// All of them on the public segment.
    Bridge,
    /// The edge host has the customers at `eth0` and the web servers at `eth1`; a router, which the web servers'
    /// answers take, connects the same two segments.
    TwoInterfaces,
    /// The edge host has one interface, on a segment with nothing but a router. Two more routers stand before the
    /// customers and before the web servers, so that neither is next to a narrow link.
    Routed,
}

/// What a host needs beyond its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reaches the VIPs through the edge host.
    Client,
    /// Runs Sluice.
    Edge,
    /// A web server: has the VIPs on its loopback and keeps quiet about it.
    Backend,
    /// Sits on the private segment only.
    App,
    /// Forwards between the public segment and the others.
    Router,
    /// Forwards between the customers and [`Role::Router`].
    Access,
    /// Forwards between [`Role::Router`] and the web servers.
    Rack,
}

impl Role {
    pub(crate) fn forwards(self) -> bool {
        matches!(self, Self::Router | Self::Access | Self::Rack)
    }
}

/// A destination in both families and the router to it.
pub(crate) struct Route {
    pub(crate) to: (String, String),
    pub(crate) via: Attachment,
}

/// What was wished for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) topology: Topology,
    /// Of all links but those below, and the most that web servers send.
    pub(crate) mtu: u32,
    /// Of the links from the edge host to the web servers.
    pub(crate) backend_mtu: Option<u32>,
    /// Of the link between the routers on the way to the customers.
    pub(crate) narrow_to_customers: Option<u32>,
    /// Of the link between the routers on the way to the web servers.
    pub(crate) narrow_to_backends: Option<u32>,
    /// Whether web servers have the VIPs on their loopback.
    pub(crate) vip_on_backends: bool,
}

impl Network {
    /// Refuses wishes that contradict each other.
    pub(crate) fn check(&self) -> Result<()> {
        let narrow = self.narrow_to_customers.is_some() || self.narrow_to_backends.is_some();
        ensure!(
            !narrow || self.topology == Topology::Routed,
            "only Topology::Routed has links to make narrow"
        );
        ensure!(self.backend_mtu() >= self.mtu, "backend_mtu must not be below the MTU of the other links");
        Ok(())
    }

    /// The routers of this topology by name.
    pub(crate) fn routers(&self) -> &'static [(&'static str, Role)] {
        match self.topology {
            Topology::Bridge => &[],
            Topology::TwoInterfaces => &[("router", Role::Router)],
            Topology::Routed => &[("router", Role::Router), ("access", Role::Access), ("rack", Role::Rack)],
        }
    }

    /// The interfaces of a host in their order; `number` is that of clients and servers on every segment.
    pub(crate) fn attachments(&self, role: Role, number: u8) -> Vec<Attachment> {
        use Segment::{Backends, Customers, Downlink, Private, Public, Uplink};
        let on = |segments: &[(Segment, u8)]| {
            segments.iter().map(|&(segment, number)| Attachment { segment, number }).collect()
        };
        match (role, self.topology) {
            (Role::Client, Topology::Routed) => on(&[(Customers, number)]),
            (Role::Client, _) => on(&[(Public, number)]),
            (Role::Edge, Topology::TwoInterfaces) => on(&[(Public, EDGE), (Backends, EDGE)]),
            (Role::Edge, _) => on(&[(Public, EDGE)]),
            (Role::Backend, Topology::Bridge) => on(&[(Public, number), (Private, number)]),
            (Role::Backend, _) => on(&[(Backends, number), (Private, number)]),
            (Role::App, _) => on(&[(Private, number)]),
            (Role::Router, Topology::Routed) => on(&[(Public, 1), (Uplink, 1), (Downlink, 1)]),
            (Role::Router, _) => on(&[(Public, 1), (Backends, 1)]),
            (Role::Access, _) => on(&[(Customers, 1), (Uplink, 2)]),
            (Role::Rack, _) => on(&[(Backends, 1), (Downlink, 2)]),
        }
    }

    /// The routes of a host beyond its own segments.
    pub(crate) fn routes(&self, role: Role) -> Vec<Route> {
        use Segment::{Backends, Customers, Downlink, Public, Uplink};
        let vip = || (format!("{VIP}/32"), format!("{VIP6}/128"));
        let sources = || (SOURCES.to_owned(), SOURCES6.to_owned());
        let all = || ("0.0.0.0/0".to_owned(), "::/0".to_owned());
        let route = |to, segment, number| Route { to, via: Attachment { segment, number } };
        match (role, self.topology) {
            (Role::Client, Topology::Bridge) => vec![route(vip(), Public, EDGE)],
            (Role::Client, Topology::TwoInterfaces) => {
                vec![route(vip(), Public, EDGE), route(all(), Public, 1)]
            }
            (Role::Client, Topology::Routed) => vec![route(all(), Customers, 1)],
            (Role::Edge, Topology::Bridge) | (Role::App, _) => vec![],
            (Role::Edge, _) => vec![route(all(), Public, 1)],
            (Role::Backend, Topology::Bridge) => vec![route(sources(), Public, EDGE)],
            (Role::Backend, Topology::TwoInterfaces) => {
                vec![route(all(), Backends, 1), route(sources(), Backends, EDGE)]
            }
            (Role::Backend, Topology::Routed) => vec![route(all(), Backends, 1)],
            (Role::Router, topology) => {
                let mut routes = vec![route(vip(), Public, EDGE), route(sources(), Public, EDGE)];
                if topology == Topology::Routed {
                    routes.push(route(Customers.prefixes(), Uplink, 2));
                    routes.push(route(Backends.prefixes(), Downlink, 2));
                }
                routes
            }
            (Role::Access, _) => vec![route(all(), Uplink, 1)],
            (Role::Rack, _) => vec![route(all(), Downlink, 1)],
        }
    }

    /// The MTU of a host's link, both ends of it.
    pub(crate) fn link_mtu(&self, role: Role, segment: Segment) -> u32 {
        match segment {
            Segment::Private | Segment::Customers => self.mtu,
            Segment::Uplink => self.narrow_to_customers.unwrap_or(self.mtu),
            Segment::Downlink => self.narrow_to_backends.unwrap_or(self.backend_mtu()),
            Segment::Backends => self.backend_mtu(),
            Segment::Public if role == Role::Client || self.topology == Topology::TwoInterfaces => self.mtu,
            Segment::Public => self.backend_mtu(),
        }
    }

    /// The MTU of a host's routes through a link, where it must be less than the link's. A bridge drops what is too
    /// big for a port without a word, so web servers whose links have room for tunnels must not use it themselves.
    pub(crate) fn route_mtu(&self, role: Role, segment: Segment) -> Option<u32> {
        let less = role == Role::Backend && self.link_mtu(role, segment) > self.mtu;
        less.then_some(self.mtu)
    }

    fn backend_mtu(&self) -> u32 {
        self.backend_mtu.unwrap_or(self.mtu)
    }
}
