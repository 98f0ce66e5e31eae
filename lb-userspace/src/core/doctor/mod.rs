//! A configuration and what was found out about this host, its interfaces and its backends → findings, each with the reason
//! why it matters and the commands that cure it.

pub mod frames;
mod host;
mod interfaces;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::stats::Snapshot;

#[cfg(test)]
mod tests;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Worth knowing; may be as it is wanted.
    Note,
    /// Costs customers something, now or when something else fails.
    Warning,
    /// Sluice does not work so.
    Error,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The name of the check.
    pub check: String,
    /// How much it matters.
    pub weight: Weight,
    /// What it is about: an interface, a backend, a VIP, a setting.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// Where the fix is to be made: `here`, or a backend's name and address.
    pub on: String,
    /// The commands that cure it, or the edit, one a line.
    pub fix: Vec<String>,
}

/// What was found out. What could not be is absent, and nothing follows from it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// This host.
    pub host: HostFacts,
    /// The interfaces of the configuration, in its order.
    pub interfaces: Vec<InterfaceFacts>,
    /// By backend address and mode of its service: the way there.
    pub ways: BTreeMap<(IpAddr, bool), Result<WayFacts, Unreached>>,
    /// What became of each opening packet for a VIP that was sent straight to a backend of an `l2-dsr` service.
    pub vip_probes: Vec<VipProbe>,
    /// Who but this host answers ARP requests for VIPs: VIP and MAC address.
    pub arp_answers: Vec<(IpAddr, [u8; 6])>,
    /// VIPs that are addresses of this host.
    pub local_vips: Vec<IpAddr>,
    /// For other VIPs: whether the gateway brings packets for it here. Absent where there is no gateway to be asked.
    pub routed_here: BTreeMap<IpAddr, bool>,
    /// Services that packets have been counted for, by the agent or by what is pinned.
    pub counted: BTreeSet<String>,
    /// What the agent says, if one runs.
    pub agent: Option<Snapshot>,
}

/// What was found out about this host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Version of the kernel: major and minor.
    pub kernel: Option<(u32, u32)>,
    /// Whether the kernel tells its types (BTF).
    pub btf: Option<bool>,
    /// Whether the pin directory is on a BPF filesystem, or will be once the agent has mounted one.
    pub bpffs: Option<bool>,
    /// The pin directory.
    pub pin_dir: String,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// Effective capabilities of this command, as the kernel's bits.
    pub capabilities: Option<u64>,
    /// Most files that a process may open.
    pub open_files: Option<u64>,
    /// Most entries of the kernel's IPv4 and IPv6 neighbour tables.
    pub neighbours_max: [Option<u64>; 2],
    /// Whether the clock is kept right by a time service.
    pub clock_synchronised: Option<bool>,
    /// CPUs that may run.
    pub cpus: usize,
}

/// What was found out about an interface.
#[derive(Clone, Debug, Default)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// What it is; absent if there is none of this name.
    pub link: Option<LinkFacts>,
    /// Whether a link is pinned for it, or the agent says that the program is on it.
    pub pinned: bool,
    /// Whether the program on it is Sluice's.
    pub ours: bool,
    /// The BPF link that holds the program on it, if one does.
    pub held_by: Option<u32>,
    /// Reverse-path filter in force: 0 off, 1 strict, 2 loose.
    pub rp_filter: Option<u32>,
    /// Whether it forwards IPv4 and IPv6.
    pub forwarding: [Option<bool>; 2],
    /// What its driver says.
    pub nic: NicFacts,
}

/// An interface as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Largest IP packet.
    pub mtu: u32,
    /// Up, with a carrier.
    pub running: bool,
    /// Mode of the XDP program on it: `driver`, `generic`, or none.
    pub xdp: Option<&'static str>,
    /// That program's number.
    pub program: Option<u32>,
    /// The kind of a virtual device: `vlan`, `bond`, `veth`, …
    pub kind: String,
    /// The device it is part of, and that one's kind.
    pub master: Option<(String, String)>,
    /// The device beneath a VLAN device.
    pub lower: Option<String>,
    /// VLAN devices over it.
    pub vlans: Vec<String>,
}

/// A network card's settings, by `ethtool`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicFacts {
    /// The driver's name.
    pub driver: String,
    /// Receive queues in use, and most there can be.
    pub queues: Option<(u32, u32)>,
    /// Queues that receive-side scaling spreads over.
    pub rss_queues: Option<u32>,
    /// Whether RSS looks at the ports of UDP.
    pub udp_ports_hashed: Option<bool>,
    /// Large receive offload.
    pub lro: Option<bool>,
    /// Generic receive offload.
    pub gro: Option<bool>,
    /// Whether the card takes VLAN tags out of frames.
    pub rx_vlan: Option<bool>,
}

/// The way to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayFacts {
    /// The interface it leads out of.
    pub interface: String,
    /// Largest IP packet on it, as far as this host knows.
    pub mtu: u32,
    /// MAC address of the backend or of the gateway to it.
    pub mac: [u8; 6],
}

/// Why no way to a backend is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// In words.
    pub text: String,
    /// The kind.
    pub kind: UnreachedKind,
}

/// The kinds of [`Unreached`], as far as their cures differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnreachedKind {
    /// No route.
    NoRoute,
    /// Behind a gateway, which `l2-dsr` cannot cross.
    BehindGateway,
    /// The backend or the gateway does not answer on this interface.
    Silent {
        /// The interface.
        interface: String,
    },
    /// The interface has no link.
    LinkDown {
        /// The interface.
        interface: String,
    },
    /// The kernel's table is full.
    TableFull,
    /// The route or the address is of a kind that cannot be used.
    Unusable,
}

/// An opening packet for a VIP, sent straight to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipProbe {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// The backend's own address.
    pub address: IpAddr,
    /// The VIP.
    pub vip: SocketAddr,
    /// What came back.
    pub answer: VipAnswer,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipAnswer {
    /// The VIP is there, and a server listens on it.
    Accepted,
    /// The VIP is there, but nothing listens on its port.
    Refused,
    /// Nothing.
    Nothing,
}

/// The names of all checks, in the order of their findings.
pub const CHECKS: [&str; 27] = [
    "agent",
    "kernel",
    "btf",
    "capabilities",
    "bpffs",
    "jit",
    "clock",
    "limits",
    "interface",
    "foreign_xdp",
    "not_attached",
    "driver_mode",
    "queues",
    "rss",
    "lro",
    "gro",
    "vlan",
    "bond",
    "rp_filter",
    "neighbour",
    "forwarding",
    "mtu",
    "health",
    "health_path",
    "vip_on_backend",
    "vip_arp",
    "vip_route",
];

/// All findings.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = host::judge(config, facts);
    findings
        .extend(facts.interfaces.iter().flat_map(|interface| interfaces::judge(config, interface, facts)));
    findings.extend(network::judge(config, facts));
    findings
}

/// Where a fix is to be made: on this host.
const HERE: &str = "here";

/// A finding that is cured here.
fn finding(
    check: &str,
    weight: Weight,
    subject: impl ToString,
    (what, why): (impl ToString, impl ToString),
    fix: impl IntoIterator<Item = String>,
) -> Finding {
    Finding {
        check: check.to_owned(),
        weight,
        subject: subject.to_string(),
        what: what.to_string(),
        why: why.to_string(),
        on: HERE.to_owned(),
        fix: fix.into_iter().collect(),
    }
}

/// The command that sets a sysctl of an interface, whose name may have dots.
fn set_sysctl(family: &str, interface: &str, name: &str, value: u32) -> String {
    format!("sysctl -w net/{family}/conf/{interface}/{name}={value}")
}
