//! What operators do, and do wrong: start an agent beside another, detach the wrong one, name a wrong file.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use lb_common::abi::ABI_VERSION;
use lb_tests::{Daemon, HttpConnection, Lab, Load, run_checked, sluice_binary, wait_until};
use lb_userspace::io::datapath::{Access, Datapath, Kernel, PinDir};

const PATIENCE: Duration = Duration::from_secs(10);

fn text(path: &Path) -> &str {
    path.to_str().expect("path")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether an XDP program is on an interface of the edge host.
fn has_program(lab: &Lab, interface: &str) -> bool {
    lab.edge().has_xdp(interface)
}

fn is_served(lab: &Lab) -> bool {
    HttpConnection::open(lab.customer(), lab.vip(80), None)
        .and_then(|connection| connection.get_and_close("/"))
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_program_that_somebody_takes_off_is_attached_again() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let link = lab.pins().join("link-eth0");
    // Nothing but its pin holds the link.
    fs::remove_file(&link).expect("remove the pin");
    wait_until("it is attached again", PATIENCE, || link.exists() && has_program(&lab, "eth0"))
        .expect("again");
    wait_until("customers are served", PATIENCE, || is_served(&lab)).expect("served");
    let told = || stdout(&agent.sluice(&["events", "--kind", "taken_off"]).expect("sluice"));
    wait_until("it is told", PATIENCE, || told().contains("eth0: the program was taken off")).expect("told");
    assert!(agent.sluice(&["status", "--check"]).expect("sluice").status.success());
}

#[test]
fn an_agent_of_another_pin_directory_is_not_detached() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    // Below the first one's, so that it goes with the lab.
    let (socket, pins) = (lab.directory().join("other.sock"), lab.pins().join("other"));
    let mut command = lab.edge().command(sluice_binary().expect("sluice"));
    command.args(["agent", "--no-attach", "--config", text(&lab.config_file())]);
    command.args(["--socket", text(&socket), "--pin-dir", text(&pins)]);
    let mut other = Daemon::spawn(command, "other agent", &lab.directory().join("other.log")).expect("start");
    wait_until("the other agent is ready", PATIENCE, || other.log().contains("ready: ")).expect("ready");

    let refused = lab.sluice(&["detach", "--pin-dir", text(&pins)]).expect("sluice");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(stderr(&refused).contains(&format!("pins in {}", lab.pins().display())), "{refused:?}");
    agent.status().expect("the agent still answers");
    assert!(has_program(&lab, "eth0"));

    let done = lab.sluice(&["detach", "--pin-dir", text(&pins), "--socket", text(&socket)]).expect("sluice");
    assert!(done.status.success(), "{done:?}");
    assert!(other.wait(PATIENCE).expect("end").success());
    assert!(!pins.exists());
    assert!(is_served(&lab));

    // The same directory by another name; and something of somebody else's may stay in it.
    fs::create_dir(&pins).expect("a folder");
    let roundabout = lab.pins().join("maps/..");
    let done = agent.sluice(&["detach", "--pin-dir", text(&roundabout)]).expect("sluice");
    assert!(done.status.success(), "{done:?}");
    assert!(!has_program(&lab, "eth0"), "detached when it says so");
    assert_eq!(fs::read_dir(lab.pins()).expect("pins").count(), 1, "only the folder is left");
}

#[test]
fn detaching_by_a_dead_socket_touches_nothing() {
    let lab = Lab::builder().start().expect("a lab");
    lab.start_healthy_agent(&lab.config()).expect("an agent").kill9().expect("kill -9");
    let output = lab.sluice(&["detach"]).expect("sluice");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(has_program(&lab, "eth0"));
    let output = lab.sluice(&["detach", "--pin-dir", text(lab.pins())]).expect("sluice");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "detached from eth0\n");
    assert!(!has_program(&lab, "eth0"), "detached when it says so");
}

#[test]
fn who_may_not_detach_is_told_so() {
    let lab = Lab::builder().start().expect("a lab");
    lab.start_healthy_agent(&lab.config()).expect("an agent").kill9().expect("kill -9");
    let sluice = lab.directory().join("sluice");
    fs::copy(sluice_binary().expect("sluice"), &sluice).expect("copy");
    let mut command = lab.edge().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", text(&sluice)]);
    let output = command.args(["detach", "--pin-dir", text(lab.pins())]).output().expect("setpriv");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("run as root"), "{output:?}");
    assert!(has_program(&lab, "eth0"));
}

#[test]
fn a_new_agent_waits_for_the_one_that_ends() {
    let lab = Lab::builder().start().expect("a lab");
    let config = lab.config().metrics();
    let first = lab.start_healthy_agent(&config).expect("an agent");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 1);
    wait_until("requests flow", PATIENCE, || load.done() > 20).expect("load");
    // The first one still answers for it.
    let second = lab.start_agent(&config.to_string()).expect("a new agent");
    std::thread::sleep(Duration::from_millis(500));
    assert!(first.terminate().expect("end").success());
    wait_until("the new agent is ready", PATIENCE, || second.log().contains("ready: "))
        .unwrap_or_else(|error| panic!("{error}\n{}", second.log()));
    second.wait_until_healthy().expect("healthy");
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
}

#[test]
fn a_start_that_fails_leaves_nothing_that_the_next_one_would_adopt() {
    let lab = Lab::builder().start().expect("a lab");
    let config = lab.config().metrics();
    let taken =
        lab.edge().run(|| std::net::TcpListener::bind("127.0.0.1:9400").expect("a port")).expect("run");
    let refused = lab.start_agent(&config.to_string()).map(drop).expect_err("the port is taken");
    assert!(format!("{refused:#}").contains("127.0.0.1:9400"), "{refused:#}");
    assert_eq!(
        Kernel::open(&PinDir::new(lab.pins()), Access::Read).err().map(|_| ()),
        Some(()),
        "tables are left"
    );
    drop(taken);
    let agent = lab.start_healthy_agent(&config).expect("an agent");
    assert!(!agent.log().contains("adopted"), "{}", agent.log());
}

#[test]
fn a_second_agent_is_told_what_is_wrong() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let start = |config: &Path, socket: &Path, pins: &Path| {
        let mut command = lab.edge().command(sluice_binary().expect("sluice"));
        command.args(["agent", "--config", text(config), "--socket", text(socket), "--pin-dir", text(pins)]);
        command.output().expect("sluice")
    };
    let refused = start(&lab.config_file(), &lab.socket(), lab.pins());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("another sluice agent answers"), "{refused:?}");

    let wrong = lab.directory().join("wrong.toml");
    fs::write(&wrong, "[agent]\ninterfaces = []\ncolour = \"green\"\n").expect("write");
    let refused = start(&wrong, &lab.socket(), lab.pins());
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(stderr(&refused).contains("agent.colour"), "{refused:?}");

    let refused = start(&lab.config_file(), &wrong, lab.pins());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("not a socket"), "{refused:?}");
    assert!(wrong.exists(), "a file that was named by mistake stays");

    let refused = start(&lab.config_file(), &lab.directory().join("other.sock"), lab.pins());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("is running on this pin directory; stop it first"), "{refused:?}");

    let dotted = lab.pins().with_file_name("sluice.site");
    let refused = start(&lab.config_file(), &lab.directory().join("other.sock"), &dotted);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("no names with a dot"), "{refused:?}");
    agent.status().expect("the agent still answers");
}

#[test]
fn tables_that_are_incomplete_are_not_replaced_under_a_live_link() {
    let lab = Lab::builder().start().expect("a lab");
    lab.start_healthy_agent(&lab.config()).expect("an agent").kill9().expect("kill -9");
    let maps = lab.pins().join("maps");
    let map = fs::read_dir(&maps).expect("maps").flatten().map(|entry| entry.file_name());
    let map =
        map.map(|name| name.into_string().expect("name")).find(|name| name.contains("ring")).expect("rings");
    fs::remove_file(maps.join(&map)).expect("remove");
    let refused = lab.start_agent(&lab.config().to_string()).expect_err("a map is missing").to_string();
    assert!(refused.contains(&format!("map {map} is missing")), "{refused}");
    assert!(is_served(&lab), "what was attached goes on");
    let detached = lab.sluice(&["detach", "--pin-dir", text(lab.pins())]).expect("sluice");
    assert!(detached.status.success(), "{detached:?}");
    lab.start_healthy_agent(&lab.config()).expect("an agent");
    assert!(is_served(&lab));
}

/// An upgrade or downgrade whose tables have another layout: nothing is touched, and the operator is told what to choose from.
#[test]
fn tables_of_another_version_are_refused_with_the_choice_and_go_on() {
    let lab = Lab::builder().start().expect("a lab");
    for (version, age) in [(ABI_VERSION - 1, "earlier"), (ABI_VERSION + 1, "later")] {
        lab.start_healthy_agent(&lab.config()).expect("an agent").kill9().expect("kill -9");
        let set_version = |version: u32| {
            let mut kernel =
                Kernel::open(&PinDir::new(lab.pins()), Access::Write).expect("the pinned tables");
            let control = kernel.tables_mut().control_mut().expect("control");
            control.abi_version.store(version.into());
        };
        set_version(version);
        let refused = lab.start_agent(&lab.config().to_string()).expect_err("another version").to_string();
        for words in [
            format!("ABI version {version}, {age} than this one's {ABI_VERSION}"),
            "start the version of sluice that made it".to_owned(),
            format!("sluice detach --pin-dir {}", lab.pins().display()),
        ] {
            assert!(refused.contains(&words), "{words}: {refused}");
        }
        assert!(has_program(&lab, "eth0") && is_served(&lab), "what was attached goes on");
        // The version that made it, which this one is, adopts it.
        set_version(ABI_VERSION);
        let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
        agent.kill9().expect("kill -9");
        set_version(version);
        let detached = lab.sluice(&["detach", "--pin-dir", text(lab.pins())]).expect("sluice");
        assert!(detached.status.success(), "{detached:?}");
        assert!(!has_program(&lab, "eth0"));
    }
    lab.start_healthy_agent(&lab.config()).expect("an agent");
    assert!(is_served(&lab), "begun anew");
}

#[test]
fn a_degraded_service_is_status_4_where_it_is_asked_for() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let status = |arguments: &[&str]| agent.sluice(&[&["status"], arguments].concat()).expect("sluice");
    let well = status(&["--check"]);
    assert_eq!((well.status.code(), stderr(&well)), (Some(0), String::new()));
    lab.web(0).stop_nginx().expect("stop");
    agent.wait_for_status("web", "degraded", PATIENCE).expect("degraded");
    let unwell = status(&["--check", "-o", "json"]);
    assert_eq!(unwell.status.code(), Some(4), "{unwell:?}");
    assert!(stderr(&unwell).contains("service web is degraded"), "{unwell:?}");
    let told: serde_json::Value = serde_json::from_slice(&unwell.stdout).expect("JSON all the same");
    assert_eq!(told["services"][0]["status"], "degraded", "{told}");
    assert_eq!(status(&[]).status.code(), Some(0), "not asked for");
}

/// A network card that is gone must not keep a new agent from looking after what the other one serves.
#[test]
fn an_agent_starts_again_although_one_of_its_interfaces_is_gone() {
    let lab = Lab::builder().start().expect("a lab");
    let spare =
        || lab.edge().ip("link add spare type veth peer name peer\nlink set spare up\nlink set peer up\n");
    let config = lab.config().to_string().replace("[\"eth0\"]", "[\"eth0\", \"spare\"]");
    let absent = lab.start_agent(&config).expect_err("nothing runs: the name is wrong");
    assert!(format!("{absent:#}").contains("there is no interface spare"), "{absent:#}");
    spare().expect("an interface");
    let agent = lab.start_agent(&config).expect("an agent");
    agent.kill9().expect("kill");
    lab.edge().ip("link del spare\n").expect("gone");
    let agent = lab.start_agent(&config).expect("an agent all the same");
    let status = || agent.status().expect("status")["agent"]["not_attached"].clone();
    assert_eq!(status(), serde_json::json!(["spare"]));
    agent.wait_until_healthy().expect("healthy");
    assert!(is_served(&lab));
    let told = || {
        let events = stdout(&agent.sluice(&["events", "--kind", "not_attached"]).expect("sluice"));
        events.matches("there is no interface spare").count()
    };
    assert_eq!(told(), 1);
    spare().expect("it is back");
    let attached = || has_program(&lab, "spare") && status().as_array().is_none_or(Vec::is_empty);
    wait_until("it is attached", PATIENCE, attached).expect("attached");
    lab.edge().ip("link del spare\n").expect("gone once more");
    wait_until("that is told", PATIENCE, || told() == 2).expect("an event");
    assert_eq!(status(), serde_json::json!(["spare"]));
    let packet = ["explain", "--src", "198.51.100.7:40000", "--dst", "203.0.113.10:80", "--iface", "spare"];
    let explained = agent.sluice(&packet).expect("sluice");
    assert!(stderr(&explained).contains("there is no interface spare now"), "{explained:?}");
    assert!(is_served(&lab));
    spare().expect("it is back");
    wait_until("it is attached", PATIENCE, attached).expect("attached");
}

#[test]
fn interfaces_may_have_dots_in_their_names() {
    let lab = Lab::builder().start().expect("a lab");
    for arguments in [
        ["link", "add", "vlan.100", "type", "veth", "peer", "name", "peer"].as_slice(),
        &["link", "set", "vlan.100", "up"],
        &["link", "set", "peer", "up"],
        &["addr", "add", "10.9.0.1/24", "dev", "vlan.100"],
    ] {
        run_checked(lab.edge().command("ip").args(arguments)).expect("ip");
    }
    let both = |config: String| config.replace("[\"eth0\"]", "[\"eth0\", \"vlan.100\"]");
    for _ in 0..2 {
        let agent = lab.start_agent(&both(lab.config().to_string())).expect("an agent");
        assert!(has_program(&lab, "vlan.100") && has_program(&lab, "eth0"));
        assert!(agent.terminate().expect("end").success());
    }
    let agent = lab.start_agent(&lab.config().to_string()).expect("an agent");
    wait_until("the interface is given up", PATIENCE, || !has_program(&lab, "vlan.100")).expect("given up");
    agent.terminate().expect("end");
    let agent = lab.start_agent(&both(lab.config().to_string())).expect("an agent");
    let detached = agent.sluice(&["detach", "-o", "json"]).expect("sluice");
    assert!(detached.status.success(), "{detached:?}");
    let detached: serde_json::Value = serde_json::from_slice(&detached.stdout).expect("JSON");
    assert!(
        detached["interfaces"].as_array().is_some_and(|names| names.contains(&"vlan.100".into())),
        "{detached}"
    );
    assert!(!has_program(&lab, "vlan.100") && !has_program(&lab, "eth0"));
}

#[test]
fn healthz_answers_only_when_packets_are_let_in() {
    let lab = Lab::builder().start().expect("a lab");
    // A server that does not answer makes the start take longer.
    lab.web(0).stop_nginx().expect("stop");
    let config = lab.config().metrics().to_string();
    fs::write(lab.config_file(), config).expect("write");
    let mut command = lab.edge().command(sluice_binary().expect("sluice"));
    command.args(["agent", "--config", text(&lab.config_file())]);
    command.args(["--socket", text(&lab.socket()), "--pin-dir", text(lab.pins())]);
    let agent = Daemon::spawn(command, "agent", &lab.directory().join("agent.log")).expect("start");
    wait_until("the agent is healthy", PATIENCE, || {
        let answer = lab.edge().curl(&["--max-time", "1", "http://127.0.0.1:9400/healthz"]);
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert!(has_program(&lab, "eth0"), "{}", agent.log());
    assert!(is_served(&lab), "{}", agent.log());
}

/// An interface whose driver knows no XDP: `auto` says so and goes on, `driver` is an error, and a link keeps its mode.
#[test]
fn a_driver_without_xdp_is_told_and_not_hidden() {
    let lab = Lab::builder().start().expect("a lab");
    run_checked(lab.edge().command("ip").args(["link", "add", "ifb9", "type", "ifb"])).expect("an interface");
    run_checked(lab.edge().command("ip").args(["link", "set", "ifb9", "up"])).expect("up");
    let config = |mode: &str| format!("[agent]\ninterfaces = [\"ifb9\"]\nxdp_mode = \"{mode}\"\n");
    let start_refused = |mode: &str| {
        let Err(error) = lab.start_agent(&config(mode)) else { panic!("{mode}: started") };
        let error = error.to_string();
        assert!(error.contains("ifb9: the driver does not take the program"), "{error}");
        error
    };

    start_refused("driver");
    assert!(!has_program(&lab, "ifb9"), "nothing is left attached");
    let agent = lab.start_agent(&config("auto")).expect("an agent");
    assert!(agent.log().contains("running in the slower generic mode"), "{}", agent.log());
    let status = agent.status().expect("status");
    assert_eq!(status["agent"]["interfaces"][0]["xdp_mode"], "generic", "{status}");
    agent.terminate().expect("an end");

    assert!(start_refused("driver").contains("run `sluice detach`"));
    let agent = lab.start_agent(&config("auto")).expect("an agent");
    assert!(agent.log().contains("stays in slower generic mode"), "{}", agent.log());
    agent.sluice(&["detach"]).expect("detach");
    assert!(!has_program(&lab, "ifb9"));
}
