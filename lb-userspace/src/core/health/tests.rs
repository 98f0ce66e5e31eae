//! Every state and event of the monitor in a table, and the rules of serving.

use proptest::prelude::*;

use super::Health::{Healthy, Unhealthy, Unknown};
use super::*;

const UP: Result<(), &str> = Ok(());
const DOWN: Result<(), &str> = Err("connection refused");

fn result(result: Result<(), &str>) -> Result<(), String> {
    result.map_err(str::to_owned)
}

/// Judged by these, without regard to flapping.
fn plainly(rise: u32, fall: u32) -> Thresholds {
    Thresholds { rise, fall, hold_down: Duration::ZERO, hold_down_max: Duration::ZERO }
}

const NOW: Duration = Duration::from_secs(1_000);

/// A monitor with `health`, and `contrary` results in a row against it.
fn monitor(rise: u32, fall: u32, health: Health, contrary: u32) -> Monitor {
    let mut monitor = Monitor::new(plainly(rise, fall));
    monitor.adopt(health);
    monitor.contrary = contrary;
    monitor
}

/// Threshold that applies, health, results in a row against it, probe; then health, results in a row against it.
type Step = (u32, Health, u32, Result<(), &'static str>, Health, u32);

/// All thresholds from 1 to 3. Whatever can be reached from these states is one of them.
#[test]
fn every_state_answers_every_event() {
    #[rustfmt::skip]
    let table: &[Step] = &[
        (1, Unknown,   0, UP,   Healthy,   0),
        (2, Unknown,   0, UP,   Healthy,   0),
        (3, Unknown,   0, UP,   Healthy,   0),
        (1, Unknown,   0, DOWN, Unhealthy, 0),
        (2, Unknown,   0, DOWN, Unhealthy, 0),
        (3, Unknown,   0, DOWN, Unhealthy, 0),

        (1, Healthy,   0, DOWN, Unhealthy, 0),
        (2, Healthy,   0, DOWN, Healthy,   1),
        (2, Healthy,   1, DOWN, Unhealthy, 0),
        (3, Healthy,   0, DOWN, Healthy,   1),
        (3, Healthy,   1, DOWN, Healthy,   2),
        (3, Healthy,   2, DOWN, Unhealthy, 0),
        (1, Healthy,   0, UP,   Healthy,   0),
        (2, Healthy,   0, UP,   Healthy,   0),
        (2, Healthy,   1, UP,   Healthy,   0),
        (3, Healthy,   0, UP,   Healthy,   0),
        (3, Healthy,   1, UP,   Healthy,   0),
        (3, Healthy,   2, UP,   Healthy,   0),

        (1, Unhealthy, 0, UP,   Healthy,   0),
        (2, Unhealthy, 0, UP,   Unhealthy, 1),
        (2, Unhealthy, 1, UP,   Healthy,   0),
        (3, Unhealthy, 0, UP,   Unhealthy, 1),
        (3, Unhealthy, 1, UP,   Unhealthy, 2),
        (3, Unhealthy, 2, UP,   Healthy,   0),
        (1, Unhealthy, 0, DOWN, Unhealthy, 0),
        (2, Unhealthy, 0, DOWN, Unhealthy, 0),
        (2, Unhealthy, 1, DOWN, Unhealthy, 0),
        (3, Unhealthy, 0, DOWN, Unhealthy, 0),
        (3, Unhealthy, 1, DOWN, Unhealthy, 0),
        (3, Unhealthy, 2, DOWN, Unhealthy, 0),
    ];
    for &(threshold, from, contrary, probe, to, contrary_after) in table {
        // Only the threshold of the state's way out may matter.
        for other in 1..=3 {
            let (rise, fall) = match from {
                Healthy => (other, threshold),
                Unhealthy => (threshold, other),
                Unknown => (threshold, other),
            };
            let mut monitor = monitor(rise, fall, from, contrary);
            let transition = monitor.on_result(result(probe), NOW);
            let case = format!("rise {rise}, fall {fall}: {from:?} with {contrary} against it, {probe:?}");
            assert_eq!((monitor.health(), monitor.contrary), (to, contrary_after), "{case}");
            let expected = (from != to).then(|| Transition {
                from,
                to,
                reason: result(probe).err(),
                held: Duration::ZERO,
                flaps: false,
            });
            assert_eq!(transition, expected, "{case}");
        }
    }
}

#[test]
fn an_adopted_state_holds_until_the_thresholds_are_reached() {
    let mut monitor = Monitor::new(plainly(2, 2));
    monitor.adopt(Healthy);
    assert_eq!(monitor.on_result(result(DOWN), NOW), None);
    assert!(monitor.on_result(result(DOWN), NOW).is_some());
    monitor.adopt(Unknown);
    assert!(monitor.on_result(result(UP), NOW).is_some());
}

#[test]
fn adopting_starts_counting_anew() {
    let mut monitor = monitor(2, 2, Healthy, 1);
    monitor.adopt(Healthy);
    assert_eq!(monitor.on_result(result(DOWN), NOW), None);
}

#[test]
fn new_thresholds_keep_health_and_count() {
    let mut monitor = monitor(2, 5, Healthy, 2);
    monitor.reconfigure(plainly(2, 3), NOW);
    assert_eq!(monitor.health(), Healthy);
    assert_eq!(monitor.on_result(result(DOWN), NOW).map(|transition| transition.to), Some(Unhealthy));
}

/// Lowering a threshold below the count is no result, so it is no reason to turn either.
#[test]
fn new_thresholds_alone_change_nothing() {
    let mut monitor = monitor(2, 5, Healthy, 4);
    monitor.reconfigure(plainly(2, 1), NOW);
    assert_eq!(monitor.on_result(result(UP), NOW), None);
    assert_eq!(monitor.health(), Healthy);
}

#[test]
fn a_small_installation_is_probed_within_a_tenth_of_a_second() {
    for index in 0..20 {
        assert!(first_probe_delay(index, 20, Duration::from_secs(2), u64::MAX) <= Duration::from_millis(100));
    }
}

/// Backends, all_down, min_healthy; then the service's status, and who serves.
type Case<'a> = (&'a [Candidate], AllDown, u32, ServiceStatus, &'a [bool]);

#[test]
fn who_serves() {
    let wanted = |health| Candidate { state: BackendState::Enabled, weight: 100, checked: true, health };
    let (up, down, new) = (wanted(Healthy), wanted(Unhealthy), wanted(Unknown));
    let unchecked = Candidate { checked: false, ..down };
    let (drain, disabled) =
        (Candidate { state: BackendState::Drain, ..up }, Candidate { state: BackendState::Disabled, ..up });
    let weightless = Candidate { weight: 0, ..up };
    let (yes, no) = (true, false);
    use AllDown::{Drop, FailOpen};
    use ServiceStatus::{Degraded, Down, FailingOpen, Healthy as Fine};
    #[rustfmt::skip]
    let table: &[Case<'_>] = &[
        (&[up, up],                       FailOpen, 0, Fine,        &[yes, yes]),
        (&[up, down],                     FailOpen, 0, Degraded,    &[yes, no]),
        (&[up, new],                      FailOpen, 0, Fine,        &[yes, no]),
        (&[down, new],                    FailOpen, 0, FailingOpen, &[yes, yes]),
        (&[new, new],                     FailOpen, 0, FailingOpen, &[yes, yes]),
        (&[new, new],                     Drop,     0, Down,        &[no, no]),
        (&[down, down],                   FailOpen, 0, FailingOpen, &[yes, yes]),
        (&[down, down],                   Drop,     0, Down,        &[no, no]),
        (&[up, down],                     FailOpen, 1, Degraded,    &[yes, no]),
        (&[up, down],                     FailOpen, 2, FailingOpen, &[yes, yes]),
        (&[up, down],                     Drop,     2, Down,        &[no, no]),
        (&[up, up, down],                 FailOpen, 2, Degraded,    &[yes, yes, no]),
        (&[unchecked, unchecked],         FailOpen, 0, Fine,        &[yes, yes]),
        (&[unchecked, unchecked],         Drop,     2, Fine,        &[yes, yes]),
        (&[up, drain],                    FailOpen, 0, Fine,        &[yes, no]),
        (&[up, disabled],                 FailOpen, 0, Fine,        &[yes, no]),
        (&[up, weightless],               FailOpen, 0, Fine,        &[yes, no]),
        (&[up, weightless, drain],        FailOpen, 2, FailingOpen, &[yes, no, no]),
        (&[down, drain, weightless],      FailOpen, 0, FailingOpen, &[yes, no, no]),
        (&[up, Candidate { health: Unhealthy, ..drain }], FailOpen, 0, Fine, &[yes, no]),
        (&[drain, disabled, weightless],  FailOpen, 0, Down,        &[no, no, no]),
        (&[],                             FailOpen, 0, Down,        &[]),
        (&[],                             Drop,     0, Down,        &[]),
    ];
    for (candidates, all_down, min_healthy, status, eligible) in table {
        let found = serving(candidates, *all_down, *min_healthy);
        assert_eq!(
            (found.status, &found.eligible[..]),
            (*status, *eligible),
            "{candidates:#?}, {all_down:?}, min_healthy {min_healthy}"
        );
    }
}

#[test]
fn a_service_that_only_begins_is_no_outage() {
    use AllDown::{Drop, FailOpen};
    use ServiceStatus::{Degraded, Down, FailingOpen, Healthy as Fine};
    let wanted = |health| Candidate { state: BackendState::Enabled, weight: 100, checked: true, health };
    let (up, down, new) = (wanted(Healthy), wanted(Unhealthy), wanted(Unknown));
    let drain = Candidate { state: BackendState::Drain, ..up };
    // Backends, all_down, min_healthy; what is told of a service that is new, and of one that was well.
    type Told<'a> = (&'a [Candidate], AllDown, u32, Option<ServiceStatus>, Option<ServiceStatus>);
    #[rustfmt::skip]
    let table: &[Told<'_>] = &[
        (&[],               FailOpen, 0, None,              Some(Down)),
        (&[new],            FailOpen, 0, None,              None),
        (&[new],            Drop,     0, None,              Some(Down)),
        (&[down, new],      FailOpen, 0, None,              None),
        (&[down, new],      Drop,     0, None,              Some(Down)),
        (&[up, new],        FailOpen, 2, None,              None),
        (&[down, down],     FailOpen, 0, Some(FailingOpen), Some(FailingOpen)),
        (&[down, down],     Drop,     0, Some(Down),        Some(Down)),
        (&[up, down, new],  FailOpen, 3, Some(FailingOpen), Some(FailingOpen)),
        (&[up, down, new],  FailOpen, 0, Some(Degraded),    Some(Degraded)),
        (&[drain],          FailOpen, 0, Some(Down),        Some(Down)),
        (&[up],             FailOpen, 0, Some(Fine),        None),
    ];
    for (candidates, all_down, min_healthy, of_new, of_well) in table {
        let found = serving(candidates, *all_down, *min_healthy);
        let told = (found.news(None), found.news(Some(Fine)));
        assert_eq!(told, (*of_new, *of_well), "{candidates:#?}, {all_down:?}, min_healthy {min_healthy}");
        assert_eq!(found.news(Some(found.status)), None, "nothing is told twice");
    }
}

#[test]
fn what_min_healthy_is_short_of_is_told() {
    let wanted = |health| Candidate { state: BackendState::Enabled, weight: 100, checked: true, health };
    let (up, down) = (wanted(Healthy), wanted(Unhealthy));
    let drain = Candidate { state: BackendState::Drain, ..up };
    let told = |candidates: &[Candidate], min_healthy| {
        let shortfall = serving(candidates, AllDown::Drop, min_healthy).shortfall;
        shortfall.map(|shortfall| shortfall.to_string())
    };
    let short = "min_healthy = 2 is not reached, 1 of 2 enabled backends healthy".to_owned();
    assert_eq!(told(&[up, down, drain], 2), Some(short));
    for (candidates, min_healthy) in [(&[up, down][..], 1), (&[down, down], 2), (&[drain], 1), (&[], 0)] {
        assert_eq!(told(candidates, min_healthy), None, "{candidates:?}, {min_healthy}");
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    (
        prop::sample::select(vec![BackendState::Enabled, BackendState::Drain, BackendState::Disabled]),
        0..3_u16,
        any::<bool>(),
        prop::sample::select(vec![Unknown, Healthy, Unhealthy]),
    )
        .prop_map(|(state, weight, checked, health)| Candidate { state, weight, checked, health })
}

proptest! {
    /// Health is what the latest run of equal results says, unless that run is shorter than its threshold.
    #[test]
    fn health_follows_runs_of_results(
        rise in 1..5_u32,
        fall in 1..5_u32,
        probes in proptest::collection::vec(any::<bool>(), 1..60),
    ) {
        let mut monitor = Monitor::new(plainly(rise, fall));
        let mut before = Unknown;
        for end in 1..=probes.len() {
            let seen = &probes[..end];
            let up = seen[end - 1];
            let run = seen.iter().rev().take_while(|&&probe| probe == up).count() as u32;
            let transition = monitor.on_result(if up { Ok(()) } else { Err("down".to_owned()) }, NOW);
            let (says, needed) = if up { (Healthy, rise) } else { (Unhealthy, fall) };
            let expected = if run >= needed || end == 1 { says } else { before };
            prop_assert_eq!(monitor.health(), expected);
            prop_assert_eq!(transition.is_some(), before != expected);
            before = expected;
        }
    }

    #[test]
    fn first_probes_keep_their_order_and_window(
        count in 1..2_000_usize,
        interval_ms in 100..10_000_u64,
        at in any::<prop::sample::Index>(),
        random: (u64, u64),
    ) {
        let interval = Duration::from_millis(interval_ms);
        let index = at.index(count);
        let delay = first_probe_delay(index, count, interval, random.0);
        prop_assert!(delay <= interval && delay <= FIRST_PROBES_APART * count as u32);
        if index + 1 < count {
            prop_assert!(delay <= first_probe_delay(index + 1, count, interval, random.1));
        }
    }

    #[test]
    fn next_probes_stay_within_a_tenth(interval_ms in 100..3_600_000_u64, random: u64) {
        let interval = Duration::from_millis(interval_ms);
        let delay = next_probe_delay(interval, random);
        prop_assert!(delay >= interval * 9 / 10 && delay <= interval * 11 / 10);
    }

    #[test]
    fn nobody_serves_whom_the_operator_does_not_want(
        candidates in proptest::collection::vec(any_candidate(), 0..8),
        open: bool,
        min_healthy in 0..9_u32,
    ) {
        let all_down = if open { AllDown::FailOpen } else { AllDown::Drop };
        let found = serving(&candidates, all_down, min_healthy);
        prop_assert_eq!(found.eligible.len(), candidates.len());
        for (candidate, &eligible) in candidates.iter().zip(&found.eligible) {
            let wanted = candidate.state == BackendState::Enabled && candidate.weight > 0;
            prop_assert!(wanted || !eligible);
            let known_good = !candidate.checked || candidate.health == Healthy;
            prop_assert!(known_good || !eligible || found.status == ServiceStatus::FailingOpen);
        }
        prop_assert_eq!(found.eligible.contains(&true), found.status != ServiceStatus::Down);
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// One success turns up, one failure down; held down for 10 s, then 20, 40 and so on to 60.
fn damped() -> Monitor {
    let seconds = |seconds| Duration::from_secs(seconds);
    Monitor::new(Thresholds { rise: 1, fall: 1, hold_down: seconds(10), hold_down_max: seconds(60) })
}

/// Fails until it falls, then succeeds every second until it recovers; says how long it was down.
fn fall_and_recover(monitor: &mut Monitor, now: &mut Duration) -> Duration {
    *now += SECOND;
    let fell = *now;
    let transition = monitor.on_result(result(DOWN), *now).expect("it falls");
    let mut downs = 0;
    while monitor.on_result(result(UP), *now).is_none() {
        downs += 1;
        assert!(downs < 1_000, "it never recovers");
        *now += SECOND;
    }
    // What it announced is how long it was down.
    assert_eq!(transition.held, *now - fell);
    *now - fell
}

#[test]
fn a_backend_that_flaps_is_held_down_longer_each_time_to_a_cap() {
    let (mut monitor, mut now) = (damped(), NOW);
    monitor.on_result(result(UP), now);
    let downs: Vec<u64> = (0..6).map(|_| fall_and_recover(&mut monitor, &mut now).as_secs()).collect();
    assert_eq!(downs, [0, 10, 20, 40, 60, 60]);
    // A while of health is enough to be trusted again, and less is not.
    now += Duration::from_secs(58);
    assert_eq!(fall_and_recover(&mut monitor, &mut now).as_secs(), 60);
    now += Duration::from_secs(59);
    assert_eq!(fall_and_recover(&mut monitor, &mut now).as_secs(), 0);
    assert_eq!(fall_and_recover(&mut monitor, &mut now).as_secs(), 10);
}

#[test]
fn who_is_held_down_says_so_and_no_longer_than_that() {
    let (mut monitor, mut now) = (damped(), NOW);
    monitor.on_result(result(UP), now);
    assert_eq!(monitor.held(now), None);
    fall_and_recover(&mut monitor, &mut now);
    monitor.on_result(result(DOWN), now);
    assert_eq!(monitor.held(now), Some(Held { left: Duration::from_secs(10), flaps: 1 }));
    // A failure meanwhile neither shortens nor prolongs it; nor do successes end it.
    for probe in [UP, DOWN, UP, UP] {
        now += SECOND;
        assert_eq!(monitor.on_result(result(probe), now), None);
    }
    assert_eq!(monitor.held(now), Some(Held { left: Duration::from_secs(6), flaps: 1 }));
    now += Duration::from_secs(6);
    assert_eq!(monitor.held(now), None);
    assert_eq!(monitor.on_result(result(UP), now).map(|transition| transition.to), Some(Healthy));
}

#[test]
fn new_settings_let_go_of_who_is_held_down_too_long() {
    let (mut monitor, mut now) = (damped(), NOW);
    monitor.on_result(result(UP), now);
    fall_and_recover(&mut monitor, &mut now);
    monitor.on_result(result(DOWN), now);
    monitor.reconfigure(plainly(1, 1), now);
    assert_eq!(monitor.held(now), None);
    assert!(monitor.on_result(result(UP), now).is_some());
}

const MOMENT: Duration = Duration::from_millis(1);
const SHOWN: Result<(), &str> = Err("customers get no answer");

#[test]
fn what_customers_show_takes_a_backend_down_though_its_probes_succeed() {
    let thresholds = Thresholds { rise: 2, fall: 3, ..damped().thresholds };
    let mut monitor = Monitor::new(thresholds);
    assert_eq!(monitor.on_shown(Signal::Unanswered, result(SHOWN), NOW), None, "nothing is known of it yet");
    monitor.on_result(result(UP), NOW);
    for shown in [SHOWN, UP, SHOWN, SHOWN] {
        assert_eq!(monitor.on_shown(Signal::Unanswered, result(shown), NOW), None, "a good look begins anew");
        assert_eq!(monitor.on_result(result(UP), NOW), None);
    }
    let transition = monitor.on_shown(Signal::Unanswered, result(SHOWN), NOW).unwrap();
    assert_eq!((transition.from, transition.to, transition.flaps), (Healthy, Unhealthy, false));
    assert_eq!((transition.held, transition.reason), (10 * SECOND, Some(SHOWN.unwrap_err().to_owned())));
    assert_eq!(monitor.on_shown(Signal::Unanswered, result(SHOWN), NOW), None, "told once");
    assert_eq!(monitor.shown(), Some(SHOWN.unwrap_err()));
    assert_eq!(monitor.held(NOW), Some(Held { left: 10 * SECOND, flaps: 0 }));
    // Its probes bring it back, but not at once; and if they were wrong, later each time.
    let mut now = NOW;
    for held in [10, 10, 20, 40, 60, 60] {
        assert_eq!(monitor.on_result(result(UP), now + held * SECOND - MOMENT), None);
        assert_eq!(monitor.on_result(result(UP), now + held * SECOND - MOMENT), None);
        now += held * SECOND;
        assert_eq!(monitor.on_result(result(UP), now).map(|transition| transition.to), Some(Healthy));
        assert_eq!(monitor.shown(), None);
        let fell: Vec<_> =
            (0..3).filter_map(|_| monitor.on_shown(Signal::Unanswered, result(SHOWN), now)).collect();
        assert_eq!(fell.len(), 1, "{fell:?}");
    }
    monitor.reconfigure(plainly(1, 1), now);
    assert_eq!(monitor.held(now), None);
}

#[test]
fn what_is_well_in_one_respect_does_not_make_up_for_another() {
    let mut monitor = Monitor::new(Thresholds { fall: 2, ..damped().thresholds });
    monitor.on_result(result(UP), NOW);
    assert_eq!(monitor.on_shown(Signal::Resets, result(SHOWN), NOW), None);
    assert_eq!(monitor.on_shown(Signal::Unanswered, result(SHOWN), NOW), None, "each counts by itself");
    assert_eq!(monitor.on_shown(Signal::Unanswered, result(UP), NOW), None);
    let transition = monitor.on_shown(Signal::Resets, result(SHOWN), NOW).unwrap();
    assert_eq!(transition.to, Unhealthy);
    assert_eq!(monitor.on_shown(Signal::ResetFlood, result(SHOWN), NOW), None, "says nothing of it");
}

proptest! {
    /// Whatever the probes say: it is never held for longer than the cap, and a success after that time turns it up.
    #[test]
    fn nobody_is_held_down_for_ever(ups in prop::collection::vec((any::<bool>(), 0_u64..30), 1..200)) {
        let (mut monitor, mut now) = (damped(), NOW);
        for (up, seconds) in ups {
            now += Duration::from_secs(seconds);
            let probe = if up { UP } else { DOWN };
            monitor.on_result(result(probe), now);
            let left = monitor.held(now).map_or(Duration::ZERO, |held| held.left);
            prop_assert!(left <= Duration::from_secs(60));
            let mut later = monitor.clone();
            later.on_result(result(UP), now + left);
            prop_assert_eq!(later.health(), Healthy);
        }
    }
}
