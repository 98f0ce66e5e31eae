//! Translations in the map → what they say of a packet, in room that is not the stack's.

use super::super::Tables;
use super::super::parse::Transport;
use super::super::settled::Settled;
use crate::abi::{FragmentRoute, NextHop, ReturnPath, Translation, TranslationState, TupleKey};
use crate::flow::{RETRANSMISSION_TICKS, Tick};
use crate::net::{Address, Ports, Protocol, Tuple};

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
    pub(in crate::datapath) key: TupleKey,
    pub(in crate::datapath) route: FragmentRoute,
    /// The key of the other direction.
    pub(super) reverse: TupleKey,
    pub(super) translation: Translation,
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
    /// Whether its end was seen on this side, a while ago.
    pub(super) over: bool,
    /// Whether this is the first packet that it is for.
    pub(super) fresh: bool,
    /// Whether nothing about it is new since the last packet: not even the tick.
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
        Self { leaves, backend: translation.backend, reply: translation.reply != 0, over, fresh, told }
    }
}

/// Finds the translation under the key into [`Work::found`], and notes this packet in it; says whether there is one. Where a
/// customer's packets come from another router or VLAN than before, answers go there from now on. Where an answer goes is then in
/// [`Work::path`].
#[inline(always)]
pub(super) fn find<T: Tables>(
    tables: &T,
    work: &mut Work,
    transport: Transport,
    now: Tick,
    to_backend: bool,
) -> bool {
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
    let told = next.to_word() == before;
    if !told {
        translation.state.store(next.to_word());
    }
    let old = now.0.wrapping_sub(state.tick) > RETRANSMISSION_TICKS;
    let ended = state.closing || state.reset || state.established;
    *found = Found::of(&translation, opens && ended && old, state.fresh, told);
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
pub(super) fn reverse_key(leaves: &Leaves, protocol: Protocol) -> TupleKey {
    let Leaves { source, destination, ports } = *leaves;
    TupleKey::of(&Tuple { source, destination, ports, protocol }.reversed())
}

/// Removes the translation under the key, if there is one, and its answers'.
#[inline(always)]
pub(super) fn forget<T: Tables>(tables: &T, work: &mut Work) {
    let Work { key, reverse, .. } = work;
    let Some(translation) = tables.translation(key) else { return };
    *reverse = translation.reverse_key(Protocol(key.protocol as u8));
    drop(translation);
    tables.remove_translation(key);
    tables.remove_translation(reverse);
}
