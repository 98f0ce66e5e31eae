use std::collections::BTreeSet;

use super::frames::{Answer, answer, arp_answer, arp_request, opening, ping, ping_seen};
use super::*;
use crate::core::config::{self, Via};
use crate::core::stats::BackendStats;

const WEB1: [u8; 6] = [2, 0, 0, 0, 0, 11];

fn config(forwarding: &str) -> Config {
    let text = format!(
        "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvips = [\"203.0.113.10:80\"]\nforwarding = \
         \"{forwarding}\"\n[service.health]\ntype = \"tcp\"\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.1.11\"\n"
    );
    config::parse(&text).unwrap()
}

fn web1() -> IpAddr {
    "10.0.1.11".parse().unwrap()
}

/// A host on which nothing is wrong.
fn well(on_link: bool) -> Facts {
    let link = LinkFacts { mtu: 1_500, running: true, xdp: Some("driver"), ..LinkFacts::default() };
    let nic = NicFacts {
        driver: "mlx5_core".into(),
        queues: Some((4, 8)),
        rss_queues: Some(4),
        udp_ports_hashed: Some(true),
        lro: Some(false),
        gro: Some(true),
        rx_vlan: Some(true),
    };
    Facts {
        host: HostFacts {
            kernel: Some((6, 1)),
            btf: Some(true),
            bpffs: Some(true),
            pin_dir: "/sys/fs/bpf/sluice".into(),
            jit: Some(1),
            capabilities: Some(u64::MAX),
            open_files: Some(1_024),
            neighbours_max: [Some(1_024); 2],
            clock_synchronised: Some(true),
            cpus: 4,
        },
        interfaces: vec![InterfaceFacts {
            name: "eth0".into(),
            link: Some(link),
            pinned: true,
            ours: true,
            held_by: None,
            rp_filter: Some(2),
            forwarding: [Some(true); 2],
            nic,
        }],
        ways: [((web1(), on_link), Ok(WayFacts { interface: "eth0".into(), mtu: 1_500, mac: WEB1 }))].into(),
        vip_probes: vec![VipProbe {
            service: "web".into(),
            backend: "web1".into(),
            address: web1(),
            vip: "203.0.113.10:80".parse().unwrap(),
            answer: VipAnswer::Accepted,
        }],
        local_vips: vec!["203.0.113.10".parse().unwrap()],
        ..Facts::default()
    }
}

fn found(config: &Config, facts: &Facts) -> BTreeSet<(String, Weight)> {
    judge(config, facts).into_iter().map(|finding| (finding.check, finding.weight)).collect()
}

/// What is found beyond what is found of a host on which nothing is wrong, and that this is the only thing.
fn finds(forwarding: &str, change: impl FnOnce(&mut Facts)) -> Finding {
    let config = config(forwarding);
    let mut facts = well(forwarding == "l2-dsr");
    let before = judge(&config, &facts);
    change(&mut facts);
    let mut new: Vec<Finding> =
        judge(&config, &facts).into_iter().filter(|finding| !before.contains(finding)).collect();
    assert_eq!(new.len(), 1, "{new:#?}");
    let finding = new.remove(0);
    assert!(CHECKS.contains(&finding.check.as_str()), "{finding:?}");
    assert!(!finding.fix.is_empty() && !finding.why.is_empty(), "{finding:?}");
    finding
}

fn link(facts: &mut Facts) -> &mut LinkFacts {
    facts.interfaces[0].link.as_mut().unwrap()
}

fn nic(facts: &mut Facts) -> &mut NicFacts {
    &mut facts.interfaces[0].nic
}

#[test]
fn a_host_on_which_nothing_is_wrong_has_notes_only() {
    let note = |check: &str| (check.to_owned(), Weight::Note);
    assert_eq!(found(&config("l2-dsr"), &well(true)), [note("agent"), note("health_path")].into());
    assert_eq!(found(&config("nat"), &well(false)), [note("agent")].into());
}

/// A check, how much it matters, a part of the fix, and how to plant the fault.
type Fault = (&'static str, Weight, &'static str, fn(&mut Facts));

#[test]
fn every_fault_of_the_host_is_found_by_itself() {
    let faults: [Fault; 26] = [
        ("kernel", Weight::Error, "install", |f| f.host.kernel = Some((5, 15))),
        ("btf", Weight::Error, "CONFIG_DEBUG_INFO_BTF", |f| f.host.btf = Some(false)),
        ("bpffs", Weight::Warning, "mount -t bpf bpf /sys/fs/bpf", |f| f.host.bpffs = Some(false)),
        ("jit", Weight::Warning, "sysctl -w net.core.bpf_jit_enable=1", |f| f.host.jit = Some(0)),
        ("capabilities", Weight::Error, "sudo", |f| f.host.capabilities = Some(!(1 << 39))),
        ("capabilities", Weight::Note, "sudo", |f| f.host.capabilities = Some(!(1 << 13))),
        ("clock", Weight::Note, "timedatectl set-ntp true", |f| f.host.clock_synchronised = Some(false)),
        ("limits", Weight::Warning, "LimitNOFILE=128", |f| f.host.open_files = Some(100)),
        ("limits", Weight::Warning, "net.ipv4.neigh.default.gc_thresh3=4", |f| {
            f.host.neighbours_max = [Some(1), Some(1)];
        }),
        ("interface", Weight::Error, "ip -brief link", |f| f.interfaces[0].link = None),
        ("interface", Weight::Error, "ip link set dev eth0 up", |f| link(f).running = false),
        ("foreign_xdp", Weight::Error, "ip link set dev eth0 xdp off", |f| f.interfaces[0].ours = false),
        ("foreign_xdp", Weight::Error, "bpftool link show id 7 ", |f| {
            (f.interfaces[0].ours, f.interfaces[0].held_by) = (false, Some(7));
        }),
        ("not_attached", Weight::Error, "systemctl start sluice", |f| link(f).xdp = None),
        ("driver_mode", Weight::Warning, "sluice detach", |f| link(f).xdp = Some("generic")),
        ("queues", Weight::Warning, "ethtool -L eth0 combined 4", |f| {
            (nic(f).queues, nic(f).rss_queues) = (Some((1, 8)), None);
        }),
        ("rss", Weight::Warning, "ethtool -X eth0 equal 4", |f| nic(f).rss_queues = Some(1)),
        ("lro", Weight::Warning, "ethtool -K eth0 lro off", |f| nic(f).lro = Some(true)),
        ("vlan", Weight::Warning, "ethtool -K eth0 rxvlan off", |f| link(f).vlans = vec!["eth0.5".into()]),
        ("vlan", Weight::Warning, "agent.interfaces = [\"eth9\"]", |f| {
            (link(f).kind, link(f).lower) = ("vlan".into(), Some("eth9".into()));
        }),
        ("bond", Weight::Warning, "agent.interfaces = [\"bond0\"]", |f| {
            link(f).master = Some(("bond0".into(), "bond".into()));
        }),
        ("rp_filter", Weight::Warning, "sysctl -w net/ipv4/conf/eth0/rp_filter=2", |f| {
            f.interfaces[0].rp_filter = Some(1);
        }),
        ("forwarding", Weight::Note, "sysctl -w net/ipv4/conf/eth0/forwarding=1", |f| {
            f.interfaces[0].forwarding = [Some(false); 2];
        }),
        ("neighbour", Weight::Warning, "ping -c 1 -I eth0 10.0.1.11", silent),
        ("vip_route", Weight::Note, "ip route add 203.0.113.10/32", |f| f.local_vips.clear()),
        ("vip_route", Weight::Warning, "ip address add 203.0.113.10/32 dev eth0", |f| {
            f.routed_here.insert(f.local_vips.remove(0), false);
        }),
    ];
    for (check, weight, fix, plant) in faults {
        let finding = finds("l2-dsr", plant);
        assert_eq!((finding.check.as_str(), finding.weight), (check, weight), "{finding:?}");
        assert!(finding.fix.join("\n").contains(fix), "{finding:?}");
        assert_eq!(finding.on, "here", "{finding:?}");
    }
}

fn silent(facts: &mut Facts) {
    let kind = UnreachedKind::Silent { interface: "eth0".into() };
    let way = Err(Unreached { text: "10.0.1.11 does not answer on eth0".into(), kind });
    for found in facts.ways.values_mut() {
        *found = way.clone();
    }
}

#[test]
fn forwarding_is_a_warning_where_the_program_needs_it() {
    let mut facts = well(true);
    facts.interfaces[0].forwarding = [Some(false); 2];
    silent(&mut facts);
    assert!(found(&config("l2-dsr"), &facts).contains(&("forwarding".into(), Weight::Warning)));
}

#[test]
fn what_is_routed_here_or_counted_is_not_missing() {
    let mut facts = well(true);
    let vip = facts.local_vips.remove(0);
    facts.routed_here.insert(vip, true);
    assert!(!found(&config("l2-dsr"), &facts).iter().any(|(check, _)| check == "vip_route"));
    facts.routed_here.clear();
    facts.counted.insert("web".into());
    assert!(!found(&config("l2-dsr"), &facts).iter().any(|(check, _)| check == "vip_route"));
}

/// An agent that says this of the backend.
fn agent_of(health: &str, reason: &str, serving: bool) -> Option<Snapshot> {
    let backend = serde_json::json!({
        "name": "web1", "address": "10.0.1.11", "weight": 100, "state": "enabled", "health": health, "reason": reason,
        "serving": serving, "ring_share": 1.0, "active_flows": 0, "packets": 0, "bytes": 0,
    });
    let snapshot = serde_json::json!({
        "agent": {"version": "1", "uptime_seconds": 1, "revision": 1, "config": "", "interfaces": []},
        "services": [{"name": "web", "vips": ["203.0.113.10:80"], "protocol": "tcp", "forwarding": "l2-dsr",
            "status": "down", "packets": 0, "bytes": 0, "new_flows": 0, "backends": [backend]}],
        "verdicts": {}, "flow_table": {"size": 8, "entries": 0, "evictions": {}}, "nat": {"size": 0, "entries": 0},
    });
    Some(serde_json::from_value(snapshot).unwrap())
}

#[test]
fn a_backend_that_is_ill_is_found_once() {
    let with = |agent: &Option<Snapshot>| Facts { agent: agent.clone(), ..well(true) };
    let config = config("l2-dsr");
    let well = with(&agent_of("healthy", "", true));
    assert!(judge(&config, &well).iter().all(|finding| finding.weight == Weight::Note));
    let ill = with(&agent_of("unhealthy", "connection refused", false));
    let found = judge(&config, &ill).into_iter().find(|finding| finding.check == "health").unwrap();
    assert_eq!((found.weight, found.subject.as_str()), (Weight::Warning, "web1 of service web"));
    assert!(found.what.contains("connection refused") && found.why.contains("no answer"), "{found:?}");
    let mut one_of_two = agent_of("unhealthy", "", false);
    let backends = &mut one_of_two.as_mut().unwrap().services[0].backends;
    backends.push(BackendStats { name: "web2".into(), serving: true, ..backends[0].clone() });
    assert!(judge(&config, &with(&one_of_two)).iter().any(|finding| finding.why.contains("to the others")));
    let all_down = with(&agent_of("unhealthy", "connection refused", true));
    assert!(judge(&config, &all_down).iter().any(|finding| finding.why.contains("all the same")));
    // What else follows from it is not told beside it, but where it may be the cause.
    let names = |config: &Config, facts: &Facts| -> Vec<String> {
        let found = judge(config, facts).into_iter().filter(|finding| finding.weight != Weight::Note);
        found.map(|finding| finding.check).collect()
    };
    let mut without_vip = ill.clone();
    without_vip.vip_probes[0].answer = VipAnswer::Nothing;
    assert_eq!(names(&config, &without_vip), ["health"]);
    let mut via_vip = config.clone();
    via_vip.services[0].health.via = Via::Vip;
    assert_eq!(names(&via_vip, &without_vip), ["health", "vip_on_backend"]);
    let mut unreached = ill;
    silent(&mut unreached);
    assert_eq!(names(&config, &unreached), ["neighbour"]);
}

#[test]
fn an_agent_that_is_not_to_attach_is_only_warned_of() {
    let agent = |no_attach: bool| {
        serde_json::from_value(serde_json::json!({
            "agent": {"version": "1", "uptime_seconds": 1, "revision": 1, "config": "", "interfaces": [],
                "no_attach": no_attach},
            "services": [], "verdicts": {}, "flow_table": {"size": 8, "entries": 0, "evictions": {}},
            "nat": {"size": 0, "entries": 0},
        }))
        .unwrap()
    };
    for (no_attach, weight) in [(true, Weight::Warning), (false, Weight::Error)] {
        let mut facts = well(true);
        (link(&mut facts).xdp, facts.agent) = (None, Some(agent(no_attach)));
        assert!(found(&config("l2-dsr"), &facts).contains(&("not_attached".into(), weight)), "{no_attach}");
    }
    // Nothing was ever loaded.
    let mut facts = well(true);
    (link(&mut facts).xdp, facts.interfaces[0].pinned, facts.interfaces[0].ours) = (None, false, false);
    assert!(!found(&config("l2-dsr"), &facts).iter().any(|(check, _)| check == "not_attached"));
}

#[test]
fn tunnels_need_room_by_mode_and_family() {
    let wide = |needed: u32| {
        move |facts: &mut Facts| {
            let way = facts.ways.values_mut().next().unwrap().as_mut().unwrap();
            way.mtu = needed;
        }
    };
    for (mode, needed) in [("ipip", 1_520), ("gue", 1_532)] {
        let fix = format!("ip link set dev eth0 mtu {needed}");
        let narrow = found(&config(mode), &well(false));
        assert!(narrow.contains(&("mtu".into(), Weight::Warning)), "{mode}");
        let mut facts = well(false);
        wide(needed - 1)(&mut facts);
        let findings = judge(&config(mode), &facts);
        let mtu = findings.iter().find(|finding| finding.check == "mtu").expect("found");
        assert!(mtu.fix[0].contains(&fix), "{mtu:?}");
        wide(needed)(&mut facts);
        assert!(!found(&config(mode), &facts).iter().any(|(check, _)| check == "mtu"), "{mode}");
        // A jumbo link does not make the Internet's packets larger.
        link(&mut facts).mtu = 9_000;
        assert!(!found(&config(mode), &facts).iter().any(|(check, _)| check == "mtu"), "{mode}");
    }
    assert!(!found(&config("nat"), &well(false)).iter().any(|(check, _)| check == "mtu"));
}

#[test]
fn merged_packets_are_a_fault_of_tunnels_in_generic_mode_only() {
    for (mode, expected) in [("ipip", true), ("nat", false)] {
        let mut facts = well(false);
        link(&mut facts).xdp = Some("generic");
        let found = found(&config(mode), &facts);
        assert_eq!(found.contains(&("gro".into(), Weight::Warning)), expected, "{mode}: {found:?}");
    }
}

#[test]
fn faults_of_a_backend_name_it_and_are_cured_there() {
    let answered = |answer| finds("l2-dsr", move |facts| facts.vip_probes[0].answer = answer);
    let missing = answered(VipAnswer::Nothing);
    assert_eq!((missing.check.as_str(), missing.on.as_str()), ("vip_on_backend", "web1 (10.0.1.11)"));
    assert_eq!(missing.fix[1], "ip address add 203.0.113.10/32 dev lo", "after ARP is kept quiet");
    assert!(missing.fix[0].contains("arp_ignore=1"), "{missing:?}");
    let refused = answered(VipAnswer::Refused);
    assert!(refused.what.contains("refuses connections to 203.0.113.10:80"), "{refused:?}");

    let vip: IpAddr = "203.0.113.10".parse().unwrap();
    let arp = finds("l2-dsr", |facts| facts.arp_answers.push((vip, WEB1)));
    assert_eq!((arp.check.as_str(), arp.on.as_str()), ("vip_arp", "web1 (10.0.1.11)"));
    assert_eq!(arp.fix[0], "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2");
    let stranger = finds("l2-dsr", |facts| facts.arp_answers.push((vip, [2, 0, 0, 0, 0, 99])));
    assert_eq!(stranger.on, "here");
    assert!(stranger.fix[0].contains("02:00:00:00:00:63"), "{stranger:?}");
}

/// An address that packets come for to one service is routed here for all.
#[test]
fn packets_for_a_vip_are_seen_whichever_of_its_services_counted_them() {
    let mut config = config("l2-dsr");
    let mut second = config.services[0].clone();
    (second.name, second.vips[0].port) = ("web-tls".into(), 443);
    config.services.push(second);
    let mut facts = Facts { local_vips: Vec::new(), ..well(true) };
    let is_noted = |facts: &Facts| found(&config, facts).contains(&("vip_route".into(), Weight::Note));
    assert!(is_noted(&facts));
    facts.counted.insert("web-tls".into());
    assert!(!is_noted(&facts), "the first one of the address has counted none");
}

#[test]
fn questions_and_answers_survive_the_wire() {
    let (own, its) = ([2, 0, 0, 0, 0, 2], WEB1);
    let request = arp_request(own, "10.0.1.2".parse().unwrap(), "203.0.113.10".parse().unwrap());
    assert_eq!((request.len(), arp_answer(&request)), (42, None), "a question is no answer");
    let mut reply = request;
    reply[21] = 2;
    assert_eq!(arp_answer(&reply), Some(("10.0.1.2".parse().unwrap(), own)));

    for (from, vip) in [("10.0.1.2:20000", "203.0.113.10:80"), ("[fd00::2]:20000", "[2001:db8::10]:80")] {
        let (from, vip): (SocketAddr, SocketAddr) = (from.parse().unwrap(), vip.parse().unwrap());
        let syn = opening((own, its), from, vip).unwrap();
        assert_eq!(answer(&syn), None, "a question is no answer");
        let wanted = Answer { vip, to: from, accepted: true, acknowledged: 2 };
        let reset = wanted.reset((own, its)).unwrap();
        // Seen from the other side, a reset is a refusal.
        let refusal = Answer { vip: from, to: vip, accepted: false, acknowledged: 0 };
        assert_eq!(answer(&reset), Some(refusal));

        let request = ping((own, its), from.ip(), vip.ip(), 7).unwrap();
        assert_eq!(ping_seen(&request, own, 7), None, "our own is not one that came back");
        assert_eq!(ping_seen(&request, its, 7), Some(vip.ip()), "one that came back");
        assert_eq!(ping_seen(&request, its, 8), None);
    }
    assert_eq!(opening((own, its), "10.0.1.2:1".parse().unwrap(), "[::1]:2".parse().unwrap()), None);
}
