//! A packet of a translated service, or a backend's answer → the same with addresses and ports translated.
//!
//! The state is exact: one translation for each direction, found by the packet's five fields as it arrives. The flow table
//! chooses and remembers the backend as for every other service; where the two differ, the translation is right.

use network_types::eth::EthHdr;

use super::parse::{self, Fragment, Parsed, Quoted, Transport};
use super::pick::{self, Flow, Pick};
use super::rewrite::{self, address_frame, check_size};
use super::settled::{Settled, settle};
use super::{Exit, Inserted, Outcome, Packet, Stage, Step, Tables, admit, classify, fragment, rare};
use crate::abi::{
    Control, FragmentRoute, MAX_SOURCES, NatPorts, NextHop, ReturnPath, Translation, TranslationState,
    TupleKey, Word,
};
use crate::checksum::Change;
use crate::flow::{RETRANSMISSION_TICKS, Tick};
use crate::hash;
use crate::net::{Address, Be16, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// Ports that are tried for a new flow. With four fifths of them taken, none is free once in twelve hundred times.
const PORT_ATTEMPTS: u32 = 32;
/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// What is worked on while a packet goes through one of the rarer stages: on BPF too much for the stack.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A next hop that only the kernel's tables know.
    pub(super) hop: NextHop,
    /// The rest.
    pub work: Work,
}

/// See [`Scratch`].
#[derive(Debug, Default)]
pub struct Work {
    pub(super) parsed: Settled,
    pub(super) key: TupleKey,
    pub(super) route: FragmentRoute,
    /// The key of the other direction.
    reverse: TupleKey,
    translation: Translation,
    found: Found,
    path: ReturnPath,
}

/// What a packet leaves with.
#[derive(Clone, Copy, Debug, Default)]
struct Leaves {
    source: Address,
    destination: Address,
    ports: Ports,
}

/// What a packet's translation says, taken out of the map.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    leaves: Leaves,
    backend: u16,
    reply: bool,
    /// Whether its end was seen on this side, a while ago.
    over: bool,
    /// Whether this is the first packet that it is for.
    fresh: bool,
}

impl Found {
    #[inline(always)]
    fn of(translation: &Translation, over: bool, fresh: bool) -> Self {
        let leaves = Leaves {
            source: translation.source,
            destination: translation.destination,
            ports: Ports::from_word(translation.ports),
        };
        Self { leaves, backend: translation.backend, reply: translation.reply != 0, over, fresh }
    }
}

/// Translates a customer's packet.
#[inline(always)]
pub(super) fn steer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, fragment) = settle(tables, parse::whole(packet)?)?;
    let classified = classify(tables, control, &parsed.tuple).ok_or(Verdict::DropInconsistent)?;
    admit(packet, control)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    work.key = TupleKey::of(&parsed.tuple);
    work.path = came_from(packet, &parsed)?;
    let found = find(tables, work, parsed.transport, tables.now(control), true) && !work.found.reply;
    if !found || work.found.over {
        return Err(Stage::NatNew.into());
    }
    let flow = Flow { tuple: &parsed.tuple, transport: parsed.transport, held: work.found.backend };
    let mut pick = pick::pick(tables, control, flow, classified)?;
    // An established flow stays with its translation, whatever the flow table has forgotten of it.
    if work.found.backend != pick.id {
        match other(tables, classified.service, work.found.backend, &pick) {
            Some(other) if pick::may_stay(parsed.transport, other.word) => pick = other,
            _ => return Err(Stage::NatNew.into()),
        }
    }
    forward(packet, tables, control, work, room, &parsed, fragment, classified.service, &pick)
}

/// Makes the translation for a customer's packet, in place of one that is no longer good.
#[inline(always)]
pub(super) fn translate_new<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
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
    make(tables, work, hop, &parsed.tuple, &pick)?;
    Err(Stage::Nat.into())
}

/// Removes the translation under the key, if there is one, and its answers'.
#[inline(always)]
fn forget<T: Tables>(tables: &T, work: &mut Work) {
    let Work { key, reverse, .. } = work;
    let Some(translation) = tables.translation(key) else { return };
    *reverse = translation.reverse_key(Protocol(key.protocol as u8));
    drop(translation);
    tables.remove_translation(key);
    tables.remove_translation(reverse);
}

/// Translates a backend's answer, or a fragment without ports of either direction.
#[inline(always)]
pub(super) fn steer_return<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Exit> {
    let control = tables.control().ok_or(Verdict::DropInconsistent)?;
    let (parsed, fragment) = settle(tables, parse::whole(packet)?)?;
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    if fragment.later {
        return follow(packet, tables, control, work, room, &parsed, fragment);
    }
    work.key = TupleKey::of(&parsed.tuple);
    let now = tables.now(control);
    if !find(tables, work, parsed.transport, now, false) || !work.found.reply {
        return Err(Verdict::PassNotVip.into());
    }
    admit(packet, control).map_err(|_| Verdict::PassNotVip)?;
    answer(packet, tables, control, work, &parsed, fragment)
}

/// Sends a customer's packet to its backend.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a structure of them would be laid out on the BPF stack")]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    room: &mut NextHop,
    parsed: &Parsed,
    fragment: Fragment,
    service: u32,
    pick: &Pick<'_>,
) -> Result<Outcome, Exit> {
    let hop = rare::resolve(packet, control, parsed, pick, room)?;
    check(packet, control, parsed, hop.mtu)?;
    let new = work.found.fresh;
    if fragment.is {
        let leaves = work.found.leaves;
        let route = &mut work.route;
        (route.source, route.destination) = (leaves.source, leaves.destination);
        (route.tick, route.service, route.backend) = (pick.now.0, service as u16, pick.id);
        route.kind = FragmentRoute::TRANSLATED;
        fragment::remember(tables, parsed, fragment, work);
    }
    observe(tables, parsed, &work.found.leaves, new, false);
    translate(packet, parsed, &work.found.leaves, false)?;
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service, pick.id, parsed.bytes, new))
}

/// The pick of another backend, if it may serve.
#[inline(always)]
fn other<'a, T: Tables>(tables: &'a T, service: u32, id: u16, pick: &Pick<'a>) -> Option<Pick<'a>> {
    let backend = tables.backend(id)?;
    let word = backend.load();
    word.serves(service).then_some(Pick { id, backend, word, new_flow: false, ..*pick })
}

/// Sends a backend's answer to the customer.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    parsed: &Parsed,
    fragment: Fragment,
) -> Result<Outcome, Exit> {
    check(packet, control, parsed, 0)?;
    let (leaves, path) = (work.found.leaves, work.path);
    if fragment.is {
        let route = &mut work.route;
        (route.source, route.destination) = (leaves.source, leaves.destination);
        (route.tick, route.backend) = (tables.now(control).0, work.found.backend);
        (route.first, route.rest, route.vlan) = (path.first, path.rest, path.vlan);
        route.kind = FragmentRoute::ANSWER;
        fragment::remember(tables, parsed, fragment, work);
    }
    observe(tables, parsed, &leaves, false, true);
    translate(packet, parsed, &leaves, false)?;
    let interface = leave(packet, parsed, &path)?;
    Ok(Outcome::without_backend(Verdict::ForwardReturn, interface))
}

#[inline(always)]
fn observe<T: Tables>(tables: &T, parsed: &Parsed, leaves: &Leaves, new: bool, reply: bool) {
    let protocol = parsed.tuple.protocol;
    let Leaves { source, destination, ports } = *leaves;
    tables.observe(Step::Translated { tuple: Tuple { source, destination, ports, protocol }, new, reply });
}

/// Sends a fragment without ports after the first.
#[inline(always)]
fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    room: &mut NextHop,
    parsed: &Parsed,
    fragment: Fragment,
) -> Result<Outcome, Exit> {
    let now = tables.now(control);
    work.key = TupleKey::of_fragment(&parsed.tuple, fragment.identification);
    let Work { key, route, .. } = work;
    tables.fragment(key, |found| *route = *found).ok_or(Verdict::DropFragment)?;
    if !fragment::is_fresh(route, now) {
        return Err(Verdict::DropFragment.into());
    }
    admit(packet, control)?;
    let FragmentRoute { source, destination, service, backend: id, .. } = work.route;
    let leaves = Leaves { source, destination, ports: parsed.tuple.ports };
    if work.route.kind == FragmentRoute::ANSWER {
        check(packet, control, parsed, 0)?;
        translate(packet, parsed, &leaves, true)?;
        let FragmentRoute { first, rest, vlan, .. } = work.route;
        let interface = leave(packet, parsed, &ReturnPath { first, rest, vlan })?;
        return Ok(Outcome::without_backend(Verdict::ForwardReturn, interface));
    }
    let backend = tables.backend(id).ok_or(Verdict::DropFragment)?;
    let word = backend.load();
    if !word.serves(service.into()) {
        return Err(Verdict::DropFragment.into());
    }
    let pick = Pick { id, backend, word, new_flow: false, hash: 0, now };
    let hop = rare::resolve(packet, control, parsed, &pick, room)?;
    check(packet, control, parsed, hop.mtu)?;
    translate(packet, parsed, &leaves, true)?;
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service.into(), pick.id, parsed.bytes, false))
}

/// Whether the packet may be routed on: it is small enough, and its time to live is not at its end.
#[inline(always)]
fn check<P: Packet>(packet: &P, control: &Control, parsed: &Parsed, mtu: u16) -> Result<(), Exit> {
    let v4 = parsed.tuple.destination.is_v4();
    let [_, _, _, _, _, _, flags, hops, ttl, ..]: [u8; 12] =
        packet.read(parsed.ip_offset).ok_or(Verdict::PassMalformedEthernet)?;
    check_size(control, parsed.bytes, mtu, !v4 || flags & 0x40 != 0)?;
    if (if v4 { ttl } else { hops }) <= 1 { Err(Exit::expired()) } else { Ok(()) }
}

/// Gives the frame tag and addresses for the way back to the customer.
#[inline(always)]
fn leave<P: Packet>(packet: &mut P, parsed: &Parsed, path: &ReturnPath) -> Result<u32, Exit> {
    rewrite::retag(packet, parsed.ip_offset, path.vlan as u16)?;
    address_frame(packet, path.first, path.rest as u32, (path.rest >> 32) as u32)
}

/// Gives the frame tag and addresses for the way to a backend.
#[inline(always)]
fn leave_to<P: Packet>(packet: &mut P, parsed: &Parsed, hop: &NextHop) -> Result<u32, Exit> {
    rewrite::retag(packet, parsed.ip_offset, hop.vlan)?;
    address_frame(packet, hop.first, hop.rest, hop.interface)
}

/// Where a customer's packet came from.
#[inline(always)]
fn came_from<P: Packet>(packet: &P, parsed: &Parsed) -> Result<ReturnPath, Verdict> {
    let [d0, d1, d2, s0, s1, s2]: [u16; EthHdr::LEN / 2 - 1] =
        packet.read(0).ok_or(Verdict::PassMalformedEthernet)?;
    let words =
        |[a, b, c, d]: [u16; 4]| u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48;
    Ok(ReturnPath {
        first: words([s0, s1, s2, d0]),
        rest: u64::from(d1) | u64::from(d2) << 16 | u64::from(packet.interface()) << 32,
        vlan: rewrite::vlan(packet, parsed.ip_offset)?.into(),
    })
}

/// Finds the translation under the key into [`Work::found`], and notes this packet in it; says whether there is one. Where a
/// customer's packets come from another router or VLAN than before, answers go there from now on. Where an answer goes is then in
/// [`Work::path`].
#[inline(always)]
fn find<T: Tables>(tables: &T, work: &mut Work, transport: Transport, now: Tick, to_backend: bool) -> bool {
    let Work { key, reverse, found, path, .. } = work;
    let Some(translation) = tables.translation(key) else { return false };
    let before = translation.state.load();
    let state = TranslationState::from_word(before);
    let opens = transport.opens();
    let next = TranslationState {
        tick: now.0,
        established: state.established || !opens,
        // A SYN on an old connection's ports opens a new one.
        closing: !opens && (state.closing || transport.closes()),
        reset: !opens && (state.reset || transport.resets()),
        fresh: false,
    };
    if next.to_word() != before {
        translation.state.store(next.to_word());
    }
    let old = now.0.wrapping_sub(state.tick) > RETRANSMISSION_TICKS;
    let ended = state.closing || state.reset || state.established;
    *found = Found::of(&translation, opens && ended && old, state.fresh);
    if !to_backend {
        *path = ReturnPath::of(&translation);
        return true;
    }
    if ReturnPath::of(&translation) == *path {
        return true;
    }
    path.store(&translation);
    drop(translation);
    *reverse = reverse_key(&found.leaves, Protocol(key.protocol as u8));
    if let Some(answers) = tables.translation(reverse) {
        path.store(&answers);
    }
    true
}

/// The key of the other direction.
#[inline(always)]
fn reverse_key(leaves: &Leaves, protocol: Protocol) -> TupleKey {
    let Leaves { source, destination, ports } = *leaves;
    TupleKey::of(&Tuple { source, destination, ports, protocol }.reversed())
}

/// Makes the translations for a new flow; what it leaves with is then in [`Work::found`].
///
/// The source port follows from the flow and a key that nobody outside knows, so it cannot be guessed (RFC 6056 section
/// 3.3.3); a port that is taken leads to the next of a sequence as little to be foreseen.
#[inline(always)]
fn make<T: Tables>(
    tables: &T,
    work: &mut Work,
    hop: &NextHop,
    tuple: &Tuple,
    pick: &Pick<'_>,
) -> Result<(), Exit> {
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
    let mut sequence = pick.hash ^ u64::from(pick.now.0) << 32;
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        sequence = hash::step(sequence);
        match tables.attempt(work, sequence, attempt >= PORT_ATTEMPTS / 2) {
            Attempt::Done => return add_forward(tables, work, tuple),
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

/// Tries to add the answers' translation from the address and port that follow from a number; those are then in [`Work`].
/// `late` lets a flow whose connection has ended make way.
#[inline(always)]
pub fn attempt<T: Tables>(tables: &T, work: &mut Work, sequence: u64, late: bool) -> Attempt {
    let Some(control) = tables.control() else { return Attempt::NoSource };
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

/// Writes the addresses and, where there are any, the ports that a packet leaves with; its time to live is one less.
#[inline(always)]
fn translate<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    leaves: &Leaves,
    later_fragment: bool,
) -> Result<(), Exit> {
    let tuple = &parsed.tuple;
    let lost = Verdict::PassMalformedTransport;
    let addresses = Change::NONE
        .and_address(tuple.source, leaves.source)
        .and_address(tuple.destination, leaves.destination);
    if !later_fragment {
        let change = addresses.and(tuple.ports.word(), leaves.ports.word());
        let at = parsed.transport_offset
            + if tuple.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        let checksum = Be16::from_wire(packet.read(at).ok_or(lost)?);
        let checksum =
            if tuple.protocol == Protocol::TCP { change.apply(checksum) } else { change.apply_udp(checksum) };
        packet.write(at, checksum.raw()).ok_or(lost)?;
        packet.write(parsed.transport_offset, leaves.ports.word()).ok_or(lost)?;
    }
    address_packet(packet, parsed, leaves, addresses, 1).ok_or(lost.into())
}

/// Writes the addresses into an IP header, and takes `hops` from its time to live; `addresses` is what that changes.
#[inline(always)]
fn address_packet<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    leaves: &Leaves,
    addresses: Change,
    hops: u8,
) -> Option<()> {
    let at = parsed.ip_offset;
    if parsed.tuple.destination.is_v4() {
        let [ttl, protocol, high, low]: [u8; 4] = packet.read(at + 8)?;
        let (old, new) =
            (Be16::from_wire([ttl, protocol]), Be16::from_wire([ttl.wrapping_sub(hops), protocol]));
        let checksum = addresses.and_half(old, new).apply(Be16::from_wire([high, low]));
        let [high, low] = checksum.raw().to_ne_bytes();
        let third = u32::from_ne_bytes([ttl.wrapping_sub(hops), protocol, high, low]);
        packet.write(at + 8, [third, leaves.source.words()[3], leaves.destination.words()[3]])
    } else {
        let [next, limit]: [u8; 2] = packet.read(at + 6)?;
        packet.write(at + 6, [next, limit.wrapping_sub(hops)])?;
        let ([a, b, c, d], [e, f, g, h]) = (leaves.source.words(), leaves.destination.words());
        packet.write(at + 8, [a, b, c, d, e, f, g, h])
    }
}

/// Translates an ICMP error about a translated flow, and the packet it quotes. `service` is that of a customer's side; an error
/// from the backend's side is about an answer's key.
#[inline(always)]
pub(super) fn translate_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    quoted: &Quoted,
    service: u32,
) -> Result<Outcome, Exit> {
    let mut scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let Scratch { hop: room, work } = &mut *scratch;
    work.key = TupleKey::of(&quoted.tuple.reversed());
    let Work { key, found, path, .. } = work;
    let translation = tables.translation(key).ok_or(Verdict::PassIcmp)?;
    *found = Found::of(&translation, false, false);
    *path = ReturnPath::of(&translation);
    drop(translation);
    send_error(packet, tables, control, work, room, parsed, quoted, service)
}

/// Sends an error on, for whose flow the translation is in [`Work::found`].
#[inline(always)]
fn send_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    work: &mut Work,
    room: &mut NextHop,
    parsed: &Parsed,
    quoted: &Quoted,
    service: u32,
) -> Result<Outcome, Exit> {
    let Found { leaves, backend: id, reply, .. } = work.found;
    let backend = tables.backend(id).ok_or(Verdict::PassIcmp)?;
    let word = backend.load();
    check(packet, control, parsed, 0)?;
    if reply {
        let path = work.path;
        observe(tables, parsed, &leaves, false, true);
        translate_quoted(packet, parsed, quoted, &leaves).ok_or(Verdict::PassIcmp)?;
        let interface = leave(packet, parsed, &path)?;
        return Ok(Outcome::without_backend(Verdict::ForwardReturn, interface));
    }
    if !word.serves(service) {
        return Err(Verdict::DropNoBackend.into());
    }
    let pick = Pick { id, backend, word, new_flow: false, hash: 0, now: tables.now(control) };
    let hop = rare::resolve(packet, control, parsed, &pick, room)?;
    observe(tables, parsed, &leaves, false, false);
    translate_quoted(packet, parsed, quoted, &leaves).ok_or(Verdict::PassIcmp)?;
    tables.observe(Step::NextHop { backend: id, hop: *hop });
    let interface = leave_to(packet, parsed, hop)?;
    Ok(Outcome::forwarded(interface, service, id, parsed.bytes, false))
}

/// Writes what a quoted packet and the error around it leave with: the quoted one goes the other way, so its source is the
/// error's destination.
#[inline(always)]
fn translate_quoted<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    quoted: &Quoted,
    leaves: &Leaves,
) -> Option<()> {
    let v4 = parsed.tuple.destination.is_v4();
    let inner = parsed.transport_offset + parse::ICMP_BYTES;
    let tuple = &quoted.tuple;
    let ports = leaves.ports.swapped();
    let addresses = Change::NONE
        .and_address(tuple.source, leaves.destination)
        .and_address(tuple.destination, leaves.source);
    // What changes under the error's own checksum.
    let mut change = addresses.and(tuple.ports.word(), ports.word());
    let at =
        quoted.transport_offset + if tuple.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    // A quotation may end before it.
    if at + size_of::<u16>() <= parsed.end()
        && let Some(wire) = packet.read(at)
    {
        let old = Be16::from_wire(wire);
        let new = if tuple.protocol == Protocol::TCP { change.apply(old) } else { change.apply_udp(old) };
        packet.write(at, new.raw())?;
        change = change.and_half(old, new);
    }
    packet.write(quoted.transport_offset, ports.word())?;
    if v4 {
        let old = Be16::from_wire(packet.read(inner + 10)?);
        let new = addresses.apply(old);
        packet.write(inner + 10, new.raw())?;
        packet.write(inner + 12, [leaves.destination.words()[3], leaves.source.words()[3]])?;
        change = change.and_half(old, new);
    } else {
        let ([a, b, c, d], [e, f, g, h]) = (leaves.destination.words(), leaves.source.words());
        packet.write(inner + 8, [a, b, c, d, e, f, g, h])?;
        // ICMPv6 has a pseudo-header.
        change = change
            .and_address(parsed.tuple.source, leaves.source)
            .and_address(parsed.tuple.destination, leaves.destination);
    }
    let at = parsed.transport_offset + 2;
    let checksum = change.apply(Be16::from_wire(packet.read(at)?));
    packet.write(at, checksum.raw())?;
    let outer = Change::NONE
        .and_address(parsed.tuple.source, leaves.source)
        .and_address(parsed.tuple.destination, leaves.destination);
    address_packet(packet, parsed, leaves, outer, 1)
}
