//! `sluice capture` under customers' load: tshark reads what was captured, the comments are right, nobody notices, and nothing
//! of it stays.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use lb_tests::{Agent, Daemon, Host, Lab, Load, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ways::{self, WAYS, Way};

const PATIENCE: Duration = Duration::from_secs(30);

/// A capture that was started.
struct Capture {
    daemon: Daemon,
    file: String,
}

impl Capture {
    /// Starts one, and waits until packets are looked at.
    fn start(lab: &Lab, name: &str, arguments: &[&str]) -> Self {
        let file = lab.directory().join(format!("{name}.pcapng")).to_str().expect("a path").to_owned();
        let mut command = lab.sluice_command().expect("sluice");
        command.args(["capture", "-w", &file]).args(arguments);
        let daemon =
            Daemon::spawn(command, name, &lab.directory().join(format!("{name}.log"))).expect("start");
        let mut capture = Self { daemon, file };
        wait_until("it captures", PATIENCE, || {
            capture.daemon.exited().expect("status").is_some()
                || capture.daemon.log().contains("capturing on")
        })
        .unwrap_or_else(|error| panic!("{name}: {error}: {}", capture.daemon.log()));
        capture
    }

    /// Waits until it has ended well; the last line it has said.
    fn ended(&mut self) -> String {
        let status = self.daemon.wait(PATIENCE).expect("it ends");
        assert!(status.success(), "{status}: {}", self.daemon.log());
        self.daemon.log().lines().last().unwrap_or_default().to_owned()
    }

    /// What tshark reads of it.
    fn frames(&self) -> Vec<Frame> {
        let fields = ["frame.interface_name", "frame.comment", "eth.dst", "ip.src", "ip.dst", "frame.len"];
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-r", &self.file, "-T", "fields", "-E", "occurrence=f"]);
        tshark.args(fields.iter().flat_map(|field| ["-e", field])).stderr(Stdio::null());
        let output = tshark.output().expect("tshark");
        assert!(output.status.success(), "{}: {output:?}", self.file);
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| Frame(line.split('\t').map(str::to_owned).collect())).collect()
    }
}

#[derive(Debug)]
struct Frame(Vec<String>);

impl Frame {
    fn field(&self, index: usize) -> &str {
        self.0.get(index).unwrap_or_else(|| panic!("{self:?}"))
    }

    fn is_in(&self) -> bool {
        assert!(["eth0 in", "eth0 out"].contains(&self.field(0)), "{self:?}");
        self.field(0) == "eth0 in"
    }

    fn comment(&self) -> &str {
        self.field(1)
    }

    fn verdict(&self) -> &str {
        let words = self.comment().split([' ', ':']);
        words.take(2).last().unwrap_or_default()
    }

    /// The web server that the comment names.
    fn web<'lab>(&self, lab: &'lab Lab) -> &'lab Host {
        let named = |web: &&Host| self.comment().contains(&format!("; backend {} (", web.name()));
        lab.webs().iter().find(named).unwrap_or_else(|| panic!("{self:?}"))
    }
}

fn ways_named(modes: &[&str]) -> Vec<Way> {
    let wanted = |way: &&Way| modes.contains(&way.mode) && !way.vip6 && !way.backends6;
    WAYS.iter().filter(wanted).copied().collect()
}

/// The program on the edge host's interface.
fn program(lab: &Lab) -> u32 {
    lab.edge().xdp_program("eth0").expect("a look").expect("a program")
}

/// Every packet came in; what was sent left where the comment says.
fn check_frames(lab: &Lab, way: Way, frames: &[Frame]) {
    let mut by_verdict: BTreeMap<&str, u64> = BTreeMap::new();
    for frame in frames {
        let web = frame.web(lab);
        assert!(frame.comment().contains(&format!("; service {}; ", way.name())), "{way:?}: {frame:?}");
        *by_verdict.entry(frame.verdict()).or_default() += 1;
        let mac = web.mac("eth0").expect("mac").map(|byte| format!("{byte:02x}")).join(":");
        let (web, vip) = (way.backend(web).to_string(), way.vip().to_string());
        let (from, to) = (frame.field(3), frame.field(4));
        match (frame.verdict(), frame.is_in()) {
            ("forward", true) => assert_eq!(to, vip, "{way:?}: {frame:?}"),
            ("forward", false) if way.mode == "l2-dsr" => {
                assert_eq!((to, frame.field(2)), (vip.as_str(), mac.as_str()), "{way:?}: {frame:?}");
            }
            ("forward", false) => assert_eq!(to, web, "{way:?}: {frame:?}"),
            ("forward.return", true) => assert_eq!(from, web, "{way:?}: {frame:?}"),
            ("forward.return", false) => assert_eq!(from, vip, "{way:?}: {frame:?}"),
            other => panic!("{way:?}: {other:?}: {frame:?}"),
        }
    }
    let verdicts: Vec<&str> = by_verdict.keys().copied().collect();
    let expected: &[&str] = if way.is_nat() { &["forward", "forward.return"] } else { &["forward"] };
    assert_eq!(verdicts, expected, "{way:?}");
    let ins = frames.iter().filter(|frame| frame.is_in()).count();
    assert_eq!((ins, frames.len()), (300, 600), "{way:?}");
    // Before and after stand one behind the other, and are the same packet.
    for pair in frames.chunks(2) {
        assert!(pair[0].is_in() && !pair[1].is_in() && pair[0].comment() == pair[1].comment(), "{pair:?}");
        let length = |frame: &Frame| frame.field(5).parse::<u32>().expect("a length");
        let grown = if way.is_tunnel() { way.overhead() } else { 0 };
        assert_eq!(length(&pair[1]), length(&pair[0]) + grown, "{pair:?}");
    }
}

#[test]
fn packets_are_captured_before_and_after_with_verdict_and_backend() {
    let lab = Lab::builder().backend_mtu(1_600).start().expect("a lab");
    let ways = ways_named(&["l2-dsr", "ipip", "nat"]);
    assert_eq!(ways.len(), 3);
    let _servers = ways::serve(&lab, &ways);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &ways, "", ""));
    let plain = program(&lab);
    let loads: Vec<Load> = ways.iter().map(|way| Load::start(lab.customer(), way.tcp(), "/", 1)).collect();
    for way in &ways {
        let arguments = ["--service", &way.name(), "--count", "300", "--snaplen", "2048", "-o", "json"];
        let mut capture = Capture::start(&lab, &way.name(), &arguments);
        capture.ended();
        let log = capture.daemon.log();
        let summary: Value = serde_json::from_str(&log[log.find('{').expect("JSON")..]).expect("JSON");
        assert_eq!((&summary["packets"], &summary["frames"]), (&300.into(), &600.into()), "{summary}");
        assert!(summary["seen"].as_u64() > summary["wanted"].as_u64(), "others were seen, too: {summary}");
        check_frames(&lab, *way, &capture.frames());
        assert_eq!(program(&lab), plain, "the load balancer's own program is back");
        // Of its first hundred frames, half are packets as they came in.
        let told = agent.sluice(&["explain", "--frame", &capture.file, "-o", "json"]).expect("explain");
        assert!(
            String::from_utf8_lossy(&told.stderr).contains("50 frames are packets as they left"),
            "{told:?}"
        );
        let told: Vec<Value> = serde_json::from_slice(&told.stdout).expect("JSON");
        let goes_on =
            |one: &&Value| one["verdict"].as_str().is_some_and(|verdict| verdict.starts_with("forward"));
        assert_eq!((told.len(), told.iter().filter(goes_on).count()), (50, 50), "{way:?}");
    }
    filters_narrow(&lab, &agent, ways[0]);
    assert_eq!(program(&lab), plain);
    for load in loads {
        let report = load.stop().expect("report");
        assert!(report.failed == 0 && report.answered > 0, "{report:?}");
    }
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
    agent.terminate().expect("end");
}

fn filters_narrow(lab: &Lab, agent: &Agent<'_>, way: Way) {
    let customer = lab.customer().address().to_string();
    let arguments = ["--backend", "web1", "--service", &way.name(), "--verdict", "forward", "--port", "80"];
    let more = ["--address", &customer, "--sample", "3", "--snaplen", "64", "-c", "40"];
    let mut capture = Capture::start(lab, "filtered", &[&arguments[..], &more[..]].concat());
    assert!(capture.ended().contains("40 packets in 80 frames"), "{}", capture.daemon.log());
    for frame in capture.frames() {
        assert_eq!((frame.web(lab).name(), frame.verdict()), ("web1", "forward"), "{frame:?}");
        assert_eq!(frame.field(3), customer, "{frame:?}");
    }
    // What goes to the host, and is for no service.
    let mut capture =
        Capture::start(lab, "passed", &["--verdict", "pass.not_vip", "--address", &customer, "-c", "2"]);
    ways::ping(lab.customer(), lab.edge().address().into(), 56);
    capture.ended();
    let frames = capture.frames();
    assert_eq!(frames.len(), 2, "they leave on no interface: {frames:?}");
    assert!(frames.iter().all(|frame| frame.is_in() && frame.verdict() == "pass.not_vip"), "{frames:?}");
    let wrong = ["capture", "-w", "/nonexistent/x", "--service", "nothing", "--verdict", "weather"];
    let refused = agent.sluice(&wrong).expect("sluice");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(2) && said.contains("nothing") && said.contains("weather"),
        "{said}"
    );
}

#[test]
fn a_capture_ends_by_its_bounds_and_with_whoever_wanted_it() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let plain = program(&lab);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    let is_plain = || wait_until("the program is back", PATIENCE, || program(&lab) == plain).expect("back");

    let mut interrupted = Capture::start(&lab, "interrupted", &["--count", "1000000"]);
    assert_ne!(program(&lab), plain);
    let second = agent.sluice(&["capture", "-w", "-"]).expect("sluice");
    assert!(String::from_utf8_lossy(&second.stderr).contains("under way"), "{second:?}");
    interrupted.daemon.signal(Signal::SIGINT).expect("Ctrl-C");
    assert!(interrupted.ended().ends_with("ended: interrupted"), "{}", interrupted.daemon.log());
    is_plain();

    let mut full =
        Capture::start(&lab, "full", &["--max-size", "1", "--count", "1000000", "--snaplen", "2048"]);
    assert!(full.ended().contains("as large as it may be"), "{}", full.daemon.log());
    let size = fs::metadata(&full.file).expect("a file").len();
    assert!((1 << 20..(1 << 20) + 10_000).contains(&size), "{size}");
    let mut timed = Capture::start(&lab, "timed", &["--duration", "1s", "--count", "1000000"]);
    assert!(timed.ended().ends_with("the time is over"), "{}", timed.daemon.log());
    is_plain();

    let killed = Capture::start(&lab, "killed", &[]);
    killed.daemon.signal(Signal::SIGKILL).expect("kill");
    is_plain();

    // Tables of another size take other programs.
    let mut resized = Capture::start(&lab, "resized", &["--count", "1000000"]);
    let larger = lab.config().to_string().replace("flow_table_size = 65536", "flow_table_size = 131072");
    let file = lab.directory().join("larger.toml");
    fs::write(&file, &larger).expect("write");
    let applied = agent.sluice(&["apply", file.to_str().expect("a path")]).expect("sluice");
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(resized.daemon.wait(PATIENCE).expect("it ends").code(), Some(1), "{}", resized.daemon.log());
    assert!(resized.daemon.log().contains("another size"), "{}", resized.daemon.log());
    let plain = program(&lab);

    // Without the agent the capturing programs go on forwarding, all stages of them.
    let mut orphan = Capture::start(&lab, "orphan", &["--count", "1000000"]);
    let told = || fs::metadata(&orphan.file).is_ok_and(|file| file.len() > 10_000);
    wait_until("packets are in the file", PATIENCE, told).expect("a file");
    agent.kill9().expect("kill -9");
    assert_eq!(orphan.daemon.wait(PATIENCE).expect("it ends").code(), Some(3), "{}", orphan.daemon.log());
    assert_ne!(program(&lab), plain);
    ways::ping(lab.customer(), lab.vip(80).ip(), 56);
    assert!(!orphan.frames().is_empty(), "what had been told of is in the file");
    let before = load.done();
    wait_until("requests go on", PATIENCE, || load.done() > before + 50).expect("load");
    let agent = lab.start_agent(&larger).expect("a new agent");
    let fresh = program(&lab);
    let mut after = Capture::start(&lab, "after", &["--count", "20"]);
    after.ended();
    assert_eq!(program(&lab), fresh);
    let report = load.stop().expect("report");
    assert!(report.failed == 0 && report.answered > 0, "{report:?}");
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
    agent.terminate().expect("end");
}

/// Who pages through packets looks at one screen of them while others come.
#[test]
fn a_capture_ends_in_time_although_its_reader_stands_still() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_agent(&lab.config().to_string()).expect("an agent");
    agent.wait_until_healthy().expect("healthy");
    let program_before = program(&lab);
    let capture = Capture::start(&lab, "still", &["--duration", "3s", "--count", "1000000"]);
    capture.daemon.signal(Signal::SIGSTOP).expect("stop");
    assert_ne!(program(&lab), program_before);
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    wait_until("it ends", PATIENCE, || program(&lab) == program_before).expect("in time");
    assert_eq!(load.stop().expect("a report").failed, 0);
}
