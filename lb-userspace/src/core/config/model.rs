//! The validated configuration: what the rest of the agent works with. Every value in it is known to be
//! within its limits, every name unique, every combination possible.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
    /// Outer sources of tunnels and SNAT addresses of IPv4, in the order of the file; none = the interface's own.
    pub source_v4: Vec<Source>,
    /// The same of IPv6.
    pub source_v6: Vec<Source>,
    /// Connections that `nat` holds at once.
    pub nat_table_size: u32,
    /// What becomes of an IPv4 packet that no longer fits once it is encapsulated, and may be fragmented.
    pub oversized: Oversized,
    /// One in so many TCP openings is timed: a power of two up to [`lb_common::datapath::TimedOpenings::MOST`]; 0 = none.
    pub time_openings: u32,
}

/// An address, or a prefix whose rest is filled in per flow. Unicast, and nothing of it is a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The address, or the prefix followed by zeros.
    pub address: IpAddr,
    /// Length of the prefix in bits; 32 or 128 = one address.
    pub prefix: u8,
}

impl Source {
    /// Whether this is one address. Only such a one can be a SNAT address.
    pub fn is_single(self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `address` may come of this source.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && prefix_of(address, self.prefix) == self.address
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

/// The first `prefix` bits of `address`, the others zero.
pub(super) fn prefix_of(address: IpAddr, prefix: u8) -> IpAddr {
    let others = |bits: u32| bits.saturating_sub(prefix.into());
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(others(u32::BITS)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(others(u128::BITS)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// `agent.oversized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversized {
    /// It is dropped.
    Drop,
    /// It is dropped, and the client is told with ICMP "fragmentation needed", as if it had set DF.
    Reply,
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
    /// What stays with one backend.
    pub affinity: Affinity,
    /// What happens when too few backends are healthy.
    pub all_down: AllDown,
    /// Fewer healthy backends than this counts as all down.
    pub min_healthy: u32,
    /// The health check.
    pub health: Health,
    /// In the order of the file; may be empty.
    pub backends: Vec<Backend>,
}

impl Service {
    /// The port that the probes of one of its backends connect to; `None` if there are no probes.
    pub fn probe_port(&self, backend: &Backend) -> Option<u16> {
        // A configuration in which the VIPs would have to share a port, and do not, is refused.
        let of_vips = self.vips.first().map(|vip| vip.port);
        let port = self.health.port.or(backend.port).or(of_vips);
        port.filter(|_| self.health.probe != Probe::None)
    }

    /// The addresses that the probes of a backend go to besides its own: none, unless they go through the forwarding path.
    /// A connection to a translated backend is the same with and without it.
    pub fn probed_vips(&self, backend: &Backend) -> Vec<IpAddr> {
        let through = self.health.via == Via::Vip && self.forwarding != Forwarding::Nat;
        let same_family = |address: &IpAddr| address.is_ipv4() == backend.address.is_ipv4();
        let vips = self.vips.iter().map(|vip| vip.address).filter(|address| through && same_family(address));
        let mut vips: Vec<IpAddr> = vips.collect();
        vips.sort_unstable();
        vips.dedup();
        vips
    }
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
    /// Encapsulated in IP; replies go straight to the client. Inner and outer family are independent.
    Ipip,
    /// Encapsulated in IP, UDP and GUE; replies go straight to the client. Families as with [`Forwarding::Ipip`].
    Gue,
    /// Destination and source translated; replies come back through Sluice. VIPs and backends are of one family.
    Nat,
}

/// What of a client stays with one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// A flow: both addresses, both ports, the protocol.
    Connection,
    /// All flows of a source address to the service.
    Client,
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
    /// Port that the probes of every backend connect to; `None` = [`Service::probe_port`] tells it.
    pub port: Option<u16>,
    /// Time from one probe's start to the next one's.
    pub interval: Duration,
    /// Time a probe may take; at most `interval`.
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy backend healthy; at least 1.
    pub rise: u32,
    /// Failures in a row that make a healthy backend unhealthy; at least 1.
    pub fall: u32,
    /// Which way probes go.
    pub via: Via,
    /// Time over which a backend that recovered gets its weight back; 0 = at once.
    pub slow_start: Duration,
    /// How long a backend is at least unhealthy that falls soon after it recovered; twice as long each further time.
    /// 0 = no longer than `rise` says.
    pub hold_down: Duration,
    /// The longest that this becomes. A backend that stays healthy as long is no longer held against.
    pub hold_down_max: Duration,
    /// What is made of what customers' packets show.
    pub passive: Passive,
}

/// `service.health.passive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passive {
    /// Nothing.
    Off,
    /// It is told.
    Event,
    /// It is told, and counts as failed checks.
    Fail,
}

/// `service.health.via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// To the backend's own address.
    Backend,
    /// To the service's VIPs of the backend's family, each of them, forwarded as customers' packets are.
    Vip,
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
        /// What the beginning of the answer's body must contain.
        body: Option<String>,
        /// HTTPS; `None` = HTTP.
        tls: Option<Tls>,
    },
}

/// Accepted statuses as the configuration writes them, such as `200,300-399`.
pub fn statuses(expect: &[RangeInclusive<u16>]) -> String {
    let written = expect.iter().map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    written.collect::<Vec<_>>().join(",")
}

/// What makes an HTTP check an HTTPS one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// Whatever certificate is shown.
    Unverified,
    /// The certificate must be for the host and come from an authority of the system's store.
    System,
    /// The same, from an authority of this PEM file.
    Authorities(String),
}

/// One `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within its service; with the address, the backend's identity across reloads.
    pub name: String,
    /// The server's own address; unique within its service.
    pub address: IpAddr,
    /// Port that `nat` translates the VIP's to; `None` = the VIP's is kept, as in the other modes.
    pub port: Option<u16>,
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
