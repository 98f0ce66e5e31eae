//! Repeated probes: turns a target and a [`Check`] into a stream of [`ProbeReport`]s.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};

use super::{Check, ProbeError, Target};

/// Probes start at multiples of this, which nobody notices but the processor: of many backends some start together, and as
/// many fewer times the agent is woken.
const TOGETHER: Duration = Duration::from_millis(10);

/// The outcome of one probe.
#[derive(Debug)]
pub struct ProbeReport<K> {
    /// The key that the target was given.
    pub target_key: K,
    /// Success, or why not.
    pub result: Result<(), ProbeError>,
    /// How long the probe took.
    pub duration: Duration,
}

/// Probes `target` until the receiver of `reports` is gone; abort its task to stop it sooner.
///
/// The first probe starts after `first_delay`, every other one `next_delay(interval)` after the start of
/// the one before it, or at once if that one took longer. Probes never overlap, and none are made up for.
pub async fn probe_loop<K: Clone + Send + 'static>(
    target_key: K,
    target: Target,
    check: Arc<Check>,
    first_delay: Duration,
    next_delay: impl Fn(Duration) -> Duration + Send,
    reports: Sender<ProbeReport<K>>,
) {
    let mut start = rounded(Instant::now() + first_delay);
    loop {
        tokio::select! {
            () = sleep_until(start) => {}
            () = reports.closed() => return,
        }
        let began = Instant::now();
        // On the heap: there are as many tasks as backends, and most of the time all but a few only wait.
        let result = Box::pin(async {
            tokio::select! {
                result = check.probe(&target) => Some(result),
                () = reports.closed() => None,
            }
        });
        let Some(result) = result.await else { return };
        let duration = began.elapsed();
        let Ok(room) = reports.reserve().await else { return };
        room.send(ProbeReport { target_key: target_key.clone(), result, duration });
        start = rounded(began + next_delay(check.health.interval));
    }
}

/// The next moment at which probes start together.
fn rounded(start: Instant) -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    let since = start.saturating_duration_since(*EPOCH.get_or_init(Instant::now));
    let over = since.as_nanos() % TOGETHER.as_nanos();
    let wait = u64::try_from((TOGETHER.as_nanos() - over) % TOGETHER.as_nanos()).unwrap_or(0);
    start + Duration::from_nanos(wait)
}
