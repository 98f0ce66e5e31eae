//! What `sluice events` and the log tell of what happens, over restarts too.

use std::fs;
use std::process::Output;
use std::time::Duration;

use lb_tests::{Agent, Daemon, Lab, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);

fn json(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn events(agent: &Agent<'_>, arguments: &[&str]) -> Vec<Value> {
    json(&agent.sluice(&[&["events", "-o", "json", "-n", "500"], arguments].concat()).expect("sluice"))
}

fn wait_for(agent: &Agent<'_>, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    wait_until("the event is there", PATIENCE, || {
        found = events(agent, arguments).into_iter().find(|event| wanted(event));
        found.is_some()
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", events(agent, &[])));
    found.expect("found")
}

/// A text that `sluice events` has for something is that of the log.
fn is_logged(agent: &Agent<'_>, event: &Value) {
    let text = event["text"].as_str().expect("text");
    wait_until("it is logged", PATIENCE, || agent.log().contains(text)).expect(text);
}

#[test]
fn what_happens_is_told_with_reason_and_timing_and_outlives_the_agent() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    lab.web(0).stop_nginx().expect("stop");
    let down =
        wait_for(&agent, &["--kind", "health", "--service", "web"], |event| event["to"] == "unhealthy");
    assert_eq!((&down["backend"], &down["from"]), (&"web1".into(), &"healthy".into()), "{down}");
    assert_eq!(down["reason"], "connection refused", "{down}");
    assert_eq!(down["severity"], "warn", "{down}");
    assert!(down["lasted_ms"].as_u64().is_some_and(|lasted| lasted < 60_000), "{down}");
    is_logged(&agent, &down);
    let degraded = wait_for(&agent, &["--kind", "service_status"], |event| event["service"] == "web");
    assert_eq!((&degraded["from"], &degraded["to"]), (&"healthy".into(), &"degraded".into()), "{degraded}");

    let drained = lab.directory().join("drained.toml");
    fs::write(&drained, lab.config().state("web2", "drain").to_string()).expect("write");
    let apply = |file: &str| agent.sluice(&["apply", file]).expect("sluice");
    assert!(apply(drained.to_str().expect("path")).status.success());
    let state = wait_for(&agent, &["--kind", "backend_state", "--backend", "web2"], |_| true);
    assert_eq!((&state["from"], &state["to"]), (&"enabled".into(), &"drain".into()), "{state}");
    // Of both services: nobody was connected.
    wait_until("both are drained", PATIENCE, || events(&agent, &["--kind", "drained"]).len() == 2)
        .expect("drained");
    let applied = wait_for(&agent, &["--kind", "applied"], |event| event["revision"] == 2);
    assert_eq!(applied["changes_total"], 2, "{applied}");
    let by = format!("apply {} by uid 0", drained.display());
    assert_eq!(applied["by"], by.as_str(), "{applied}");
    is_logged(&agent, &applied);

    fs::write(&drained, "[agent]\ncolour = 1\n").expect("write");
    assert_eq!(apply(drained.to_str().expect("path")).status.code(), Some(2));
    let refused = wait_for(&agent, &["--severity", "error", "--kind", "refused"], |_| true);
    assert!(refused["errors"].to_string().contains("agent.colour"), "{refused}");
    is_logged(&agent, &refused);
    let dry = ["apply", "--dry-run", drained.to_str().expect("path")];
    assert_eq!(agent.sluice(&dry).expect("sluice").status.code(), Some(2));
    assert_eq!(events(&agent, &["--kind", "refused"]).len(), 1, "a trial is no event");

    // The other service's check may have come last.
    let failing = |event: &Value| event["service"] == "web-tls" && event["to"] == "failing-open";
    wait_for(&agent, &["--kind", "service_status"], failing);
    let before = events(&agent, &[]);
    let seq = |event: &Value| event["seq"].as_u64().expect("seq");
    assert!(before.windows(2).all(|pair| seq(&pair[0]) + 1 == seq(&pair[1])), "{before:#?}");
    agent.kill9().expect("kill -9");
    let state = lab.state().to_str().expect("path").to_owned();
    let kept = lab.sluice(&["events", "-o", "json", "-n", "500", "--state-dir", &state]).expect("sluice");
    assert_eq!(json(&kept), before, "without an agent");
    assert!(String::from_utf8_lossy(&kept.stderr).contains("no agent answers"), "{kept:?}");

    let agent = lab.start_agent(&lab.config().to_string()).expect("a new agent");
    let now = events(&agent, &[]);
    assert_eq!(now[..before.len()], before, "a new agent goes on");
    assert_eq!(seq(&now[before.len()]), before.len() as u64 + 1);
    wait_for(&agent, &["--kind", "adopted"], |event| event["services"] == 2);
    wait_for(&agent, &["--kind", "took_over"], |event| event["interface"] == "eth0");
    let wrong = agent.sluice(&["events", "--kind", "weather"]).expect("sluice");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let none = agent.sluice(&["events", "--service", "nope"]).expect("sluice");
    assert!(none.status.success() && none.stdout.is_empty(), "{none:?}");
    let told = String::from_utf8_lossy(&none.stderr);
    assert_eq!(told.trim(), "sluice: no events match --service nope");
    let none = agent.sluice(&["events", "--service", "nope", "-o", "json"]).expect("sluice");
    assert!(none.stderr.is_empty() && json(&none).is_empty(), "{none:?}");
}

#[test]
fn a_follower_is_told_at_once_and_waits_for_a_new_agent() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let mut command = lab.sluice_command().expect("sluice");
    command.args(["events", "--follow", "-o", "json", "-n", "0"]);
    let follower = Daemon::spawn(command, "events", &lab.directory().join("events.log")).expect("start");
    let told = |what: &str| {
        wait_until("the follower is told", PATIENCE, || follower.log().contains(what))
            .unwrap_or_else(|error| panic!("{what}: {error}\n{}", follower.log()));
    };
    // Until it is told of something it may not yet follow.
    wait_until("it follows", PATIENCE, || {
        agent.sighup().expect("SIGHUP");
        follower.log().contains("\"event\":\"applied\",\"by\":\"reload\"")
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", follower.log()));
    lab.web(1).stop_nginx().expect("stop");
    told(
        "\"event\":\"health\",\"service\":\"web\",\"backend\":\"web2\",\"from\":\"healthy\",\"to\":\"unhealthy\"",
    );
    agent.terminate().expect("end");
    told("waiting for it");
    let agent = lab.start_agent(&lab.config().to_string()).expect("a new agent");
    told("\"event\":\"took_over\",\"interface\":\"eth0\"");
    told("\"event\":\"ready\"");
    let seqs: Vec<u64> = (follower.log().lines())
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seq"].as_u64())
        .collect();
    assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "none missing, none twice: {seqs:?}");
    agent.terminate().expect("end");
}

/// A backend that cannot be reached any more, and one that is drained of its last flow.
#[test]
fn lost_next_hops_are_told_once_and_when_they_are_back() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    lab.web(1).link_down("eth0").expect("pull");
    agent.wait_for_status("web", "degraded", PATIENCE).expect("degraded");
    lab.edge().ip(&format!("neigh flush to {}", lab.web(1).address())).expect("flush");
    let lost = wait_for(&agent, &["--kind", "next_hop_lost"], |_| true);
    assert_eq!(lost["address"], lab.web(1).address().to_string(), "{lost}");
    assert!(lost["reason"].as_str().is_some_and(|reason| reason.contains("does not answer")), "{lost}");
    is_logged(&agent, &lost);
    lab.web(1).link_up("eth0").expect("plug in");
    let found = wait_for(&agent, &["--kind", "next_hop_found"], |_| true);
    assert_eq!(found["address"], lost["address"], "{found}");
    assert!(found["lasted_ms"].is_u64(), "{found}");
    assert_eq!(events(&agent, &["--kind", "next_hop_lost"]).len(), 1);
    agent.terminate().expect("end");
}

/// A service that is made step by step, as an operator does it, and one that is undone so.
#[test]
fn a_service_that_only_begins_is_told_as_no_outage() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let done = |command: &str| {
        let output = agent.sluice(&command.split(' ').collect::<Vec<_>>()).expect("sluice");
        assert!(output.status.success(), "{command}: {output:?}");
    };
    let statuses = || events(&agent, &["--kind", "service_status", "--service", "shop"]);
    let (vip, web) = (lab.vip(8_080), lab.web(0).address());
    let health = "health.type=tcp health.port=80 health.interval=60s health.timeout=1s health.fall=1";
    done(&format!("service add shop --vip {vip} all_down=drop {health}"));
    assert_eq!(agent.service("shop").expect("shop")["status"], "down");
    done(&format!("backend add shop web1 {web}"));
    agent.wait_for_status("shop", "healthy", PATIENCE).expect("healthy");
    assert_eq!(statuses(), Vec::<Value>::new());
    done("backend remove shop web1");
    let told = wait_for(&agent, &["--kind", "service_status", "--service", "shop"], |_| true);
    assert_eq!((&told["from"], &told["to"]), (&"healthy".into(), &"down".into()), "{told}");
    done(&format!("backend add shop web1 {web}"));
    wait_until("it is told as well again", PATIENCE, || {
        statuses().last().is_some_and(|event| event["to"] == "healthy")
    })
    .unwrap_or_else(|error| panic!("{error}: {:#?}", statuses()));
    assert_eq!(statuses().len(), 2, "{:#?}", statuses());
    agent.terminate().expect("end");
}
