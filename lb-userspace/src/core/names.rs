//! Values → the words that users write and read for them: the same in configuration, status, metrics and messages.

use super::config::{
    Affinity, AllDown, BackendState, Forwarding, Oversized, Passive, Probe, Protocol, Via, XdpMode,
};
use super::health::{Health, ServiceStatus};

/// `agent.xdp_mode`.
pub fn xdp_mode(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Driver => "driver",
        XdpMode::Generic => "generic",
    }
}

/// `agent.oversized`.
pub fn oversized(oversized: Oversized) -> &'static str {
    match oversized {
        Oversized::Drop => "drop",
        Oversized::Reply => "reply",
    }
}

/// `service.protocol`.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// `service.forwarding`.
pub fn forwarding(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::L2Dsr => "l2-dsr",
        Forwarding::Ipip => "ipip",
        Forwarding::Gue => "gue",
        Forwarding::Nat => "nat",
    }
}

/// `service.affinity`.
pub fn affinity(affinity: Affinity) -> &'static str {
    match affinity {
        Affinity::Connection => "connection",
        Affinity::Client => "client",
    }
}

/// `service.all_down`.
pub fn all_down(all_down: AllDown) -> &'static str {
    match all_down {
        AllDown::FailOpen => "fail-open",
        AllDown::Drop => "drop",
    }
}

/// `service.health.type`.
pub fn probe(probe: &Probe) -> &'static str {
    match probe {
        Probe::None => "none",
        Probe::Tcp => "tcp",
        Probe::Http { tls: None, .. } => "http",
        Probe::Http { tls: Some(_), .. } => "https",
    }
}

/// `service.health.via`.
pub fn via(via: Via) -> &'static str {
    match via {
        Via::Backend => "backend",
        Via::Vip => "vip",
    }
}

/// `service.health.passive`.
pub fn passive(passive: Passive) -> &'static str {
    match passive {
        Passive::Off => "off",
        Passive::Event => "event",
        Passive::Fail => "fail",
    }
}

/// `service.backend.state`.
pub fn state(state: BackendState) -> &'static str {
    match state {
        BackendState::Enabled => "enabled",
        BackendState::Drain => "drain",
        BackendState::Disabled => "disabled",
    }
}

/// A backend's health.
pub fn health(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

/// A service's status.
pub fn status(status: ServiceStatus) -> &'static str {
    match status {
        ServiceStatus::Healthy => "healthy",
        ServiceStatus::Degraded => "degraded",
        ServiceStatus::FailingOpen => "failing-open",
        ServiceStatus::Down => "down",
    }
}

/// So many of something, of which one has a name and more have it with an s.
pub fn number_of(count: impl ToString, name: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {name}{plural}")
}
