//! Events → the log, the last ones in memory, a bounded file that outlives the agent, and answers to who asks for them.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::api::{ApiError, get};
use crate::core::events::{Event, Filter, Journal, MAX_LIMIT, Recorded, Severity};

/// The file that is written, in the state directory: one JSON object a line.
const FILE: &str = "events.jsonl";
/// The one before.
const FORMER_FILE: &str = "events.1.jsonl";
/// Touched while an agent serves: its time is the last sign of life.
const ALIVE_FILE: &str = "alive";
/// Size at which a new file is begun: twice this is kept, some ten thousand events.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Longest that a question for events that are yet to come is kept waiting, in seconds.
const MAX_WAIT_SECONDS: u64 = 30;

/// The events of an agent. Clones are the same log.
#[derive(Clone, Debug)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    last: watch::Sender<u64>,
    folder: PathBuf,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    /// `None` while nothing can be written.
    file: Option<File>,
    file_bytes: u64,
    /// Number of the last event that is in a file.
    written: u64,
}

/// The answer to a question for events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Recorded>,
    /// Number of the last one there is, whether or not it is among them.
    pub last: u64,
}

impl EventLog {
    /// Goes on with the events in this folder, which is made. While that cannot be, they are kept in memory only, and the log
    /// says so.
    pub fn open(folder: &Path) -> Self {
        let kept = read(folder, |journal| Journal::resume(journal));
        let (file, file_bytes) = match open_file(folder) {
            Ok((file, bytes)) => (Some(file), bytes),
            Err(error) => {
                log::warn!(
                    "{}: {error}; events are kept in memory only until that is mended; or name another --state-dir",
                    folder.display()
                );
                (None, 0)
            }
        };
        let (last, _) = watch::channel(kept.last());
        let inner = Mutex::new(Inner { written: kept.last(), journal: kept, file, file_bytes });
        Self(Arc::new(Shared { inner, last, folder: folder.to_owned() }))
    }

    /// Something happened: it is logged, kept, and told to who waits for it.
    pub fn record(&self, event: Event) {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = inner.journal.record(event, Timestamp::now());
        let level = match recorded.severity {
            Severity::Info => log::Level::Info,
            Severity::Warn => log::Level::Warn,
            Severity::Error => log::Level::Error,
        };
        log::log!(level, "{}", recorded.line());
        if let Err(error) = inner.write(&recorded, &self.0.folder) {
            log::warn!(
                "{}: {error}; events are kept in memory only until that is mended",
                self.0.folder.display()
            );
            inner.file = None;
        }
        drop(inner);
        self.0.last.send_replace(recorded.seq);
    }

    /// Tells if the agent that served last ended without a word. Those that never came to serve say nothing of it.
    pub fn note_lapse(&self) {
        let kinds = Filter { kind: Some("ready,ending,lapsed".to_owned()), limit: 1, ..Filter::default() };
        let told = from_folder(&self.0.folder, &kinds).pop();
        if !told.is_some_and(|told| matches!(told.event, Event::Ready { .. })) {
            return;
        }
        let Some(last) = self.latest(1).events.pop() else { return };
        let since = last_sign_of_life(&self.0.folder).map_or(last.time, |alive| alive.max(last.time));
        self.record(Event::Lapsed { since });
    }

    /// The agent serves: if it ends without a word, this says until when it did.
    pub fn sign_of_life(&self) {
        let path = self.0.folder.join(ALIVE_FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = file.and_then(|file| file.set_modified(SystemTime::now())) {
            log::debug!("{}: {error}", path.display());
        }
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Not at each event: there may be many, and each would go through all that is missing.
        if inner.file.is_none() {
            inner.catch_up(&self.0.folder);
        }
    }

    /// Where they are kept.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// The last events that are in memory, at most so many.
    pub fn latest(&self, limit: usize) -> Events {
        let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (events, _) = inner.journal.select(&Filter { limit, ..Filter::default() });
        Events { events, last: inner.journal.last() }
    }

    /// The events that the filter lets through.
    async fn select(&self, mut filter: Filter) -> Events {
        let mut last = self.0.last.subscribe();
        // Numbers beyond the last one are those of a log that was lost.
        if filter.after > Some(*last.borrow()) {
            filter.after = Some(0);
        }
        if filter.wait == 0 {
            return self.now(&filter).await;
        }
        let first = async {
            loop {
                let events = self.now(&filter).await;
                if !events.events.is_empty() || last.changed().await.is_err() {
                    return events;
                }
            }
        };
        let wait = Duration::from_secs(filter.wait.min(MAX_WAIT_SECONDS));
        match tokio::time::timeout(wait, first).await {
            Ok(events) => events,
            Err(_) => Events { events: Vec::new(), last: *self.0.last.borrow() },
        }
    }

    async fn now(&self, filter: &Filter) -> Events {
        let (events, complete, last) = {
            let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let (events, complete) = inner.journal.select(filter);
            (events, complete, inner.journal.last())
        };
        if complete {
            return Events { events, last };
        }
        let is_from_there_on = filter.after.is_some();
        let (folder, filter) = (self.0.folder.clone(), filter.clone());
        let older = tokio::task::spawn_blocking(move || from_folder(&folder, &filter)).await;
        match older {
            // If the disk could not be written, memory knows more.
            Ok(older)
                if older.len() > events.len() || (is_from_there_on && begins_before(&older, &events)) =>
            {
                Events { events: older, last }
            }
            _ => Events { events, last },
        }
    }
}

fn begins_before(one: &[Recorded], other: &[Recorded]) -> bool {
    one.first().zip(other.first()).is_some_and(|(one, other)| one.seq < other.seq)
}

impl Inner {
    /// Tries again to write, and then what could not be written, as far as memory has it.
    fn catch_up(&mut self, folder: &Path) {
        let written = open_file(folder).and_then(|(file, bytes)| {
            (self.file, self.file_bytes) = (Some(file), bytes);
            let missing = Filter { after: Some(self.written), limit: usize::MAX, ..Filter::default() };
            let (missing, _) = self.journal.select(&missing);
            missing.iter().try_for_each(|recorded| self.write(recorded, folder))
        });
        match written {
            Ok(()) => log::info!("{}: events are kept there again", folder.display()),
            Err(error) => {
                log::debug!("{}: {error}", folder.display());
                self.file = None;
            }
        }
    }

    fn write(&mut self, recorded: &Recorded, folder: &Path) -> io::Result<()> {
        // Where no new file can be begun, the old one must not grow with each try.
        if self.file_bytes >= MAX_FILE_BYTES {
            fs::rename(folder.join(FILE), folder.join(FORMER_FILE))?;
            let (file, bytes) = append_to(&folder.join(FILE))?;
            (self.file, self.file_bytes) = (Some(file), bytes);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_string(recorded)?;
        line.push('\n');
        file.write_all(line.as_bytes())?;
        self.written = recorded.seq;
        self.file_bytes += line.len() as u64;
        Ok(())
    }
}

/// Opens the file in this folder, which is made, to write at its end.
fn open_file(folder: &Path) -> io::Result<(File, u64)> {
    fs::create_dir_all(folder)?;
    append_to(&folder.join(FILE))
}

/// Opens a file to write at its end, and says how long it is. A line that a crash left unfinished is ended.
fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut bytes = file.metadata()?.len();
    if bytes > 0 {
        let mut end = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut end)?;
        if end != *b"\n" {
            file.write_all(b"\n")?;
            bytes += 1;
        }
    }
    Ok((file, bytes))
}

/// When an agent that keeps its events in this folder was last seen to serve, to about five seconds.
pub fn last_sign_of_life(folder: &Path) -> Option<Timestamp> {
    let modified = fs::metadata(folder.join(ALIVE_FILE)).and_then(|metadata| metadata.modified()).ok()?;
    Timestamp::try_from(modified).ok()
}

/// The kept events that the filter lets through, without an agent; oldest first.
pub fn from_folder(folder: &Path, filter: &Filter) -> Vec<Recorded> {
    let limit = filter.limit.min(MAX_LIMIT);
    read(folder, |events| {
        let mut wanted = events.filter(|event| filter.wants(event));
        if filter.after.is_some() {
            return wanted.by_ref().take(limit).collect();
        }
        let mut found = VecDeque::new();
        for event in wanted {
            if found.len() >= limit {
                found.pop_front();
            }
            found.push_back(event);
        }
        found.into()
    })
}

/// Has `work` go through the kept events in order. Lines that cannot be read are left out: a crash may have cut one.
pub(super) fn read<T>(folder: &Path, work: impl FnOnce(&mut dyn Iterator<Item = Recorded>) -> T) -> T {
    let files = [FORMER_FILE, FILE].into_iter().filter_map(|name| File::open(folder.join(name)).ok());
    let lines = files.flat_map(|file| BufReader::new(file).split(b'\n').map_while(Result::ok));
    work(&mut lines.filter_map(|line| serde_json::from_slice(&line).ok()))
}

/// Whether there are kept events in this folder.
pub fn are_kept(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// The routes of the API that answer questions for events.
pub fn routes(log: EventLog) -> Router {
    Router::new().route("/v1/events", get(events)).with_state(log)
}

async fn events(
    State(log): State<EventLog>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Events>, ApiError> {
    let Query(filter) = filter.map_err(|error| ApiError::invalid(error.body_text()))?;
    filter.check().map_err(ApiError::invalid)?;
    Ok(Json(log.select(filter).await))
}

#[cfg(test)]
mod tests;
