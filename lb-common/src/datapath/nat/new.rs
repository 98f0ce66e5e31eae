//! A customer's packet of a flow that has no translation → one for each direction.

use super::super::parse;
use super::super::pick::{self, Flow, Pick};
use super::super::settled::settle;
use super::super::{Exit, Inserted, Outcome, Packet, Stage, Tables, classify, rare};
use super::state::{Leaves, Scratch, Work, forget, reverse_key};
use super::{came_from, check};
use crate::abi::{Control, MAX_SOURCES, NatPorts, NextHop, Translation, TranslationState, TupleKey, Word};
use crate::flow::{RETRANSMISSION_TICKS, Tick};
use crate::hash;
use crate::net::{Address, Be16, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// Ports that are tried for a new flow. With four fifths of them taken, none is free once in twelve hundred times.
const PORT_ATTEMPTS: u32 = 32;

/// Makes the translation for a customer's packet, in place of one that is no longer good.
#[inline(always)]
pub(in crate::datapath) fn translate_new<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, _) = settle(tables, parse::whole(packet)?)?;
    let classified = classify(tables, control, &parsed.tuple).ok_or(Verdict::DropInconsistent)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    work.path = came_from(packet, &parsed)?;
    work.key = TupleKey::of(&parsed.tuple);
    forget(tables, work);
    let flow = Flow { tuple: &parsed.tuple, transport: parsed.transport, held: 0 };
    let pick = pick::pick(tables, control, flow, classified)?;
    let hop = rare::resolve(packet, control, &parsed, &pick, room)?;
    check(packet, control, &parsed, hop.mtu)?;
    prepare(work, hop, &parsed.tuple, &pick);
    // Every attempt takes it.
    drop(scratch);
    add_answers(tables, &pick)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    add_forward(tables, &mut scratch.work, &parsed.tuple)?;
    Err(Stage::Nat.into())
}

/// Puts into [`Work`] the answers' translation for a new flow, and what the flow leaves with but for its source port.
#[inline(always)]
fn prepare(work: &mut Work, hop: &NextHop, tuple: &Tuple, pick: &Pick<'_>) {
    let to = pick.backend.address;
    let to_port = match pick.word.port() {
        port if port == Be16::new(0) => tuple.ports.destination(),
        port => port,
    };
    work.translation = Translation {
        state: Word::new(u64::from(pick.now.0)),
        source: tuple.destination,
        destination: tuple.source,
        ports: tuple.ports.swapped().word(),
        backend: pick.id,
        reply: 1,
        first: Word::new(work.path.first),
        rest: Word::new(work.path.rest),
        vlan: Word::new(work.path.vlan.into()),
    };
    work.found.leaves =
        Leaves { source: hop.source, destination: to, ports: Ports::of(Be16::new(0), to_port) };
}

/// Finds a source port for a new flow, and adds the answers' translation; what the flow leaves with is then in [`Work::found`].
///
/// The source port follows from the flow and a key that nobody outside knows, so it cannot be guessed (RFC 6056 section
/// 3.3.3); a port that is taken leads to the next of a sequence as little to be foreseen.
#[inline(always)]
fn add_answers<T: Tables>(tables: &T, pick: &Pick<'_>) -> Result<(), Exit> {
    let mut sequence = pick.hash ^ u64::from(pick.now.0) << 32;
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        sequence = hash::step(sequence);
        match tables.attempt(sequence, attempt >= PORT_ATTEMPTS / 2) {
            Attempt::Done => return Ok(()),
            Attempt::Taken => {}
            Attempt::Full => return Err(Verdict::DropNatTable.into()),
            Attempt::NoSource => return Err(Verdict::DropNatSource.into()),
        }
        attempt += 1;
    }
    Err(Verdict::DropNatPorts.into())
}

/// What came of an attempt at a port for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Attempt {
    /// The answers' translation is there.
    Done = 0,
    /// The port is another flow's.
    Taken = 1,
    /// The table is full.
    Full = 2,
    /// There is no address to send from.
    NoSource = 3,
}

impl Attempt {
    /// From the number, as one function of the program hands it to another.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Done,
            1 => Self::Taken,
            2 => Self::Full,
            _ => Self::NoSource,
        }
    }
}

/// Tries to add the answers' translation from the address and port that follow from a number; those are then in the scratch
/// room's [`Work`], where all else that it needs is. `late` lets a flow whose connection has ended make way.
#[inline(always)]
pub fn attempt<T: Tables>(tables: &T, sequence: u64, late: bool) -> Attempt {
    let Some(control) = tables.control() else { return Attempt::NoSource };
    // Not handed over: up to Linux 6.2 the verifier lets no key of a map be where an argument points to.
    let Some(mut scratch) = tables.scratch() else { return Attempt::NoSource };
    let work = &mut scratch.work;
    let protocol = Protocol(work.key.protocol as u8);
    let leaves = &mut work.found.leaves;
    if let Some(source) = configured_source(control, leaves.destination.is_v4(), sequence) {
        leaves.source = source;
    }
    if leaves.source.is_zero() {
        return Attempt::NoSource;
    }
    let number = hash::reduce(sequence, control.nat_ports.count());
    leaves.ports = Ports::of(Be16::new(control.nat_ports.port(number)), leaves.ports.destination());
    work.key = reverse_key(leaves, protocol);
    match tables.add_translation(&work.key, &work.translation) {
        Inserted::Done => return Attempt::Done,
        Inserted::Full => return Attempt::Full,
        Inserted::Exists => {}
    }
    if late {
        clear_ended(tables, work, tables.now(control));
    }
    Attempt::Taken
}

/// Adds the translation of a customer's packets; its answers' is there, under the key.
#[inline(always)]
fn add_forward<T: Tables>(tables: &T, work: &mut Work, tuple: &Tuple) -> Result<(), Exit> {
    let Leaves { source, destination, ports } = work.found.leaves;
    work.translation.source = source;
    work.translation.destination = destination;
    work.translation.ports = ports.word();
    work.translation.reply = 0;
    let state = TranslationState::from_word(work.translation.state.load());
    work.translation.state.store(TranslationState { fresh: true, ..state }.to_word());
    work.key = TupleKey::of(tuple);
    match tables.add_translation(&work.key, &work.translation) {
        Inserted::Done => Ok(()),
        result => {
            work.key = reverse_key(&work.found.leaves, tuple.protocol);
            tables.remove_translation(&work.key);
            // Another CPU has just made one for the same flow: the next packet finds it.
            Err(if result == Inserted::Full { Verdict::DropNatTable } else { Verdict::DropNatPorts }.into())
        }
    }
}

/// Removes the answers' translation under the key, and the other direction's, if both sides have ended the connection.
#[inline(always)]
fn clear_ended<T: Tables>(tables: &T, work: &mut Work, now: Tick) {
    let Work { key, reverse, .. } = work;
    let protocol = Protocol(key.protocol as u8);
    let Some(answers) = tables.translation(key) else { return };
    *reverse = answers.reverse_key(protocol);
    let ended = has_ended(&answers, now);
    drop(answers);
    if ended && tables.translation(reverse).is_none_or(|forward| has_ended(&forward, now)) {
        tables.remove_translation(key);
        tables.remove_translation(reverse);
    }
}

/// Whether this side has ended the connection, and no packet came since.
#[inline(always)]
fn has_ended(translation: &Translation, now: Tick) -> bool {
    let state = TranslationState::from_word(translation.state.load());
    (state.closing || state.reset) && now.0.wrapping_sub(state.tick) > RETRANSMISSION_TICKS
}

/// The address that a new flow is sent on from, if any are configured.
#[inline(always)]
fn configured_source(control: &Control, v4: bool, hash: u64) -> Option<Address> {
    let (list, count) = if v4 {
        (&control.snat_v4, control.snat_counts[0])
    } else {
        (&control.snat_v6, control.snat_counts[1])
    };
    if count == 0 {
        return None;
    }
    Some(list[hash::reduce(hash << 32, count) as usize & (MAX_SOURCES - 1)])
}

const _: () = assert!(MAX_SOURCES.is_power_of_two() && NatPorts::FIRST > 0);
