//! The table of translations against a model, and against itself under many threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::abi::TRANSLATION_WORDS;
use crate::datapath::Transport;
use crate::net::{Address, Ports, Protocol, Tuple};

fn buckets(count: u32) -> Vec<TranslationBucket> {
    (0..count).map(|_| TranslationBucket::default()).collect()
}

fn control(buckets: u32) -> Control {
    Control { flow_key: hash::expand(0x5eed), translation_buckets: buckets, ..Control::default() }
}

/// Of either family.
fn key(number: u32) -> TupleKey {
    let v4 = number.is_multiple_of(2);
    let address = |v4_address: u32, v6_address: [u32; 4]| {
        if v4 { Address::v4(v4_address.to_be_bytes()) } else { Address::from_words(v6_address) }
    };
    TupleKey::of(&Tuple {
        source: address(0x0a00_0000_u32.wrapping_add(number), [number, number / 3, number / 5, number / 7]),
        destination: address(0xcb00_710a, [1, 2, 3, 4]),
        ports: Ports::from_word(40_000 << 16 | 443),
        protocol: if number.is_multiple_of(3) { Protocol::UDP } else { Protocol::TCP },
    })
}

/// A translation for this key's packets, of which every word says which one it is.
fn translation_of(key: &TupleKey, number: u32) -> Translation {
    let address = |number: u32| {
        if key.destination.is_v4() {
            Address::v4(number.to_ne_bytes())
        } else {
            Address::from_words([number; 4])
        }
    };
    Translation {
        source: address(number),
        destination: address(!number),
        ports: number,
        backend: number as u16,
        reply: (number >> 16) as u16,
        path: ReturnPath {
            first: u64::from(number) << 32 | u64::from(number),
            rest: u64::from(number),
            vlan: number.into(),
        },
    }
}

/// One for the key of the same number.
fn translation(number: u32) -> Translation {
    translation_of(&key(number), number)
}

fn state(tick: u32) -> TranslationState {
    TranslationState { tick, established: false, closing: false, reset: false, fresh: true }
}

const OPENS: Transport = Transport::tcp(2);
const ANSWERS: Transport = Transport::tcp(2 | 16);
const GOES_ON: Transport = Transport::tcp(16);
const CLOSES: Transport = Transport::tcp(16 | 1);
const RESET: Transport = Transport::tcp(4);

type Table<'a> = Translations<'a, [TranslationBucket]>;

fn found_soon<'a>(table: &Table<'a>, key: &TupleKey) -> Option<Entry<'a>> {
    table.entry_soon(key, hash::flow(table.key, &key.tuple()))
}

fn found(table: &Table<'_>, key: &TupleKey) -> Option<(Translation, Tag)> {
    let location = table.locate(key)?;
    if let Some(soon) = found_soon(table, key) {
        assert_eq!(soon.location, location);
    }
    assert_eq!(Location::from_word(location.to_word()), Some(location));
    let entry = table.entry(location)?;
    assert_eq!(entry.key(), Some(*key));
    entry.read()
}

fn remove(table: &Table<'_>, key: &TupleKey) -> bool {
    table.locate(key).and_then(|location| table.entry(location)).is_some_and(|entry| {
        entry.remove_now();
        entry.tag().is_none()
    })
}

#[test]
fn seven_tenths_of_a_table_are_found_a_place_and_eight_tenths_nearly() {
    let count = if cfg!(miri) { 16 } else { 16_384 };
    let (memory, control) = (buckets(count), control(count));
    let table = Table::new(&memory, &control);
    let ways = count * TRANSLATION_WAYS as u32;
    let mut full = Vec::new();
    for number in 0..ways * 8 / 10 {
        match table.insert(&key(number), &translation(number), state(1)) {
            Inserted::Done => {}
            Inserted::Full => full.push(number),
            Inserted::Exists => panic!("{number} is new"),
        }
    }
    let least = count * crate::abi::TRANSLATIONS_A_BUCKET;
    assert!(full.iter().all(|&number| number > least), "{full:?}");
    assert!(full.len() as u32 * 200 < ways, "{} of {ways} found both buckets full", full.len());
    assert_eq!(table.tags().count(), (ways * 8 / 10) as usize - full.len());
    for number in (0..ways * 8 / 10).filter(|number| !full.contains(number)) {
        assert_eq!(found(&table, &key(number)).map(|(found, _)| found), Some(translation(number)));
    }
    let soon = (0..least).filter(|&number| found_soon(&table, &key(number)).is_some()).count() as u32;
    assert!(soon * 4 > least * 3, "{soon} of {least} are where they are looked for first");
}

#[test]
fn a_full_pair_of_buckets_says_so_and_takes_the_next_once_there_is_room() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    let insert = |number| table.insert(&key(number), &translation(number), state(1));
    let there: Vec<u32> = (0..100).filter(|&number| insert(number) == Inserted::Done).collect();
    assert_eq!(there, (0..14).collect::<Vec<_>>());
    assert_eq!(insert(50), Inserted::Full);
    assert_eq!(insert(7), Inserted::Exists);
    assert!(remove(&table, &key(7)));
    assert_eq!(insert(50), Inserted::Done);
    assert_eq!(insert(7), Inserted::Full);
}

#[test]
fn of_the_openings_that_nobody_followed_up_the_oldest_is_found() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    const FOLLOWED: u32 = 13;
    const REPLY: u32 = 12;
    for number in 0..14 {
        let translation = Translation { reply: (number == REPLY).into(), ..translation(number) };
        let state = TranslationState { established: number == FOLLOWED, ..state(100 - number) };
        assert_eq!(table.insert(&key(number), &translation, state), Inserted::Done);
    }
    let oldest = |ticks| {
        let location = table.unfollowed(&key(50), Tick(100), ticks)?;
        table.entry(location).unwrap().key()
    };
    assert_eq!(oldest(2), Some(key(11)));
    assert_eq!(oldest(11), Some(key(11)));
    assert_eq!(oldest(12), None, "none is so old");
    assert!(remove(&table, &key(11)));
    assert_eq!(oldest(2), Some(key(10)));
}

#[test]
fn what_was_taken_for_another_meanwhile_is_neither_read_nor_changed() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    // All places are taken, so that the next key takes the very place that was freed.
    (0..14).for_each(|number| {
        table.insert(&key(number), &translation(number), state(1));
    });
    let old = table.entry(table.locate(&key(3)).unwrap()).unwrap();
    let (_, seen) = old.read().unwrap();
    old.remove_now();
    assert_eq!(table.insert(&key(60), &translation(60), state(9)), Inserted::Done);
    assert_eq!(old.read(), None);
    assert_eq!(old.key(), None);
    assert_eq!(old.note(seen, Note::new(Tick(5), RESET, false)), None);
    assert!(!old.remove(seen));
    old.remove_now();
    old.redirect(&translation(3).path, &translation(4).path);
    let (now, tag) = found(&table, &key(60)).unwrap();
    assert_eq!((now, tag.state()), (translation(60), state(9)));
}

#[test]
fn a_claim_that_nobody_follows_up_hides_its_key_until_it_is_freed() {
    let (memory, control) = (buckets(8), control(8));
    let table = Table::new(&memory, &control);
    let place = table.place(&key(1));
    let bucket = table.buckets.translation_bucket(place.buckets[1]).unwrap();
    let claimed = Tag(0).claimed(place.signature, state(77));
    assert!(bucket.tag(4).replace(0, claimed.0));
    assert_eq!(table.insert(&key(1), &translation(1), state(80)), Inserted::Exists);
    assert_eq!(table.locate(&key(1)), None);
    let (location, tag) = table.tags().next().unwrap();
    assert_eq!((tag.is_valid(), tag.state().tick), (false, 77));
    assert!(table.entry(location).unwrap().remove(tag));
    assert_eq!(table.insert(&key(1), &translation(1), state(80)), Inserted::Done);
}

#[test]
fn packets_leave_their_note_once_and_lose_none_of_anothers() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    table.insert(&key(1), &translation(1), state(10));
    let entry = table.entry(table.locate(&key(1)).unwrap()).unwrap();
    let (_, first) = entry.read().unwrap();
    let (before, after) = entry.note(first, Note::new(Tick(11), GOES_ON, false)).unwrap();
    assert_eq!((before.state(), after.is_much_like(before)), (state(10), false));
    // Noted from what was seen before that packet: its note stays.
    let (before, after) = entry.note(first, Note::new(Tick(11), CLOSES, false)).unwrap();
    let begun = TranslationState { tick: 11, fresh: false, ..state(0) };
    assert_eq!(before.state(), begun, "the first packet follows nothing");
    let established = TranslationState { established: true, ..begun };
    assert_eq!(after.state(), TranslationState { closing: true, ..established });
    let (_, again) = entry.note(after, Note::new(Tick(15), GOES_ON, false)).unwrap();
    assert!(again.is_much_like(after), "a few ticks are no news");
    let (_, later) = entry.note(after, Note::new(Tick(16), GOES_ON, false)).unwrap();
    assert!(!later.is_much_like(after), "sixteen are");
    let (_, reset) = entry.note(later, Note::new(Tick(16), RESET, false)).unwrap();
    assert!(reset.state().reset);
    let (_, unheard) = entry.note(reset, Note::new(Tick(16), GOES_ON, false)).unwrap();
    assert_eq!(unheard, later, "its receiver took no notice of the RST");
    let (_, told) = entry.note(unheard, Note::new(Tick(16), RESET, true)).unwrap();
    let (_, after) = entry.note(told, Note::new(Tick(16), GOES_ON, true)).unwrap();
    assert_eq!((after, after.state().reset), (told, true), "what a server says is so");
    let (_, closing) = entry.note(after, Note::new(Tick(16), CLOSES, true)).unwrap();
    let (_, reset) = entry.note(closing, Note::new(Tick(17), ANSWERS, true)).unwrap();
    assert!(closing.state().closing && !reset.state().closing, "an answer begins another connection");
    assert!(reset.state().reset, "but takes back no RST");
    // A SYN begins anew.
    let (_, opened) = entry.note(reset, Note::new(Tick(17), OPENS, false)).unwrap();
    assert_eq!(opened.state(), TranslationState { tick: 17, ..established });
}

/// As a table of another size is filled, whose program already has the entry.
#[test]
fn an_entry_catches_up_with_what_came_of_its_flow_elsewhere() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    table.insert(&key(1), &translation(1), state(10));
    let entry = table.entry(table.locate(&key(1)).unwrap()).unwrap();
    let caught_up = |other| {
        entry.catch_up(other);
        let (there, tag) = entry.read().unwrap();
        assert_eq!(there, translation(1));
        tag.state()
    };
    assert_eq!(caught_up(state(9)), state(10));
    let followed = TranslationState { established: true, fresh: false, ..state(12) };
    assert_eq!(caught_up(followed), followed);
    assert_eq!(caught_up(state(10)), followed);
    let closing = TranslationState { closing: true, ..followed };
    assert_eq!(caught_up(TranslationState { tick: 11, reset: true, ..closing }), closing);
}

proptest! {
    #[test]
    fn a_key_has_two_ways_of_its_bucket(hash: u64) {
        let [own, other] = ways(hash);
        let all = 1..=TRANSLATION_WAYS as u64;
        prop_assert!(all.contains(&own) && all.contains(&other) && own != other, "{own} {other}");
    }

    #[test]
    fn words_survive_the_round_trip(
        number: u32,
        words: [u64; KEY_WORDS],
        translated: [u64; TRANSLATION_WORDS],
        tick: u32,
        flags in 0..16_u32,
    ) {
        prop_assert_eq!(TupleKey::from_words(key(number).words()), key(number));
        prop_assert_eq!(Translation::from_words(translated).words(), translated);
        let line = TranslationLine::default();
        line.write(&key(number).words(), &translation(number).words());
        prop_assert!(line.is(&key(number).words()) && !line.is(&key(number ^ 2).words()));
        prop_assert_eq!(TupleKey::from_words(line.key()), key(number));
        prop_assert_eq!(Translation::from_words(line.translation()), translation(number));
        let far = line.words[8..].iter().any(|word| word.load() != 0);
        prop_assert_eq!(far, !key(number).destination.is_v4(), "IPv4 needs one cache line");
        let bit = |number: u32| flags & 1 << number != 0;
        let state = TranslationState { tick, established: bit(0), closing: bit(1), reset: bit(2), fresh: bit(3) };
        let claimed = Tag(translated[0]).claimed(words[0] << Tag::SIGNATURE_SHIFT, state);
        prop_assert!(!claimed.is_valid() && !claimed.is_empty());
        prop_assert!(claimed.whole().is_valid() && claimed.freed().is_empty());
        prop_assert_eq!(claimed.whole().state(), state);
        prop_assert_ne!(claimed.freed(), Tag(translated[0]).freed(), "another generation");
    }

    #[test]
    fn the_table_is_a_map(count in 2..6_u32, steps in prop::collection::vec((0..4_u8, 0..60_u32), 1..400)) {
        let (memory, control) = (buckets(count), control(count));
        let table = Table::new(&memory, &control);
        let mut model = HashMap::<u32, u32>::new();
        for (step, (what, number)) in (1..).zip(steps) {
            let before = found(&table, &key(number));
            prop_assert_eq!(before.map(|(found, _)| found), model.get(&number).map(|&tick| translation_of(&key(number), tick)));
            match what {
                0 | 1 => match table.insert(&key(number), &translation_of(&key(number), step), state(step)) {
                    Inserted::Done => prop_assert_eq!(model.insert(number, step), None),
                    Inserted::Exists => prop_assert!(model.contains_key(&number)),
                    Inserted::Full => prop_assert!(!model.contains_key(&number) && model.len() >= 14),
                },
                2 => prop_assert_eq!(remove(&table, &key(number)), model.remove(&number).is_some()),
                _ => if let Some(location) = table.locate(&key(number)) {
                    let entry = table.entry(location).unwrap();
                    let (was, _) = entry.read().unwrap();
                    entry.redirect(&was.path, &translation(step).path);
                    prop_assert_eq!(entry.read().unwrap().0, Translation { path: translation(step).path, ..was });
                    entry.redirect(&translation(step).path, &was.path);
                },
            }
            prop_assert_eq!(table.tags().count(), model.len());
        }
        let mut there: Vec<TupleKey> = table.tags().map(|(at, _)| table.entry(at).unwrap().key().unwrap()).collect();
        let mut expected: Vec<TupleKey> = model.keys().map(|&number| key(number)).collect();
        there.sort();
        expected.sort();
        prop_assert_eq!(there, expected);
    }
}

/// Two who both looked before either claimed a place, as it comes to pass where a place becomes free in between.
#[test]
fn of_two_who_claimed_a_place_for_the_same_key_one_gives_way() {
    let (memory, control) = (buckets(2), control(2));
    let table = Table::new(&memory, &control);
    let (table, place, key_1) = (&table, &table.place(&key(1)), &key(1));
    let claim = |way| {
        let bucket = table.buckets.translation_bucket(place.buckets[0]).unwrap();
        let claimed = bucket.look(way).claimed(place.signature, state(5));
        assert!(bucket.tag(way).replace(bucket.tag(way).load(), claimed.0));
        let location = Location::new(place.buckets[0], way, claimed);
        move |number| table.fill(place, bucket, location, claimed, key_1, &translation(number))
    };
    let (first, second) = (claim(1), claim(6));
    assert_eq!(table.vacancy(place, key_1), None, "a third keeps out");
    assert_eq!(first(1), Inserted::Exists);
    assert_eq!(second(2), Inserted::Done);
    assert_eq!(found(table, &key(1)).unwrap().0, translation(2));
    // One that comes so late that the other is done.
    assert_eq!(claim(1)(3), Inserted::Exists);
    assert_eq!(table.tags().count(), 1);
    assert_eq!(found(table, &key(1)).unwrap().0, translation(2));
}

/// Buckets at which a thread lets others go first.
struct Courteous<'a>(&'a [TranslationBucket]);

impl Buckets for Courteous<'_> {
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        std::thread::yield_now();
        self.0.get(index as usize)
    }
}

/// Threads that insert and remove the same keys at the same time. Of two who insert the same key one at most is told that it is
/// there now; who was told so holds the key until it removes it.
#[test]
fn no_key_is_ever_there_twice() {
    const KEYS: usize = 12;
    let rounds = if cfg!(miri) { 40 } else { 4_000 };
    let (memory, control) = (buckets(2), control(2));
    let held: [AtomicBool; KEYS] = Default::default();
    let done = AtomicU32::new(0);
    let insert_and_remove = &|thread: u32| {
        let buckets = Courteous(&memory);
        let table = Translations::new(&buckets, &control);
        for round in 0..rounds {
            let number = (round as usize * (thread as usize * 2 + 1)) % KEYS;
            let (key, mark) = (key(number as u32), thread << 24 | round);
            if table.insert(&key, &translation(mark), state(mark)) != Inserted::Done {
                continue;
            }
            assert!(!held[number].swap(true, Ordering::SeqCst), "{number} is there twice");
            done.fetch_add(1, Ordering::Relaxed);
            let entry = table.entry(table.locate(&key).expect("it was inserted")).unwrap();
            let (there, tag) = entry.read().expect("nobody else removes it");
            assert_eq!((there, tag.state()), (translation(mark), state(mark)));
            held[number].store(false, Ordering::SeqCst);
            entry.remove_now();
            assert_eq!(entry.tag(), None);
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|thread| {
            scope.spawn(move || insert_and_remove(thread));
        });
    });
    assert_eq!(Table::new(&memory, &control).tags().count(), 0);
    assert!(done.load(Ordering::Relaxed) > rounds / 10);
}

/// Readers among threads that replace what they read: what they get is one translation, of the key that they asked for.
#[test]
fn no_reader_ever_sees_half_of_two() {
    const KEYS: u32 = 20;
    let rounds = if cfg!(miri) { 60 } else { 100_000 };
    let (memory, control) = (buckets(2), control(2));
    let stopping = AtomicBool::new(false);
    let read = AtomicU32::new(0);
    let replace = |thread: u32| {
        let table = Table::new(&memory, &control);
        for round in 0..rounds {
            // Of all keys there is no room for, so places change hands.
            let number = (round * 7 + thread) % KEYS;
            let mark = (round << 8 | thread << 7) / KEYS * KEYS + number;
            if table.insert(&key(number), &translation(mark), state(mark)) != Inserted::Done {
                remove(&table, &key(number));
            }
        }
        stopping.store(true, Ordering::Relaxed);
    };
    let look = || {
        let table = Table::new(&memory, &control);
        let mut number = 0;
        while !stopping.load(Ordering::Relaxed) || read.load(Ordering::Relaxed) == 0 {
            number = (number + 1) % KEYS;
            let Some(location) = table.locate(&key(number)) else { continue };
            let Some((there, tag)) = table.entry(location).and_then(|entry| entry.read()) else { continue };
            assert_eq!(there, translation(there.ports), "of one piece");
            assert_eq!(there.ports % KEYS, number, "of the key that was asked for");
            assert_eq!(tag.state().tick, there.ports, "with its own tag");
            read.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(look);
        scope.spawn(|| replace(0));
        scope.spawn(|| replace(1));
    });
}
