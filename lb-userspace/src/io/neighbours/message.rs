//! Netlink messages: turns those of the kernel into the few values that matter here, and addresses into requests.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};

use super::{Mac, XdpState};

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To a host on the link of this interface.
    Direct { ifindex: u32 },
    /// To a router.
    Gateway(IpAddr),
    /// To this host itself.
    Local,
    /// To several hosts.
    NotUnicast,
    /// Nowhere.
    None,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    /// The MAC address, if it may be used.
    pub(super) mac: Option<Mac>,
    /// Not verified for a while.
    pub(super) stale: bool,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    /// Its MAC address, if it is an Ethernet interface.
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    /// Up, and with a carrier.
    pub(super) running: bool,
    /// How an XDP program is attached.
    pub(super) xdp: XdpState,
}

/// The question for the route to `address`.
pub(super) fn route_to(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    (message.header.address_family, message.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}

/// The key of `address` in the neighbour table.
pub(super) fn neighbour_at(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// Where the route of an answer leads.
pub(super) fn route(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => unicast_route(&message.attributes),
        RouteType::Local => Route::Local,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => Route::NotUnicast,
        _ => Route::None,
    }
}

fn unicast_route(attributes: &[RouteAttribute]) -> Route {
    let mut route = Route::None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => return Route::Gateway((*gateway).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => return Route::Gateway((*gateway).into()),
            RouteAttribute::Oif(ifindex) => route = Route::Direct { ifindex: *ifindex },
            _ => {}
        }
    }
    route
}

/// The neighbour of an answer or notification; `None` if it is about something else, like a bridge's table.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    });
    let state = message.header.state;
    let usable = matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    Some(Neighbour {
        ifindex: message.header.ifindex,
        address,
        mac: mac.filter(|_| usable),
        stale: state == NeighbourState::Stale,
    })
}

/// The interface of an answer or notification.
pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        xdp: XdpState::None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(values) => link.xdp = xdp(values),
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac(bytes);
            }
            _ => {}
        }
    }
    link
}

fn xdp(values: &[LinkXdp]) -> XdpState {
    let attached = values.iter().find_map(|value| match value {
        LinkXdp::Attached(attached) => Some(attached),
        _ => None,
    });
    match attached {
        Some(XdpAttached::Driver | XdpAttached::Hardware) => XdpState::Driver,
        Some(XdpAttached::SocketBuffer) => XdpState::Generic,
        _ => XdpState::None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Mac::try_from(bytes).ok().filter(|mac| *mac != [0; 6])
}

#[cfg(test)]
mod tests;
