//! Edits of every kind in random order, and an agent that is killed amid applies: no request is lost, and file and tables
//! agree.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use lb_tests::{Agent, Lab, Load};
use lb_userspace::core::config;
use serde_json::Value;

use super::*;

/// What the backends of `web` should be: weight and state.
type Model = BTreeMap<String, (u64, &'static str)>;

fn check_model(lab: &Lab, agent: &Agent<'_>, model: &Model) {
    let service = agent.service("web").expect("service");
    let entry = |backend: &Value| {
        let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
        (text("name"), (backend["weight"].as_u64().unwrap_or_default(), text("state")))
    };
    let shown: BTreeMap<String, (u64, String)> =
        service["backends"].as_array().expect("backends").iter().map(entry).collect();
    let model: BTreeMap<String, (u64, String)> =
        model.iter().map(|(name, (weight, state))| (name.clone(), (*weight, (*state).to_owned()))).collect();
    assert_eq!(shown, model);
    let config = config::parse(&file(lab)).expect("a valid file");
    let web = config.services.iter().find(|service| service.name == "web").expect("web");
    let written: Vec<(&str, u64)> =
        web.backends.iter().map(|backend| (backend.name.as_str(), backend.weight.into())).collect();
    let expected: Vec<(&str, u64)> =
        model.iter().map(|(name, (weight, _))| (name.as_str(), *weight)).collect();
    assert_eq!(BTreeMap::from_iter(written), BTreeMap::from_iter(expected));
}

/// One random edit of a server that customers may lose, or of what they do not notice.
fn one_edit(lab: &Lab, dice: &mut Dice, model: &mut Model) {
    let weight = 1 + dice.below(300);
    // Whoever is cut off has been drained before, so that nobody was with it.
    let drained = || drop(done(lab, "backend drain web web3 --wait --timeout 20s"));
    match (dice.below(9), model.get("web3").map(|(_, state)| *state)) {
        (_, None) => {
            done(lab, &format!("backend add web web3 {} --weight {weight}", lab.web(2).address()));
            model.insert("web3".to_owned(), (weight, "enabled"));
        }
        (0, Some(_)) => {
            drained();
            done(lab, "backend remove web web3");
            model.remove("web3");
        }
        (1, Some(_)) => {
            drained();
            done(lab, "backend disable web web3");
            model.entry("web3".to_owned()).and_modify(|backend| backend.1 = "disabled");
        }
        (2, Some(state)) if state != "disabled" => {
            done(lab, "backend drain web web3");
            model.entry("web3".to_owned()).and_modify(|backend| backend.1 = "drain");
        }
        (3 | 4, Some(_)) => {
            done(lab, "backend enable web web3");
            model.entry("web3".to_owned()).and_modify(|backend| backend.1 = "enabled");
        }
        (5, Some(_)) => {
            let revision = done(lab, "history")["revision"].as_u64().expect("a revision");
            refused(
                lab,
                &format!("backend remove web web1 --if-revision {}", revision - 1),
                1,
                "was changed",
            );
            let report = done(lab, &format!("backend set-weight web web1 {weight} --if-revision {revision}"));
            model.insert("web1".to_owned(), (weight, "enabled"));
            assert_eq!(report["flows_lost"], 0);
        }
        (6, Some(_)) => {
            done(lab, &format!("service add extra --vip 203.0.113.10:{} health.type=none", 8_000 + weight));
            done(lab, &format!("backend add extra e1 {}", lab.web(1).address()));
            done(lab, "service set extra affinity=client all_down=drop");
            done(lab, "service remove extra");
        }
        _ => {
            let name = ["web1", "web2", "web3"][dice.below(3) as usize];
            done(lab, &format!("backend set web {name} weight={weight}"));
            model.entry(name.to_owned()).and_modify(|backend| backend.0 = weight);
        }
    }
}

#[test]
fn random_edits_lose_no_request_and_lead_where_a_fresh_start_would() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = three(&lab);
    let mut shoppers = shoppers(&lab, 60);
    shoppers.retain(|(_, server)| server != "web3");
    assert!(shoppers.len() > 20);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    let mut dice = Dice(5);
    let mut model: Model = ["web1", "web2", "web3"].map(|name| (name.to_owned(), (100, "enabled"))).into();
    // web3 has shoppers who left, so drains are waited for until they count as gone.
    for round in 0..210 {
        one_edit(&lab, &mut dice, &mut model);
        if round % 30 == 0 {
            still_served(&mut shoppers, "amid edits");
            check_model(&lab, &agent, &model);
        }
    }
    if !model.contains_key("web3") {
        one_edit(&lab, &mut dice, &mut model);
    }
    agent.wait_until_healthy().expect("healthy");
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.answered > 1_000, "{report:?}");
    still_served(&mut shoppers, "after all edits");
    check_model(&lab, &agent, &model);
    assert!(file(&lab).starts_with(COMMENT), "{}", file(&lab));
    tables_are_as_the_file_says(&lab);
    let path = lab.config_file().display().to_string();
    let again = done(&lab, &format!("apply {path} --dry-run"));
    assert_eq!((&again["actions"], &again["changes"]), (&0.into(), &Value::Array(Vec::new())), "{again}");
    // Revisions and the history go on where they were.
    let history = done(&lab, "history");
    assert_eq!(history["entries"].as_array().expect("entries").len(), 100, "bounded");
    agent.terminate().expect("end");
    let _agent = restart(&lab);
    assert_eq!(done(&lab, "history"), history);
}

#[test]
fn an_agent_killed_amid_applies_leaves_the_old_or_the_new_state() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let texts = [[1, 100, 100], [300, 20, 100]].map(|weights| lab.config().weights(&weights).to_string());
    let files = [0, 1].map(|n| lab.directory().join(format!("{n}.toml")));
    files.iter().zip(&texts).for_each(|(file, text)| fs::write(file, text).expect("write"));
    let mut agent = three(&lab);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    let (mut dice, mut seen) = (Dice(3), [0, 0]);
    for round in 0..8 {
        // The agent is killed amid the next one, or while this one waits.
        let terms = if dice.below(2) == 0 { "" } else { " --confirm-within 60s" };
        let text = files[round % 2].display();
        done(&lab, &format!("apply {text}{terms}"));
        let mut next = lab.sluice_command().expect("sluice");
        next.args(["apply", files[(round + 1) % 2].to_str().expect("path")]);
        let next = std::thread::spawn(move || next.output());
        std::thread::sleep(Duration::from_micros(500 * dice.below(60)));
        agent.kill9().expect("kill");
        next.join().expect("a thread").expect("sluice");
        agent = restart(&lab);
        agent.wait_until_healthy().expect("healthy");
        let now = file(&lab);
        match texts.iter().position(|text| *text == now) {
            Some(which) => seen[which] += 1,
            None => assert_eq!(now, format!("{COMMENT}{}", lab.config()), "a mixture"),
        }
        tables_are_as_the_file_says(&lab);
    }
    assert!(seen[0] + seen[1] > 2, "{seen:?}");
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
}
