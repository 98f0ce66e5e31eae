//! A UDP service for the lab: turns datagrams into answers that begin with the server's name.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;

/// How soon a responder notices that it is to end.
const TICK: Duration = Duration::from_millis(50);

/// A responder on one host; it ends when dropped.
#[derive(Debug)]
pub struct UdpEcho {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Answers on `address` from inside `host` with `NAME:` and what was sent. Bound to the VIP, it answers from it.
    pub fn start(host: &Host, address: impl Into<SocketAddr>) -> Result<Self> {
        let address = address.into();
        let socket = host
            .run(|| UdpSocket::bind(address))?
            .with_context(|| format!("{}: binding UDP {address}", host.name()))?;
        socket.set_read_timeout(Some(TICK)).context("setting a timeout")?;
        let ending = Arc::new(AtomicBool::new(false));
        let (name, end) = (host.name().to_owned(), Arc::clone(&ending));
        let thread = std::thread::spawn(move || answer(&socket, &name, &end));
        Ok(Self { ending, thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, name: &str, ending: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !ending.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let reply = [name.as_bytes(), b":", buffer.get(..length).unwrap_or_default()].concat();
                // A lost answer shows at the asking end.
                let _ = socket.send_to(&reply, from);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error for an earlier answer: the asker has gone.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}
