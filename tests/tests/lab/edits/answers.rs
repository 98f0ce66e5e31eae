//! What commands say: predictions, the history, refusals.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lb_tests::{HttpConnection, Lab, sluice_binary};
use serde_json::Value;

use super::*;

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
    // Connections of a VIP that goes have no way to their backend any more, though the backend stays.
    let other = lab.vip(81);
    let moved = sluice(&lab, &format!("service set web --vip {other} --dry-run -o json"));
    assert_eq!(moved.json()["flows_lost"], 60, "{}", moved.out);
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
    refused(&lab, "rollback 77", 2, "revision 77 is not kept; `sluice history` lists those that are");
}

#[test]
fn edits_at_the_same_time_are_made_one_after_the_other() {
    const EDITS: u64 = 6;
    let lab = Lab::builder().start().expect("a lab");
    let agent = three(&lab);
    let edit = |(service, backend): (&str, &str)| -> Vec<u64> {
        let set = |weight| done(&lab, &format!("backend set-weight {service} {backend} {weight}"));
        (1..=EDITS).map(|weight| set(weight)["revision"].as_u64().expect("a revision")).collect()
    };
    let edit = &edit;
    let all = [("web", "web1"), ("web", "web2"), ("web-tls", "web1"), ("web-tls", "web2")];
    let mut revisions: Vec<u64> = std::thread::scope(|scope| {
        let threads = all.map(|which| scope.spawn(move || edit(which)));
        threads.into_iter().flat_map(|thread| thread.join().expect("edits")).collect()
    });
    revisions.sort_unstable();
    assert_eq!(revisions, (2..2 + 4 * EDITS).collect::<Vec<_>>(), "each has its own");
    for (service, backend) in all {
        let backends = agent.service(service).expect("service")["backends"].clone();
        let found = backends.as_array().expect("backends").iter().find(|found| found["name"] == backend);
        assert_eq!(found.expect("backend")["weight"], EDITS);
    }
    assert_eq!(file(&lab).matches("weight = 6").count(), 4, "{}", file(&lab));
    tables_are_as_the_file_says(&lab);

    // A backend of which nothing is known yet is predicted to serve.
    done(&lab, "backend remove web web2");
    done(&lab, "backend remove web-tls web2");
    let add = format!("backend add web web2 {} --weight 6", lab.web(1).address());
    for report in [done(&lab, &format!("{add} --dry-run")), done(&lab, &add)] {
        let share = report["rings"][0]["slots_changed"].as_f64().expect("a share");
        assert!((0.49..0.52).contains(&share), "{report}");
    }
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
        ("backend set-weight web web1 70000", 2, "write a whole number from 0 to 65535"),
        ("backend set-weight web web1 -5", 2, "write a whole number from 0 to 65535"),
        ("backend set-weight web web1 5 --if-revision last", 2, "write the number of a revision"),
        ("explain --src 198.51.100.7 --dst 203.0.113.10:80", 2, "write an address and a port"),
        ("service add other", 2, "service[other].vips: missing"),
        ("service add other --vip 203.0.113.10:80", 2, "is already used by"),
        ("service add other vips=203.0.113.10", 2, "service[other].vips[0]: needs a port"),
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
