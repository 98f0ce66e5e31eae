//! What customers do, with every byte compared: turns an address into a megabyte up and down, a thousand short
//! connections, or datagrams echoed whole.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::host::{Host, unspecified};
use crate::http::HttpConnection;
use crate::lab::Lab;

/// The size of an upload or download, in bytes.
const TRANSFER: usize = 1 << 20;
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);

impl Lab {
    /// Has the customer upload 1 MiB to a web server at `to` and download another; an error if a byte differs.
    pub fn transfer(&self, to: SocketAddr) -> Result<()> {
        self.upload(to)?;
        self.download(to)
    }

    /// Has the customer upload 1 MiB to a web server at `to`; an error if what it stores differs.
    pub fn upload(&self, to: SocketAddr) -> Result<()> {
        let (name, content) = new_file();
        let mut connection = HttpConnection::open(self.customer(), to, None)?;
        let answer = connection.put(&format!("/files/{name}"), &content);
        let status = answer.with_context(|| format!("uploading to {to}"))?.status;
        ensure!(status == 201, "uploading to {to}: status {status}");
        let stored = fs::read(self.files().join(name)).context("reading what was stored")?;
        ensure!(stored == content, "what {to} stored differs from what was sent");
        Ok(())
    }

    /// Has the customer download 1 MiB from a web server at `to`; an error if what comes differs.
    pub fn download(&self, to: SocketAddr) -> Result<()> {
        let (name, content) = new_file();
        fs::write(self.files().join(&name), &content).context("writing what is to be fetched")?;
        let mut connection = HttpConnection::open(self.customer(), to, None)?;
        let answer = connection.get(&format!("/files/{name}"));
        let answer = answer.with_context(|| format!("downloading from {to}"))?;
        ensure!(answer.status == 200, "downloading from {to}: status {}", answer.status);
        ensure!(answer.body == content, "what came from {to} differs from what is stored");
        Ok(())
    }

    /// Has the customer make this many connections, one after another, with one request each: how many each web server
    /// answered. An error at the first that is not answered with status 200.
    pub fn short_connections(&self, to: SocketAddr, count: u32) -> Result<BTreeMap<String, u32>> {
        let mut by_server = BTreeMap::new();
        for number in 1..=count {
            let answer = HttpConnection::open(self.customer(), to, None)
                .and_then(|connection| connection.get_and_close("/"))
                .with_context(|| format!("connection {number} of {count} to {to}"))?;
            ensure!(answer.status == 200, "connection {number} to {to}: status {}", answer.status);
            *by_server.entry(answer.served_by().to_owned()).or_default() += 1;
        }
        Ok(by_server)
    }
}

/// Sends `size` bytes from `host` to a [`crate::UdpEcho`] at `to` in one datagram, fragmented if need be, and compares the
/// echo; only one from that very address counts. Answers with the server's name.
pub fn echo_datagram(host: &Host, to: SocketAddr, size: usize) -> Result<String> {
    let socket = host.run(|| UdpSocket::bind((unspecified(to), 0)))?.context("binding UDP")?;
    socket.set_read_timeout(Some(ECHO_TIMEOUT)).context("setting a timeout")?;
    socket.connect(to).with_context(|| format!("connecting UDP to {to}"))?;
    let content = noise(socket.local_addr()?.port().into(), size);
    socket.send(&content).with_context(|| format!("sending {size} bytes to {to}"))?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer).with_context(|| format!("no echo of {size} bytes from {to}"))?;
    answer.truncate(length);
    let Some(colon) = answer.iter().position(|byte| *byte == b':') else {
        bail!("an answer from {to} without a server's name");
    };
    let (name, echo) = answer.split_at(colon);
    ensure!(echo.get(1..) == Some(&content[..]), "the echo of {size} bytes from {to} is not what was sent");
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// A name and 1 MiB that no other file of this process has.
fn new_file() -> (String, Vec<u8>) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    (format!("transfer-{number}"), noise(number, TRANSFER))
}

/// Bytes without a pattern, the same for the same seed.
fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}
