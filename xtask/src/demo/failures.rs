//! What goes wrong: turns a killed web server and a killed agent into what customers notice of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::{Agent, Lab, Load, wait_until};

use super::screen::Screen;

const PATIENCE: Duration = Duration::from_secs(10);
/// What a busy machine may add to the time of a failover.
const SLACK: Duration = Duration::from_secs(1);

/// A web server is killed under load and comes back.
pub(crate) fn web_server(screen: &mut Screen, lab: &Lab, agent: &Agent<'_>) -> Result<()> {
    screen.chapter("A web server dies while customers are shopping");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    flow_on(&load, 200)?;
    screen.say("$ kill -9 nginx on web1");
    let killed = Instant::now();
    lab.web(0).stop_nginx()?;
    let seen = agent.wait_for_status("web", "degraded", Lab::FAILOVER + SLACK);
    let took = killed.elapsed();
    screen.check_result(&format!("Sluice took it out of service after {:.2} s", took.as_secs_f64()), seen);
    // Requests under way when the ring was switched are still web1's.
    flow_on(&load, 5)?;
    let failing = load.stop()?;
    screen.say(&format!(
        "until then web1's share was refused: {} of {} requests, each tried again at once",
        failing.failed,
        failing.failed + failing.answered
    ));

    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    flow_on(&load, 500)?;
    let report = load.stop()?;
    screen.check(
        report.failed == 0 && report.by_server.keys().eq(["web2"]),
        &format!("every request since is served: {} by web2, 0 lost", report.answered),
        &format!("{report:?}"),
    );

    screen.say("$ start nginx on web1");
    let back = Instant::now();
    lab.web(0).start_nginx()?;
    let seen = agent.wait_for_status("web", "healthy", PATIENCE);
    let took = back.elapsed();
    screen.check_result(&format!("Sluice took it back after {:.2} s", took.as_secs_f64()), seen);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    flow_on(&load, 300)?;
    let report = load.stop()?;
    screen.check(
        report.failed == 0 && report.by_server.len() == 2,
        &format!("both serve again: {}", shares(&report.by_server)),
        &format!("{report:?}"),
    );
    Ok(())
}

/// The agent is killed under load and another takes over.
pub(crate) fn agent<'lab>(screen: &mut Screen, lab: &'lab Lab, agent: Agent<'lab>) -> Result<Agent<'lab>> {
    screen.chapter("The agent dies while customers are shopping");
    let counted = packets(&agent)?;
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    flow_on(&load, 200)?;
    screen.say(&format!("$ kill -9 {}   # sluice agent", agent.pid()));
    agent.kill9()?;
    let before = load.done();
    flow_on(&load, 1_000)?;
    screen.say(&format!(
        "the XDP program goes on by itself: {} requests without an agent",
        load.done() - before
    ));
    screen.say("$ sluice agent …");
    let agent = lab.start_healthy_agent(&lab.config())?;
    flow_on(&load, 200)?;
    let report = load.stop()?;
    let claim = format!("{} requests, {} lost", report.answered + report.failed, report.failed);
    screen.check(report.failed == 0, &claim, &format!("{:?}", report.errors));
    let now = packets(&agent)?;
    screen.check(
        now > counted,
        &format!("the new agent adopted what was pinned: {now} packets counted, {counted} of them before"),
        &format!("expected more than {counted} packets, got {now}"),
    );
    Ok(agent)
}

fn packets(agent: &Agent<'_>) -> Result<u64> {
    Ok(agent.service("web")?["packets"].as_u64().unwrap_or(0))
}

fn flow_on(load: &Load, requests: u64) -> Result<()> {
    let wanted = load.done() + requests;
    wait_until("requests go on", PATIENCE, || load.done() >= wanted).map(drop)
}

fn shares(by_server: &std::collections::BTreeMap<String, u64>) -> String {
    let shares: Vec<_> = by_server.iter().map(|(server, count)| format!("{server} {count}")).collect();
    shares.join(", ")
}
