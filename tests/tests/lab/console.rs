//! What `sluice top` and the web console show, and that they show the same as everything else.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use lb_tests::{Agent, Lab, Load, run_checked, sluice_binary, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const CONSOLE: &str = "http://127.0.0.1:9400";

fn lab_with_console(lab: &Lab) -> Agent<'_> {
    lab.start_healthy_agent(&lab.config().metrics()).expect("an agent")
}

fn get(lab: &Lab, path: &str) -> Value {
    let answer = lab.edge().curl(&[&format!("{CONSOLE}{path}")]).expect("an answer");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_str(&answer.text()).expect("JSON")
}

/// Some requests, and the counters at rest behind them.
fn serve(lab: &Lab) {
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    wait_until("requests flow", PATIENCE, || load.done() > 200).expect("load");
    load.stop().expect("report");
}

#[test]
fn the_console_shows_what_status_and_metrics_say() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab_with_console(&lab);
    let page = lab.edge().curl(&[&format!("{CONSOLE}/")]).expect("the page");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("<title>Sluice</title>"), "{}", page.text());
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", "default-src 'none'; script-src 'sha256-"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        let header = page.headers.get(name);
        assert!(header.is_some_and(|header| header.starts_with(value)), "{name}: {:?}", page.headers);
    }

    serve(&lab);
    wait_until("the last hour has the requests", PATIENCE, || {
        let trend = get(&lab, "/trend?service=web");
        trend["packets_per_second"].as_array().is_some_and(|points| points.iter().any(|point| point != 0.0))
    })
    .expect("points");
    let trend = get(&lab, "/trend");
    assert_eq!((&trend["step_seconds"], &trend["service"]), (&5.into(), &Value::Null), "{trend}");
    assert_eq!(
        trend["drops_per_second"].as_array().map(Vec::len),
        trend["packets_per_second"].as_array().map(Vec::len)
    );
    let events = get(&lab, "/events");
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert!(kinds.contains(&"ready") && kinds.contains(&"health"), "{kinds:?}");

    // Packets that are not for a VIP go on being counted: curl's own are not, they are on the loopback interface.
    let (status, metrics) = (get(&lab, "/status"), lab.edge().curl(&[&format!("{CONSOLE}/metrics")]));
    let metrics = metrics.expect("metrics").text();
    let web = status["services"][0].clone();
    let packets = web["packets"].as_u64().expect("packets");
    assert!(packets > 1_000, "{web}");
    let is_said = |name: &str, value: &Value| {
        assert!(metrics.lines().any(|line| line == format!("{name} {value}")), "{name} {value}: {metrics}");
    };
    is_said("sluice_service_packets_total{service=\"web\"}", &web["packets"]);
    is_said("sluice_service_bytes_total{service=\"web\"}", &web["bytes"]);
    for backend in web["backends"].as_array().expect("backends") {
        let name = backend["name"].as_str().expect("a name");
        is_said(
            &format!("sluice_backend_packets_total{{service=\"web\",backend=\"{name}\"}}"),
            &backend["packets"],
        );
    }
    is_said("sluice_verdicts_total{verdict=\"forward\"}", &status["verdicts"]["forward"]);

    let status_of = |arguments: &[&str]| lab.edge().curl(arguments).expect("an answer").status;
    assert_eq!(status_of(&["-XPOST", &format!("{CONSOLE}/")]), 405, "reading only");
    assert_eq!(status_of(&["-XPOST", &format!("{CONSOLE}/v1/edit")]), 404, "reading only");
    assert_eq!(status_of(&[&format!("{CONSOLE}/trend?service=none")]), 422);
}

/// The kernel's setting, which is put back as it was.
struct BpfStats(String);

impl BpfStats {
    const FILE: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn take() -> Self {
        Self(fs::read_to_string(Self::FILE).expect("a setting"))
    }

    fn set(&self, value: &str) {
        fs::write(Self::FILE, value).expect("a setting");
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

#[test]
fn the_time_the_program_takes_is_told_while_the_kernel_counts_it() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab_with_console(&lab);
    let metrics = || lab.edge().curl(&[&format!("{CONSOLE}/metrics")]).expect("metrics").text();
    let metric = |name: &str| {
        let text = metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.and_then(|value| value.parse::<f64>().ok())
    };
    let packets = || agent.service("web").expect("web")["packets"].as_u64().expect("packets");
    let stats = BpfStats::take();
    stats.set("0");
    assert!(
        !metrics().contains("sluice_program_run") && agent.status().expect("status")["program"].is_null()
    );
    stats.set("1");
    let before = (metric("sluice_program_runs_total").expect("runs"), packets());
    serve(&lab);
    let runs = metric("sluice_program_runs_total").expect("runs") - before.0;
    let forwarded = (packets() - before.1) as f64;
    assert!(forwarded > 500.0 && runs >= forwarded, "{runs} runs for {forwarded} packets");
    let seconds = metric("sluice_program_run_seconds_total").expect("seconds");
    let program = agent.status().expect("status")["program"].clone();
    let each = seconds / program["count"].as_f64().expect("runs");
    assert!((1e-9..1e-4).contains(&each), "{each} seconds a packet: {program}");
    stats.set("0");
    assert!(
        !metrics().contains("sluice_program_run") && agent.status().expect("status")["program"].is_null()
    );
}

#[test]
fn top_prints_once_where_there_is_no_terminal() {
    let lab = Lab::builder().start().expect("a lab");
    let none = lab.sluice(&["top", "--once"]).expect("sluice");
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("no agent answers"), "{none:?}");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    wait_until("requests flow", PATIENCE, || load.done() > 50).expect("load");
    let json = agent.sluice(&["top", "-o", "json"]).expect("sluice");
    load.stop().expect("report");
    assert!(json.status.success(), "{json:?}");
    let view: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let web = &view["services"][0];
    assert!(web["rate"]["packets_per_second"].as_f64().is_some_and(|rate| rate > 10.0), "{web}");
    assert_eq!(web["rate"], view["total"], "the only one with traffic");
    let got: f64 = (web["backends"].as_array().expect("backends").iter())
        .filter_map(|backend| backend["traffic_share"].as_f64())
        .sum();
    assert!((got - 1.0).abs() < 1e-9, "{web}");
    assert!(view["events"].as_array().is_some_and(|events| !events.is_empty()), "{view}");
    let table = agent.sluice(&["top"]).expect("sluice");
    let text = String::from_utf8_lossy(&table.stdout);
    assert!(text.contains("web1") && !text.contains('\u{1b}'), "{text}");
}

/// A terminal of 80 by 24 in which `top` runs, with the terminal's settings before and after.
fn in_terminal(lab: &Lab, keys: impl FnOnce(&mut dyn Write, &dyn Fn() -> String)) -> String {
    let record = lab.directory().join("terminal");
    let (sluice, socket) = (sluice_binary().expect("sluice"), lab.socket());
    let commands = format!(
        "stty cols 80 rows 24; echo before $(stty -g)\n\
         sh -c 'echo $$ > {}; exec {} --socket {} top --interval 200ms'\necho ended $?; echo after $(stty -g)",
        lab.directory().join("top.pid").display(),
        sluice.display(),
        socket.display()
    );
    let mut script = lab.edge().command("script");
    // The record begins with what is run: that is better not the commands themselves.
    let file = lab.directory().join("terminal.sh");
    fs::write(&file, commands).expect("write");
    let run = format!("sh {}", file.display());
    script.args(["--quiet", "--flush", "--command", &run]).arg(&record);
    script.env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env("SHELL", "/bin/sh");
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("script");
    let mut stdin = script.stdin.take().expect("stdin");
    let seen = || String::from_utf8_lossy(&fs::read(&record).unwrap_or_default()).into_owned();
    wait_until("top is drawn", PATIENCE, || seen().contains("EVENTS")).unwrap_or_else(|error| {
        panic!("{error}: {}", seen());
    });
    keys(&mut stdin, &seen);
    wait_until("top has ended", PATIENCE, || seen().contains("after ")).unwrap_or_else(|error| {
        panic!("{error}: {}", seen());
    });
    drop(stdin);
    script.wait().expect("an end");
    seen()
}

/// The terminal is as it was: its settings, its cursor, and what was on it.
fn is_left_as_it_was(seen: &str) {
    let settings = |what: &str| {
        let line = seen.split(what).nth(1).and_then(|rest| rest.lines().next());
        line.unwrap_or_else(|| panic!("{what}: {seen}")).trim().to_owned()
    };
    assert_eq!(settings("before "), settings("after "));
    let last = |sequence: &str| seen.rfind(sequence).unwrap_or_else(|| panic!("{sequence:?}: {seen}"));
    assert!(last("\u{1b}[?1049l") > last("\u{1b}[?1049h"), "the other screen: {seen}");
    assert!(last("\u{1b}[?25h") > last("\u{1b}[?25l"), "the cursor: {seen}");
    assert_eq!(settings("ended "), "0", "{seen}");
}

#[test]
fn top_drains_a_backend_after_a_yes_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let seen = in_terminal(&lab, |keys, seen| {
        keys.write_all(b"jd").expect("keys");
        wait_until("it asks", PATIENCE, || seen().contains("Drain web1")).expect("a question");
        assert_eq!(agent.backend("web", "web1").expect("web1")["state"], "enabled");
        keys.write_all(b"y").expect("keys");
        wait_until("it is drained", PATIENCE, || {
            agent.backend("web", "web1").is_ok_and(|backend| backend["state"] == "drain")
        })
        .expect("drained");
        keys.write_all(b"q").expect("keys");
    });
    is_left_as_it_was(&seen);
    let web1 = agent.backend("web", "web1").expect("web1");
    assert_eq!(web1["ring_share"], 0.0, "{web1}");
}

#[test]
fn top_says_that_the_agent_is_gone_and_ends_on_sigterm() {
    let lab = Lab::builder().start().expect("a lab");
    let mut agent = Some(lab.start_healthy_agent(&lab.config()).expect("an agent"));
    let seen = in_terminal(&lab, |_, seen| {
        agent.take().expect("once").terminate().expect("end");
        wait_until("it says so", PATIENCE, || seen().contains("DOES")).expect("told");
        let pid = fs::read_to_string(lab.directory().join("top.pid")).expect("a process id");
        run_checked(lab.edge().command("kill").arg(pid.trim())).expect("SIGTERM");
    });
    is_left_as_it_was(&seen);
}
