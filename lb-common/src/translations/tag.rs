//! A word of the table of translations ⇄ what it says of an entry: its state, and which entry it is.

use core::fmt;

use crate::abi::{TRANSLATION_WAYS, TranslationState};
use crate::datapath::Transport;
use crate::flow::Tick;

/// A word of an entry: its state (36 bits), whether it is there (2), generation of its place (8), signature of its key (18).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub(super) u64);

impl Tag {
    const STATUS: u64 = 3 << TranslationState::BITS;
    /// Claimed, and not yet whole.
    const BUSY: u64 = 1 << TranslationState::BITS;
    const VALID: u64 = 2 << TranslationState::BITS;
    const GENERATION_SHIFT: u32 = TranslationState::BITS + 2;
    const GENERATION: u64 = 0xff << Self::GENERATION_SHIFT;
    pub(super) const SIGNATURE_SHIFT: u32 = Self::GENERATION_SHIFT + 8;
    const SIGNATURE: u64 = !0 << Self::SIGNATURE_SHIFT;
    /// What stays the same as long as the entry is there.
    const IDENTITY: u64 = Self::GENERATION | Self::SIGNATURE;

    /// Whether the entry is there and whole.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::STATUS == Self::VALID
    }

    /// Whether nothing is there, nor about to be.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & Self::STATUS == 0
    }

    /// When a packet went this way last, and how far the connection has come; of an entry that is not whole, when it was claimed.
    #[inline(always)]
    pub const fn state(self) -> TranslationState {
        TranslationState::from_word(self.0)
    }

    /// Whether both say the same, but for a few ticks: sixteen, which is much less than any time after which something expires.
    #[inline(always)]
    pub const fn is_much_like(self, other: Self) -> bool {
        (self.0 ^ other.0) & !0xf == 0
    }

    /// Whether what is there, or about to be, has this signature.
    #[inline(always)]
    pub(super) const fn has(self, signature: u64) -> bool {
        (self.0 ^ signature) & Self::SIGNATURE == 0 && !self.is_empty()
    }

    /// Whether the entry is whole and has this signature.
    #[inline(always)]
    pub(super) const fn is(self, signature: u64) -> bool {
        self.unlike(signature) == 0
    }

    /// What tells it from that of a whole entry with this signature.
    #[inline(always)]
    pub(super) const fn unlike(self, signature: u64) -> u64 {
        (self.0 ^ (signature | Self::VALID)) & (Self::SIGNATURE | Self::STATUS)
    }

    /// The tag after a packet. A flow's first one follows nothing, whatever it is.
    #[inline(always)]
    pub const fn noted(self, note: Note) -> Self {
        const TO_ESTABLISHED: u32 =
            TranslationState::FRESH.trailing_zeros() - TranslationState::ESTABLISHED.trailing_zeros();
        let first = (self.0 & TranslationState::FRESH) >> TO_ESTABLISHED;
        Self(self.0 & note.keeps | note.sets & !first)
    }

    /// The tag once it says what another one of the same flow does as well.
    pub(super) const fn caught_up(self, other: TranslationState) -> Self {
        use TranslationState as State;
        const SEEN: u64 = State::ESTABLISHED | State::CLOSING;
        let (own, theirs) = (self.0, other.to_word());
        let later = if Tick(theirs as u32).since(own as u32) > 0 { theirs } else { own };
        let state =
            later & (State::TICK | State::RESET) | (own | theirs) & SEEN | own & theirs & State::FRESH;
        Self(own & (Self::STATUS | Self::IDENTITY) | state)
    }

    /// The tag of this place while an entry is made there.
    #[inline(always)]
    pub(super) const fn claimed(self, signature: u64, state: TranslationState) -> Self {
        let generation = self.0.wrapping_add(1 << Self::GENERATION_SHIFT) & Self::GENERATION;
        Self(signature | generation | Self::BUSY | state.to_word())
    }

    /// The tag once the entry is whole.
    #[inline(always)]
    pub(super) const fn whole(self) -> Self {
        Self(self.0 ^ Self::BUSY ^ Self::VALID)
    }

    /// The tag once the place is free.
    #[inline(always)]
    pub(super) const fn freed(self) -> Self {
        Self(self.0 & Self::GENERATION)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a packet makes of a translation's state.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    keeps: u64,
    sets: u64,
}

impl Note {
    /// That of a packet that came at this tick, in answer or not. One that begins a connection anew ends what was before. After any of a
    /// customer's, a RST before it was none that the server believed; what a server says with one is so.
    #[inline(always)]
    pub const fn new(tick: Tick, transport: Transport, answers: bool) -> Self {
        use TranslationState as State;
        let reset = if answers { 0 } else { State::RESET };
        let begins = if transport.begins() { State::CLOSING } else { 0 };
        let forgets = State::TICK | State::FRESH | reset | begins;
        let ends = if transport.resets() {
            State::RESET
        } else if transport.closes() {
            State::CLOSING
        } else {
            0
        };
        let sets = if transport.opens() { 0 } else { State::ESTABLISHED | ends };
        Self { keeps: !forgets, sets: sets | tick.0 as u64 }
    }
}

/// Which entry, of which generation: its place (bucket and way) in the lower bits, and what its tag is known by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Location(u64);

impl Location {
    #[inline(always)]
    pub(super) const fn new(index: u32, way: usize, tag: Tag) -> Self {
        Self(tag.0 & Tag::IDENTITY | (index as u64) << 3 | way as u64)
    }

    /// As one word, to be handed from one function of the program to another; never 0.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// From that word; 0 is none.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word == 0 { None } else { Some(Self(word)) }
    }

    #[inline(always)]
    pub(super) const fn index(self) -> u32 {
        (self.0 >> 3) as u32
    }

    #[inline(always)]
    pub(super) const fn way(self) -> usize {
        self.0 as usize & TRANSLATION_WAYS
    }

    /// Whether the tag is that of this very entry, whole.
    #[inline(always)]
    pub(super) const fn is(self, tag: Tag) -> bool {
        tag.0 & (Tag::IDENTITY | Tag::STATUS) == self.0 & Tag::IDENTITY | Tag::VALID
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index(), self.way())
    }
}
