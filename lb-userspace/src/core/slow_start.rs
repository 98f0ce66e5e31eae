//! How long ago a backend recovered → the share of its weight that it has again.
//!
//! The share grows in steps: each is a new ring, which moves new flows only. Weights are whole numbers and may be as small as 1, so
//! while one of a service's backends is on its way, all of its weights are made larger alike.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// Steps at most.
const STEPS_MAX: u32 = 20;
/// A step lasts at least as long: shorter ones would build rings that no flow is given by.
const STEP_MIN: Duration = Duration::from_millis(500);

/// A backend on its way back to its weight. Times are counted from any fixed moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    began: Duration,
    length: Duration,
}

/// A share of a weight: so many parts of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// At least 1, less than `of`.
    parts: u32,
    /// At most [`STEPS_MAX`] + 1.
    of: u32,
}

impl Ramp {
    /// Begins now and takes so long.
    pub fn new(began: Duration, length: Duration) -> Self {
        Self { began, length }
    }

    fn steps(&self) -> u32 {
        let fit = self.length.as_millis() / STEP_MIN.as_millis();
        u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, STEPS_MAX)
    }

    /// How many steps are over.
    fn step(&self, now: Duration) -> u32 {
        let (elapsed, steps) = (now.saturating_sub(self.began), self.steps());
        if elapsed >= self.length {
            return steps;
        }
        let over = elapsed.as_nanos() * u128::from(steps) / self.length.as_nanos().max(1);
        u32::try_from(over).unwrap_or(steps).min(steps)
    }

    /// The share now; `None` once it is the whole.
    pub fn share(&self, now: Duration) -> Option<Share> {
        let (step, steps) = (self.step(now), self.steps());
        (step < steps).then(|| Share { parts: step + 1, of: steps + 1 })
    }

    /// When somebody who looked at the share a while ago has to do so again: at once, if it became the whole meanwhile.
    pub fn due(&self, now: Duration) -> Duration {
        self.next_step(now).unwrap_or(now)
    }

    /// When the share grows next; `None` once it is the whole.
    pub fn next_step(&self, now: Duration) -> Option<Duration> {
        self.share(now)?;
        let over = self.length.as_nanos() * u128::from(self.step(now) + 1);
        let elapsed = u64::try_from(over.div_ceil(u128::from(self.steps()))).unwrap_or(u64::MAX);
        Some(self.began.saturating_add(Duration::from_nanos(elapsed)))
    }
}

/// The factor by which all weights of a service are made larger while some backend has only a share of its own: as large as they
/// allow.
pub fn scale(greatest: u16) -> u16 {
    let most = u16::MAX.checked_div(greatest).unwrap_or(1);
    most.min(STEPS_MAX as u16 + 1).max(1)
}

/// A weight that is made larger, or a share of it; never 0 if the weight is not.
pub fn weight(full: u16, scale: u16, share: Option<Share>) -> u16 {
    let scaled = u32::from(full) * u32::from(scale);
    let part = share.map_or(scaled, |share| (scaled * share.parts).div_ceil(share.of));
    u16::try_from(part).unwrap_or(u16::MAX)
}
