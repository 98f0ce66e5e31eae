//! Many services and backends: what the agent takes for them, and that it serves and changes them like few.

use std::fmt::Write;
use std::fs;

use lb_tests::{Agent, Lab};
use serde_json::Value;

const MIB: u64 = 1_024;

/// A configuration of so many services with so many backends each, behind a gateway that the lab's edge host knows.
fn config(lab: &Lab, services: usize, backends: usize) -> String {
    let gateway = "10.0.1.254";
    let ways = format!(
        "neigh replace {gateway} lladdr 02:00:00:00:00:fe dev eth0 nud permanent\n\
         route replace 10.99.0.0/16 via {gateway} dev eth0\n"
    );
    lab.edge().ip(&ways).expect("a way to the backends");
    let mut text = "[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\n".to_owned();
    let mut number = 0_u16;
    for service in 0..services {
        let [high, low] = (service as u16).to_be_bytes();
        let vip = format!("203.0.{high}.{low}:80");
        write!(
            text,
            "\n[[service]]\nname = \"service{service}\"\nvips = [\"{vip}\"]\nforwarding = \"ipip\"\n"
        )
        .expect("text");
        text.push_str("\n[service.health]\ntype = \"none\"\n");
        for backend in 0..backends {
            number += 1;
            let [high, low] = number.to_be_bytes();
            let address = format!("10.99.{high}.{low}");
            write!(text, "\n[[service.backend]]\nname = \"web{backend}\"\naddress = \"{address}\"\n")
                .expect("text");
        }
    }
    text
}

/// The memory that the agent has, in KiB, with the pages of maps and files that it shares.
fn memory(agent: &Agent<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn done(lab: &Lab, command: &str) -> Value {
    let output = lab.sluice(&command.split(' ').collect::<Vec<_>>()).expect("sluice");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Has the agent do what it does, and asks what it took.
fn takes(services: usize, backends: usize, most: u64) {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_agent(&config(&lab, services, backends)).expect("an agent");
    let last = format!("service{}", services - 1);
    let report = done(&lab, &format!("backend set-weight {last} web1 300 -o json"));
    assert_eq!((&report["changes"][0]["after"], &report["actions"]), (&"300".into(), &3.into()), "{report}");
    assert_eq!(report["rings"][0]["service"], last, "{report}");
    done(&lab, &format!("backend drain {last} web0 -o json"));
    let path = lab.config_file().display().to_string();
    let again = done(&lab, &format!("apply {path} -o json"));
    assert_eq!((&again["actions"], &again["revision"]), (&0.into(), &3.into()), "{again}");
    let status = agent.status().expect("status");
    let found = status["services"].as_array().expect("services");
    assert_eq!(found.len(), services);
    let shares = found.iter().flat_map(|service| service["backends"].as_array()).flatten();
    let shares: Vec<f64> = shares.filter_map(|backend| backend["ring_share"].as_f64()).collect();
    assert_eq!(shares.len(), services * backends);
    assert!((shares.iter().sum::<f64>() - services as f64).abs() < 1e-6, "each service has its ring");
    let took = memory(&agent);
    assert!(took < most * MIB, "{took} KiB with {services} services");
}

#[test]
fn ten_services_take_less_than_24_mib() {
    takes(10, 5, 24);
}

#[test]
fn five_hundred_services_with_ten_thousand_backends_take_less_than_64_mib() {
    takes(500, 20, 64);
}
