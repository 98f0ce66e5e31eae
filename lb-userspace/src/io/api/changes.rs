//! Changes of the configuration: the routes for them, what they take and what they answer.

use std::fmt;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, FromRequest, OptionalFromRequest, State};
use axum::http::header;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{ApiError, ControlListener, Request, Requests, ask, get, post};
use crate::core::diff::Change;
use crate::core::edit::Edit;
use crate::core::effect::RingChange;
use crate::core::stats::Unconfirmed;
use crate::io::history::Entry;

/// The largest configuration that is taken, with what JSON adds to it: well above every limit of the tables.
const MAX_APPLY: usize = 64 << 20;

/// A change that is asked for, by whom, and where the answer goes.
pub struct ChangeRequest {
    /// What is asked for.
    pub asked: Asked,
    /// The user id of the process that asks, as the kernel knows it.
    pub uid: Option<u32>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<ApplyReport, ApiError>>,
}

/// What may be asked for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Another configuration.
    Apply(ApplyRequest),
    /// A change of one service or backend.
    Edit(EditRequest),
    /// A configuration that was in force before.
    Rollback(RollbackRequest),
}

impl Asked {
    /// Whether it is only to be told what would change.
    pub fn is_trial(&self) -> bool {
        match self {
            Self::Apply(request) => request.dry_run,
            Self::Edit(request) => request.dry_run,
            Self::Rollback(request) => request.dry_run,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(request) => write!(f, "apply {}", request.name),
            Self::Edit(request) => write!(f, "{}", request.edit),
            Self::Rollback(request) => match request.revision {
                Some(revision) => write!(f, "rollback to revision {revision}"),
                None => f.write_str("rollback"),
            },
        }
    }
}

/// A configuration to bring into force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The configuration's text.
    pub config: String,
    /// What to call it in errors.
    pub name: String,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Only if this revision is in force.
    #[serde(default)]
    pub if_revision: Option<u64>,
    /// Undo it after so many seconds unless it is confirmed.
    #[serde(default)]
    pub confirm_within_seconds: Option<u64>,
    /// Replace the agent's file although it was changed since the agent read it.
    #[serde(default)]
    pub overwrite: bool,
}

/// A change of one service or backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// The change.
    pub edit: Edit,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Only if this revision is in force.
    #[serde(default)]
    pub if_revision: Option<u64>,
    /// Undo it after so many seconds unless it is confirmed.
    #[serde(default)]
    pub confirm_within_seconds: Option<u64>,
}

/// A configuration that was in force before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Its revision; without one, that before the last change.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Only if this revision is in force.
    #[serde(default)]
    pub if_revision: Option<u64>,
    /// Undo it after so many seconds unless it is confirmed.
    #[serde(default)]
    pub confirm_within_seconds: Option<u64>,
}

/// What a change of the configuration did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApplyReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The revision now in force.
    pub revision: u64,
    /// What differs.
    pub changes: Vec<Change>,
    /// Services whose ring changes, or that lose flows.
    pub rings: Vec<RingChange>,
    /// Live flows that lose their backend.
    pub flows_lost: u64,
    /// Live flows that may lose it, for their service gives up some of its VIPs: of which VIP a flow is, the flow table does not tell.
    pub flows_in_doubt: u64,
    /// How many actions the datapath takes for it; 0 if the tables are as the configuration says.
    pub actions: usize,
    /// Seconds in which it must be confirmed.
    #[serde(default)]
    pub confirm_within_seconds: Option<u64>,
    /// What is worth knowing although it was done.
    pub warnings: Vec<String>,
}

/// A change that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The revision that stays.
    pub revision: u64,
}

/// What was changed lately.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// The revision in force.
    pub revision: u64,
    /// The change that waits for its confirmation.
    pub unconfirmed: Option<Unconfirmed>,
    /// The changes that are kept, the latest first.
    pub entries: Vec<Entry>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, ControlListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ControlListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

pub(super) fn routes() -> Router<Requests> {
    let large = DefaultBodyLimit::max(MAX_APPLY);
    Router::new()
        .route("/v1/apply", post(apply).layer(large))
        .route("/v1/edit", post(edit))
        .route("/v1/rollback", post(rollback))
        .route("/v1/confirm", post(confirm))
        .route("/v1/history", get(history))
}

/// A body of JSON; what is wrong with it is told as everything else is.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, ApiError> {
        match <Json<T> as FromRequest<S>>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// No body at all is none.
impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Option<Self>, ApiError> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
        } else {
            Ok(None)
        }
    }
}

type Asker = ConnectInfo<Peer>;

async fn change(requests: &Requests, asker: Asker, asked: Asked) -> Result<Json<ApplyReport>, ApiError> {
    let ConnectInfo(Peer { uid }) = asker;
    ask(requests, |answer| Request::Change(ChangeRequest { asked, uid, answer })).await.map(Json)
}

async fn apply(
    State(requests): State<Requests>,
    asker: Asker,
    Body(request): Body<ApplyRequest>,
) -> Result<Json<ApplyReport>, ApiError> {
    change(&requests, asker, Asked::Apply(request)).await
}

async fn edit(
    State(requests): State<Requests>,
    asker: Asker,
    Body(request): Body<EditRequest>,
) -> Result<Json<ApplyReport>, ApiError> {
    change(&requests, asker, Asked::Edit(request)).await
}

async fn rollback(
    State(requests): State<Requests>,
    asker: Asker,
    Body(request): Body<RollbackRequest>,
) -> Result<Json<ApplyReport>, ApiError> {
    change(&requests, asker, Asked::Rollback(request)).await
}

async fn confirm(
    State(requests): State<Requests>,
    ConnectInfo(Peer { uid }): Asker,
) -> Result<Json<Confirmed>, ApiError> {
    ask(&requests, |answer| Request::Confirm(uid, answer)).await.map(Json)
}

async fn history(State(requests): State<Requests>) -> Result<Json<HistoryReport>, ApiError> {
    ask(&requests, Request::History).await.map(Json)
}
