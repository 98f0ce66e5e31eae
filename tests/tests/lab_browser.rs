//! The web console in a real Chromium on the edge host: it runs, shows what happens, and asks nobody else.

use std::fs;
use std::time::Duration;

use lb_tests::{Lab, Load, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// What Chromium makes of the page after some seconds: its document, and what its console says.
fn browse(lab: &Lab, arguments: &[&str]) -> (String, String) {
    let mut chromium = lab.edge().command("chromium");
    let profile = lab.directory().join("chromium");
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]);
    chromium.args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"]);
    chromium.arg(format!("--user-data-dir={}", profile.display())).env("HOME", lab.directory());
    let output = chromium.args(arguments).arg("http://127.0.0.1:9400/").output().expect("chromium");
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_console_runs_in_chromium_and_shows_what_happens() {
    let lab = Lab::builder().start().expect("a lab");
    let config = lab.config().to_string().replace("[agent]\n", "[agent]\nmetrics = \"127.0.0.1:9400\"\n");
    let agent = lab.start_agent(&config).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    lab.web(0).stop_nginx().expect("stop");
    agent.wait_for_status("web", "degraded", PATIENCE).expect("degraded");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    wait_until("requests flow", PATIENCE, || load.done() > 50).expect("load");
    let (document, console) = browse(&lab, &["--dump-dom"]);
    if let Some(folder) = std::env::var_os("SLUICE_SCREENSHOTS") {
        fs::create_dir_all(&folder).expect("a folder");
        for (name, size) in [("desk", "1280,1400"), ("phone", "390,1600")] {
            let file = std::path::Path::new(&folder).join(format!("{name}.png"));
            browse(&lab, &[&format!("--screenshot={}", file.display()), &format!("--window-size={size}")]);
        }
    }
    load.stop().expect("report");
    assert!(!console.contains("CONSOLE"), "{console}");
    for shown in ["degraded", "connection refused", "web2", "class=\"bad\">unhealthy"] {
        assert!(document.contains(shown), "{shown}: {document}");
    }
    assert!(document.contains("id=\"lost\" role=\"alert\" hidden"), "{document}");
    let packets = document.split("<b id=\"packets\">").nth(1).and_then(|rest| rest.split('<').next());
    assert!(packets.is_some_and(|packets| packets != "0" && packets != "–"), "{packets:?}: numbers move");
}
