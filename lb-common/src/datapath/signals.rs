//! What a packet shows of its connection → counts, and the time it took to open.
//!
//! Of a connection only the customer's side is seen. An opening is a SYN that was given a backend; it has progressed when the
//! first packet follows that the customer can send only after the backend's answer: the ACK. The time between is the
//! backend's answer and the way to the customer and back.
//!
//! Counting costs a hit nothing but a look at flags that are at hand. Clocks are dear: of the openings some are timed, chosen by
//! bits of the flow's hash, and only those look at the clock: at the SYN and at the ACK.

use super::Tables;
use super::transport::Transport;
use crate::abi::{Control, OPENING_SLOTS, Word};
use crate::flow::flow_signature;

/// What a forwarded packet showed: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u8);

impl Seen {
    /// The flow was given its backend just now. The others are those of [`Transport`], in which this bit and the next are free.
    const NEW: u8 = 8;
    /// It is the first one after the opening.
    const ANSWERED: u8 = 32;
    /// What is to be counted: nothing of it is in nearly all packets.
    const NEWS: u8 = Self::NEW | Self::ANSWERED | Transport::NEWS;

    /// Nothing: packets that only quote a flow, or fragments without a header.
    pub const NOTHING: Self = Self(0);

    /// Of a packet with these flags, of a flow that has its backend.
    #[inline(always)]
    pub(super) const fn of(transport: Transport) -> Self {
        Self(transport.bits())
    }

    /// The same, of a flow that was given its backend just now or not.
    #[inline(always)]
    pub(super) const fn new_flow(self, new: bool) -> Self {
        Self(self.0 & !Self::NEW | if new { Self::NEW } else { 0 })
    }

    /// The same, as the first packet after the opening.
    #[inline(always)]
    pub(super) const fn and_answered(self) -> Self {
        Self(self.0 | Self::ANSWERED)
    }

    /// Whether there is anything to count.
    #[inline(always)]
    pub const fn is_news(self) -> bool {
        self.0 & Self::NEWS != 0
    }

    /// Whether the flow was given its backend just now.
    #[inline(always)]
    pub const fn is_new(self) -> bool {
        self.0 & Self::NEW != 0
    }

    /// Whether the packet is the first one of a TCP connection after its opening.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED != 0
    }

    /// What the packet's own flags say.
    #[inline(always)]
    pub const fn transport(self) -> Transport {
        Transport::from_bits(self.0 & !(Self::NEW | Self::ANSWERED))
    }
}

/// Which openings are timed: those of flows whose signature has none of these bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct TimedOpenings(u32);

impl Default for TimedOpenings {
    fn default() -> Self {
        Self::NONE
    }
}

impl TimedOpenings {
    /// None: a bit that every signature has.
    pub const NONE: Self = Self(2);

    /// One in so many: a power of two up to [`Self::MOST`], or 0 for none.
    pub const fn one_in(number: u32) -> Self {
        // Behind the two bits of a signature that are always the same.
        if number == 0 { Self::NONE } else { Self((number - 1) << 2) }
    }

    /// The least share is one in so many.
    pub const MOST: u32 = 1_024;

    #[inline(always)]
    const fn has(self, hash: u64) -> bool {
        flow_signature(hash) & self.0 == 0
    }
}

/// Time in units of 1,024 ns, about a microsecond, from an arbitrary origin; it begins anew every 73 minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instant(pub u32);

/// A note of a flow that is being opened: the upper half of its hash, and when. Lower bits of the hash lead to its place.
struct Opening;

impl Opening {
    #[inline(always)]
    const fn slot(hash: u64) -> u32 {
        (hash as u32 >> 12) & (OPENING_SLOTS - 1)
    }

    #[inline(always)]
    const fn word(hash: u64, at: Instant) -> u64 {
        hash & !(u32::MAX as u64) | at.0 as u64
    }

    /// When the flow of this hash was opened, if the note is its.
    #[inline(always)]
    const fn of(word: u64, hash: u64) -> Option<Instant> {
        if word != 0 && word >> 32 == hash >> 32 { Some(Instant(word as u32)) } else { None }
    }
}

/// A TCP connection is being opened: notes when, if it is one of those that are timed.
#[inline(always)]
pub(super) fn opened<T: Tables>(tables: &T, control: &Control, hash: u64) {
    if control.timed_openings.has(hash) {
        tables.note_opening(hash);
    }
}

/// The first packet after the opening has come: adds the time between to the backend's, if it was noted.
#[inline(always)]
pub(super) fn answered<T: Tables>(tables: &T, control: &Control, hash: u64, backend: u16) {
    if control.timed_openings.has(hash) {
        tables.note_answer(hash, backend);
    }
}

/// See [`Tables::note_opening`]. The latest opening has the place.
#[inline(always)]
pub fn note_opening<T: Tables>(tables: &T, hash: u64) {
    if let Some(slot) = tables.opening(Opening::slot(hash)) {
        slot.store(Opening::word(hash, tables.instant()));
    }
}

/// See [`Tables::note_answer`].
#[inline(always)]
pub fn note_answer<T: Tables>(tables: &T, hash: u64, backend: u16) {
    let Some(slot) = tables.opening(Opening::slot(hash)) else { return };
    let Some(at) = Opening::of(slot.load(), hash) else { return };
    // Once: an entry that the flow table loses may be opened by a packet that is no SYN.
    slot.store(0);
    if let Some(latency) = tables.latency(backend) {
        latency.add(tables.instant().0.wrapping_sub(at.0));
    }
}

/// The flows whose openings are noted: for each place, the upper half of the flow's hash.
pub fn noted(openings: &[Word]) -> impl Iterator<Item = u32> {
    openings.iter().map(|word| (word.load() >> 32) as u32)
}

const _: () = assert!(OPENING_SLOTS.is_power_of_two() && OPENING_SLOTS <= 1 << 20);
const _: () = assert!(Transport::ALL & (Seen::NEW | Seen::ANSWERED) == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_flows_is_timed() {
        let timed = |number| {
            let which = TimedOpenings::one_in(number);
            (0..1_u64 << 14).filter(|&hash| which.has(hash | 0xabcd << 40)).count()
        };
        assert_eq!((timed(0), timed(1), timed(16), timed(1_024)), (0, 1 << 14, 1 << 10, 16));
        assert_eq!(TimedOpenings::default(), TimedOpenings::NONE);
    }

    #[test]
    fn a_note_is_its_own_flows_only() {
        let (hash, other) = (0x1234_5678_9abc_def0, 0x1234_5679_9abc_def0);
        let word = Opening::word(hash, Instant(7));
        assert_eq!(Opening::of(word, hash), Some(Instant(7)));
        assert_eq!(Opening::of(word, other), None);
        assert_eq!(Opening::of(0, 5), None, "no note");
        assert!((0..64).all(|bit| Opening::slot(1 << bit) < OPENING_SLOTS));
    }
}
