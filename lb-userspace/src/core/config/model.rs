//! The validated configuration: what the rest of the agent works with. Every value in it is known to be
//! within its limits, every name unique, every combination possible.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The `[agent]` section.
    pub agent: Agent,
    /// The `[[service]]` sections, in the order of the file.
    pub services: Vec<Service>,
}

/// The `[agent]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Network interfaces the XDP program is attached to; at least one, no duplicates.
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Where Prometheus metrics and the status JSON are served over TCP.
    pub metrics: Option<SocketAddr>,
    /// Flows the flow table holds; 8 bytes each.
    pub flow_table_size: u32,
    /// Seed of every ring: the same on all nodes of a site.
    pub ring_seed: u64,
}

/// `agent.xdp_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Driver mode, else generic with a warning.
    Auto,
    /// Driver mode or an error.
    Driver,
    /// Generic mode.
    Generic,
}

/// One `[[service]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique among services.
    pub name: String,
    /// At least one; unique over all services of the same protocol.
    pub vips: Vec<Vip>,
    /// Transport protocol of all its VIPs.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// What happens when too few backends are healthy.
    pub all_down: AllDown,
    /// Fewer healthy backends than this counts as all down.
    pub min_healthy: u32,
    /// The health check.
    pub health: Health,
    /// In the order of the file; may be empty.
    pub backends: Vec<Backend>,
}

/// A virtual address of a service. Port 0 means every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The virtual IP address.
    pub address: IpAddr,
    /// The transport port in host byte order; 0 stands for every port.
    pub port: u16,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Forwarding mode of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Destination MAC rewritten; replies go straight to the client (direct server return).
    L2Dsr,
}

/// What a service does when fewer than `min_healthy` (or no) backends are healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// Use all enabled backends.
    FailOpen,
    /// Drop what would open a flow.
    Drop,
}

/// A service's health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked of a backend.
    pub probe: Probe,
    /// Port the probe connects to; 0 only with [`Probe::None`].
    pub port: u16,
    /// Time from one probe's start to the next one's.
    pub interval: Duration,
    /// Time a probe may take; at most `interval`.
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy backend healthy; at least 1.
    pub rise: u32,
    /// Failures in a row that make a healthy backend unhealthy; at least 1.
    pub fall: u32,
}

/// The kind of a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No checks: every enabled backend serves.
    None,
    /// A TCP connection must be accepted.
    Tcp,
    /// An HTTP/1.1 GET must be answered with an expected status.
    Http {
        /// Path and query of the request, beginning with `/`.
        path: String,
        /// The `Host` header; the backend's address when absent.
        host: Option<String>,
        /// Accepted status codes.
        expect: Vec<RangeInclusive<u16>>,
    },
}

/// One `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within its service; with the address, the backend's identity across reloads.
    pub name: String,
    /// The server's own address; unique within its service.
    pub address: IpAddr,
    /// Share of new flows relative to the others'; 0 = no new flows.
    pub weight: u16,
    /// What the operator wants of it.
    pub state: BackendState,
}

/// The administrative state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Takes new and established flows.
    Enabled,
    /// Keeps established flows, takes no new ones.
    Drain,
    /// Takes nothing.
    Disabled,
}
