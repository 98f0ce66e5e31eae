//! A packet of a translated flow of which nothing is new → the same with addresses and ports translated.
//!
//! Nearly all packets of translated flows, in both directions, are untagged, whole, and change nothing about their flow but its time. All
//! others are left to the other stages, before anything was written.

use super::super::parse::Parsed;
use super::super::pick::may_stay;
use super::super::rewrite::{UNTAGGED, address_frame};
use super::super::signals::Seen;
use super::super::{Classified, Exit, Outcome, Packet, Stage, Step, Tables, admit_on};
use super::state::{Leaves, entry_soon};
use super::{came_from, check, observe, room_back, translate};
use crate::abi::{Control, Translation, TupleKey};
use crate::net::{Address, Ports};
use crate::translations::{Entry, Note, Tag};
use crate::verdict::Verdict;

/// What the first stage knows of a packet besides what it has parsed.
#[derive(Clone, Copy)]
pub(in crate::datapath) struct Frame {
    /// The frame's first eight bytes.
    pub(in crate::datapath) destination: u64,
    /// Index of the interface it came from.
    pub(in crate::datapath) on: u32,
    /// Hash of its flow.
    pub(in crate::datapath) hash: u64,
}

/// Translates a packet for a service, or of none.
#[inline(always)]
pub(in crate::datapath) fn steer_known<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    frame: Frame,
    classified: Option<Classified>,
) -> Result<Outcome, Exit> {
    let known = Known::find(tables, control, parsed, frame.hash);
    if let Some(known) = &known
        && known.translation.reply != 0
    {
        return answer(packet, tables, control, parsed, frame, known);
    }
    let Some(classified) = classified else {
        return Err(Stage::NatReturn.into());
    };
    match known {
        Some(known) => forward(packet, tables, control, parsed, frame, &known, classified.service),
        None => Err(Stage::Nat.into()),
    }
}

/// Sends a customer's packet to its backend.
#[inline(always)]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    frame: Frame,
    known: &Known<'_>,
    service: u32,
) -> Result<Outcome, Exit> {
    let Translation { backend: id, path, .. } = known.translation;
    let backend = tables.backend(id).ok_or(Verdict::DropInconsistent)?;
    let word = backend.load();
    let hop = backend.hop(word);
    let goes_on = path == came_from(packet, parsed.ip_offset)?
        && admit_on(frame.on, control, frame.destination).is_ok()
        && word.serves(service)
        && may_stay(parsed.transport, word)
        && word.is_plain()
        && check(packet, control, parsed, hop.mtu).is_ok()
        && known.note();
    if !goes_on {
        return Err(Stage::Nat.into());
    }
    let leaves = known.leaves(parsed);
    observe(tables, parsed, &leaves, false, false);
    translate(packet, parsed, &leaves, false)?;
    tables.observe(Step::NextHop { backend: id, hop: *hop });
    let interface = address_frame(packet, hop.first, hop.rest, hop.interface)?;
    Ok(Outcome::forwarded(interface, service, id, parsed.bytes, Seen::of(parsed.transport)))
}

/// Sends a backend's answer to the customer.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    parsed: &Parsed,
    frame: Frame,
    known: &Known<'_>,
) -> Result<Outcome, Exit> {
    let Translation { backend, path, .. } = known.translation;
    let goes_on = path.vlan == UNTAGGED.into()
        && admit_on(frame.on, control, frame.destination).is_ok()
        && check(packet, control, parsed, room_back(packet, parsed, &path)).is_ok()
        && known.note();
    if !goes_on {
        return Err(Stage::NatReturn.into());
    }
    let leaves = known.leaves(parsed);
    observe(tables, parsed, &leaves, false, true);
    tables.observe(Step::AnswerOf(backend));
    translate(packet, parsed, &leaves, false)?;
    let interface = address_frame(packet, path.first, path.rest as u32, (path.rest >> 32) as u32)?;
    Ok(Outcome::without_backend(Verdict::ForwardReturn, interface))
}

/// A translation whose state a packet does not change.
struct Known<'a> {
    entry: Entry<'a>,
    tag: Tag,
    note: Note,
    translation: Translation,
}

impl<'a> Known<'a> {
    #[inline(always)]
    fn find<T: Tables>(tables: &'a T, control: &'a Control, parsed: &Parsed, hash: u64) -> Option<Self> {
        let transport = parsed.transport;
        // A SYN may begin another connection.
        if transport.opens() {
            return None;
        }
        let entry = entry_soon(tables, control, &TupleKey::of(&parsed.tuple), hash)?;
        let (translation, tag) = entry.read()?;
        let note = Note::new(tables.now(control), transport, translation.reply != 0);
        tag.is_much_like(tag.noted(note)).then_some(Self { entry, tag, note, translation })
    }

    /// Notes the packet; says whether the translation still is there.
    #[inline(always)]
    fn note(&self) -> bool {
        self.entry.note(self.tag, self.note).is_some()
    }

    /// What the packet leaves with: addresses of its own family.
    #[inline(always)]
    fn leaves(&self, parsed: &Parsed) -> Leaves {
        let v4 = parsed.tuple.destination.is_v4();
        let own = |address: Address| {
            if v4 { Address::v4(address.words()[3].to_ne_bytes()) } else { address }
        };
        let Translation { source, destination, ports, .. } = self.translation;
        Leaves { source: own(source), destination: own(destination), ports: Ports::from_word(ports) }
    }
}
