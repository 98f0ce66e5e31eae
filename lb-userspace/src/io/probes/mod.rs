//! Health probes over the network: turns a target and a [`Probe`] into success or the reason why not, and a
//! target and a [`Health`] into a stream of such outcomes.
//!
//! Nothing here decides whether a backend is healthy; that is `core::health`.

mod http;
mod report;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::core::config::{Health, Probe};

pub use report::{ProbeReport, probe_loop};

/// Why a probe failed, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens on the port.
    #[error("connection refused")]
    Refused,
    /// The connection was not accepted in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection was accepted but the answer did not come in time.
    #[error("connected, but no answer within {0:?}")]
    AnswerTimeout(Duration),
    /// There is no way to the backend, or it does not answer ARP or neighbour discovery.
    #[error("unreachable: {0}")]
    Unreachable(io::Error),
    /// The answer came with a status that the configuration does not accept.
    #[error("status {status} (expected {expected})")]
    UnexpectedStatus {
        /// The status of the answer.
        status: u16,
        /// The accepted ones, as the configuration writes them.
        expected: String,
    },
    /// The connection was closed before a whole answer head had come.
    #[error("connection closed without an answer")]
    Closed,
    /// What came is no HTTP/1 answer, or its head is too large.
    #[error("malformed answer: {0}")]
    Malformed(String),
    /// The configured path or host cannot be sent as an HTTP request.
    #[error("the probe's path or host is not valid in HTTP: {0}")]
    InvalidRequest(String),
    /// This host has run out of something that a probe needs: files, memory, ports. It says nothing of the backend.
    #[error("this host cannot probe: {0}")]
    NoResources(io::Error),
    /// Anything else that the network stack reports.
    #[error("{0}")]
    Io(io::Error),
}

impl ProbeError {
    /// Whether the cause is this host's, so that nothing follows for the backend.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::NoResources(_))
    }
}

/// The errors that mean that this host has run out of something.
const NO_RESOURCES: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) if NO_RESOURCES.contains(&code) => Self::NoResources(error),
            _ => Self::Io(error),
        }
    }
}

/// Probes `target` once; the whole of it takes at most `timeout`. [`Probe::None`] always succeeds.
pub async fn probe(target: SocketAddr, probe: &Probe, timeout: Duration) -> Result<(), ProbeError> {
    let deadline = Instant::now() + timeout;
    match probe {
        Probe::None => Ok(()),
        Probe::Tcp => connect(target, deadline, timeout).await.map(drop),
        Probe::Http { path, host, expect } => {
            let request = http::request(target, path, host.as_deref())?;
            let stream = connect(target, deadline, timeout).await?;
            let status = timeout_at(deadline, http::ask(stream, request))
                .await
                .map_err(|_| ProbeError::AnswerTimeout(timeout))??;
            http::check(status, expect)
        }
    }
}

/// Connects such that dropping the stream resets the connection. A balancer opens many probes a second: closed
/// the ordinary way each would stay in TIME_WAIT here for a minute, and one to a backend that has died would
/// go on sending its FIN for many minutes. All that a probe wants to know it knows by then, and the peer has
/// had the whole request, so nothing is lost by the reset.
async fn connect(target: SocketAddr, deadline: Instant, timeout: Duration) -> Result<TcpStream, ProbeError> {
    let stream = timeout_at(deadline, TcpStream::connect(target))
        .await
        .map_err(|_| ProbeError::ConnectTimeout(timeout))?
        .map_err(|error| connect_error(error, timeout))?;
    stream.set_zero_linger()?;
    Ok(stream)
}

fn connect_error(error: io::Error, timeout: Duration) -> ProbeError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused,
        io::ErrorKind::TimedOut => ProbeError::ConnectTimeout(timeout),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ProbeError::Unreachable(error),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests;
