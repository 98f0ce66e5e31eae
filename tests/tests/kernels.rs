//! The kernel ring: the object loads, attaches and serves on every supported kernel, and costs there what the table says.

mod support {
    pub mod costs;
}

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lb_tests::{GUEST_RESULTS, Guest, GuestKernel, Host, Lab, ProgramCost, VIP, run_checked, sluice_binary};

use support::costs::{self, Costs};

/// One way to a backend.
struct Mode {
    name: &'static str,
    /// What the configuration says of it.
    forwarding: &'static str,
    /// Modules that a backend's own kernel takes the packet apart with. Guests only: the running kernel may have none.
    modules: &'static [&'static str],
    /// What makes the backend do so: arguments of `ip`.
    backend: &'static [&'static str],
}

const MODES: [Mode; 1] = [Mode { name: "l2-dsr, IPv4", forwarding: "l2-dsr", modules: &[], backend: &[] }];

/// What the lab is made of, wherever it is.
const MODULES: [&str; 2] = ["veth", "bridge"];
const PROGRAMS: [&str; 5] = ["nginx", "openssl", "curl", "ip", "ethtool"];

const SIZE: usize = 1_000_000;

/// Serves a download and an upload in a lab of the running kernel, and says what the programs cost there.
fn serve(mode: &Mode) -> Costs {
    let lab = Lab::builder().app_servers(1).start().expect("a lab");
    for web in lab.webs() {
        for command in mode.backend {
            run_checked(web.command("ip").args(command.split(' '))).expect(command);
        }
    }
    let agent = lab.start_agent(&configuration(&lab, mode)).expect("an agent");
    agent.wait_until_healthy().expect("healthy backends");
    transfer(&lab, mode.name);
    ProgramCost::pinned_in(lab.pins()).expect("pinned programs").into_iter().collect()
}

/// Patient probes: an emulated machine is slow.
fn configuration(lab: &Lab, mode: &Mode) -> String {
    let mut text = String::from(
        "[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536\n[[service]]\nname = \"web\"\n",
    );
    text += &format!("vips = [\"{VIP}:80\"]\nprotocol = \"tcp\"\nforwarding = \"{}\"\n", mode.forwarding);
    text += "[service.health]\ntype = \"http\"\npath = \"/healthz\"\ninterval = \"1s\"\ntimeout = \"1s\"\n";
    for web in lab.webs() {
        let (name, address) = (web.name(), web.address());
        text += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    text
}

/// A file up to whichever web server the connection meets and down again: they share what they store.
fn transfer(lab: &Lab, mode: &str) {
    let content: Vec<u8> = (0..SIZE).map(|n| (n * 31 % 251) as u8).collect();
    let [sent, received] = ["sent", "received"].map(|name| lab.directory().join(name));
    fs::write(&sent, &content).expect("a file to send");
    let url = format!("http://{VIP}/files/{}", mode.replace([',', ' '], ""));
    curl(lab.customer(), &["--upload-file", &text(&sent), &url]);
    curl(lab.customer(), &["--output", &text(&received), &url]);
    assert!(fs::read(&received).expect("a received file") == content, "{mode}: another content came back");
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
    println!("kernel {series} ({:.1} s):", report.took.as_secs_f64());
    let mut all = Costs::new();
    for line in &report.results {
        match serde_json::from_str(line) {
            Ok(found) => all = costs::parse(&found),
            Err(_) => println!("  {line}"),
        }
    }
    costs::compare(series, &all);
}

#[test]
fn kernel_6_1_loads_attaches_and_serves() {
    guest(GuestKernel::SERIES[0]);
}

#[test]
fn kernel_6_12_loads_attaches_and_serves() {
    guest(GuestKernel::SERIES[1]);
}

/// Here modes are served whose packets the running kernel takes apart without modules of its own.
#[test]
fn the_running_kernel_loads_attaches_and_serves() {
    for mode in MODES.iter().filter(|mode| mode.modules.is_empty()) {
        let found = serve(mode);
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        costs::compare_if_known(&costs::series(&release), &found);
    }
}

/// What the guests run; it writes the time each mode took and, at last, what the programs cost.
#[test]
#[ignore = "the other tests run it, in a guest"]
fn inside_a_guest() {
    let results = std::env::var(GUEST_RESULTS).expect("this is run in a guest, by the other tests");
    let mut results = fs::OpenOptions::new().append(true).open(results).expect("a file for results");
    let mut found = Costs::new();
    for mode in &MODES {
        let start = Instant::now();
        found = serve(mode);
        writeln!(results, "{}: {:.1} s", mode.name, start.elapsed().as_secs_f64()).expect("a result");
    }
    writeln!(results, "{}", costs::to_json(&found)).expect("a result");
}
