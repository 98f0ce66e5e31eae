//! A ramp never falls, ends at the weight, and takes the steps it announces.

use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_ramp_grows_linearly_in_steps() {
    let ramp = Ramp::new(ms(1_000), ms(2_000));
    let weights = [0, 1_000, 1_499, 1_500, 2_000, 2_500, 2_999, 3_000, 9_000];
    let weights = weights.map(|now| weight(100, 1, ramp.share(ms(now))));
    assert_eq!(weights, [20, 20, 20, 40, 60, 80, 80, 100, 100]);
    assert_eq!(ramp.next_step(ms(1_000)), Some(ms(1_500)));
    assert_eq!(ramp.next_step(ms(2_999)), Some(ms(3_000)));
    assert_eq!(ramp.next_step(ms(3_000)), None);
}

/// Whoever waits for the last step may have been late: then nothing would ever come.
#[test]
fn a_ramp_that_has_ended_is_due_at_once() {
    let ramp = Ramp::new(ms(1_000), ms(2_000));
    let due = [1_000, 2_999, 3_000, 9_000].map(|now| ramp.due(ms(now)));
    assert_eq!(due, [1_500, 3_000, 3_000, 9_000].map(ms));
}

#[test]
fn small_weights_have_steps_too() {
    let scale = scale(1);
    let ramp = Ramp::new(ms(0), ms(10_000));
    let first = weight(1, scale, ramp.share(ms(0)));
    assert_eq!((first, weight(1, scale, None)), (1, 21));
    assert_eq!(super::scale(u16::MAX), 1);
    assert_eq!(super::scale(0), 1);
    assert_eq!(weight(0, 21, ramp.share(ms(0))), 0);
}

proptest! {
    #[test]
    fn a_ramp_is_monotone_and_ends_at_the_weight(
        began in 0_u64..100_000, length in 0_u64..4_000_000, full in 0_u16.., greatest in 0_u16.., mut times in
        prop::collection::vec(0_u64..5_000_000, 1..40),
    ) {
        let (full, greatest) = (full.min(greatest), full.max(greatest));
        let ramp = Ramp::new(ms(began), ms(length));
        let scale = scale(greatest);
        let whole = weight(full, scale, None);
        prop_assert_eq!(u32::from(whole), u32::from(full) * u32::from(scale));
        times.sort_unstable();
        let mut before = 0;
        for now in times {
            let weight = weight(full, scale, ramp.share(ms(now)));
            prop_assert!(before <= weight && weight <= whole, "{} then {} of {}", before, weight, whole);
            prop_assert_eq!(weight == 0, full == 0);
            if now >= began + length {
                prop_assert_eq!(weight, whole);
            }
            before = weight;
        }
    }

    #[test]
    fn the_next_step_is_where_the_share_grows(length in 500_u64..4_000_000, now in 0_u64..4_000_000) {
        let ramp = Ramp::new(ms(0), ms(length));
        let Some(next) = ramp.next_step(ms(now)) else {
            prop_assert!(now >= length);
            return Ok(());
        };
        prop_assert!(next > ms(now));
        let just_before = next - Duration::from_nanos(1);
        prop_assert_eq!(ramp.share(just_before), ramp.share(ms(now)));
        prop_assert_ne!(ramp.share(next), ramp.share(ms(now)));
    }
}
