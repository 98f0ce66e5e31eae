//! `sluice backend drain --wait`: live flows left, until none is.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::backend::Which;
use super::client::Client;
use super::{Failure, Format, OutputFlag, output, report};
use crate::core::names::number_of;
use crate::core::stats::Snapshot;
use crate::io::api::ApplyReport;

/// How often the flows are counted.
const POLL: Duration = Duration::from_millis(500);
/// How often what is left is shown if it changes slowly.
const SHOW: Duration = Duration::from_secs(5);

/// What became of a drain that was waited for.
#[derive(Serialize)]
struct Drained<'a> {
    #[serde(flatten)]
    report: &'a ApplyReport,
    /// Live flows left.
    flows_left: u64,
    /// Flows there were at the beginning.
    flows_before: u64,
    /// How long it was waited.
    waited_seconds: f64,
}

/// Counts a backend's live flows until none is left, or so many seconds have passed.
pub(super) async fn wait(
    which: &Which,
    timeout_seconds: u64,
    report: ApplyReport,
    format: OutputFlag,
    client: &Client,
) -> Result<(), Failure> {
    if format.output == Format::Table {
        output::print(&report::render(&report))?;
    }
    report::warn(&report);
    let began = Instant::now();
    let deadline = began + Duration::from_secs(timeout_seconds);
    let flows_before = flows(which, client).await?;
    let (mut left, mut shown) = (flows_before, None);
    while left > 0 && Instant::now() < deadline {
        progress(which, left, &mut shown);
        sleep(POLL.min(deadline - Instant::now())).await;
        left = flows(which, client).await?;
    }
    let Which { service, backend } = which;
    if format.output == Format::Json {
        let waited_seconds = began.elapsed().as_secs_f64();
        output::json(&Drained { report: &report, flows_left: left, flows_before, waited_seconds })?;
    } else if left == 0 {
        output::print(&format!("service {service}: backend {backend} is drained"))?;
    }
    match left {
        0 => Ok(()),
        left => Err(Failure::NotAsWished(format!(
            "service {service}: backend {backend} still has {} after {timeout_seconds} s; it goes on \
             draining: wait again, or end them with `sluice backend disable {service} {backend}`",
            number_of(left, "live flow")
        ))),
    }
}

/// Shows what is left, and how fast it became less since that was shown last.
fn progress(which: &Which, left: u64, shown: &mut Option<(Instant, u64)>) {
    let now = Instant::now();
    let rate = match *shown {
        Some((_, before)) if before == left => return,
        Some((at, _)) if now - at < SHOW && left > 20 => return,
        Some((at, before)) => {
            let fewer = (before as f64 - left as f64) / (now - at).as_secs_f64();
            format!(", {fewer:.1} fewer a second")
        }
        None => String::new(),
    };
    let Which { service, backend } = which;
    let flows = number_of(left, "live flow");
    output::say(format_args!("service {service}: backend {backend}: {flows} left{rate}"));
    *shown = Some((now, left));
}

/// Live flows of a backend that drains.
async fn flows(which: &Which, client: &Client) -> Result<u64, Failure> {
    let Which { service, backend } = which;
    let snapshot: Snapshot = client.get("/v1/status").await.map_err(|failure| match failure {
        Failure::Unreachable(why) => Failure::Unreachable(format!(
            "{why}. Service {service}: backend {backend} goes on draining: wait for it again"
        )),
        other => other,
    })?;
    let found = snapshot.services.iter().find(|found| found.name == *service);
    let found = found.and_then(|found| found.backends.iter().find(|found| found.name == *backend));
    match found {
        Some(found) if found.state == "drain" => Ok(found.active_flows),
        Some(found) => Err(Failure::Failed(format!(
            "service {service}: backend {backend} does not drain any more: it is {} again; `sluice history` says why",
            found.state
        ))),
        None => Err(Failure::Failed(format!(
            "service {service}: there is no backend {backend} any more; see `sluice history`"
        ))),
    }
}
