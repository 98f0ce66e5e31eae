//! Backends and weights → a Maglev ring: the table that says which backend takes a new flow.
//!
//! The algorithm is Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI '16, section 3.4): every backend has its own order of preference over all slots, and
//! backends take turns to claim the slot they like best of those still free. A backend that comes or goes
//! therefore leaves most slots of the others alone. Weights decide how often a backend's turn comes.
//!
//! Everything derives from the seed and the backends' names and weights, so that all nodes with the same
//! configuration build the same ring, whatever ids they gave the backends and in whatever order.

use std::collections::BTreeMap;

use lb_common::abi::{RING_SIZE, Ring};
use siphasher::sip::SipHasher13;

mod recipe;
#[cfg(test)]
mod tests;

pub use recipe::{Known, Origin, Planned, Recipe, fingerprint};

const SLOTS: u32 = RING_SIZE as u32;
const BITS: usize = u64::BITS as usize;
/// So many slots are dealt out last by computing which free one comes first in a backend's order. With few left, that is
/// less than going through the order until one is met.
const SEARCHED: usize = 256;

/// A backend that may take slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its identity: decides where its slots are. Unique in its service.
    pub name: &'a str,
    /// What its slots hold.
    pub id: u16,
    /// Its share relative to the others'; 0 takes no slot.
    pub weight: u16,
}

/// How many slots each backend id has; ids without slots are absent.
pub fn slots_by_id(ring: &Ring) -> BTreeMap<u16, usize> {
    let greatest = ring.slots.iter().copied().max().unwrap_or(0);
    let mut counts = vec![0_usize; usize::from(greatest) + 1];
    for &id in &ring.slots {
        if let Some(count) = counts.get_mut(usize::from(id)) {
            *count += 1;
        }
    }
    (0..=greatest).zip(counts).filter(|(_, count)| *count > 0).collect()
}

/// How many slots have another owner in `new` than in `old`: the share of new flows that would move.
pub fn changed_slots(old: &[u16], new: &[u16]) -> usize {
    let differing = old.iter().zip(new).filter(|(old, new)| old != new).count();
    differing + old.len().abs_diff(new.len())
}

/// Builds the ring of `members`; `None` when none of them has weight.
///
/// Every member's number of slots is within one of its exact share, so one whose exact share is less than a
/// slot may get none.
pub fn build(seed: u64, members: &[Member<'_>]) -> Option<Box<Ring>> {
    let mut claims: Vec<Claim> =
        members.iter().filter(|member| member.weight > 0).map(|member| Claim::new(seed, member)).collect();
    // An order that all nodes agree on, and that favours no name in every service alike.
    claims.sort_unstable_by_key(|claim| (claim.hash, claim.id));
    apportion(&mut claims);

    if claims.is_empty() {
        return None;
    }
    let mut slots = vec![0_u16; RING_SIZE];
    let turns = turns(&claims);
    let (first, last) = turns.split_at(turns.len().saturating_sub(SEARCHED));
    let mut free = FreeSlots::new();
    for &turn in first {
        let claim = claims.get_mut(turn as usize)?;
        while !free.claim(claim.next_slot) {
            claim.advance();
        }
        *slots.get_mut(claim.next_slot as usize)? = claim.id;
        claim.advance();
    }
    let mut left = free.left();
    for &turn in last {
        let claim = claims.get_mut(turn as usize)?;
        let nearest = (0..left.len()).min_by_key(|&at| left.get(at).map(|&slot| claim.steps_to(slot)))?;
        let slot = left.swap_remove(nearest);
        *slots.get_mut(slot as usize)? = claim.id;
        claim.next_slot = slot;
        claim.advance();
    }
    let slots: Box<[u16; RING_SIZE]> = slots.into_boxed_slice().try_into().ok()?;
    Some(Box::new(Ring { slots: *slots }))
}

/// A member with weight, and its way through the slots: `offset`, `offset + skip`, `offset + 2 skip`, …
struct Claim {
    id: u16,
    weight: u64,
    hash: (u64, u64),
    /// Slots it is to have.
    quota: u64,
    next_slot: u32,
    skip: u32,
    /// What `skip` must be multiplied with to become 1, once it was asked for; 0 before.
    inverse: u32,
}

impl Claim {
    fn new(seed: u64, member: &Member<'_>) -> Self {
        // The second key keeps the two hashes apart; the values are arbitrary, but all nodes must agree on them.
        let hash = |purpose: u64| SipHasher13::new_with_keys(seed, purpose).hash(member.name.as_bytes());
        let (offset_hash, skip_hash) = (hash(1), hash(2));
        Self {
            id: member.id,
            weight: u64::from(member.weight),
            hash: (offset_hash, skip_hash),
            quota: 0,
            next_slot: (offset_hash % u64::from(SLOTS)) as u32,
            skip: (skip_hash % u64::from(SLOTS - 1)) as u32 + 1,
            inverse: 0,
        }
    }

    fn advance(&mut self) {
        // Both are below SLOTS, so one subtraction does for a division.
        self.next_slot += self.skip;
        if self.next_slot >= SLOTS {
            self.next_slot -= SLOTS;
        }
    }

    /// After how many times [`Claim::advance`] the next slot is this one.
    fn steps_to(&mut self, slot: u32) -> u32 {
        if self.inverse == 0 {
            self.inverse = inverse(self.skip);
        }
        modulo(u64::from(slot + SLOTS - self.next_slot) * u64::from(self.inverse))
    }
}

fn modulo(value: u64) -> u32 {
    (value % u64::from(SLOTS)) as u32
}

/// The inverse of a number that is not 0 modulo the number of slots, which is prime: its power by that minus 2 (Fermat).
fn inverse(number: u32) -> u32 {
    let (mut power, mut square, mut exponent) = (1, number, SLOTS - 2);
    while exponent > 0 {
        if exponent % 2 == 1 {
            power = modulo(u64::from(power) * u64::from(square));
        }
        square = modulo(u64::from(square) * u64::from(square));
        exponent /= 2;
    }
    power
}

/// Deals the slots out by weight: everyone gets the whole part of its exact share, and the slots left over go
/// to those with the largest fractions.
fn apportion(claims: &mut [Claim]) {
    let total: u64 = claims.iter().map(|claim| claim.weight).sum();
    if total == 0 {
        return;
    }
    let mut fractions = Vec::with_capacity(claims.len());
    let mut left = u64::from(SLOTS);
    for (index, claim) in claims.iter_mut().enumerate() {
        let share = u64::from(SLOTS) * claim.weight;
        claim.quota = share / total;
        left -= claim.quota;
        fractions.push((share % total, index));
    }
    // Largest first; among equals the order of the claims decides.
    fractions.sort_unstable_by_key(|&(fraction, index)| (std::cmp::Reverse(fraction), index));
    for (_, index) in fractions.into_iter().take(left as usize) {
        if let Some(claim) = claims.get_mut(index) {
            claim.quota += 1;
        }
    }
}

/// The order of turns, as indexes into `claims`.
///
/// In every round a claim earns `weight / greatest weight` of a turn, starting with half a one; whoever has
/// earned a whole turn takes it. With equal weights that is one turn a round for each. Within a round the order of the
/// claims decides.
fn turns(claims: &[Claim]) -> Vec<u32> {
    let greatest = claims.iter().map(|claim| claim.weight).max().unwrap_or(0);
    let last = claims.iter().filter(|claim| claim.quota > 0);
    let last = last.map(|claim| Rounds::round(greatest, claim, claim.quota)).max().unwrap_or(0);
    // Sorted by counting: first how many turns each round has, then where each round's first one stands.
    let mut places = vec![0_u32; last as usize + 1];
    for claim in claims {
        for round in Rounds::new(greatest, claim) {
            if let Some(count) = places.get_mut(round) {
                *count += 1;
            }
        }
    }
    let mut sum = 0;
    for place in &mut places {
        sum += std::mem::replace(place, sum);
    }
    let mut turns = vec![0; sum as usize];
    for (index, claim) in (0..).zip(claims) {
        for round in Rounds::new(greatest, claim) {
            let Some(place) = places.get_mut(round) else { continue };
            if let Some(turn) = turns.get_mut(*place as usize) {
                *turn = index;
            }
            *place += 1;
        }
    }
    turns
}

/// The rounds in which a claim takes its turns, one after the other. That of the n-th one is `(2 n - 1) greatest / (2 weight)`,
/// rounded up; from one to the next it grows by the same fraction, so that no further division is needed.
struct Rounds {
    left: u64,
    round: u64,
    /// Of the numerator, rounding included, what is beyond whole rounds.
    rest: u64,
    step: (u64, u64),
    divisor: u64,
}

impl Rounds {
    fn new(greatest: u64, claim: &Claim) -> Self {
        let divisor = 2 * claim.weight.max(1);
        let first = greatest + divisor - 1;
        let step = (2 * greatest / divisor, 2 * greatest % divisor);
        Self { left: claim.quota, round: first / divisor, rest: first % divisor, step, divisor }
    }

    /// The round of the n-th turn.
    fn round(greatest: u64, claim: &Claim, turn: u64) -> u64 {
        ((2 * turn - 1) * greatest).div_ceil(2 * claim.weight.max(1))
    }
}

impl Iterator for Rounds {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let round = self.round;
        self.round += self.step.0;
        self.rest += self.step.1;
        if self.rest >= self.divisor {
            self.rest -= self.divisor;
            self.round += 1;
        }
        Some(round as usize)
    }
}

/// One bit a slot: set while the slot is free.
struct FreeSlots([u64; RING_SIZE.div_ceil(BITS)]);

impl FreeSlots {
    fn new() -> Self {
        Self([u64::MAX; RING_SIZE.div_ceil(BITS)])
    }

    /// Takes a slot; false when it was taken before. A slot beyond the ring, which no claim has, counts as
    /// claimed, so that nothing can loop for ever over it.
    fn claim(&mut self, slot: u32) -> bool {
        let bit = 1_u64 << (slot as usize % BITS);
        let Some(word) = self.0.get_mut(slot as usize / BITS) else { return true };
        let was_free = *word & bit != 0;
        *word &= !bit;
        was_free
    }
    /// The slots that are free.
    fn left(&self) -> Vec<u32> {
        let is_free = |slot: &u32| {
            let word = self.0.get(*slot as usize / BITS);
            word.is_some_and(|word| word & 1 << (*slot as usize % BITS) != 0)
        };
        (0..SLOTS).filter(is_free).collect()
    }
}
