//! Configurations that were brought into force → files below the state directory, one each, and back.
//!
//! A change that waits for its confirmation is kept beside them, with what was before it: whoever starts next can undo it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::store::{self, StoreError};
use crate::core::diff::Change;
use crate::core::effect::RingChange;

/// Changes that are kept, at most.
const MAX_ENTRIES: usize = 100;
/// What they may take on the disk, in bytes; the last two are kept whatever they take.
const MAX_BYTES: u64 = 16 << 20;
/// Differences, and rings, that are told of one change.
const MAX_TOLD: usize = 20;

/// A configuration that was brought into force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// The user who asked for it; none if the agent did it by itself, or by a signal.
    pub uid: Option<u32>,
    /// What was asked for.
    pub what: String,
    /// What differs from the one before: the first values.
    pub changes: Vec<Change>,
    /// How many values differ.
    pub changes_count: usize,
    /// What happened to services: the first, without their backends.
    pub rings: Vec<RingChange>,
    /// Live flows that lost their backend.
    pub flows_lost: u64,
    /// Those of the others that may have, for their service gave up a VIP.
    #[serde(default)]
    pub flows_in_doubt: u64,
    /// That somebody confirmed it, if it waited for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmation>,
}

/// That a change was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// When.
    pub at: Timestamp,
    /// The user who did so, if the kernel knows it.
    pub uid: Option<u32>,
}

impl Entry {
    /// An entry of now.
    pub fn new(revision: u64, uid: Option<u32>, what: String) -> Self {
        Self {
            revision,
            at: Timestamp::now(),
            uid,
            what,
            changes: Vec::new(),
            changes_count: 0,
            rings: Vec::new(),
            flows_lost: 0,
            flows_in_doubt: 0,
            confirmed: None,
        }
    }

    /// The same with what the change did.
    #[must_use]
    pub fn with_effect(mut self, changes: &[Change], rings: &[RingChange], flows_lost: u64) -> Self {
        self.changes = changes.iter().take(MAX_TOLD).cloned().collect();
        self.changes_count = changes.len();
        let short = |ring: &RingChange| RingChange { backends: Vec::new(), ..ring.clone() };
        self.rings = rings.iter().take(MAX_TOLD).map(short).collect();
        self.flows_lost = flows_lost;
        self.flows_in_doubt = rings.iter().map(|ring| ring.flows_in_doubt).sum();
        self
    }
}

/// An entry as it is on the disk.
#[derive(Serialize, Deserialize)]
struct Kept<E, T> {
    entry: E,
    /// The configuration's text.
    config: T,
}

/// A change that is undone unless it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The revision it made.
    pub revision: u64,
    /// Who asked for it.
    pub uid: Option<u32>,
    /// What was asked for.
    pub what: String,
    /// The configuration's text before.
    pub before: String,
    /// The configuration's text after.
    pub after: String,
}

/// What a change of the configuration left behind.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    /// The oldest first, with the bytes that each takes on the disk.
    entries: VecDeque<(Entry, u64)>,
}

impl History {
    /// Reads what there is below the state directory; what cannot be read is told and left out.
    pub fn open(state_dir: &Path) -> Self {
        let folder = state_dir.join("history");
        let mut history = Self { folder, entries: VecDeque::new() };
        if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&history.folder) {
            log::warn!(
                "{}: {error}; no change can be undone after a restart; name another --state-dir",
                history.folder.display()
            );
            return history;
        }
        let mut revisions: Vec<u64> = history.revisions_on_disk();
        revisions.sort_unstable();
        for revision in revisions {
            let path = history.path_of(revision);
            match read_json::<Kept<Entry, serde::de::IgnoredAny>>(&path) {
                Ok(Some((kept, bytes))) if kept.entry.revision == revision => {
                    history.entries.push_back((kept.entry, bytes));
                }
                Ok(_) => log::warn!("{}: another revision than its name says; left out", path.display()),
                Err(error) => log::warn!("{error}; left out of the history"),
            }
        }
        history
    }

    fn revisions_on_disk(&self) -> Vec<u64> {
        let Ok(files) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = files.flatten().filter_map(|file| file.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect()
    }

    fn path_of(&self, revision: u64) -> PathBuf {
        self.folder.join(format!("{revision:010}.json"))
    }

    fn pending_path(&self) -> PathBuf {
        self.folder.join("unconfirmed.json")
    }

    /// Reads what there is below the state directory, changing nothing.
    pub fn look(state_dir: &Path) -> Result<Vec<(Entry, String)>, StoreError> {
        let folder = state_dir.join("history");
        match fs::read_dir(&folder) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(StoreError { path: folder, cause }),
            Ok(_) => {}
        }
        let history = Self { folder, entries: VecDeque::new() };
        let mut kept = Vec::new();
        for revision in history.revisions_on_disk() {
            let path = history.path_of(revision);
            // One that was dropped meanwhile, or cannot be read, is none that is kept.
            if let Ok(Some((Kept { entry, config }, _))) = read_json::<Kept<Entry, String>>(&path) {
                kept.push((entry, config));
            }
        }
        Ok(kept)
    }

    /// The changes that are kept, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().map(|(entry, _)| entry)
    }

    /// The last revision; 0 if there is none.
    pub fn last_revision(&self) -> u64 {
        self.entries().next_back().map_or(0, |entry| entry.revision)
    }

    /// The text of a revision; none if it is not kept.
    pub fn text(&self, revision: u64) -> Result<Option<String>, StoreError> {
        let kept = read_json::<Kept<Entry, String>>(&self.path_of(revision))?;
        Ok(kept.map(|(kept, _)| kept.config))
    }

    /// Notes what was brought into force. On an error it is known until the agent ends.
    pub fn push(&mut self, entry: Entry, config: &str) -> Result<(), StoreError> {
        let path = self.path_of(entry.revision);
        let written = write_json(&path, &Kept { entry: &entry, config });
        self.entries.push_back((entry, *written.as_ref().unwrap_or(&0)));
        self.forget_oldest();
        written.map(drop)
    }

    /// Notes that the last change was confirmed. On an error this is known until the agent ends.
    pub fn confirm(&mut self, uid: Option<u32>) -> Result<(), StoreError> {
        let Some((last, _)) = self.entries.back_mut() else { return Ok(()) };
        last.confirmed = Some(Confirmation { at: Timestamp::now(), uid });
        let last = last.clone();
        match self.text(last.revision)? {
            Some(config) => {
                write_json(&self.path_of(last.revision), &Kept { entry: &last, config }).map(drop)
            }
            None => Ok(()),
        }
    }

    fn forget_oldest(&mut self) {
        let bytes = |entries: &VecDeque<(Entry, u64)>| entries.iter().map(|(_, bytes)| bytes).sum::<u64>();
        while self.entries.len() > MAX_ENTRIES || self.entries.len() > 2 && bytes(&self.entries) > MAX_BYTES {
            let Some((oldest, _)) = self.entries.pop_front() else { return };
            // One that stays is found and forgotten at the next start.
            let _ = fs::remove_file(self.path_of(oldest.revision));
        }
    }

    /// The change that waits for its confirmation.
    pub fn pending(&self) -> Result<Option<Pending>, StoreError> {
        read_json(&self.pending_path()).map(|found| found.map(|(pending, _)| pending))
    }

    /// Notes a change that waits for its confirmation.
    pub fn set_pending(&self, pending: &Pending) -> Result<(), StoreError> {
        write_json(&self.pending_path(), pending).map(drop)
    }

    /// No change waits any more.
    pub fn clear_pending(&self) -> Result<(), StoreError> {
        let path = self.pending_path();
        let removed = fs::remove_file(&path).and_then(|()| fs::File::open(&self.folder)?.sync_all());
        match removed {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(StoreError { path, cause }),
            _ => Ok(()),
        }
    }
}

/// What a file holds, and its size; none if there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<(T, u64)>, StoreError> {
    let text = match store::read(path) {
        Err(error) if error.cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let value = serde_json::from_str(&text)
        .map_err(|error| StoreError { path: path.to_owned(), cause: io::Error::other(error) })?;
    Ok(Some((value, text.len() as u64)))
}

/// Writes a file whole, safe on the disk; its size.
fn write_json(path: &Path, value: &impl Serialize) -> Result<u64, StoreError> {
    let text = serde_json::to_string(value)
        .map_err(|error| StoreError { path: path.to_owned(), cause: io::Error::other(error) })?;
    store::prepare(path, &text)?.commit()?;
    Ok(text.len() as u64)
}

#[cfg(test)]
mod tests;
