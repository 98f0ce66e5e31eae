//! What the metrics say of CPUs and interfaces is what the lab sent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use lb_tests::{Agent, Lab, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const UDP_PORT: u16 = 5_300;
/// What is sent by each CPU, times its number and one more: not more at once than a veth's ring takes.
const BURST: u64 = 200;
const ATTEMPTS: usize = 5;

fn by_cpu(status: &Value) -> BTreeMap<u64, u64> {
    let cpus = status["cpus"].as_array().expect("cpus");
    let number = |stats: &Value, key: &str| stats[key].as_u64().expect("a number");
    cpus.iter().map(|stats| (number(stats, "cpu"), number(stats, "packets"))).collect()
}

fn verdicts(status: &Value) -> u64 {
    let verdicts = status["verdicts"].as_object().expect("verdicts");
    verdicts.values().filter_map(Value::as_u64).sum()
}

fn received(status: &Value) -> [u64; 4] {
    let received = &status["agent"]["interfaces"][0]["received"];
    ["packets", "bytes", "dropped", "errors"].map(|key| received[key].as_u64().expect("a number"))
}

/// Sends datagrams to the VIP, all on one CPU: the veth hands each over on the CPU that sent it.
fn send_on(lab: &Lab, cpu: usize, to: SocketAddr, count: u64) {
    let send = || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus)).expect("this CPU");
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for _ in 0..count {
            assert_eq!(socket.send_to(&[7; 100], to).expect("sent"), 100);
        }
    };
    lab.customer().run(send).expect("run");
}

/// The packets of a service, once so many have come.
fn wait_for(agent: &Agent<'_>, packets: u64) -> Value {
    wait_until("all packets are counted", PATIENCE, || {
        agent.service("udp").is_ok_and(|service| service["packets"] == packets)
    })
    .unwrap_or_else(|error| panic!("{error}: {packets} for {:?}", agent.service("udp")));
    agent.status().expect("status")
}

fn is_whole(status: &Value) {
    assert_eq!(
        by_cpu(status).values().sum::<u64>(),
        verdicts(status),
        "{}: {}",
        status["cpus"],
        status["verdicts"]
    );
}

#[test]
fn packets_are_counted_by_the_cpu_and_the_interface_that_took_them() {
    let lab = Lab::builder().start().expect("a lab");
    let config = lab.config().udp(UDP_PORT).metrics();
    let agent = lab.start_healthy_agent(&config).expect("an agent");
    let vip = SocketAddr::new(lab.vip(80).ip(), UDP_PORT);

    let online = aya::util::online_cpus().expect("CPUs");
    let before = agent.status().expect("status");
    assert_eq!(
        by_cpu(&before).into_keys().collect::<Vec<_>>(),
        online.iter().map(|&cpu| cpu.into()).collect::<Vec<u64>>()
    );
    let mut sent = 0;
    for &cpu in &online {
        let count = BURST * (u64::from(cpu) + 1);
        // Where a check's packet comes in on another CPU meanwhile, that one takes what else is in the ring.
        let mut grown = 0;
        let counted_there = (0..ATTEMPTS).any(|_| {
            let on_cpu = |status: &Value| by_cpu(status)[&u64::from(cpu)];
            let so_far = on_cpu(&agent.status().expect("status"));
            send_on(&lab, cpu as usize, vip, count);
            sent += count;
            let status = wait_for(&agent, sent);
            is_whole(&status);
            grown = on_cpu(&status) - so_far;
            // Checks and neighbours' packets come in beside those that were sent.
            (count..count + BURST / 2).contains(&grown)
        });
        assert!(counted_there, "CPU {cpu} took {count}: {grown}");
    }
    let after = wait_for(&agent, sent);
    // In driver mode the veth counts what the program took from it, and everything that came meets a verdict.
    let seen = verdicts(&after) - verdicts(&before);
    let [packets, bytes, dropped, errors] =
        [0, 1, 2, 3].map(|at| received(&after)[at] - received(&before)[at]);
    assert!(seen >= sent && packets.abs_diff(seen) <= 2, "{packets} for {seen} verdicts");
    // IPv4 and UDP headers before 100 bytes; veth leaves Ethernet out.
    assert!(bytes >= sent * 128 && (dropped, errors) == (0, 0), "{bytes}, {dropped}, {errors}");

    no_change_moves_packets_to_another_cpu(&lab, &agent, &config.to_string());
    the_metrics_say_the_same(&lab, &agent);
}

/// Neither a backend that goes, nor tables that grow.
fn no_change_moves_packets_to_another_cpu(lab: &Lab, agent: &Agent<'_>, text: &str) {
    let before = agent.status().expect("status");
    let changes = |arguments: &[&str]| {
        let output = agent.sluice(arguments).expect("sluice");
        assert!(output.status.success(), "{output:?}");
        let status = agent.status().expect("status");
        is_whole(&status);
        let cpus = by_cpu(&status);
        for (cpu, packets) in by_cpu(&before) {
            assert!((packets..packets + BURST / 2).contains(&cpus[&cpu]), "CPU {cpu}: {packets}, {cpus:?}");
        }
    };
    changes(&["backend", "remove", "udp", "web1"]);
    let mut larger = text.to_owned();
    for number in 0..40 {
        write!(
            larger,
            "\n[[service]]\nname = \"more{number}\"\nvips = [\"203.0.113.99:{}\"]\n[service.health]\ntype = \"none\"\n\
             [[service.backend]]\nname = \"one\"\naddress = \"{}\"\n",
            1_000 + number,
            lab.web(0).address()
        )
        .expect("text");
    }
    let file = lab.directory().join("larger.toml");
    fs::write(&file, larger).expect("write");
    changes(&["apply", file.to_str().expect("a path")]);
    let events = agent.sluice(&["events", "-o", "json"]).expect("sluice");
    assert!(String::from_utf8_lossy(&events.stdout).contains("resized"), "the tables have grown: {events:?}");
}

fn the_metrics_say_the_same(lab: &Lab, agent: &Agent<'_>) {
    let mut last = String::new();
    wait_until("nothing comes in between", PATIENCE, || {
        let metrics = || lab.edge().curl(&["http://127.0.0.1:9400/metrics"]).expect("metrics").text();
        let text = metrics();
        let status = agent.status().expect("status");
        let [packets, bytes, dropped, errors] = received(&status);
        let mut lines: Vec<String> = (by_cpu(&status).iter())
            .map(|(cpu, packets)| format!("sluice_cpu_packets_total{{cpu=\"{cpu}\"}} {packets}"))
            .collect();
        lines.push("sluice_interface_attached{interface=\"eth0\",xdp_mode=\"driver\"} 1".to_owned());
        for (name, value) in
            [("packets", packets), ("bytes", bytes), ("dropped", dropped), ("errors", errors)]
        {
            lines.push(format!("sluice_interface_received_{name}_total{{interface=\"eth0\"}} {value}"));
        }
        let missing = lines.iter().find(|line| !text.lines().any(|found| found == *line));
        last = format!("{missing:?}: {text}");
        missing.is_none()
    })
    .unwrap_or_else(|error| panic!("{error}: {last}"));
}
