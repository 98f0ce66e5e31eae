//! `sluice report` after a real failover and a real death of the agent: lengths as they were, and nothing guessed.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use lb_tests::Lab;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn service<'a>(report: &'a Value, name: &str) -> &'a Value {
    let services = report["services"].as_array().expect("services");
    services.iter().find(|service| service["name"] == name).unwrap_or_else(|| panic!("{name}: {report:#}"))
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no time"))
}

#[test]
fn a_failover_and_the_agents_death_are_reported_with_their_lengths() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let report = |arguments: &[&str]| {
        json(&lab.sluice(&[&["report", "--since", "1h", "-o", "json"], arguments].concat()).expect("sluice"))
    };
    let died = Instant::now();
    lab.web(0).stop_nginx().expect("stop");
    agent.wait_for_status("web", "degraded", PATIENCE).expect("degraded");
    let out = Instant::now();
    lab.web(0).start_nginx().expect("start");
    let held = out.elapsed();
    agent.wait_for_status("web", "healthy", PATIENCE).expect("healthy");
    let most = died.elapsed();
    let now = report(&[]);
    let failovers = &service(&now, "web")["failovers"];
    let length = seconds(&failovers["last"][0]["seconds"]);
    assert!(held.as_secs_f64() <= length && length <= most.as_secs_f64(), "{held:?} to {most:?}: {now:#}");
    assert_eq!(
        (&failovers["count"], &failovers["last"][0]["backend"]),
        (&1.into(), &"web1".into()),
        "{now:#}"
    );
    assert_eq!(failovers["last"][0]["reason"], "connection refused", "{now:#}");
    let web = service(&now, "web");
    // The other web server was enough.
    assert_eq!((&web["availability"], &web["outages"]["count"]), (&1.0.into(), &0.into()), "{now:#}");
    assert!((seconds(&web["seconds"]["degraded"]) - length).abs() < 0.1, "{now:#}");
    assert_eq!(now["record"]["trimmed"], false, "{now:#}");
    assert_eq!(now["changes"]["last"][0]["revision"], 1, "{now:#}");

    agent.kill9().expect("kill -9");
    let state = lab.state().to_str().expect("a path").to_owned();
    let offline = report(&["--state-dir", &state, "--service", "web"]);
    assert_eq!(offline["services"].as_array().map(Vec::len), Some(1), "{offline:#}");
    let gap =
        |report: &Value| report["record"]["gaps"]["last"].as_array().and_then(|gaps| gaps.last().cloned());
    let lasting = gap(&offline).expect("a gap");
    assert_eq!((&lasting["cause"], &lasting["until"]), (&"died".into(), &Value::Null), "{offline:#}");

    let agent = lab.start_healthy_agent(&lab.config()).expect("a new agent");
    let later = report(&[]);
    let over = gap(&later).expect("a gap");
    assert_eq!(over["cause"], "died", "{later:#}");
    assert!(over["until"].is_string(), "{later:#}");
    assert!(seconds(&service(&later, "web")["seconds"]["unknown"]) > 0.0, "{later:#}");
    assert_eq!(service(&later, "web")["failovers"], *failovers, "{later:#}");

    let page = lab.directory().join("report.html");
    let page_text = page.to_str().expect("a path");
    assert!(agent.sluice(&["report", "--html", page_text]).expect("sluice").status.success());
    let html = fs::read_to_string(&page).expect("the page");
    assert!(html.contains("<svg") && html.contains("web1") && html.contains("connection refused"), "{html}");
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("<script"), "{html}");
    let table = agent.sluice(&["report"]).expect("sluice");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("it had ended without a word") && table.contains("web1"), "{table}");
    eprintln!("{table}");
    let wrong = agent.sluice(&["report", "--service", "nothing"]).expect("sluice");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    agent.terminate().expect("end");
}
