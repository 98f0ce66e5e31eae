//! A TCP service for the lab: turns any number of connections into ones that are held and echoed.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::host::Host;
use crate::netns::Netns;

/// How many threads, each with its own table of files, share the connections of a server.
const SHARES: usize = 4;
/// How soon a server notices that it is to end, in milliseconds.
const TICK: i32 = 50;
const BACKLOG: i32 = 4096;

/// A server on one host that holds every connection it accepts and echoes what comes; it ends when dropped.
#[derive(Debug)]
pub struct TcpEcho {
    ending: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl TcpEcho {
    /// Listens on `address` from inside `host`; at the unspecified address of a family it also serves the VIP.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let (ending, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        // Dropped with its threads if one of them does not start.
        let mut server = Self { ending, accepted, threads: Vec::with_capacity(SHARES) };
        for _ in 0..SHARES {
            server
                .add_share(host.netns().clone(), address)
                .with_context(|| format!("{}: listening on {address}", host.name()))?;
        }
        Ok(server)
    }

    /// Starts a thread and waits until it listens.
    fn add_share(&mut self, netns: Netns, address: SocketAddr) -> Result<()> {
        let (ending, accepted) = (Arc::clone(&self.ending), Arc::clone(&self.accepted));
        let (tell, listening) = channel();
        self.threads.push(std::thread::spawn(move || {
            let start = move || -> Result<Share> {
                with_own_files(netns)?;
                let share =
                    Share { epoll: epoll()?, listener: listen(address)?, streams: Vec::new(), accepted };
                watch(&share.epoll, share.listener.as_raw_fd())?;
                Ok(share)
            };
            match start() {
                Ok(mut share) => {
                    let _ = tell.send(Ok(()));
                    // What goes wrong later shows at the customers' end.
                    let _ = share.serve(&ending);
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        }));
        listening.recv().context("the server's thread has ended")?
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// One thread's listener and connections; the kernel shares out connections among the listeners.
struct Share {
    epoll: OwnedFd,
    listener: TcpListener,
    /// By descriptor.
    streams: Vec<Option<TcpStream>>,
    accepted: Arc<AtomicUsize>,
}

impl Share {
    fn serve(&mut self, ending: &AtomicBool) -> Result<()> {
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

/// Moves the calling thread into a namespace and gives it a table of files of its own, empty but for the standard ones.
/// Only for threads that own no descriptor yet, and keep to themselves those they open.
pub(crate) fn with_own_files(netns: Netns) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    }
    netns.enter()?;
    // It is a descriptor of the table that is left.
    drop(netns);
    let first = libc::STDERR_FILENO as libc::c_uint + 1;
    let unshare = libc::CLOSE_RANGE_UNSHARE as libc::c_int;
    // SAFETY: with this flag only the calling thread's own copy of the table is changed, and the thread has none of the
    // descriptors in it.
    let done = unsafe { libc::close_range(first, libc::c_uint::MAX, unshare) };
    ensure!(done == 0, "close_range: {}", Error::last_os_error());
    Ok(())
}

fn epoll() -> Result<OwnedFd> {
    // SAFETY: no pointers are passed; the answer is checked.
    let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    ensure!(descriptor >= 0, "epoll_create1: {}", Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has `epoll` tell when `descriptor` can be read.
fn watch(epoll: &OwnedFd, descriptor: RawFd) -> Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: u64::try_from(descriptor)? };
    // SAFETY: the event is live during the call, which copies it.
    let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, descriptor, &mut event) };
    ensure!(done == 0, "epoll_ctl: {}", Error::last_os_error());
    Ok(())
}

/// What can be read, or nothing after [`TICK`].
fn ready(epoll: &OwnedFd) -> Result<Vec<RawFd>> {
    const BATCH: usize = 256;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
    // SAFETY: the kernel writes at most the given number of events into the live array.
    let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), BATCH as i32, TICK) };
    if count < 0 {
        let error = Error::last_os_error();
        return if error.kind() == ErrorKind::Interrupted { Ok(vec![]) } else { Err(error.into()) };
    }
    Ok(events.iter().take(usize::try_from(count)?).map(|event| event.u64 as RawFd).collect())
}
