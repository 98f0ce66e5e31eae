//! Many connections at once: turns a number into that many open TCP connections, each of which has its bytes echoed.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::host::Host;
use crate::lab::Lab;

/// How many connections one source address makes. There are 28,232 ephemeral ports; fewer are found faster.
const PER_ADDRESS: usize = 10_000;
/// The number of the customers' first further address.
const FIRST_ADDRESS: u8 = 151;
/// What the rest of the process may have open, in descriptors.
const OTHER_FILES: u64 = 4096;
/// How soon a server notices that it is to end, in milliseconds.
const TICK: i32 = 50;
const BACKLOG: i32 = 4096;
/// How long one handshake or one echo may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server on one host that holds every connection it accepts and echoes what comes; it ends when dropped.
#[derive(Debug)]
pub struct TcpEcho {
    ending: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl TcpEcho {
    /// Listens on `address` from inside `host`; bound to the unspecified address, it also serves the VIP.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = host
            .run(|| listen(address))?
            .with_context(|| format!("{}: listening on {address}", host.name()))?;
        let (ending, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut server =
            Server { epoll: epoll()?, listener, streams: Vec::new(), accepted: Arc::clone(&accepted) };
        let end = Arc::clone(&ending);
        let thread = std::thread::spawn(move || server.serve(&end));
        Ok(Self { ending, accepted, thread: Some(thread) })
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

struct Server {
    epoll: OwnedFd,
    listener: TcpListener,
    /// By descriptor.
    streams: Vec<Option<TcpStream>>,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    fn serve(&mut self, ending: &AtomicBool) -> Result<()> {
        watch(&self.epoll, self.listener.as_raw_fd())?;
        while !ending.load(Ordering::Relaxed) {
            for descriptor in ready(&self.epoll)? {
                if descriptor == self.listener.as_raw_fd() {
                    self.accept()?;
                } else {
                    self.echo(usize::try_from(descriptor)?);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    watch(&self.epoll, stream.as_raw_fd())?;
                    let index = usize::try_from(stream.as_raw_fd())?;
                    if self.streams.len() <= index {
                        self.streams.resize_with(index + 1, || None);
                    }
                    if let Some(slot) = self.streams.get_mut(index) {
                        *slot = Some(stream);
                    }
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A connection that was reset while it waited.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("accepting"),
            }
        }
    }

    /// Echoes what has come, or lets go of a connection that has ended.
    fn echo(&mut self, index: usize) {
        let Some(slot) = self.streams.get_mut(index) else { return };
        let Some(stream) = slot else { return };
        let mut buffer = [0; 512];
        let done = match stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(length) => stream.write_all(&buffer[..length]).is_err(),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if done {
            *slot = None;
        }
    }
}

/// Open connections of a lab's customer.
#[derive(Debug)]
pub struct ManyConnections {
    to: SocketAddr,
    streams: Vec<TcpStream>,
}

impl Lab {
    /// Opens `count` connections from the customer to a [`TcpEcho`] at `to` and has a byte echoed on each, all within
    /// `limit`. They come from as many source addresses as they need.
    pub fn many_connections(&self, to: SocketAddr, count: usize, limit: Duration) -> Result<ManyConnections> {
        allow_files(2 * u64::try_from(count)? + OTHER_FILES)?;
        let deadline = Instant::now() + limit;
        let sources = self.further_addresses(to.is_ipv6(), count.div_ceil(PER_ADDRESS))?;
        let open = || -> Result<Vec<TcpStream>> {
            let mut streams = Vec::with_capacity(count);
            let sources = sources.iter().flat_map(|source| std::iter::repeat_n(*source, PER_ADDRESS));
            for (number, source) in sources.take(count).enumerate() {
                ensure!(Instant::now() < deadline, "only {number} of {count} connections after {limit:?}");
                let stream = connect_from(source, to);
                streams.push(stream.with_context(|| format!("connection {number} of {count} to {to}"))?);
            }
            Ok(streams)
        };
        let streams = self.customer().run(open)??;
        let mut connections = ManyConnections { to, streams };
        connections.echo(deadline.saturating_duration_since(Instant::now()))?;
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
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Sends a byte on every connection and then waits for every echo, `limit` at most. An error if one does not come
    /// or is another.
    pub fn echo(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let to = self.to;
        for (number, stream) in self.streams.iter_mut().enumerate() {
            stream
                .write_all(&[byte(number)])
                .with_context(|| format!("sending on connection {number} to {to}"))?;
        }
        for (number, stream) in self.streams.iter_mut().enumerate() {
            let mut answer = [0];
            ensure!(Instant::now() < deadline, "only {number} echoes from {to} after {limit:?}");
            stream
                .read_exact(&mut answer)
                .with_context(|| format!("no echo on connection {number} to {to}"))?;
            ensure!(answer == [byte(number)], "the echo on connection {number} to {to} is of another one");
        }
        Ok(())
    }
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

/// Lets this process have `files` descriptors open.
fn allow_files(files: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft < files {
        setrlimit(Resource::RLIMIT_NOFILE, files, hard.max(files))
            .with_context(|| format!("raising the limit of open files to {files}"))?;
    }
    Ok(())
}

fn epoll() -> Result<OwnedFd> {
    // SAFETY: no pointers are passed; the answer is checked.
    let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    ensure!(descriptor >= 0, "epoll_create1: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has `epoll` tell when `descriptor` can be read.
fn watch(epoll: &OwnedFd, descriptor: RawFd) -> Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: u64::try_from(descriptor)? };
    // SAFETY: the event is live during the call, which copies it.
    let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, descriptor, &mut event) };
    ensure!(done == 0, "epoll_ctl: {}", std::io::Error::last_os_error());
    Ok(())
}

/// What can be read, or nothing after [`TICK`].
fn ready(epoll: &OwnedFd) -> Result<Vec<RawFd>> {
    const BATCH: usize = 256;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
    // SAFETY: the kernel writes at most the given number of events into the live array.
    let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), BATCH as i32, TICK) };
    if count < 0 {
        let error = std::io::Error::last_os_error();
        return if error.kind() == ErrorKind::Interrupted { Ok(vec![]) } else { Err(error.into()) };
    }
    Ok(events.iter().take(usize::try_from(count)?).map(|event| event.u64 as RawFd).collect())
}
