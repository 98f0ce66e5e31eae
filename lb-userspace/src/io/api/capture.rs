//! Captures of packets: the routes for them, and their answer, which goes on for as long as the capture does.

use axum::Json;
use axum::Router;
use axum::body::Body as Streamed;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot};

use super::changes::Body;
use super::{ApiError, Request, Requests, ask, post};
use crate::core::capture::CaptureRequest;
use crate::io::datapath::{CapturePrograms, LoadError};

/// Lines of a capture, as they come.
pub type CaptureLines = mpsc::Receiver<Bytes>;
/// Where they go.
pub type CaptureAnswer = oneshot::Sender<Result<CaptureLines, ApiError>>;

/// What the agent is asked about captures, by who wants one and by those that work for it.
pub enum CaptureCall {
    /// Somebody wants one.
    Begin(CaptureRequest, CaptureAnswer),
    /// The programs are loaded, or are not.
    Loaded(CaptureRequest, Box<Result<CapturePrograms, LoadError>>, CaptureAnswer),
    /// It is over: the load balancer's programs are to take their place again.
    Over(oneshot::Sender<()>),
    /// Somebody wants the one under way to end.
    Stop(oneshot::Sender<Result<(), ApiError>>),
}

pub(super) fn routes() -> Router<Requests> {
    Router::new().route("/v1/capture", post(begin)).route("/v1/capture/stop", post(stop))
}

async fn begin(
    State(requests): State<Requests>,
    Body(request): Body<CaptureRequest>,
) -> Result<Response, ApiError> {
    let lines = ask(&requests, |answer| Request::Capture(CaptureCall::Begin(request, answer))).await?;
    let lines = stream::unfold(lines, async |mut lines| {
        let line = lines.recv().await?;
        Some((Ok::<_, std::io::Error>(line), lines))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Streamed::from_stream(lines)).into_response())
}

async fn stop(State(requests): State<Requests>) -> Result<Json<()>, ApiError> {
    ask(&requests, |answer| Request::Capture(CaptureCall::Stop(answer))).await.map(Json)
}
