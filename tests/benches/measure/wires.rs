//! Pairs of veth ends in a namespace → a generator and a sink at one end, a balancer at the other.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::xdp::XdpLink;
use lb_tests::{Netns, run_checked, wait_until};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::object::{Frames, Object};
use crate::world::EDGE_MAC;

/// Where the kernel's own forwarding sends packets to.
pub const SERVERS: [&str; 4] = ["10.9.9.11", "10.9.9.12", "10.9.9.13", "10.9.9.14"];

/// A pair: the generator's end `gN`, the balancer's `bN`.
pub struct Wire {
    pub balancer: String,
    pub index: u32,
    generator: Object,
    generator_index: u32,
    _sink: XdpLink,
}

/// Moves the calling thread into a new namespace, and makes so many pairs there.
pub fn lay(count: usize) -> Result<(Netns, Vec<Wire>)> {
    let netns = Netns::new()?;
    netns.enter()?;
    let mut script =
        "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
                      net.ipv4.conf.default.send_redirects=0 net.ipv4.conf.all.rp_filter=0 \
                      net.ipv4.conf.default.rp_filter=0; "
            .to_owned();
    let mac = EDGE_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for pair in 0..count {
        script += &format!(
            "ip link add g{pair} type veth peer name b{pair}; ip link set b{pair} address {mac}; \
             ip link set g{pair} up; ip link set b{pair} up; ip address add 10.9.9.1/24 dev b{pair}; "
        );
    }
    for server in SERVERS {
        script += &format!("ip neighbour replace {server} lladdr 02:00:00:00:01:01 nud permanent dev b0; ");
    }
    script += &format!("ip route add 203.0.113.0/24 via {} dev b0", SERVERS[0]);
    shell(&script)?;
    let wires = (0..count).map(Wire::new).collect::<Result<_>>()?;
    Ok((netns, wires))
}

/// Runs commands in this thread's namespace; the first that fails ends them. Not by `sh`: where that is busybox, it takes its own `ip`.
pub fn shell(script: &str) -> Result<()> {
    run_checked(Command::new("bash").args(["-ec", script])).map(drop)
}

/// Keeps the calling thread, or another, on one CPU.
pub fn pin(thread: i32, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(thread), &cpus)?)
}

impl Wire {
    fn new(number: usize) -> Result<Self> {
        let mut generator = Object::load(1)?;
        generator.test_own("transmit")?;
        let end = format!("g{number}");
        let sink = generator.attach("count", &end)?;
        let balancer = format!("b{number}");
        let index = if_nametoindex(balancer.as_str())?;
        Ok(Self { index, balancer, generator_index: if_nametoindex(end.as_str())?, generator, _sink: sink })
    }

    /// Sends so many frames; says how many came out at the sink, and the CPU time that it all took.
    pub fn send(&mut self, frames: &mut Frames, repeat: u32) -> Result<(u64, Duration)> {
        let before = self.generator.counted()?;
        let took = self.generator.send(frames, self.generator_index, repeat)?;
        Ok((self.generator.counted()? - before, took))
    }

    /// Frames that came out at the sink so far.
    pub fn counted(&mut self) -> Result<u64> {
        self.generator.counted()
    }

    /// Waits until no more frames come out at the sink.
    pub fn wait_until_quiet(&mut self) -> Result<()> {
        let mut before = None;
        wait_until("no more frames come", Duration::from_secs(2), || {
            let now = self.counted().ok();
            now.is_some() && std::mem::replace(&mut before, now) == now
        })
        .map(drop)
    }

    /// Gives the balancer's end a thread of its own on a CPU, now that a program is attached; says which thread that is.
    pub fn own_thread(&self, cpu: usize) -> Result<i32> {
        self.set_threaded(1)?;
        let mut found = None;
        wait_until("there is a thread for packets", Duration::from_secs(2), || {
            // Of a namespace just left behind there may be another for a moment.
            found = newest_thread(&self.balancer);
            found.is_some()
        })?;
        let thread = found.context("no thread")?;
        pin(thread, cpu)?;
        Ok(thread)
    }
}

impl Wire {
    /// Lets whoever sends to the balancer's end do its work again; while a program is attached.
    pub fn no_thread(&self) -> Result<()> {
        self.set_threaded(0)
    }

    fn set_threaded(&self, threaded: u8) -> Result<()> {
        // What is seen under /sys is the namespace that it was mounted in.
        let file = format!("/sys/class/net/{}/threaded", self.balancer);
        let write = format!("mount -t sysfs none /sys && echo {threaded} > {file}");
        run_checked(Command::new("unshare").args(["--mount", "sh", "-ec", &write])).map(drop)
    }
}

/// The youngest of the kernel's threads that take packets from an interface of this name.
fn newest_thread(interface: &str) -> Option<i32> {
    let name = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let named =
        |id: &i32| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.starts_with(&name));
    ids.filter(named).max()
}

/// The CPU time that a thread of the kernel has used.
pub fn thread_time(thread: i32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat"))?;
    let nanoseconds = text.split(' ').next().unwrap_or_default().parse().context("schedstat")?;
    ensure!(nanoseconds > 0, "the thread {thread} has not run");
    Ok(Duration::from_nanos(nanoseconds))
}
