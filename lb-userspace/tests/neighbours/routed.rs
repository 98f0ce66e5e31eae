//! What a route says of the way to a backend → the next hop: gateways of either family, MTU and source address.

use lb_userspace::io::neighbours::Reach::{OnLink, Routed};
use lb_userspace::io::neighbours::{HopError, NextHop, Resolver};

use super::lab::{
    EDGE, PATIENCE, PEER, QUIET, address, await_verified, ip, lab, leads_to, second_link, settle,
};

#[test]
fn gateways_of_both_families_are_resolved() {
    lab(|peer| async move {
        peer.ip("address add fe80::2/64 dev peer nodad");
        ip("route add 10.77.0.0/24 via 10.99.0.2");
        ip("route add 10.78.0.0/24 via inet6 fd99::2");
        ip("-6 route add fd77::/64 via fd99::2");
        ip("-6 route add fd78::/64 via fe80::2 dev edge");
        let resolver = Resolver::new().await.unwrap();
        let ifindex = resolver.interface("edge").await.unwrap().ifindex;
        for (backend, gateway, source) in [
            ("10.77.0.5", "10.99.0.2", "10.99.0.1"),
            ("10.78.0.5", "fd99::2", "10.99.0.1"),
            ("fd77::5", "fd99::2", "fd99::1"),
            ("fd78::5", "fe80::2", "fd99::1"),
        ] {
            let (address, gateway, source) = (address(backend), address(gateway), Some(address(source)));
            let (destination_mac, source_mac) = (PEER, EDGE);
            let hop = NextHop { ifindex, destination_mac, source_mac, vlan: None, mtu: 1500, source };
            assert_eq!(resolver.resolve_within(address, Routed, PATIENCE).await, Ok(hop));
            let behind = HopError::NotOnLink { address, gateway };
            assert_eq!(resolver.resolve_within(address, OnLink, PATIENCE).await, Err(behind));
        }
    });
}

#[test]
fn backend_on_the_link_is_in_reach_of_every_forwarding_mode() {
    lab(|_peer| async {
        // The same said the long way: a host that is its own gateway.
        ip("route add 10.77.0.5/32 via 10.77.0.5 dev edge onlink");
        ip("neigh replace 10.77.0.5 lladdr 02:00:00:00:00:02 dev edge nud permanent");
        let resolver = Resolver::new().await.unwrap();
        for backend in ["10.99.0.2", "fd99::2", "10.77.0.5"].map(address) {
            let on_link = resolver.resolve_within(backend, OnLink, PATIENCE).await;
            assert!(leads_to(&on_link, PEER), "{on_link:?}");
            assert_eq!(resolver.resolve(backend, Routed).await, on_link);
        }
    });
}

#[test]
fn route_decides_on_mtu_and_source() {
    lab(|_peer| async {
        ip("address add 10.99.0.8/24 dev edge");
        ip("address add fd99::8/64 dev edge nodad");
        ip("route add 10.77.0.0/24 via 10.99.0.2 mtu 1400 src 10.99.0.8");
        ip("route add 10.78.0.0/24 via 10.99.0.2 mtu 9000");
        ip("-6 route add fd77::/64 via fd99::2 mtu 1400 src fd99::8");
        ip("-6 route add fd78::/64 via fd99::2 mtu 9000 src fd99::1");
        let resolver = Resolver::new().await.unwrap();
        for (backend, mtu, source) in [
            ("10.77.0.5", 1400, "10.99.0.8"),
            ("10.78.0.5", 1500, "10.99.0.1"),
            ("fd77::5", 1400, "fd99::8"),
            ("fd78::5", 1500, "fd99::1"),
        ] {
            let hop = resolver.resolve_within(address(backend), Routed, PATIENCE).await.unwrap();
            assert_eq!((hop.mtu, hop.source), (mtu, Some(address(source))), "{backend}");
        }
    });
}

#[test]
fn one_of_several_gateways_is_chosen_whole() {
    lab(|peer| async move {
        second_link(&peer);
        ip("route add 10.77.0.0/24 nexthop via 10.99.0.2 nexthop via 10.98.0.2");
        ip("-6 route add fd77::/64 nexthop via fd99::2 nexthop via fd98::2");
        let resolver = Resolver::new().await.unwrap();
        let first = resolver.interface("edge").await.unwrap().ifindex;
        let mut over_first = Vec::new();
        for n in 1..=32 {
            for backend in [format!("10.77.0.{n}"), format!("fd77::{n}")] {
                let hop = resolver.resolve_within(address(&backend), Routed, PATIENCE).await.unwrap();
                let expected = if hop.ifindex == first { PEER } else { [2, 0, 0, 0, 1, 2] };
                assert_eq!(hop.destination_mac, expected, "{backend}");
                assert_eq!(resolver.resolve(address(&backend), Routed).await, Ok(hop), "and stays");
                over_first.push((hop.ifindex == first, hop.source.unwrap().is_ipv4()));
            }
        }
        for expected in [(true, true), (true, false), (false, true), (false, false)] {
            assert!(over_first.contains(&expected), "none of 32 backends takes the way {expected:?}");
        }
    });
}

#[test]
fn gateway_that_does_not_answer_is_named() {
    lab(|_peer| async {
        ip("route add 10.77.0.0/24 via 10.99.0.77");
        ip("-6 route add fd77::/64 via fd99::77");
        let resolver = Resolver::new().await.unwrap();
        let ifindex = resolver.interface("edge").await.unwrap().ifindex;
        let mut changes = resolver.changes();
        for (backend, gateway) in [("10.77.0.5", "10.99.0.77"), ("fd77::5", "fd99::77")] {
            let (address, gateway, interface) = (address(backend), address(gateway), "edge".to_owned());
            let error = HopError::GatewayUnresolved { address, gateway, ifindex, interface };
            assert_eq!(resolver.resolve_within(address, Routed, QUIET).await, Err(error.clone()));
            settle(&mut changes).await;
            assert_eq!(resolver.resolve(address, Routed).await, Err(error));
        }
    });
}

#[test]
fn stale_gateways_are_used_and_verified() {
    lab(|_peer| async {
        for family in ["ipv4", "ipv6"] {
            let setting = format!("/proc/sys/net/{family}/neigh/edge/delay_first_probe_time");
            std::fs::write(setting, "0").unwrap();
        }
        ip("route add 10.77.0.0/24 via 10.99.0.2");
        ip("-6 route add fd77::/64 via fd99::2");
        let resolver = Resolver::new().await.unwrap();
        for (backend, gateway) in [("10.77.0.5", "10.99.0.2"), ("fd77::5", "fd99::2")] {
            ip(&format!("neigh replace {gateway} lladdr 02:00:00:00:00:02 dev edge nud stale"));
            let outcome = resolver.resolve(address(backend), Routed).await;
            assert!(leads_to(&outcome, PEER), "{outcome:?}");
            await_verified(gateway).await;
        }
    });
}
