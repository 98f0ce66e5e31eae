//! A small HTTP/1.1 client: turns a connected stream into requests and answers, for what `curl` is too slow or too
//! coarse for (thousands of connections, chosen source ports, connections kept open).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};

use crate::host::Host;

/// An answer, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The web server that answered.
    pub fn served_by(&self) -> &str {
        self.headers.get("x-served-by").map_or("", String::as_str)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that stays open from request to request.
#[derive(Debug)]
pub struct HttpConnection {
    stream: BufReader<TcpStream>,
}

impl HttpConnection {
    /// Connects from `host`, from a chosen source port if one is given.
    pub fn open(host: &Host, to: SocketAddr, source_port: Option<u16>) -> Result<Self> {
        let stream = host.connect(to, source_port).with_context(|| format!("connecting to {to}"))?;
        Ok(Self::over(stream))
    }

    /// Uses a stream that is already connected.
    pub fn over(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Asks for `path` and leaves the connection open.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.request("GET", path, "keep-alive", b"")
    }

    /// Asks for `path` and lets the server close, so that the client's port is free at once.
    pub fn get_and_close(mut self, path: &str) -> Result<Response> {
        self.request("GET", path, "close", b"")
    }

    /// Stores `body` at `path`.
    pub fn put(&mut self, path: &str, body: &[u8]) -> Result<Response> {
        self.request("PUT", path, "keep-alive", body)
    }

    fn request(&mut self, method: &str, path: &str, connection: &str, body: &[u8]) -> Result<Response> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
            crate::SHOP_NAME,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).context("sending a request")?;
        stream.write_all(body).context("sending a body")?;
        let response = read_response(&mut self.stream).context("reading an answer")?;
        if connection == "close" {
            // Only after the server's FIN is it the server that keeps the port in TIME_WAIT.
            let mut rest = Vec::new();
            self.stream.read_to_end(&mut rest).context("waiting for the server to close")?;
        }
        Ok(response)
    }
}

/// Reads one answer, head and body.
pub(crate) fn read_response(stream: &mut impl BufRead) -> Result<Response> {
    let status_line = read_line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not a status line: {status_line:?}"))?;
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let body = read_body(stream, status, &headers)?;
    Ok(Response { status, headers, body })
}

fn read_body(stream: &mut impl BufRead, status: u16, headers: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let size = read_line(stream)?;
            let size = usize::from_str_radix(&size, 16).with_context(|| format!("not a chunk: {size:?}"))?;
            let start = body.len();
            body.resize(start + size, 0);
            stream.read_exact(body.get_mut(start..).unwrap_or_default())?;
            read_line(stream)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().context("not a content length")?, 0);
        stream.read_exact(&mut body)?;
    } else if status != 204 {
        stream.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("the connection was closed");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Response> {
        read_response(&mut text.as_bytes())
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        let response = parse("HTTP/1.1 200 OK\r\nX-Served-By: web1\r\nContent-Length: 3\r\n\r\nabcdef")
            .expect("response");
        assert_eq!(response.status, 200);
        assert_eq!(response.served_by(), "web1");
        assert_eq!(response.text(), "abc");
    }

    #[test]
    fn a_chunked_body_is_joined() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(text).expect("response").text(), "abcde");
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na").is_err());
        assert!(parse("nonsense\r\n\r\n").is_err());
    }
}
