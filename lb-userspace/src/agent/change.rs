//! A change that is asked for → in force and in the agent's file, or neither.

use super::AgentError;
use super::apply::{Foreseen, Former};
use super::confirm::check_within;
use super::start::{self, parse_config};
use super::state::Agent;
use crate::core::config::Config;
use crate::core::diff::diff;
use crate::core::edit::{EditError, edited_from, parse_beside};
use crate::core::events::{Event, printable};
use crate::io::api::{ApiError, ApplyReport, ApplyRequest, Asked, EditRequest, ErrorKind, RollbackRequest};
use crate::io::history::Entry;
use crate::io::probes::TlsClients;
use crate::io::store::{self, Prepared};

/// Where another configuration comes from.
pub(super) struct Origin {
    pub(super) text: String,
    /// What was asked for.
    pub(super) what: String,
    /// Who asked.
    pub(super) uid: Option<u32>,
}

/// On what terms a change is asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    dry_run: bool,
    if_revision: Option<u64>,
    confirm_within_seconds: Option<u64>,
    overwrite: bool,
}

/// New content of the agent's file, written aside.
struct Written {
    prepared: Prepared,
    /// What the file held then; none if there was none.
    seen: Option<String>,
}

impl Agent {
    /// Does what is asked for. Requests are answered one after the other, so no two changes meet.
    pub(super) async fn on_change(
        &mut self,
        asked: Asked,
        uid: Option<u32>,
    ) -> Result<ApplyReport, ApiError> {
        let trial = asked.is_trial();
        let what = asked.to_string();
        let done = self.carry_out(asked, uid).await;
        if let Err(error) = &done
            && !trial
        {
            self.record(Event::refused(&what, &error.errors));
        }
        done
    }

    async fn carry_out(&mut self, asked: Asked, uid: Option<u32>) -> Result<ApplyReport, ApiError> {
        match asked {
            Asked::Apply(ApplyRequest {
                config: text,
                name,
                dry_run,
                if_revision,
                confirm_within_seconds,
                overwrite,
            }) => {
                let terms = Terms { dry_run, if_revision, confirm_within_seconds, overwrite };
                self.admit(terms)?;
                let config = self.parse(&text, &name)?;
                self.change(config, Origin { text, what: format!("apply {name}"), uid }, terms).await
            }
            Asked::Edit(EditRequest { edit, dry_run, if_revision, confirm_within_seconds }) => {
                let terms = Terms { dry_run, if_revision, confirm_within_seconds, overwrite: false };
                self.admit(terms)?;
                let (text, config) =
                    edited_from(&self.text, &self.config, &edit).map_err(|error| match error {
                        EditError::Invalid(errors) => ApiError { kind: ErrorKind::Invalid, errors },
                        error => ApiError::invalid(error),
                    })?;
                // What is taken out of the file goes, although its default holds then.
                if config == self.config && (text == self.text || !edit.takes_away()) {
                    return Ok(self.foresee(&config, dry_run)?.report);
                }
                self.change(config, Origin { text, what: edit.to_string(), uid }, terms).await
            }
            Asked::Rollback(RollbackRequest { revision: None, dry_run, if_revision, .. })
                if self.waiting.is_some() =>
            {
                self.refuse_stale(if_revision)?;
                if dry_run {
                    return self.foresee_undo();
                }
                self.roll_back_unconfirmed(uid, "rollback").await
            }
            Asked::Rollback(RollbackRequest { revision, dry_run, if_revision, confirm_within_seconds }) => {
                let terms = Terms { dry_run, if_revision, confirm_within_seconds, overwrite: false };
                self.admit(terms)?;
                let (revision, text) = self.former(revision)?;
                let config = self.parse(&text, &format!("revision {revision}"))?;
                let what = format!("rollback to revision {revision}");
                self.change(config, Origin { text, what, uid }, terms).await
            }
        }
    }

    /// Reads a configuration that can be brought into force; most are nearly that in force.
    fn parse(&self, text: &str, name: &str) -> Result<Config, ApiError> {
        if let Some(config) = parse_beside(text, &self.text, &self.config) {
            return Ok(config);
        }
        let config =
            parse_config(text, name).map_err(|errors| ApiError { kind: ErrorKind::Invalid, errors })?;
        self.refuse_what_needs_a_restart(&config, text, name)?;
        Ok(config)
    }

    /// The text of a revision, by default of that before the last change.
    fn former(&self, revision: Option<u64>) -> Result<(u64, String), ApiError> {
        let before =
            || self.history.entries().rev().map(|entry| entry.revision).find(|&old| old < self.revision);
        let revision = match revision {
            Some(revision) => revision,
            None => before().ok_or_else(|| {
                ApiError::conflict("there is no change to undo; `sluice history` lists them")
            })?,
        };
        match self.history.text(revision) {
            Ok(Some(text)) => Ok((revision, text)),
            Ok(None) => Err(ApiError::invalid(format!(
                "revision {revision} is not kept; `sluice history` lists those that are"
            ))),
            Err(error) => Err(ApiError::failed(error)),
        }
    }

    /// Refuses what rests on another configuration than the one in force, or could not be kept to.
    fn admit(&self, terms: Terms) -> Result<(), ApiError> {
        check_within(terms.confirm_within_seconds)?;
        self.refuse_stale(terms.if_revision)?;
        if terms.dry_run { Ok(()) } else { self.refuse_while_waiting() }
    }

    fn refuse_stale(&self, if_revision: Option<u64>) -> Result<(), ApiError> {
        match if_revision {
            Some(expected) if expected != self.revision => Err(ApiError::conflict(format!(
                "the configuration was changed: revision {} is in force, not {expected}; look at `sluice history`, and ask \
                 again",
                self.revision
            ))),
            _ => Ok(()),
        }
    }

    /// Brings a configuration into force and writes it to the agent's file. If either fails, neither is done.
    async fn change(
        &mut self,
        config: Config,
        origin: Origin,
        terms: Terms,
    ) -> Result<ApplyReport, ApiError> {
        let written = self.write_aside(&origin.text, terms.overwrite);
        if terms.dry_run {
            let Foreseen { mut report, capacity, .. } = self.foresee(&config, true)?;
            let refusals = [
                self.refuse_while_waiting().err(),
                written.err(),
                self.kernel.foresee_resize(capacity).err().map(ApiError::failed),
                self.prepare(&config).await.err(),
                self.checks(&config).err().map(ApiError::failed),
            ];
            let refusals = refusals.into_iter().flatten().flat_map(|error| error.errors);
            report.warnings.extend(refusals.map(|error| format!("would be refused: {error}")));
            return Ok(report);
        }
        let written = written?;
        let waiting = self.promise_undo(&origin, terms.confirm_within_seconds)?;
        let (former, mut report) = match self.put_in_force(config).await {
            Ok(done) => done,
            Err(error) => {
                self.forget_promise();
                return Err(error);
            }
        };
        if let Err(error) = written.map_or(Ok(()), |written| self.put_in_place(written)) {
            self.forget_promise();
            return Err(self.back_to(former, error).await);
        }
        report.confirm_within_seconds = waiting.as_ref().and(terms.confirm_within_seconds);
        self.waiting = waiting;
        self.note(origin, &mut report);
        Ok(report)
    }

    /// Writes the new content of the agent's file aside; none if the file holds it already. What cannot be kept is not
    /// brought into force.
    fn write_aside(&self, text: &str, overwrite: bool) -> Result<Option<Written>, ApiError> {
        let path = &self.options.config;
        let seen = store::read_if_there(path).map_err(ApiError::failed)?;
        match &seen {
            Some(seen) if seen == text => return Ok(None),
            Some(seen) if *seen != self.text && !overwrite => return Err(self.changed_underneath()),
            None if !overwrite => return Err(self.gone_underneath()),
            _ => {}
        }
        let prepared = store::prepare(path, text).map_err(ApiError::failed)?;
        Ok(Some(Written { prepared, seen }))
    }

    fn changed_underneath(&self) -> ApiError {
        let path = self.options.config.display();
        ApiError::conflict(format!(
            "{path}: was changed since the agent read it, and is left as it is; nothing was changed. To have what it \
             says: `sluice apply {path}`. To replace it: `sluice apply --overwrite` with another file"
        ))
    }

    fn gone_underneath(&self) -> ApiError {
        let path = self.options.config.display();
        ApiError::conflict(format!(
            "{path}: is gone since the agent read it; nothing was changed. Put it back, or have it made anew, for its \
             owner alone to read: `sluice apply --overwrite FILE`"
        ))
    }

    /// Puts the new content in the file's place, unless somebody else has changed it by now.
    fn put_in_place(&self, written: Written) -> Result<(), ApiError> {
        let now = store::read_if_there(&self.options.config).map_err(ApiError::failed)?;
        if now != written.seen {
            return Err(self.changed_underneath());
        }
        written.prepared.commit().map_err(ApiError::failed)
    }

    /// Brings a configuration into force again after its successor could not be kept; says why.
    async fn back_to(&mut self, former: Former, mut why: ApiError) -> ApiError {
        if let Err(error) = self.go_back(former).await {
            why.errors.push("what is in force is not what the file says, for going back failed:".to_owned());
            why.errors.extend(error.errors);
        }
        why
    }

    /// Notes a configuration that came into force.
    pub(super) fn note(&mut self, origin: Origin, report: &mut ApplyReport) {
        let Origin { text, what, uid } = origin;
        if text != self.text {
            self.revision = self.revision.max(self.history.last_revision()) + 1;
            let entry = Entry::new(self.revision, uid, what.clone());
            let entry = entry.with_effect(&report.changes, &report.rings, report.flows_lost);
            if let Err(error) = self.history.push(entry, &text) {
                report.warnings.push(format!("not in the history: {error}"));
            }
            self.text = text;
        }
        report.revision = self.revision;
        let by = uid.map_or(String::new(), |uid| format!(" by uid {uid}"));
        self.record_applied(&format!("{what}{by}"), report);
    }

    /// Notes the configuration that the agent starts with, if it is another than the last one.
    pub(super) fn note_start(&mut self) {
        let last = self.history.last_revision();
        let before = self.history.text(last).ok().flatten();
        self.revision = last;
        if before.as_deref() == Some(self.text.as_str()) {
            return;
        }
        self.revision += 1;
        let before = before.and_then(|text| parse_config(&text, "").ok());
        let changes = before.map(|before| diff(&before, &self.config)).unwrap_or_default();
        let what = format!("start with {}", self.options.config.display());
        let entry = Entry::new(self.revision, None, what).with_effect(&changes, &[], 0);
        if let Err(error) = self.history.push(entry, &self.text) {
            log::warn!("not in the history: {error}");
        }
    }

    /// SIGHUP: reads the file again.
    pub(super) async fn reload(&mut self) {
        // Certificate authorities are read again, too.
        self.tls = TlsClients::default();
        let applied = match start::read_config(&self.options) {
            Ok((text, config)) => self.reload_with(text, config).await,
            Err(AgentError::Config(errors)) => Err(ApiError { kind: ErrorKind::Invalid, errors }),
            Err(error) => Err(ApiError::failed(error)),
        };
        if let Err(error) = applied {
            for line in &error.errors {
                log::error!("{}", printable(line));
            }
            self.record(Event::refused("reload", &error.errors));
        }
    }

    async fn reload_with(&mut self, text: String, config: Config) -> Result<(), ApiError> {
        self.refuse_while_waiting()?;
        self.refuse_what_needs_a_restart(&config, &text, &self.options.config.display().to_string())?;
        let (_, mut report) = self.put_in_force(config).await?;
        self.note(Origin { text, what: "reload".to_owned(), uid: None }, &mut report);
        Ok(())
    }
}
