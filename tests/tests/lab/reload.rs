//! Configurations come and go: by SIGHUP and by `apply`, without moving flows that need not move; wrong ones change
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use lb_tests::{Agent, HttpConnection, Lab, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);
const SHOPPERS: u16 = 60;

/// Connections that stay open, with the server that each began with.
struct Shoppers(Vec<(HttpConnection, String)>);

impl Shoppers {
    fn enter(lab: &Lab) -> Self {
        let connect = |port| {
            let mut connection =
                HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
            let server = connection.get("/").expect("answer").served_by().to_owned();
            (connection, server)
        };
        Self((25_000..25_000 + SHOPPERS).map(connect).collect())
    }

    fn by_server(&self) -> BTreeMap<&str, usize> {
        let mut count = BTreeMap::new();
        self.0.iter().for_each(|(_, server)| *count.entry(server.as_str()).or_default() += 1);
        count
    }

    /// Every connection still works and reaches the server it began with.
    fn still_served(&mut self, when: &str) {
        for (connection, server) in &mut self.0 {
            let answer = connection.get("/").unwrap_or_else(|error| panic!("{when}: {server}: {error:#}"));
            assert_eq!(answer.served_by(), server, "{when}");
        }
    }

    fn leave(&mut self, server: &str) {
        self.0.retain(|(_, its)| its != server);
    }
}

fn backends(agent: &Agent<'_>) -> BTreeSet<String> {
    let service = agent.service("web").expect("service");
    let list = service["backends"].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|backend| backend["name"].as_str().map(str::to_owned)).collect()
}

fn wait_for_backends(agent: &Agent<'_>, names: &[&str]) {
    let wanted: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_until("the backends are as configured", PATIENCE, || backends(agent) == wanted)
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", backends(agent), agent.log()));
    agent.wait_until_healthy().expect("healthy");
}

/// Who answers new connections.
fn servers(lab: &Lab) -> BTreeSet<String> {
    let ask = |_| {
        let connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
        connection.get_and_close("/").expect("answer").served_by().to_owned()
    };
    (0..100).map(ask).collect()
}

#[test]
fn a_reload_by_signal_moves_no_flow_that_need_not_move() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config().without("web3")).expect("an agent");
    let mut shoppers = Shoppers::enter(&lab);
    assert_eq!(shoppers.by_server().len(), 2);

    fs::write(lab.config_file(), lab.config().to_string()).expect("write");
    agent.sighup().expect("SIGHUP");
    wait_for_backends(&agent, &["web1", "web2", "web3"]);
    shoppers.still_served("web3 added");
    assert_eq!(servers(&lab).len(), 3, "new connections reach web3");

    fs::write(lab.config_file(), lab.config().without("web1").to_string()).expect("write");
    agent.sighup().expect("SIGHUP");
    wait_for_backends(&agent, &["web2", "web3"]);
    shoppers.leave("web1");
    shoppers.still_served("web1 removed");
    assert_eq!(servers(&lab), BTreeSet::from(["web2".to_owned(), "web3".to_owned()]));
}

#[test]
fn weights_move_new_flows_only() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let mut shoppers = Shoppers::enter(&lab);
    fs::write(lab.config_file(), lab.config().weights(&[0, 100]).to_string()).expect("write");
    agent.sighup().expect("SIGHUP");
    wait_until("the weight is 0", PATIENCE, || {
        agent.backend("web", "web1").is_ok_and(|backend| backend["weight"] == 0)
    })
    .expect("reload");
    shoppers.still_served("web1 has weight 0");
    assert_eq!(servers(&lab), BTreeSet::from(["web2".to_owned()]));

    fs::write(lab.config_file(), lab.config().state("web2", "drain").to_string()).expect("write");
    agent.sighup().expect("SIGHUP");
    wait_until("web2 drains", PATIENCE, || {
        agent.backend("web", "web2").is_ok_and(|backend| backend["state"] == "drain")
    })
    .expect("reload");
    shoppers.still_served("web2 drains");
    assert_eq!(servers(&lab), BTreeSet::from(["web1".to_owned()]));
}

#[test]
fn apply_makes_a_file_the_running_configuration() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config().without("web3")).expect("an agent");
    let mut shoppers = Shoppers::enter(&lab);
    let other = lab.directory().join("other.toml");
    let wanted = format!("# three servers since the sale\n{}", lab.config());
    fs::write(&other, &wanted).expect("write");
    let other = other.to_str().expect("path");

    let before = fs::read_to_string(lab.config_file()).expect("file");
    let dry = agent.sluice(&["apply", other, "--dry-run"]).expect("sluice");
    assert!(dry.status.success(), "{dry:?}");
    assert!(String::from_utf8_lossy(&dry.stdout).contains("web3"), "the difference is shown: {dry:?}");
    assert_eq!(backends(&agent).len(), 2, "a dry run changes nothing");
    assert_eq!(fs::read_to_string(lab.config_file()).expect("file"), before);

    let applied = agent.sluice(&["apply", other]).expect("sluice");
    assert!(applied.status.success(), "{applied:?}");
    wait_for_backends(&agent, &["web1", "web2", "web3"]);
    assert_eq!(fs::read_to_string(lab.config_file()).expect("file"), wanted, "the file says what runs");
    shoppers.still_served("web3 applied");
    assert_eq!(servers(&lab).len(), 3);
}

/// A configuration with one error for each of these paths.
const ERRORS: [&str; 5] = [
    "agent.colour",
    "service[0].vips",
    "service[0].backend[0].weight",
    "service[0].backend[1].address",
    "service[0].health.interval",
];
const WRONG: &str = r#"[agent]
interfaces = ["eth0"]
colour = "green"

[[service]]
name = "web"
vips = ["203.0.113.10:99999"]
protocol = "tcp"
forwarding = "l2-dsr"

[service.health]
type = "http"
interval = "soon"

[[service.backend]]
name = "web1"
address = "10.0.1.11"
weight = 70000

[[service.backend]]
name = "web2"
address = "10.0.1.256"
"#;
/// The lines of `WRONG` that the errors are in, in the same order.
const LINES: [usize; 5] = [3, 7, 18, 22, 13];

/// Every error is there as `file:line: path: message`.
fn lists_every_error(text: &str, file: &str) {
    for (path, line) in ERRORS.into_iter().zip(LINES) {
        let found = text.lines().any(|words| {
            let Some((_, rest)) = words.split_once(&format!("{file}:{line}: {path}")) else { return false };
            rest.split_once(": ").is_some_and(|(_, message)| !message.is_empty())
        });
        assert!(found, "no `{file}:{line}: {path}…: message` in:\n{text}");
    }
}

#[test]
fn wrong_configurations_are_refused_with_every_error() {
    let lab = Lab::builder().start().expect("a lab");
    let wrong = lab.directory().join("wrong.toml");
    fs::write(&wrong, WRONG).expect("write");
    let wrong = wrong.to_str().expect("path");

    let checked = lab.sluice(&["check", wrong]).expect("sluice");
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    lists_every_error(&String::from_utf8_lossy(&checked.stderr), wrong);

    let refused = lab.start_agent(WRONG).expect_err("an agent with errors").to_string();
    assert!(refused.contains("exit status: 2"), "{refused}");
    lists_every_error(&refused, lab.config_file().to_str().expect("path"));

    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let before = agent.status().expect("status");
    let applied = agent.sluice(&["apply", wrong]).expect("sluice");
    assert_eq!(applied.status.code(), Some(2), "{applied:?}");
    lists_every_error(&String::from_utf8_lossy(&applied.stderr), wrong);
    assert_eq!(fs::read_to_string(lab.config_file()).expect("file"), lab.config().to_string());

    fs::write(lab.config_file(), WRONG).expect("write");
    agent.sighup().expect("SIGHUP");
    wait_until("the agent says what is wrong", PATIENCE, || agent.log().contains("service[0].vips"))
        .unwrap_or_else(|error| panic!("{error}:\n{}", agent.log()));
    let after = agent.status().expect("status");
    assert_eq!(shape(&before), shape(&after), "a rejected configuration changes nothing");
    assert_eq!(servers(&lab).len(), 2);
}

/// What of a status the configuration decides.
fn shape(status: &serde_json::Value) -> Vec<String> {
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut shape = Vec::new();
    for service in list(&status["services"]) {
        shape.push(format!("{} {} {}", service["name"], service["vips"], service["status"]));
        for backend in list(&service["backends"]) {
            let share = backend["ring_share"].as_f64().unwrap_or(-1.0);
            shape
                .push(format!("{} {} {} {share:.3}", backend["name"], backend["address"], backend["weight"]));
        }
    }
    shape
}

#[test]
fn an_agent_without_a_socket_to_ask_is_status_3() {
    let lab = Lab::builder().start().expect("a lab");
    let output = lab.sluice(&["status"]).expect("sluice");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}
