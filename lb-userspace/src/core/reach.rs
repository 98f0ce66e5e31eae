//! A forwarding mode → how far away its backends may be.

use super::config::Forwarding;

/// How far away the backend of a service may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// On the same link: only its own MAC address will do, as its IP address is nowhere in the packet.
    OnLink,
    /// Anywhere that a route leads to: the packet bears the backend's IP address, so a gateway can pass it on.
    Routed,
}

/// How far away the backends of a service of this forwarding mode may be.
pub fn reach(forwarding: Forwarding) -> Reach {
    match forwarding {
        Forwarding::L2Dsr => Reach::OnLink,
    }
}
