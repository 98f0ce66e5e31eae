//! Frames through veth, a balancer and veth again → millions of packets a second, for Sluice and for what it is compared with.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::xdp::XdpLink;
use lb_tests::Netns;
use lb_userspace::io::datapath::Datapath;
use nix::sched::{CloneFlags, setns};

use crate::object::{Frames, Object, sending};
use crate::samples::{Group, Sink};
use crate::support::frames::wire::Family;
use crate::wires::{self, SERVERS, Wire, pin, thread_time};
use crate::world::{EDGE_MAC, MODES, Way, World};

/// The kernel's own table of connections holds 262,144.
const MOST_TRACKED: u64 = 65_536;

/// What steers the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// A measuring program.
    Bare(&'static str, &'static str),
    /// Sluice, in the mode with this index.
    Sluice(usize),
    /// The kernel's own forwarding, with or without nftables' DNAT.
    Kernel { translates: bool },
}

use Subject::{Bare, Kernel, Sluice};

const SUBJECTS: [Subject; 8] = [
    Bare("bare XDP", "forward"),
    Sluice(0),
    Bare("bare encapsulation", "encapsulate"),
    Sluice(1),
    Sluice(2),
    Sluice(3),
    Kernel { translates: false },
    Kernel { translates: true },
];

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Bare(name, _) => name,
            Sluice(mode) => MODES[mode].0,
            Kernel { translates: true } => "nftables DNAT",
            Kernel { translates: false } => "forwarding",
        }
    }

    /// Whether it can be measured with so many flows; 0 for ever-new ones.
    fn takes(self, flows: u64) -> bool {
        match self {
            // Its exact table would soon be full.
            Sluice(3) => flows != 0,
            Kernel { translates: true } => flows != 0 && flows <= MOST_TRACKED,
            _ => true,
        }
    }

    /// Packets of so many flows for it.
    fn frames(self, flows: u64) -> Frames {
        let way = Way { mode: if let Sluice(mode) = self { mode } else { 0 }, family: Family::V4 };
        let frame = way.tcp(flows == 0, way.vip(), 0).frame();
        Frames { frame, family: 4, flows, next: 0 }
    }
}

/// A number of flows, its name, and the size that the tables are made for.
const FLOWS: [(u64, &str, u32); 4] = [
    (1, "1 flow", 65_536),
    (65_536, "64 K flows", 65_536),
    (1 << 20, "1 M flows", 1 << 20),
    (0, "flood", 1 << 20),
];

/// Measures everything.
pub fn run(quick: bool, sink: Sink<'_>) -> Result<()> {
    let home = File::open("/proc/thread-self/ns/net")?;
    measure(quick, sink)?;
    Ok(setns(home, CloneFlags::CLONE_NEWNET)?)
}

/// The same in a namespace of its own, in which the calling thread is left.
fn measure(quick: bool, sink: Sink<'_>) -> Result<()> {
    let (netns, mut wires) = wires::lay(2)?;
    let (rounds, frames) = if quick { (3, 200_000) } else { (5, 1_000_000) };
    let mut bench = Bench { netns, wires: &mut wires, bare: Object::load()?, rounds, frames };
    bench.bare.set(sending([EDGE_MAC, [2, 0, 0, 0, 1, 1]], [[192, 0, 2, 1].into(), [10, 0, 2, 1].into()]))?;
    let chosen = if quick { &FLOWS[1..2] } else { &FLOWS[..] };
    let mut world: Option<(u32, World)> = None;
    for &(flows, name, size) in chosen {
        if world.as_ref().is_none_or(|(made_for, _)| *made_for != size) {
            world = Some((size, World::new(size)?));
        }
        let (_, world) = world.as_mut().context("made just now")?;
        let interfaces: Vec<_> = bench.wires.iter().map(|wire| (wire.index, EDGE_MAC)).collect();
        world.kernel.tables().set_interfaces(&interfaces);
        bench.closed_loop(world, flows, name, 1, sink)?;
        if flows == MOST_TRACKED {
            bench.closed_loop(world, flows, name, 2, sink)?;
        }
        bench.overload(world, flows, name, sink)?;
        world.forget();
    }
    Ok(())
}

struct Bench<'a> {
    netns: Netns,
    wires: &'a mut [Wire],
    bare: Object,
    rounds: usize,
    frames: u32,
}

impl Bench<'_> {
    /// Makes a subject steer the packets of the first wires; they come back by themselves when the links are dropped.
    fn steer(&mut self, world: &mut World, subject: Subject, cores: usize) -> Result<Vec<XdpLink>> {
        if let Kernel { translates } = subject {
            translate(translates)?;
        }
        let names: Vec<String> = self.wires.iter().take(cores).map(|wire| wire.balancer.clone()).collect();
        let attach = |name: &String| match subject {
            Bare(_, program) => self.bare.attach(program, name),
            Sluice(_) => world.attach(name),
            Kernel { .. } => self.bare.attach("pass", name),
        };
        names.iter().map(attach).collect()
    }

    fn subjects(flows: u64) -> impl Iterator<Item = Subject> {
        SUBJECTS.into_iter().filter(move |subject| subject.takes(flows))
    }

    /// How many frames a sample has: the kernel is slower.
    fn repeat(&self, subject: Subject) -> u32 {
        if matches!(subject, Kernel { .. }) { self.frames / 4 } else { self.frames }
    }

    /// Generator, balancer and sink in one chain on each core; packets by the CPU time of the generator's thread.
    fn closed_loop(
        &mut self,
        world: &mut World,
        flows: u64,
        name: &str,
        cores: usize,
        sink: Sink<'_>,
    ) -> Result<()> {
        let plural = if cores == 1 { "core" } else { "cores" };
        let mut group = Group::new("live", format!("closed loop, {cores} {plural}, {name}"), "Mpps");
        for round in 0..self.rounds {
            for subject in Self::subjects(flows) {
                // The kernel's routes lead to the first wire.
                if cores > 1 && matches!(subject, Kernel { .. }) {
                    continue;
                }
                let links = self.steer(world, subject, cores)?;
                let (mut frames, repeat) = (subject.frames(flows), self.repeat(subject));
                let sent = round as u64 * u64::from(repeat);
                frames.next = if flows == 0 { sent } else { sent % flows };
                if flows != 0 {
                    // All of them are known before.
                    pin(0, 0)?;
                    self.wires[0].send(&mut subject.frames(flows), (flows as u32).max(1_000))?;
                }
                let rate = on_cores(&self.netns, &mut self.wires[..cores], &frames, repeat)
                    .with_context(|| subject.name())?;
                group.add(subject.name(), rate);
                drop(links);
                translate(false)?;
            }
        }
        sink(group);
        Ok(())
    }

    /// The balancer on a core of its own, and more packets than it can take; packets by the CPU time of its thread.
    fn overload(&mut self, world: &mut World, flows: u64, name: &str, sink: Sink<'_>) -> Result<()> {
        let mut group = Group::new("live", format!("overload, {name}"), "Mpps");
        for _ in 0..self.rounds {
            for subject in Self::subjects(flows) {
                let links = self.steer(world, subject, 1)?;
                let thread = self.wires[0].own_thread(1)?;
                pin(0, 0)?;
                let wire = &mut self.wires[0];
                let mut frames = subject.frames(flows);
                wire.send(&mut frames, (flows as u32).max(10_000))?;
                let before = (wire.counted()?, thread_time(thread)?);
                wire.send(&mut frames, self.frames)?;
                let took = thread_time(thread)? - before.1;
                group.add(subject.name(), mpps(wire.counted()? - before.0, took));
                self.wires[0].no_thread()?;
                drop(links);
                translate(false)?;
            }
        }
        sink(group);
        Ok(())
    }
}

/// Runs a generator on each of the first cores; the sum of their rates.
fn on_cores(netns: &Netns, wires: &mut [Wire], frames: &Frames, repeat: u32) -> Result<f64> {
    let run = |(cpu, wire): (usize, &mut Wire)| -> Result<f64> {
        netns.enter()?;
        pin(0, cpu)?;
        let (arrived, took) = wire.send(&mut frames.clone(), repeat)?;
        let sent = u64::from(repeat);
        ensure!(arrived * 100 >= sent * 90, "{arrived} of {sent} frames arrived");
        Ok(mpps(arrived, took))
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = wires.iter_mut().enumerate().map(|one| scope.spawn(move || run(one))).collect();
        let rates = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        Ok(rates.collect::<Result<Vec<f64>>>()?.iter().sum())
    })
}

fn mpps(packets: u64, took: Duration) -> f64 {
    packets as f64 / took.as_secs_f64() / 1e6
}

/// Puts nftables' DNAT by a hash of the source into force, or ends it.
fn translate(on: bool) -> Result<()> {
    wires::shell("if nft list table ip bench >/dev/null 2>&1; then nft delete table ip bench; fi")?;
    if on {
        let servers: Vec<_> =
            SERVERS.iter().enumerate().map(|(n, server)| format!("{n} : {server}")).collect();
        // Packets in the middle of connections, whose ports changed without their checksums.
        wires::shell(&format!(
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1 net.netfilter.nf_conntrack_checksum=0; nft 'table ip bench {{ chain to {{ type nat hook \
             prerouting priority dstnat; dnat to jhash ip saddr . tcp sport mod {} map {{ {} }}; }}; }}'",
            SERVERS.len(),
            servers.join(", ")
        ))?;
    }
    Ok(())
}
