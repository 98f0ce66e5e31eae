//! Repeated probes: turns a target and a [`Check`] into a stream of [`ProbeReport`]s.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};

use super::{Check, ProbeError, Target};

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
    let mut start = Instant::now() + first_delay;
    loop {
        tokio::select! {
            () = sleep_until(start) => {}
            () = reports.closed() => return,
        }
        let began = Instant::now();
        let result = tokio::select! {
            result = check.probe(&target) => result,
            () = reports.closed() => return,
        };
        let report = ProbeReport { target_key: target_key.clone(), result, duration: began.elapsed() };
        if reports.send(report).await.is_err() {
            return;
        }
        start = began + next_delay(check.health.interval);
    }
}
