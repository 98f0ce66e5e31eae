//! Forwarding modes and families → a datapath in the kernel that serves a VIP by each, and frames for them.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramFd, Xdp, XdpMode};
use lb_common::abi::{Forwarding, NextHop, PROGRAM, Verdicts};
use lb_common::datapath::TimedOpenings;
use lb_common::net::{Address, Protocol};
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{Globals, VipKey, Wanted, WantedBackend, WantedService};
use lb_userspace::io::datapath::{Datapath, Kernel, capacity_for};

use crate::support::frames::wire::{FAMILIES, Family};
use crate::support::packets::{ACK, Body, Packet, Piece, SYN};
use crate::support::{self, Pins};

pub const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The interface that `BPF_PROG_TEST_RUN` lets frames come in on.
const LOOPBACK: u32 = 1;
const BACKENDS: u8 = 8;
/// Addresses that translated packets are sent from: with eight backends enough ports for two million connections.
const SNAT_ADDRESSES: u8 = 8;
/// Above the largest frame and a tunnel's headers.
const MTU: u16 = 9_100;

pub const MODES: [(&str, Forwarding); 4] = [
    ("l2-dsr", Forwarding::L2Dsr),
    ("ipip", Forwarding::Ipip),
    ("gue", Forwarding::Gue),
    ("nat", Forwarding::Nat),
];

/// A service: a mode, and the family of customers and backends alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub mode: usize,
    pub family: Family,
}

impl Way {
    pub fn all() -> impl Iterator<Item = Self> {
        (0..MODES.len()).flat_map(|mode| FAMILIES.map(|family| Self { mode, family }))
    }

    pub fn name(self) -> String {
        format!("{} {}", MODES[self.mode].0, self.family.name())
    }

    pub fn is_nat(self) -> bool {
        MODES[self.mode].1 == Forwarding::Nat
    }

    /// Bytes that its tunnel puts in front.
    pub fn growth(self) -> u32 {
        let ip = if self.family == Family::V4 { 20 } else { 40 };
        match MODES[self.mode].1 {
            Forwarding::Ipip => ip,
            Forwarding::Gue => ip + 12,
            _ => 0,
        }
    }

    /// The least that can be called forwarding in this mode: what it is called, and the measuring program that does it.
    pub fn floor(self) -> Option<(&'static str, &'static str)> {
        match MODES[self.mode].1 {
            _ if self.family != Family::V4 => None,
            Forwarding::L2Dsr => Some(("bare XDP", "forward")),
            Forwarding::Ipip => Some(("bare encapsulation", "encapsulate")),
            _ => None,
        }
    }

    /// The least that can be called beginning a flow in this mode, likewise.
    pub fn floor_of_new(self) -> Option<(&'static str, &'static str)> {
        (self == Way { mode: 0, family: Family::V4 }).then_some(("bare XDP, remembering", "forward_new"))
    }

    fn number(self) -> u8 {
        10 + self.mode as u8
    }

    pub fn vip(self) -> IpAddr {
        self.family.vip(self.number())
    }

    fn service(self) -> WantedService {
        let key = VipKey { address: self.vip().into(), port: 80, protocol: Protocol::TCP };
        let backends = (1..=BACKENDS).map(|host| self.backend(host)).collect();
        let service = support::service(&self.name(), vec![key], backends);
        WantedService { forwarding: MODES[self.mode].1, ..service }
    }

    fn backend(self, host: u8) -> WantedBackend {
        let mut hop = NextHop::new([2, 0, 0, 0, 1, host], EDGE_MAC, 0);
        (hop.source, hop.mtu) = (self.family.edge().into(), MTU);
        let number = self.number() * 10 + host;
        let named = support::backend(&format!("{}-{host}", self.name()), host);
        WantedBackend { address: self.family.server(number).into(), hop: Some(hop), ..named }
    }

    /// A customer's packet of an established connection, or one that opens it; as short as a frame may be.
    pub fn tcp(self, opens: bool, to: IpAddr, payload: usize) -> Packet {
        let least = if self.family == Family::V4 { 10 } else { 6 };
        let flags = if opens { SYN } else { ACK };
        let body = Body::Tcp { ports: [40_000, 80], flags, payload: vec![0; payload.max(least)] };
        Packet::new([EDGE_MAC, ROUTER_MAC], self.family.client(), to, body)
    }

    /// The first and a later fragment of a customer's packet.
    pub fn fragments(self) -> [Packet; 2] {
        [0, 96].map(|offset| Packet {
            dont_fragment: false,
            piece: Some(Piece { identification: 7, offset, length: 96 }),
            ..self.tcp(false, self.vip(), 300)
        })
    }

    pub fn echo(self) -> Packet {
        let kind = if self.family == Family::V4 { 8 } else { 128 };
        let body = Body::Icmp { kind, code: 0, rest: [0, 1, 0, 1], payload: vec![0; 56] };
        Packet::new([EDGE_MAC, ROUTER_MAC], self.family.client(), self.vip(), body)
    }
}

/// Who has the router's address?
pub fn arp() -> Vec<u8> {
    let head = [&[0xff; 6][..], &ROUTER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let mut frame = [&head[..], &ROUTER_MAC, &[192, 0, 2, 1], &[0; 6], &[192, 0, 2, 2]].concat();
    frame.resize(64, 0);
    frame
}

/// Translated connections are not measured beyond: two entries each make a million.
pub const MOST_TRANSLATED: u32 = 1 << 19;

/// A datapath that serves every [`Way`].
pub struct World {
    pub kernel: Kernel,
    pub program: ProgramFd,
    _pins: Pins,
}

impl World {
    /// With room for twice as many flows, and for as many translated connections.
    pub fn new(flows: u32) -> Result<Self> {
        let snat: Vec<Vec<Address>> = FAMILIES
            .map(|family| (101..=100 + SNAT_ADDRESSES).map(|host| family.server(host).into()).collect())
            .into();
        let [snat4, snat6]: [Vec<Address>; 2] = snat.try_into().expect("two families");
        let wanted = Wanted {
            ring_seed: support::SEED,
            snat: snat4.iter().chain(&snat6).copied().collect(),
            globals: Globals { snat: [snat4, snat6], ..Globals::default() },
            services: Way::all().map(Way::service).collect(),
            ..Wanted::default()
        };
        let pins = Pins::new();
        let capacity = capacity_for(64, 256, 256, flows * 2, flows.min(MOST_TRANSLATED));
        let (mut kernel, _) = Kernel::load(&pins.0, capacity, false)?;
        kernel.set_ring_seed(wanted.ring_seed);
        support::apply(&mut kernel, &wanted);
        kernel.tables().set_interfaces(&[(LOOPBACK, EDGE_MAC)]);
        let loaded =
            kernel.object().and_then(|object| object.program(PROGRAM)).context("the program is gone")?;
        let program = loaded.fd()?.try_clone()?;
        Ok(Self { kernel, program, _pins: pins })
    }

    /// Attaches the program to an interface of this thread's namespace, in driver mode.
    pub fn attach(&mut self, interface: &str) -> Result<XdpLink> {
        let object = self.kernel.object().context("not loaded")?;
        let program: &mut Xdp = object.program_mut(PROGRAM).context("the program is gone")?.try_into()?;
        let link = program.attach(interface, XdpMode::Driver)?;
        Ok(program.take_link(link)?)
    }

    /// Forgets all flows and translations.
    pub fn forget(&self) {
        self.kernel.tables().sweep_backends(&self.kernel.tables().backend_ids().collect());
    }

    /// Says that no ICMP answer was sent yet.
    pub fn allow_answers(&self) {
        if let Some(control) = self.kernel.tables().control() {
            control.icmp_budget.store(0);
        }
    }

    /// Has one opening in so many be timed; 0 for none.
    pub fn time_openings(&mut self, one_in: u32) -> Result<()> {
        let control = self.kernel.tables_mut().control_mut().context("not loaded")?;
        control.timed_openings = TimedOpenings::one_in(one_in);
        Ok(())
    }

    /// Makes ticks so long, as [`lb_common::abi::Control::tick_shift`] says; yields what it said before.
    pub fn set_tick_shift(&mut self, shift: u32) -> Result<u32> {
        let control = self.kernel.tables_mut().control_mut().context("not loaded")?;
        Ok(std::mem::replace(&mut control.tick_shift, shift))
    }

    /// Packets by verdict.
    pub fn counted(&self) -> Result<Counted> {
        let forwarded = self.kernel.forwarded()?;
        Ok(Counted { packets: self.kernel.verdicts(&forwarded)?, new_flows: forwarded.all.new_flows })
    }
}

/// What the datapath has counted.
pub struct Counted {
    packets: Verdicts,
    new_flows: u64,
}

impl Counted {
    /// Fails unless nearly all packets forwarded since `before` were of known flows, if there are so many that take turns; 0 stands for
    /// ever-new ones.
    pub fn expect_known(&self, before: &Self, flows: u64) -> Result<()> {
        let index = Verdict::Forward.index();
        let packets = self.packets.packets[index] - before.packets.packets[index];
        let new_flows = self.new_flows - before.new_flows;
        ensure!(
            flows == 0 || new_flows * 10 <= packets,
            "{new_flows} of {packets} packets were of new flows"
        );
        Ok(())
    }

    /// Fails unless nearly all of so many packets since `before` had this verdict, and if it is to forward them, were all of new
    /// flows or nearly all of known ones (where a bucket overflows, flows that take turns all miss it).
    pub fn expect(&self, before: &Self, packets: u64, verdict: Verdict, new: bool) -> Result<()> {
        let grown = |verdict: Verdict| {
            self.packets.packets[verdict.index()] - before.packets.packets[verdict.index()]
        };
        let seen = Verdict::ALL.iter().filter(|&&seen| grown(seen) > 0);
        let seen: Vec<_> = seen.map(|&seen| format!("{} {}", grown(seen), seen.name())).collect();
        let wanted = verdict.name();
        ensure!(grown(verdict) * 100 >= packets * 95, "of {packets} packets, {wanted}: {}", seen.join(", "));
        let new_flows = self.new_flows - before.new_flows;
        let wrong = if new { packets.saturating_sub(new_flows) } else { new_flows };
        let fine = verdict != Verdict::Forward || wrong * 100 <= packets * 10;
        ensure!(fine, "{new_flows} of {packets} packets were of new flows");
        Ok(())
    }
}
