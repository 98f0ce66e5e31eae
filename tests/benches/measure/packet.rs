//! The program in the kernel, without a network → nanoseconds a packet by mode, family and number of flows.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use lb_common::abi::TranslationBucket;
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::object::{Frames, Object};
use crate::samples::{Group, Sink};
use crate::support::frames::wire::{FAMILIES, Family};
use crate::world::{MOST_TRANSLATED, Way, World, arp};

/// Frames a sample, if the flows are few enough to stay in the caches; and if not.
const WARM: u32 = 200_000;
const COLD: u32 = 1_000_000;
/// ICMP answers that may be sent in a tick: fewer are asked for in a sample.
const ECHOES: u32 = 900;
/// Frames at least that go before a sample, so that it does not measure how the caches fill: every flow has one, unless their table
/// is larger than any cache.
const WARM_UP: u32 = 131_072;
const MOST_CACHED: u32 = 1 << 20;
/// New flows a sample: few enough to find room.
const NEW: u32 = 40_000;

/// New flows are not measured in larger tables.
const MOST_NEW: u32 = 1 << 20;

/// As many as the largest table of flows or translations has.
const MOST_LINES: u32 = 1 << 22;

/// Bytes of a cache line, and of a bucket of the flow table.
const LINE_BYTES: usize = 64;

/// The program when it times all openings, for what one in many costs is lost in the noise; in all else that is measured it times none.
const TIMED: &str = "all openings timed";

/// A thing to be measured.
struct Case {
    name: String,
    frames: Frames,
    /// What must become of the packets.
    verdict: Verdict,
    /// Bytes that a tunnel puts in front: then a program that only makes room for them is measured as well.
    growth: u32,
    /// The least that can be called forwarding in this mode: what it is called, and its program.
    floor: Option<(&'static str, &'static str)>,
    repeat: u32,
    /// Frames that go before each sample.
    warm_up: u32,
}

/// Sizes of the run.
pub struct Extent {
    rounds: usize,
    flows: &'static [(u32, &'static str)],
    /// Divides the frames of a sample.
    hurry: u32,
}

pub const FULL: Extent =
    Extent { rounds: 11, flows: &[(65_536, "64 K"), (1 << 20, "1 M"), (1 << 23, "8 M")], hurry: 1 };
pub const QUICK: Extent = Extent { rounds: 7, hurry: 4, ..SMOKE };
/// What shows that all of it works, and measures nothing.
pub const SMOKE: Extent = Extent { rounds: 1, flows: &[(65_536, "64 K")], hurry: 100 };

/// Measures everything.
pub fn run(extent: &Extent, sink: Sink<'_>) -> Result<()> {
    pin_to_last_cpu()?;
    let mut object = Object::load(MOST_LINES)?;
    for (index, &(flows, name)) in extent.flows.iter().enumerate() {
        let mut bench = Bench { object: &mut object, world: World::new(flows)?, extent, sink };
        if index == 0 {
            bench.single()?;
        }
        for way in Way::all().filter(|way| flows <= MOST_NEW || !way.is_nat()) {
            let (flows, name) = if way.is_nat() && flows > MOST_TRANSLATED {
                (MOST_TRANSLATED, "512 K")
            } else {
                (flows, name)
            };
            bench.hits(way, flows, name)?;
            if flows <= MOST_NEW {
                bench.flood(way, flows, name)?;
                bench.new_flows(way, name)?;
            }
            bench.world.forget();
        }
    }
    Ok(())
}

/// The programs' state is one CPU's.
fn pin_to_last_cpu() -> Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let mut cpus = CpuSet::new();
    cpus.set(last)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

struct Bench<'a> {
    object: &'a mut Object,
    world: World,
    extent: &'a Extent,
    sink: Sink<'a>,
}

impl Bench<'_> {
    /// What needs no table of flows, or one flow.
    fn single(&mut self) -> Result<()> {
        let still = |frame| Frames { frame, family: 0, flows: 1, next: 0 };
        self.measure(case("ARP", still(arp()), Verdict::PassNotIp))?;
        for family in FAMILIES {
            let elsewhere = Way { mode: 0, family }.tcp(false, family.vip(99), 0).frame();
            let frames = flows(elsewhere, family, 65_536);
            self.measure(case(&format!("not a VIP {}", family.name()), frames, Verdict::PassNotVip))?;
            let frames = still(Way { mode: 0, family }.echo().frame());
            let name = format!("ICMP echo {}", family.name());
            let case = case(&name, frames, Verdict::ReplyIcmpEcho);
            self.measure(Case { repeat: ECHOES, warm_up: ECHOES, ..case })?;
        }
        for way in Way::all() {
            let forwarded = |what: &str, frames| Case {
                growth: way.growth(),
                floor: way.floor(),
                ..case(&format!("{} {what}", way.name()), frames, Verdict::Forward)
            };
            let frame = way.tcp(false, way.vip(), 0).frame();
            self.measure(forwarded("hit, 1 flow", flows(frame.clone(), way.family, 1)))?;
            let large = way.tcp(false, way.vip(), 8_900).frame();
            self.measure(forwarded("hit, 9 KB frame", flows(large, way.family, 1)))?;
            let [first, later] = way.fragments().map(|packet| still(packet.frame()));
            self.frames(first, 0, 1)?;
            self.measure(forwarded("later fragment", later))?;
            if way.is_nat() {
                let frames = still(self.answer(&frame)?);
                let name = format!("{} answer, 1 flow", way.name());
                self.measure(case(&name, frames, Verdict::ForwardReturn))?;
            }
            self.world.forget();
        }
        Ok(())
    }

    /// What a backend answers to a packet.
    fn answer(&mut self, frame: &[u8]) -> Result<Vec<u8>> {
        let mut answer = self.world.kernel.run_frame(frame, 1)?.frame;
        let v4 = answer.get(12..14).context("a short frame")? == [8, 0];
        let (address, bytes) = if v4 { (26, 4) } else { (22, 16) };
        let ports = address + 2 * bytes;
        for (start, size) in [(0, 6), (address, bytes), (ports, 2)] {
            let (one, other) = answer[start..start + 2 * size].split_at_mut(size);
            one.swap_with_slice(other);
        }
        Ok(answer)
    }

    /// Packets of established connections, all of them in the tables.
    fn hits(&mut self, way: Way, count: u32, name: &str) -> Result<()> {
        let frame = way.tcp(false, way.vip(), 0).frame();
        let frames = flows(frame, way.family, count.into());
        self.frames(frames.clone(), 0, count)?;
        let known = self.world.kernel.tables().flow_entries();
        ensure!(known * 10 >= u64::from(count) * 9, "{known} of {count} flows are in the table");
        let repeat = if count > 65_536 { COLD } else { WARM };
        let warm_up = if count > MOST_CACHED { WARM_UP } else { WARM_UP.max(count) };
        let name = format!("{} hit, {name} flows", way.name());
        let case = case(&name, frames, Verdict::Forward);
        self.measure(Case { growth: way.growth(), floor: way.floor(), repeat, warm_up, ..case })
    }

    /// Opening packets of ever-new flows when the tables are full, beside established ones; with `nat`, which gives up none of these and
    /// so drops some packets then, of such flows alone.
    fn flood(&mut self, way: Way, room: u32, name: &str) -> Result<()> {
        let frame = way.tcp(true, way.vip(), 0).frame();
        let mut frames = Frames { next: 1 << 24, ..flows(frame, way.family, 0) };
        // Connections of `nat` make way after a tick or two: those of the kernel's clock, for a second would be the whole run.
        let ticks = if way.is_nat() {
            self.world.forget();
            Some(self.world.set_tick_shift(0)?)
        } else {
            None
        };
        let filling = room * 4;
        self.frames(frames.clone(), 0, filling)?;
        frames.next += u64::from(filling);
        let name = format!("{} SYN flood, table for {name}", way.name());
        let case = case(&name, frames, Verdict::Forward);
        self.measure(Case { growth: way.growth(), floor: way.floor_of_new(), ..case })?;
        if let Some(ticks) = ticks {
            self.world.set_tick_shift(ticks)?;
        }
        Ok(())
    }

    /// Opening packets of ever-new flows, which find room.
    fn new_flows(&mut self, way: Way, name: &str) -> Result<()> {
        let frame = way.tcp(true, way.vip(), 0).frame();
        let frames = Frames { next: 1 << 23, ..flows(frame, way.family, 0) };
        let name = format!("{} new flow, table for {name}", way.name());
        let case = case(&name, frames, Verdict::Forward);
        let floor = way.floor_of_new();
        self.measure(Case { growth: way.growth(), floor, repeat: NEW, warm_up: NEW / 2, ..case })
    }

    fn frames(&mut self, mut frames: Frames, growth: u32, repeat: u32) -> Result<()> {
        self.object.test(&self.world.program)?;
        self.object.run(&mut frames, growth, 0, repeat).map(drop)
    }

    /// Cache lines of the table that flows are found in.
    fn lines(&self, translated: bool) -> u32 {
        let capacity = self.world.kernel.tables().capacity();
        if translated {
            capacity.translation_buckets() * (size_of::<TranslationBucket>() / LINE_BYTES) as u32
        } else {
            capacity.flow_buckets
        }
    }

    /// The program under test and what it is compared with, in turns.
    fn measure(&mut self, case: Case) -> Result<()> {
        let hurry = if [ECHOES, NEW].contains(&case.repeat) { 1 } else { self.extent.hurry };
        let [repeat, warm_up] = [case.repeat, case.warm_up].map(|frames| frames / hurry);
        let mut group = Group::new("packet", &case.name, "ns");
        let mut who = vec!["empty", "sluice"];
        if case.growth > 0 {
            who.push("head growth");
        }
        who.extend(case.floor.map(|(who, _)| who));
        if case.repeat == NEW && case.name.starts_with("l2-dsr IPv4") {
            who.push(TIMED);
        }
        // Beyond one flow, what the memory by itself costs.
        let lines = self.lines(case.verdict == Verdict::Forward && case.name.starts_with("nat"));
        if case.frames.flows != 1 && case.verdict == Verdict::Forward {
            who.extend(["one line of memory", "one line waited for"]);
        }
        let mut frames: Vec<Frames> = who.iter().map(|_| case.frames.clone()).collect();
        let before = self.world.counted()?;
        for _ in 0..self.extent.rounds {
            for (who, frames) in who.iter().zip(&mut frames) {
                match *who {
                    who if let Some((floor, program)) = case.floor
                        && who == floor =>
                    {
                        self.object.test_own(program)?
                    }
                    "empty" => self.object.test_own("null")?,
                    "sluice" | TIMED => self.object.test(&self.world.program)?,
                    "head growth" => self.object.test_own("grow")?,
                    "one line of memory" => self.object.test_own("touch")?,
                    _ => self.object.test_own("wait")?,
                }
                self.world.allow_answers();
                let mut warm_up = warm_up;
                if case.repeat == NEW && ["sluice", TIMED].contains(who) {
                    self.world.forget();
                    // Which has put their table out of the caches, and of new flows too few go before a sample to bring it back.
                    black_box(self.world.kernel.tables().flow_entries());
                } else if case.repeat == NEW {
                    warm_up = WARM_UP.max((4 * lines).min(MOST_CACHED));
                }
                self.world.time_openings(u32::from(*who == TIMED))?;
                self.object.run(frames, case.growth, lines, warm_up)?;
                self.world.allow_answers();
                let took = self.object.run(frames, case.growth, lines, repeat)?;
                group.add(who, took.as_nanos() as f64);
            }
        }
        let packets = u64::from(repeat + warm_up) * self.extent.rounds as u64;
        let new = case.frames.flows == 0;
        self.world.counted()?.expect(&before, packets, case.verdict, new).context(case.name)?;
        (self.sink)(group);
        Ok(())
    }
}

fn case(name: &str, frames: Frames, verdict: Verdict) -> Case {
    let warm_up = if frames.flows == 1 { WARM_UP / 64 } else { WARM_UP };
    Case { name: name.to_owned(), frames, verdict, growth: 0, floor: None, repeat: WARM, warm_up }
}

fn flows(frame: Vec<u8>, family: Family, flows: u64) -> Frames {
    Frames { frame, family: if family == Family::V4 { 4 } else { 6 }, flows, next: 0 }
}
