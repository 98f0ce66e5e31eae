//! One HTTP/1.1 exchange: turns a connection and a request into a judgement of the answer.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::ProbeError;
use crate::core::config::statuses;

/// What probes call themselves, so that operators can tell them apart in a web server's log.
const AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
/// A head larger than this is malformed; no backend makes the agent hold more.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes of a body that are searched at most.
const MAX_BODY: usize = 64 * 1024;

/// The request of a probe. Without a configured host it names the address that is asked; `port` is that of the scheme.
pub(super) fn request(
    target: SocketAddr,
    path: &str,
    host: Option<&str>,
    port: u16,
) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let host = host.map_or_else(|| authority(target, port), str::to_owned);
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| ProbeError::InvalidRequest(error.to_string()))
}

/// `target` as a `Host` header has it: without the port if that is the scheme's own.
fn authority(target: SocketAddr, port: u16) -> String {
    match target.ip() {
        IpAddr::V4(address) if target.port() == port => address.to_string(),
        IpAddr::V6(address) if target.port() == port => format!("[{address}]"),
        _ => target.to_string(),
    }
}

/// What an answer must be.
pub(super) struct Expected<'a> {
    /// Accepted status codes.
    pub(super) statuses: &'a [RangeInclusive<u16>],
    /// What the beginning of the body must contain.
    pub(super) body: Option<&'a str>,
}

/// Sends `request` and judges the answer. Its body is read only if it matters, and no further than needed.
pub(super) async fn ask<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    expected: Expected<'_>,
) -> Result<(), ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(answer_error)?;
    let judge = async {
        let answer = sender.send_request(request).await.map_err(answer_error)?;
        check(answer.status().as_u16(), expected.statuses)?;
        match expected.body {
            Some(wanted) => search(answer, wanted).await,
            None => Ok(()),
        }
    };
    let mut judge = pin!(judge);
    // The connection makes progress only while it is polled. When it ends first, the outcome is waiting in `judge`.
    tokio::select! {
        biased;
        judged = &mut judge => judged,
        _ = connection => judge.await,
    }
}

/// Looks for `wanted` in the beginning of the body.
async fn search(answer: Response<Incoming>, wanted: &str) -> Result<(), ProbeError> {
    let mut body = answer.into_body();
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(answer_error)?.into_data() else { continue };
        // What was searched before is not searched again, but for what may have been cut off.
        let from = read.len().saturating_sub(wanted.len());
        read.extend_from_slice(&data);
        let end = read.len().min(MAX_BODY);
        let fresh = read.get(from..end).unwrap_or_default();
        if fresh.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
            return Ok(());
        }
        if read.len() >= MAX_BODY {
            break;
        }
    }
    Err(ProbeError::UnexpectedBody { wanted: wanted.to_owned(), searched: read.len().min(MAX_BODY) })
}

/// Whether the configuration accepts `status`.
fn check(status: u16, expect: &[RangeInclusive<u16>]) -> Result<(), ProbeError> {
    if expect.iter().any(|range| range.contains(&status)) {
        return Ok(());
    }
    Err(ProbeError::UnexpectedStatus { status, expected: statuses(expect) })
}

fn answer_error(error: hyper::Error) -> ProbeError {
    if error.is_parse() {
        return ProbeError::Malformed(error.to_string());
    }
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        // An `io::Error` cannot be cloned.
        Some(source) => match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code).into(),
            None => ProbeError::Io(io::Error::new(source.kind(), source.to_string())),
        },
        None if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {
            ProbeError::Closed
        }
        None => ProbeError::Malformed(error.to_string()),
    }
}
