//! Many services and backends: what the agent takes for them, and that it serves and changes them like few.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lb_tests::{Agent, Daemon, Lab, wait_until};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const MIB: u64 = 1_024;
const PATIENCE: Duration = Duration::from_secs(60);
/// No checks, for tests of all else.
const NONE: &str = "type = \"none\"";

/// A configuration of so many services with so many backends each, behind a gateway that the lab's edge host knows.
fn config(lab: &Lab, services: usize, backends: usize, health: &str) -> String {
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
        write!(text, "\n[service.health]\n{health}\n").expect("text");
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
    in_status(agent, "VmRSS:")
}

/// The most that it had since [`forget_peak`].
fn peak(agent: &Agent<'_>) -> u64 {
    in_status(agent, "VmHWM:")
}

fn forget_peak(agent: &Agent<'_>) {
    fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5").expect("the process");
}

fn in_status(agent: &Agent<'_>, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect(key);
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
    let agent = lab.start_agent(&config(&lab, services, backends, NONE)).expect("an agent");
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
    eprintln!("{took} KiB with {services} services");
}

#[test]
fn ten_services_take_less_than_24_mib() {
    takes(10, 5, 24);
}

#[test]
fn five_hundred_services_with_ten_thousand_backends_take_less_than_64_mib() {
    takes(500, 20, 64);
}

/// Whoever reads the metrics slowly, and they are some megabytes, does so while changes go on.
#[test]
fn a_slow_scrape_of_ten_thousand_backends_holds_no_change_up() {
    let lab = Lab::builder().start().expect("a lab");
    let text = config(&lab, 500, 20, NONE).replace("[agent]\n", "[agent]\nmetrics = \"127.0.0.1:9400\"\n");
    let agent = lab.start_agent(&text).expect("an agent");
    // With little room on this side and at most 4 MiB on the other, the kernel takes in less than half of them.
    let mut scrape = lab.edge().run(slow_reader).expect("run").expect("a connection");
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n").expect("a request");
    let mut answer = vec![0];
    scrape.read_exact(&mut answer).expect("the metrics begin to come");
    for weight in [10, 20, 30] {
        let report = done(&lab, &format!("backend set-weight service499 web1 {weight} -o json"));
        assert_eq!(report["changes"][0]["after"], weight.to_string(), "{report}");
    }
    assert_eq!(agent.backend("service499", "web1").expect("web1")["weight"], 30);
    scrape.read_to_end(&mut answer).expect("the rest of them");
    assert!(answer.len() > 6 << 20, "{} bytes", answer.len());
    let text = String::from_utf8(answer).expect("text");
    let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!((of("sluice_backend_healthy{"), of("sluice_service_packets_total{")), (10_000, 500));
    assert!(text.ends_with("# EOF\n"), "it is whole");
}

/// A connection to the metrics' port that has little room for what comes.
fn slow_reader() -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(16 << 10)?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, 9_400)).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Eight who ask at the same time, again and again.
#[test]
fn ten_thousand_backends_asked_for_all_the_time_take_less_than_64_mib() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_agent(&config(&lab, 500, 20, NONE)).expect("an agent");
    forget_peak(&agent);
    let ask = || {
        let mut answer = Vec::new();
        let mut socket = UnixStream::connect(lab.socket()).expect("the socket");
        let question = b"GET /v1/status HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n";
        socket.write_all(question).expect("sent");
        socket.read_to_end(&mut answer).expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 2 << 20, "{} bytes", answer.len());
    };
    let asked = std::thread::scope(|threads| {
        let all: Vec<_> = (0..8).map(|_| threads.spawn(|| (0..25).for_each(|_| ask()))).collect();
        all.into_iter().map(|one| one.join().expect("all are answered")).count()
    });
    let most = peak(&agent);
    assert!(most < 64 * MIB, "{most} KiB while {asked} asked for the status");
    eprintln!("{most} KiB while {asked} asked for the status");
}

/// Each check of ten thousand runs into its timeout, and half of them wait for that at any time.
#[test]
fn ten_thousand_checks_that_fail_take_less_than_64_mib() {
    let lab = Lab::builder().start().expect("a lab");
    // Its times are such that a slow machine is busy, and not overwhelmed.
    let health = "type = \"http\"\ninterval = \"10s\"\ntimeout = \"5s\"\nfall = 1";
    let agent = lab.start_agent(&config(&lab, 500, 20, health)).expect("an agent");
    let ill = |status: &Value| {
        let services = status["services"].as_array().into_iter().flatten();
        let backends = services.flat_map(|service| service["backends"].as_array()).flatten();
        backends.filter(|backend| backend["health"] == "unhealthy").count()
    };
    let mut most = 0;
    wait_until("all are known to be ill", PATIENCE, || {
        most = most.max(memory(&agent));
        ill(&agent.status().expect("status")) == 10_000
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    // And two rounds of checks more.
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        most = most.max(memory(&agent));
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = &agent.status().expect("status")["services"][499]["backends"][19]["reason"];
    assert!(text.as_str().is_some_and(|reason| reason.contains("no connection within 5s")), "{text}");
    assert!(most < 64 * MIB, "{most} KiB with 10,000 checks that fail");
    eprintln!("{most} KiB with 10,000 checks that fail");
}

/// What is needed for a moment is given back, and is not much.
#[test]
fn captures_and_changes_of_sizes_take_less_than_24_mib_with_ten_services() {
    let lab = Lab::builder().start().expect("a lab");
    let text = config(&lab, 10, 5, NONE);
    let agent = lab.start_agent(&text).expect("an agent");
    let before = memory(&agent);
    forget_peak(&agent);
    let mut during = Vec::new();
    for number in 0..3 {
        let mut command = lab.sluice_command().expect("sluice");
        command.args(["capture", "--duration", "1s", "-w"]).arg(lab.directory().join("packets.pcapng"));
        let log = lab.directory().join(format!("capture{number}.log"));
        let mut capture = Daemon::spawn(command, "a capture", &log).expect("a capture");
        wait_until("it captures", PATIENCE, || capture.log().contains("capturing on")).expect("a capture");
        during.push(memory(&agent));
        assert!(capture.wait(PATIENCE).expect("an end").success(), "{}", capture.log());
    }
    let (captured, peak) = (memory(&agent), peak(&agent));
    for size in [131_072, 65_536, 262_144] {
        let text = text.replace("[agent]\n", &format!("[agent]\nflow_table_size = {size}\n"));
        let other = lab.directory().join("other.toml");
        fs::write(&other, text).expect("write");
        done(&lab, &format!("apply {} -o json", other.display()));
    }
    let resized = memory(&agent);
    let most = during.iter().copied().fold(captured.max(resized), u64::max);
    let told = format!(
        "{before} KiB, {during:?} while it captured, {peak} at most, {captured} then, {resized} after changes of sizes"
    );
    assert!(most.max(peak) < 24 * MIB, "{told}");
    eprintln!("{told}");
}
