//! Health checks through the forwarding path: what they find, and what they go on through.

use std::net::IpAddr;

use aya::programs::{SchedClassifier, TcAttachType};
use lb_tests::{Agent, Lab};

use crate::checks::{Service, configuration, health_of, wait_for, webs};

fn set_vip(lab: &Lab, web: usize, verb: &str, vip: IpAddr) {
    let length = if vip.is_ipv4() { "32" } else { "128 nodad" };
    let length = if verb == "del" { length.trim_end_matches(" nodad") } else { length };
    lab.web(web).ip(&format!("addr {verb} {vip}/{length} dev lo")).expect("an address");
}

const THROUGH: &str = "type = \"http\"\nport = 80\npath = \"/healthz\"\nvia = \"vip\"\n";

#[test]
fn a_check_through_the_vip_finds_a_loopback_without_it() {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    let vips = lab.both_vips(80);
    let services = [
        Service {
            name: "v4",
            vips: &vips,
            forwarding: "l2-dsr",
            health: THROUGH,
            backends: webs(&lab, false),
        },
        Service {
            name: "v6",
            vips: &lab.both_vips(443),
            forwarding: "l2-dsr",
            health: THROUGH,
            backends: webs(&lab, true),
        },
    ];
    let config = configuration(&services);
    // The VIPs are routed to the edge host, or they are its own; checks find their way in both.
    for own in [false, true] {
        if own {
            let [v4, v6] = vips.map(|vip| vip.ip());
            lab.edge()
                .ip(&format!("addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad"))
                .expect("VIPs");
        }
        let agent = lab.start_agent(&config).expect("an agent");
        for (service, vip) in ["v4", "v6"].into_iter().zip(vips.map(|vip| vip.ip())) {
            wait_for(&agent, service, "web1", "healthy", "");
            wait_for(&agent, service, "web2", "healthy", "");
            assert_eq!(programs_beside(&lab), 2);
            set_vip(&lab, 0, "del", vip);
            let missing = format!("no answer for VIP {vip} within 300ms, though ");
            wait_for(&agent, service, "web1", "unhealthy", &missing);
            wait_for(
                &agent,
                service,
                "web1",
                "unhealthy",
                "itself answers: the VIP is missing on its loopback interface",
            );
            assert_eq!(health_of(&agent, service, "web2").0, "healthy", "own {own}");
            set_vip(&lab, 0, "add", vip);
            wait_for(&agent, service, "web1", "healthy", "");
        }
        lab.web(0).stop_nginx().expect("kill");
        wait_for(&agent, "v4", "web1", "unhealthy", "connection refused");
        lab.web(0).start_nginx().expect("start");
        lab.web(0).link_down("eth0").expect("pull");
        wait_for(&agent, "v4", "web1", "unhealthy", "neither to VIP 203.0.113.10 nor to 10.0.1.11 itself");
        lab.web(0).link_up("eth0").expect("plug in");
        wait_for(&agent, "v4", "web1", "healthy", "");
        agent.terminate().expect("end");
    }
    assert_eq!(programs_beside(&lab), 0, "programs are left on the edge host's side");
}

/// A web server without its VIP is found, and found to have it again.
fn checks_go_through(agent: &Agent<'_>, lab: &Lab) {
    wait_for(agent, "web", "web1", "healthy", "");
    set_vip(lab, 0, "del", lab.vip(80).ip());
    wait_for(agent, "web", "web1", "unhealthy", "the VIP is missing on its loopback interface");
    set_vip(lab, 0, "add", lab.vip(80).ip());
    wait_for(agent, "web", "web1", "healthy", "");
}

#[test]
fn checks_through_the_vip_go_on_in_new_tables_and_with_generic_xdp() {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    let vips = [lab.vip(80)];
    let backends = webs(&lab, false);
    let config = configuration(&[Service {
        name: "web",
        vips: &vips,
        forwarding: "l2-dsr",
        health: THROUGH,
        backends,
    }]);
    let agent = lab.start_agent(&config).expect("an agent");
    checks_go_through(&agent, &lab);
    let other = lab.directory().join("other.toml");
    for size in ["131072", "65536"] {
        std::fs::write(&other, config.replace("65536", size)).expect("a file");
        let applied = agent.sluice(&["apply", other.to_str().expect("a path")]).expect("apply");
        assert!(applied.status.success(), "{applied:?}");
        checks_go_through(&agent, &lab);
    }
    // A change that would need new tables, and is refused.
    let refused =
        config.replace("65536", "131072").replace("[agent]\n", "[agent]\nmetrics = \"192.0.2.77:9400\"\n");
    std::fs::write(&other, refused).expect("a file");
    let applied = agent.sluice(&["apply", other.to_str().expect("a path")]).expect("apply");
    assert!(String::from_utf8_lossy(&applied.stderr).contains("192.0.2.77:9400"), "{applied:?}");
    checks_go_through(&agent, &lab);
    agent.terminate().expect("end");
    assert!(
        lab.sluice(&["detach", "--pin-dir", lab.pins().to_str().expect("a path")])
            .expect("detach")
            .status
            .success()
    );
    let agent = lab.start_agent(&config.replace("driver", "generic")).expect("an agent");
    checks_go_through(&agent, &lab);
    agent.terminate().expect("end");
}

#[test]
fn a_check_through_a_tunnel_finds_what_is_missing_at_its_end() {
    let lab = Lab::builder().web_servers(1).app_servers(1).backend_mtu(1_600).start().expect("a lab");
    let vips = lab.both_vips(80);
    let service = |name, forwarding, v6| Service {
        name,
        vips: &vips[usize::from(v6)..][..1],
        forwarding,
        health: THROUGH,
        backends: webs(&lab, v6),
    };
    let from = lab.edge().both_addresses().map(|address| address.to_string()).join(",");
    for forwarding in ["ipip", "gue"] {
        let services = [service("v4", forwarding, false), service("v6", forwarding, true)];
        let agent = lab.start_agent(&configuration(&services)).expect("an agent");
        let refused = format!("refuses {forwarding} tunnels: nothing takes them off there");
        for name in ["v4", "v6"] {
            wait_for(&agent, name, "web1", "unhealthy", &refused);
        }
        let decaps = lab.start_decap_on_webs(&["--from", &from]).expect("sluice decap");
        for (name, vip) in ["v4", "v6"].into_iter().zip(vips.map(|vip| vip.ip())) {
            wait_for(&agent, name, "web1", "healthy", "");
            set_vip(&lab, 0, "del", vip);
            let missing =
                format!("does not refuse {forwarding} tunnels: the VIP is missing on its loopback interface");
            wait_for(&agent, name, "web1", "unhealthy", &missing);
            set_vip(&lab, 0, "add", vip);
            wait_for(&agent, name, "web1", "healthy", "");
        }
        drop(decaps);
        for name in ["v4", "v6"] {
            wait_for(&agent, name, "web1", "unhealthy", &refused);
        }
        agent.terminate().expect("end");
    }
}

/// How many programs are on the host's side of the edge host's interface.
fn programs_beside(lab: &Lab) -> usize {
    let count = |side| SchedClassifier::query_tcx("eth0", side).expect("tcx").1.len();
    lab.edge().run(|| count(TcAttachType::Egress) + count(TcAttachType::Ingress)).expect("run")
}
