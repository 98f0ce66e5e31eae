//! Change notifications: turns the kernel's messages about neighbours, routes, addresses and links into one
//! coalesced "ask again".

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::BytesMut;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::RouteFlags;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::Mac;
use super::message::{self, Link};

/// Everything a next hop depends on. Addresses are among them because the routes that vanish with one are not
/// all announced.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// The kernel's own upper limit for one netlink datagram is 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// Least time between two hints. A routing daemon that loads a full table makes no more of them than this.
const SPACING: Duration = Duration::from_millis(100);
/// Pause after an error of the socket that is no overrun.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// A hint: some next hop may not be what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

/// The hints, coalesced. The first comes at once, others at least 100 ms apart; the last is never lost.
#[derive(Debug)]
pub struct Changes {
    receiver: watch::Receiver<u64>,
    not_before: Instant,
}

impl Changes {
    pub(super) fn new(receiver: watch::Receiver<u64>) -> Self {
        Self { receiver, not_before: Instant::now() }
    }

    /// Waits for the next change; `None` once the resolver is gone. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Changed> {
        sleep_until(self.not_before).await;
        self.receiver.changed().await.ok()?;
        self.not_before = Instant::now() + SPACING;
        Some(Changed)
    }
}

/// The socket for notifications and the task that reads it.
#[derive(Debug)]
pub(super) struct Watcher {
    receiver: watch::Receiver<u64>,
    reader: JoinHandle<()>,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.socket_mut().add_membership(group as u32)?;
        }
        let (sender, receiver) = watch::channel(0);
        Ok(Self { receiver, reader: tokio::spawn(read(socket, sender)) })
    }

    /// A receiver that has seen all changes so far.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        let mut receiver = self.receiver.clone();
        receiver.borrow_and_update();
        receiver
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(socket: TokioSocket, changes: watch::Sender<u64>) {
    let mut seen = Seen::default();
    let mut datagram = BytesMut::new();
    loop {
        datagram.clear();
        datagram.reserve(DATAGRAM);
        let changed = match socket.recv(&mut datagram).await {
            Ok(()) => seen.note_datagram(&datagram),
            Err(error) => {
                // Notifications were lost, so what was seen proves nothing any more.
                seen = Seen::default();
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    log::warn!("cannot read netlink notifications: {error}");
                    sleep(ERROR_PAUSE).await;
                }
                true
            }
        };
        if changed {
            changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// What the last notification about each neighbour and link said. The kernel repeats itself: a neighbour passes
/// through several states with the same MAC address, and asking for one that doesn't answer makes it fail anew.
/// Only news count as changes, so that resolving cannot be the cause of resolving again without end.
#[derive(Debug, Default)]
struct Seen {
    /// No larger than the kernel's table, as entries are removed with the kernel's.
    neighbours: HashMap<(u32, IpAddr), Option<Mac>>,
    links: HashMap<u32, Link>,
}

impl Seen {
    /// Whether one of the messages in `datagram` is news. One that cannot be read may be.
    fn note_datagram(&mut self, datagram: &[u8]) -> bool {
        let mut news = false;
        let mut rest = datagram;
        while !rest.is_empty() {
            let Ok(length) = NetlinkBuffer::new_checked(rest).map(|buffer| buffer.length() as usize) else {
                return true;
            };
            news |= match NetlinkMessage::deserialize(rest).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => self.note(&message),
                Ok(NetlinkPayload::Noop | NetlinkPayload::Done(_)) => false,
                _ => true,
            };
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        news
    }

    fn note(&mut self, message: &RouteNetlinkMessage) -> bool {
        use RouteNetlinkMessage::{DelLink, DelNeighbour, DelRoute, NewLink, NewNeighbour, NewRoute};
        match message {
            NewNeighbour(message) => message::neighbour(message).is_some_and(|neighbour| {
                let key = (neighbour.ifindex, neighbour.address);
                self.neighbours.insert(key, neighbour.mac) != Some(neighbour.mac)
            }),
            DelNeighbour(message) => message::neighbour(message).is_some_and(|neighbour| {
                self.neighbours.remove(&(neighbour.ifindex, neighbour.address)) != Some(None)
            }),
            // A bridge tells about its ports with messages of its own family.
            NewLink(message) | DelLink(message)
                if message.header.interface_family != AddressFamily::Unspec =>
            {
                false
            }
            NewLink(message) => {
                let link = message::link(message);
                self.links.insert(link.ifindex, link.clone()) != Some(link)
            }
            DelLink(message) => {
                self.links.remove(&message.header.index);
                true
            }
            // Cloned routes are the kernel's notes about single destinations, like a path's MTU.
            NewRoute(message) | DelRoute(message) => !message.header.flags.contains(RouteFlags::Cloned),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
