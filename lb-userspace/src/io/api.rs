//! The agent's API: HTTP requests on a Unix socket or a TCP port → [`Request`]s to the agent, and its answers.

mod capture;
mod changes;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub use capture::{CaptureAnswer, CaptureCall, CaptureLines};
pub use changes::{
    ApplyReport, ApplyRequest, Asked, ChangeRequest, Confirmed, EditRequest, HistoryReport, Peer,
    RollbackRequest,
};
pub use socket::{ControlListener, ControlSocket, SocketFile, listen_control};

use changes::Body;

use super::exporters::{self, Histograms};
use super::host::give_back_memory;
use crate::core::explain::{Explanation, Question};
use crate::core::stats::Snapshot;
use crate::core::trend::TrendReport;

/// What the agent is asked, and where the answer goes.
pub enum Request {
    /// The snapshot.
    Status(oneshot::Sender<Result<Snapshot, ApiError>>),
    /// The snapshot and the histograms.
    Metrics(oneshot::Sender<Result<(Snapshot, Histograms), ApiError>>),
    /// The last hour of this service, or of everything together.
    Trend(Option<String>, oneshot::Sender<Result<TrendReport, ApiError>>),
    /// Another configuration.
    Change(ChangeRequest),
    /// The change that waits for it is confirmed, by a process of this user id.
    Confirm(Option<u32>, oneshot::Sender<Result<Confirmed, ApiError>>),
    /// What was changed lately.
    History(oneshot::Sender<Result<HistoryReport, ApiError>>),
    /// A packet to explain.
    Explain(Question, oneshot::Sender<Result<Explanation, ApiError>>),
    /// The program is to be removed, and the agent to end.
    Detach(DetachRequest, oneshot::Sender<Result<Detached, ApiError>>),
    /// A capture of packets.
    Capture(CaptureCall),
    /// Does the agent serve?
    Health(oneshot::Sender<Result<(), ApiError>>),
}

/// The program is to be removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Only by the agent of this pin directory; without one, by the agent that is asked.
    #[serde(default)]
    pub pin_dir: Option<PathBuf>,
}

/// The program was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// From these interfaces.
    pub interfaces: Vec<String>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// What is wrong, one entry a finding.
    pub errors: Vec<String>,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request's: it is invalid.
    Invalid,
    /// Nobody's: what it rests on is not, or not any more, as it says.
    Conflict,
    /// The agent's or the kernel's: it failed.
    Failed,
}

impl ApiError {
    /// An invalid request.
    pub fn invalid(error: impl ToString) -> Self {
        Self { kind: ErrorKind::Invalid, errors: vec![error.to_string()] }
    }

    /// A request that does not fit what is in force.
    pub fn conflict(error: impl ToString) -> Self {
        Self { kind: ErrorKind::Conflict, errors: vec![error.to_string()] }
    }

    /// Something that failed.
    pub fn failed(error: impl ToString) -> Self {
        Self { kind: ErrorKind::Failed, errors: vec![error.to_string()] }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}

/// Where requests go.
pub type Requests = mpsc::Sender<Request>;

/// The routes of the Unix socket: everything. They are told who asks: see [`Peer`].
pub fn control_routes(requests: Requests) -> Router {
    public_router()
        .merge(changes::routes())
        .merge(capture::routes())
        .route("/v1/status", get(status))
        .route("/v1/explain", post(explain))
        .route("/v1/detach", post(detach))
        .fallback(no_such_path)
        .layer(Extension(Turn::default()))
        .with_state(requests)
}

async fn no_such_path(uri: Uri) -> Response {
    let error = ApiError::invalid(format!("there is no {}; README.md lists what there is", uri.path()));
    (StatusCode::NOT_FOUND, Json(error)).into_response()
}

/// A route that is read; another method is told which it takes.
pub(super) fn get<H: Handler<T, S>, T: 'static, S: Clone + Send + Sync + 'static>(
    handler: H,
) -> MethodRouter<S> {
    routing::get(handler).fallback(async |method, uri| no_such_method("GET and HEAD", &method, &uri))
}

/// A route that does something.
pub(super) fn post<H: Handler<T, S>, T: 'static, S: Clone + Send + Sync + 'static>(
    handler: H,
) -> MethodRouter<S> {
    routing::post(handler).fallback(async |method, uri| no_such_method("POST", &method, &uri))
}

fn no_such_method(taken: &str, method: &Method, uri: &Uri) -> Response {
    let error = ApiError::invalid(format!("{} takes {taken}, not {method}", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, Json(error)).into_response()
}

/// The routes of `agent.metrics`: reading only.
pub fn public_routes(requests: Requests) -> Router {
    public_router().fallback(no_such_path).layer(Extension(Turn::default())).with_state(requests)
}

fn public_router() -> Router<Requests> {
    Router::new()
        .route("/healthz", get(health))
        .route("/status", get(status))
        .route("/trend", get(trend))
        .route("/metrics", get(metrics))
}

async fn ask<T>(
    requests: &Requests,
    request: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Request,
) -> Result<T, ApiError> {
    let gone = || ApiError::failed("the agent is ending");
    let (sender, receiver) = oneshot::channel();
    requests.send(request(sender)).await.map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?
}

async fn health(State(requests): State<Requests>) -> Result<&'static str, ApiError> {
    ask(&requests, Request::Health).await.map(|()| "ok\n")
}

/// Whose turn it is to have a long answer made: of thousands of backends, what it is made from takes megabytes.
#[derive(Clone, Debug)]
struct Turn(Arc<Semaphore>);

impl Default for Turn {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Turn {
    async fn take(self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.acquire_owned().await.map_err(ApiError::failed)
    }
}

/// Makes a long text beside the agent's loop, which goes on meanwhile, and ends the turn.
async fn aside<T: Send + 'static>(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        // What the work was made from has gone by now.
        give_back_memory();
        drop(turn);
        done
    });
    done.await.map_err(ApiError::failed)
}

async fn status(
    State(requests): State<Requests>,
    Extension(turn): Extension<Turn>,
) -> Result<Response, ApiError> {
    let turn = turn.take().await?;
    let snapshot = ask(&requests, Request::Status).await?;
    let json = aside(turn, move || serde_json::to_vec(&snapshot)).await?.map_err(ApiError::failed)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn metrics(
    State(requests): State<Requests>,
    Extension(turn): Extension<Turn>,
) -> Result<Response, ApiError> {
    let turn = turn.take().await?;
    let (snapshot, histograms) = ask(&requests, Request::Metrics).await?;
    let text = aside(turn, move || exporters::render(&snapshot, &histograms)).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Whose last hour is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrendQuery {
    service: Option<String>,
}

async fn trend(
    State(requests): State<Requests>,
    query: Result<Query<TrendQuery>, QueryRejection>,
) -> Result<Json<TrendReport>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    ask(&requests, |answer| Request::Trend(query.service, answer)).await.map(Json)
}

async fn explain(
    State(requests): State<Requests>,
    Body(question): Body<Question>,
) -> Result<Json<Explanation>, ApiError> {
    ask(&requests, |answer| Request::Explain(question, answer)).await.map(Json)
}

async fn detach(
    State(requests): State<Requests>,
    request: Option<Body<DetachRequest>>,
) -> Result<Json<Detached>, ApiError> {
    let request = request.map(|Body(request)| request).unwrap_or_default();
    ask(&requests, |answer| Request::Detach(request, answer)).await.map(Json)
}

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone answers on the socket.
    #[error("{path}: another sluice agent answers on this socket; stop it first, or choose another --socket", path = .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{path}: this is not a socket; remove it, or choose another --socket", path = .0.display())]
    NotASocket(PathBuf),
    /// Who asks may not make the socket, or not ask who answers on it.
    #[error("{path}: {cause}; run as root", path = path.display())]
    Denied {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The socket cannot be made.
    #[error("{path}: {cause}", path = path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The port cannot be taken.
    #[error("agent.metrics: cannot listen on {address}: {cause}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
}

/// Listens on the port for metrics.
pub async fn listen_public(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|cause| ListenError::Port { address, cause })
}

#[cfg(test)]
mod tests;
