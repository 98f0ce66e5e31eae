//! Customers at a steady pace and a flood beside them, ten packets for each of theirs → how much of the good traffic is kept,
//! and which established flows are forgotten.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::{Agent, Lab, TcpEcho};
use nix::net::if_::if_nametoindex;

use crate::object::{Frames, Object};
use crate::samples::{Group, Sink};
use crate::support::packets::{Body, Packet, SYN};
use crate::ways::{self, WAYS, Way};
use crate::wrk::{self, Load};

/// Good packets a second through the balancer are two for each of some 3,000 requests: answers go another way.
const FLOOD_A_SECOND: u64 = 60_000;
/// Frames sent at once, to keep that pace: the kernel takes some 25 ms to begin and to end.
const BURST: u32 = 3_000;
/// Where connections are held.
const HELD_PORT: u16 = 9_100;
/// Connections that are held, each with an entry in the flow table.
const HELD: usize = 2_000;
/// `nat` has ports for as many flows as its table has room for.
const SOURCES: &str = "source_v4 = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\", \"192.0.2.4\"]";
const PATIENCE: Duration = Duration::from_secs(20);

const GOOD: Load = Load { path: "/healthz", close: false, connections: 32, pause_ms: 10, seconds: 2 };

/// Floods, and whether their packets open connections.
const FLOODS: [(&str, bool); 2] = [("SYN flood", true), ("UDP flood", false)];

/// What is measured.
struct Results {
    /// For each of [`FLOODS`], requests that are kept.
    kept: [Group; 2],
    /// The same, how many packets it has a second.
    rates: [Group; 2],
    lost: Group,
}

/// Measures everything: a mode that remembers flows in the flow table alone, and the one that does so in that of translations.
pub fn run(quick: bool, sink: Sink<'_>) -> Result<()> {
    let mut results = Results {
        kept: FLOODS.map(|(name, _)| Group::new("attack", format!("{name}: requests kept"), "%")),
        rates: FLOODS.map(|(name, _)| Group::new("attack", format!("{name}: flood"), "Mpps")),
        lost: Group::new("attack", "established flows lost", "flows"),
    };
    for way in WAYS.into_iter().filter(|way| !way.vip6 && !way.is_tunnel()) {
        attack(way, quick, &mut results)?;
    }
    let Results { kept, rates, lost } = results;
    kept.into_iter().zip(rates).flat_map(<[Group; 2]>::from).chain([lost]).for_each(sink);
    Ok(())
}

fn attack(way: Way, quick: bool, results: &mut Results) -> Result<()> {
    let lab = Lab::builder().start()?;
    ways::announce(&lab, &[way]);
    let held_at = SocketAddr::new(way.vip(), HELD_PORT);
    let held_by = |web| if way.is_nat() { SocketAddr::new(way.backend(web), HELD_PORT) } else { held_at };
    let servers = lab.webs().iter().map(|web| TcpEcho::start(web, held_by(web)));
    let _servers: Vec<TcpEcho> = servers.collect::<Result<_>>()?;
    // The service of connections that are held is that of pages on another port.
    let config = ways::config(&lab, &[way], SOURCES, "") + &held_service(&lab, way, held_at);
    let agent = ways::healthy_agent(&lab, &config);
    // A flood of `nat` may keep new connections out.
    let good = Load { close: way.is_nat(), ..GOOD };
    let load = || wrk::run(&lab, lab.customer(), &way.vip().to_string(), good);
    let Results { kept, rates, lost } = results;
    for ((_, opens), (kept, rate)) in FLOODS.into_iter().zip(kept.iter_mut().zip(rates)) {
        let held = lab.many_connections(held_at, HELD, PATIENCE)?;
        for _ in 0..if quick { 1 } else { 5 } {
            let calm = load()?;
            let before = established(&agent)?;
            let (flooded, sent) = beside_flood(&lab, way, opens, load)?;
            // The agent counts entries every time that it is asked.
            lost.add(way.mode, before.saturating_sub(established(&agent)?) as f64);
            kept.add(way.mode, flooded.requests_a_second / calm.requests_a_second * 100.0);
            rate.add("generator", sent / 1e6);
        }
        held.echo(PATIENCE).context("connections that were held through the flood")?;
    }
    Ok(())
}

fn held_service(lab: &Lab, way: Way, at: SocketAddr) -> String {
    let mode = way.mode;
    let mut text = format!("\n[[service]]\nname = \"held\"\nvips = [\"{at}\"]\nforwarding = \"{mode}\"\n");
    text += "[service.health]\ntype = \"none\"\n";
    for web in lab.webs() {
        text += &format!("[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n", web.name(), web.address());
    }
    text
}

/// Entries of established flows of the connections that are held.
fn established(agent: &Agent<'_>) -> Result<u64> {
    let service = agent.service("held")?;
    let backends = service["backends"].as_array().context("no backends")?;
    let flows = backends.iter().filter_map(|backend| backend["active_flows"].as_u64()).sum();
    ensure!(flows > 0, "no flow is established: {service}");
    Ok(flows)
}

/// What some work yields beside a flood from a host of the public segment, and how many packets a second that had.
fn beside_flood<T>(lab: &Lab, way: Way, opens: bool, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let mut object = Object::load(1)?;
    object.test_own("transmit")?;
    let body = if opens {
        Body::Tcp { ports: [40_000, 80], flags: SYN, payload: vec![0; 10] }
    } else {
        Body::Udp { ports: [40_000, ways::UDP_PORT], payload: vec![0; 22], checksum: false }
    };
    let macs = [lab.edge().mac("eth0")?, lab.cdn().mac("eth0")?];
    let frame = Packet::new(macs, way.customer(lab), way.vip(), body).frame();
    let mut frames = Frames { frame, family: 4, flows: 0, next: 0 };
    let (end, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| -> Result<f64> {
            lab.cdn().netns().enter()?;
            // What sends from an interface must have a program there.
            let _link = object.attach("pass", "eth0")?;
            let interface = if_nametoindex("eth0")?;
            let start = Instant::now();
            while !end.load(Ordering::Relaxed) {
                object.send(&mut frames, interface, BURST)?;
                let total = sent.fetch_add(BURST.into(), Ordering::Relaxed) + u64::from(BURST);
                let due = Duration::from_secs_f64(total as f64 / FLOOD_A_SECOND as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
            Ok(sent.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
        });
        let done = work();
        end.store(true, Ordering::Relaxed);
        let rate = flood.join().expect("no panic")?;
        Ok((done?, rate))
    })
}
