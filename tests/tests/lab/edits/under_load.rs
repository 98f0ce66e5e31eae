//! Edits of every kind in random order, an agent that is killed amid applies, and one that is upgraded and downgraded: no request
//! is lost, and file and tables agree.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use lb_tests::{Agent, Lab, program_tag, wait_until};
use lb_userspace::core::config;
use serde_json::{Value, json};

use super::api::{self, post};
use super::customers::Customers;
use super::*;

/// Edits in a row.
const EDITS: usize = 1_000;
/// Of each kind at least so many.
const OF_EACH: u32 = 100;
const KINDS: [&str; 5] = ["add", "set-weight", "drain", "disable", "remove"];
/// Kills in a row.
const KILLS: usize = 50;

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

/// Random edits, and what they should lead to.
struct Editor<'a> {
    lab: &'a Lab,
    dice: Dice,
    model: Model,
    /// Edits so far, by kind.
    done: BTreeMap<&'static str, u32>,
}

impl Editor<'_> {
    /// Makes an edit by the API, as the command would.
    fn edit(&mut self, kind: &'static str, edit: Value) {
        let (status, answer) = post(self.lab, "/v1/edit", &json!({ "edit": edit }));
        assert_eq!(status, 200, "{kind}: {edit}: {answer}");
        *self.done.entry(kind).or_default() += 1;
    }

    fn set(&mut self, kind: &'static str, backend: &str, set: Value) {
        self.edit(kind, json!({"kind": "backend_set", "service": "web", "backend": backend, "set": set}));
    }

    /// Drains a server, and waits until no customer is with it: what is cut off then is nobody's.
    fn drain(&mut self, backend: &str) {
        self.set("drain", backend, json!({"state": "drain"}));
        wait_until("it is drained", PATIENCE, || api::active_flows(self.lab, "web", backend) == 0)
            .expect("in time");
    }

    /// One random edit of a server that customers may lose, or of what they do not notice.
    fn step(&mut self) {
        let weight = 1 + self.dice.below(300);
        let victim = ["web3", "web4"][self.dice.below(2) as usize];
        let state = self.model.get(victim).map(|(_, state)| *state);
        match (self.dice.below(8), state) {
            (_, None) => {
                let address = self.lab.web(if victim == "web3" { 2 } else { 3 }).address();
                let set = json!({"address": address.to_string(), "weight": weight});
                self.edit(
                    "add",
                    json!({"kind": "backend_add", "service": "web", "backend": victim, "set": set}),
                );
                self.model.insert(victim.to_owned(), (weight, "enabled"));
            }
            (0..=2, Some(_)) => {
                self.drain(victim);
                self.edit("remove", json!({"kind": "backend_remove", "service": "web", "backend": victim}));
                self.model.remove(victim);
            }
            (3 | 4, Some(_)) => {
                self.drain(victim);
                self.set("disable", victim, json!({"state": "disabled"}));
                self.model.entry(victim.to_owned()).and_modify(|backend| backend.1 = "disabled");
            }
            (5, Some(state)) if state != "enabled" => {
                self.set("enable", victim, json!({"state": "enabled"}));
                self.model.entry(victim.to_owned()).and_modify(|backend| backend.1 = "enabled");
            }
            (6, Some(_)) if self.dice.below(6) == 0 => self.another_service(weight),
            _ => {
                let names: Vec<String> = self.model.keys().cloned().collect();
                let name = &names[self.dice.below(names.len() as u64) as usize];
                self.set("set-weight", name, json!({"weight": weight}));
                self.model.entry(name.clone()).and_modify(|backend| backend.0 = weight);
            }
        }
    }

    /// A service comes, is changed and goes, by commands.
    fn another_service(&mut self, weight: u64) {
        let vip = format!("203.0.113.10:{}", 8_000 + weight);
        done(self.lab, &format!("service add extra --vip {vip} health.type=none"));
        done(self.lab, &format!("backend add extra e1 {}", self.lab.web(1).address()));
        done(self.lab, "service set extra affinity=client all_down=drop");
        let revision = done(self.lab, "service remove extra")["revision"].as_u64().expect("a revision");
        refused(
            self.lab,
            &format!("backend remove web web1 --if-revision {}", revision - 1),
            1,
            "was changed",
        );
        *self.done.entry("service").or_default() += 4;
    }

    fn count(&self) -> usize {
        self.done.values().sum::<u32>() as usize
    }

    fn is_enough(&self) -> bool {
        let of = |kind: &&str| self.done.get(kind).copied().unwrap_or(0);
        self.count() >= EDITS && KINDS.iter().map(of).all(|count| count >= OF_EACH)
    }
}

#[test]
fn random_edits_lose_no_request_and_lead_where_a_fresh_start_would() {
    let lab = Lab::builder().web_servers(4).start().expect("a lab");
    let agent = three(&lab);
    let mut shoppers = shoppers(&lab, 60);
    shoppers.retain(|(_, server)| !["web3", "web4"].contains(&server.as_str()));
    assert!(shoppers.len() > 20);
    let customers = Customers::start(&lab, &["web3", "web4"]);
    let model = ["web1", "web2", "web3", "web4"].map(|name| (name.to_owned(), (100, "enabled"))).into();
    let mut editor = Editor { lab: &lab, dice: Dice(5), model, done: BTreeMap::new() };
    let mut checked = 0;
    while !editor.is_enough() {
        assert!(editor.count() < 2 * EDITS, "{:?}", editor.done);
        editor.step();
        if editor.count() >= checked + 100 {
            checked = editor.count();
            still_served(&mut shoppers, "amid edits");
            check_model(&lab, &agent, &editor.model);
        }
    }
    // What is disabled or drained is as the file says, too; but a new backend must have been found healthy.
    agent.wait_until_healthy().expect("healthy");
    customers.were_served();
    still_served(&mut shoppers, "after all edits");
    check_model(&lab, &agent, &editor.model);
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
    let customers = Customers::start(&lab, &[]);
    let (mut dice, mut seen) = (Dice(3), [0, 0]);
    for round in 0..KILLS {
        // The agent is killed amid the next one, or while this one waits.
        let confirm = (dice.below(2) == 0).then_some(60);
        let apply = |which: usize, confirm: Option<u64>| {
            let name = files[which].display().to_string();
            json!({"config": texts[which], "name": name, "confirm_within_seconds": confirm})
        };
        let (status, answer) = post(&lab, "/v1/apply", &apply(round % 2, confirm));
        assert_eq!(status, 200, "{answer}");
        let next = apply((round + 1) % 2, None);
        std::thread::scope(|scope| {
            scope.spawn(|| api::try_post(&lab, "/v1/apply", &next));
            std::thread::sleep(Duration::from_micros(500 * dice.below(60)));
            agent.kill9().expect("kill");
        });
        agent = restart(&lab);
        agent.wait_until_healthy().expect("healthy");
        let now = file(&lab);
        match texts.iter().position(|text| *text == now) {
            Some(which) => seen[which] += 1,
            None => assert_eq!(now, format!("{COMMENT}{}", lab.config()), "a mixture"),
        }
        tables_are_as_the_file_says(&lab);
    }
    assert!(seen.iter().all(|&times| times > KILLS / 5), "{seen:?}");
    customers.were_served();
}

/// An object whose programs differ takes over maps, flows and counters without a packet lost, and gives them back.
#[test]
fn a_datapath_of_another_object_takes_over_and_back_without_a_loss() {
    let other = other_object();
    let lab = Lab::builder().start().expect("a lab");
    let agent = three(&lab);
    let mut shoppers = shoppers(&lab, 40);
    let customers = Customers::start(&lab, &[]);
    let tag = || program_tag(lab.edge(), "eth0").expect("a tag");
    let own = tag();
    let mut packets = 0;
    let mut agent = Some(agent);
    for round in 0..10 {
        for object in [Some(&other), None] {
            if let Some(former) = agent.take() {
                // An upgrade may well follow a crash.
                let ended = if round % 2 == 0 { former.terminate().map(drop) } else { former.kill9() };
                ended.expect("it ends");
            }
            let started = lab.start_agent_with(&file(&lab), object.map(PathBuf::as_path)).expect("an agent");
            assert_eq!(tag() == own, object.is_none(), "the tag of the program");
            still_served(&mut shoppers, "with another object");
            let counted = started.service("web").expect("web")["packets"].as_u64().expect("packets");
            assert!(counted > packets, "{counted} packets after {packets}");
            packets = counted;
            agent = Some(started);
        }
    }
    customers.were_served();
    tables_are_as_the_file_says(&lab);
}
