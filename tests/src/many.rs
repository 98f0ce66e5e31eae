//! Many connections at once: turns a number into that many open TCP connections of a lab's customer, on each of which a
//! byte can be echoed.
//!
//! A process may have fewer files open than that, and root is not always allowed to raise the limit. But the limit is that
//! of a table, and a thread may have its own: so the connections are shared out among threads that keep them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::tcp_echo::with_own_files;

/// How many connections one source address and thread makes: fewer than there are ephemeral ports, and than a table of
/// files has room for.
const SHARE: usize = 10_000;
/// The number of the customers' first further address.
const FIRST_ADDRESS: u8 = 151;
/// How long one handshake or one echo may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Open connections of a lab's customer; they are reset when dropped.
#[derive(Debug)]
pub struct ManyConnections {
    holders: Vec<Holder>,
    count: usize,
}

/// A thread that keeps some of the connections.
#[derive(Debug)]
struct Holder {
    /// By when every connection is to have had its byte echoed. The thread ends when nobody can ask any more.
    ask: Option<Sender<Instant>>,
    answers: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lab {
    /// Opens `count` connections from the customer to a [`crate::TcpEcho`] at `to` and has a byte echoed on each, all
    /// within `limit`. They come from as many source addresses as they need.
    pub fn many_connections(&self, to: SocketAddr, count: usize, limit: Duration) -> Result<ManyConnections> {
        let deadline = Instant::now() + limit;
        let sources = self.further_addresses(to.is_ipv6(), count.div_ceil(SHARE))?;
        let shares = (0..count).step_by(SHARE).map(|start| SHARE.min(count - start));
        let netns = self.customer().netns();
        let holders = sources.into_iter().zip(shares);
        let holders =
            holders.map(|(source, share)| Holder::start(netns, source, to, share, deadline)).collect();
        let connections = ManyConnections { holders, count };
        connections.answers().context("opening")?;
        connections.ask(deadline)?;
        Ok(connections)
    }

    /// Gives the customer `count` further addresses.
    fn further_addresses(&self, v6: bool, count: usize) -> Result<Vec<IpAddr>> {
        let customer = self.customer();
        let at = *customer.attachments().first().context("a customer without an interface")?;
        let numbers = (FIRST_ADDRESS..u8::MAX).take(count);
        let addresses: Vec<_> = numbers
            .map(|number| if v6 { at.segment.v6(number).into() } else { at.segment.v4(number).into() })
            .collect();
        ensure!(addresses.len() == count, "a segment has no {count} addresses left");
        let length = if v6 { "64 nodad" } else { "24" };
        let add = |address: &IpAddr| format!("addr replace {address}/{length} dev eth0\n");
        customer.ip(&addresses.iter().map(add).collect::<String>())?;
        Ok(addresses)
    }
}

impl ManyConnections {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Sends a byte on every connection and waits for every echo, `limit` at most. An error if one does not come or is
    /// another connection's.
    pub fn echo(&self, limit: Duration) -> Result<()> {
        self.ask(Instant::now() + limit)
    }

    fn ask(&self, deadline: Instant) -> Result<()> {
        for holder in &self.holders {
            // Who has ended says why in the answer.
            let _ = holder.ask.as_ref().is_some_and(|ask| ask.send(deadline).is_ok());
        }
        self.answers()
    }

    /// One answer of every thread.
    fn answers(&self) -> Result<()> {
        let answers = self.holders.iter().map(|holder| holder.answers.recv());
        // All of them, so that none is left for the next question.
        let answers: Vec<_> = answers.map(|answer| answer.context("a thread has ended")?).collect();
        answers.into_iter().collect()
    }
}

impl Holder {
    fn start(netns: &Netns, source: IpAddr, to: SocketAddr, count: usize, deadline: Instant) -> Self {
        let (ask, questions) = channel();
        let (answer, answers) = channel();
        let netns = netns.clone();
        let thread = std::thread::spawn(move || {
            let opened = with_own_files(netns).and_then(|()| open(source, to, count, deadline));
            let (mut streams, outcome) = match opened {
                Ok(streams) => (streams, Ok(())),
                Err(error) => (vec![], Err(error)),
            };
            let failed = outcome.is_err();
            if answer.send(outcome).is_err() || failed {
                return;
            }
            for deadline in questions {
                let echoed = echo(&mut streams, deadline).with_context(|| format!("from {source} to {to}"));
                if answer.send(echoed).is_err() {
                    return;
                }
            }
        });
        Self { ask: Some(ask), answers, thread: Some(thread) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(source: IpAddr, to: SocketAddr, count: usize, deadline: Instant) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        ensure!(Instant::now() < deadline, "in time, only {number} of {count} from {source} to {to}");
        let stream = connect_from(source, to);
        streams
            .push(stream.with_context(|| format!("connection {number} of {count} from {source} to {to}"))?);
    }
    Ok(streams)
}

fn echo(streams: &mut [TcpStream], deadline: Instant) -> Result<()> {
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&[byte(number)]).with_context(|| format!("sending on connection {number}"))?;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0];
        ensure!(Instant::now() < deadline, "in time, only {number} echoes");
        stream.read_exact(&mut answer).with_context(|| format!("no echo on connection {number}"))?;
        ensure!(answer == [byte(number)], "the echo on connection {number} is another one's");
    }
    Ok(())
}

/// What is sent on the connection with this number.
fn byte(number: usize) -> u8 {
    (number % 251) as u8
}

/// Connects from the calling thread's namespace and from `source`; the connection is reset when dropped, so that its
/// port is free at once.
fn connect_from(source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}
