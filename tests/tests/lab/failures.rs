//! What fails, and what customers notice: a web server, all of them, the agent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lb_tests::{Agent, Host, HttpConnection, Lab, Load, VIP, wait_until};

/// What a busy machine may add to a failover: scheduling, the agent's own work, the status command.
const SLACK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

fn flow_on(load: &Load, requests: u64) {
    let before = load.done();
    wait_until("requests go on", PATIENCE, || load.done() >= before + requests).expect("load");
}

/// Who answers a number of new connections, each of which must succeed.
fn servers(lab: &Lab, connections: u16) -> BTreeSet<String> {
    let ask = |_| {
        let connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
        connection.get_and_close("/").expect("answer").served_by().to_owned()
    };
    (0..connections).map(ask).collect()
}

fn packets(agent: &Agent<'_>) -> u64 {
    agent.service("web").expect("service")["packets"].as_u64().expect("a count")
}

#[test]
fn a_killed_web_server_costs_no_more_than_the_time_to_see_it() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let start = Instant::now();
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    flow_on(&load, 100);
    let killed = start.elapsed();
    lab.web(0).stop_nginx().expect("kill");
    agent.wait_for_status("web", "degraded", Lab::FAILOVER + SLACK).expect("degraded");
    let backend = agent.backend("web", "web1").expect("backend");
    assert_eq!((&backend["health"], &backend["serving"]), (&"unhealthy".into(), &false.into()), "{backend}");
    assert_eq!(backend["ring_share"].as_f64(), Some(0.0), "{backend}");
    flow_on(&load, 300);
    let report = load.stop().expect("report");
    let last_failure = report.last_failure.unwrap_or_default();
    assert!(last_failure <= killed + Lab::FAILOVER + SLACK, "killed at {killed:?}: {report:?}");
    assert!(report.by_server.len() == 2, "both served before: {report:?}");
    assert_eq!(servers(&lab, 200), BTreeSet::from(["web2".to_owned()]));

    lab.web(0).start_nginx().expect("start");
    agent.wait_for_status("web", "healthy", PATIENCE).expect("healthy");
    assert_eq!(servers(&lab, 60).len(), 2, "web1 serves again");
}

#[test]
fn a_web_server_whose_cable_is_pulled_is_taken_out_too() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    lab.web(1).link_down("eth0").expect("pull");
    agent.wait_for_status("web", "degraded", Lab::FAILOVER + SLACK).expect("degraded");
    assert_eq!(servers(&lab, 100), BTreeSet::from(["web1".to_owned()]));
    lab.web(1).link_up("eth0").expect("plug in");
    agent.wait_for_status("web", "healthy", PATIENCE).expect("healthy");
    assert_eq!(servers(&lab, 60).len(), 2, "web2 serves again");
}

/// Whatever a server dies of, it costs what it was about to be sent, and no connection of another server.
#[test]
fn a_dead_server_costs_no_connection_of_another() {
    /// Something that is done to a server.
    type Deed = fn(&Host);
    let causes: [(&str, Deed, Deed); 3] = [
        (
            "its process is stopped",
            |web| web.stop_nginx().expect("stop"),
            |web| web.start_nginx().expect("start"),
        ),
        (
            "it cannot be reached",
            |web| web.link_down("eth0").expect("pull"),
            |web| web.link_up("eth0").expect("plug in"),
        ),
        (
            "the VIP is missing on its loopback interface",
            |web| web.ip(&format!("addr del {VIP}/32 dev lo")).expect("ip"),
            |web| web.ip(&format!("addr add {VIP}/32 dev lo")).expect("ip"),
        ),
    ];
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    // It dies often here, and is not to be held down for that.
    let keys = "port = 80\nvia = \"vip\"\nhold_down = \"0s\"\n";
    let through_vip = lab.config().to_string().replace("port = 80\n", keys);
    let agent = lab.start_agent(&through_vip).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    let victim = |key: &str| agent.backend("web", "web1").expect("web1")[key].clone();
    for (what, kill, cure) in causes.iter().cycle().take(2 * causes.len()) {
        let enter = |_| {
            let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
            let server = connection.get("/").expect("answer").served_by().to_owned();
            (connection, server)
        };
        let mut others: Vec<_> = (0..40).map(enter).filter(|(_, server)| server != "web1").collect();
        assert!(others.len() > 10, "{}", others.len());
        let mut served = |when: &str| {
            for (connection, server) in &mut others {
                let answer = connection.get("/").unwrap_or_else(|error| panic!("{what}: {when}: {error:#}"));
                assert_eq!(answer.served_by(), server, "{what}: {when}");
            }
        };
        kill(lab.web(0));
        let killed = Instant::now();
        wait_until("it is taken out", PATIENCE, || {
            served("meanwhile");
            victim("ring_share") == 0.0
        })
        .unwrap_or_else(|error| panic!("{what}: {error}\n{}", agent.log()));
        assert!(killed.elapsed() <= Lab::FAILOVER + SLACK, "{what}: after {:?}", killed.elapsed());
        let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
        flow_on(&load, 100);
        lab.transfer(lab.vip(80)).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let report = load.stop().expect("report");
        assert_eq!((report.failed, report.by_server.get("web1")), (0, None), "{what}: {report:?}");
        served("afterwards");
        cure(lab.web(0));
        agent.wait_for_status("web", "healthy", PATIENCE).expect(what);
    }
}

#[test]
fn with_all_servers_down_the_policy_decides() {
    for (policy, status, share) in [("fail-open", "failing-open", 0.5), ("drop", "down", 0.0)] {
        let lab = Lab::builder().start().expect("a lab");
        let agent = lab.start_healthy_agent(&lab.config().all_down(policy)).expect("an agent");
        lab.web(0).stop_nginx().expect("kill");
        lab.web(1).stop_nginx().expect("kill");
        agent.wait_for_status("web", status, Lab::FAILOVER + SLACK).expect(status);
        let backend = agent.backend("web", "web1").expect("backend");
        let seen = backend["ring_share"].as_f64().expect("share");
        assert!((seen - share).abs() < 0.01, "{policy}: {backend}");
        // The web server's host refuses at once what is forwarded to it; what is dropped finds no answer.
        let error = lab.customer().curl(&["--max-time", "1", "http://shop.example/"]).expect_err("no server");
        let refused = error.to_string().contains("refused") || error.to_string().contains("Couldn't connect");
        assert_eq!(refused, policy == "fail-open", "{policy}: {error}");
        let dropped = agent.status().expect("status")["verdicts"]["drop.no_backend"].as_u64().unwrap_or(0);
        assert_eq!(dropped > 0, policy == "drop", "{policy}: {dropped} dropped");
        lab.web(0).start_nginx().expect("start");
        lab.web(1).start_nginx().expect("start");
        agent.wait_for_status("web", "healthy", PATIENCE).expect("healthy");
        assert_eq!(servers(&lab, 60).len(), 2, "{policy}: both serve again");
    }
}

#[test]
fn a_killed_agent_costs_no_request() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let mut shopper = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
    let server = shopper.get("/").expect("answer").served_by().to_owned();
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    flow_on(&load, 200);
    let counted = packets(&agent);
    agent.kill9().expect("kill -9");
    flow_on(&load, 500);
    assert_eq!(shopper.get("/").expect("answer").served_by(), server, "without an agent");
    let agent = lab.start_healthy_agent(&lab.config()).expect("a new agent");
    flow_on(&load, 500);
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(shopper.get("/").expect("answer").served_by(), server, "with the new agent");
    // At least the requests made since: the new agent goes on counting where the old one stood.
    assert!(packets(&agent) > counted + 1_000, "{counted} packets before, {} now", packets(&agent));
    assert_eq!(report.by_server.len(), 2, "{report:?}");
}

#[test]
fn a_new_agent_sees_what_changed_while_there_was_none() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config().without("web3")).expect("an agent");
    agent.kill9().expect("kill -9");
    let agent = lab.start_healthy_agent(&lab.config().without("web1")).expect("a new agent");
    assert_eq!(servers(&lab, 100), BTreeSet::from(["web2".to_owned(), "web3".to_owned()]));
    agent.terminate().expect("end");
}

#[test]
fn an_agent_that_ends_leaves_traffic_flowing_and_detach_takes_all_away() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    flow_on(&load, 50);
    let status = agent.terminate().expect("end");
    assert!(status.success(), "{status}");
    flow_on(&load, 300);
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(servers(&lab, 60).len(), 2);

    let pins = lab.pins().to_str().expect("path").to_owned();
    let detached = lab.sluice(&["detach", "--pin-dir", &pins]).expect("sluice");
    assert!(detached.status.success(), "{detached:?}");
    let left = std::fs::read_dir(&pins).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(left, 0, "pins are left");
    assert!(lab.customer().curl(&["--max-time", "1", "http://shop.example/"]).is_err(), "still forwarding");
}
