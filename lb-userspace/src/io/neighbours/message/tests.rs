use super::*;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 11));
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1));
const MAC: Mac = [2, 0, 0, 0, 0, 11];

fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = route_to(ADDRESS);
    message.header.kind = kind;
    message.attributes.extend(attributes);
    message
}

#[test]
fn route_without_gateway_is_direct() {
    let message = route_message(RouteType::Unicast, vec![RouteAttribute::Oif(7)]);
    assert_eq!(route(&message), Route::Direct { ifindex: 7 });
}

#[test]
fn gateway_wins_over_interface_wherever_it_stands() {
    let v6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    for (gateway, expected) in [
        (RouteAttribute::Gateway(GATEWAY.into()), GATEWAY),
        (RouteAttribute::Gateway(RouteAddress::Inet6(v6)), v6.into()),
        (RouteAttribute::Via(RouteVia::Inet6(v6)), v6.into()),
    ] {
        for attributes in
            [vec![RouteAttribute::Oif(7), gateway.clone()], vec![gateway.clone(), RouteAttribute::Oif(7)]]
        {
            let message = route_message(RouteType::Unicast, attributes);
            assert_eq!(route(&message), Route::Gateway(expected));
        }
    }
}

#[test]
fn route_types_that_are_no_way_to_a_backend() {
    for (kind, expected) in [
        (RouteType::Local, Route::Local),
        (RouteType::Broadcast, Route::NotUnicast),
        (RouteType::Multicast, Route::NotUnicast),
        (RouteType::Anycast, Route::NotUnicast),
        (RouteType::BlackHole, Route::None),
        (RouteType::Unreachable, Route::None),
        (RouteType::Prohibit, Route::None),
    ] {
        assert_eq!(route(&route_message(kind, vec![RouteAttribute::Oif(1)])), expected, "{kind:?}");
    }
    assert_eq!(route(&route_message(RouteType::Unicast, Vec::new())), Route::None);
}

fn neighbour_message(state: NeighbourState, lladdr: Option<&[u8]>) -> NeighbourMessage {
    let mut message = neighbour_at(7, ADDRESS);
    message.header.state = state;
    message.attributes.extend(lladdr.map(|bytes| NeighbourAttribute::LinkLayerAddress(bytes.to_vec())));
    message
}

#[test]
fn only_usable_states_give_a_mac() {
    use NeighbourState::{
        Delay, Failed, Incomplete, Noarp, None as NoState, Permanent, Probe, Reachable, Stale,
    };
    for state in [Reachable, Stale, Delay, Probe, Permanent, Noarp] {
        let found = neighbour(&neighbour_message(state, Some(&MAC))).unwrap();
        let expected = Neighbour { ifindex: 7, address: ADDRESS, mac: Some(MAC), stale: state == Stale };
        assert_eq!(found, expected, "{state:?}");
    }
    for state in [Incomplete, Failed, NoState] {
        assert_eq!(neighbour(&neighbour_message(state, Some(&MAC))).unwrap().mac, None, "{state:?}");
    }
}

#[test]
fn missing_zero_or_foreign_link_addresses_are_no_mac() {
    for lladdr in [None, Some(&[0; 6][..]), Some(&[1; 4][..]), Some(&[1; 20][..]), Some(&[][..])] {
        let found = neighbour(&neighbour_message(NeighbourState::Reachable, lladdr)).unwrap();
        assert_eq!(found.mac, None, "{lladdr:?}");
    }
}

#[test]
fn bridge_and_proxy_entries_are_no_neighbours() {
    let mut bridge = NeighbourMessage::default();
    bridge.header.family = AddressFamily::Bridge;
    bridge.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
    assert_eq!(neighbour(&bridge), None);
    let mut proxy = neighbour_message(NeighbourState::Permanent, Some(&MAC));
    proxy.header.flags = NeighbourFlags::Proxy;
    assert_eq!(neighbour(&proxy), None);
}

#[test]
fn link_has_a_mac_only_if_it_is_ethernet() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::Running;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(MAC.to_vec()),
    ];
    let expected = Link {
        ifindex: 7,
        name: "eth0".into(),
        mac: Some(MAC),
        mtu: 1500,
        running: true,
        xdp: XdpState::None,
    };
    assert_eq!(link(&message), expected);
    message.header.link_layer_type = LinkLayerType::Loopback;
    message.header.flags = LinkFlags::Up;
    assert_eq!(link(&message), Link { mac: None, running: false, ..expected });
}
