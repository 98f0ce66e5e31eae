//! Translations in the map → what they say of a packet, in room that is not the stack's.

use super::super::Tables;
use super::super::Transport;
use super::super::pick::Picked;
use super::super::settled::Settled;
use crate::abi::{Control, FragmentRoute, NextHop, ReturnPath, Translation, TranslationState, TupleKey};
use crate::flow::{RETRANSMISSION_TICKS, Tick};
use crate::hash;
use crate::net::{Address, Ports, Protocol, Tuple};
use crate::translations::{Entry, Inserted, Location, Note, Tag, Translations};

/// What is worked on while a packet goes through one of the rarer stages: on BPF too much for the stack.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A next hop that only the kernel's tables know.
    pub(in crate::datapath) hop: NextHop,
    /// The rest.
    pub work: Work,
}

/// See [`Scratch`].
#[derive(Debug, Default)]
pub struct Work {
    pub(in crate::datapath) parsed: Settled,
    pub(in crate::datapath) picked: Picked,
    pub(in crate::datapath) key: TupleKey,
    /// The key of the other direction.
    pub(super) reverse: TupleKey,
    pub(in crate::datapath) route: FragmentRoute,
    pub(super) translation: Translation,
    /// What [`Work::translation`] begins with, as a word.
    pub(super) state: u64,
    pub(super) found: Found,
    pub(super) path: ReturnPath,
}

/// What a packet leaves with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaves {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) ports: Ports,
}

/// What a packet's translation says, taken out of the map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub(super) leaves: Leaves,
    pub(super) backend: u16,
    pub(super) reply: bool,
    /// Whether the packet opens another one: the end of this one was seen on this side, a while ago.
    pub(super) over: bool,
    /// Whether this is the first packet that it is for.
    pub(super) fresh: bool,
    /// Whether nothing about it is new since the flow table was told, but for a few ticks: by the last packet, or as the translation was
    /// made for this one, which must not look like a second.
    pub(super) told: bool,
}

impl Found {
    #[inline(always)]
    pub(super) fn of(translation: &Translation, over: bool, fresh: bool, told: bool) -> Self {
        let leaves = Leaves {
            source: translation.source,
            destination: translation.destination,
            ports: Ports::from_word(translation.ports),
        };
        let (backend, reply) = (translation.backend, translation.reply != 0);
        Self { leaves, backend, reply, over, fresh, told }
    }
}

/// Finds the translation under the key into [`Work::found`], and notes this packet in it; says whether there is one. Where a
/// customer's packets come from another router or VLAN than before, answers go there from now on. Where an answer goes is then in
/// [`Work::path`].
#[inline(always)]
pub(super) fn find<T: Tables>(
    tables: &T,
    control: &Control,
    work: &mut Work,
    transport: Transport,
    now: Tick,
    to_backend: bool,
) -> bool {
    let Work { key, found, path, .. } = work;
    let Some(entry) = entry_soon(tables, control, key, hash::flow(&control.flow_key, &key.tuple())) else {
        return false;
    };
    let Some((translation, tag)) = entry.read() else { return false };
    let note = Note::new(now, transport, translation.reply != 0);
    let Some((before, after)) = entry.note(tag, note) else { return false };
    let state = before.state();
    let told = state.fresh || before.is_much_like(after);
    // Of a connection that goes on, the server tells whether it is so: a SYN with an invented source must not end it (RFC 5961 section 4).
    *found = Found::of(&translation, transport.opens() && has_ended(before, now), state.fresh, told);
    if !to_backend || found.reply {
        *path = translation.path;
        return true;
    }
    if translation.path == *path {
        return true;
    }
    entry.redirect(&translation.path, path);
    let reverse = reverse_key(&found.leaves, key.protocol());
    if let Some(answers) = entry_of(tables, control, &reverse)
        && let Some((translation, _)) = answers.read()
    {
        answers.redirect(&translation.path, path);
    }
    true
}

/// Whether this side has ended the connection, and no packet came this way for longer than one is waited for that was lost.
#[inline(always)]
pub(super) const fn has_ended(tag: Tag, now: Tick) -> bool {
    let state = tag.state();
    (state.closing || state.reset) && now.since(state.tick) > RETRANSMISSION_TICKS
}

/// The entry of a key with this hash, which mostly is where it is looked for first.
#[inline(always)]
pub(super) fn entry_soon<'a, T: Tables>(
    tables: &'a T,
    control: &'a Control,
    key: &TupleKey,
    hash: u64,
) -> Option<Entry<'a>> {
    Translations::new(tables, control).entry_soon(key, hash).or_else(|| entry_of(tables, control, key))
}

/// The entry of a key, for what is rare.
#[inline(always)]
pub(super) fn entry_of<'a, T: Tables>(
    tables: &'a T,
    control: &'a Control,
    key: &TupleKey,
) -> Option<Entry<'a>> {
    Translations::new(tables, control).entry(Location::from_word(tables.locate(key))?)
}

/// Where the entry of a key is: a [`Location`] as a word, or 0.
#[inline(always)]
pub fn locate<T: Tables>(tables: &T, key: &TupleKey) -> u64 {
    let Some(control) = tables.control() else { return 0 };
    Translations::new(tables, control).locate(key).map_or(0, Location::to_word)
}

/// Inserts the translation that is in the scratch room's [`Work`], under the key there.
#[inline(always)]
pub fn add<T: Tables>(tables: &T) -> Inserted {
    let Some(control) = tables.control() else { return Inserted::Full };
    let Some(scratch) = tables.scratch() else { return Inserted::Full };
    let Work { key, translation, state, .. } = &scratch.work;
    Translations::new(tables, control).insert(key, translation, TranslationState::from_word(*state))
}

/// The key of the other direction.
#[inline(always)]
pub(super) fn reverse_key(leaves: &Leaves, protocol: Protocol) -> TupleKey {
    let Leaves { source, destination, ports } = *leaves;
    TupleKey::of(&Tuple { source, destination, ports, protocol }.reversed())
}

/// Removes the translation under the key, if there is one, and its answers'.
#[inline(always)]
pub(super) fn forget<T: Tables>(tables: &T, control: &Control, key: &TupleKey) {
    let Some(entry) = entry_of(tables, control, key) else { return };
    let Some((translation, _)) = entry.read() else { return };
    entry.remove_now();
    remove(tables, control, &translation.reverse_key(key));
}

/// Removes one direction's translation, if there is one.
#[inline(always)]
pub(super) fn remove<T: Tables>(tables: &T, control: &Control, key: &TupleKey) {
    if let Some(entry) = entry_of(tables, control, key) {
        entry.remove_now();
    }
}
