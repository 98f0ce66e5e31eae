//! Requests to the agent's API over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Failure;
use crate::io::api::{ApiError, ErrorKind};

/// A client of one agent.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for what is at `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
        self.request(stream, Method::GET, path, Bytes::new()).await
    }

    /// Sends `body` to `path` if an agent listens.
    pub(super) async fn post_if_listening<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<T>, Failure> {
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(Failure::Failed(self.why_not(&error))),
        };
        self.request(stream, Method::POST, path, json(body)?).await.map(Some)
    }

    /// Sends `body` to `path`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
        self.request(stream, Method::POST, path, json(body)?).await
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.socket).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sluice")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(Failure::failed)?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Failure::Failed(format!("the agent's answer cannot be read: {error}")));
        }
        Err(match serde_json::from_slice::<ApiError>(&body) {
            Ok(ApiError { kind: ErrorKind::Invalid, errors }) => Failure::Invalid(errors),
            Ok(ApiError { kind: ErrorKind::Conflict | ErrorKind::Failed, errors }) => {
                Failure::Failed(errors.join("\n"))
            }
            Err(_) => {
                Failure::Failed(format!("the agent answered {status}: {}", String::from_utf8_lossy(&body)))
            }
        })
    }

    /// Why no agent can be asked.
    fn why_not(&self, error: &io::Error) -> String {
        let socket = self.socket.display();
        match error.kind() {
            _ if is_nobody(error) => {
                format!("no agent answers at {socket}; start `sluice agent`, or name its --socket")
            }
            io::ErrorKind::PermissionDenied => format!("{socket}: permission denied; run as root"),
            _ => format!("{socket}: {error}"),
        }
    }

    /// Nobody answers on the socket.
    pub(super) fn unreachable(&self, error: &io::Error) -> Failure {
        Failure::Unreachable(self.why_not(error))
    }

    fn broken(&self, error: impl std::error::Error) -> Failure {
        Failure::Unreachable(format!("{}: the agent ended the connection: {error}", self.socket.display()))
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(body).map(Bytes::from).map_err(Failure::failed)
}

/// Nobody listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
