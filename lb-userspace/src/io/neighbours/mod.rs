//! Next hops from the kernel over netlink: turns a backend's address into the interface and MAC addresses that
//! frames to it need, and the kernel's notifications into a hint that asking again is worth while.
//!
//! Every question goes to the kernel; nothing is cached, so no answer can be stale. (A link cache fed by
//! notifications could be: they come over another socket, and so in no order relative to the answers.)

mod changes;
mod error;
mod message;
mod requests;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep, timeout_at};

pub use changes::{Changed, Changes};
pub use error::{HopError, InterfaceError, NetlinkError};

use changes::Watcher;
use message::{Link, Route};
use requests::Requests;

/// A MAC address.
pub type Mac = [u8; 6];

/// How often an unresolved address is looked at again, should the kernel tell nothing about it.
const RECHECK: Duration = Duration::from_millis(250);

/// What a frame to a backend needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The interface that the backend is reached through.
    pub ifindex: u32,
    /// The backend's MAC address.
    pub destination_mac: Mac,
    /// The interface's own MAC address.
    pub source_mac: Mac,
}

/// An Ethernet interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its own MAC address.
    pub mac: Mac,
    /// Its MTU: the largest IP packet it sends.
    pub mtu: u32,
    /// How an XDP program is attached to it.
    pub xdp: XdpState,
}

/// How an XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpState {
    /// Not at all.
    None,
    /// In the driver.
    Driver,
    /// In the kernel's stack, behind the driver.
    Generic,
}

/// Asks the kernel for next hops, in the network namespace in which it was made.
#[derive(Debug)]
pub struct Resolver {
    requests: Requests,
    watcher: Watcher,
}

impl Resolver {
    /// Opens the netlink sockets, in the network namespace of the calling thread. From here on every change is
    /// noticed. Asynchronous because the sockets belong to the runtime it is awaited in.
    pub async fn new() -> io::Result<Self> {
        Ok(Self { watcher: Watcher::new()?, requests: Requests::new()? })
    }

    /// The next hop of a backend on the same link.
    ///
    /// If the kernel doesn't know the backend's MAC address, it is made to ask for it (ARP or neighbour
    /// discovery) and the answer is [`HopError::Unresolved`] for now. One that the kernel has not verified for
    /// a while is used, and verified: frames sent by XDP don't make the kernel do that.
    pub async fn resolve(&self, address: IpAddr) -> Result<NextHop, HopError> {
        let ifindex = self.outgoing_interface(address).await?;
        let link = self.requests.link(ifindex).await?.ok_or(HopError::NoRoute { address })?;
        let Some(source_mac) = link.mac else {
            return Err(HopError::NotEthernet { address, ifindex, interface: link.name });
        };
        let neighbour = self.requests.neighbour(ifindex, address).await?;
        match neighbour.and_then(|neighbour| Some((neighbour.mac?, neighbour.stale))) {
            Some((destination_mac, stale)) => {
                if stale && let Err(error) = self.requests.solicit(ifindex, address).await {
                    log::debug!("cannot have {address} verified on {}: {error}", link.name);
                }
                Ok(NextHop { ifindex, destination_mac, source_mac })
            }
            None => {
                self.requests.solicit(ifindex, address).await.map_err(|error| match error {
                    NetlinkError::Refused(Errno::ENOBUFS) => HopError::TableFull { address },
                    error => error.into(),
                })?;
                Err(HopError::Unresolved { address, ifindex, interface: link.name })
            }
        }
    }

    /// Like [`resolve`](Self::resolve), but gives the backend up to `patience` to answer. Errors that waiting
    /// does not cure are returned at once.
    pub async fn resolve_within(&self, address: IpAddr, patience: Duration) -> Result<NextHop, HopError> {
        let deadline = Instant::now() + patience;
        let mut changes = self.watcher.subscribe();
        loop {
            match self.resolve(address).await {
                Err(HopError::Unresolved { .. }) if Instant::now() < deadline => {}
                outcome => return outcome,
            }
            // However the wait ends, the next thing to do is to look again.
            let wait = async {
                tokio::select! { _ = changes.changed() => {} () = sleep(RECHECK) => {} }
            };
            let _ = timeout_at(deadline, wait).await;
        }
    }

    /// The changes from now on. Subscribe first, then resolve: then none is missed.
    pub fn changes(&self) -> Changes {
        Changes::new(self.watcher.subscribe())
    }

    /// An interface by its name.
    pub async fn interface(&self, name: &str) -> Result<Interface, InterfaceError> {
        let link = self.requests.link_named(name).await?;
        let Link { ifindex, name, mac, mtu, xdp, .. } =
            link.ok_or_else(|| InterfaceError::NotFound { name: name.to_owned() })?;
        let mac = mac.ok_or_else(|| InterfaceError::NotEthernet { name: name.clone() })?;
        Ok(Interface { name, ifindex, mac, mtu, xdp })
    }

    async fn outgoing_interface(&self, address: IpAddr) -> Result<u32, HopError> {
        // Without a default route the kernel has no route for these either, and says no more than that.
        if address.is_multicast() || address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(HopError::NotUnicast { address });
        }
        match self.requests.route(address).await? {
            Route::Direct { ifindex } => Ok(ifindex),
            Route::Gateway(gateway) => Err(HopError::NotOnLink { address, gateway }),
            Route::Local => Err(HopError::LocalAddress { address }),
            Route::NotUnicast => Err(HopError::NotUnicast { address }),
            Route::None => Err(HopError::NoRoute { address }),
        }
    }
}
