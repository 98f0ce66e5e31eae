//! Requests to the agent's API over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
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

    /// Sends `body` to `path`, which answers with lines for as long as it has some.
    pub(super) async fn post_for_lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, Failure> {
        let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
        let response = self.send(stream, Method::POST, path, json(body)?).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
            return Err(refused(status, &body));
        }
        Ok(Lines { body: response.into_body(), received: BytesMut::new() })
    }

    async fn request<T: DeserializeOwned>(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let response = self.send(stream, method, path, body).await?;
        self.read(response).await
    }

    async fn send(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
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
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    /// The whole answer.
    async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Failure> {
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Failure::Failed(format!("the agent's answer cannot be read: {error}")));
        }
        Err(refused(status, &body))
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

    /// The agent said less than it should have.
    pub(super) fn broken(&self, error: impl std::error::Error) -> Failure {
        Failure::Unreachable(format!("{}: the agent ended the connection: {error}", self.socket.display()))
    }
}

/// What the agent says of a request that it did not carry out.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(ApiError { kind: ErrorKind::Invalid, errors }) => Failure::Invalid(errors),
        Ok(ApiError { kind: ErrorKind::Conflict | ErrorKind::Failed, errors }) => {
            Failure::Failed(errors.join("\n"))
        }
        Err(_) => Failure::Failed(format!("the agent answered {status}: {}", String::from_utf8_lossy(body))),
    }
}

/// An answer that comes line by line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    received: BytesMut,
}

impl Lines {
    /// The next line, without its end; none if there are no more. A call that is given up loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, hyper::Error> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line = self.received.split_to(end + 1);
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(body).map(Bytes::from).map_err(Failure::failed)
}

/// Nobody listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
