//! The agent's loop: events from io → decisions of core → actions of io.

mod apply;
mod error;
mod hops;
mod packet_log;
mod probing;
mod requests;
mod start;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

pub use error::AgentError;

use probing::Report;

use crate::io::api::{self, Request};

/// How often idle flows are swept out of the flow table.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How often next hops are looked at although nothing tells of a change: this also keeps those verified that no
/// health check does.
const HOP_INTERVAL: Duration = Duration::from_secs(15);

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The pin directory on bpffs.
    pub pin_dir: PathBuf,
    /// Whether the program is attached to the interfaces.
    pub attach: bool,
    /// Whether each packet's verdict is logged.
    pub log_packets: bool,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Continue,
    /// The program was removed: there is nothing left to look after.
    End,
}

/// Runs the agent until a signal ends it. The data plane goes on without it.
pub async fn run(options: Options) -> Result<(), AgentError> {
    let (mut end, mut reload) = (EndSignals::new()?, listen(SignalKind::hangup())?);
    let (request_sender, mut requests) = mpsc::channel::<Request>(64);
    let (report_sender, mut reports) = mpsc::channel::<Report>(1_024);
    let control = api::listen_control(&options.socket).await?;
    let mut agent = tokio::select! {
        agent = start::start(options, request_sender.clone(), report_sender, &mut reports) => agent?,
        () = end.received() => return Ok(()),
    };
    let mut changes = agent.resolver.changes();
    let server = axum::serve(control.listener, api::control_routes(request_sender)).into_future();
    tokio::pin!(server);
    let mut sweep = every(SWEEP_INTERVAL);
    let mut recheck = every(HOP_INTERVAL);
    start::notify_ready();
    log::info!("ready: {}", agent.describe());
    loop {
        let next = tokio::select! {
            biased;
            () = end.received() => Next::End,
            _ = reload.recv() => {
                agent.reload().await;
                Next::Continue
            }
            Some(report) = reports.recv() => {
                agent.on_probe(report);
                Next::Continue
            }
            Some(request) = requests.recv() => agent.on_request(request).await,
            Some(_) = changes.next() => {
                agent.refresh_network().await;
                Next::Continue
            }
            _ = recheck.tick() => {
                agent.refresh_network().await;
                Next::Continue
            }
            _ = sweep.tick() => {
                agent.sweep();
                Next::Continue
            }
            served = &mut server => {
                log::error!("the API ended: {served:?}");
                Next::End
            }
        };
        if next == Next::End {
            break;
        }
    }
    // An answer to the last request may still be under way.
    let _ = tokio::time::timeout(Duration::from_millis(100), server).await;
    log::info!("ending; {}", agent.farewell());
    Ok(())
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once: the start has seen to it.
    ticks.reset();
    ticks
}

fn listen(kind: SignalKind) -> Result<Signal, AgentError> {
    signal(kind).map_err(|cause| AgentError::Io { what: "listening to signals", cause })
}

/// The signals that end the agent.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> Result<Self, AgentError> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {} _ = self.interrupt.recv() => {} }
    }
}
