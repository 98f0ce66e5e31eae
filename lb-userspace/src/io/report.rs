//! What an agent keeps in its state directory → the report on availability, for the API and for who asks without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::api::{ApiError, get};
use super::events::{self, EventLog};
use super::history::{Entry, History};
use super::store::StoreError;
use crate::core::config;
use crate::core::report::{Change, Report, Reporter, Revision};

/// The time that is asked about: the parameters of `GET /v1/report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// From when.
    pub since: Timestamp,
    /// Until when; now, if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Reads the record in a state directory. `running` says whether an agent keeps it right now.
pub fn report(state_dir: &Path, question: &Question, running: bool) -> Result<Report, StoreError> {
    let now = Timestamp::now();
    let until = question.until.map_or(now, |until| until.min(now));
    let since = question.since.min(until);
    let revisions = History::look(state_dir)?.into_iter().map(revision).collect();
    let mut reporter = Reporter::new(since, until, revisions);
    events::read(state_dir, |events| events.for_each(|event| reporter.event(&event)));
    Ok(reporter.finish(running, events::last_sign_of_life(state_dir)))
}

fn revision((entry, text): (Entry, String)) -> Revision {
    let Entry { revision, at, uid, what, changes_count: values, flows_lost, flows_in_doubt, .. } = entry;
    let services = config::parse(&text).ok().map(|config| {
        let backends = |service: &config::Service| -> BTreeSet<String> {
            service.backends.iter().map(|backend| backend.name.clone()).collect()
        };
        config.services.iter().map(|service| (service.name.clone(), backends(service))).collect()
    });
    let services: Option<BTreeMap<_, _>> = services;
    Revision { change: Change { revision, at, uid, what, values, flows_lost, flows_in_doubt }, services }
}

/// The route of the API that reports.
pub fn routes(log: EventLog) -> Router {
    Router::new().route("/v1/report", get(answer)).with_state(log)
}

async fn answer(
    State(log): State<EventLog>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Report>, ApiError> {
    let Query(question) = question.map_err(|error| ApiError::invalid(error.body_text()))?;
    if question.until.is_some_and(|until| until <= question.since) {
        return Err(ApiError::invalid("until: must be later than since"));
    }
    // Megabytes are read: not on the thread that everything else runs on.
    let reported = tokio::task::spawn_blocking(move || report(log.folder(), &question, true)).await;
    reported.map_err(ApiError::failed)?.map(Json).map_err(ApiError::failed)
}
