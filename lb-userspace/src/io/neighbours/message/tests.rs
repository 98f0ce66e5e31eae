use rtnetlink::packet_core::{Emitable, Parseable};

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
    assert_eq!(route(&message), Route::Unicast(Way { ifindex: 7, ..Way::default() }));
}

#[test]
fn gateway_is_found_wherever_it_stands() {
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
            let way = Way { ifindex: 7, gateway: Some(expected), ..Way::default() };
            assert_eq!(route(&message), Route::Unicast(way));
        }
    }
}

#[test]
fn host_that_is_its_own_gateway_is_on_the_link() {
    let gateway = RouteAttribute::Gateway(ADDRESS.into());
    let message = route_message(RouteType::Unicast, vec![RouteAttribute::Oif(7), gateway]);
    assert_eq!(route(&message), Route::Unicast(Way { ifindex: 7, ..Way::default() }));
}

#[test]
fn route_has_mtu_and_source_if_the_kernel_says_so() {
    let way = |metrics: Vec<RouteMetric>, source: IpAddr| {
        let attributes = vec![
            RouteAttribute::Oif(7),
            RouteAttribute::Metrics(metrics),
            RouteAttribute::PrefSource(source.into()),
        ];
        match route(&route_message(RouteType::Unicast, attributes)) {
            Route::Unicast(Way { mtu, source, .. }) => (mtu, source),
            other => panic!("{other:?}"),
        }
    };
    let set = vec![RouteMetric::Advmss(1360), RouteMetric::Mtu(1400)];
    assert_eq!(way(set, GATEWAY), (Some(1400), Some(GATEWAY)));
    let unset = vec![RouteMetric::Advmss(1360), RouteMetric::Mtu(0)];
    assert_eq!(way(unset, std::net::Ipv4Addr::UNSPECIFIED.into()), (None, None));
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
        let learnt = [Reachable, Stale, Delay].contains(&state);
        let expected =
            Neighbour { ifindex: 7, address: ADDRESS, mac: Some(MAC), stale: state == Stale, learnt };
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
        vlan: Vlan::None,
        xdp: XdpState::None,
    };
    assert_eq!(link(&message), expected);
    message.header.link_layer_type = LinkLayerType::Loopback;
    message.header.flags = LinkFlags::Up;
    assert_eq!(link(&message), Link { mac: None, running: false, ..expected });
}

/// The attributes of a link message from the kernel: each is its length, its type, and a value padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The VLAN of a link with these attributes, from the bytes that the kernel would send.
fn vlan_of(attributes: &[Vec<u8>]) -> Vlan {
    let mut header = LinkMessage::default();
    header.header.index = 8;
    header.header.link_layer_type = LinkLayerType::Ether;
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes);
    bytes.extend(attributes.concat());
    link(&LinkMessage::parse(&bytes).unwrap()).vlan
}

/// IFLA_LINKINFO of a device of this kind; its data as the VLAN driver writes it.
fn link_info(kind: &[u8], id: Option<u16>, protocol: [u8; 2]) -> Vec<u8> {
    let mut data = attribute(5, &protocol);
    data.extend(id.map(|id| attribute(1, &id.to_ne_bytes())).unwrap_or_default());
    data.extend(attribute(2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]));
    attribute(18, &[attribute(1, kind), attribute(2, &data)].concat())
}

const DOT1Q: [u8; 2] = [0x81, 0x00];
const DOT1AD: [u8; 2] = [0x88, 0xa8];

#[test]
fn vlan_device_has_an_id_and_an_interface_beneath() {
    let beneath = attribute(5, &7_u32.to_ne_bytes());
    let tagged = link_info(b"vlan\0", Some(10), DOT1Q);
    let expected = Vlan::Over { lower: 7, id: 10 };
    assert_eq!(vlan_of(&[beneath.clone(), tagged.clone()]), expected);
    assert_eq!(vlan_of(&[tagged.clone(), beneath.clone()]), expected, "in any order");
}

#[test]
fn vlan_devices_whose_tags_are_not_written_are_told_apart() {
    let beneath = attribute(5, &7_u32.to_ne_bytes());
    let tagged = link_info(b"vlan\0", Some(10), DOT1Q);
    let elsewhere = attribute(37, &0_u32.to_ne_bytes());
    for (what, attributes) in [
        ("802.1ad", vec![beneath.clone(), link_info(b"vlan\0", Some(10), DOT1AD)]),
        ("over another namespace's interface", vec![beneath.clone(), tagged.clone(), elsewhere]),
        ("without an id", vec![beneath.clone(), link_info(b"vlan\0", None, DOT1Q)]),
        ("over nothing", vec![tagged]),
    ] {
        assert_eq!(vlan_of(&attributes), Vlan::Other, "{what}");
    }
}

#[test]
fn other_devices_over_an_interface_are_no_vlans() {
    let beneath = attribute(5, &7_u32.to_ne_bytes());
    // One end of a veth pair names the other so.
    assert_eq!(vlan_of(&[beneath.clone(), attribute(18, &attribute(1, b"veth\0"))]), Vlan::None);
    assert_eq!(vlan_of(&[beneath]), Vlan::None);
}
