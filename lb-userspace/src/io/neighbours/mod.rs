//! Next hops from the kernel over netlink: turns a backend's address into what frames to it need (interface, MAC
//! addresses, VLAN, MTU, source address), and the kernel's notifications into a hint that asking again is worth while.
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

pub use crate::core::reach::Reach;
pub use changes::{Changed, Changes};
pub use error::{HopError, InterfaceError, NetlinkError};

use changes::Watcher;
use message::{Link, Route, Vlan, Way};
use requests::Requests;

use super::host;

/// A MAC address.
pub type Mac = [u8; 6];

/// How often an unresolved address is looked at again, should the kernel tell nothing about it.
const RECHECK: Duration = Duration::from_millis(250);

/// What a frame to a backend needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The interface to transmit on. For a route over a VLAN device it is the device beneath.
    pub ifindex: u32,
    /// The MAC address of the backend, or of the gateway on the way to it.
    pub destination_mac: Mac,
    /// The MAC address of the interface that the route leads to: for a VLAN, the VLAN device's own.
    pub source_mac: Mac,
    /// The VLAN id of the route's VLAN device, 802.1Q; `None` if the route leads to no VLAN device.
    pub vlan: Option<u16>,
    /// The largest IP packet towards the backend, in bytes: the smaller of the route's MTU, if it has one, and the
    /// interface's.
    pub mtu: u32,
    /// The source address that the kernel would choose, of the backend's family. `None` if this host has none.
    pub source: Option<IpAddr>,
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
    /// Whether VLAN devices lie over it: then what comes in with a tag is another interface's to the kernel.
    pub carries_vlans: bool,
}

impl Interface {
    /// One that is not there yet: its index is 0, which no interface has.
    pub fn absent(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ifindex: 0,
            mac: [0; 6],
            mtu: 0,
            xdp: XdpState::None,
            carries_vlans: false,
        }
    }

    /// Whether it was there when it was last looked for.
    pub fn is_there(&self) -> bool {
        self.ifindex != 0
    }
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

    /// The next hop to a backend. Where several gateways share a route, it is the one that the kernel chooses.
    ///
    /// If the kernel doesn't know the neighbour's MAC address, it is made to ask for it (ARP or neighbour
    /// discovery) and the answer is [`HopError::Unresolved`] for now. One that the kernel has not verified for
    /// a while is used, and verified: frames sent by XDP don't make the kernel do that.
    pub async fn resolve(&self, address: IpAddr, reach: Reach) -> Result<NextHop, HopError> {
        let way = self.way(address).await?;
        if let (Reach::OnLink, Some(gateway)) = (reach, way.gateway) {
            return Err(HopError::NotOnLink { address, gateway });
        }
        let link = self.requests.link(way.ifindex).await?.ok_or(HopError::NoRoute { address })?;
        let Some(source_mac) = link.mac else {
            let ifindex = way.ifindex;
            return Err(HopError::NotEthernet { address, ifindex, interface: link.name });
        };
        let (ifindex, vlan) = self.transmitting(address, &link).await?;
        let mtu = way.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        let destination_mac = self.neighbour_mac(address, &way, link).await?;
        Ok(NextHop { ifindex, destination_mac, source_mac, vlan, mtu, source: way.source })
    }

    /// Like [`resolve`](Self::resolve), but gives the neighbour up to `patience` to answer. Errors that waiting
    /// does not cure are returned at once.
    pub async fn resolve_within(
        &self,
        address: IpAddr,
        reach: Reach,
        patience: Duration,
    ) -> Result<NextHop, HopError> {
        let deadline = Instant::now() + patience;
        let mut changes = self.watcher.subscribe();
        loop {
            match self.resolve(address, reach).await {
                Err(error) if error.may_pass() && Instant::now() < deadline => {}
                outcome => return outcome,
            }
            // However the wait ends, the next thing to do is to look again.
            let wait = async {
                tokio::select! { _ = changes.changed() => {} () = sleep(RECHECK) => {} }
            };
            let _ = timeout_at(deadline, wait).await;
        }
    }

    /// Has the neighbour on the way to a backend that is silent verified. One that has another MAC address by now, and told nobody, is
    /// found again after the kernel's three questions to the old one, a second apart, and not after half a minute more.
    pub async fn doubt(&self, address: IpAddr) -> Result<(), HopError> {
        let way = self.way(address).await?;
        let neighbour = way.gateway.unwrap_or(address);
        let known = self.requests.neighbour(way.ifindex, neighbour).await?;
        if let Some(mac) = known.filter(|known| known.learnt).and_then(|known| known.mac) {
            self.requests.doubt(way.ifindex, neighbour, mac).await?;
        }
        Ok(())
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
        let carries_vlans = host::vlan_carriers().contains(&name);
        Ok(Interface { name, ifindex, mac, mtu, xdp, carries_vlans })
    }

    async fn way(&self, address: IpAddr) -> Result<Way, HopError> {
        // Without a default route the kernel has no route for these either, and says no more than that.
        if address.is_multicast() || address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(HopError::NotUnicast { address });
        }
        match self.requests.route(address).await? {
            Route::Unicast(way) => Ok(way),
            Route::Local => Err(HopError::LocalAddress { address }),
            Route::NotUnicast => Err(HopError::NotUnicast { address }),
            Route::None => Err(HopError::NoRoute { address }),
        }
    }

    /// The interface that frames over `link` are transmitted on, and the VLAN they are in.
    async fn transmitting(&self, address: IpAddr, link: &Link) -> Result<(u32, Option<u16>), HopError> {
        let unsupported = || HopError::VlanKind { address, interface: link.name.clone() };
        match link.vlan {
            Vlan::None => Ok((link.ifindex, None)),
            Vlan::Other => Err(unsupported()),
            Vlan::Over { lower, id } => match self.requests.link(lower).await? {
                Some(Link { vlan: Vlan::None, .. }) => Ok((lower, Some(id))),
                Some(_) => Err(unsupported()),
                None => Err(HopError::NoRoute { address }),
            },
        }
    }

    /// The MAC address of the neighbour on the way to `address`, over `link`.
    async fn neighbour_mac(&self, address: IpAddr, way: &Way, link: Link) -> Result<Mac, HopError> {
        let Way { ifindex, gateway, .. } = *way;
        let neighbour = gateway.unwrap_or(address);
        let known = self.requests.neighbour(ifindex, neighbour).await?;
        if let Some((mac, stale)) = known.and_then(|known| Some((known.mac?, known.stale))) {
            if stale && let Err(error) = self.requests.solicit(ifindex, neighbour).await {
                log::debug!("cannot have {neighbour} verified on {}: {error}", link.name);
            }
            return Ok(mac);
        }
        if !link.running {
            // A question now would be lost, and the kernel ask again only a second after the link is back.
            return Err(HopError::LinkDown { address, ifindex, interface: link.name });
        }
        self.requests.solicit(ifindex, neighbour).await.map_err(|error| match error {
            NetlinkError::Refused(Errno::ENOBUFS) => HopError::TableFull { address: neighbour },
            error => error.into(),
        })?;
        let interface = link.name;
        Err(match gateway {
            None => HopError::Unresolved { address, ifindex, interface },
            Some(gateway) => HopError::GatewayUnresolved { address, gateway, ifindex, interface },
        })
    }
}
