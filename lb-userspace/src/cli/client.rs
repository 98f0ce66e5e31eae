//! Requests to the agent's API over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Failure;
use crate::io::api::{ApiError, ErrorKind};

/// How long the answer to a question may take, until its end.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long a change may take: a large one has tables made anew.
const CHANGE: Duration = Duration::from_secs(30);
/// How long it may take to find out who does not answer.
const WHO: Duration = Duration::from_secs(1);

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
        self.get_within(ANSWER, path).await
    }

    /// The same, where the answer may take this long.
    pub(super) async fn get_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        path: &str,
    ) -> Result<T, Failure> {
        let answer = async {
            let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
            self.request(stream, Method::GET, path, Bytes::new()).await
        };
        self.within(limit, answer).await
    }

    /// Sends `body` to `path` if an agent listens.
    pub(super) async fn post_if_listening<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<T>, Failure> {
        let answer = async {
            let stream = match self.connect().await {
                Ok(stream) => stream,
                Err(error) if is_nobody(&error) => return Ok(None),
                Err(error) => return Err(Failure::Failed(self.why_not(&error))),
            };
            self.request(stream, Method::POST, path, json(body)?).await.map(Some)
        };
        self.within(CHANGE, answer).await
    }

    /// Sends `body` to `path`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.post_within(CHANGE, path, body).await
    }

    /// The same, where the answer may take this long.
    pub(super) async fn post_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = async {
            let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
            self.request(stream, Method::POST, path, json(body)?).await
        };
        self.within(limit, answer).await
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        match UnixStream::connect(&self.socket).await {
            // So many wait for it already that there is no room to: as with those, only time tells.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::future::pending().await,
            connected => connected,
        }
    }

    /// Sends `body` to `path`, which answers with lines for as long as it has some.
    pub(super) async fn post_for_lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, Failure> {
        let answer = async {
            let stream = self.connect().await.map_err(|error| self.unreachable(&error))?;
            let response = self.send(stream, Method::POST, path, json(body)?).await?;
            if !response.status().is_success() {
                let status = response.status();
                let body =
                    response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
                return Err(refused(status, &body));
            }
            Ok(Lines { body: response.into_body(), received: BytesMut::new() })
        };
        self.within(CHANGE, answer).await
    }

    /// What an agent that listens, but does not answer, is not waited for beyond.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(limit).await),
        }
    }

    /// The agent listens, but does not answer: it is stopped, or hangs.
    async fn silent(&self, limit: Duration) -> Failure {
        let stream = timeout(WHO, UnixStream::connect(&self.socket)).await.ok().and_then(Result::ok);
        let pid = stream.and_then(|stream| stream.peer_cred().ok()?.pid());
        let (who, pid) = pid
            .map_or((String::new(), "PID".to_owned()), |pid| (format!(" (process {pid})"), pid.to_string()));
        Failure::Unreachable(format!(
            "{}: the agent{who} has not answered for {} s; the data plane goes on. If `ps -o stat= {pid}` says T, it is stopped: \
             `kill -CONT {pid}`; otherwise restart it. It may still do what it was asked once it goes on",
            self.socket.display(),
            limit.as_secs()
        ))
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

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// An agent that is stopped: connections to it are made, and nothing comes back.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_answer_is_not_waited_for_without_end() {
        let socket = std::env::temp_dir().join(format!("sluice-silent-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket.clone());
        let began = tokio::time::Instant::now();
        let got: Result<(), _> = client.get("/v1/status").await;
        let posted: Result<(), _> = client.post("/v1/edit", &()).await;
        let detached: Result<Option<()>, _> = client.post_if_listening("/v1/detach", &()).await;
        let lines = client.post_for_lines("/v1/capture", &()).await.map(drop);
        for failure in [got.err(), posted.err(), detached.err(), lines.err()] {
            let failure = failure.unwrap();
            assert_eq!(failure.exit_code(), 3, "{failure}");
            let pid = std::process::id();
            assert!(failure.to_string().contains(&format!("`kill -CONT {pid}`")), "{failure}");
        }
        assert!(began.elapsed() < ANSWER + 3 * CHANGE + Duration::from_secs(10), "{:?}", began.elapsed());
        drop(listener);
        std::fs::remove_file(socket).unwrap();
    }
}
