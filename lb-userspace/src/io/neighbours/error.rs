//! What can go wrong on the way to a next hop, in words that say what to do about it.

use std::net::IpAddr;

use nix::errno::Errno;

/// Why there is no next hop to a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HopError {
    /// The kernel has no route to the backend, or one that rejects.
    #[error("no route to {address}: give this host an address in the backend's network")]
    NoRoute {
        /// The backend's address.
        address: IpAddr,
    },
    /// The backend is behind a router, which l2-dsr cannot cross.
    #[error(
        "{address} is behind the gateway {gateway}: l2-dsr needs the backend on the same network segment"
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
    /// The route leads to an interface without MAC addresses.
    #[error("{address} is reached through {interface}, which is no Ethernet interface: l2-dsr needs one")]
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
        "{address}: the kernel's neighbour table is full: raise net.ipv4.neigh.default.gc_thresh3 above the number \
         of backends"
    )]
    TableFull {
        /// The backend's address.
        address: IpAddr,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
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
