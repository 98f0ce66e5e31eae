//! Traffic in the background: turns a duration of requests, one connection each, into a report of what was answered
//! and what was lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::host::{Host, connect};
use crate::http::HttpConnection;

/// The pause after each request: what is tested meanwhile needs the cores, too.
const PAUSE: Duration = Duration::from_millis(1);
/// The most errors a report spells out.
const ERRORS_SHOWN: usize = 5;

/// Requests being made in the background until stopped.
#[derive(Debug)]
pub struct Load {
    stopping: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<LoadReport>>>,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Requests answered with status 200.
    pub answered: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Answers by web server.
    pub by_server: BTreeMap<String, u64>,
    /// The first few failures, each with the time since the start.
    pub errors: Vec<String>,
    /// When the last failure happened, from the start.
    pub last_failure: Option<Duration>,
    /// The longest that one request took.
    pub slowest: Duration,
}

impl Load {
    /// Starts `clients` threads on `host`, each asking `to` for `path` over and over, a new connection each time, a millisecond after the last.
    pub fn start(host: &Host, to: SocketAddr, path: &str, clients: usize) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let threads = (0..clients)
            .map(|_| {
                let (stopping, done) = (Arc::clone(&stopping), Arc::clone(&done));
                let (netns, path) = (host.netns().clone(), path.to_owned());
                std::thread::spawn(move || {
                    netns.enter()?;
                    let mut report = LoadReport::default();
                    while !stopping.load(Ordering::Relaxed) {
                        report.add(request(to, &path), start, Instant::now());
                        done.fetch_add(1, Ordering::Relaxed);
                        sleep(PAUSE);
                    }
                    Ok(report)
                })
            })
            .collect();
        Self { stopping, done, threads }
    }

    /// How many requests have ended so far, well or not.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the traffic and adds up what became of it.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut sum = LoadReport::default();
        for thread in std::mem::take(&mut self.threads) {
            sum.merge(thread.join().map_err(|_| anyhow!("a load thread panicked"))??);
        }
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl LoadReport {
    fn add(&mut self, outcome: (Result<String>, Duration), start: Instant, now: Instant) {
        let (result, took) = outcome;
        self.slowest = self.slowest.max(took);
        match result {
            Ok(server) => {
                self.answered += 1;
                *self.by_server.entry(server).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                self.last_failure = Some(now - start);
                if self.errors.len() < ERRORS_SHOWN {
                    self.errors.push(format!("at {:.3} s: {error:#}", (now - start).as_secs_f64()));
                }
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.slowest = self.slowest.max(other.slowest);
        self.last_failure = self.last_failure.max(other.last_failure);
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_SHOWN);
        for (server, count) in other.by_server {
            *self.by_server.entry(server).or_default() += count;
        }
    }
}

/// One request from the calling thread's namespace: who answered, and how long it took.
fn request(to: SocketAddr, path: &str) -> (Result<String>, Duration) {
    let start = Instant::now();
    let answer = || -> Result<String> {
        let stream = connect(to, None).context("connecting")?;
        let response = HttpConnection::over(stream).get_and_close(path)?;
        if response.status != 200 {
            bail!("status {} from {}", response.status, response.served_by());
        }
        Ok(response.served_by().to_owned())
    };
    (answer(), start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let start = Instant::now();
        let mut first = LoadReport::default();
        first.add((Ok("web1".into()), Duration::from_millis(3)), start, start);
        let mut second = LoadReport::default();
        second.add((Ok("web1".into()), Duration::from_millis(1)), start, start);
        second.add(
            (Err(anyhow!("refused")), Duration::from_millis(9)),
            start,
            start + Duration::from_secs(1),
        );
        first.merge(second);
        assert_eq!((first.answered, first.failed), (2, 1));
        assert_eq!(first.by_server.get("web1"), Some(&2));
        assert_eq!(first.slowest, Duration::from_millis(9));
        assert_eq!(first.last_failure, Some(Duration::from_secs(1)));
        assert_eq!(first.errors, ["at 1.000 s: refused"]);
    }
}
