//! The agent's loop: events from io → decisions of core → actions of io.

mod apply;
mod capture;
mod change;
mod confirm;
mod error;
mod found;
mod hops;
mod packet_log;
mod paths;
mod probing;
mod reconcile;
mod requests;
mod signals;
mod start;
mod state;
mod trend;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

pub use error::AgentError;

use probing::Report;
use state::Agent;

use crate::core::capture::EndReason;
use crate::core::events::Event;
use crate::core::trend::STEP;
use crate::io::api::{self, ControlSocket, ListenError, Peer, Request, SocketFile};
use crate::io::datapath::Datapath;
use crate::io::events::EventLog;
use crate::io::host::{give_back_memory, keep_little_memory};
use crate::io::{console, events, report};

/// How often idle flows are swept out of the flow table.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How often next hops are looked at although nothing tells of a change: this also keeps those verified that no
/// health check does.
const HOP_INTERVAL: Duration = Duration::from_secs(15);
/// How often next hops that did not answer are asked for again.
const HOP_RETRY: Duration = Duration::from_secs(1);

/// How often to look at what customers' packets show, and whether they fill the table of translations.
const SIGNALS_INTERVAL: Duration = Duration::from_secs(2);

/// How long an agent that is just ending may keep the socket.
const HANDOVER: Duration = Duration::from_secs(3);
/// How often to look whether it still does.
const HANDOVER_POLL: Duration = Duration::from_millis(100);

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
    /// Where the history and events are kept.
    pub state_dir: PathBuf,
    /// Whether each packet's verdict is logged.
    pub log_packets: bool,
    /// The object to load in the place of the one that is built in.
    pub object: Option<PathBuf>,
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
    // A wrong configuration is told as such, whatever else stands in the way.
    start::read_config(&options)?;
    set_limits();
    let (mut end, mut reload) = (EndSignals::new()?, listen(SignalKind::hangup())?);
    let (request_sender, mut requests) = mpsc::channel::<Request>(64);
    let (report_sender, mut reports) = mpsc::channel::<Report>(1_024);
    let ControlSocket { file, listener } = tokio::select! {
        control = listen_control(&options.socket) => control?,
        () = end.received() => return Ok(()),
    };
    let mut events = None;
    let mut agent = tokio::select! {
        agent = start::start(options, request_sender.clone(), report_sender, &mut reports, &mut events) => agent?,
        () = end.received() => {
            end_early(events);
            return Ok(());
        }
    };
    let mut changes = agent.resolver.changes();
    // What changed while the agent started was told to nobody.
    agent.refresh_network().await;
    let routes = routes(request_sender, &agent.events);
    let server = axum::serve(listener, routes.into_make_service_with_connect_info::<Peer>()).into_future();
    tokio::pin!(server);
    let mut timers = Timers::new();
    agent.begin_to_serve();
    loop {
        let next = tokio::select! {
            biased;
            () = end.received() => Next::End,
            _ = reload.recv() => {
                agent.reload().await;
                Next::Continue
            }
            () = confirm::missed(agent.confirm_by()) => {
                agent.on_unconfirmed().await;
                Next::Continue
            }
            Some(report) = reports.recv() => {
                agent.on_probes(report, &mut reports).await;
                Next::Continue
            }
            Some(request) = requests.recv() => agent.on_request(request).await,
            Some(_) = changes.next() => {
                agent.refresh_network().await;
                Next::Continue
            }
            due = timers.next() => {
                agent.on_due(due).await;
                Next::Continue
            }
            () = agent.ramp_due() => agent.on_ramp(),
            served = &mut server => {
                log::error!("the API ended: {served:?}");
                Next::End
            }
            () = std::future::ready(()), if agent.walk.is_under_way() => {
                agent.walk_on().await;
                Next::Continue
            }
        };
        if next == Next::End {
            break;
        }
        agent.kernel.tables_mut().unmap();
    }
    hand_over(agent, file, server).await;
    Ok(())
}

/// What the control socket answers.
fn routes(requests: mpsc::Sender<Request>, log: &EventLog) -> Router {
    api::control_routes(requests)
        .merge(events::routes(log.clone()))
        .merge(console::routes(log.clone()))
        .merge(report::routes(log.clone()))
}

/// What the agent does at regular times.
struct Timers {
    recheck: Interval,
    retry: Interval,
    look: Interval,
    signals: Interval,
    sweep: Interval,
}

/// What is to be done now.
enum Due {
    Recheck,
    Retry,
    Look,
    Signals,
    Sweep,
}

impl Timers {
    fn new() -> Self {
        let (recheck, retry) = (every(HOP_INTERVAL), every(HOP_RETRY));
        let (look, signals) = (every(STEP), every(SIGNALS_INTERVAL));
        Self { recheck, retry, look, signals, sweep: every(SWEEP_INTERVAL) }
    }

    async fn next(&mut self) -> Due {
        tokio::select! {
            _ = self.recheck.tick() => Due::Recheck,
            _ = self.retry.tick() => Due::Retry,
            _ = self.look.tick() => Due::Look,
            _ = self.signals.tick() => Due::Signals,
            _ = self.sweep.tick() => Due::Sweep,
        }
    }
}

impl Agent {
    fn begin_to_serve(&mut self) {
        self.note_trend();
        self.kernel.tables_mut().unmap();
        // Loading the program takes much for a moment.
        give_back_memory();
        start::notify_ready();
        self.record(Event::Ready { version: env!("CARGO_PKG_VERSION").to_owned(), what: self.describe() });
    }

    async fn on_due(&mut self, due: Due) {
        match due {
            Due::Recheck => self.refresh_network().await,
            Due::Retry => {
                self.refresh_interfaces().await;
                self.retry_hops().await;
                self.tell_capture_names();
            }
            Due::Look => {
                self.note_trend();
                self.events.sign_of_life();
            }
            Due::Signals => {
                self.look_for_signals();
                self.relieve_translations();
            }
            Due::Sweep => {
                self.sweep();
                give_back_memory();
            }
        }
    }
}

/// Tells that the agent ends which has not begun to serve; in its log of events, if it has that already.
fn end_early(events: Option<EventLog>) {
    let data_plane = "the agent had not begun to serve; what is attached goes on forwarding".to_owned();
    let event = Event::Ending { data_plane };
    match events {
        Some(events) => events.record(event),
        None => log::info!("{event}"),
    }
}

/// Ends the agent, and lets a new one take over.
async fn hand_over(mut agent: Agent, socket: SocketFile, server: impl Future) {
    if !agent.detached {
        agent.end_unconfirmed().await;
        agent.end_capture(EndReason::AgentEnds);
    }
    agent.record(Event::Ending { data_plane: agent.farewell().to_owned() });
    // A new agent takes over when the socket goes: by then pin directory and metrics port are to be free, once the
    // tasks that were told to end have done so.
    drop(agent);
    tokio::task::yield_now().await;
    drop(socket);
    // An answer to the last request may still be under way.
    let _ = tokio::time::timeout(Duration::from_millis(100), server).await;
}

/// Takes the control socket; an agent that answers on it may be just ending.
async fn listen_control(path: &Path) -> Result<ControlSocket, ListenError> {
    let deadline = Instant::now() + HANDOVER;
    loop {
        match api::listen_control(path).await {
            Err(ListenError::InUse(_)) if Instant::now() < deadline => sleep(HANDOVER_POLL).await,
            result => return result,
        }
    }
}

/// Lets the agent open as many files as it may, for each probe under way is one, and keep little memory.
fn set_limits() {
    keep_little_memory();
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {error}");
    }
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
