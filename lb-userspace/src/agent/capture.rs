//! Captures: a request → capturing programs on the interfaces, lines for who asked, and the load balancer's programs back.
//!
//! A task reads the packets, so that the loop only switches programs. One capture at a time: the ring buffer is one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::net::if_::if_indextoname;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep_until};

use super::state::Agent;
use crate::core::capture::{CaptureLine, CaptureRequest, CapturedPacket, EndReason};
use crate::core::image::Image;
use crate::io::api::{ApiError, CaptureAnswer, CaptureCall, ErrorKind, Request, Requests};
use crate::io::datapath::{
    CaptureFeed, CapturePrograms, CaptureRecords, Datapath, LoadError, since_epoch_ns,
};
use crate::io::host::give_back_memory;

/// Chunks of lines that wait for a slow reader.
const CHUNKS: usize = 64;
/// Packets that are read in one go: others are to have their turn.
const BATCH: usize = 128;
/// How often a sign of life is given, and counts are told.
const TICK: Duration = Duration::from_secs(1);

/// What of a capture the agent holds.
#[derive(Debug, Default)]
pub(super) enum Capturing {
    #[default]
    No,
    /// The kernel verifies the programs.
    Loading,
    /// They are on the interfaces.
    Running { names: watch::Sender<Arc<Image>>, stop: watch::Sender<Option<EndReason>> },
}

impl Agent {
    pub(super) fn on_capture(&mut self, call: CaptureCall) {
        match call {
            CaptureCall::Begin(request, answer) => self.begin_capture(request, answer),
            CaptureCall::Loaded(request, programs, answer) => {
                // Whoever asked may have gone: then the reader finds that out.
                let _ = answer.send(self.run_capture(request, *programs));
                // Loading the programs took much for a moment.
                give_back_memory();
            }
            CaptureCall::Over(answer) => {
                self.restore_programs();
                let _ = answer.send(());
            }
            CaptureCall::Stop(answer) => {
                let _ = answer.send(match &self.capturing {
                    Capturing::Running { stop, .. } => {
                        stop.send_replace(Some(EndReason::Stopped));
                        Ok(())
                    }
                    _ => Err(ApiError::conflict("no capture is under way")),
                });
            }
        }
    }

    fn begin_capture(&mut self, request: CaptureRequest, answer: CaptureAnswer) {
        if let Err(error) = self.admit_capture(&request) {
            let _ = answer.send(Err(error));
            return;
        }
        self.capturing = Capturing::Loading;
        let (pins, capacity) = (self.pins.clone(), self.kernel.tables().capacity());
        let requests = self.requests.clone();
        tokio::spawn(async move {
            let loaded = tokio::task::spawn_blocking(move || CapturePrograms::load(&pins, capacity)).await;
            let loaded = loaded.unwrap_or_else(|error| {
                Err(LoadError::Io { what: "loading the programs", cause: std::io::Error::other(error) })
            });
            let call = CaptureCall::Loaded(request, Box::new(loaded), answer);
            // If the agent has ended, so has this.
            let _ = requests.send(Request::Capture(call)).await;
        });
    }

    fn admit_capture(&self, request: &CaptureRequest) -> Result<(), ApiError> {
        if !matches!(self.capturing, Capturing::No) {
            return Err(ApiError::conflict("a capture is under way already; only one can be"));
        }
        let names = self.kernel.tables().names();
        request.wanted(&names).map_err(|errors| ApiError { kind: ErrorKind::Invalid, errors })?;
        if self.pins.linked_interfaces().map_err(ApiError::failed)?.is_empty() {
            return Err(ApiError::conflict("the program is attached to no interface: there are no packets"));
        }
        Ok(())
    }

    /// Puts the programs onto the interfaces, and has what they hand over read.
    fn run_capture(
        &mut self,
        request: CaptureRequest,
        programs: Result<CapturePrograms, LoadError>,
    ) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        self.capturing = Capturing::No;
        let names = Arc::new(self.kernel.tables().names());
        let wanted =
            request.wanted(&names).map_err(|errors| ApiError { kind: ErrorKind::Invalid, errors })?;
        let programs = programs.map_err(ApiError::failed)?;
        let (feed, records) = self
            .kernel
            .begin_capture(&self.pins, programs, &wanted, &request.ids(&names))
            .map_err(ApiError::failed)?;
        let (names, names_now) = watch::channel(names);
        let (stop, stopped) = watch::channel(None);
        let (sender, lines) = mpsc::channel(CHUNKS);
        self.capturing = Capturing::Running { names, stop };
        let interfaces = self.pins.linked_interfaces().map_err(ApiError::failed)?;
        let reader = Reader {
            number: 0,
            names: names_now,
            stopped,
            sender,
            since_epoch_ns: since_epoch_ns(),
            requests: self.requests.clone(),
            end: Instant::now() + Duration::from_secs(request.seconds),
            request,
        };
        tokio::spawn(reader.run(feed, records, interfaces));
        Ok(lines)
    }

    /// The reader is told of names and ids as they are now.
    pub(super) fn tell_capture_names(&self) {
        if let Capturing::Running { names, .. } = &self.capturing {
            names.send_replace(Arc::new(self.kernel.tables().names()));
        }
    }

    /// Ends a capture, if there is one, before something that it cannot outlive.
    pub(super) fn end_capture(&mut self, reason: EndReason) {
        if let Capturing::Running { stop, .. } = &self.capturing {
            stop.send_replace(Some(reason));
        }
        self.restore_programs();
    }

    fn restore_programs(&mut self) {
        if matches!(std::mem::take(&mut self.capturing), Capturing::Running { .. })
            && let Err(error) = self.kernel.end_capture(&self.pins)
        {
            log::error!(
                "capturing programs stay on the interfaces, and go on forwarding: {error}; start the agent anew"
            );
        }
        give_back_memory();
    }
}

/// Reads packets for one request.
struct Reader {
    request: CaptureRequest,
    number: u64,
    names: watch::Receiver<Arc<Image>>,
    stopped: watch::Receiver<Option<EndReason>>,
    sender: mpsc::Sender<Bytes>,
    since_epoch_ns: i64,
    requests: Requests,
    end: Instant,
}

impl Reader {
    async fn run(mut self, feed: CaptureFeed, records: CaptureRecords, interfaces: Vec<String>) {
        // SAFETY: the ring buffer keeps one descriptor for as long as it lives, and the registration owns the ring buffer.
        let records = unsafe { AsyncFd::register(records) };
        let reason = match (self.send(&[CaptureLine::Started { interfaces }]).await, records) {
            (Some(reason), _) => self.give_back(reason).await,
            (None, Ok(mut records)) => {
                let reason = self.read(&feed, &mut records).await;
                self.give_back(reason).await;
                let mut lines = Vec::new();
                while let Some(packet) = self.next(records.get_mut()) {
                    lines.push(packet);
                }
                let _ = self.sender.send(encode(&lines)).await;
                reason
            }
            (None, Err(error)) => {
                log::error!("captured packets cannot be read: {error}");
                self.give_back(EndReason::Stopped).await
            }
        };
        let _ = self.sender.send(encode(&[CaptureLine::Ended { reason, counts: feed.counts() }])).await;
    }

    /// Has the load balancer's programs put back.
    async fn give_back(&self, reason: EndReason) -> EndReason {
        // The agent that ends has done it already, and answers no more.
        if reason != EndReason::AgentEnds {
            let (over, done) = oneshot::channel();
            let _ = self.requests.send(Request::Capture(CaptureCall::Over(over))).await;
            let _ = done.await;
        }
        reason
    }

    /// Reads until there is a reason to end.
    async fn read(&mut self, feed: &CaptureFeed, records: &mut AsyncFd<CaptureRecords>) -> EndReason {
        let mut ticks = interval(TICK);
        loop {
            let mut lines = Vec::new();
            tokio::select! {
                biased;
                () = self.sender.closed() => return EndReason::Gone,
                _ = self.stopped.changed() => return self.why_stopped(),
                () = sleep_until(self.end) => return EndReason::Time,
                _ = ticks.tick() => {
                    feed.keep_alive();
                    lines.push(CaptureLine::Counts(feed.counts()));
                }
                _ = self.names.changed() => {
                    let ids = self.request.ids(&self.names.borrow_and_update());
                    feed.set_ids(&ids);
                }
                Ok(mut ready) = records.readable_mut() => {
                    while lines.len() < BATCH
                        && let Some(packet) = self.next(ready.get_inner_mut())
                    {
                        lines.push(packet);
                    }
                    if lines.len() < BATCH {
                        ready.clear_ready();
                    }
                }
            }
            if !lines.is_empty()
                && let Some(reason) = self.send(&lines).await
            {
                return reason;
            }
            if self.is_enough() {
                return EndReason::Count;
            }
        }
    }

    fn is_enough(&self) -> bool {
        self.request.count > 0 && self.number >= self.request.count
    }

    /// The next packet, if there is one and it is still asked for.
    fn next(&mut self, records: &mut CaptureRecords) -> Option<CaptureLine> {
        if self.is_enough() {
            return None;
        }
        loop {
            let record = records.next()?;
            let names = self.names.borrow();
            let packet =
                CapturedPacket::read(&record, self.number + 1, self.since_epoch_ns, &names, interface_name);
            if let Some(packet) = packet {
                self.number += 1;
                return Some(CaptureLine::Packet(Box::new(packet)));
            }
        }
    }

    /// Sends lines, unless there is a reason to end: who asked may stand still.
    async fn send(&mut self, lines: &[CaptureLine]) -> Option<EndReason> {
        tokio::select! {
            sent = self.sender.send(encode(lines)) => sent.err().map(|_| EndReason::Gone),
            _ = self.stopped.changed() => Some(self.why_stopped()),
            () = sleep_until(self.end) => Some(EndReason::Time),
        }
    }

    /// Without a reason, the agent is gone.
    fn why_stopped(&self) -> EndReason {
        self.stopped.borrow().unwrap_or(EndReason::AgentEnds)
    }
}

fn encode(lines: &[CaptureLine]) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

fn interface_name(index: u32) -> String {
    if_indextoname(index).map_or_else(|_| format!("if{index}"), |name| name.to_string_lossy().into_owned())
}
