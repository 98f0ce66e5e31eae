//! Changes by command and API: what they cost customers, that the file and the tables follow them, and that each can be
//! tried, refused, confirmed and undone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use lb_tests::{Agent, HttpConnection, Lab, Load, run_checked, sluice_binary, wait_until};
use lb_userspace::core::config;
use lb_userspace::core::health::Health;
use lb_userspace::core::plan::{RingCache, plan};
use lb_userspace::core::reach::targets;
use lb_userspace::core::wanted::{BackendKey, Knowledge};
use lb_userspace::io::datapath::{Access, Datapath, Kernel, PinDir};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const COMMENT: &str = "# the shop's own words\n";

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

fn sluice(lab: &Lab, command: &str) -> Said {
    said(&lab.sluice(&command.split(' ').collect::<Vec<_>>()).expect("sluice"))
}

/// Runs a command that must succeed; its JSON.
fn done(lab: &Lab, command: &str) -> Value {
    let said = sluice(lab, &format!("{command} -o json"));
    assert_eq!(said.code, 0, "{command}: {}", said.err);
    said.json()
}

/// Runs a command that must be refused with this status and these words.
fn refused(lab: &Lab, command: &str, code: i32, words: &str) {
    let said = sluice(lab, command);
    assert_eq!(said.code, code, "{command}: {}{}", said.out, said.err);
    assert!(said.err.contains(words), "{command}: {}", said.err);
    assert_eq!(said.out, "", "{command}: data although it was refused");
}

fn file(lab: &Lab) -> String {
    fs::read_to_string(lab.config_file()).expect("the file")
}

fn weight(agent: &Agent<'_>, backend: &str) -> Value {
    agent.backend("web", backend).expect("backend")["weight"].clone()
}

/// A lab with three web servers and an agent.
fn three(lab: &Lab) -> Agent<'_> {
    let agent = lab.start_agent(&format!("{COMMENT}{}", lab.config())).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    agent
}

/// Starts the agent with the file as it is.
fn restart(lab: &Lab) -> Agent<'_> {
    lab.start_agent(&file(lab)).expect("an agent")
}

/// Connections that stay open, by the server that each is with.
fn shoppers(lab: &Lab, count: u16) -> Vec<(HttpConnection, String)> {
    let enter = |port| {
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        let server = connection.get("/").expect("answer").served_by().to_owned();
        (connection, server)
    };
    (26_000..26_000 + count).map(enter).collect()
}

fn still_served(shoppers: &mut [(HttpConnection, String)], when: &str) {
    for (connection, server) in shoppers {
        let answer = connection.get("/").unwrap_or_else(|error| panic!("{when}: {server}: {error:#}"));
        assert_eq!(answer.served_by(), server, "{when}");
    }
}

/// The pinned tables are what a plan from the file makes of them: it has nothing to do.
fn tables_are_as_the_file_says(lab: &Lab) {
    let config = config::parse(&file(lab)).unwrap_or_else(|errors| panic!("{errors:?}"));
    let kernel = Kernel::open(&PinDir::new(lab.pins()), Access::Read).expect("the pinned tables");
    let image = kernel.tables().image();
    let mut knowledge = Knowledge::default();
    for service in &config.services {
        for (backend, target) in service.backends.iter().zip(targets(service)) {
            knowledge.health.insert(BackendKey::new(&service.name, &backend.name), Health::Healthy);
            let loaded = image.backends.values().find(|loaded| loaded.address == backend.address.into());
            knowledge.hops.extend(loaded.and_then(|loaded| loaded.hop).map(|hop| (target, hop)));
        }
    }
    let plan = plan(&image, &knowledge.wanted(&config), &mut RingCache::default()).expect("a plan");
    assert!(
        plan.actions.is_empty(),
        "{:?}",
        plan.actions.iter().map(|action| format!("{action:.60?}")).collect::<Vec<_>>()
    );
}

/// Numbers that look like chance, the same ones every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

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
    restart(&lab);
    assert_eq!(done(&lab, "history"), history);
}

#[test]
fn a_prediction_counts_what_then_happens() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = three(&lab);
    let mut shoppers = shoppers(&lab, 60);
    let with =
        |server: &str, all: &[(HttpConnection, String)]| all.iter().filter(|(_, its)| its == server).count();
    let web3 = with("web3", &shoppers);
    assert!(web3 > 5, "{web3}");
    let before = (file(&lab), agent.service("web").expect("service")["backends"].clone());

    let dry = done(&lab, "backend remove web web3 --dry-run");
    assert_eq!((&dry["flows_lost"], &dry["dry_run"]), (&web3.into(), &true.into()), "{dry}");
    let [ring] = dry["rings"].as_array().expect("rings").as_slice() else { panic!("{dry}") };
    let share = agent.backend("web", "web3").expect("web3")["ring_share"].as_f64().expect("a share");
    assert!(ring["slots_changed"].as_f64().expect("a share") >= share, "{dry}");
    assert_eq!(ring["live_flows"], 60, "{dry}");
    let dry = done(&lab, "backend drain web web3 --dry-run");
    assert_eq!(dry["flows_lost"], 0, "{dry}");
    let [ring] = dry["rings"].as_array().expect("rings").as_slice() else { panic!("{dry}") };
    let alone = ring["on_table_alone"].as_f64().expect("a share");
    assert!((web3 as f64 / 60.0..web3 as f64 / 60.0 + 0.1).contains(&alone), "{web3} of 60, and some: {dry}");
    let after = (file(&lab), agent.service("web").expect("service")["backends"].clone());
    assert_eq!(before, after, "a dry run changes nothing");

    let drained = sluice(&lab, "backend drain web web3 --wait --timeout 1s -o json");
    assert_eq!((drained.code, &drained.json()["flows_left"]), (4, &web3.into()), "{}", drained.err);
    assert!(
        drained.err.contains("goes on draining") && drained.err.contains("live flows left"),
        "{}",
        drained.err
    );
    shoppers.retain(|(_, server)| server != "web3");
    let drained = sluice(&lab, "backend drain web web3 --wait --timeout 20s");
    assert_eq!(drained.code, 0, "{}", drained.err);
    assert!(drained.out.contains("backend web3 is drained"), "{}", drained.out);
    still_served(&mut shoppers, "web3 drained");
    assert_eq!(done(&lab, "backend remove web web3")["flows_lost"], 0);
    tables_are_as_the_file_says(&lab);
}

#[test]
fn a_change_that_nobody_confirms_is_undone() {
    let lab = Lab::builder().web_servers(3).start().expect("a lab");
    let agent = three(&lab);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    let before = file(&lab);
    let other = lab.directory().join("other.toml");
    fs::write(&other, lab.config().weights(&[7, 100, 100]).to_string()).expect("write");
    let apply = |seconds: u32| done(&lab, &format!("apply {} --confirm-within {seconds}s", other.display()));

    assert_eq!(apply(60)["confirm_within_seconds"], 60);
    assert_eq!((weight(&agent, "web1"), file(&lab) == before), (7.into(), false));
    refused(&lab, "backend set-weight web web1 8", 1, "waits for its confirmation");
    assert_eq!(done(&lab, "confirm")["revision"], 2);
    refused(&lab, "confirm", 1, "no change waits");
    done(&lab, "rollback");
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), before.clone()));

    apply(1);
    wait_until("it is undone", PATIENCE, || file(&lab) == before).expect("in time");
    assert_eq!(weight(&agent, "web1"), 100);
    apply(60);
    done(&lab, "rollback");
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), before.clone()));

    apply(60);
    assert!(agent.terminate().expect("end").success());
    assert_eq!(file(&lab), before, "an agent that ends undoes it");
    let agent = restart(&lab);
    apply(60);
    assert_eq!(weight(&agent, "web1"), 7);
    agent.kill9().expect("kill");
    assert_ne!(file(&lab), before);
    let agent = restart(&lab);
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), before));
    refused(&lab, "confirm", 1, "no change waits");
    let history = done(&lab, "history");
    assert!(
        history["entries"][0]["what"].as_str().is_some_and(|what| what.contains("before it was confirmed")),
        "{history}"
    );
    agent.wait_until_healthy().expect("healthy");
    tables_are_as_the_file_says(&lab);
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
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
        let mut apply = lab.sluice_command().expect("sluice");
        let arguments = ["apply", files[round % 2].to_str().expect("path"), "--confirm-within", "60s"];
        let confirmed = dice.below(2) == 0;
        let child = apply.args(&arguments[..if confirmed { 2 } else { 4 }]).output();
        // Either amid the next one, or while this one is not confirmed.
        child.expect("sluice");
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

/// A file that nobody may replace, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn new(path: PathBuf) -> Self {
        run_checked(std::process::Command::new("chattr").arg("+i").arg(&path)).expect("chattr");
        Self(path)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = three(&lab);
    let mut shoppers = shoppers(&lab, 20);
    let before = file(&lab);
    let unchanged = |when: &str| {
        assert_eq!(
            (weight(&agent, "web1"), done(&lab, "history")["revision"].clone()),
            (100.into(), 1.into()),
            "{when}"
        );
        tables_are_as_the_file_says(&lab);
    };
    fs::set_permissions(lab.config_file(), fs::Permissions::from_mode(0o444)).expect("chmod");
    refused(&lab, "backend set-weight web web1 8", 1, "is read-only");
    let dry = sluice(&lab, "backend set-weight web web1 8 --dry-run");
    assert!(dry.code == 0 && dry.err.contains("would be refused"), "{}", dry.err);
    fs::set_permissions(lab.config_file(), fs::Permissions::from_mode(0o640)).expect("chmod");
    unchanged("read-only");

    // Only the last step, by which the file is replaced, fails: the change was in force by then, and is taken back.
    let immutable = Immutable::new(lab.config_file());
    refused(&lab, "backend remove web web2", 1, "Operation not permitted");
    refused(&lab, "backend set-weight web web1 8 --confirm-within 60s", 1, "Operation not permitted");
    drop(immutable);
    unchanged("immutable");
    still_served(&mut shoppers, "after changes that were taken back");

    let by_hand = before.replace("weight = 100", "weight = 50");
    fs::write(lab.config_file(), &by_hand).expect("write");
    refused(&lab, "backend set-weight web web1 8", 1, "was changed since the agent read it");
    let other = lab.directory().join("other.toml");
    fs::write(&other, &before).expect("write");
    refused(&lab, &format!("apply {}", other.display()), 1, "sluice apply --overwrite");
    assert_eq!((file(&lab), weight(&agent, "web1")), (by_hand.clone(), 100.into()));
    done(&lab, &format!("apply {}", lab.config_file().display()));
    assert_eq!(weight(&agent, "web1"), 50);
    fs::write(lab.config_file(), "by hand, again").expect("write");
    done(&lab, &format!("apply {} --overwrite", other.display()));
    assert_eq!((file(&lab), weight(&agent, "web1")), (before, 100.into()));
    let mode = fs::metadata(lab.config_file()).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "kept");
}

#[test]
fn the_history_tells_who_did_what_and_leads_back() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = three(&lab);
    let first = file(&lab);
    fs::set_permissions(lab.socket(), fs::Permissions::from_mode(0o666)).expect("chmod");
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let binary = lab.directory().join("sluice");
    fs::copy(sluice_binary().expect("sluice"), &binary).expect("copy");
    let mut someone = lab.edge().command("setpriv");
    someone
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .arg("--socket")
        .arg(lab.socket());
    let output =
        said(&someone.args(["backend", "set-weight", "web", "web1", "9"]).output().expect("setpriv"));
    assert_eq!(output.code, 0, "{}", output.err);
    assert!(output.out.contains("~ service[web].backend[web1].weight: 100 → 9"), "{}", output.out);
    assert!(output.out.ends_with("in force, revision 2\n"), "{}", output.out);
    done(&lab, "backend drain web web2");
    assert_eq!(done(&lab, "backend drain web web2")["revision"], 3, "nothing to do is no change");

    let history = done(&lab, "history");
    let entries = history["entries"].as_array().expect("entries");
    let told: Vec<_> =
        entries.iter().map(|entry| (&entry["revision"], &entry["uid"], &entry["what"])).collect();
    let start = Value::from(format!("start with {}", lab.config_file().display()));
    let (drain, set) = ("backend set web web2 state=drain".into(), "backend set web web1 weight=9".into());
    assert_eq!(
        told,
        [
            (&3.into(), &0.into(), &drain),
            (&2.into(), &65_534.into(), &set),
            (&1.into(), &Value::Null, &start)
        ]
    );
    assert_eq!(entries[0]["changes"][0]["after"], "drain", "{history}");
    let table = sluice(&lab, "history").out;
    assert!(table.contains("nobody") && table.contains("root") && table.contains("1 value"), "{table}");

    done(&lab, "rollback");
    assert_eq!(agent.backend("web", "web2").expect("web2")["state"], "enabled");
    assert_eq!(weight(&agent, "web1"), 9);
    let dry = done(&lab, "rollback 1 --dry-run");
    assert_eq!((&dry["changes"][0]["after"], weight(&agent, "web1")), (&"100".into(), 9.into()), "{dry}");
    assert_eq!(done(&lab, "rollback 1")["revision"], 5);
    assert_eq!((file(&lab), weight(&agent, "web1")), (first, 100.into()));
    refused(&lab, "rollback 77", 2, "revision 77 is not kept; kept are: 1, 2, 3, 4, 5");
}

#[test]
fn each_wrong_command_is_told_what_is_wrong_and_what_to_do() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = three(&lab);
    let before = (file(&lab), done(&lab, "history"));
    for (command, code, words) in [
        ("backend set-weight shop web1 5", 2, "there is no service \"shop\"; there are: web, web-tls"),
        ("backend enable web web9", 2, "there is no backend of service web \"web9\"; there are: web1, web2"),
        ("backend add web web1 10.0.1.77", 2, "already; change it with `sluice backend set web web1`"),
        ("backend add web web9", 2, "service[web].backend[web9].address: missing"),
        ("backend add web web9 10.0.1.11", 2, "service[web].backend[web9].address"),
        ("backend set web web1 wieght=5", 2, "did you mean \"weight\"?"),
        ("backend set web web1", 2, "nothing to set: name a key"),
        ("backend set web web1 weight", 2, "write KEY=VALUE"),
        ("backend set-weight web web1 70000", 2, "70000 is not in 0..=65535"),
        ("service add other", 2, "service[other].vips: missing"),
        ("service add other --vip 203.0.113.10:80", 2, "is already used by"),
        ("service set web forwarding=dsr", 2, "known here: l2-dsr, ipip, gue, nat"),
        ("service remove shop", 2, "there is no service \"shop\""),
        ("backend remove web web1 --if-revision 9", 1, "revision 1 is in force, not 9"),
        ("backend remove web web1 --confirm-within 0s", 2, "must be at least 1s"),
        ("backend remove web web1 --confirm-within 1500m", 2, "must be 1s to 1440m"),
        ("backend drain web web1 --wait --timeout soon", 2, "--timeout"),
        ("rollback", 1, "there is no change to undo"),
        ("apply /nonexistent.toml", 1, "/nonexistent.toml: No such file"),
    ] {
        refused(&lab, command, code, words);
    }
    assert_eq!(before, (file(&lab), done(&lab, "history")), "nothing was changed");
    agent.kill9().expect("kill");
    for command in ["backend enable web web1", "history", "confirm", "rollback", "service remove web"] {
        refused(&lab, command, 3, "no agent answers");
    }
}
