//! A forwarding mode → how far away its backends may be.

use std::net::IpAddr;

use super::config::{Forwarding, Service};

/// How far away the backend of a service may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// On the same link: only its own MAC address will do, as its IP address is nowhere in the packet.
    OnLink,
    /// Anywhere that a route leads to: the packet bears the backend's IP address, so a gateway can pass it on.
    Routed,
}

/// What a next hop leads to: an address, and how far away it may be. Services of different forwarding modes may share a
/// server: behind a gateway, it has a next hop for one and none for the other.
pub type Target = (IpAddr, Reach);

/// The targets of a service's backends, in their order.
pub fn targets(service: &Service) -> impl Iterator<Item = Target> {
    service.backends.iter().map(|backend| (backend.address, reach(service.forwarding)))
}

/// How far away the backends of a service of this forwarding mode may be.
pub fn reach(forwarding: Forwarding) -> Reach {
    match forwarding {
        Forwarding::L2Dsr => Reach::OnLink,
        Forwarding::Ipip | Forwarding::Gue | Forwarding::Nat => Reach::Routed,
    }
}
