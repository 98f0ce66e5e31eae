//! What nobody confirms is undone, and what cannot be kept is not done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use lb_tests::{Lab, Load, run_checked, wait_until};

use super::*;

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
    let undo = sluice(&lab, "rollback --dry-run");
    assert!(undo.code == 0 && undo.out.contains("weight: 7 → 100"), "{}", undo.out);
    assert!(!undo.err.contains("would be refused"), "{}", undo.err);
    refused(&lab, "backend set-weight web web1 8", 1, "waits for its confirmation");
    assert_eq!(done(&lab, "history")["entries"][0]["confirmed"], Value::Null);
    assert_eq!(done(&lab, "confirm")["revision"], 2);
    let entry = done(&lab, "history")["entries"][0].clone();
    assert_eq!((&entry["revision"], &entry["confirmed"]["uid"]), (&2.into(), &0.into()), "{entry}");
    assert!(sluice(&lab, "history").out.contains("confirmed by root"));
    refused(&lab, "confirm", 1, "no change waits");
    done(&lab, "rollback");
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), before.clone()));

    apply(1);
    wait_until("it is undone", PATIENCE, || file(&lab) == before).expect("in time");
    assert_eq!(weight(&agent, "web1"), 100);
    apply(2);
    let edited = format!("# by hand\n{}", file(&lab));
    fs::write(lab.config_file(), &edited).expect("write");
    let told = || {
        done(&lab, "history")["entries"][0]["what"]
            .as_str()
            .is_some_and(|what| what.contains("is left as it is"))
    };
    wait_until("it is undone, and told that the file is not", PATIENCE, told).expect("in time");
    assert!(sluice(&lab, "events").out.contains("is left as it is"));
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), edited));
    fs::write(lab.config_file(), &before).expect("write");
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
    let undone = sluice(&lab, "events --kind applied -n 1").out;
    assert!(undone.contains("undo of apply") && undone.contains("before it was confirmed"), "{undone}");
    agent.wait_until_healthy().expect("healthy");
    tables_are_as_the_file_says(&lab);
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
    refused(&lab, "backend remove web web2", 1, "cannot be replaced (Operation not permitted");
    refused(&lab, "backend set-weight web web1 8 --confirm-within 60s", 1, "chattr -i");
    drop(immutable);
    unchanged("immutable");
    // What goes with it is taken back, too.
    let other = lab.directory().join("other.toml");
    let apply_with_metrics = |port: u16| {
        let metrics = format!("[agent]\nmetrics = \"127.0.0.1:{port}\"\n");
        fs::write(&other, before.replace("[agent]\n", &metrics)).expect("write");
        format!("apply {}", other.display())
    };
    done(&lab, &apply_with_metrics(9_411));
    let immutable = Immutable::new(lab.config_file());
    let said = sluice(&lab, &apply_with_metrics(9_412));
    assert!(
        said.err.contains("cannot be replaced") && !said.err.contains("going back failed"),
        "{}",
        said.err
    );
    let serves = |port: u16| lab.edge().connect(([127, 0, 0, 1], port).into(), None).is_ok();
    assert_eq!([9_411, 9_412].map(serves), [true, false]);
    drop(immutable);
    done(&lab, "rollback");
    assert_eq!(file(&lab), before);
    // What nobody confirms is undone all the same, and the file is written as soon as it can be.
    done(&lab, "backend set-weight web web1 8 --confirm-within 60s");
    let revision = &done(&lab, "history")["revision"];
    let immutable = Immutable::new(lab.config_file());
    refused(&lab, "rollback", 1, "cannot be replaced");
    assert_eq!(weight(&agent, "web1"), 100);
    refused(&lab, "confirm", 1, "is undone, but");
    refused(&lab, "backend set-weight web web1 9", 1, "cannot be written and still says it");
    assert!(sluice(&lab, "history").out.contains(&format!("revision {revision} is undone, but")));
    drop(immutable);
    done(&lab, "rollback");
    assert_eq!((weight(&agent, "web1"), file(&lab)), (100.into(), before.clone()));
    still_served(&mut shoppers, "after changes that were taken back");

    let by_hand = before.replace("weight = 100", "weight = 50");
    fs::write(lab.config_file(), &by_hand).expect("write");
    refused(&lab, "backend set-weight web web1 8", 1, "was changed since the agent read it");
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
