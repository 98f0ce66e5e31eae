//! A customer's packet of a flow that has no translation → one for each direction.

use super::super::parse;
use super::super::pick::{Asked, Pick, pick};
use super::super::settled::settle;
use super::super::{Exit, Outcome, Packet, Stage, Tables, classify, rare};
use super::state::{Leaves, Scratch, Work, entry_of, forget, has_ended, remove, reverse_key};
use super::{came_from, check};
use crate::abi::{Control, MAX_SOURCES, NatPorts, NextHop, NoPort, Translation, TranslationState, TupleKey};
use crate::flow::Eviction;
use crate::hash;
use crate::net::{Address, Be16, Ports, Protocol, Tuple};
use crate::translations::{Inserted, Translations};
use crate::verdict::Verdict;

/// Ports that are tried for a new flow. With four fifths of them taken, none is free once in twelve hundred times.
const PORT_ATTEMPTS: u32 = 32;
/// The same within the tick in which a flow to the same backend found none: a flood of new flows must not cost more than any other.
const ATTEMPTS_WITHOUT_HOPE: u32 = 4;
/// Ticks from which on a flow may make way whose customer has not followed up its opening: one and a part of another, in which all have
/// done so but those whose packets are lost, or whose addresses are invented. After more, a flood would have filled a table.
const UNFOLLOWED_TICKS: u32 = 2;

/// Makes the translation for a customer's packet, in place of one that is no longer good.
#[inline(always)]
pub(in crate::datapath) fn translate_new<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, _) = settle(tables, parse::whole(packet)?)?;
    let classified = classify(tables, control, &parsed.tuple).ok_or(Verdict::DropInconsistent)?;
    forget(tables, control, &TupleKey::of(&parsed.tuple));
    let pick = pick(tables, Asked { classified, transport: parsed.transport, held: 0 })?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    work.path = came_from(packet, parsed.ip_offset)?;
    work.key = TupleKey::of(&parsed.tuple);
    let hop = rare::resolve(packet, control, &parsed, &pick, room)?;
    check(packet, control, &parsed, hop.mtu)?;
    prepare(work, hop, &parsed.tuple, &pick);
    // Every attempt takes it.
    drop(scratch);
    add_answers(tables, &pick)?;
    add_forward(tables, control, &parsed.tuple)?;
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
        source: tuple.destination,
        destination: tuple.source,
        ports: tuple.ports.swapped().word(),
        backend: pick.id,
        reply: 1,
        path: work.path,
    };
    work.state = pick.now.0.into();
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
    let no_port = NoPort(pick.now).to_word();
    let attempts = if pick.backend.noted.load() == no_port { ATTEMPTS_WITHOUT_HOPE } else { PORT_ATTEMPTS };
    let mut attempt = 0;
    while attempt < attempts {
        // A port that its flow gave up is there to be taken: among many that are not, chance would not lead to it again.
        let given_up = attempt > attempts / 2 && tables.clear_ended();
        if !given_up {
            sequence = hash::step(sequence);
            if !tables.attempt(sequence) {
                return Err(Verdict::DropNatSource.into());
            }
        }
        match insert(tables) {
            Inserted::Done => return Ok(()),
            Inserted::Exists => {}
            Inserted::Full => return Err(Verdict::DropNatTable.into()),
        }
        attempt += 1;
    }
    tables.note(pick.id, no_port);
    Err(Verdict::DropNatPorts.into())
}

/// The number of a port that no other program takes: while tables change their size, one has those with even numbers, the other
/// those with odd ones.
#[inline(always)]
fn own_number(control: &Control, number: u32) -> u32 {
    if !control.is_moving() {
        return number;
    }
    let odd = u32::from(control.is_moving_in());
    let number = number & !1 | odd;
    if number < control.nat_ports.count() { number } else { odd }
}

/// Puts the key of the answers' translation, with the address and port that follow from a number, into the scratch room's [`Work`],
/// where all else that it needs is; says whether there is an address to send from.
#[inline(always)]
pub fn attempt<T: Tables>(tables: &T, sequence: u64) -> bool {
    let Some(control) = tables.control() else { return false };
    let Some(mut scratch) = tables.scratch() else { return false };
    let work = &mut scratch.work;
    let protocol = work.key.protocol();
    let leaves = &mut work.found.leaves;
    if let Some(source) = configured_source(control, leaves.destination.is_v4(), sequence) {
        leaves.source = source;
    }
    if leaves.source.is_zero() {
        return false;
    }
    let number = own_number(control, hash::reduce(sequence, control.nat_ports.count()));
    leaves.ports = Ports::of(Be16::new(control.nat_ports.port(number)), leaves.ports.destination());
    work.key = reverse_key(leaves, protocol);
    true
}

/// Adds the translation of a customer's packets; its answers' is there.
#[inline(always)]
fn add_forward<T: Tables>(tables: &T, control: &Control, tuple: &Tuple) -> Result<(), Exit> {
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let work = &mut scratch.work;
    let Leaves { source, destination, ports } = work.found.leaves;
    work.translation.source = source;
    work.translation.destination = destination;
    work.translation.ports = ports.word();
    work.translation.reply = 0;
    work.state = TranslationState { fresh: true, ..TranslationState::from_word(work.state) }.to_word();
    let answers = reverse_key(&work.found.leaves, tuple.protocol);
    work.key = TupleKey::of(tuple);
    // The insertion takes it.
    drop(scratch);
    let verdict = match insert(tables) {
        Inserted::Done => return Ok(()),
        Inserted::Full => Verdict::DropNatTable,
        // Another CPU has just made one for the same flow: the next packet finds it.
        Inserted::Exists => Verdict::DropNatPorts,
    };
    remove(tables, control, &answers);
    Err(verdict.into())
}

/// Inserts what is in [`Work`]; where there is no room, a flow makes way that was not followed up.
#[inline(always)]
fn insert<T: Tables>(tables: &T) -> Inserted {
    match tables.add_translation() {
        Inserted::Full if tables.make_room() => tables.add_translation(),
        inserted => inserted,
    }
}

/// Removes a flow that its customer has not followed up from the buckets of the key in [`Work`], and its answers', if there is one that
/// is old enough, and tables do not change their size; says whether.
#[inline(always)]
pub fn make_room<T: Tables>(tables: &T) -> Option<()> {
    let mut scratch = tables.scratch()?;
    let work = &mut scratch.work;
    let control = tables.control()?;
    if control.is_moving() {
        return None;
    }
    let table = Translations::new(tables, control);
    let entry = table.entry(table.unfollowed(&work.key, tables.now(control), UNFOLLOWED_TICKS)?)?;
    let (key, (translation, tag)) = (entry.key()?, entry.read()?);
    work.reverse = translation.reverse_key(&key);
    // Found before what leads there is gone: then another may take the place.
    let answers = entry_of(tables, control, &work.reverse);
    if tag.state().established || !entry.remove(tag) {
        return None;
    }
    if let Some(answers) = answers {
        answers.remove_now();
    }
    tables.count_eviction(Eviction::Unfollowed);
    Some(())
}

/// Removes the answers' translation under the key in [`Work`], and the other direction's, if both sides have ended the connection or the
/// customer has never followed up its beginning, and tables do not change their size; says whether.
#[inline(always)]
pub fn clear_ended<T: Tables>(tables: &T) -> Option<()> {
    let mut scratch = tables.scratch()?;
    let work = &mut scratch.work;
    let control = tables.control()?;
    if control.is_moving() {
        return None;
    }
    let answers = entry_of(tables, control, &work.key)?;
    let (translation, tag) = answers.read()?;
    work.reverse = translation.reverse_key(&work.key);
    let now = tables.now(control);
    if let Some(forward) = entry_of(tables, control, &work.reverse) {
        let customers = forward.tag()?;
        // A server's late datagram would be another customer's; TCP knows them by their numbers. Answers that come again and again do
        // not count.
        let is_over = if work.key.protocol() == Protocol::TCP && !customers.state().established {
            now.since(customers.state().tick) >= UNFOLLOWED_TICKS
        } else {
            has_ended(tag, now) && has_ended(customers, now)
        };
        if !(is_over && forward.remove(customers)) {
            return None;
        }
    } else if !has_ended(tag, now) {
        return None;
    }
    answers.remove_now();
    Some(())
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
