//! The ways to the backends, and the VIPs here and there → findings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{
    Facts, Finding, HERE, Unreached, UnreachedKind, VipAnswer, VipProbe, Weight, finding, set_sysctl,
};
use crate::core::config::{Backend, BackendState, Config, Forwarding, Probe, Service, Via};
use crate::core::reach::{Reach, reach};
use crate::core::stats::{BackendStats, ServiceStats};

/// The largest packet that comes over the Internet.
const INTERNET_MTU: u32 = 1_500;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut found = neighbours(config, facts);
    found.extend(forwarding(config, facts));
    found.extend(mtus(config, facts));
    let ill = ill(facts);
    found.extend(health(config, facts, &ill));
    found.extend(config.services.iter().filter_map(health_path));
    found.extend(facts.vip_probes.iter().filter_map(|probe| vip_on_backend(config, &ill, probe)));
    found.extend(arp(config, facts));
    found.extend(routes(config, facts));
    found
}

/// The key of the way to a backend.
fn way_key(service: &Service, backend: &Backend) -> (IpAddr, bool) {
    (backend.address, reach(service.forwarding) == Reach::OnLink)
}

fn used(config: &Config) -> impl Iterator<Item = (&Service, &Backend)> {
    let of = |service| move |backend| (service, backend);
    config.services.iter().flat_map(move |service| {
        let used = service.backends.iter().filter(|backend| backend.state != BackendState::Disabled);
        used.map(of(service))
    })
}

fn neighbours(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (service, backend) in used(config) {
        let key = way_key(service, backend);
        if let Some(Err(unreached)) = facts.ways.get(&key)
            && told.insert(key)
        {
            let why = "no packet can be sent to it";
            let fix = way_fix(service, backend, unreached);
            let subject = subject(&service.name, &backend.name);
            found.push(finding("neighbour", Weight::Warning, subject, (&unreached.text, why), fix));
        }
    }
    found
}

fn way_fix(service: &Service, backend: &Backend, unreached: &Unreached) -> Vec<String> {
    let address = backend.address;
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    match &unreached.kind {
        UnreachedKind::NoRoute => vec![format!(
            "ip route add {address}/{bits} via GATEWAY     # or give this host an address there"
        )],
        UnreachedKind::BehindGateway => {
            vec![format!("set forwarding = \"ipip\", \"gue\" or \"nat\" in service {}", service.name)]
        }
        UnreachedKind::Silent { interface } => vec![
            format!(
                "bring {address} up, on the segment of {interface}, then: ping -c 1 -I {interface} {address}"
            ),
            format!("or take it out: set state = \"disabled\" for backend {}", backend.name),
        ],
        UnreachedKind::LinkDown { interface } => {
            vec![format!("ip link set dev {interface} up     # and look at its cable and the other end")]
        }
        UnreachedKind::TableFull => {
            vec![format!("sysctl -w net.{family}.neigh.default.gc_thresh3=16384")]
        }
        UnreachedKind::Unusable => {
            vec![format!(
                "correct the address of backend {} of service {}, or the route to it",
                backend.name, service.name
            )]
        }
    }
}

/// The program asks the kernel's routes itself where the agent knows no next hop, which the kernel refuses unless the
/// interface forwards.
fn forwarding(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, (family, v4)) in [("ipv4", true), ("ipv6", false)].into_iter().enumerate() {
        let of_family = || used(config).filter(|(_, backend)| backend.address.is_ipv4() == v4);
        if of_family().next().is_none() {
            continue;
        }
        let lost = of_family()
            .any(|(service, backend)| facts.ways.get(&way_key(service, backend)).is_some_and(Result::is_err));
        for interface in &facts.interfaces {
            if interface.forwarding.get(index).copied().flatten() != Some(false) {
                continue;
            }
            let name = &interface.name;
            let what = format!("{family} forwarding is off");
            let why = "the program looks next hops that the agent does not know up in the kernel's routes, which answer \
                       only where forwarding is on. The kernel then also forwards other packets that come in there: \
                       keep the firewall's forward chain shut, or leave it off while all next hops are known";
            let weight = if lost { Weight::Warning } else { Weight::Note };
            let fix = [set_sysctl(family, name, "forwarding", 1)];
            found.push(finding("forwarding", weight, name, (what, why), fix));
        }
    }
    found
}

/// Bytes that a mode puts in front of a packet to a backend of this family.
fn overhead(mode: Forwarding, to: IpAddr) -> u32 {
    let outer = if to.is_ipv4() { 20 } else { 40 };
    match mode {
        Forwarding::Ipip => outer,
        // UDP and GUE headers.
        Forwarding::Gue => outer + 12,
        Forwarding::L2Dsr | Forwarding::Nat => 0,
    }
}

fn mtus(config: &Config, facts: &Facts) -> Vec<Finding> {
    let links = facts.interfaces.iter().filter_map(|interface| interface.link.as_ref());
    let Some(comes) = links.map(|link| link.mtu.min(INTERNET_MTU)).max() else { return Vec::new() };
    let mut narrow: BTreeMap<(&str, u32, u32), Vec<IpAddr>> = BTreeMap::new();
    for (service, backend) in used(config) {
        let Some(Ok(way)) = facts.ways.get(&way_key(service, backend)) else { continue };
        let needed = comes + overhead(service.forwarding, backend.address);
        if way.mtu < needed {
            narrow.entry((&way.interface, needed, way.mtu)).or_default().push(backend.address);
        }
    }
    narrow
        .iter()
        .map(|(&(interface, needed, fits), to)| mtu(facts, interface, (comes, needed, fits), to))
        .collect()
}

/// One link, or the routes over it, that packets do not fit through.
fn mtu(facts: &Facts, interface: &str, (comes, needed, fits): (u32, u32, u32), to: &[IpAddr]) -> Finding {
    let link = facts.interfaces.iter().find(|known| known.name == interface);
    let wide = link.and_then(|known| known.link.as_ref()).is_some_and(|link| link.mtu >= needed);
    let to = match to {
        [] => String::new(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    };
    let fix = if wide {
        vec![format!(
            "ip route show     # a route to {to} has an mtu, or a router told one: raise it there, then: ip route flush cache"
        )]
    } else {
        vec![format!(
            "ip link set dev {interface} mtu {needed}     # and every port and host between here and the backends"
        )]
    };
    let what =
        format!("customers' packets of {comes} bytes become {needed} on the way to {to}, where {fits} fit");
    let why = "their senders are told by ICMP to send smaller ones; where something drops that, uploads hang";
    finding("mtu", Weight::Warning, interface, (what, why), fix)
}

/// Backends that the agent has found ill, by the names of service and backend.
type Ill<'a> = BTreeMap<(&'a str, &'a str), (&'a ServiceStats, &'a BackendStats)>;

fn ill(facts: &Facts) -> Ill<'_> {
    let services = facts.agent.iter().flat_map(|agent| &agent.services);
    let backends =
        services.flat_map(|service| service.backends.iter().map(move |backend| (service, backend)));
    let ill = backends.filter(|(_, backend)| backend.health == "unhealthy");
    ill.map(|(service, backend)| ((service.name.as_str(), backend.name.as_str()), (service, backend)))
        .collect()
}

/// A finding for each of them that a way leads to.
fn health(config: &Config, facts: &Facts, ill: &Ill<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (service, backend) in used(config) {
        let Some((known, stats)) = ill.get(&(service.name.as_str(), backend.name.as_str())) else { continue };
        if matches!(facts.ways.get(&way_key(service, backend)), Some(Err(_))) {
            continue;
        }
        let what = match stats.reason.as_str() {
            "" => "its health checks failed".to_owned(),
            reason => format!("its health checks fail: {reason}"),
        };
        let why = if stats.serving {
            "customers are sent there all the same, for too few others are healthy"
        } else if known.backends.iter().any(|other| other.serving) {
            "customers are sent to the others, which have its share to carry as well"
        } else {
            "no other backend takes new connections: customers get no answer"
        };
        let fix = [
            format!(
                "sluice events --service {} --backend {}     # since when, and what else happened",
                service.name, backend.name
            ),
            format!(
                "look at the server at {}; to take it out: sluice backend disable {} {}",
                backend.address, service.name, backend.name
            ),
        ];
        found.push(finding(
            "health",
            Weight::Warning,
            subject(&service.name, &backend.name),
            (what, why),
            fix,
        ));
    }
    found
}

fn subject(service: &str, backend: &str) -> String {
    format!("{backend} of service {service}")
}

/// Customers' packets go another way than the probes.
fn health_path(service: &Service) -> Option<Finding> {
    let health = &service.health;
    let bypasses =
        service.forwarding != Forwarding::Nat && health.probe != Probe::None && health.via == Via::Backend;
    (bypasses && !service.backends.is_empty()).then(|| {
        let what = "its health checks go to the backends' own addresses";
        let why = "a backend without the VIP, or behind a broken tunnel, passes them, while customers get no answer";
        let fix = [format!("set via = \"vip\" in [service.health] of service {}", service.name)];
        finding("health_path", Weight::Note, format!("service {}", service.name), (what, why), fix)
    })
}

/// What has to be set before a VIP is put on a backend, and what puts it there.
const QUIET: &str = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";

fn vip_on_backend(config: &Config, ill: &Ill<'_>, probe: &VipProbe) -> Option<Finding> {
    // That it is down is told by itself; where its checks go to the VIP, this may be why.
    let is_ill = ill.contains_key(&(probe.service.as_str(), probe.backend.as_str()));
    let is_checked_there =
        |service: &Service| service.name == probe.service && service.health.via == Via::Vip;
    if is_ill && !config.services.iter().any(is_checked_there) {
        return None;
    }
    let vip = probe.vip;
    let (what, why, fix) = match probe.answer {
        VipAnswer::Accepted => return None,
        VipAnswer::Refused => (
            format!("it refuses connections to {vip}"),
            "the VIP is there, but no server listens on it: customers that are sent there are refused",
            vec![format!(
                "ss -ltn 'sport = :{}'     # have the server listen on the VIP, or on all addresses",
                vip.port()
            )],
        ),
        VipAnswer::Nothing => (
            format!("it does not answer an opening packet for {vip} that is sent straight to it"),
            "the VIP is not on its loopback, or a firewall drops the packet: customers that are sent there get no answer",
            match vip.ip() {
                IpAddr::V4(vip) => vec![QUIET.to_owned(), format!("ip address add {vip}/32 dev lo")],
                IpAddr::V6(vip) => vec![format!("ip address add {vip}/128 dev lo nodad")],
            },
        ),
    };
    let subject = subject(&probe.service, &probe.backend);
    let on = format!("{} ({})", probe.backend, probe.address);
    Some(Finding { on, ..finding("vip_on_backend", Weight::Warning, subject, (what, why), fix) })
}

/// Somebody else answers for a VIP.
fn arp(config: &Config, facts: &Facts) -> Vec<Finding> {
    let answers = facts.arp_answers.iter().map(|(vip, mac)| {
        let who = used(config).find_map(|(service, backend)| {
            let way = facts.ways.get(&way_key(service, backend))?.as_ref().ok()?;
            (way.mac == *mac).then(|| format!("{} ({})", backend.name, backend.address))
        });
        let told = mac.map(|byte| format!("{byte:02x}")).join(":");
        let what = match &who {
            Some(who) => format!("{who} answers ARP requests for it, with {told}"),
            None => format!("a host that is no backend answers ARP requests for it, with {told}"),
        };
        let why = "whoever believes it sends customers' packets past the balancer, all to that one host";
        let forget = format!("ip neigh flush to {vip}     # on routers and hosts that believed it");
        let (on, fix) = match who {
            Some(who) => (who, vec![QUIET.to_owned(), forget]),
            None => {
                (HERE.to_owned(), vec![format!("take {vip} from the host with MAC address {told}"), forget])
            }
        };
        Finding { on, ..finding("vip_arp", Weight::Error, vip, (what, why), fix) }
    });
    answers.collect()
}

/// Whether packets for the VIPs come here at all.
fn routes(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    let Some(first) = facts.interfaces.first() else { return found };
    // A packet for one service shows that its addresses come here, whoever else has them too.
    let counted = config.services.iter().filter(|service| facts.counted.contains(&service.name));
    let seen: BTreeSet<IpAddr> = counted.flat_map(|service| &service.vips).map(|vip| vip.address).collect();
    for service in &config.services {
        for vip in service.vips.iter().map(|vip| vip.address) {
            if seen.contains(&vip) || facts.local_vips.contains(&vip) || !told.insert(vip) {
                continue;
            }
            let bits = if vip.is_ipv4() { 32 } else { 128 };
            let (weight, what) = match facts.routed_here.get(&vip) {
                Some(true) => continue,
                Some(false) => (Weight::Warning, "this host's gateway does not bring packets for it here"),
                None => (Weight::Note, "it is no address of this host, and no packet for it has been seen"),
            };
            let why = "packets for it must be routed to an interface of agent.interfaces, or the kernel answer ARP for it";
            let fix = [
                format!("on the router in front: ip route add {vip}/{bits} via THIS_HOST"),
                format!(
                    "or, with its customers or router on the segment: ip address add {vip}/{bits} dev {}",
                    first.name
                ),
            ];
            found.push(finding("vip_route", weight, vip, (what, why), fix));
        }
    }
    found
}
