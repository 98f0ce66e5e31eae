//! What a ring is built from, and what is kept of it: agents keep these rather than the rings, each of which takes 131 KB.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use lb_common::abi::Ring;
use siphasher::sip::SipHasher13;

use super::{Member, build, slots_by_id};

/// What a ring is built from. Two that are equal make the same ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    seed: u64,
    /// Name, id and weight of each member that has weight, in the order of their names; the weights have no common divisor.
    members: Vec<(String, u16, u16)>,
}

impl Recipe {
    /// The recipe of a ring of these members; `None` if none of them has weight.
    pub fn new<'a>(seed: u64, members: impl Iterator<Item = Member<'a>>) -> Option<Self> {
        let members = members.filter(|member| member.weight > 0);
        let mut members: Vec<(String, u16, u16)> =
            members.map(|member| (member.name.to_owned(), member.id, member.weight)).collect();
        members.sort_unstable();
        let divisor = members.iter().map(|(.., weight)| *weight).reduce(greatest_common_divisor)?;
        for (.., weight) in &mut members {
            *weight /= divisor.max(1);
        }
        Some(Self { seed, members })
    }

    /// Builds the ring.
    pub fn build(&self) -> Option<Arc<Ring>> {
        let members = self.members.iter().map(|(name, id, weight)| Member { name, id: *id, weight: *weight });
        let members: Vec<Member<'_>> = members.collect();
        build(self.seed, &members).map(Arc::from)
    }
}

fn greatest_common_divisor(mut a: u16, mut b: u16) -> u16 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A ring that is to be loaded: built when it is asked for.
#[derive(Debug)]
pub struct Planned {
    recipe: Arc<Recipe>,
    kept: OnceLock<Arc<Ring>>,
    slots: OnceLock<BTreeMap<u16, usize>>,
}

impl Planned {
    /// A ring of this recipe.
    pub fn new(recipe: Arc<Recipe>) -> Self {
        Self { recipe, kept: OnceLock::new(), slots: OnceLock::new() }
    }

    /// What it is built from.
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// The ring.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.kept.get().cloned().or_else(|| self.recipe.build())
    }

    /// The ring, which is kept for whoever asks for it next.
    pub fn keep(&self) -> Option<Arc<Ring>> {
        let ring = self.ring()?;
        Some(Arc::clone(self.kept.get_or_init(|| ring)))
    }

    /// What is known of it, which is this ring, once it is loaded.
    pub fn known(&self, ring: &Ring) -> Known {
        let slots = self.slots.get_or_init(|| slots_by_id(ring)).clone();
        Known { origin: Origin::Recipe(Arc::clone(&self.recipe)), slots }
    }
}

/// By what a loaded ring is told from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was built from this.
    Recipe(Arc<Recipe>),
    /// Another agent has loaded it: the [`fingerprint`] of its contents.
    Fingerprint(u64),
}

/// What is known of a loaded ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What makes it the ring it is.
    pub origin: Origin,
    /// How many slots each backend id has; ids without slots are absent.
    pub slots: BTreeMap<u16, usize>,
}

impl Known {
    /// What there is to know of a ring that another agent has loaded.
    pub fn of(ring: &Ring) -> Self {
        Self { origin: Origin::Fingerprint(fingerprint(ring)), slots: slots_by_id(ring) }
    }
}

/// A hash of a ring's contents.
pub fn fingerprint(ring: &Ring) -> u64 {
    let bytes: Vec<u8> = ring.slots.iter().flat_map(|id| id.to_le_bytes()).collect();
    SipHasher13::new().hash(&bytes)
}
