//! The flow table: a flow's hash → the backend it stays with.
//!
//! One 64-bit word per flow, eight to a cache line. One load reads a word, one store replaces it: entries cannot tear and need
//! no lock. A lost or doubled entry is harmless: the ring answers, and the flow's next packets agree with it.

mod bucket;

use crate::abi::FLOW_WAYS;

/// Ticks an entry keeps its time in; ages are modulo 2¹⁴ ticks, about four and a half hours.
const TICK_MASK: u32 = (1 << 14) - 1;
/// An opening SYN that finds an entry of its own no older than this is a retransmission.
pub const RETRANSMISSION_TICKS: u32 = 4;
/// Idle ticks after which a flow that has only been opened, or is being closed, is expired.
pub const OPENING_IDLE_TICKS: u32 = 60;
/// Idle ticks after which an established flow is expired: above the two hours of Linux' TCP keep-alive.
pub const ESTABLISHED_IDLE_TICKS: u32 = 9_000;
/// Idle ticks after which the agent's sweep expires an established UDP flow: RFC 4787 asks for at least five minutes.
pub const UDP_IDLE_TICKS: u32 = 300;

/// Ticks by which what was written may be ahead of who looks at it: packets go on on other CPUs, and while the agent walks
/// through a table. It is as old as what was written just now, not as old as can be.
const AHEAD_TICKS: u32 = 256;

/// Time in ticks of about a second (0.85 to 1.28 s by the kernel's HZ), from an arbitrary origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// Ticks that have passed since another tick; none where that is a little ahead.
    #[inline(always)]
    pub const fn since(self, then: u32) -> u32 {
        self.0.wrapping_add(AHEAD_TICKS).wrapping_sub(then).saturating_sub(AHEAD_TICKS)
    }
}

/// How far a flow has come, as one side of it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Seen only by the packet that opened it: on probation.
    Opening = 1,
    /// More packets followed.
    Established = 2,
    /// A FIN or RST was seen: on probation again.
    Closing = 3,
}

/// One entry of the flow table: signature (32 bits), backend id (16), state (2), tick (14). The zero word is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// An entry of these parts.
    #[inline(always)]
    pub fn new(signature: u32, backend: u16, state: State, now: Tick) -> Self {
        let tick = u64::from(now.0 & TICK_MASK);
        Self(u64::from(signature) << 32 | u64::from(backend) << 16 | (state as u64) << 14 | tick)
    }

    /// The entry in a word of the table, if there is one.
    #[inline(always)]
    pub fn from_word(word: u64) -> Option<Self> {
        (word & (3 << 14) != 0).then_some(Self(word))
    }

    /// The word for the table.
    #[inline(always)]
    pub fn word(self) -> u64 {
        self.0
    }

    /// What tells flows in a bucket apart.
    #[inline(always)]
    pub fn signature(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether it holds which backend a client is with, not a flow.
    #[inline(always)]
    pub fn is_client(self) -> bool {
        self.signature() & CLIENT_SIGNATURE != 0
    }

    /// The backend's id.
    #[inline(always)]
    pub fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// How far the flow has come.
    #[inline(always)]
    pub fn state(self) -> State {
        match (self.0 >> 14) & 3 {
            1 => State::Opening,
            2 => State::Established,
            _ => State::Closing,
        }
    }

    /// The entry after a packet that followed it and did not open the flow: established at least, or closing.
    #[inline(always)]
    pub fn followed(self, closes: bool, now: Tick) -> Self {
        const STATE: u64 = 3 << 14;
        const OPENING: u64 = (State::Opening as u64) << 14;
        let state = if closes {
            STATE
        } else if self.0 & STATE == OPENING {
            (State::Established as u64) << 14
        } else {
            self.0 & STATE
        };
        Self(self.0 & !0xffff | state | u64::from(now.0 & TICK_MASK))
    }

    /// Whether it is established and was written in this tick: a packet that neither opens nor closes its flow changes nothing about it.
    #[inline(always)]
    pub fn is_settled(self, now: Tick) -> bool {
        // What two words differ in: of the tick nothing, of the state that of an established one.
        (self.0 as u32 ^ now.0 & TICK_MASK) & 0xffff == (State::Established as u32) << 14
    }

    /// Ticks since the entry was last written, which an active flow does once a tick: at most 2¹⁴ - 257.
    #[inline(always)]
    pub fn age(self, now: Tick) -> u32 {
        self.lag(now).saturating_sub(AHEAD_TICKS)
    }

    /// Its age and [`AHEAD_TICKS`].
    #[inline(always)]
    fn lag(self, now: Tick) -> u32 {
        now.0.wrapping_add(AHEAD_TICKS).wrapping_sub(self.0 as u32) & TICK_MASK
    }

    /// Whether the flow has been idle so long that its entry may go first.
    #[inline(always)]
    pub fn is_expired(self, now: Tick) -> bool {
        let limit =
            if self.state() == State::Established { ESTABLISHED_IDLE_TICKS } else { OPENING_IDLE_TICKS };
        self.age(now) > limit
    }

    /// How gladly the entry is given up: expired, then probation, then established; the oldest of its class first.
    #[inline(always)]
    pub fn rank(self, now: Tick) -> u32 {
        let class = if self.is_expired(now) {
            2
        } else if self.state() == State::Established {
            0
        } else {
            1
        };
        class << 16 | self.lag(now)
    }
}

/// What made way for a new entry; the discriminant is its place in the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Eviction {
    /// In the table of translations, a flow whose customer has sent nothing that follows its opening. All others are of the flow table.
    Unfollowed = 0,
    /// A flow idle for too long.
    Expired = 1,
    /// A flow on probation.
    Probation = 2,
    /// An established flow.
    Established = 3,
}

impl Eviction {
    /// That of an entry of this [`Entry::rank`].
    #[inline(always)]
    const fn of_rank(rank: u32) -> Self {
        match rank >> 16 {
            2 => Self::Expired,
            1 => Self::Probation,
            _ => Self::Established,
        }
    }

    /// Those of the flow table, with their names in metrics.
    pub const NAMED: [(Self, &'static str); 3] =
        [(Self::Expired, "expired"), (Self::Probation, "probation"), (Self::Established, "established")];
}

/// The signature of an entry that holds which backend a client is with; those of flows have this bit clear.
const CLIENT_SIGNATURE: u32 = 1;
/// Set in every signature: no empty word has it.
const SIGNATURE: u32 = 2;

/// What tells a flow with this hash apart in its bucket.
#[inline(always)]
pub const fn flow_signature(hash: u64) -> u32 {
    hash as u32 & !CLIENT_SIGNATURE | SIGNATURE
}

/// What tells the entry of a client with this hash apart in its bucket.
#[inline(always)]
pub const fn client_signature(hash: u64) -> u32 {
    hash as u32 | CLIENT_SIGNATURE | SIGNATURE
}

/// The place that a new entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its place in the bucket.
    pub way: usize,
    /// What is lost by that, if anything.
    pub eviction: Option<Eviction>,
}

impl Victim {
    /// As one word, to be handed from one function of the program to another.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        // No entry of the flow table is the one of 0.
        let eviction = match self.eviction {
            None => 0,
            Some(eviction) => eviction as u64,
        };
        self.way as u64 | eviction << 8
    }

    /// From that word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let eviction = match (word >> 8) & 3 {
            0 => None,
            1 => Some(Eviction::Expired),
            2 => Some(Eviction::Probation),
            _ => Some(Eviction::Established),
        };
        Self { way: word as usize & (FLOW_WAYS - 1), eviction }
    }
}

/// An entry found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its place in the bucket.
    pub way: usize,
    /// The entry.
    pub entry: Entry,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Tick = Tick(100_000);

    fn aged(signature: u32, state: State, age: u32) -> Entry {
        Entry::new(signature, 1, state, Tick(NOW.0 - age))
    }

    #[test]
    fn what_another_cpu_has_just_written_is_young() {
        let ahead = |state| Entry::new(flow_signature(7), 1, state, Tick(NOW.0 + 1));
        for state in [State::Opening, State::Established, State::Closing] {
            assert_eq!(ahead(state).age(NOW), 0);
            assert!(!ahead(state).is_expired(NOW), "{state:?}");
        }
        let oldest = aged(1, State::Established, 0).rank(NOW);
        assert!(ahead(State::Established).rank(NOW) < oldest, "nothing is given up less gladly");
        assert_eq!((NOW.since(NOW.0 + 1), NOW.since(NOW.0), NOW.since(NOW.0 - 7)), (0, 0, 7));
        assert_eq!(Tick(3).since(u32::MAX), 4, "over the end of the count");
    }

    #[test]
    fn settled_is_established_in_this_tick() {
        for state in [State::Opening, State::Established, State::Closing] {
            for age in [0, 1, TICK_MASK] {
                let settled = state == State::Established && age == 0;
                assert_eq!(aged(flow_signature(7), state, age).is_settled(NOW), settled, "{state:?} {age}");
            }
        }
    }

    proptest! {
        #[test]
        fn entries_survive_the_round_trip(signature: u32, backend: u16, state in 1..=3_u8, tick: u32, age in 0..TICK_MASK - AHEAD_TICKS) {
            let state = [State::Opening, State::Established, State::Closing][usize::from(state) - 1];
            let entry = Entry::from_word(Entry::new(signature, backend, state, Tick(tick)).word()).unwrap();
            prop_assert_eq!(entry.signature(), signature);
            prop_assert_eq!(entry.backend(), backend);
            prop_assert_eq!(entry.state(), state);
            prop_assert_eq!(entry.age(Tick(tick.wrapping_add(age))), age);
        }
    }
}
