//! Customers who ask a web server for pages → requests a second by the way they come: directly, through Sluice in each mode,
//! through the least that XDP can do, and through what a user would choose instead.
//!
//! There is one web server, for Sluice would spread customers over more, which the least cannot.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use lb_tests::{Agent, Daemon, Lab, run_checked, wait_until};

use crate::object::{Object, replace, sending};
use crate::samples::{Group, Sink};
use crate::ways::{self, WAYS, Way};
use crate::wrk::{self, Found, Load};

const HAPROXY_PORT: u16 = 8_001;
const NGINX_PORT: u16 = 8_002;
const NFTABLES_PORT: u16 = 8_003;

/// A way to the web server, and the address that customers ask.
type Target = (&'static str, String);

/// What customers ask for, by name.
struct Workload {
    name: &'static str,
    load: Load,
    /// How often it is measured at a time.
    samples: usize,
    groups: [Group; 5],
}

const MEASURED: [(&str, &str); 5] =
    [("requests", "requests/s"), ("p50", "ms"), ("p99", "ms"), ("p99.9", "ms"), ("CPU", "µs/request")];

fn workloads(quick: bool) -> Vec<Workload> {
    let all = [
        // These have targets, and percentiles go up and down by a multiple from second to second. How long answers take shows where customers
        // take breaks: where none does, it is how the machine's cores are shared.
        ("small, paced", "/healthz", false, 5, 3),
        ("small, keep-alive", "/healthz", false, 0, 3),
        ("small, close", "/healthz", true, 0, 2),
        ("100 KB, keep-alive", "/files/large", false, 0, 1),
        ("100 KB, close", "/files/large", true, 0, 1),
    ];
    let workload =
        |(name, path, close, pause_ms, samples): (&'static str, &'static str, bool, u32, usize)| Workload {
            name,
            load: Load { path, close, connections: 32, pause_ms, seconds: 1 },
            samples,
            groups: MEASURED.map(|(what, unit)| Group::new("customers", format!("{name}: {what}"), unit)),
        };
    all.into_iter().take(if quick { 3 } else { all.len() }).map(workload).collect()
}

impl Workload {
    fn measure(&mut self, lab: &Lab, (who, server): &Target) -> Result<()> {
        let Found { requests_a_second, percentiles: [p50, p99, p999], cpu_a_request } =
            wrk::run(lab, lab.customer(), server, self.load)
                .with_context(|| format!("{who}: {}", self.name))?;
        for (group, sample) in self.groups.iter_mut().zip([requests_a_second, p50, p99, p999, cpu_a_request])
        {
            group.add(who, sample);
        }
        Ok(())
    }
}

/// The modes, with IPv4 all the way.
pub fn modes() -> Vec<Way> {
    WAYS.into_iter().filter(|way| !way.vip6 && !way.backends6).collect()
}

/// The settings that make [`Object`]'s programs send everything to the web server.
pub fn to_web_server(lab: &Lab) -> Result<crate::object::Settings> {
    let (edge, web) = (lab.edge(), lab.web(0));
    Ok(sending([edge.mac("eth0")?, web.mac("eth0")?], [edge.address(), web.address()]))
}

/// Measures everything.
pub fn run(quick: bool, sink: Sink<'_>) -> Result<()> {
    let lab = Lab::builder().web_servers(1).mtu(1500).backend_mtu(1600).start()?;
    fs::write(lab.files().join("large"), vec![b'x'; 100_000]).context("writing a page of 100 KB")?;
    let modes = modes();
    ways::announce(&lab, &modes);
    let _decaps = ways::unpack(&lab);
    let mut object = Object::load(1)?;
    object.set(to_web_server(&lab)?)?;
    let mut workloads = workloads(quick);
    for _ in 0..if quick { 1 } else { 5 } {
        each(&lab, &mut workloads, &[("direct", lab.web(0).address().to_string())])?;
        through_xdp(&lab, &modes, &mut object, &mut workloads)?;
        through_proxies(&lab, &mut workloads)?;
    }
    workloads.into_iter().flat_map(|workload| workload.groups).for_each(sink);
    Ok(())
}

fn each(lab: &Lab, workloads: &mut [Workload], targets: &[Target]) -> Result<()> {
    for workload in workloads {
        for target in targets {
            (0..workload.samples).try_for_each(|_| workload.measure(lab, target))?;
        }
    }
    Ok(())
}

/// Through the least that XDP can do and through Sluice, sample by sample: both by the same link, for what differs by a hundredth must be
/// measured in the same seconds. Without Sluice's program its agent stands still.
fn through_xdp(lab: &Lab, modes: &[Way], object: &mut Object, workloads: &mut [Workload]) -> Result<()> {
    let agent = ways::healthy_agent(lab, &ways::config(lab, modes, "", ""));
    let (link, own) = (lab.pins().join("link-eth0"), lab.pins().join("prog"));
    let mut own = Xdp::from_pin(own, XdpAttachType::Interface).context("Sluice's program")?;
    for workload in workloads {
        for _ in 0..workload.samples {
            for way in modes {
                let target = |who| (who, way.vip().to_string());
                if let Some((name, program)) = least(way.mode) {
                    agent.pause()?;
                    replace(&link, object.program(program)?)?;
                    workload.measure(lab, &target(name))?;
                    replace(&link, &mut own)?;
                    agent.resume()?;
                    agent.wait_until_healthy()?;
                }
                workload.measure(lab, &target(way.mode))?;
            }
        }
    }
    detach(lab, agent)
}

/// The least that XDP can do in a mode: what it is called, and the measuring program that does it.
fn least(mode: &str) -> Option<(&'static str, &'static str)> {
    match mode {
        "l2-dsr" => Some(("bare XDP", "forward")),
        "ipip" => Some(("bare encapsulation", "encapsulate")),
        _ => None,
    }
}

/// Ends an agent, and takes its programs off.
pub fn detach(lab: &Lab, agent: Agent<'_>) -> Result<()> {
    agent.terminate()?;
    let output = lab.sluice(&["detach", "--pin-dir", &lab.pins().display().to_string()])?;
    ensure!(output.status.success(), "sluice detach: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn through_proxies(lab: &Lab, workloads: &mut [Workload]) -> Result<()> {
    let at = |port: u16| format!("{}:{port}", lab.edge().address());
    let haproxy = start_haproxy(lab)?;
    each(lab, workloads, &[("HAProxy", at(HAPROXY_PORT))])?;
    drop(haproxy);
    let nginx = start_nginx(lab)?;
    each(lab, workloads, &[("nginx stream", at(NGINX_PORT))])?;
    drop(nginx);
    start_nftables(lab)?;
    each(lab, workloads, &[("nftables DNAT", at(NFTABLES_PORT))])?;
    run_checked(lab.edge().command("nft").args(["delete", "table", "ip", "bench"])).map(drop)
}

fn start_haproxy(lab: &Lab) -> Result<Daemon> {
    let web = lab.web(0).address();
    let config = format!(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen web\n  bind :{HAPROXY_PORT}\n  server web1 {web}:80\n"
    );
    start(lab, "haproxy", &config, |file| vec!["-f".to_owned(), file], HAPROXY_PORT)
}

fn start_nginx(lab: &Lab) -> Result<Daemon> {
    let (web, directory) = (lab.web(0).address(), lab.directory().display().to_string());
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\ndaemon off;\nmaster_process off;\n\
         pid {directory}/stream.pid;\nerror_log {directory}/stream.log;\nevents {{ worker_connections 4096; }}\n\
         stream {{\n  server {{ listen {NGINX_PORT} backlog=4096; proxy_pass {web}:80; }}\n}}\n"
    );
    start(lab, "nginx", &config, |file| vec!["-c".to_owned(), file], NGINX_PORT)
}

/// Starts a proxy on the edge host, and waits until it takes connections.
fn start(
    lab: &Lab,
    program: &str,
    config: &str,
    arguments: impl Fn(String) -> Vec<String>,
    port: u16,
) -> Result<Daemon> {
    let file = lab.directory().join(format!("bench-{program}.conf"));
    fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
    let mut command = lab.edge().command(program);
    command.args(arguments(file.display().to_string()));
    let log: &Path = &file.with_extension("log");
    let daemon = Daemon::spawn(command, program, log)?;
    let address = (lab.edge().address(), port).into();
    let answers = || lab.customer().connect(address, None).is_ok();
    wait_until(&format!("{program} answers"), std::time::Duration::from_secs(10), answers)
        .with_context(|| daemon.log())?;
    Ok(daemon)
}

/// Full NAT, as our own: the web servers answer to the edge host.
fn start_nftables(lab: &Lab) -> Result<()> {
    lab.edge().sysctl("net/ipv4/ip_forward", "1")?;
    let web = lab.web(0).address();
    let rules = format!(
        "table ip bench {{\n  chain to {{ type nat hook prerouting priority dstnat;\n    tcp dport {NFTABLES_PORT} dnat to \
         jhash ip saddr . tcp sport mod 2 map {{ 0 : {web} . 80, 1 : {web} . 80 }}; }}\n  chain from {{ type nat hook \
         postrouting priority srcnat; tcp dport 80 masquerade; }}\n}}\n"
    );
    let file = lab.directory().join("bench.nft");
    fs::write(&file, rules).with_context(|| format!("writing {}", file.display()))?;
    run_checked(lab.edge().command("nft").arg("-f").arg(&file)).map(drop)
}
