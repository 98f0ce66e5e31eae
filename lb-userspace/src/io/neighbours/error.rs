//! What can go wrong on the way to a next hop, in words that say what to do about it.

use std::net::IpAddr;

use nix::errno::Errno;

/// Why there is no next hop to a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HopError {
    /// The kernel has no route to the backend, or one that rejects.
    #[error("no route to {address}: give this host an address in the backend's network, or a route to it")]
    NoRoute {
        /// The backend's address.
        address: IpAddr,
    },
    /// The backend is behind a router, which l2-dsr cannot cross.
    #[error(
        "{address} is behind the gateway {gateway}: l2-dsr needs the backend on the same network segment; the other \
         forwarding modes do not"
    )]
    NotOnLink {
        /// The backend's address.
        address: IpAddr,
        /// The next router on the way to it.
        gateway: IpAddr,
    },
    /// The backend's MAC address is not known, at least not yet.
    #[error("{address} does not answer on {interface}: is it up and on this network segment?")]
    Unresolved {
        /// The backend's address.
        address: IpAddr,
        /// The interface that it should be reached through.
        ifindex: u32,
        /// That interface's name.
        interface: String,
    },
    /// The MAC address of the gateway to the backend is not known, at least not yet.
    #[error("{address} is behind the gateway {gateway}, which does not answer on {interface}: is it up?")]
    GatewayUnresolved {
        /// The backend's address.
        address: IpAddr,
        /// The next router on the way to it.
        gateway: IpAddr,
        /// The interface that the gateway should be reached through.
        ifindex: u32,
        /// That interface's name.
        interface: String,
    },
    /// The interface has no link.
    #[error("{address} is reached through {interface}, which has no link: check its cable and the other end")]
    LinkDown {
        /// The backend's address.
        address: IpAddr,
        /// The interface that the route leads to.
        ifindex: u32,
        /// That interface's name.
        interface: String,
    },
    /// The route leads to a VLAN device of a kind whose tags are not written.
    #[error(
        "{address} is reached through {interface}, a VLAN device inside another VLAN, with 802.1ad tags or over another \
         network namespace's interface: have its route lead to a plain 802.1Q VLAN device"
    )]
    VlanKind {
        /// The backend's address.
        address: IpAddr,
        /// The VLAN device's name.
        interface: String,
    },
    /// The route leads to an interface without MAC addresses.
    #[error(
        "{address} is reached through {interface}, which is no Ethernet interface: have its route lead to one"
    )]
    NotEthernet {
        /// The backend's address.
        address: IpAddr,
        /// The interface that the route leads to.
        ifindex: u32,
        /// That interface's name.
        interface: String,
    },
    /// The address is one of this host's own.
    #[error("{address} is an address of this host: a backend must be another host")]
    LocalAddress {
        /// The backend's address.
        address: IpAddr,
    },
    /// The address is a broadcast, multicast or anycast address.
    #[error("{address} is not a unicast address: a backend must be one host")]
    NotUnicast {
        /// The backend's address.
        address: IpAddr,
    },
    /// The kernel has no room for another neighbour.
    #[error(
        "{address}: the kernel's neighbour table is full: raise net.{}.neigh.default.gc_thresh3 above the number \
         of hosts on this host's links",
        if address.is_ipv4() { "ipv4" } else { "ipv6" }
    )]
    TableFull {
        /// The address of the backend, or of the gateway to it.
        address: IpAddr,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl HopError {
    /// Whether waiting may cure it: the same question may soon have an answer although nobody changes anything here.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unresolved { .. }
                | Self::GatewayUnresolved { .. }
                | Self::LinkDown { .. }
                | Self::TableFull { .. }
        )
    }
}

/// Why an interface cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// There is none of that name.
    #[error("there is no interface {name}: see `ip link`")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// It has no MAC address.
    #[error("{name} is no Ethernet interface")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A netlink request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("the kernel refused a netlink request: {0}")]
    Refused(Errno),
    /// No answer came, or none that could be read.
    #[error("the kernel gave no usable answer to a netlink request")]
    NoAnswer,
}
