//! A change on probation → confirmed, or undone: in time, by who asked for it, or by the agent that starts next.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::AgentError;
use super::apply::Foreseen;
use super::change::Origin;
use super::start::parse_config;
use super::state::Agent;
use crate::core::config::Config;
use crate::core::diff::diff;
use crate::core::events::Event;
use crate::core::stats::Unconfirmed;
use crate::io::api::{ApiError, ApplyReport, Confirmed, ErrorKind, HistoryReport};
use crate::io::history::{Entry, History, Pending};
use crate::io::store;

/// The longest that a change may wait for its confirmation.
const MAX_WAIT_SECONDS: u64 = 24 * 60 * 60;
/// How long until undoing a change is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A change that waits for its confirmation.
#[derive(Debug)]
pub(super) struct Waiting {
    until: Instant,
    pending: Pending,
    /// What was before is in force again, but the file does not say so yet.
    undone: bool,
    /// Why undoing it failed the last time.
    failed: Option<String>,
}

/// Returns at the deadline; never, if there is none.
pub(super) async fn missed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Takes back what a former agent brought into force and nobody confirmed: the file says again what it said before.
///
/// Yields what is to be told once there are events.
pub(super) fn undo_unconfirmed(config: &Path, history: &mut History) -> Result<Option<Event>, AgentError> {
    let pending = match history.pending() {
        Ok(Some(pending)) => pending,
        Ok(None) => return Ok(None),
        Err(error) => {
            log::warn!("{error}: a change may not have been confirmed, and is not undone");
            return Ok(None);
        }
    };
    let mut undone = None;
    let now = store::read_if_there(config)?;
    if now.as_ref() == Some(&pending.after) {
        store::prepare(config, &pending.before)?.commit()?;
        let what = format!("undo of {}: the agent ended before it was confirmed", pending.what);
        let configs = [&pending.after, &pending.before].map(|text| parse_config(text, "").ok());
        let changes =
            if let [Some(after), Some(before)] = configs { diff(&after, &before) } else { Vec::new() };
        let revision = history.last_revision() + 1;
        undone = Some(Event::applied(&what, revision, &changes, [0, 0]));
        let entry = Entry::new(revision, None, what).with_effect(&changes, &[], 0);
        if let Err(error) = history.push(entry, &pending.before) {
            log::warn!("not in the history: {error}");
        }
    } else if now.as_ref() != Some(&pending.before) {
        log::warn!(
            "{}: was changed since {:?}, which nobody confirmed; it is left as it is",
            config.display(),
            pending.what
        );
    }
    history.clear_pending()?;
    Ok(undone)
}

/// Refuses a time for a confirmation that none can have.
pub(super) fn check_within(seconds: Option<u64>) -> Result<(), ApiError> {
    match seconds {
        Some(seconds) if !(1..=MAX_WAIT_SECONDS).contains(&seconds) => Err(ApiError::invalid(format!(
            "--confirm-within: must be 1s to {}m, not {seconds}s",
            MAX_WAIT_SECONDS / 60
        ))),
        _ => Ok(()),
    }
}

impl Agent {
    /// When a change must have been confirmed.
    pub(super) fn confirm_by(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.until)
    }

    /// No change but its confirmation or its undoing while one waits.
    pub(super) fn refuse_while_waiting(&self) -> Result<(), ApiError> {
        match &self.waiting {
            None => Ok(()),
            Some(waiting) if waiting.undone => Err(self.still_in_the_file(waiting)),
            Some(waiting) => Err(ApiError::conflict(format!(
                "revision {} waits for its confirmation for another {} s: `sluice confirm` keeps it, `sluice rollback` \
                 undoes it",
                waiting.pending.revision,
                seconds_until(waiting.until)
            ))),
        }
    }

    /// Nothing but writing the file is left of a change, and that fails.
    fn still_in_the_file(&self, waiting: &Waiting) -> ApiError {
        ApiError::conflict(format!(
            "revision {} is undone, but {} cannot be written and still says it; the log says why. It is tried again in {} s, and \
             by `sluice rollback` at once",
            waiting.pending.revision,
            self.options.config.display(),
            seconds_until(waiting.until)
        ))
    }

    /// Keeps on the disk what a change must be undone with, before it is made.
    pub(super) fn promise_undo(
        &self,
        new: &Origin,
        within_seconds: Option<u64>,
    ) -> Result<Option<Waiting>, ApiError> {
        let Some(seconds) = within_seconds.filter(|_| new.text != self.text) else { return Ok(None) };
        let pending = Pending {
            revision: self.revision.max(self.history.last_revision()) + 1,
            uid: new.uid,
            what: new.what.clone(),
            before: self.text.clone(),
            after: new.text.clone(),
        };
        self.history.set_pending(&pending).map_err(|error| {
            ApiError::failed(format!(
                "{error}; without this file nothing could be undone: start the agent with another --state-dir"
            ))
        })?;
        Ok(Some(Waiting {
            until: Instant::now() + Duration::from_secs(seconds),
            pending,
            undone: false,
            failed: None,
        }))
    }

    /// The change was not made.
    pub(super) fn forget_promise(&self) {
        if let Err(error) = self.history.clear_pending() {
            // It names a text that the file does not hold, so nobody acts on it.
            log::warn!("{error}");
        }
    }

    /// Keeps the change that waits.
    pub(super) fn confirm(&mut self, uid: Option<u32>) -> Result<Confirmed, ApiError> {
        match &self.waiting {
            Some(waiting) if waiting.undone => return Err(self.still_in_the_file(waiting)),
            Some(_) => {}
            None => {
                return Err(ApiError::conflict(format!(
                    "no change waits for its confirmation: it was made without --confirm-within, changed nothing, or its time is \
                     over; revision {} is in force (`sluice history`)",
                    self.revision
                )));
            }
        }
        self.history.clear_pending().map_err(ApiError::failed)?;
        self.waiting = None;
        let by = uid.map_or(String::new(), |uid| format!(" by uid {uid}"));
        log::info!("revision {} is confirmed{by}", self.revision);
        if let Err(error) = self.history.confirm(uid) {
            log::warn!("the confirmation is not in the history: {error}");
        }
        Ok(Confirmed { revision: self.revision })
    }

    /// Nobody confirmed in time.
    pub(super) async fn on_unconfirmed(&mut self) {
        const WHY: &str = "undo, for nobody confirmed in time";
        let Err(error) = self.roll_back_unconfirmed(None, WHY).await else { return };
        let cause = error.errors.join("; ");
        let Some(waiting) = &mut self.waiting else { return };
        // What it says may count something that changes all the time.
        let is_news = waiting.failed.replace(cause.clone()).is_none();
        if waiting.undone {
            log::error!("undone, but not in the file: {cause}");
        } else if is_news {
            self.record(Event::refused(WHY, &error.errors));
        }
    }

    /// The agent ends, so nobody can confirm any more.
    pub(super) async fn end_unconfirmed(&mut self) {
        if self.waiting.is_some()
            && let Err(error) = self.roll_back_unconfirmed(None, "undo, for the agent ended").await
        {
            log::error!("not undone; the next start will: {}", error.errors.join("; "));
        }
    }

    /// Undoes the change that waits. If that fails, it goes on waiting, and is tried again.
    pub(super) async fn roll_back_unconfirmed(
        &mut self,
        uid: Option<u32>,
        why: &str,
    ) -> Result<ApplyReport, ApiError> {
        let mut waiting = self.waiting.take().ok_or_else(nothing_waits)?;
        let done = self.undo(&mut waiting, uid, why).await;
        if done.is_err() {
            waiting.until = Instant::now() + RETRY;
            self.waiting = Some(waiting);
        }
        done
    }

    /// What undoing the change that waits would do.
    pub(super) fn foresee_undo(&mut self) -> Result<ApplyReport, ApiError> {
        let waiting = self.waiting.as_ref().ok_or_else(nothing_waits)?;
        let before = parse_before(&waiting.pending)?;
        let Foreseen { mut report, capacity, .. } = self.foresee(&before, true)?;
        let refusal = self.kernel.foresee_resize(capacity).err();
        report.warnings.extend(refusal.map(|error| format!("would be refused: {error}")));
        Ok(report)
    }

    async fn undo(
        &mut self,
        waiting: &mut Waiting,
        uid: Option<u32>,
        why: &str,
    ) -> Result<ApplyReport, ApiError> {
        let Waiting { pending, undone, .. } = waiting;
        let path = self.options.config.clone();
        let config = parse_before(pending)?;
        let now = store::read_if_there(&path).map_err(ApiError::failed)?;
        // Safety first: what could not be written yet is not what customers wait for.
        let (_, mut report) = self.put_in_force(config).await?;
        *undone = true;
        let mut what = format!("{why} ({})", pending.what);
        if now.as_ref() == Some(&pending.after) {
            store::prepare(&path, &pending.before)
                .and_then(|written| written.commit())
                .map_err(ApiError::failed)?;
        } else if now.as_ref() != Some(&pending.before) {
            let left = format!("{}: was changed meanwhile and is left as it is", path.display());
            // Who looks for it later reads the history and the events: the next start would bring it into force.
            what = format!("{what}; {left}");
            let warning =
                format!("{left}, so it does not say what runs, and the next start takes what it says");
            log::warn!("{warning}");
            report.warnings.push(warning);
        }
        self.history.clear_pending().map_err(ApiError::failed)?;
        self.note(Origin { text: pending.before.clone(), what, uid }, &mut report);
        Ok(report)
    }

    /// The change that waits for its confirmation.
    pub(super) fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.waiting.as_ref().map(|waiting| Unconfirmed {
            revision: waiting.pending.revision,
            seconds_left: seconds_until(waiting.until),
            undone: waiting.undone,
            failed: waiting.failed.clone(),
        })
    }

    /// What was changed lately.
    pub(super) fn history_report(&self) -> HistoryReport {
        HistoryReport {
            revision: self.revision,
            unconfirmed: self.unconfirmed(),
            entries: self.history.entries().rev().cloned().collect(),
        }
    }
}

fn nothing_waits() -> ApiError {
    ApiError::conflict("no change waits for its confirmation")
}

/// The configuration that was in force before a change.
fn parse_before(pending: &Pending) -> Result<Config, ApiError> {
    parse_config(&pending.before, "the configuration before")
        .map_err(|errors| ApiError { kind: ErrorKind::Invalid, errors })
}

fn seconds_until(until: Instant) -> u64 {
    until.saturating_duration_since(Instant::now()).as_millis().div_ceil(1_000) as u64
}
