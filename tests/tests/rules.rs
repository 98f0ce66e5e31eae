//! The shipped alert rules, as Prometheus itself reads them: they are rules, and fire when they should and only then.

use std::path::Path;
use std::process::Command;

use lb_tests::{promtool, run_checked};

fn promtool_says(arguments: &[&str]) -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut command = Command::new(promtool().expect("promtool"));
    let output = run_checked(command.args(arguments).current_dir(deploy));
    String::from_utf8_lossy(&output.unwrap_or_else(|error| panic!("{error:#}")).stdout).into_owned()
}

#[test]
fn the_alert_rules_pass_promtool_and_their_unit_tests() {
    let checked = promtool_says(&["check", "rules", "sluice.rules.yml"]);
    let rules = include_str!("../../deploy/sluice.rules.yml").matches("- alert:").count();
    assert!(checked.contains(&format!("{rules} rules found")), "{checked}");
    let tested = promtool_says(&["test", "rules", "sluice.rules.test.yml"]);
    assert!(tested.contains("SUCCESS"), "{tested}");
}

/// Each alert has a test in which it fires.
#[test]
fn every_alert_is_tested() {
    let tests = include_str!("../../deploy/sluice.rules.test.yml");
    for line in include_str!("../../deploy/sluice.rules.yml").lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            let name = format!("alertname: {alert}\n");
            let fires = tests.match_indices(&name).filter(|(at, _)| {
                let next = tests.get(*at..).and_then(|rest| rest.lines().nth(1));
                next.is_some_and(|next| !next.trim_end().ends_with("[]"))
            });
            assert!(fires.count() > 0, "{alert} fires in no test");
        }
    }
}
