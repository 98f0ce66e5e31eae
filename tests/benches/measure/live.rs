//! Frames through veth, a balancer and veth again → millions of packets a second, for Sluice and for what it is compared with.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::xdp::XdpLink;
use lb_tests::Netns;
use lb_userspace::io::datapath::Datapath;
use nix::sched::{CloneFlags, setns};

use crate::object::{Frames, Object, Settings, sending};
use crate::samples::{Group, Sink};
use crate::support::frames::wire::Family;
use crate::wires::{self, SERVERS, Wire, pin, thread_time};
use crate::world::{EDGE_MAC, MODES, MOST_TRANSLATED, Way, World};

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
    /// The kernel's own balancer, by its "direct routing", or by IPIP.
    Ipvs { tunnels: bool },
}

use Subject::{Bare, Ipvs, Kernel, Sluice};

const SUBJECTS: [Subject; 11] = [
    Bare("bare XDP", "forward"),
    Bare("bare XDP + 300 instructions", "forward_at_length"),
    Bare("bare XDP + one line of memory", "forward_known"),
    Sluice(0),
    Bare("bare encapsulation", "encapsulate"),
    Bare("bare encapsulation + 300 instructions", "encapsulate_at_length"),
    Sluice(1),
    Sluice(2),
    Sluice(3),
    Kernel { translates: false },
    Kernel { translates: true },
];

/// What IPVS is compared with, where there is one.
const BESIDE_IPVS: [Subject; 6] = [
    Bare("bare XDP", "forward"),
    Sluice(0),
    Sluice(1),
    Kernel { translates: false },
    Ipvs { tunnels: false },
    Ipvs { tunnels: true },
];

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Bare(name, _) => name,
            Sluice(mode) => MODES[mode].0,
            Kernel { translates: true } => "nftables DNAT",
            Kernel { translates: false } => "forwarding",
            Ipvs { tunnels: false } => "IPVS dr",
            Ipvs { tunnels: true } => "IPVS tun",
        }
    }

    /// Whether it can be measured with so many flows; 0 for ever-new ones.
    fn takes(self, flows: u64) -> bool {
        match self {
            // Its exact table would soon be full.
            Sluice(3) => flows != 0 && flows <= MOST_TRANSLATED.into(),
            Kernel { translates: true } => flows != 0 && flows <= MOST_TRACKED,
            _ => true,
        }
    }

    /// Where its packets are sent to.
    fn way(self) -> Way {
        let mode = match self {
            Sluice(mode) => mode,
            Ipvs { tunnels } => tunnels.into(),
            _ => 0,
        };
        Way { mode, family: Family::V4 }
    }

    fn vip(self) -> IpAddr {
        self.way().vip()
    }

    /// Packets of so many flows for it.
    fn frames(self, flows: u64) -> Frames {
        let way = self.way();
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

/// Lines of the flow table for the most of them.
const MOST_LINES: u32 = 1 << 18;

/// Measures everything.
pub fn run(quick: bool, sink: Sink<'_>) -> Result<()> {
    let home = File::open("/proc/thread-self/ns/net")?;
    measure(quick, sink)?;
    Ok(setns(home, CloneFlags::CLONE_NEWNET)?)
}

/// Measures Sluice beside IPVS, in the calling thread's machine: its kernel must have that. An emulated one is slow, and IPVS
/// keeps its connections in 4,096 lists.
pub fn beside_ipvs(sink: Sink<'_>) -> Result<()> {
    const FLOWS: u32 = 4_096;
    let (netns, mut wires) = wires::lay(1)?;
    let subjects = &BESIDE_IPVS;
    let mut bench =
        Bench { netns, wires: &mut wires, bare: Object::load(1)?, subjects, rounds: 5, frames: 20_000 };
    let mut world = World::new(FLOWS)?;
    bench.set_bare(&world)?;
    world.kernel.tables().set_interfaces(&[(bench.wires[0].index, EDGE_MAC)]);
    bench.closed_loop(&mut world, FLOWS.into(), "4 K flows", 1, sink)
}

/// The same in a namespace of its own, in which the calling thread is left.
fn measure(quick: bool, sink: Sink<'_>) -> Result<()> {
    let (netns, mut wires) = wires::lay(2)?;
    let (rounds, frames) = if quick { (3, 200_000) } else { (5, 1_000_000) };
    let subjects = &SUBJECTS;
    let mut bench =
        Bench { netns, wires: &mut wires, bare: Object::load(MOST_LINES)?, subjects, rounds, frames };
    let chosen = if quick { &FLOWS[1..2] } else { &FLOWS[..] };
    let mut world: Option<(u32, World)> = None;
    for &(flows, name, size) in chosen {
        if world.as_ref().is_none_or(|(made_for, _)| *made_for != size) {
            world = Some((size, World::new(size)?));
        }
        let (_, world) = world.as_mut().context("made just now")?;
        let interfaces: Vec<_> = bench.wires.iter().map(|wire| (wire.index, EDGE_MAC)).collect();
        world.kernel.tables().set_interfaces(&interfaces);
        bench.set_bare(world)?;
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
    subjects: &'static [Subject],
    rounds: usize,
    frames: u32,
}

impl Bench<'_> {
    /// Tells the measuring programs where they send packets, and to read of a table as large as the one of flows.
    fn set_bare(&mut self, world: &World) -> Result<()> {
        let lines = world.kernel.tables().capacity().flow_buckets;
        let sending = sending([EDGE_MAC, [2, 0, 0, 0, 1, 1]], [[192, 0, 2, 1].into(), [10, 0, 2, 1].into()]);
        self.bare.set(Settings { lines, ..sending })
    }

    /// Makes a subject steer the packets of the first wires; they come back by themselves when the links are dropped, and
    /// [`release`] does the rest.
    fn steer(&mut self, world: &mut World, subject: Subject, cores: usize) -> Result<Vec<XdpLink>> {
        match subject {
            Kernel { translates: true } => translate()?,
            Ipvs { tunnels } => balance(tunnels)?,
            _ => {}
        }
        let names: Vec<String> = self.wires.iter().take(cores).map(|wire| wire.balancer.clone()).collect();
        let attach = |name: &String| match subject {
            Bare(_, program) => self.bare.attach(program, name),
            Sluice(_) => world.attach(name),
            Kernel { .. } | Ipvs { .. } => self.bare.attach("pass", name),
        };
        names.iter().map(attach).collect()
    }

    fn subjects(&self, flows: u64) -> impl Iterator<Item = Subject> + use<> {
        self.subjects.iter().copied().filter(move |subject| subject.takes(flows))
    }

    /// How many frames a sample has: the kernel is slower.
    fn repeat(&self, subject: Subject) -> u32 {
        if matches!(subject, Kernel { .. } | Ipvs { .. }) { self.frames / 4 } else { self.frames }
    }

    /// Sends a packet of each flow, one by one, and before that forgets others', which would not give up their places for them.
    fn make_known(&mut self, world: &World, subject: Subject, flows: u64) -> Result<()> {
        if flows != 0 {
            world.forget();
            pin(0, 0)?;
            self.wires[0].send(&mut subject.frames(flows), (flows as u32).max(1_000))?;
        }
        Ok(())
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
        let mut sent = 0;
        for _ in 0..self.rounds {
            for subject in self.subjects(flows) {
                // The kernel's routes lead to the first wire.
                if cores > 1 && matches!(subject, Kernel { .. }) {
                    continue;
                }
                let links = self.steer(world, subject, cores)?;
                let (mut frames, repeat) = (subject.frames(flows), self.repeat(subject));
                self.make_known(world, subject, flows)?;
                let before = world.counted()?;
                let mut rate = None;
                for _ in 0..TRIES {
                    frames.next = if flows == 0 { sent } else { sent % flows };
                    sent += u64::from(repeat);
                    rate = on_cores(&self.netns, &mut self.wires[..cores], &frames, repeat)
                        .with_context(|| subject.name())?;
                    if rate.is_some() {
                        break;
                    }
                    self.wires.iter_mut().take(cores).try_for_each(Wire::wait_until_quiet)?;
                }
                let rate = rate.with_context(|| {
                    format!("{}: {TRIES} times a tenth of the frames was lost", subject.name())
                })?;
                world.counted()?.expect_known(&before, flows).with_context(|| subject.name())?;
                group.add(subject.name(), rate);
                drop(links);
                release(subject)?;
            }
        }
        sink(group);
        Ok(())
    }

    /// The balancer on a core of its own, and more packets than it can take; packets by the CPU time of its thread.
    fn overload(&mut self, world: &mut World, flows: u64, name: &str, sink: Sink<'_>) -> Result<()> {
        let mut group = Group::new("live", format!("overload, {name}"), "Mpps");
        for _ in 0..self.rounds {
            for subject in self.subjects(flows) {
                let links = self.steer(world, subject, 1)?;
                self.make_known(world, subject, flows)?;
                let thread = self.wires[0].own_thread(1)?;
                pin(0, 0)?;
                let wire = &mut self.wires[0];
                let mut frames = subject.frames(flows);
                wire.send(&mut frames, (flows as u32).max(10_000))?;
                let known = world.counted()?;
                let before = (wire.counted()?, thread_time(thread)?);
                wire.send(&mut frames, self.frames)?;
                let took = thread_time(thread)? - before.1;
                world.counted()?.expect_known(&known, flows).with_context(|| subject.name())?;
                group.add(subject.name(), mpps(wire.counted()? - before.0, took));
                self.wires[0].no_thread()?;
                drop(links);
                release(subject)?;
            }
        }
        sink(group);
        Ok(())
    }
}

/// Samples of a closed loop that are tried. Now and then a thread of the kernel's goes on with packets that took it too long; the generator
/// no longer waits for them, and what it sends meanwhile is lost.
const TRIES: u32 = 5;

/// Runs a generator on each of the first cores; the sum of their rates, or `None` if too many frames were lost for a closed loop.
fn on_cores(netns: &Netns, wires: &mut [Wire], frames: &Frames, repeat: u32) -> Result<Option<f64>> {
    let run = |(cpu, wire): (usize, &mut Wire)| -> Result<Option<f64>> {
        netns.enter()?;
        pin(0, cpu)?;
        let (arrived, took) = wire.send(&mut frames.clone(), repeat)?;
        Ok((arrived * 100 >= u64::from(repeat) * 90).then(|| mpps(arrived, took)))
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = wires.iter_mut().enumerate().map(|one| scope.spawn(move || run(one))).collect();
        let rates = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        Ok(rates.collect::<Result<Option<Vec<f64>>>>()?.map(|rates| rates.iter().sum()))
    })
}

fn mpps(packets: u64, took: Duration) -> f64 {
    packets as f64 / took.as_secs_f64() / 1e6
}

/// Puts nftables' DNAT by a hash of the source into force.
fn translate() -> Result<()> {
    let servers: Vec<_> = SERVERS.iter().enumerate().map(|(n, server)| format!("{n} : {server}")).collect();
    // Packets in the middle of connections, whose ports changed without their checksums.
    wires::shell(&format!(
        "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1 net.netfilter.nf_conntrack_checksum=0; nft 'table ip bench {{ chain to {{ type nat hook \
         prerouting priority dstnat; dnat to jhash ip saddr . tcp sport mod {} map {{ {} }}; }}; }}'",
        SERVERS.len(),
        servers.join(", ")
    ))
}

/// Makes IPVS balance, by Maglev like Sluice. Its VIP must be an address of the host.
fn balance(tunnels: bool) -> Result<()> {
    let vip = Ipvs { tunnels }.vip();
    let method = if tunnels { "-i" } else { "-g" };
    // Packets in the middle of connections.
    let mut script = format!(
        "ip address add {vip}/32 dev lo; echo 1 >/proc/sys/net/ipv4/vs/sloppy_tcp; ipvsadm -A -t {vip}:80 -s mh; "
    );
    SERVERS.iter().for_each(|server| script += &format!("ipvsadm -a -t {vip}:80 -r {server}:80 {method}; "));
    wires::shell(&script)
}

/// Ends what [`Bench::steer`] made besides links.
fn release(subject: Subject) -> Result<()> {
    match subject {
        Kernel { translates: true } => wires::shell("nft delete table ip bench"),
        Ipvs { .. } => wires::shell(&format!("ipvsadm -C; ip address del {}/32 dev lo", subject.vip())),
        _ => Ok(()),
    }
}
