//! An interface that the program is, or is to be, attached to → findings.

use super::{Facts, Finding, InterfaceFacts, LinkFacts, Weight, finding, set_sysctl};
use crate::core::config::{Config, Forwarding, Protocol, XdpMode};

pub(super) fn judge(config: &Config, interface: &InterfaceFacts, facts: &Facts) -> Vec<Finding> {
    let name = &interface.name;
    let Some(link) = &interface.link else {
        let why = "the agent does not start without it";
        let fix = ["ip -brief link     # then name one of these in agent.interfaces".to_owned()];
        let what = "there is no such interface";
        return vec![finding("interface", Weight::Error, name, (what, why), fix)];
    };
    let mut found = Vec::new();
    if !link.running {
        let what = "it is down, or has no carrier";
        let why = "nothing comes in there";
        let fix = [format!("ip link set dev {name} up     # and look at its cable and the other end")];
        found.push(finding("interface", Weight::Error, name, (what, why), fix));
    }
    found.extend(foreign_xdp(interface, link));
    found.extend(not_attached(interface, link, facts));
    found.extend(mode(config, interface, link));
    found.extend(queues(interface, link, facts.host.cpus));
    found.extend(rss(config, interface));
    found.extend(offloads(config, interface, link));
    found.extend(devices(interface, link));
    found.extend(rp_filter(interface));
    found
}

fn foreign_xdp(interface: &InterfaceFacts, link: &LinkFacts) -> Option<Finding> {
    let name = &interface.name;
    (link.xdp.is_some() && !interface.ours).then(|| {
        let what = "an XDP program that is not pinned here is attached";
        let why = "an interface takes one XDP program: the agent cannot attach its own";
        let fix = match interface.held_by {
            None => vec![format!("ip link set dev {name} xdp off     # if it is not needed")],
            Some(link) => vec![
                format!("bpftool link show id {link}     # what it is; end the process that holds it, if it is not needed"),
                "sluice detach --pin-dir DIR     # if it is another Sluice's".to_owned(),
            ],
        };
        finding("foreign_xdp", Weight::Error, name, (what, why), fix)
    })
}

/// The program is to be on it, and nothing is.
fn not_attached(interface: &InterfaceFacts, link: &LinkFacts, facts: &Facts) -> Option<Finding> {
    if link.xdp.is_some() {
        return None;
    }
    let (weight, what, fix) = match &facts.agent {
        Some(agent) if agent.agent.no_attach => (
            Weight::Warning,
            "the program is not attached: the agent runs with --no-attach",
            "start the agent without --no-attach",
        ),
        Some(_) => (
            Weight::Error,
            "the program is not attached",
            "sluice events --kind taken_off,not_attached     # the agent attaches it again, or says what is in the way",
        ),
        None if interface.pinned => (
            Weight::Error,
            "the program was attached, and somebody took it off",
            "systemctl start sluice     # the agent attaches it again",
        ),
        None => return None,
    };
    let why = "packets go past it, to the host, and are not balanced";
    Some(finding("not_attached", weight, &interface.name, (what, why), [fix.to_owned()]))
}

fn mode(config: &Config, interface: &InterfaceFacts, link: &LinkFacts) -> Option<Finding> {
    let generic = link.xdp == Some("generic") && interface.ours && config.agent.xdp_mode != XdpMode::Generic;
    generic.then(|| {
        let what =
            format!("the program runs in generic mode (driver: {})", or_unknown(&interface.nic.driver));
        let why =
            "the kernel makes a socket buffer of every packet first: several times slower than in the driver";
        let fix = [
            "sluice detach && systemctl restart sluice     # if the driver takes XDP by now".to_owned(),
            "else use a network card whose driver does, or set agent.xdp_mode = \"generic\"".to_owned(),
        ];
        finding("driver_mode", Weight::Warning, &interface.name, (what, why), fix)
    })
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// Of network cards: a virtual device's packets come on the CPU that its other end has.
fn queues(interface: &InterfaceFacts, link: &LinkFacts, cpus: usize) -> Option<Finding> {
    let (queues, most) = interface.nic.queues.filter(|_| link.kind.is_empty())?;
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let wanted = most.min(cpus);
    (queues < wanted).then(|| {
        let what = format!("{queues} of {most} receive queues are in use, and there are {cpus} CPUs");
        let why = "a queue's packets are all handled by one CPU";
        let fix = [format!("ethtool -L {0} combined {wanted} || ethtool -L {0} rx {wanted}", interface.name)];
        finding("queues", Weight::Warning, &interface.name, (what, why), fix)
    })
}

fn rss(config: &Config, interface: &InterfaceFacts) -> Vec<Finding> {
    let (name, nic) = (&interface.name, &interface.nic);
    let mut found = Vec::new();
    if let (Some((queues, _)), Some(spread)) = (nic.queues, nic.rss_queues)
        && spread < queues
    {
        let what = format!("packets are spread over {spread} of {queues} receive queues");
        let why = "the CPUs of the other queues have nothing to do";
        let fix = [format!("ethtool -X {name} equal {queues}")];
        found.push(finding("rss", Weight::Warning, name, (what, why), fix));
    }
    let udp = config.services.iter().any(|service| service.protocol == Protocol::Udp);
    let several = nic.queues.is_some_and(|(queues, _)| queues > 1);
    if udp && several && nic.udp_ports_hashed == Some(false) {
        let what = "UDP packets are spread by their addresses only";
        let why = "all UDP flows between two addresses, a CDN's for instance, are handled by one CPU";
        let fix = [format!("ethtool -N {name} rx-flow-hash udp4 sdfn")];
        found.push(finding("rss", Weight::Note, name, (what, why), fix));
    }
    found
}

fn offloads(config: &Config, interface: &InterfaceFacts, link: &LinkFacts) -> Vec<Finding> {
    let (name, nic) = (&interface.name, &interface.nic);
    let mut found = Vec::new();
    if nic.lro == Some(true) {
        let what = "large receive offload is on";
        let why = "the card makes one packet of several, which cannot be told apart again when they are sent on; most \
                   drivers refuse XDP so";
        let fix = [format!("ethtool -K {name} lro off")];
        found.push(finding("lro", Weight::Warning, name, (what, why), fix));
    }
    let tunnels = |forwarding| matches!(forwarding, Forwarding::Ipip | Forwarding::Gue);
    let generic = link.xdp == Some("generic");
    if generic && nic.gro == Some(true) && config.services.iter().any(|service| tunnels(service.forwarding)) {
        let what = "generic receive offload is on, and the program runs in generic mode";
        let why = "packets are merged before the program sees them, and then do not fit into a tunnel";
        let fix = [format!("ethtool -K {name} gro off")];
        found.push(finding("gro", Weight::Warning, name, (what, why), fix));
    }
    if nic.rx_vlan == Some(true) && !link.vlans.is_empty() {
        let what =
            format!("the card takes VLAN tags out of frames, and {} are over it", link.vlans.join(", "));
        let why =
            "some drivers then hide the tag from the program, which takes the packet for an untagged one";
        let fix = [format!("ethtool -K {name} rxvlan off")];
        found.push(finding("vlan", Weight::Warning, name, (what, why), fix));
    }
    found
}

fn devices(interface: &InterfaceFacts, link: &LinkFacts) -> Vec<Finding> {
    let name = &interface.name;
    let mut found = Vec::new();
    if link.kind == "vlan" {
        let lower = link.lower.as_deref().unwrap_or("the interface beneath");
        let what = "this is a VLAN device";
        let why = "it has no driver of its own, so the program runs in generic mode, and other VLANs are not seen; the \
                   program reads and writes tags itself";
        let fix = [format!("set agent.interfaces = [\"{lower}\"]")];
        found.push(finding("vlan", Weight::Warning, name, (what, why), fix));
    }
    if let Some((master, kind)) = &link.master
        && matches!(kind.as_str(), "bond" | "team")
    {
        let what = format!("this is one of the interfaces of {kind} {master}");
        let why = "what comes in on the others is not seen";
        let fix = [format!("set agent.interfaces = [\"{master}\"]")];
        found.push(finding("bond", Weight::Warning, name, (what, why), fix));
    }
    found
}

fn rp_filter(interface: &InterfaceFacts) -> Option<Finding> {
    let name = &interface.name;
    (interface.rp_filter == Some(1)).then(|| {
        let what = "the reverse-path filter is strict";
        let why = "what the program leaves to the host (ports that no service publishes, ICMP about tunnels, answers to \
                   health checks) is dropped wherever the way back leads over another interface";
        let fix = [set_sysctl("ipv4", name, "rp_filter", 2)];
        finding("rp_filter", Weight::Warning, name, (what, why), fix)
    })
}
