//! The table of translations, as the agent looks after it: counted, swept, and carried to one of another size.

use std::collections::BTreeSet;

use lb_common::abi::{TRANSLATIONS_A_BUCKET, Translation, TranslationBucket, TranslationState, TupleKey};
use lb_common::flow::Tick;
use lb_common::net::{Address, Protocol};
use lb_common::translations::{Entry, Inserted, Tag, Translations};

use super::tables::TableSet;

/// Ticks after which translations go of TCP connections that nobody needs any more, or perhaps never has.
#[derive(Clone, Copy)]
struct Limits {
    /// That were not answered, or that the customer did not follow up.
    opening: u32,
    /// That both sides have closed, or that were reset.
    closed: u32,
}

/// While there is room: Linux' TIME_WAIT.
const RELAXED: Limits = Limits { opening: 60, closed: 60 };
/// Where much of the table is taken: longer than a customer takes to follow up, and than a packet that was closing is sent again.
const PRESSED: Limits = Limits { opening: 5, closed: 10 };
/// Of the table's entries, the share that is taken then: one of so many.
const PRESSED_FROM: usize = 2;

/// Ticks after which one of UDP goes that was not answered.
const UNANSWERED_TICKS: u32 = 60;
/// Ticks after which one goes whose connection was closed by one side, and the other does nothing: RFC 5382 asks for four minutes.
const HALF_CLOSED_TICKS: u32 = 300;
/// Ticks after which one goes whose connection is established: above the two hours of TCP's keep-alive.
const ESTABLISHED_TICKS: u32 = 9_000;
/// Ticks after which one of UDP goes: RFC 4787 asks for at least five minutes.
const UDP_TICKS: u32 = 300;

/// Ticks after which a claim goes that nobody has followed up: who made it has stopped.
const CLAIMED_TICKS: u32 = 60;

impl TableSet {
    /// The table of translations, mapped until [`TableSet::unmap`]; `None` if it cannot be mapped, which is told.
    fn translation_table(&self) -> Option<Translations<'_, [TranslationBucket]>> {
        let buckets = self.translations.records();
        let told =
            buckets.inspect_err(|error| log::error!("the table of translations cannot be mapped: {error}"));
        Some(Translations::new(told.ok()?, self.control()?))
    }

    /// Entries that are whole.
    fn whole_translations(&self) -> impl Iterator<Item = Entry<'_>> {
        let table = self.translation_table();
        table.into_iter().flat_map(|table| {
            let whole = table.tags().filter(|(_, tag)| tag.is_valid());
            whole.filter_map(move |(location, _)| table.entry(location))
        })
    }

    /// All translations, by the packets that they are for.
    pub fn translations(&self) -> impl Iterator<Item = (TupleKey, Translation, TranslationState)> {
        self.whole_translations().filter_map(|entry| {
            let key = entry.key()?;
            let (translation, tag) = entry.read()?;
            Some((key, translation, tag.state()))
        })
    }

    /// Those of the addresses that no translated flow is sent from.
    pub fn without_flows(&self, mut sources: BTreeSet<Address>) -> BTreeSet<Address> {
        let mut answers = self.translations().filter(|(_, translation, _)| translation.reply != 0);
        while !sources.is_empty()
            && let Some((answer, ..)) = answers.next()
        {
            sources.remove(&answer.destination);
        }
        sources
    }

    /// How many translations there are.
    pub fn translation_count(&self) -> u64 {
        self.whole_translations().count() as u64
    }

    /// Whether so much of the table is taken that connections which ended or never came about are to make way sooner, by a sample.
    fn is_translating_much(&self) -> bool {
        let Some(control) = self.control() else { return false };
        let sampled = self.translations.sample(|buckets| {
            let taken = Translations::new(buckets, control).tags().count();
            taken * PRESSED_FROM > buckets.len() * TRANSLATIONS_A_BUCKET as usize
        });
        sampled.unwrap_or(false)
    }

    /// Removes the translations of connections that are closed or idle, and claims that nobody follows up; says how many
    /// translations are left.
    pub fn sweep_translations(&self, now: Tick) -> u64 {
        self.remove_ended(now, if self.is_translating_much() { PRESSED } else { RELAXED });
        self.translation_count()
    }

    /// Removes them if they take much of the table, which a flood of openings is not to fill.
    pub fn relieve_translations(&self, now: Tick) {
        if self.is_translating_much() {
            self.remove_ended(now, PRESSED);
        }
    }

    fn remove_ended(&self, now: Tick, limits: Limits) {
        let Some(table) = self.translation_table() else { return };
        for (location, tag) in table.tags() {
            let Some(entry) = table.entry(location) else { continue };
            if tag.is_valid() {
                remove_if_over(&table, &entry, tag, now, limits);
            } else if now.since(tag.state().tick) > CLAIMED_TICKS {
                entry.remove(tag);
            }
        }
    }

    /// Removes the translations to backends that are gone.
    pub(super) fn sweep_translations_of(&self, gone: impl Fn(u16) -> bool) {
        for entry in self.whole_translations() {
            if entry.read().is_some_and(|(translation, _)| gone(translation.backend)) {
                entry.remove_now();
            }
        }
    }

    /// Takes over the translations of a table of another size, whose program goes on meanwhile; those that are here were carried
    /// before, and have been used since. How many found no place.
    pub(super) fn carry_translations(&self, former: &Self) -> u64 {
        let Some(table) = self.translation_table() else { return 0 };
        let homeless = |(key, translation, state): &(TupleKey, Translation, TranslationState)| {
            let inserted = table.insert(key, translation, *state);
            if inserted == Inserted::Exists
                && let Some(entry) = table.locate(key).and_then(|at| table.entry(at))
                && entry.read().is_some_and(|(own, _)| own.reverse_key(key) == translation.reverse_key(key))
            {
                entry.catch_up(*state);
            }
            inserted == Inserted::Full
        };
        former.translations().filter(homeless).count() as u64
    }
}

/// Removes both directions of a connection that is over: first that of the customer's packets, for a packet that comes between
/// finds nothing, and not half of a connection.
fn remove_if_over(
    table: &Translations<'_, [TranslationBucket]>,
    entry: &Entry<'_>,
    tag: Tag,
    now: Tick,
    limits: Limits,
) -> Option<()> {
    let (state, age) = (tag.state(), now.since(tag.state().tick));
    // Of most it can be told by their tag alone: what ends a connection is in the other direction's, when its turn comes.
    let goes_on = state.established && !state.closing && !state.reset && age <= UDP_TICKS;
    if goes_on || age <= limits.opening.min(limits.closed) {
        return None;
    }
    let (key, (translation, _)) = (entry.key()?, entry.read()?);
    let reverse = table.locate(&translation.reverse_key(&key)).and_then(|at| table.entry(at));
    // What leads elsewhere is another connection's: this half is left over.
    let other = reverse.and_then(|reverse| {
        let (back, tag) = reverse.read()?;
        (back.reverse_key(&key) == key).then_some((reverse, tag))
    });
    let own = (*entry, tag);
    let [first, second] = if translation.reply != 0 { [other, Some(own)] } else { [Some(own), other] };
    let states = [first, second].map(|direction| direction.map(|(_, tag)| tag.state()));
    if !is_over(key.protocol(), states, now, limits) {
        return None;
    }
    if first.is_none_or(|(entry, tag)| entry.remove(tag))
        && let Some((entry, tag)) = second
    {
        entry.remove(tag);
    }
    Some(())
}

/// Whether a connection is over, by the states of both directions: the customer's packets and the answers.
fn is_over(
    protocol: Protocol,
    [customers, answers]: [Option<TranslationState>; 2],
    now: Tick,
    limits: Limits,
) -> bool {
    let tcp = protocol == Protocol::TCP;
    let opening = if tcp { limits.opening } else { UNANSWERED_TICKS };
    let (Some(sent), Some(answered)) = (customers, answers) else {
        // One that stands alone was just made, or left over.
        return customers.or(answers).is_none_or(|alone| now.since(alone.tick) > opening);
    };
    // The direction that was used last counts for both, but where one has not followed up: an answer that is sent again and again
    // shows nothing of the customer, whose address may be invented.
    let idle = match (sent.established, answered.established) {
        (false, true) if tcp => now.since(sent.tick),
        (true, false) if tcp => now.since(answered.tick),
        _ => now.since(sent.tick).min(now.since(answered.tick)),
    };
    let limit = match (sent.closing, answered.closing) {
        _ if sent.reset || answered.reset => limits.closed,
        _ if !tcp && answered.established => UDP_TICKS,
        _ if !(tcp && sent.established && answered.established) => opening,
        (true, true) => limits.closed,
        (false, false) => ESTABLISHED_TICKS,
        _ => HALF_CLOSED_TICKS,
    };
    idle > limit
}

#[cfg(test)]
mod tests {
    use lb_common::net::{Be16, Ports, Tuple};

    use super::*;
    use crate::io::datapath::{Datapath, Memory, capacity_for};

    const NOW: Tick = Tick(100_000);

    fn is_over(
        protocol: Protocol,
        own: TranslationState,
        other: Option<TranslationState>,
        now: Tick,
    ) -> bool {
        super::is_over(protocol, [Some(own), other], now, RELAXED)
    }

    fn state(age: u32, established: bool, closing: bool, reset: bool) -> TranslationState {
        TranslationState { tick: NOW.0 - age, established, closing, reset, fresh: false }
    }

    #[test]
    fn translations_end_by_how_far_their_connection_has_come() {
        let over = |protocol, age, closing, answered| {
            let own = state(age, true, closing, false);
            is_over(protocol, own, Some(state(age, answered, closing, false)), NOW)
        };
        assert!(!over(Protocol::TCP, 9_000, false, true), "idle for less than the keep-alive");
        assert!(over(Protocol::TCP, 9_001, false, true));
        assert!(!over(Protocol::TCP, 60, true, true), "closed just now");
        assert!(over(Protocol::TCP, 61, true, true));
        assert!(over(Protocol::TCP, 61, false, false), "never answered");
        assert!(!over(Protocol::UDP, 300, false, true));
        assert!(over(Protocol::UDP, 301, false, true));
        // What one side still uses is not idle, whatever the other does.
        let idle = state(10_000, true, false, false);
        assert!(!is_over(Protocol::TCP, idle, Some(state(5, true, false, false)), NOW));
        let half = Some(state(100, true, false, false));
        assert!(is_over(Protocol::TCP, state(100, true, false, true), half, NOW), "reset");
        assert!(is_over(Protocol::TCP, state(61, true, false, false), None, NOW), "left over");
    }

    #[test]
    fn an_answered_syn_that_is_not_followed_up_is_no_connection() {
        let [syn, answered] = [false, true].map(|established| state(61, established, false, false));
        assert!(is_over(Protocol::TCP, syn, Some(answered), NOW));
        let again = state(3, true, false, false);
        assert!(is_over(Protocol::TCP, syn, Some(again), NOW), "answered again and again");
        assert!(!is_over(Protocol::TCP, state(3, false, false, false), Some(answered), NOW), "asked again");
        assert!(!is_over(Protocol::UDP, again, Some(syn), NOW), "datagrams that nobody answers");
        let [asked, answered] = [false, true].map(|established| state(300, established, false, false));
        assert!(!is_over(Protocol::UDP, asked, Some(answered), NOW), "one datagram, and one in answer");
        assert!(is_over(Protocol::UDP, asked, Some(asked), NOW), "one that nobody answered");
    }

    #[test]
    fn a_connection_that_one_side_has_closed_goes_once_the_other_is_silent() {
        let states = |age| [true, false].map(|closing| state(age, true, closing, false));
        for [own, other] in [states(300), states(301)] {
            let over = NOW.since(other.tick) > 300;
            assert_eq!(is_over(Protocol::TCP, own, Some(other), NOW), over);
            assert_eq!(is_over(Protocol::TCP, other, Some(own), NOW), over);
        }
        let [closed, open] = [state(4_000, true, true, false), state(3, true, false, false)];
        assert!(!is_over(Protocol::TCP, closed, Some(open), NOW), "a long download after a request's end");
    }

    #[test]
    fn packets_of_a_tick_that_has_begun_during_a_sweep_keep_their_connection() {
        let ahead = TranslationState { tick: NOW.0 + 1, ..state(0, true, false, false) };
        assert!(!is_over(Protocol::TCP, ahead, Some(ahead), NOW));
        assert!(!is_over(Protocol::TCP, ahead, None, NOW), "the first of two that are just made");
    }

    /// A customer's key and what it leads to, by the port that it is sent on from.
    fn connection(port: u16) -> [(TupleKey, Translation); 2] {
        let address = |host| Address::v4([10, 0, 0, host]);
        let tuple = |from, to, ports| Tuple {
            source: address(from),
            destination: address(to),
            ports,
            protocol: Protocol::TCP,
        };
        let arrives = tuple(1, 2, Ports::of(Be16::new(40_000), Be16::new(80)));
        let leaves = tuple(3, 4, Ports::of(Be16::new(port), Be16::new(80)));
        let translation = |to: Tuple, reply| Translation {
            source: to.source,
            destination: to.destination,
            ports: to.ports.word(),
            reply,
            ..Translation::default()
        };
        let answer = leaves.reversed();
        [
            (TupleKey::of(&arrives), translation(leaves, 0)),
            (TupleKey::of(&answer), translation(arrives.reversed(), 1)),
        ]
    }

    #[test]
    fn half_of_another_connection_is_not_what_ends_one() {
        let memory = Memory::new(capacity_for(1, 1, 1, 4_096, 64), 0);
        let tables = memory.tables();
        let ([customers, answers], [_, left_over]) = (connection(2_000), connection(3_000));
        for ((key, translation), state) in [
            (customers, state(100, true, false, false)),
            (answers, state(100, true, false, false)),
            (left_over, state(100, false, false, false)),
        ] {
            let table = tables.translation_table().unwrap();
            assert_eq!(table.insert(&key, &translation, state), Inserted::Done);
        }
        assert_eq!(tables.sweep_translations(NOW), 2);
        let left: BTreeSet<_> = tables.translations().map(|(key, ..)| key).collect();
        assert_eq!(left, [customers.0, answers.0].into());
    }

    #[test]
    fn what_a_connection_did_in_the_former_table_meanwhile_is_known() {
        let [former, new] = [64, 128].map(|size| Memory::new(capacity_for(1, 1, 1, 4_096, size), 0));
        let [(key, translation), _] = connection(2_000);
        let table = former.tables().translation_table().unwrap();
        table.insert(&key, &translation, state(5, false, false, false));
        assert_eq!(new.tables().carry_translations(former.tables()), 0);
        let entry = table.entry(table.locate(&key).unwrap()).unwrap();
        entry.catch_up(state(3, true, false, false));
        assert_eq!(new.tables().carry_translations(former.tables()), 0);
        let [(.., known)] = new.tables().translations().collect::<Vec<_>>()[..] else { panic!("one") };
        assert_eq!(known, state(3, true, false, false));
    }

    #[test]
    fn connections_that_never_came_about_make_way_sooner_in_a_table_that_fills_up() {
        // More buckets than are looked at to tell.
        const HALF: u32 = 16_384;
        let memory = Memory::new(capacity_for(1, 1, 1, 4_096, HALF), 0);
        let tables = memory.tables();
        let insert = |ports, state| {
            let key = TupleKey { ports, protocol: Protocol::TCP.0.into(), ..TupleKey::default() };
            let inserted = tables.translation_table().unwrap().insert(&key, &Translation::default(), state);
            assert!(inserted == Inserted::Done);
        };
        let half_open = state(PRESSED.opening + 1, false, false, false);
        (0..HALF * 8 / 10).for_each(|port| insert(port, half_open));
        assert_eq!(tables.sweep_translations(NOW), u64::from(HALF * 8 / 10), "there is room");
        (HALF * 8 / 10..HALF * 12 / 10).for_each(|port| insert(port, half_open));
        insert(u32::MAX, state(PRESSED.opening, false, false, false));
        assert_eq!(tables.sweep_translations(NOW), 1, "what has just begun stays");
        let closed = |age| {
            let own = state(age, true, true, false);
            super::is_over(Protocol::TCP, [Some(own); 2], NOW, PRESSED)
        };
        assert_eq!([10, 11].map(closed), [false, true]);
        let open = state(9_000, true, false, false);
        assert!(!super::is_over(Protocol::TCP, [Some(open); 2], NOW, PRESSED), "established");
        assert!(!super::is_over(Protocol::UDP, [Some(half_open); 2], NOW, PRESSED), "a slow answer");
        let reset = state(11, true, false, true);
        assert!(super::is_over(Protocol::TCP, [Some(reset), Some(open)], NOW, PRESSED));
    }
}
