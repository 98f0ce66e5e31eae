//! The properties a ring must have, measured on rings of 1 to 1,000 backends.

use proptest::prelude::*;

use super::*;

const COUNTS: [usize; 5] = [2, 3, 10, 100, 1_000];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("web{n}")).collect()
}

/// Members with ids in order, and the weights given by `weight`.
fn members(names: &[String], weight: impl Fn(usize) -> u16) -> Vec<Member<'_>> {
    names.iter().enumerate().map(|(n, name)| Member { name, id: n as u16, weight: weight(n) }).collect()
}

/// Weights that look random but are the same in every run.
fn scattered_weight(n: usize) -> u16 {
    1 + (n.wrapping_mul(40_503) % 1_000) as u16
}

fn ring(members: &[Member<'_>]) -> Box<Ring> {
    build(7, members).unwrap()
}

/// Slots that changed owner beyond those that had to, because their owner's share shrank.
fn moved_needlessly(old: &Ring, new: &Ring) -> usize {
    let after = slots_by_id(new);
    let lost = |(id, before): (u16, usize)| before.saturating_sub(after.get(&id).copied().unwrap_or(0));
    let needed: usize = slots_by_id(old).into_iter().map(lost).sum();
    changed_slots(&old.slots, &new.slots) - needed
}

/// Asserts every member's share within a slot of the exact one.
#[track_caller]
fn assert_balanced(members: &[Member<'_>]) {
    let counts = slots_by_id(&ring(members));
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    for member in members {
        let found = counts.get(&member.id).copied().unwrap_or(0) as f64;
        let exact = RING_SIZE as f64 * f64::from(member.weight) / total;
        assert!(
            (found - exact).abs() < 1.0,
            "{member:?} of {}: {found} slots, exactly {exact}",
            members.len()
        );
        // What users see: 1 % of the share, wherever a slot is less than that.
        assert!(exact < 100.0 || (found / exact - 1.0).abs() < 0.01);
    }
    assert_eq!(counts.values().sum::<usize>(), RING_SIZE);
}

#[test]
fn without_weight_there_is_no_ring() {
    assert!(build(0, &[]).is_none());
    assert!(build(0, &[Member { name: "a", id: 1, weight: 0 }]).is_none());
}

#[test]
fn one_member_has_every_slot() {
    let ring = build(0, &[Member { name: "a", id: 65_535, weight: 1 }]).unwrap();
    assert!(ring.slots.iter().all(|&id| id == 65_535));
}

#[test]
fn shares_follow_equal_weights() {
    for count in COUNTS {
        assert_balanced(&members(&names(count), |_| 100));
    }
}

#[test]
fn shares_follow_any_weights() {
    for count in COUNTS {
        assert_balanced(&members(&names(count), scattered_weight));
        assert_balanced(&members(&names(count), |n| if n == 0 { u16::MAX } else { 1 }));
        assert_balanced(&members(&names(count), |n| if n % 2 == 0 { 0 } else { 50 }));
    }
}

/// No backend owns a stretch of the ring: whatever part of it a client's flows fall on, shares hold there.
#[test]
fn shares_hold_in_every_part_of_the_ring() {
    let names = names(10);
    let ring = ring(&members(&names, |_| 100));
    for part in ring.slots.chunks_exact(RING_SIZE / 8) {
        for id in 0..10 {
            let share = part.iter().filter(|&&owner| owner == id).count() as f64 / part.len() as f64;
            assert!((0.085..0.115).contains(&share), "{id}: {share}");
        }
    }
}

/// Measured: at most 0.9 % of all slots move beyond those of the backend removed.
#[test]
fn removing_a_backend_moves_few_slots_of_others() {
    const MOVED_MAX: usize = RING_SIZE / 80;
    for count in COUNTS {
        let names = names(count);
        for weights in [|_| 100, scattered_weight] {
            let all = members(&names, weights);
            let full = ring(&all);
            for gone in (0..count).step_by(count.div_ceil(4)) {
                let mut rest = all.clone();
                rest.remove(gone);
                let moved = moved_needlessly(&full, &ring(&rest));
                assert!(moved <= MOVED_MAX, "{moved} moved removing {gone} of {count}");
                // Adding it again is the same change backwards.
                assert!(moved_needlessly(&ring(&rest), &full) <= MOVED_MAX);
            }
        }
    }
}

/// Measured: at most 0.6 %.
#[test]
fn a_new_weight_moves_few_slots_of_others() {
    const MOVED_MAX: usize = RING_SIZE / 100;
    for count in COUNTS {
        let names = names(count);
        let before = members(&names, |_| 100);
        for weight in [1, 50, 99, 150] {
            let mut after = before.clone();
            after[count / 2].weight = weight;
            let moved = moved_needlessly(&ring(&before), &ring(&after));
            assert!(moved <= MOVED_MAX, "{moved} moved with weight {weight} of {count}");
        }
    }
}

/// Weights are relative: doubling them all changes nothing.
#[test]
fn only_the_ratio_of_weights_counts() {
    let names = names(10);
    let single = members(&names, scattered_weight);
    let double = members(&names, |n| 2 * scattered_weight(n));
    assert_eq!(ring(&single), ring(&double));
}

#[test]
fn the_order_of_members_does_not_matter() {
    let names = names(100);
    let mut shuffled = members(&names, scattered_weight);
    let in_order = ring(&shuffled);
    shuffled.sort_by_key(|member| member.id.reverse_bits());
    assert_eq!(ring(&shuffled), in_order);
}

#[test]
fn ids_are_only_labels() {
    let names = names(10);
    let plain = members(&names, scattered_weight);
    let relabelled: Vec<_> = plain.iter().map(|member| Member { id: 1_000 - member.id, ..*member }).collect();
    let expected: Vec<u16> = ring(&plain).slots.iter().map(|id| 1_000 - id).collect();
    assert_eq!(ring(&relabelled).slots.as_slice(), expected);
}

#[test]
fn the_seed_decides_where_slots_are() {
    let names = names(10);
    let members = members(&names, |_| 100);
    let (one, other) = (build(1, &members).unwrap(), build(2, &members).unwrap());
    let changed = changed_slots(&one.slots, &other.slots);
    // Unrelated rings of ten agree in a tenth of the slots.
    assert!((0.85..0.95).contains(&(changed as f64 / RING_SIZE as f64)), "{changed}");
}

/// Nodes of different versions must choose alike: should this fail, flows move when a site is upgraded one
/// node at a time. The values come from a second implementation that simulates the credits round by round.
#[test]
fn rings_never_change_between_versions() {
    let hash = |ring: &Ring| {
        let bytes: Vec<u8> = ring.slots.iter().flat_map(|id| id.to_le_bytes()).collect();
        SipHasher13::new().hash(&bytes)
    };
    let names = names(100);
    assert_eq!(hash(&build(0, &members(&names, |_| 100)).unwrap()), 7_811_583_327_727_020_416);
    assert_eq!(hash(&build(42, &members(&names, scattered_weight)).unwrap()), 8_981_869_609_055_883_187);
}

/// By its recipe a ring is known without being built.
#[test]
fn equal_recipes_make_equal_rings_and_others_other_ones() {
    let names = names(10);
    let recipe = |seed, members: &[Member<'_>]| Recipe::new(seed, members.iter().copied()).unwrap();
    let mut listed = members(&names, |n| 2 * (n as u16 + 1));
    let one = recipe(7, &listed);
    assert_eq!(one.build().unwrap().slots, ring(&listed).slots);
    listed.reverse();
    listed.push(Member { name: "without", id: 77, weight: 0 });
    assert_eq!(recipe(7, &listed), one, "neither order nor what has no weight counts");
    let halved: Vec<_> =
        listed.iter().map(|member| Member { weight: member.weight / 2, ..*member }).collect();
    assert_eq!(recipe(7, &halved), one, "only the ratio of weights does");
    listed[3].weight += 1;
    let known = Known::of(&one.build().unwrap());
    let told = |recipe: &Recipe| Origin::Fingerprint(fingerprint(&recipe.build().unwrap()));
    assert_eq!(told(&one), known.origin);
    for other in [recipe(8, &halved), recipe(7, &listed), recipe(7, &halved[1..])] {
        assert_ne!(other, one);
        assert_ne!(told(&other), known.origin);
    }
    assert_eq!(known.slots, slots_by_id(&ring(&halved)));
    assert!(Recipe::new(7, [Member { name: "a", id: 1, weight: 0 }].into_iter()).is_none());
}

#[test]
fn changed_slots_are_counted() {
    assert_eq!(changed_slots(&[1, 2, 3], &[1, 2, 3]), 0);
    assert_eq!(changed_slots(&[1, 2, 3], &[3, 2, 1]), 2);
    assert_eq!(changed_slots(&[], &[1, 2, 3]), 3);
    assert_eq!(changed_slots(&[1, 2, 3], &[1]), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_weights_are_balanced(weights in proptest::collection::vec(any::<u16>(), 1..60), seed: u64) {
        let names = names(weights.len());
        let members = members(&names, |n| weights[n]);
        if weights.iter().all(|&weight| weight == 0) {
            prop_assert_eq!(build(seed, &members), None);
        } else {
            assert_balanced(&members);
            let mut reversed = members.clone();
            reversed.reverse();
            prop_assert_eq!(build(seed, &members), build(seed, &reversed));
        }
    }

    /// Draining, killing or re-weighting one of several never disturbs more than a few of the others' slots.
    #[test]
    fn any_one_change_moves_few_slots_of_others(
        weights in proptest::collection::vec(1..=1_000_u16, 2..60),
        changed in any::<prop::sample::Index>(),
        weight in 0..=1_000_u16,
    ) {
        let names = names(weights.len());
        let before = members(&names, |n| weights[n]);
        let mut after = before.clone();
        after[changed.index(weights.len())].weight = weight;
        let moved = moved_needlessly(&ring(&before), &ring(&after));
        prop_assert!(moved <= RING_SIZE / 50, "{} moved", moved);
    }
}
