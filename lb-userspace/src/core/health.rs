//! Probe results → health transitions, and health → which backends serve.
//!
//! Neither sockets nor a clock: the caller probes, and passes results, random numbers and the operator's
//! wishes in. Drain is not health: a drained backend is still probed, and still healthy.

use std::fmt;
use std::time::Duration;

use super::config::{self, AllDown, BackendState};
use super::signals::Signal;

#[cfg(test)]
mod tests;

/// Time between two backends' first probes, while the interval allows it.
const FIRST_PROBES_APART: Duration = Duration::from_millis(5);

/// What is known about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not probed yet.
    #[default]
    Unknown,
    /// Probes succeed.
    Healthy,
    /// Probes fail.
    Unhealthy,
}

/// When a backend is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes in a row that make an unhealthy backend healthy; 0 means 1.
    pub rise: u32,
    /// Failures in a row that make a healthy backend unhealthy; 0 means 1.
    pub fall: u32,
    /// How long a backend is at least unhealthy that falls soon after it recovered; twice as long each further time. 0 =
    /// no longer than `rise` says.
    pub hold_down: Duration,
    /// The longest that this becomes. A backend that stays healthy as long is no longer held against.
    pub hold_down_max: Duration,
}

impl From<&config::Health> for Thresholds {
    fn from(health: &config::Health) -> Self {
        let &config::Health { rise, fall, hold_down, hold_down_max, .. } = health;
        Self { rise, fall, hold_down, hold_down_max }
    }
}

/// A change of health, and the probe result that caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Health before.
    pub from: Health,
    /// Health from now on; never `from`.
    pub to: Health,
    /// Why the deciding probe failed; `None` when it succeeded.
    pub reason: Option<String>,
    /// How long it is now held down; 0 if it is not.
    pub held: Duration,
    /// Whether that is because it flaps.
    pub flaps: bool,
}

/// A backend that may not recover yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// For so long.
    pub left: Duration,
    /// Times in a row that it fell soon after it had recovered; 0 if it is held for another reason.
    pub flaps: u32,
}

/// The health of one backend as its probes tell it. Times are counted from any fixed moment.
///
/// The first result decides at once, so that a start is quick. After that it takes `fall` failures in a row to
/// turn unhealthy, and `rise` successes in a row to turn healthy.
///
/// A backend that falls before it was healthy again for as long as `hold_down_max` flaps: each such fall holds it down for twice as
/// long as the one before. What its probes say meanwhile is counted, but it stays unhealthy until the time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    thresholds: Thresholds,
    health: Health,
    /// Results in a row that speak against `health`.
    contrary: u32,
    /// When it last turned healthy after it had been unhealthy.
    recovered: Option<Duration>,
    /// Falls in a row that came soon after a recovery.
    flaps: u32,
    /// It stays unhealthy until then.
    held_until: Duration,
    /// Bad looks at customers' packets in a row, by what they showed.
    shown_bad: [u32; Signal::JUDGED],
    /// What these showed, while it is unhealthy for that reason.
    shown: Option<String>,
}

impl Monitor {
    /// A backend of unknown health.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            health: Health::Unknown,
            contrary: 0,
            recovered: None,
            flaps: 0,
            held_until: Duration::ZERO,
            shown_bad: [0; Signal::JUDGED],
            shown: None,
        }
    }

    /// Takes over what another agent found out, as if it had been found out here.
    pub fn adopt(&mut self, health: Health) {
        self.health = health;
        self.contrary = 0;
    }

    /// Changes the thresholds. Health, and results in a row so far, are kept; the next result is judged by the
    /// new thresholds. A backend that is held down stays so no longer than the new ones allow.
    pub fn reconfigure(&mut self, thresholds: Thresholds, now: Duration) {
        self.thresholds = thresholds;
        let most = if self.shown.is_some() { self.hold().max(thresholds.hold_down) } else { self.hold() };
        self.held_until = self.held_until.min(now.saturating_add(most));
    }

    /// Judges one probe: `Err` says why it failed.
    pub fn on_result(&mut self, result: Result<(), String>, now: Duration) -> Option<Transition> {
        let (says, needed) = match &result {
            Ok(()) => (Health::Healthy, self.thresholds.rise),
            Err(_) => (Health::Unhealthy, self.thresholds.fall),
        };
        let reason = result.err();
        if says == self.health {
            self.contrary = 0;
            return None;
        }
        self.contrary = self.contrary.saturating_add(1);
        let is_held = says == Health::Healthy && self.held(now).is_some();
        if self.health != Health::Unknown && (self.contrary < needed || is_held) {
            return None;
        }
        self.contrary = 0;
        let from = std::mem::replace(&mut self.health, says);
        self.shown = None;
        match (from, says) {
            (Health::Unhealthy, Health::Healthy) => self.recovered = Some(now),
            (Health::Healthy, Health::Unhealthy) => self.on_fall(now),
            _ => {}
        }
        let held = self.held(now).map(|held| held.left).unwrap_or_default();
        Some(Transition { from, to: says, reason, held, flaps: self.flaps > 0 })
    }

    /// Judges what customers' packets show of one thing: `Err` says what is wrong.
    ///
    /// It takes `fall` bad looks in a row without a good one at the same thing, whatever probes say in between, which may not see what
    /// customers see, and whatever else the packets show: connections that open well may all be reset.
    /// A backend without new flows shows nothing, so only its probes can bring it back; therefore it is held down each time, the
    /// first one included, as if it flapped.
    pub fn on_shown(&mut self, of: Signal, result: Result<(), String>, now: Duration) -> Option<Transition> {
        let bad = self.shown_bad.get_mut(of as usize)?;
        let Err(reason) = result else {
            *bad = 0;
            return None;
        };
        if self.health != Health::Healthy {
            return None;
        }
        *bad = bad.saturating_add(1);
        if *bad < self.thresholds.fall {
            return None;
        }
        (self.shown_bad, self.contrary) = ([0; Signal::JUDGED], 0);
        self.health = Health::Unhealthy;
        self.shown = Some(reason.clone());
        self.on_fall(now);
        let flaps = self.flaps > 0;
        if !flaps {
            let &Thresholds { hold_down, hold_down_max, .. } = &self.thresholds;
            self.held_until = now.saturating_add(hold_down.min(hold_down_max));
        }
        let held = self.held(now).map(|held| held.left).unwrap_or_default();
        Some(Transition { from: Health::Healthy, to: Health::Unhealthy, reason: Some(reason), held, flaps })
    }

    /// What customers' packets showed, if it is unhealthy for that reason.
    pub fn shown(&self) -> Option<&str> {
        self.shown.as_deref()
    }

    fn on_fall(&mut self, now: Duration) {
        let soon = |recovered| now.saturating_sub(recovered) < self.thresholds.hold_down_max;
        self.flaps = if self.recovered.is_some_and(soon) { self.flaps.saturating_add(1) } else { 0 };
        self.held_until = now.saturating_add(self.hold());
    }

    /// How long so many flaps hold a backend down.
    fn hold(&self) -> Duration {
        let Some(doublings) = self.flaps.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.thresholds.hold_down.saturating_mul(factor).min(self.thresholds.hold_down_max)
    }

    /// Whether it may not recover yet, however its probes go.
    pub fn held(&self, now: Duration) -> Option<Held> {
        let left = self.held_until.saturating_sub(now);
        let is_held = self.health == Health::Unhealthy && !left.is_zero();
        is_held.then_some(Held { left, flaps: self.flaps })
    }

    /// What is known now.
    pub fn health(&self) -> Health {
        self.health
    }
}

/// When backend `index` of `count` is probed for the first time, counted from the start.
///
/// First probes are spread over 5 ms a backend but no longer than the interval: no herd of them leaves at
/// once, and a small installation is known within moments. `random` (any value) moves a probe within its
/// own part of the time.
pub fn first_probe_delay(index: usize, count: usize, interval: Duration, random: u64) -> Duration {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    let index = u32::try_from(index).unwrap_or(u32::MAX).min(count - 1);
    let window = FIRST_PROBES_APART.saturating_mul(count).min(interval);
    let position = f64::from(index) + fraction(random);
    window.mul_f64((position / f64::from(count)).min(1.0))
}

/// Time from one probe's start to the next one's: the interval, give or take a tenth by `random` (any value),
/// so that backends and nodes do not fall into step.
pub fn next_probe_delay(interval: Duration, random: u64) -> Duration {
    let tenth = interval / 10;
    interval - tenth + (2 * tenth).mul_f64(fraction(random))
}

/// A random number as a fraction from 0 up to, but not reaching, 1.
fn fraction(random: u64) -> f64 {
    // 53 bits are what a float holds exactly.
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// What decides whether a backend serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What the operator wants.
    pub state: BackendState,
    /// Share of new flows; 0 = none.
    pub weight: u16,
    /// Whether it is probed at all. If not, it counts as healthy.
    pub checked: bool,
    /// What the probes say; not looked at unless `checked`.
    pub health: Health,
}

impl Candidate {
    /// Whether the operator wants new flows on it.
    fn is_wanted(&self) -> bool {
        self.state == BackendState::Enabled && self.weight > 0
    }

    fn health(&self) -> Health {
        if self.checked { self.health } else { Health::Healthy }
    }
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceStatus {
    /// It serves, and no enabled backend is known to be unhealthy.
    Healthy,
    /// It serves, but an enabled backend is unhealthy.
    Degraded,
    /// Too few backends are healthy, so all enabled ones are used.
    FailingOpen,
    /// No backend serves.
    Down,
}

/// Which backends of a service take new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// How the service is.
    pub status: ServiceStatus,
    /// Whether that is how it is, rather than how it begins: it has backends, and what is not known of them yet could not make it
    /// well.
    pub is_settled: bool,
    /// For every candidate, in order: whether it belongs into the ring.
    pub eligible: Vec<bool>,
    /// What `min_healthy` is short of, if only for that the healthy ones are not enough.
    pub shortfall: Option<Shortfall>,
}

/// Some backends of a service are healthy, but fewer than its `min_healthy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    min_healthy: u32,
    /// Of those wanted.
    healthy: usize,
    wanted: usize,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min_healthy, healthy, wanted } = self;
        write!(
            f,
            "min_healthy = {min_healthy} is not reached, {healthy} of {wanted} enabled backends healthy"
        )
    }
}

impl Serving {
    /// The status to tell of, if `told` was the last one. A service that is only beginning is not told of: it is neither well
    /// nor an outage. One that was told of before and that now drops packets is, whatever the reason.
    pub fn news(&self, told: Option<ServiceStatus>) -> Option<ServiceStatus> {
        let drops = told.is_some() && self.status == ServiceStatus::Down;
        let is_news = told != Some(self.status) && (self.is_settled || drops);
        is_news.then_some(self.status)
    }
}

/// Decides which backends of a service take new flows.
///
/// Wanted backends are those enabled with a weight above 0; the others neither serve nor count. Normally the
/// healthy ones among them serve. When there is none, or fewer than `min_healthy`, `all_down` decides: all
/// wanted ones, whatever their health, or none.
///
/// A backend that was not probed yet is not healthy, so it does not serve next to healthy ones, and a service
/// that starts with nothing known fails open (or drops) for the moments until first results are in. But it is
/// not known to be down either: it alone makes no service degraded.
pub fn serving(candidates: &[Candidate], all_down: AllDown, min_healthy: u32) -> Serving {
    let wanted_with = |health: Health| {
        candidates
            .iter()
            .filter(move |candidate| candidate.is_wanted() && candidate.health() == health)
            .count()
    };
    let healthy = wanted_with(Health::Healthy);
    let is_enough = |healthy: usize| healthy > 0 && u32::try_from(healthy).unwrap_or(u32::MAX) >= min_healthy;
    let may_be_enough = is_enough(healthy + wanted_with(Health::Unknown));
    let (status, serves): (_, fn(&Candidate) -> bool) = if is_enough(healthy) {
        let all_up = wanted_with(Health::Unhealthy) == 0;
        let status = if all_up { ServiceStatus::Healthy } else { ServiceStatus::Degraded };
        (status, |candidate| candidate.is_wanted() && candidate.health() == Health::Healthy)
    } else if all_down == AllDown::FailOpen && candidates.iter().any(Candidate::is_wanted) {
        (ServiceStatus::FailingOpen, Candidate::is_wanted)
    } else {
        (ServiceStatus::Down, |_| false)
    };
    let is_settled = is_enough(healthy) || !candidates.is_empty() && !may_be_enough;
    let shortfall = (healthy > 0 && !is_enough(healthy)).then(|| {
        let wanted = candidates.iter().filter(|candidate| candidate.is_wanted()).count();
        Shortfall { min_healthy, healthy, wanted }
    });
    Serving { status, is_settled, eligible: candidates.iter().map(serves).collect(), shortfall }
}
