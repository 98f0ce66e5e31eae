//! Health as customers see it: encrypted checks and the reason of each failure, slow starts, flapping, and what becomes of a drained
//! server that fails.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{Agent, HttpConnection, Lab, TcpEcho, wait_until};

use crate::checks::{PATIENCE, QUICK, Service, configuration, health_of, wait_for, webs};

/// Where a server's health can be switched on and off while its web server goes on.
const SWITCH_PORT: u16 = 9_100;

#[test]
fn https_looks_at_the_certificate_and_http_at_the_body() {
    let lab = Lab::builder().web_servers(1).app_servers(1).start().expect("a lab");
    let authority = lab.authority().to_str().expect("a path").to_owned();
    let shop = "host = \"shop.example\"\n";
    let trusted = format!("ca = \"{authority}\"\n");
    let https = "type = \"https\"\nport = 443\npath = \"/healthz\"\n";
    let http = "type = \"http\"\nport = 80\npath = \"/healthz\"\n";
    let checks = [
        ("good", format!("{https}{shop}{trusted}"), ""),
        ("with-body", format!("{https}{shop}{trusted}body = \"ok\""), ""),
        ("unverified", format!("{https}verify = false"), ""),
        (
            "stranger",
            format!("{https}{shop}"),
            "TLS: its certificate comes from no authority that is trusted here",
        ),
        (
            "other-name",
            format!("{https}{trusted}host = \"other.example\""),
            "TLS: its certificate is not for other.example",
        ),
        ("no-name", format!("{https}{trusted}"), "TLS: its certificate is not for 10.0.1.11"),
        ("no-tls", "type = \"https\"\nport = 80\nverify = false".to_owned(), "TLS: the answer is no TLS"),
        ("body", format!("{http}body = \"ok\""), ""),
        (
            "other-body",
            format!("{http}body = \"fine\""),
            "the body does not contain \"fine\" (its first 3 bytes",
        ),
        ("statuses", format!("{http}expect = \"204,300-399\""), "status 200 (expected 204,300-399)"),
    ];
    let vips: Vec<[SocketAddr; 1]> = (0..10).map(|n| [lab.vip(8_001 + n)]).collect();
    let service = |((name, health, _), vips)| {
        let (name, health, vips): (&&str, &String, &[SocketAddr; 1]) = (name, health, vips);
        Service { name, vips, forwarding: "l2-dsr", health, backends: webs(&lab, false) }
    };
    let services: Vec<_> = checks
        .iter()
        .zip(&vips)
        .map(|((name, health, reason), vips)| service(((name, health, reason), vips)))
        .collect();
    let agent = lab.start_agent(&configuration(&services)).expect("an agent");
    for (name, _, reason) in &checks {
        let health = if reason.is_empty() { "healthy" } else { "unhealthy" };
        wait_for(&agent, name, "web1", health, reason);
    }
    // An authority that cannot be read is no reason to change anything.
    let broken = configuration(&services).replace(&authority, "/nowhere/ca.pem");
    let file = lab.directory().join("broken.toml");
    std::fs::write(&file, broken).expect("a file");
    let applied = lab.sluice(&["apply", file.to_str().expect("a path")]).expect("sluice");
    let said = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert_eq!(applied.status.code(), Some(1), "{said}");
    assert!(said.contains("service good: health.ca: /nowhere/ca.pem: No such file"), "{said}");
    let tried = lab.sluice(&["apply", file.to_str().expect("a path"), "--dry-run"]).expect("sluice");
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(said.contains("would be refused: service good: health.ca: /nowhere/ca.pem"), "{said}");
    assert_eq!(health_of(&agent, "good", "web1").0, "healthy");
}

fn share(agent: &Agent<'_>, backend: &str) -> f64 {
    agent.backend("web", backend).expect("a backend")["ring_share"].as_f64().expect("a share")
}

/// A connection with this server, from the first of these ports that leads there.
fn shopper(lab: &Lab, server: &str, ports: &mut impl Iterator<Item = u16>) -> HttpConnection {
    loop {
        let port = ports.next().expect("a port");
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        if connection.get("/").expect("an answer").served_by() == server {
            return connection;
        }
    }
}

#[test]
fn a_recovered_server_gets_its_share_back_in_steps_that_move_no_connection() {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    let vips = [lab.vip(80)];
    let health = "type = \"http\"\nport = 80\npath = \"/healthz\"\nslow_start = \"6s\"\n";
    // Of weight 1 each: there is no smaller weight, and steps there are.
    let light = webs(&lab, false).into_iter().map(|(name, address, _)| (name, address, "weight = 1"));
    let backends = light.collect();
    let service = Service { name: "web", vips: &vips, forwarding: "l2-dsr", health, backends };
    let config = configuration(&[service]);
    let agent = lab.start_agent(&config).expect("an agent");
    wait_for(&agent, "web", "web1", "healthy", "");
    wait_for(&agent, "web", "web2", "healthy", "");
    assert!((share(&agent, "web1") - 0.5).abs() < 0.01, "no slow start at the beginning");
    lab.web(0).stop_nginx().expect("kill");
    wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
    let mut ports = 26_000..30_000;
    let mut shoppers: Vec<_> = (0..40).map(|_| shopper(&lab, "web2", &mut ports)).collect();
    lab.web(0).start_nginx().expect("start");
    let mut shares = Vec::new();
    wait_until("web1 has its share", PATIENCE, || {
        let now = share(&agent, "web1");
        if shares.last() != Some(&now) {
            shares.push(now);
        }
        for shopper in &mut shoppers {
            assert_eq!(shopper.get("/").expect("an answer").served_by(), "web2", "{shares:?}");
        }
        (now - 0.5).abs() < 0.01
    })
    .unwrap_or_else(|error| panic!("{error}: {shares:?}\n{}", agent.log()));
    assert!(shares.is_sorted(), "{shares:?}");
    let steps = shares.iter().filter(|share| (0.01..0.49).contains(*share)).count();
    assert!(steps >= 4, "{shares:?}");
    // Who is no longer checked recovers from nothing.
    lab.web(0).stop_nginx().expect("kill");
    wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
    lab.web(0).start_nginx().expect("start");
    wait_until("web1 has a part of its share", PATIENCE, || (0.01..0.4).contains(&share(&agent, "web1")))
        .expect("in time");
    let unchecked = lab.directory().join("unchecked.toml");
    std::fs::write(&unchecked, config.replace(health, "type = \"none\"\n")).expect("a file");
    let applied = agent.sluice(&["apply", &unchecked.display().to_string()]).expect("apply");
    assert!(applied.status.success(), "{applied:?}");
    assert!((share(&agent, "web1") - 0.5).abs() < 0.01, "{}", share(&agent, "web1"));
}

#[test]
fn a_dry_run_does_not_take_a_server_for_the_one_before_it() {
    let lab = Lab::builder().web_servers(3).app_servers(1).start().expect("a lab");
    let vips = [lab.vip(80)];
    let config = |first: usize| {
        let mut backends = webs(&lab, false);
        backends[0].1 = lab.web(first).address().into();
        backends.truncate(2);
        let health = "type = \"http\"\nport = 80\npath = \"/healthz\"\n";
        configuration(&[Service { name: "web", vips: &vips, forwarding: "l2-dsr", health, backends }])
    };
    let agent = lab.start_agent(&config(0)).expect("an agent");
    wait_for(&agent, "web", "web2", "healthy", "");
    lab.web(0).stop_nginx().expect("kill");
    wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
    let other = lab.directory().join("other.toml");
    std::fs::write(&other, config(2)).expect("a file");
    let dry =
        agent.sluice(&["apply", &other.display().to_string(), "--dry-run", "-o", "json"]).expect("dry run");
    let dry: serde_json::Value = serde_json::from_slice(&dry.stdout).expect("JSON");
    let moved = dry["rings"][0]["slots_changed"].as_f64().expect("a share");
    assert!((moved - 0.5).abs() < 0.01, "{dry}");
}

#[test]
fn a_flapping_server_is_held_down_and_says_so() {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    let vips = [lab.vip(80)];
    let health = format!("type = \"tcp\"\nport = {SWITCH_PORT}\n");
    let service = Service {
        name: "web",
        vips: &vips,
        forwarding: "l2-dsr",
        health: &health,
        backends: webs(&lab, false),
    };
    let config = configuration(&[service]).replace("hold_down = \"0s\"", "hold_down = \"2s\"");
    let switch = SocketAddr::from((lab.web(0).address(), SWITCH_PORT));
    let up = || TcpEcho::start(lab.web(0), switch).expect("a server");
    let other = SocketAddr::from((lab.web(1).address(), SWITCH_PORT));
    let _other = TcpEcho::start(lab.web(1), other).expect("a server");
    let mut running = Some(up());
    let agent = lab.start_agent(&config).expect("an agent");
    wait_for(&agent, "web", "web1", "healthy", "");
    wait_for(&agent, "web", "web2", "healthy", "");
    for (flaps, times) in
        [(0, ""), (1, "it fell once soon after"), (2, "it fell 2 times in a row soon after")]
    {
        drop(running.take());
        wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
        running = Some(up());
        if flaps > 0 {
            // Its checks succeed, and yet.
            wait_until("it is held down", PATIENCE, || {
                let (health, reason) = health_of(&agent, "web", "web1");
                health == "unhealthy" && reason.starts_with("held down for ") && reason.contains(times)
            })
            .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
            assert_eq!(share(&agent, "web1"), 0.0);
        }
        wait_for(&agent, "web", "web1", "healthy", "");
    }
    let log = agent.log();
    assert!(
        log.contains("it flaps: held down for 2s") && log.contains("it flaps: held down for 4s"),
        "{log}"
    );
}

#[test]
fn a_drained_server_that_fails_is_given_up() {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    let vips = [lab.vip(80)];
    let health = format!("type = \"tcp\"\nport = {SWITCH_PORT}\n");
    let service = Service {
        name: "web",
        vips: &vips,
        forwarding: "l2-dsr",
        health: &health,
        backends: webs(&lab, false),
    };
    let config = configuration(&[service]);
    let up = |web: usize| {
        TcpEcho::start(lab.web(web), SocketAddr::from((lab.web(web).address(), SWITCH_PORT)))
            .expect("a server")
    };
    let (mut first, _second) = (Some(up(0)), up(1));
    let agent = lab.start_agent(&config).expect("an agent");
    wait_for(&agent, "web", "web1", "healthy", "");
    wait_for(&agent, "web", "web2", "healthy", "");
    let mut kept = shopper(&lab, "web1", &mut (26_000..30_000));
    // Its checks fail, but it serves on: connections stay.
    drop(first.take());
    wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
    assert_eq!(kept.get("/").expect("an answer").served_by(), "web1", "unhealthy");
    first = Some(up(0));
    wait_for(&agent, "web", "web1", "healthy", "");
    let drained = config.replace("address = \"10.0.1.11\"", "address = \"10.0.1.11\"\nstate = \"drain\"");
    assert_ne!(drained, config);
    let file = lab.directory().join("drained.toml");
    std::fs::write(&file, drained).expect("a file");
    let applied = lab.sluice(&["apply", file.to_str().expect("a path")]).expect("sluice");
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(kept.get("/").expect("an answer").served_by(), "web1", "drained");
    drop(first.take());
    wait_for(&agent, "web", "web1", "unhealthy", "connection refused");
    assert!(
        kept.get("/").is_err(),
        "drained and unhealthy: web1 has no packets any more, and web2 knows no such connection"
    );
    let answer = HttpConnection::open(lab.customer(), lab.vip(80), None)
        .expect("connect")
        .get("/")
        .expect("an answer");
    assert_eq!(answer.served_by(), "web2");
}

/// How many backends of one service.
const MANY: u16 = 1_000;

/// Checks that have been made, by the metrics.
fn checks_made(lab: &Lab) -> u64 {
    let metrics = lab.edge().curl(&["http://127.0.0.1:9400/metrics"]).expect("metrics");
    let text = metrics.text();
    let counts = text.lines().filter(|line| line.starts_with("sluice_probe_duration_seconds_count"));
    counts
        .map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a count"))
        .sum()
}

#[test]
fn a_thousand_backends_are_checked_in_time() {
    let lab = Lab::builder().web_servers(1).app_servers(1).start().expect("a lab");
    // Behind one address: no table of neighbours is asked to hold a thousand.
    lab.web(0).ip("route add local 10.7.0.0/16 dev lo").expect("addresses");
    lab.edge().ip(&format!("route add 10.7.0.0/16 via {}", lab.web(0).address())).expect("a route");
    let vips = [lab.vip(80)];
    let address = |n: u16| IpAddr::from([10, 7, (n / 250) as u8, (n % 250 + 1) as u8]);
    let backends = || (0..MANY).map(|n| (format!("b{n}"), address(n), "")).collect();
    for kind in ["tcp", "http"] {
        let health = format!("type = \"{kind}\"\n");
        let service =
            Service { name: "web", vips: &vips, forwarding: "ipip", health: &health, backends: backends() };
        let standard = "interval = \"2s\"\ntimeout = \"1s\"\n";
        let config = configuration(&[service]).replace(QUICK, standard);
        let config = config.replace("[agent]", "[agent]\nmetrics = \"127.0.0.1:9400\"");
        let agent = lab.start_agent(&config).expect("an agent");
        wait_until("all are healthy", PATIENCE, || {
            agent.service("web").is_ok_and(|web| web["status"] == "healthy")
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
        let before = checks_made(&lab);
        wait_until("three more rounds of checks", PATIENCE, || {
            checks_made(&lab) - before > 3 * u64::from(MANY)
        })
        .expect(kind);
        assert_eq!(agent.service("web").expect("web")["status"], "healthy", "{kind}: none was late");
        agent.terminate().expect("end");
    }
}
