//! This host, its interfaces and its segments → the facts that `sluice doctor` judges.

mod ethtool;
mod links;
mod probes;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::resource::{Resource, getrlimit};

use super::datapath::{Access, Datapath, Kernel, PinDir, link_of};
use super::host;
use super::neighbours::{HopError, NextHop, Resolver};
use crate::core::config::{BackendState, Config};
use crate::core::doctor::{Facts, HostFacts, InterfaceFacts, Unreached, UnreachedKind, WayFacts};
use crate::core::reach::{Reach, targets};
use crate::core::stats::Snapshot;

/// How long backends may take to tell their MAC addresses.
const PATIENCE: Duration = Duration::from_secs(1);
/// Addresses that are resolved at the same time.
const CONCURRENT: usize = 64;

/// The ways to the backends, by address and whether they must be on the link.
type Ways = BTreeMap<(IpAddr, bool), Result<NextHop, HopError>>;

/// Finds out everything. With `probe`, packets are sent to VIPs and backends.
pub async fn facts(
    config: &Config,
    pins: &PinDir,
    agent: Option<Snapshot>,
    probe: bool,
) -> io::Result<Facts> {
    let links = links::all().await?;
    let resolver = Resolver::new().await?;
    let ways = ways(config, &resolver).await;
    // Its pins may be elsewhere.
    let is_agents = |name: &str| {
        let agent = agent.iter().flat_map(|snapshot| &snapshot.agent.interfaces);
        agent.into_iter().any(|interface| interface.name == name)
    };
    let is_linked = |name: &str| pins.is_linked(name, if_nametoindex(name).unwrap_or(0));
    let interface = |name: &String| InterfaceFacts {
        name: name.clone(),
        link: links.get(name).cloned(),
        pinned: pins.link(name).exists() || is_agents(name),
        ours: is_linked(name) || is_agents(name),
        held_by: links.get(name).and_then(|link| link_of(link.program?)),
        rp_filter: rp_filter(name),
        forwarding: ["ipv4", "ipv6"].map(|family| {
            setting::<u32>(&format!("net/{family}/conf/{name}/forwarding")).map(|value| value != 0)
        }),
        nic: ethtool::settings(name),
    };
    let interfaces: Vec<InterfaceFacts> = config.agent.interfaces.iter().map(interface).collect();
    let mut facts = Facts {
        host: host_facts(pins),
        interfaces,
        ways: ways.iter().map(|(key, way)| (*key, told(way))).collect(),
        local_vips: local_vips(config)?,
        counted: agent.as_ref().map_or_else(|| counted(pins), Snapshot::counted),
        agent,
        ..Facts::default()
    };
    if probe {
        probes::run(config, &resolver, &ways, &mut facts).await?;
    }
    Ok(facts)
}

async fn ways(config: &Config, resolver: &Resolver) -> Ways {
    let mut wanted = BTreeMap::new();
    for service in &config.services {
        for (backend, (address, reach)) in service.backends.iter().zip(targets(service)) {
            if backend.state != BackendState::Disabled {
                wanted.insert((address, reach == Reach::OnLink), reach);
            }
        }
    }
    let resolve = async |((address, on_link), reach)| {
        ((address, on_link), resolver.resolve_within(address, reach, PATIENCE).await)
    };
    stream::iter(wanted).map(resolve).buffer_unordered(CONCURRENT).collect().await
}

fn told(way: &Result<NextHop, HopError>) -> Result<WayFacts, Unreached> {
    match way {
        Ok(hop) => Ok(WayFacts { interface: name_of(hop.ifindex), mtu: hop.mtu, mac: hop.destination_mac }),
        Err(error) => Err(Unreached { text: error.to_string(), kind: kind(error) }),
    }
}

fn kind(error: &HopError) -> UnreachedKind {
    match error {
        HopError::NoRoute { .. } => UnreachedKind::NoRoute,
        HopError::NotOnLink { .. } => UnreachedKind::BehindGateway,
        HopError::Unresolved { interface, .. } | HopError::GatewayUnresolved { interface, .. } => {
            UnreachedKind::Silent { interface: interface.clone() }
        }
        HopError::LinkDown { interface, .. } => UnreachedKind::LinkDown { interface: interface.clone() },
        HopError::TableFull { .. } => UnreachedKind::TableFull,
        HopError::VlanKind { .. }
        | HopError::NotEthernet { .. }
        | HopError::LocalAddress { .. }
        | HopError::NotUnicast { .. }
        | HopError::Netlink(_) => UnreachedKind::Unusable,
    }
}

fn name_of(ifindex: u32) -> String {
    if_indextoname(ifindex).map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned())
}

fn local_vips(config: &Config) -> io::Result<Vec<IpAddr>> {
    let own = host::addresses()?;
    let vips = config.services.iter().flat_map(|service| &service.vips).map(|vip| vip.address);
    Ok(vips.filter(|vip| own.iter().any(|own| own.address == *vip)).collect())
}

/// The services that what is pinned has counted packets for; none if it cannot be read.
fn counted(pins: &PinDir) -> BTreeSet<String> {
    let Ok(kernel) = Kernel::open(pins, Access::Read) else { return BTreeSet::new() };
    let Ok(forwarded) = kernel.forwarded() else { return BTreeSet::new() };
    let names = kernel.tables().service_names();
    let seen =
        names.into_iter().filter(|(id, _)| forwarded.services.get(id).is_some_and(|seen| seen.packets > 0));
    seen.map(|(_, name)| name).collect()
}

/// The reverse-path filter in force: the stricter setting is the smaller number, but the larger one counts.
fn rp_filter(interface: &str) -> Option<u32> {
    let of = |name: &str| setting::<u32>(&format!("net/ipv4/conf/{name}/rp_filter"));
    Some(of("all")?.max(of(interface)?))
}

/// A setting of the kernel, if it can be read here.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn host_facts(pins: &PinDir) -> HostFacts {
    HostFacts {
        kernel: setting::<String>("kernel/osrelease").and_then(|release| version(&release)),
        btf: Path::new("/sys/kernel/btf/vmlinux").try_exists().ok(),
        bpffs: Some(pins.is_on_bpf_fs()),
        pin_dir: pins.path().display().to_string(),
        jit: setting("net/core/bpf_jit_enable"),
        capabilities: capabilities(),
        open_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, most)| most),
        neighbours_max: ["ipv4", "ipv6"]
            .map(|family| setting(&format!("net/{family}/neigh/default/gc_thresh3"))),
        clock_synchronised: clock_synchronised(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// `6.18.5-amd64` → 6, 18.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

/// Whether the kernel takes its clock for right, as `adjtimex(2)` tells.
fn clock_synchronised() -> Option<bool> {
    // SAFETY: zeros are a valid request: one that changes nothing.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the request is live.
    let state = unsafe { libc::adjtimex(&raw mut request) };
    (state >= 0).then_some(state != libc::TIME_ERROR && request.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(version("6.18.5-amd64"), Some((6, 18)));
        assert_eq!(version("6.1.0-13-cloud"), Some((6, 1)));
        assert_eq!(version("unknown"), None);
    }
}
