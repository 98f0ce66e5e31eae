//! Faults planted in the lab are found by `sluice doctor`, and are gone after the fix that it prints.

use std::process::Output;

use lb_tests::{Host, Lab, LabBuilder, SluiceToml, run_checked};
use serde_json::Value;

/// A lab, and the configuration that it is checked against: no agent runs.
fn lab(builder: LabBuilder, config: impl Fn(SluiceToml) -> SluiceToml) -> Lab {
    let lab = builder.start().expect("a lab");
    std::fs::write(lab.config_file(), config(lab.config()).to_string()).expect("write");
    lab
}

fn doctor(lab: &Lab) -> Output {
    let (config, pins) = (lab.config_file(), lab.pins().to_str().expect("path").to_owned());
    let config = config.to_str().expect("path");
    lab.sluice(&["doctor", "-o", "json", "--config", config, "--pin-dir", &pins]).expect("sluice")
}

fn findings(output: &Output) -> Vec<Value> {
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    report["findings"].as_array().cloned().expect("findings")
}

/// The findings that count, and that the exit status says whether there are some.
fn wrong(lab: &Lab) -> Vec<Value> {
    let output = doctor(lab);
    let wrong: Vec<Value> =
        findings(&output).into_iter().filter(|finding| finding["weight"] != "note").collect();
    assert_eq!(output.status.code(), Some(if wrong.is_empty() { 0 } else { 4 }), "{output:?}");
    wrong
}

/// The one thing that is wrong, by this check.
fn only(lab: &Lab, check: &str) -> Value {
    let found = wrong(lab);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["check"], check, "{found:#?}");
    found[0].clone()
}

/// Runs the commands of a fix as they are printed.
fn cure(host: &Host, finding: &Value) {
    for line in finding["fix"].as_array().expect("fix") {
        run_checked(host.command("sh").args(["-c", line.as_str().expect("a command")]))
            .expect("the fix works");
    }
}

#[test]
fn nothing_is_wrong_with_a_lab_that_is_well_with_and_without_an_agent() {
    let lab = lab(Lab::builder(), |config| config);
    assert_eq!(wrong(&lab), [] as [Value; 0], "without an agent");
    let agent = lab.start_healthy_agent(&lab.config().ipv6()).expect("an agent");
    assert_eq!(wrong(&lab), [] as [Value; 0], "with one");
    let output = agent.sluice(&["doctor", "--pin-dir", lab.pins().to_str().expect("path")]).expect("sluice");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    agent.terminate().expect("end");
}

#[test]
fn a_strict_reverse_path_filter_is_found_and_cured() {
    let lab = lab(Lab::builder(), |config| config);
    lab.edge().sysctl("net/ipv4/conf/eth0/rp_filter", "1").expect("sysctl");
    let found = only(&lab, "rp_filter");
    assert_eq!((&found["subject"], &found["on"]), (&"eth0".into(), &"here".into()), "{found}");
    cure(lab.edge(), &found);
    assert_eq!(wrong(&lab), [] as [Value; 0]);
}

#[test]
fn a_backend_that_answers_arp_for_the_vip_is_found_and_cured() {
    let lab = lab(Lab::builder(), |config| config);
    lab.web(1).sysctl("net/ipv4/conf/all/arp_ignore", "0").expect("sysctl");
    let found = only(&lab, "vip_arp");
    assert_eq!(found["on"], format!("web2 ({})", lab.web(1).address()), "{found}");
    assert_eq!(found["weight"], "error", "{found}");
    cure(lab.web(1), &found);
    assert_eq!(wrong(&lab), [] as [Value; 0]);
}

#[test]
fn a_backend_without_the_vip_is_found_and_cured() {
    let lab = lab(Lab::builder(), SluiceToml::ipv6);
    assert_eq!(wrong(&lab), [] as [Value; 0], "both families");
    lab.web(0).ip("addr del 203.0.113.10/32 dev lo").expect("ip");
    let found = wrong(&lab);
    // One for each service of the VIP.
    assert_eq!(found.len(), 2, "{found:#?}");
    for finding in &found {
        assert_eq!(finding["check"], "vip_on_backend", "{finding}");
        assert_eq!(finding["on"], format!("web1 ({})", lab.web(0).address()), "{finding}");
    }
    cure(lab.web(0), &found[0]);
    assert_eq!(wrong(&lab), [] as [Value; 0]);

    lab.web(0).ip("addr del 2001:db8:203::10/128 dev lo").expect("ip");
    let found = wrong(&lab);
    assert_eq!(found.len(), 2, "{found:#?}");
    cure(lab.web(0), &found[0]);
    assert_eq!(wrong(&lab), [] as [Value; 0]);

    lab.web(0).stop_nginx().expect("stop");
    let found = wrong(&lab);
    assert!(found.iter().all(|finding| finding["check"] == "vip_on_backend"), "{found:#?}");
    assert!(found[0]["what"].as_str().is_some_and(|what| what.contains("refuses")), "{found:#?}");
}

#[test]
fn a_backend_that_the_agent_finds_ill_is_found() {
    let lab = lab(Lab::builder(), |config| config);
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    lab.web(0).stop_nginx().expect("stop");
    agent.wait_for_status("web", "degraded", Lab::FAILOVER * 10).expect("degraded");
    let pins = lab.pins().to_str().expect("path").to_owned();
    let asked = || agent.sluice(&["doctor", "-o", "json", "--pin-dir", &pins]).expect("doctor");
    let output = asked();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let found = findings(&output);
    let found = found.iter().find(|finding| finding["check"] == "health").expect("found");
    assert_eq!(found["subject"], "web1 of service web", "{found}");
    assert!(found["what"].as_str().is_some_and(|what| what.contains("refused")), "{found}");
    let since_when = found["fix"][0].as_str().and_then(|fix| fix.strip_prefix("sluice ")).expect("a command");
    let words: Vec<&str> = since_when.split_whitespace().take_while(|word| *word != "#").collect();
    let told = agent.sluice(&words).expect("events");
    assert!(String::from_utf8_lossy(&told.stdout).contains("healthy → unhealthy"), "{told:?}");
    lab.web(0).start_nginx().expect("start");
    agent.wait_until_healthy().expect("well");
    assert_eq!(asked().status.code(), Some(0));
}

#[test]
fn a_link_without_room_for_the_tunnel_is_found_and_cured() {
    for (mode, fits) in [("ipip", 1_520), ("gue", 1_532)] {
        let lab = lab(Lab::builder(), |config| config.forwarding(mode));
        let found = only(&lab, "mtu");
        assert!(found["what"].as_str().is_some_and(|what| what.contains(&fits.to_string())), "{found}");
        cure(lab.edge(), &found);
        assert_eq!(wrong(&lab), [] as [Value; 0], "{mode}");
    }
}

#[test]
fn a_backend_that_does_not_answer_is_found_and_with_it_that_forwarding_is_off() {
    let lab = lab(Lab::builder(), |config| config);
    lab.web(1).link_down("eth0").expect("pull");
    let found = wrong(&lab);
    let of = |check: &str| found.iter().find(|finding| finding["check"] == check);
    let silent = of("neighbour").unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(silent["subject"], "web2 of service web", "{silent}");
    assert!(silent["fix"][0].to_string().contains(&lab.web(1).address().to_string()), "{silent}");
    let off = of("forwarding").unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(found.len(), 2, "{found:#?}");
    cure(lab.edge(), off);
    only(&lab, "neighbour");
    lab.web(1).link_up("eth0").expect("plug in");
    assert_eq!(wrong(&lab), [] as [Value; 0]);
}

/// With a gateway, the VIP's route is tried out: it leads here, and no more once the router has lost it.
#[test]
fn a_vip_that_is_not_routed_here_is_found() {
    let lab = lab(Lab::builder().topology(lb_tests::Topology::Routed).backend_mtu(1_600), |config| {
        config.forwarding("ipip")
    });
    let agent = lab.start_healthy_agent(&lab.config().forwarding("ipip")).expect("an agent");
    let routed = |lab: &Lab| findings(&doctor(lab)).iter().all(|finding| finding["check"] != "vip_route");
    assert!(routed(&lab), "{:?}", doctor(&lab));
    lab.routers()[0].ip("route del 203.0.113.10/32").expect("ip");
    let found = only(&lab, "vip_route");
    assert_eq!(found["subject"], "203.0.113.10", "{found}");
    agent.terminate().expect("end");
}

#[test]
fn without_agent_and_configuration_it_says_so_and_a_wrong_one_is_refused() {
    let lab = lab(Lab::builder(), |config| config);
    let missing = lab.directory().join("missing.toml");
    let run = |config: &str| lab.sluice(&["doctor", "--config", config]).expect("sluice");
    assert_eq!(run(missing.to_str().expect("path")).status.code(), Some(1));
    std::fs::write(&missing, "[agent]\ncolour = 1\n").expect("write");
    let refused = run(missing.to_str().expect("path"));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("agent.colour"), "{refused:?}");
}
