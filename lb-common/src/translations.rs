//! The table of translations: the five fields of a packet as it arrives → what it leaves with, exactly.
//!
//! A key belongs into one of two buckets of seven entries each. A bucket's first line holds a tag for each entry: a word with
//! its state, whether it is there, how often its place was taken, and a signature of its key. Keys are compared whole, and
//! everything is read between two looks at the tag. What changes a tag names the one it replaces. So no lock is needed, and
//! what was taken for another key meanwhile is neither read nor changed.
//!
//! Who inserts claims a place first, and then looks whether another has the key or may be about to: of two who insert the same
//! key at the same time both may give way, but never both stay. A claim that nobody follows up, for its CPU or agent has stopped,
//! is freed by the agent.

mod line;
mod tag;

pub use tag::{Location, Note, Tag};

use crate::abi::{
    Control, KEY_WORDS, ReturnPath, TRANSLATION_WAYS, Translation, TranslationBucket, TranslationLine,
    TranslationState, TupleKey, Word,
};
use crate::flow::Tick;
use crate::hash::{self, Key};

/// Free places from which on the first bucket is taken for a key whatever the second is like: so most are found there.
const ROOMY: u32 = 4;
/// Times that something is tried while others change the same place.
const TRIES: u32 = 4;

/// What came of an insertion into an exact table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Inserted {
    /// It is there now.
    Done = 0,
    /// Another is there under this key, or may be in an instant; it stays.
    Exists = 1,
    /// There is no room.
    Full = 2,
}

impl Inserted {
    /// From the number, as one function of the program hands it to another.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Done,
            1 => Self::Exists,
            _ => Self::Full,
        }
    }
}

/// Where buckets come from.
pub trait Buckets {
    /// A bucket of the table of translations.
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket>;
    /// The value itself. In the kernel the compiler knows nothing of it any more: it would make branches of what follows, which the
    /// verifier goes both ways from.
    #[inline(always)]
    fn hide(&self, value: u64) -> u64 {
        value
    }
}

impl Buckets for [TranslationBucket] {
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        self.get(index as usize)
    }
}

impl TranslationBucket {
    #[inline(always)]
    fn tag(&self, way: usize) -> &Word {
        &self.lines[0].words[way & TRANSLATION_WAYS]
    }

    #[inline(always)]
    fn look(&self, way: usize) -> Tag {
        Tag(self.tag(way).load())
    }

    /// Asks for what is needed of these entries, without waiting for it.
    #[inline(always)]
    fn fetch(&self, ways: [usize; 2], key: &[u64; KEY_WORDS]) {
        for way in ways {
            self.line(way).fetch(key);
        }
    }

    #[inline(always)]
    fn line(&self, way: usize) -> &TranslationLine {
        &self.lines[way & TRANSLATION_WAYS]
    }
}

/// Where a key belongs.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The buckets.
    buckets: [u32; 2],
    /// The ways that it has if one of them is free: what is there need not wait for the tags.
    ways: [usize; 2],
    /// The signature, where it is in a tag.
    signature: u64,
}

/// Two ways of a bucket, from bits of a hash that lead neither to the bucket nor to the signature.
#[inline(always)]
const fn ways(hash: u64) -> [u64; 2] {
    const WAYS: u64 = TRANSLATION_WAYS as u64;
    const FRACTION: u64 = (1 << 14) - 1;
    let drawn = (hash >> 18 & FRACTION) * WAYS;
    let first = drawn >> 14;
    let other = first + 1 + (((drawn & FRACTION) * (WAYS - 1)) >> 14);
    // Back to the front: what is beyond the last, and that alone, has the bit of eight once one is added.
    [1 + first, 1 + other - WAYS * ((other + 1) >> 3)]
}

/// An entry, or what has come into its place since.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    location: Location,
    tag: &'a Word,
    line: &'a TranslationLine,
}

impl Entry<'_> {
    /// The entry's tag; `None` once it is gone.
    #[inline(always)]
    pub fn tag(&self) -> Option<Tag> {
        let tag = Tag(self.tag.load());
        if self.location.is(tag) { Some(tag) } else { None }
    }

    /// The translation and the tag; `None` once it is gone.
    #[inline(always)]
    pub fn read(&self) -> Option<(Translation, Tag)> {
        let translation = Translation::from_words(self.line.translation());
        Some((translation, self.tag()?))
    }

    /// The key; `None` once it is gone.
    #[inline(always)]
    pub fn key(&self) -> Option<TupleKey> {
        let key = TupleKey::from_words(self.line.key());
        self.tag()?;
        Some(key)
    }

    /// Notes a packet. `seen` is the tag as it was read; yields the one before this packet and the one after it. If they are the same,
    /// nothing was written. `None` once the entry is gone.
    #[inline(always)]
    pub fn note(&self, seen: Tag, note: Note) -> Option<(Tag, Tag)> {
        self.change(seen, |tag| tag.noted(note))
    }

    /// Has one tag become another. As [`Entry::note`], of any change.
    #[inline(always)]
    fn change(&self, seen: Tag, becomes: impl Fn(Tag) -> Tag) -> Option<(Tag, Tag)> {
        let mut tag = seen;
        let mut tries = 0;
        while tries < TRIES {
            let next = becomes(tag);
            if next == tag || self.tag.replace(tag.0, next.0) {
                return Some((tag, next));
            }
            tag = self.tag()?;
            tries += 1;
        }
        // So many others changed it in this instant.
        Some((tag, tag))
    }

    /// Adds to it what was noted of the same flow in another table since it was copied from there: packets that came later, and what they
    /// did.
    pub fn catch_up(&self, other: TranslationState) {
        if let Some(seen) = self.tag() {
            self.change(seen, |tag| tag.caught_up(other));
        }
    }

    /// Has answers go another way from now on. A place that was taken anew meanwhile is left alone, unless what is there went the
    /// same way.
    #[inline(always)]
    pub fn redirect(&self, from: &ReturnPath, to: &ReturnPath) {
        let [first, rest, vlan] = self.line.path();
        for (word, from, to) in
            [(first, from.first, to.first), (rest, from.rest, to.rest), (vlan, from.vlan, to.vlan)]
        {
            if from != to {
                word.replace(from, to);
            }
        }
    }

    /// Frees the place, if no packet came since this tag was read; says whether it did.
    #[inline(always)]
    pub fn remove(&self, seen: Tag) -> bool {
        self.tag.replace(seen.0, seen.freed().0)
    }

    /// Frees the place, whatever packets come.
    #[inline(always)]
    pub fn remove_now(&self) {
        let mut tries = 0;
        while tries < TRIES {
            match self.tag() {
                Some(tag) if !self.remove(tag) => tries += 1,
                _ => return,
            }
        }
    }
}

/// The table.
pub struct Translations<'a, B: ?Sized> {
    buckets: &'a B,
    key: &'a Key,
    count: u32,
}

impl<'a, B: Buckets + ?Sized> Translations<'a, B> {
    /// Over these buckets, with the number and the key that are in `control`.
    #[inline(always)]
    pub fn new(buckets: &'a B, control: &'a Control) -> Self {
        Self { buckets, key: &control.flow_key, count: control.translation_buckets }
    }

    #[inline(always)]
    fn place(&self, key: &TupleKey) -> Place {
        self.place_of(hash::flow(self.key, &key.tuple()))
    }

    /// The place of a key with this hash.
    #[inline(always)]
    fn place_of(&self, hash: u64) -> Place {
        let first = hash::reduce(hash, self.count);
        let second = hash::reduce(u64::from(hash::spread(hash)) << 32, self.count);
        let next = if first.wrapping_add(1) < self.count { first.wrapping_add(1) } else { 0 };
        Place {
            buckets: [first, if second == first { next } else { second }],
            ways: ways(hash).map(|way| self.buckets.hide(way) as usize),
            signature: hash << Tag::SIGNATURE_SHIFT,
        }
    }

    /// Finds the entry of a key.
    #[inline(always)]
    pub fn locate(&self, key: &TupleKey) -> Option<Location> {
        let place = self.place(key);
        let words = key.words();
        let [first, second] = place.buckets;
        // It is looked into while what is most likely needed then is on its way.
        let other = self.buckets.translation_bucket(second)?;
        other.look(1);
        other.fetch(place.ways, &words);
        match self.locate_in(first, &place, &words) {
            None => self.locate_in(second, &place, &words),
            found => found,
        }
    }

    #[inline(always)]
    fn locate_in(&self, index: u32, place: &Place, key: &[u64; KEY_WORDS]) -> Option<Location> {
        let bucket = self.buckets.translation_bucket(index)?;
        let mut way = 1;
        while way <= TRANSLATION_WAYS {
            let tag = bucket.look(way);
            if tag.is(place.signature) && bucket.line(way).is(key) {
                return Some(Location::new(index, way, tag));
            }
            way += 1;
        }
        None
    }

    /// The entry of a key with this hash, if it is where most are: what is there need not wait for a search.
    #[inline(always)]
    pub fn entry_soon(&self, key: &TupleKey, hash: u64) -> Option<Entry<'a>> {
        let place = self.place_of(hash);
        let words = key.words();
        let [first, _] = place.buckets;
        let bucket = self.buckets.translation_bucket(first)?;
        // All three lines are asked for before the first of them is there.
        bucket.fetch(place.ways, &words);
        let [own, other] = place.ways;
        // Without a branch, which nobody could foretell.
        let differs = self.buckets.hide(bucket.look(other).unlike(place.signature));
        let is_other = self.buckets.hide((differs.wrapping_sub(1) & !differs) >> 63) as usize;
        let way = own.wrapping_add(other.wrapping_sub(own).wrapping_mul(is_other));
        let (word, line) = (bucket.tag(way), bucket.line(way));
        let tag = Tag(word.load());
        if tag.is(place.signature) && line.is(&words) {
            return Some(Entry { location: Location::new(first, way, tag), tag: word, line });
        }
        None
    }

    /// The entry at a place.
    #[inline(always)]
    pub fn entry(&self, location: Location) -> Option<Entry<'a>> {
        let bucket = self.buckets.translation_bucket(location.index())?;
        let way = location.way();
        Some(Entry { location, tag: bucket.tag(way), line: bucket.line(way) })
    }

    /// In the buckets of a key, the entry for a customer's packets that has been opened the longest time ago, and no later than so many
    /// ticks, and not been followed up.
    #[inline(always)]
    pub fn unfollowed(&self, key: &TupleKey, now: Tick, ticks: u32) -> Option<Location> {
        let (mut found, mut oldest) = (None, ticks);
        for index in self.place(key).buckets {
            let bucket = self.buckets.translation_bucket(index)?;
            let mut way = 1;
            while way <= TRANSLATION_WAYS {
                let tag = bucket.look(way);
                let state = tag.state();
                let age = now.since(state.tick);
                if tag.is_valid() && !state.established && age >= oldest && !bucket.line(way).is_reply() {
                    (found, oldest) = (Some(Location::new(index, way, tag)), age);
                }
                way += 1;
            }
        }
        found
    }

    /// Inserts a translation, unless one is there under its key.
    #[inline(always)]
    pub fn insert(&self, key: &TupleKey, translation: &Translation, state: TranslationState) -> Inserted {
        let place = self.place(key);
        let mut tries = 0;
        while tries < TRIES {
            let Some(location) = self.vacancy(&place, key) else { return Inserted::Exists };
            let Some((index, way)) = location else { return Inserted::Full };
            let Some(bucket) = self.buckets.translation_bucket(index) else { return Inserted::Full };
            let free = bucket.look(way);
            let claimed = free.claimed(place.signature, state);
            if free.is_empty() && bucket.tag(way).replace(free.0, claimed.0) {
                return self.fill(
                    &place,
                    bucket,
                    Location::new(index, way, claimed),
                    claimed,
                    key,
                    translation,
                );
            }
            tries += 1;
        }
        // Others are inserting here and there.
        Inserted::Exists
    }

    /// A free place for a key, if there is one, as bucket and way; `None` if the key is there, or may be in an instant.
    #[inline(always)]
    #[allow(clippy::option_option, reason = "three outcomes, each of which ends the insertion elsewhere")]
    fn vacancy(&self, place: &Place, key: &TupleKey) -> Option<Option<(u32, usize)>> {
        let [first, second] = place.buckets;
        let in_first = self.survey(first, place, key, None)?;
        let in_second = self.survey(second, place, key, None)?;
        let (room, other) = (in_first.count_ones(), in_second.count_ones());
        let (index, free) =
            if room >= ROOMY || room >= other { (first, in_first) } else { (second, in_second) };
        if free == 0 {
            return Some(None);
        }
        let [own, other] = place.ways;
        let way = if free >> own & 1 != 0 {
            own
        } else if free >> other & 1 != 0 {
            other
        } else {
            free.trailing_zeros() as usize
        };
        Some(Some((index, self.buckets.hide(way as u64) as usize)))
    }

    /// The free ways of a bucket, a bit each; `None` if the key is there, or may be in an instant, other than at `own`.
    #[inline(always)]
    fn survey(&self, index: u32, place: &Place, key: &TupleKey, own: Option<Location>) -> Option<u64> {
        let bucket = self.buckets.translation_bucket(index)?;
        let (mut free, mut way) = (0, 1);
        while way <= TRANSLATION_WAYS {
            let tag = bucket.look(way);
            if tag.has(place.signature)
                && Some(Location::new(index, way, tag)) != own
                && (!tag.is_valid() || bucket.line(way).is(&key.words()))
            {
                return None;
            }
            let taken = tag.0 >> TranslationState::BITS | tag.0 >> (TranslationState::BITS + 1);
            free |= (!self.buckets.hide(taken) & 1) << way;
            way += 1;
        }
        Some(free)
    }

    /// Makes an entry in a place that was claimed, unless somebody else has its key or claimed a place for it.
    #[inline(always)]
    fn fill(
        &self,
        place: &Place,
        bucket: &TranslationBucket,
        location: Location,
        claimed: Tag,
        key: &TupleKey,
        translation: &Translation,
    ) -> Inserted {
        let [first, second] = place.buckets;
        let own = Some(location);
        let alone =
            self.survey(first, place, key, own).is_some() && self.survey(second, place, key, own).is_some();
        let tag = bucket.tag(location.way());
        if !alone {
            tag.replace(claimed.0, claimed.freed().0);
            return Inserted::Exists;
        }
        bucket.line(location.way()).write(&key.words(), &translation.words());
        // Else the agent took this for a claim that nobody follows up.
        if tag.replace(claimed.0, claimed.whole().0) { Inserted::Done } else { Inserted::Exists }
    }
}

impl<'a> Translations<'a, [TranslationBucket]> {
    /// All tags of entries that are there or about to be, with where they are. Only the first lines of buckets are read.
    pub fn tags(&self) -> impl Iterator<Item = (Location, Tag)> + use<'a> {
        let buckets = (0..).zip(self.buckets);
        buckets.flat_map(|(index, bucket)| {
            let tags = (1..=TRANSLATION_WAYS).map(|way| (way, bucket.look(way)));
            tags.filter(|(_, tag)| !tag.is_empty())
                .map(move |(way, tag)| (Location::new(index, way, tag), tag))
        })
    }
}

#[cfg(test)]
mod tests;
