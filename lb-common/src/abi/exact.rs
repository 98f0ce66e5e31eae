//! What must be exact: the translations of `nat`, and which way a datagram's fragments go.

#[cfg(doc)]
use super::NextHop;
use super::Word;
use crate::net::{Address, Ports, Protocol, Tuple};

/// What names a translation or a fragmented datagram: the fields of a packet as it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct TupleKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The ports as [`Ports::word`]; of a fragment, the datagram's identification.
    pub ports: u32,
    /// [`Protocol`]; for fragments a mark above it, and only IPv4's protocol.
    pub protocol: u32,
}

impl TupleKey {
    const FRAGMENT: u32 = 1 << 8;

    /// The key of a packet with ports.
    #[inline(always)]
    pub const fn of(tuple: &Tuple) -> Self {
        Self {
            source: tuple.source,
            destination: tuple.destination,
            ports: tuple.ports.word(),
            protocol: tuple.protocol.0 as u32,
        }
    }

    /// The key of a fragment, by the identification in its header as it lies there. IPv6 has no protocol in it: later fragments do
    /// not tell it (RFC 8200 section 4.5).
    #[inline(always)]
    pub const fn of_fragment(tuple: &Tuple, identification: u32) -> Self {
        Self {
            source: tuple.source,
            destination: tuple.destination,
            ports: identification,
            protocol: Self::FRAGMENT | if tuple.source.is_v4() { tuple.protocol.0 as u32 } else { 0 },
        }
    }

    /// As words, of which IPv4 needs but the first two: the second says so.
    #[inline(always)]
    pub const fn words(&self) -> [u64; KEY_WORDS] {
        let [last, a, b, c] = address_words(self.source, self.destination);
        let family = if self.destination.is_v4() { V4_KEY } else { 0 };
        [last, pair(self.ports, self.protocol) | family, a, b, c]
    }

    /// From those words.
    #[inline(always)]
    pub const fn from_words([last, flow, a, b, c]: [u64; KEY_WORDS]) -> Self {
        let [source, destination] = addresses([last, a, b, c]);
        Self { source, destination, ports: flow as u32, protocol: ((flow & !V4_KEY) >> 32) as u32 }
    }

    /// The protocol of a packet with ports.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        Protocol(self.protocol as u8)
    }

    /// The tuple of a packet with ports.
    #[inline(always)]
    pub const fn tuple(&self) -> Tuple {
        Tuple {
            source: self.source,
            destination: self.destination,
            ports: Ports::from_word(self.ports),
            protocol: self.protocol(),
        }
    }
}

/// The words a [`TupleKey`] is made of.
pub(crate) const KEY_WORDS: usize = size_of::<TupleKey>() / size_of::<u64>();
/// In the second of these words: the addresses are IPv4's.
pub(crate) const V4_KEY: u64 = 1 << 63;
/// The words of two addresses after the first, if they are IPv4's.
pub(crate) const V4_WORDS: [u64; 3] = {
    let [_, words @ ..] = address_words(Address::v4([0; 4]), Address::v4([0; 4]));
    words
};

/// Two addresses as words, of which the first is all that tells IPv4 addresses apart.
#[inline(always)]
const fn address_words(source: Address, destination: Address) -> [u64; 4] {
    let ([a, b, c, d], [e, f, g, h]) = (source.words(), destination.words());
    [pair(d, h), pair(a, b), pair(c, e), pair(f, g)]
}

/// The two addresses.
#[inline(always)]
const fn addresses([last, first, middle, other]: [u64; 4]) -> [Address; 2] {
    [
        Address::from_words([first as u32, (first >> 32) as u32, middle as u32, last as u32]),
        Address::from_words([(middle >> 32) as u32, other as u32, (other >> 32) as u32, (last >> 32) as u32]),
    ]
}

/// Two words as one.
#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// One direction of a translated connection: what its packets become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// The source address its packets leave with.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// The ports, as [`Ports::word`].
    pub ports: u32,
    /// The backend's id.
    pub backend: u16,
    /// 1 for what the backend answers, else 0.
    pub reply: u16,
    /// Where the customer's packets came from.
    pub path: ReturnPath,
}

/// The words a [`Translation`] is made of.
pub(crate) const TRANSLATION_WORDS: usize = size_of::<Translation>() / size_of::<u64>();
/// In the second of these words: it is one of a backend's answers.
pub(crate) const REPLY_TRANSLATION: u64 = 1 << 48;

impl Translation {
    /// As words, of which IPv4 needs but the first five.
    #[inline(always)]
    pub(crate) const fn words(&self) -> [u64; TRANSLATION_WORDS] {
        let [last, a, b, c] = address_words(self.source, self.destination);
        let flow = pair(self.ports, self.backend as u32 | (self.reply as u32) << 16);
        let ReturnPath { first, rest, vlan } = self.path;
        [last, flow, first, rest, vlan, a, b, c]
    }

    /// From those words.
    #[inline(always)]
    pub(crate) const fn from_words(
        [last, flow, first, rest, vlan, a, b, c]: [u64; TRANSLATION_WORDS],
    ) -> Self {
        let [source, destination] = addresses([last, a, b, c]);
        Self {
            source,
            destination,
            ports: flow as u32,
            backend: (flow >> 32) as u16,
            reply: (flow >> 48) as u16,
            path: ReturnPath { first, rest, vlan },
        }
    }

    /// The key by which the other direction is found, given one's own.
    #[inline(always)]
    pub fn reverse_key(&self, key: &TupleKey) -> TupleKey {
        let leaves = Tuple {
            source: self.source,
            destination: self.destination,
            ports: Ports::from_word(self.ports),
            protocol: key.protocol(),
        };
        TupleKey::of(&leaves.reversed())
    }
}

/// Translations in a bucket of the map `translations`.
pub const TRANSLATION_WAYS: usize = 7;
/// Translations for which a bucket is made: at this load an insertion practically never finds both of its buckets full.
pub const TRANSLATIONS_A_BUCKET: u32 = 4;
/// Buckets of the map `translations` at least: a key belongs into two.
pub const MIN_TRANSLATION_BUCKETS: u32 = 2;

/// A line of a [`TranslationBucket`]: two cache lines, of which an entry of IPv4 needs but the first.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct TranslationLine {
    /// Its words.
    pub words: [Word; 16],
}

/// A bucket of the map `translations`; what lies where is known to [`crate::translations`] alone.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct TranslationBucket {
    /// The first holds a tag for each of the others.
    pub lines: [TranslationLine; TRANSLATION_WAYS + 1],
}

/// When a packet went this way last, and how far this direction of a translated connection has come: the lower bits of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationState {
    /// The tick of the last packet.
    pub tick: u32,
    /// More was seen than the packet that opened it; of answers, one.
    pub established: bool,
    /// A FIN was seen.
    pub closing: bool,
    /// A RST was seen; of a customer's, as the last packet.
    pub reset: bool,
    /// Of a customer's: not even the packet that it was made for was translated yet.
    pub fresh: bool,
}

impl TranslationState {
    pub(crate) const TICK: u64 = (1 << 32) - 1;
    pub(crate) const ESTABLISHED: u64 = 1 << 32;
    pub(crate) const CLOSING: u64 = 1 << 33;
    pub(crate) const RESET: u64 = 1 << 34;
    pub(crate) const FRESH: u64 = 1 << 35;
    /// Bits it takes.
    pub(crate) const BITS: u32 = 36;

    /// From a word, of which other bits are ignored.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            tick: word as u32,
            established: word & Self::ESTABLISHED != 0,
            closing: word & Self::CLOSING != 0,
            reset: word & Self::RESET != 0,
            fresh: word & Self::FRESH != 0,
        }
    }

    /// As a word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let mut word = self.tick as u64;
        if self.established {
            word |= Self::ESTABLISHED;
        }
        if self.closing {
            word |= Self::CLOSING;
        }
        if self.reset {
            word |= Self::RESET;
        }
        if self.fresh {
            word |= Self::FRESH;
        }
        word
    }
}

/// Where the customer's packets of a translated connection come from, and its answers go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReturnPath {
    /// MAC addresses, as [`NextHop::first`]: where the customer's packets came from, with the two exchanged.
    pub first: u64,
    /// As [`NextHop::rest`] in the lower half and [`NextHop::interface`] in the upper.
    pub rest: u64,
    /// VLAN tags the customer's packets came with: the outer one's id, 0x1000 if there is none, 0x4000 added if it is of a service
    /// VLAN (IEEE 802.1ad); if there is an inner one, the same of it from bit 16 on, and bit 28 is set.
    pub vlan: u64,
}

/// Which way a datagram's first fragment went, so that the others follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentRoute {
    /// The source address its packets leave with, if they are translated.
    pub source: Address,
    /// The destination address, if they are translated.
    pub destination: Address,
    /// The tick of the first fragment.
    pub tick: u32,
    /// The service's id.
    pub service: u16,
    /// The backend's id; 0 if the first fragment was left to the host.
    pub backend: u16,
    /// As [`ReturnPath::first`], for a backend's answer.
    pub first: u64,
    /// As [`ReturnPath::rest`], for a backend's answer.
    pub rest: u64,
    /// As [`ReturnPath::vlan`], for a backend's answer.
    pub vlan: u32,
    /// What becomes of them: see [`FragmentRoute::PLAIN`] and those that follow.
    pub kind: u32,
}

impl FragmentRoute {
    /// To the backend as they are, or to the host.
    pub const PLAIN: u32 = 0;
    /// To the backend, translated.
    pub const TRANSLATED: u32 = 1;
    /// A backend's answer, translated back.
    pub const ANSWER: u32 = 2;
}

/// Lets aya read and write what goes through map system calls.
#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` of plain integers without padding between them; every bit pattern is a value.
    unsafe impl aya::Pod for super::TupleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentRoute {}
}
