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

#[cfg(test)]
mod tests;

const SLOTS: u32 = RING_SIZE as u32;
const BITS: usize = u64::BITS as usize;

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
    let mut counts = vec![0_usize; usize::from(u16::MAX) + 1];
    for &id in &ring.slots {
        if let Some(count) = counts.get_mut(usize::from(id)) {
            *count += 1;
        }
    }
    (0..=u16::MAX).zip(counts).filter(|(_, count)| *count > 0).collect()
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

    let mut slots = vec![0_u16; RING_SIZE];
    let mut free = FreeSlots::new();
    for turn in turns(&claims) {
        let claim = claims.get_mut(turn)?;
        while !free.claim(claim.next_slot) {
            claim.advance();
        }
        *slots.get_mut(claim.next_slot as usize)? = claim.id;
        claim.advance();
    }
    if claims.is_empty() {
        return None;
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
        }
    }

    fn advance(&mut self) {
        // Both are below SLOTS, so one subtraction does for a division.
        self.next_slot += self.skip;
        if self.next_slot >= SLOTS {
            self.next_slot -= SLOTS;
        }
    }
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
/// earned a whole turn takes it. With equal weights that is one turn a round for each. The rounds of all turns
/// are computed and sorted, for most rounds are idle ones where weights differ much.
fn turns(claims: &[Claim]) -> Vec<usize> {
    let greatest = claims.iter().map(|claim| claim.weight).max().unwrap_or(0);
    let mut in_round: Vec<(u64, usize)> = Vec::with_capacity(RING_SIZE);
    for (index, claim) in claims.iter().enumerate() {
        let round = |turn: u64| ((2 * turn - 1) * greatest).div_ceil(2 * claim.weight);
        in_round.extend((1..=claim.quota).map(|turn| (round(turn), index)));
    }
    in_round.sort();
    in_round.into_iter().map(|(_, index)| index).collect()
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
}
