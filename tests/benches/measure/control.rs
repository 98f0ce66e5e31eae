//! Numbers of backends, services and flows → how long the agent takes for them, and the memory they need.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::flow::{Entry, State};
use lb_common::net::Protocol;
use lb_tests::{Agent, Lab};
use lb_userspace::core::flows::Question;
use lb_userspace::core::image::{Wanted, WantedService};
use lb_userspace::core::plan::{self, RingCache};
use lb_userspace::core::ring::{self, Member};
use lb_userspace::io::datapath::{Access, Datapath, Kernel, capacity_for};

use crate::samples::{Group, Sink, cpu_time};
use crate::support::{self, Pins};

/// What the times are compared with.
const FIXED_WORK: &str = "fixed work";
const SLUICE: &str = "sluice";

/// Measures everything.
pub fn run(quick: bool, sink: Sink<'_>) -> Result<()> {
    let rounds = if quick { 5 } else { 11 };
    for backends in [10, 100, 1_000] {
        sink(rings(backends, rounds)?);
    }
    let sizes: &[(usize, usize)] = if quick { &[(1, 100)] } else { &[(1, 100), (500, 10_000)] };
    for &(services, backends) in sizes {
        sink(change(services, backends, rounds)?);
    }
    sink(flows(rounds)?);
    let sizes: &[(u32, &str)] =
        if quick { &[(4_096, "4 K")] } else { &[(4_096, "4 K"), (1 << 20, "1 M"), (1 << 26, "64 M")] };
    for &(flows, name) in sizes {
        starts(flows, name, if quick { 1 } else { 3 })?.into_iter().for_each(&mut *sink);
    }
    Ok(())
}

/// A millisecond or so of arithmetic and memory, by which machines can be told apart.
fn fixed_work() -> Result<f64> {
    let before = cpu_time()?;
    let mut memory = vec![0_u64; 1 << 15];
    let mut value = 1_u64;
    for _ in 0..500_000 {
        value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ value;
        memory[value as usize & ((1 << 15) - 1)] ^= value;
    }
    black_box(memory);
    Ok(milliseconds(cpu_time()? - before))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A ring of so many backends, made from nothing.
fn rings(backends: usize, rounds: usize) -> Result<Group> {
    let names: Vec<String> = (0..backends).map(|number| format!("web{number}")).collect();
    let members: Vec<Member<'_>> =
        (1..).zip(&names).map(|(id, name)| Member { name, id, weight: 100 }).collect();
    let mut group = Group::new("control", format!("ring of {backends} backends"), "ms");
    for seed in 0..rounds as u64 {
        group.add(FIXED_WORK, fixed_work()?);
        let before = cpu_time()?;
        ensure!(black_box(ring::build(seed, &members)).is_some(), "no ring");
        group.add(SLUICE, milliseconds(cpu_time()? - before));
    }
    Ok(group)
}

fn wanted(services: usize, backends: usize) -> Wanted {
    let of_each = backends / services;
    let service = |number: usize| -> WantedService {
        let [high, low] = (number as u16).to_be_bytes();
        let vip = support::vip(&format!("203.0.{high}.{low}"), 80, Protocol::TCP);
        let backends = (0..of_each).map(|backend| support::backend(&format!("web{number}-{backend}"), 1));
        support::service(&format!("service{number}"), vec![vip], backends.collect())
    };
    Wanted { ring_seed: support::SEED, services: (0..services).map(service).collect(), ..Wanted::default() }
}

/// One backend among so many fails its checks: from that moment on until no new flow goes to it.
fn change(services: usize, backends: usize, rounds: usize) -> Result<Group> {
    let plural = if services == 1 { "service" } else { "services" };
    let name = format!("one backend changed, {services} {plural}, {backends} backends");
    let mut group = Group::new("control", name, "ms");
    let pins = Pins::new();
    let capacity = capacity_for(services, backends, services * 2, 4_096, 1_024);
    let (mut kernel, _) = Kernel::load(&pins.0, capacity, false)?;
    let mut wanted = wanted(services, backends);
    let mut rings = RingCache::default();
    kernel.set_ring_seed(wanted.ring_seed);
    let all = plan::plan(&kernel.tables().image(), &wanted, &mut rings)?;
    all.actions.iter().try_for_each(|action| kernel.apply(action))?;
    for round in 0..rounds {
        // Another one every time: a ring that was there before need not be built.
        let service = &mut wanted.services[round % services];
        let failing = &mut service.backends[round % (backends / services)];
        (failing.healthy, failing.probed_healthy, failing.ring_weight) = (false, false, 0);
        let some = Wanted { services: vec![service.clone()], ..wanted.clone() };
        group.add(FIXED_WORK, fixed_work()?);
        let before = Instant::now();
        let image = kernel.tables().image_of(&[some.services[0].name.as_str()]);
        let plan = plan::plan_some(&image, &some, &mut rings)?;
        let mut effect = None;
        for action in &plan.actions {
            kernel.apply(action)?;
            if matches!(action, plan::Action::WriteService { .. }) {
                effect = Some(before.elapsed());
            }
        }
        group.add(SLUICE, milliseconds(effect.context("the ring did not change")?));
    }
    Ok(group)
}

/// What `sluice flows` does: opens the pinned tables, counts a million flows in them, and closes them.
fn flows(rounds: usize) -> Result<Group> {
    const FLOWS: usize = 1_000_000;
    let (services, backends) = (10, 100);
    let mut group = Group::new("control", "1 M flows summarised", "ms");
    let pins = Pins::new();
    let capacity = capacity_for(services, backends, services * 2, 2 * FLOWS as u32, 1_024);
    let (mut kernel, _) = Kernel::load(&pins.0, capacity, false)?;
    let plan = plan::plan(&kernel.tables().image(), &wanted(services, backends), &mut RingCache::default())?;
    plan.actions.iter().try_for_each(|action| kernel.apply(action))?;
    let ids: Vec<u16> = kernel.tables().backend_ids().map(|(id, _)| id).collect();
    let now = kernel.now()?;
    let buckets = kernel.tables().slices().context("no tables")?.flows;
    for flow in 0..FLOWS {
        let entry = Entry::new((flow as u32) << 1, ids[flow % ids.len()], State::Established, now);
        buckets[flow / 4].store(flow % 4, entry);
    }
    let question = Question { lines: backends, ..Question::default() };
    for _ in 0..rounds {
        group.add(FIXED_WORK, fixed_work()?);
        let before = cpu_time()?;
        let reader = Kernel::open(&pins.0, Access::Read)?;
        let report = reader.tables().flow_report(reader.now()?, &question);
        drop(reader);
        group.add(SLUICE, milliseconds(cpu_time()? - before));
        ensure!(report.flows == FLOWS as u64 && report.lines.len() == backends, "{} flows", report.flows);
    }
    Ok(group)
}

/// The agent with a table of so many flows: until it answers, for the first time and when it takes over; and its memory.
fn starts(flows: u32, name: &str, rounds: usize) -> Result<[Group; 4]> {
    let lab = Lab::builder().start()?;
    let config = lab.config().to_string();
    let sized = |line: &str| match line.strip_prefix("flow_table_size = ") {
        Some(_) => format!("flow_table_size = {flows}\n"),
        None => format!("{line}\n"),
    };
    let config: String = config.lines().map(sized).collect();
    ensure!(config.contains(&format!("= {flows}\n")), "the lab's configuration does not size the flow table");
    let group = |what: &str, unit| Group::new("control", format!("{what}, {name} flows"), unit);
    let mut groups = [
        group("start-up", "ms"),
        group("adoption", "ms"),
        group("the agent's own memory", "MiB"),
        group("the maps' memory", "MiB"),
    ];
    for _ in 0..rounds {
        let fixed = fixed_work()?;
        let before = Instant::now();
        let agent = lab.start_agent(&config)?;
        let first = before.elapsed();
        let memory = memory_of(&agent)?;
        agent.kill9()?;
        let before = Instant::now();
        let agent = lab.start_agent(&config)?;
        let again = before.elapsed();
        for (group, sample) in
            groups.iter_mut().zip([milliseconds(first), milliseconds(again), memory[0], memory[1]])
        {
            group.add(SLUICE, sample);
            if group.unit == "ms" {
                group.add(FIXED_WORK, fixed);
            }
        }
        crate::customers::detach(&lab, agent)?;
    }
    Ok(groups)
}

/// What an agent has for itself, and what its maps take in the kernel, in MiB.
fn memory_of(agent: &Agent<'_>) -> Result<[f64; 2]> {
    let process = format!("/proc/{}", agent.pid());
    let number = |text: &str, name: &str| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let status = fs::read_to_string(format!("{process}/status"))?;
    let own = number(&status, "RssAnon:").context("no RssAnon in a process' status")? / 1_024.0;
    let mut maps = std::collections::BTreeMap::new();
    for descriptor in fs::read_dir(format!("{process}/fdinfo"))?.flatten() {
        let Ok(info) = fs::read_to_string(descriptor.path()) else { continue };
        if let (Some(id), Some(bytes)) = (number(&info, "map_id:"), number(&info, "memlock:")) {
            maps.insert(id as u64, bytes);
        }
    }
    Ok([own, maps.values().sum::<f64>() / 1_048_576.0])
}
