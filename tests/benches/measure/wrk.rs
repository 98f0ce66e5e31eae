//! `wrk` on a host → requests a second, how long they took, and what CPU time all of the machine spent on them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lb_tests::{Host, Lab, run_checked};

/// Says what it found in one line; wrk's own words have no 99.9th percentile.
const SCRIPT: &str = "done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('FOUND %d %d %d %d %d %d\\n', summary.requests, summary.duration, latency:percentile(50),
        latency:percentile(99), latency:percentile(99.9), e.connect + e.read + e.write + e.status + e.timeout))
end
";

/// How it asks.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub path: &'static str,
    pub close: bool,
    pub connections: u32,
    /// Between an answer and the next request of a connection, in milliseconds.
    pub pause_ms: u32,
    pub seconds: u32,
}

/// What it found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub requests_a_second: f64,
    /// In milliseconds: half, 99 % and 99.9 % of all requests took no longer.
    pub percentiles: [f64; 3],
    /// In microseconds.
    pub cpu_a_request: f64,
}

/// Where the script is.
fn script(lab: &Lab, pause_ms: u32) -> Result<PathBuf> {
    let file = lab.directory().join("wrk.lua");
    let pause = format!("delay = function() return {pause_ms} end\n");
    fs::write(&file, format!("{}{SCRIPT}", if pause_ms > 0 { &pause } else { "" }))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Asks a server for a while.
pub fn run(lab: &Lab, host: &Host, server: &str, load: Load) -> Result<Found> {
    let mut wrk = host.command("wrk");
    wrk.args(["-t1", &format!("-c{}", load.connections), &format!("-d{}s", load.seconds)]);
    wrk.arg("-s").arg(script(lab, load.pause_ms)?);
    if load.close {
        wrk.args(["-H", "Connection: close"]);
    }
    let before = cpu_time()?;
    let output = run_checked(wrk.arg(format!("http://{server}{}", load.path)))?;
    let cpu = cpu_time()? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found =
        text.lines().find_map(|line| line.strip_prefix("FOUND ")).context("wrk did not say what it found")?;
    let numbers: Vec<f64> = found.split(' ').map_while(|word| word.parse().ok()).collect();
    let [requests, microseconds, half, most, nearly_all, errors] = numbers[..] else {
        anyhow::bail!("wrk found {found:?}")
    };
    ensure!(requests > 0.0 && errors * 100.0 <= requests, "{server}: {errors} of {requests} requests failed");
    Ok(Found {
        requests_a_second: requests / microseconds * 1e6,
        percentiles: [half, most, nearly_all].map(|microseconds| microseconds / 1e3),
        cpu_a_request: cpu * 1e6 / requests,
    })
}

/// Seconds that all CPUs have been busy.
fn cpu_time() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    ensure!(fields.len() >= 8, "/proc/stat begins with {line:?}");
    // User, nice, system, interrupts, soft interrupts; in the hundredths of a second that every Linux has here.
    Ok([0, 1, 2, 5, 6].iter().map(|field| fields[*field]).sum::<f64>() / 100.0)
}
