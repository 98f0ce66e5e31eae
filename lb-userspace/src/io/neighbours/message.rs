//! Netlink messages: turns those of the kernel into the few values that matter here, and addresses into requests.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use super::{Mac, XdpState};

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To one host.
    Unicast(Way),
    /// To this host itself.
    Local,
    /// To several hosts.
    NotUnicast,
    /// Nowhere.
    None,
}

/// The way to a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) ifindex: u32,
    /// The next router, if the host is not on the interface's link; of any family.
    pub(super) gateway: Option<IpAddr>,
    /// The route's own MTU, or what the kernel has learnt of the path's.
    pub(super) mtu: Option<u32>,
    /// The source address that the kernel would choose.
    pub(super) source: Option<IpAddr>,
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
    /// Asked for and not being verified just now: nobody has written it down.
    pub(super) learnt: bool,
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
    pub(super) vlan: Vlan,
    /// How an XDP program is attached.
    pub(super) xdp: XdpState,
}

/// What an interface has to do with VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vlan {
    /// It is no VLAN device.
    None,
    /// An 802.1Q VLAN device over another interface of this network namespace.
    Over { lower: u32, id: u16 },
    /// Any other VLAN device.
    Other,
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
    let mut way = Way::default();
    let mut destination = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => way.ifindex = *ifindex,
            RouteAttribute::Via(RouteVia::Inet(gateway)) => way.gateway = Some((*gateway).into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => way.gateway = Some((*gateway).into()),
            RouteAttribute::Gateway(address) => way.gateway = ip(address),
            RouteAttribute::PrefSource(address) => way.source = ip(address),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Metrics(metrics) => way.mtu = mtu(metrics),
            _ => {}
        }
    }
    // A host that is its own gateway is on the link, only said the long way.
    way.gateway = way.gateway.filter(|gateway| Some(*gateway) != destination);
    if way.ifindex == 0 { Route::None } else { Route::Unicast(way) }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    let address = match address {
        RouteAddress::Inet(address) => IpAddr::V4(*address),
        RouteAddress::Inet6(address) => IpAddr::V6(*address),
        _ => return None,
    };
    Some(address).filter(|address| !address.is_unspecified())
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
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
        learnt: matches!(state, NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay),
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
        vlan: vlan(&message.attributes),
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

fn vlan(attributes: &[LinkAttribute]) -> Vlan {
    let (mut is_vlan, mut plain, mut local) = (false, false, true);
    let (mut lower, mut id) = (None, None);
    for attribute in attributes {
        match attribute {
            LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
            // The interface beneath is in another network namespace, and its index means nothing here.
            LinkAttribute::LinkNetNsId(_) => local = false,
            LinkAttribute::LinkInfo(values) => {
                for value in values {
                    match value {
                        LinkInfo::Kind(kind) => is_vlan = *kind == InfoKind::Vlan,
                        LinkInfo::Data(InfoData::Vlan(values)) => (id, plain) = tag(values),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    match (is_vlan, lower, id) {
        (false, ..) => Vlan::None,
        (true, Some(lower), Some(id)) if plain && local => Vlan::Over { lower, id },
        _ => Vlan::Other,
    }
}

/// The id of a VLAN device, and whether its tags are those of 802.1Q.
fn tag(values: &[InfoVlan]) -> (Option<u16>, bool) {
    let id = values.iter().find_map(|value| match value {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    });
    let foreign = |value: &InfoVlan| matches!(value, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    (id, !values.iter().any(foreign))
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
