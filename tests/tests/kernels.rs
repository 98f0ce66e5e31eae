//! The kernel ring: the object loads, attaches and serves on every supported kernel, and costs there what the table says.

mod support {
    pub mod costs;
}

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_tests::{GUEST_RESULTS, Guest, GuestKernel, Host, Lab, ProgramCost, run_checked, sluice_binary};

use support::costs::{self, Costs};

/// One way to a backend: a service of its own, with a VIP of its own.
struct Mode {
    name: &'static str,
    vip: &'static str,
    /// What the configuration says of it.
    forwarding: &'static str,
    /// Modules that a backend's own kernel takes the packet apart with. Guests only: the running kernel may have none.
    modules: &'static [&'static str],
    /// What makes the backend do so: arguments of `ip`.
    backend: &'static [&'static str],
}

const MODES: [Mode; 1] =
    [Mode { name: "l2-dsr-v4", vip: "203.0.113.21", forwarding: "l2-dsr", modules: &[], backend: &[] }];

/// What the lab is made of, wherever it is.
const MODULES: [&str; 2] = ["veth", "bridge"];
const PROGRAMS: [&str; 5] = ["nginx", "openssl", "curl", "ip", "ethtool"];

/// Room for outer headers on every link; customers know nothing of it.
const MTU: u32 = 1600;
const CUSTOMER_ROUTE: &str = "mtu 1500 advmss 1460";

const SIZE: usize = 1_000_000;

/// Serves a download and an upload in each mode, in a lab of the running kernel. `report` is told how long each took.
/// The answer is what the programs cost there.
fn serve(modes: &[&Mode], mut report: impl FnMut(&str)) -> Costs {
    let start = Instant::now();
    let lab = Lab::builder().app_servers(1).mtu(MTU).start().expect("a lab");
    let mut done: Vec<&str> = Vec::new();
    for command in modes.iter().flat_map(|mode| mode.backend) {
        // What several modes need is done once: a port, for instance, is opened once.
        if !done.contains(command) {
            lab.webs().iter().for_each(|web| ip(web, command));
            done.push(*command);
        }
    }
    for mode in modes {
        let route = format!("route add {} via {} {CUSTOMER_ROUTE}", mode.vip, lab.edge().address());
        ip(lab.customer(), &route);
        for web in lab.webs() {
            ip(web, &format!("addr add {}/32 dev lo", mode.vip));
        }
    }
    let agent = lab.start_agent(&configuration(&lab, modes)).expect("an agent");
    agent.wait_until_healthy().expect("healthy backends");
    report(&format!("lab and agent: {:.1} s", start.elapsed().as_secs_f64()));
    for mode in modes {
        let start = Instant::now();
        transfer(&lab, mode);
        let forwarded = &agent.service(mode.name).expect("a service")["packets"];
        assert!(forwarded.as_u64() > Some(0), "{}: not by way of Sluice", mode.name);
        report(&format!("{}: {:.1} s", mode.name, start.elapsed().as_secs_f64()));
    }
    ProgramCost::pinned_in(lab.pins()).expect("pinned programs").into_iter().collect()
}

fn ip(host: &Host, arguments: &str) {
    run_checked(host.command("ip").args(arguments.split(' '))).expect(arguments);
}

/// Patient probes: an emulated machine is slow.
fn configuration(lab: &Lab, modes: &[&Mode]) -> String {
    let mut text =
        String::from("[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536\n");
    for Mode { name, vip, forwarding, .. } in modes {
        text += &format!("[[service]]\nname = \"{name}\"\nvips = [\"{vip}:80\"]\n");
        text += &format!("protocol = \"tcp\"\nforwarding = \"{forwarding}\"\n");
        text += "[service.health]\ntype = \"http\"\npath = \"/healthz\"\n";
        text += "interval = \"1s\"\ntimeout = \"1s\"\n";
        for web in lab.webs() {
            let (name, address) = (web.name(), web.address());
            text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
    }
    text
}

/// A file up to whichever web server the connection meets and down again: they share what they store.
fn transfer(lab: &Lab, mode: &Mode) {
    let content: Vec<u8> = (0..SIZE).map(|n| (n * 31 % 251) as u8).collect();
    let [sent, received] = ["sent", "received"].map(|name| lab.directory().join(name));
    fs::write(&sent, &content).expect("a file to send");
    let url = format!("http://{vip}/files/{vip}", vip = mode.vip);
    curl(lab.customer(), &["--upload-file", &text(&sent), &url]);
    curl(lab.customer(), &["--output", &text(&received), &url]);
    let came_back = fs::read(&received).expect("a received file");
    assert!(came_back == content, "{}: another content came back", mode.name);
}

fn curl(customer: &Host, arguments: &[&str]) {
    let mut curl = customer.command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "30"]).args(arguments);
    run_checked(&mut curl).expect("a transfer");
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Boots the kernel, has [`inside_a_guest`] run there, and compares what it reports.
fn guest(series: &'static str) {
    let own = std::env::current_exe().expect("this program");
    let sluice = sluice_binary().expect("sluice");
    let kernel = GuestKernel::find(series).expect("a kernel");
    let mut guest = Guest::new(kernel).file(Path::new("/usr/lib/ssl/openssl.cnf"));
    let binaries = [text(&own), text(&sluice)];
    for program in PROGRAMS.into_iter().chain(binaries.iter().map(String::as_str)) {
        guest = guest.program(program).expect(program);
    }
    for module in MODULES.iter().chain(MODES.iter().flat_map(|mode| mode.modules)) {
        guest = guest.module(module);
    }
    let guest = guest.variable("SLUICE_BIN", &text(&sluice));
    let command = [&text(&own), "inside_a_guest", "--exact", "--ignored", "--nocapture"];
    let report = guest.run(&command).expect("a guest");
    assert_eq!(report.status, 0, "kernel {series}:\n{}", report.console);
    let (found, words) = report.results.split_last().expect("costs at the end");
    let found = serde_json::from_str(found).expect("costs in JSON");
    println!("kernel {series}: {}; in all {:.1} s", words.join(", "), report.took.as_secs_f64());
    costs::compare(series, &costs::parse(&found));
}

#[test]
fn kernel_6_1_loads_attaches_and_serves() {
    guest(GuestKernel::SERIES[0]);
}

#[test]
fn kernel_6_12_loads_attaches_and_serves() {
    guest(GuestKernel::SERIES[1]);
}

/// Without this, a guest that never got to its command would pass for one that served.
#[test]
fn a_guest_that_fails_or_hangs_is_told() {
    let guest = Guest::new(GuestKernel::find("6.12").expect("a kernel"));
    let report =
        guest.run(&["sh", "-c", "echo it\\'s done >$SLUICE_GUEST_RESULTS; exit 3"]).expect("a guest");
    assert_eq!(report.status, 3, "{}", report.console);
    assert_eq!(report.results, ["it's done"]);
    let hangs = guest.timeout(Duration::from_millis(300)).run(&["sleep", "60"]).expect_err("it hangs");
    assert!(format!("{hangs:#}").contains("did not end"), "{hangs:#}");
}

/// Here modes are served whose packets the running kernel takes apart without modules of its own.
#[test]
fn the_running_kernel_loads_attaches_and_serves() {
    let modes: Vec<_> = MODES.iter().filter(|mode| mode.modules.is_empty()).collect();
    let found = serve(&modes, |line| println!("  {line}"));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    costs::compare_if_known(&costs::series(&release), &found);
}

/// What the guests run; it writes the time each mode took and, at last, what the programs cost.
#[test]
#[ignore = "the other tests run it, in a guest"]
fn inside_a_guest() {
    let results = std::env::var(GUEST_RESULTS).expect("this is run in a guest, by the other tests");
    let mut results = fs::OpenOptions::new().append(true).open(results).expect("a file for results");
    let modes: Vec<_> = MODES.iter().collect();
    let found = serve(&modes, |line| writeln!(results, "{line}").expect("a result"));
    writeln!(results, "{}", costs::to_json(&found)).expect("a result");
}
