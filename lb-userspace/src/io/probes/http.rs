//! One HTTP/1.1 exchange: turns a connection and a request into the status of the answer.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::ProbeError;

/// What probes call themselves, so that operators can tell them apart in a web server's log.
const AGENT: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
/// A head larger than this is malformed; no backend makes the agent hold more.
const MAX_HEAD: usize = 64 * 1024;

/// The request of a probe. Without a configured host it names the backend's own address.
pub(super) fn request(
    target: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let host = host.map_or_else(|| authority(target), str::to_owned);
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| ProbeError::InvalidRequest(error.to_string()))
}

/// `target` as a `Host` header has it: without the port if that is HTTP's own.
fn authority(target: SocketAddr) -> String {
    match (target.port(), target.ip()) {
        (80, IpAddr::V4(address)) => address.to_string(),
        (80, IpAddr::V6(address)) => format!("[{address}]"),
        _ => target.to_string(),
    }
}

/// Sends `request` and waits for the head of the answer; the body is not read.
pub(super) async fn ask(stream: TcpStream, request: Request<Empty<Bytes>>) -> Result<StatusCode, ProbeError> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(answer_error)?;
    let mut answer = pin!(sender.send_request(request));
    // The connection makes progress only while it is polled. When it ends first, the outcome is waiting in `answer`.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(answer_error)
}

/// Whether the configuration accepts `status`.
pub(super) fn check(status: StatusCode, expect: &[RangeInclusive<u16>]) -> Result<(), ProbeError> {
    let status = status.as_u16();
    if expect.iter().any(|range| range.contains(&status)) {
        return Ok(());
    }
    let expected = expect.iter().map(range_text).collect::<Vec<_>>().join(",");
    Err(ProbeError::UnexpectedStatus { status, expected })
}

fn range_text(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
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
