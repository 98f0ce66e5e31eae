//! The kernel ring: the object loads, attaches and serves on every supported kernel, and costs there what the table says.

mod support {
    pub mod costs;
}

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use lb_tests::{
    Agent, BACKEND_PORT, Daemon, Decap, GUEST_RESULTS, Guest, GuestKernel, Host, Lab, ProgramCost,
    run_checked, sluice_binary, wait_until,
};
use serde_json::Value;

use Family::{V4, V6};
use support::costs::{self, Costs};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// One way to a backend: a service of its own, with a VIP of its own.
struct Mode {
    name: &'static str,
    vip: &'static str,
    /// What the configuration says of it.
    forwarding: &'static str,
    /// Of the backends' addresses.
    backends: Family,
}

const fn mode(name: &'static str, vip: &'static str, forwarding: &'static str, backends: Family) -> Mode {
    Mode { name, vip, forwarding, backends }
}

const MODES: [Mode; 12] = [
    mode("l2-dsr-v4", "203.0.113.21", "l2-dsr", V4),
    mode("l2-dsr-v6", "2001:db8:203::21", "l2-dsr", V6),
    mode("nat-v4", "203.0.113.22", "nat", V4),
    mode("nat-v6", "2001:db8:203::22", "nat", V6),
    mode("ipip-v4-in-v4", "203.0.113.23", "ipip", V4),
    mode("ipip-v6-in-v6", "2001:db8:203::23", "ipip", V6),
    mode("ipip-v4-in-v6", "203.0.113.24", "ipip", V6),
    mode("ipip-v6-in-v4", "2001:db8:203::24", "ipip", V4),
    mode("gue-v4-in-v4", "203.0.113.25", "gue", V4),
    mode("gue-v6-in-v6", "2001:db8:203::25", "gue", V6),
    mode("gue-v4-in-v6", "203.0.113.26", "gue", V6),
    mode("gue-v6-in-v4", "2001:db8:203::26", "gue", V4),
];

impl Mode {
    fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.vip.parse().expect("an address"), 80)
    }

    fn tunnels(&self) -> bool {
        matches!(self.forwarding, "ipip" | "gue")
    }
}

/// What takes tunnels off in a backend's own kernel.
struct Decapsulator {
    module: &'static str,
    /// Arguments of `ip`.
    start: &'static [&'static str],
    stop: &'static str,
}

/// Whatever is in them: UDP hands over to the others what was in it. Guests only: the running kernel may have none.
const DECAPSULATORS: [Decapsulator; 5] = [
    Decapsulator { module: "ipip", start: &["link set tunl0 up"], stop: "link set tunl0 down" },
    Decapsulator { module: "sit", start: &["link set sit0 up"], stop: "link set sit0 down" },
    Decapsulator {
        module: "ip6_tunnel",
        start: &["-6 tunnel change ip6tnl0 mode any", "link set ip6tnl0 up"],
        stop: "link set ip6tnl0 down",
    },
    Decapsulator { module: "fou", start: &["fou add port 6080 gue"], stop: "fou del port 6080" },
    Decapsulator { module: "fou", start: &["-6 fou add port 6080 gue"], stop: "-6 fou del port 6080" },
];

/// What the lab is made of, wherever it is, and what holds the programs that forward checks before Linux 6.6.
const MODULES: [&str; 5] = ["veth", "bridge", "sch_ingress", "cls_bpf", "8021q"];
const PROGRAMS: [&str; 5] = ["nginx", "openssl", "curl", "ip", "ethtool"];

/// Room for outer headers on the backends' links.
const BACKEND_MTU: u32 = 1_600;
/// How long a guest may take: many times what it takes alone.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Packets that an upload of 1 MiB takes at least.
const UPLOAD_PACKETS: u64 = (1 << 20) / 1_500;

/// Where what is found goes while the ring runs, a line each.
type Report<'a> = &'a mut dyn FnMut(&str);

/// Serves an upload and a download in each mode, in a lab of the running kernel: tunnels end in the backends' own kernel,
/// if that is wished for, then in `sluice decap`. The answer is what the programs cost there.
fn serve(by_kernel: bool, report: Report<'_>) -> Costs {
    let start = Instant::now();
    let lab = Lab::builder().app_servers(1).backend_mtu(BACKEND_MTU).start().expect("a lab");
    route_vips(&lab);
    let agent = lab.start_agent(&configuration(&lab)).expect("an agent");
    agent.wait_until_healthy().expect("healthy backends");
    report(&format!("lab and agent: {:.1} s", start.elapsed().as_secs_f64()));
    if by_kernel {
        on_webs(&lab, DECAPSULATORS.iter().flat_map(|decapsulator| decapsulator.start).copied());
    }
    transfer(&lab, &agent, "", |mode| by_kernel || !mode.tunnels(), report);
    if by_kernel {
        transfer_from_a_vlan(&lab, &agent);
        report("from a VLAN");
    }
    let mut costs: Costs = ProgramCost::pinned_in(lab.pins()).expect("pinned programs").into_iter().collect();
    costs.insert("capture".to_owned(), captured(&lab));
    if by_kernel {
        // From here on nobody but `sluice decap` takes a tunnel off.
        on_webs(&lab, DECAPSULATORS.iter().map(|decapsulator| decapsulator.stop));
    }
    let from = lab.edge().both_addresses().map(|address| address.to_string()).join(",");
    let decaps = lab.start_decap_on_webs(&["--from", &from]).expect("sluice decap");
    transfer(&lab, &agent, " to sluice decap", Mode::tunnels, report);
    costs.insert("decap".to_owned(), ProgramCost::attached(lab.web(0), "eth0").expect("a program"));
    check_decapsulated(decaps);
    costs
}

/// All capturing programs load, attach and hand over packets, and go again. The answer is what the first of them costs.
fn captured(lab: &Lab) -> ProgramCost {
    let mut command = lab.sluice_command().expect("sluice");
    command.args([
        "capture",
        "-w",
        &text(&lab.directory().join("kernel.pcapng")),
        "--verdict",
        "forward",
        "-c",
        "10",
    ]);
    let log = lab.directory().join("capture.log");
    let mut capture = Daemon::spawn(command, "sluice capture", &log).expect("sluice capture");
    // It says that it captures, or why it does not.
    wait_until("sluice capture says something", TIMEOUT, || !capture.log().is_empty()).expect("a word");
    assert!(capture.log().contains("capturing on"), "{}", capture.log());
    let cost = ProgramCost::attached(lab.edge(), "eth0").expect("a program");
    lab.transfer(MODES[0].vip()).expect("a transfer");
    assert!(capture.wait(TIMEOUT).expect("it ends").success(), "{}", capture.log());
    assert!(capture.log().contains("10 packets in "), "{}", capture.log());
    cost
}

/// Customers find the VIPs, and the backends take those as their own whose packets come as they were.
fn route_vips(lab: &Lab) {
    let (mut routes, mut addresses) = (String::new(), String::new());
    let [edge4, edge6] = lab.edge().both_addresses();
    for mode in &MODES {
        let vip = mode.vip().ip();
        let (edge, length) = if vip.is_ipv4() { (edge4, "32") } else { (edge6, "128 nodad") };
        let prefix = length.trim_end_matches(" nodad");
        routes += &format!("route add {vip}/{prefix} via {edge}\n");
        if mode.forwarding != "nat" {
            addresses += &format!("addr add {vip}/{length} dev lo\n");
        }
    }
    lab.customer().ip(routes.trim_end()).expect("routes");
    lab.webs().iter().for_each(|web| web.ip(addresses.trim_end()).expect("addresses"));
}

/// Runs `ip` on every backend; not as a batch, which knows no options of `ip` itself.
fn on_webs(lab: &Lab, commands: impl Iterator<Item = &'static str> + Clone) {
    let run = |web: &Host, command: &str| {
        run_checked(web.command("ip").args(command.split(' '))).expect(command);
    };
    lab.webs().iter().for_each(|web| commands.clone().for_each(|command| run(web, command)));
}

/// Patient probes: an emulated machine is slow.
fn configuration(lab: &Lab) -> String {
    let mut text =
        String::from("[agent]\ninterfaces = [\"eth0\"]\nxdp_mode = \"driver\"\nflow_table_size = 65536\n");
    for mode in &MODES {
        let Mode { name, forwarding, .. } = mode;
        text += &format!("[[service]]\nname = \"{name}\"\nvips = [\"{}\"]\n", mode.vip());
        text += &format!("protocol = \"tcp\"\nforwarding = \"{forwarding}\"\n");
        text += "[service.health]\ntype = \"http\"\npath = \"/healthz\"\n";
        text += "interval = \"2s\"\ntimeout = \"2s\"\nrise = 1\n";
        if *forwarding == "l2-dsr" {
            // The programs that forward checks load and attach here, too.
            text += "via = \"vip\"\n";
        }
        for web in lab.webs() {
            let [v4, v6] = web.both_addresses();
            let address: IpAddr = if mode.backends == V4 { v4 } else { v6 };
            text += &format!("[[service.backend]]\nname = \"{}\"\naddress = \"{address}\"\n", web.name());
            if *forwarding == "nat" {
                text += &format!("port = {BACKEND_PORT}\n");
            }
        }
    }
    text
}

/// A file up and another down in each of these modes, all of it by way of Sluice.
fn transfer(lab: &Lab, agent: &Agent<'_>, how: &str, which: impl Fn(&Mode) -> bool, report: Report<'_>) {
    // Asked seldom: in an emulated machine it takes as long as a transfer.
    let before = agent.status().expect("a status");
    for mode in MODES.iter().filter(|mode| which(mode)) {
        let start = Instant::now();
        lab.transfer(mode.vip()).unwrap_or_else(|error| panic!("{}{how}: {error:#}", mode.name));
        report(&format!("{}{how}: {:.1} s", mode.name, start.elapsed().as_secs_f64()));
    }
    let after = agent.status().expect("a status");
    for mode in MODES.iter().filter(|mode| which(mode)) {
        let forwarded = packets(&after, mode) - packets(&before, mode);
        assert!(forwarded > UPLOAD_PACKETS, "{}{how}: {forwarded} packets by way of Sluice", mode.name);
    }
}

/// Customers are on a VLAN of the interface, the backends outside of any: frames lose their tag on the way there, and answers get it back.
/// Guests only: the running kernel may know no VLANs.
fn transfer_from_a_vlan(lab: &Lab, agent: &Agent<'_>) {
    let [vip, edge, customer] = [MODES[2].vip, "10.100.0.1", "10.100.0.2"];
    let device = |host: &Host, address: &str| {
        host.ip(&format!(
            "link add link eth0 name eth0.100 type vlan id 100\naddr add {address}/24 dev eth0.100\nlink set eth0.100 up"
        ))
    };
    device(lab.edge(), edge).expect("a VLAN device");
    device(lab.customer(), customer).expect("a VLAN device");
    lab.customer().ip(&format!("route replace {vip}/32 via {edge}")).expect("a route");
    let explain = ["explain", "--src", &format!("{customer}:4000"), "--dst", &format!("{vip}:80"), "--syn"];
    wait_until("the agent has noticed", TIMEOUT, || {
        let explained = agent.sluice(&explain).expect("explain");
        String::from_utf8_lossy(&explained.stdout).contains("without VLAN tags")
    })
    .expect("it does");
    lab.transfer(MODES[2].vip()).expect("a transfer from a VLAN");
    for host in [lab.customer(), lab.edge()] {
        host.ip("link del eth0.100").expect("no VLAN device any more");
    }
    lab.customer()
        .ip(&format!("route add {vip}/32 via {}", lab.edge().address()))
        .expect("the route of before");
}

fn packets(status: &Value, mode: &Mode) -> u64 {
    let services = status["services"].as_array().expect("services");
    let service = services.iter().find(|service| service["name"] == mode.name).expect(mode.name);
    service["packets"].as_u64().expect("a number")
}

/// All tunnels, of both kinds, ended in `sluice decap`.
fn check_decapsulated(decaps: Vec<Decap>) {
    let ended: Vec<Value> = decaps.into_iter().map(|decap| decap.terminate().expect("counters").1).collect();
    let count = |verdict: &str| -> u64 {
        ended.iter().map(|counted| counted["verdicts"][verdict].as_u64().expect("a verdict")).sum()
    };
    for kind in ["ipip", "gue"] {
        let tunnels = MODES.iter().filter(|mode| mode.forwarding == kind).count() as u64;
        let packets = count(&format!("decapsulated.{kind}"));
        assert!(packets > tunnels * UPLOAD_PACKETS, "{kind}: {packets} decapsulated: {ended:?}");
    }
    assert!(ended.iter().all(|counted| counted["xdp_mode"] == "driver"), "{ended:?}");
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
    for module in MODULES.into_iter().chain(DECAPSULATORS.iter().map(|decapsulator| decapsulator.module)) {
        guest = guest.module(module);
    }
    let guest = guest.variable("SLUICE_BIN", &text(&sluice)).timeout(TIMEOUT);
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

/// Here tunnels end in `sluice decap` only: this kernel may not have what takes them off.
#[test]
fn the_running_kernel_loads_attaches_and_serves() {
    let found = serve(false, &mut |line| println!("  {line}"));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    costs::compare_if_known(&costs::series(&release), &found);
}

/// What the guests run; it writes the time each mode took and, at last, what the programs cost.
#[test]
#[ignore = "the other tests run it, in a guest"]
fn inside_a_guest() {
    let results = std::env::var(GUEST_RESULTS).expect("this is run in a guest, by the other tests");
    let mut results = fs::OpenOptions::new().append(true).open(results).expect("a file for results");
    let found = serve(true, &mut |line| writeln!(results, "{line}").expect("a result"));
    writeln!(results, "{}", costs::to_json(&found)).expect("a result");
}
