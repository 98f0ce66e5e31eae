//! One frame and the tables → an action, a verdict and, perhaps, a rewritten frame.
//!
//! The pipeline is written once, over [`Packet`] and [`Tables`]: the kernel implements them over the XDP context and
//! BPF maps, userspace over a byte slice and the same maps read from outside.
//!
//! It consists of [`Stage`]s, of which nearly all packets need but the first. In the kernel each is a program: the verifier goes
//! through it by itself, and none pays for the stack of another.

mod answer;
mod ethernet;
mod exit;
mod fragment;
mod icmp;
mod nat;
mod parse;
mod pick;
mod probe;
mod rare;
mod rewrite;
mod settled;
mod signals;
mod tables;
mod transport;
mod vips;

pub(crate) use ethernet::ethernet;
pub use exit::{Exit, Stage};
pub use nat::{Scratch, Work, add, attempt, clear_ended, locate, make_room};
pub(crate) use parse::is_extension;
pub use parse::{Extensions, MAX_OFFSET, Parsed, extensions};
pub use pick::pick_settled;
pub use probe::{OwnPacket, ProbeAction, ProbeTables, Side, probe_in, probe_out};
pub use signals::{Instant, Seen, TimedOpenings, note_answer, note_opening, noted};
pub use tables::{Header, Packet, Refusal, Step, Tables};
pub use transport::Transport;
pub use vips::vip_beyond;

use network_types::eth::EthHdr;

use vips::find_vip;

use crate::abi::{Control, MAC_MASK, MAX_INTERFACES, SNAT_MARK, VipFlags, VipSlot, VipTable, interface_slot};
use crate::hash;
use crate::net::{Address, Be16, EtherType, Protocol, Tuple};
use crate::verdict::Verdict;

/// What to do with the frame. The numbers are those of `enum xdp_action` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    /// Discard it.
    Drop = 1,
    /// Leave it to the host.
    Pass = 2,
    /// Transmit it on the interface it came from.
    Transmit = 3,
    /// Transmit it on the interface that [`Outcome::interface`] names.
    Redirect = 4,
}

/// How a packet leaves the pipeline. Flat, without payloads that only some variants have: on BPF those would be
/// undefined registers, which the verifier does not let be spilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to do with the frame.
    pub action: Action,
    /// What became of it, and why.
    pub verdict: Verdict,
    /// Index of the interface to transmit on; 0 for the one the packet came from.
    pub interface: u32,
    /// Id of the service it went to, if there is a backend.
    pub service: u32,
    /// Id of the backend it went to; 0 if it was not forwarded.
    pub backend: u16,
    /// Bytes by the IP header, if it was forwarded.
    pub bytes: u16,
    /// What it showed of its connection, if it was forwarded.
    pub seen: Seen,
}

impl Outcome {
    /// The outcome of a packet that goes to no backend; `interface` is that to transmit on, if it is sent.
    #[inline(always)]
    pub const fn without_backend(verdict: Verdict, interface: u32) -> Self {
        let action = if verdict.is_dropped() {
            Action::Drop
        } else if !verdict.is_sent() {
            Action::Pass
        } else if interface == 0 {
            Action::Transmit
        } else {
            Action::Redirect
        };
        Self { action, verdict, interface, service: 0, backend: 0, bytes: 0, seen: Seen::NOTHING }
    }

    /// The outcome of a packet sent to a backend.
    #[inline(always)]
    const fn forwarded(interface: u32, service: u32, backend: u16, bytes: u16, seen: Seen) -> Self {
        let action = if interface == 0 { Action::Transmit } else { Action::Redirect };
        Self { action, verdict: Verdict::Forward, interface, service, backend, bytes, seen }
    }

    /// Whether the flow was given its backend just now.
    #[inline(always)]
    pub const fn new_flow(&self) -> bool {
        self.seen.is_new()
    }
}

/// A service, as a VIP leads to it.
#[derive(Clone, Copy, Debug)]
struct Classified {
    /// Its id.
    service: u32,
    /// What its packets need.
    flags: VipFlags,
}

/// Stages that a packet goes through at most: a first fragment of a new flow that is translated is plain, rare, translated, for which the
/// translation is made, after which it is.
const MAX_STAGES: usize = 6;

/// Sends one frame through the datapath. In the kernel a program a stage does the same.
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    let mut exit = match run_stage(packet, tables, Exit::enter(Stage::Plain)) {
        Ok(outcome) => return outcome,
        Err(exit) => exit,
    };
    let mut stages = 1;
    while stages < MAX_STAGES {
        match run_stage(packet, tables, exit) {
            Ok(outcome) => return outcome,
            Err(next) => exit = next,
        }
        stages += 1;
    }
    settled_as(tables, Verdict::DropInconsistent)
}

/// Runs one stage. Every packet that leaves does so here, and here it is counted, once;
/// `Err` leads to another stage.
#[inline(always)]
pub fn run_stage<P: Packet, T: Tables>(packet: &mut P, tables: &T, exit: Exit) -> Result<Outcome, Exit> {
    let outcome = match exit.stage() {
        Stage::Plain => steer(packet, tables),
        Stage::Rare => rare::steer(packet, tables),
        Stage::Icmp => icmp::steer(packet, tables),
        Stage::IcmpError => icmp::steer_error(packet, tables),
        Stage::Nat => nat::steer(packet, tables),
        Stage::NatReturn => nat::steer_return(packet, tables),
        Stage::NatNew => nat::translate_new(packet, tables),
        Stage::NatError => nat::steer_error(packet, tables),
        Stage::Answer => answer::send(packet, tables, exit),
        Stage::None | Stage::Former => Err(exit),
    };
    match outcome {
        Ok(outcome) => {
            if outcome.verdict == Verdict::Forward {
                tables.count_forwarded(&outcome);
            } else {
                tables.count(outcome.verdict);
            }
            Ok(outcome)
        }
        Err(exit) if exit.is_settled() => Ok(settled_as(tables, exit.verdict())),
        Err(exit) => Err(exit),
    }
}

/// The outcome of a packet that is not sent, counted.
#[inline(always)]
fn settled_as<T: Tables>(tables: &T, verdict: Verdict) -> Outcome {
    tables.count(verdict);
    Outcome::without_backend(verdict, 0)
}

/// parse → classify → admit → pick → rewrite, for packets without anything unusual about them; those of translated flows of which nothing is
/// new are translated instead.
///
/// Each family has its code to itself, in which the compiler knows where the headers are and that three words of an IPv4
/// address are always the same.
#[inline(always)]
fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let ether_type = packet.read(EthHdr::LEN - 2).ok_or(Verdict::PassMalformedEthernet)?;
    let ether_type = EtherType(Be16::from_wire(ether_type));
    let destination = packet.read(0).ok_or(Verdict::PassMalformedEthernet)?;
    if ether_type == EtherType::IPV4 {
        let parsed = parse::plain_v4(packet)?;
        steer_plain(packet, tables, control, destination, &parsed)
    } else if ether_type == EtherType::IPV6 {
        let parsed = parse::plain_v6(packet)?;
        steer_plain(packet, tables, control, destination, &parsed)
    } else if ether_type.is_vlan() {
        Err(Stage::Rare.into())
    } else {
        Err(Verdict::PassNotIp.into())
    }
}

#[inline(always)]
fn steer_plain<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    destination: u64,
    parsed: &Parsed,
) -> Result<Outcome, Exit> {
    tables.observe(Step::Parsed(parsed.tuple));
    // Before it is known whether it will be needed: a word is kept meanwhile, not all that it is made of.
    let hash = tables.hide(hash::flow(&control.flow_key, &parsed.tuple));
    let on = packet.interface();
    let classified = match classify(tables, control, &parsed.tuple) {
        Some(classified) if !classified.flags.nat() => classified,
        None if !answers_flow(tables, control, &parsed.tuple) => return Err(Verdict::PassNotVip.into()),
        of_nat => {
            let frame = nat::Frame { destination, on, hash };
            return nat::steer_known(packet, tables, control, parsed, frame, of_nat);
        }
    };
    admit_on(on, control, destination)?;
    let flow = pick::Flow { fields: &parsed.tuple, transport: parsed.transport, held: 0 };
    let pick = pick::pick_plain(tables, control, &flow, classified, hash)?;
    let hop = pick.backend.hop(pick.word);
    let interface = rewrite::send(packet, tables, control, parsed, &pick, hop, on)?;
    Ok(Outcome::forwarded(interface, classified.service, pick.id, parsed.bytes, pick.seen))
}

/// Whether a packet that is for no service may be an answer to a translated flow; else it is the host's.
#[inline(always)]
fn answers_flow<T: Tables>(tables: &T, control: &Control, tuple: &Tuple) -> bool {
    let table = control.vip_table.load();
    VipTable::from_word(table).may_be_snat(tuple.destination)
        && find_every_port(tables, control, table, tuple.destination, SNAT_MARK).is_some()
}

/// Finds the service: by (VIP, port, protocol), then by (VIP, every port, protocol).
#[inline(always)]
fn classify<T: Tables>(tables: &T, control: &Control, tuple: &Tuple) -> Option<Classified> {
    let word = control.vip_table.load();
    let table = VipTable::from_word(word);
    let port = tuple.ports.destination();
    if let Some(slot) = find_vip(tables, control, table, tuple.destination, port, tuple.protocol) {
        return Some(classified(tables, slot, false));
    }
    if table.any_port
        && let Some(slot) = find_every_port(tables, control, word, tuple.destination, tuple.protocol)
    {
        return Some(classified(tables, slot, true));
    }
    None
}

/// Finds a VIP of port 0 after another look-up of the same address, of which nothing is kept for this one: hardly any packet needs both.
#[inline(always)]
fn find_every_port<'a, T: Tables>(
    tables: &'a T,
    control: &Control,
    table: u64,
    address: Address,
    protocol: Protocol,
) -> Option<&'a VipSlot> {
    let [a, b, c, d] = address.words();
    let address = Address::from_words([a, b, c, tables.hide(d.into()) as u32]);
    let table = VipTable::from_word(tables.hide(table));
    find_vip(tables, control, table, address, Be16::new(0), protocol)
}

#[inline(always)]
fn classified<T: Tables>(tables: &T, slot: &VipSlot, any_port: bool) -> Classified {
    let service = slot.service.into();
    tables.observe(Step::Classified { service, any_port });
    Classified { service, flags: slot.flags }
}

/// Whether the address is a VIP of any service.
#[inline(always)]
fn is_vip<T: Tables>(tables: &T, control: &Control, address: Address) -> bool {
    let table = VipTable::from_word(control.vip_table.load());
    find_vip(tables, control, table, address, Be16::new(0), Protocol::ICMP).is_some()
}

/// What a packet for a service must still meet: a frame for this host's own MAC, for a promiscuous port sees flooded frames
/// too.
#[inline(always)]
fn admit<P: Packet>(packet: &P, control: &Control) -> Result<(), Verdict> {
    admit_on(packet.interface(), control, packet.read(0).ok_or(Verdict::PassMalformedEthernet)?)
}

/// The same of a frame that came in on this interface and begins with these eight bytes.
#[inline(always)]
fn admit_on(on: u32, control: &Control, frame: u64) -> Result<(), Verdict> {
    let mut probe = 0;
    while probe < MAX_INTERFACES {
        let interface = &control.interfaces[interface_slot(on, probe)];
        let index = interface.index.load();
        if index == u64::from(on) {
            let other = interface.mac.load() != frame & MAC_MASK;
            return if other { Err(Verdict::PassOtherHost) } else { Ok(()) };
        }
        if index == 0 {
            break;
        }
        probe += 1;
    }
    Ok(())
}
