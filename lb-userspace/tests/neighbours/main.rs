//! The resolver against a real kernel: two anonymous network namespaces joined by a veth pair. Needs root.

mod fresh;
mod lab;
mod routed;

use std::net::IpAddr;
use std::sync::Arc;

use lb_userspace::io::neighbours::Reach::OnLink;
use lb_userspace::io::neighbours::{Changed, Changes, HopError, InterfaceError, NextHop, Resolver};
use tokio::time::timeout;

use lab::{
    EDGE, MOVED, Outcome, PATIENCE, PEER, QUIET, address, await_outcome, await_verified, ip, ip_batch, lab,
    leads_to, lost_notifications, send_to, settle,
};

#[test]
fn resolves_a_peer_over_ipv4_and_ipv6() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let edge = resolver.interface("edge").await.unwrap();
        assert_eq!((edge.name.as_str(), edge.mac, edge.mtu), ("edge", EDGE, 1500));
        let ifindex = edge.ifindex;
        for (backend, source) in [("10.99.0.2", "10.99.0.1"), ("fd99::2", "fd99::1")] {
            let (backend, source) = (address(backend), Some(address(source)));
            let (destination_mac, source_mac) = (PEER, EDGE);
            let hop = NextHop { ifindex, destination_mac, source_mac, vlan: None, mtu: 1500, source };
            let unresolved = HopError::Unresolved { address: backend, ifindex, interface: "edge".into() };
            assert_eq!(
                resolver.resolve(backend, OnLink).await,
                Err(unresolved),
                "nobody has asked for it yet"
            );
            assert_eq!(resolver.resolve_within(backend, OnLink, PATIENCE).await, Ok(hop));
            assert_eq!(resolver.resolve(backend, OnLink).await, Ok(hop));
        }
    });
}

/// A resolver that knows the peer, after everything that this made it hint at.
async fn resolved(backend: IpAddr) -> (Resolver, Changes) {
    let resolver = Resolver::new().await.unwrap();
    let mut changes = resolver.changes();
    let outcome = resolver.resolve_within(backend, OnLink, PATIENCE).await;
    assert!(leads_to(&outcome, PEER), "{outcome:?}");
    settle(&mut changes).await;
    (resolver, changes)
}

#[test]
fn peer_that_changes_its_mac_is_noticed() {
    lab(|peer| async move {
        let backend = address("10.99.0.2");
        let (resolver, mut changes) = resolved(backend).await;
        peer.ip("link set peer address 02:00:00:00:00:03");
        // With its address the peer has forgotten its neighbours, so it asks, and so tells the new one.
        peer.enter(|| send_to("10.99.0.1"));
        await_outcome(&resolver, &mut changes, (backend, OnLink), |outcome| leads_to(outcome, MOVED)).await;
        settle(&mut changes).await;
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev edge nud permanent");
        await_outcome(&resolver, &mut changes, (backend, OnLink), |outcome| leads_to(outcome, PEER)).await;
    });
}

#[test]
fn peer_that_changes_its_mac_in_silence_is_found_again_once_it_is_doubted() {
    lab(|peer| async move {
        let backend = address("10.99.0.2");
        let (resolver, mut changes) = resolved(backend).await;
        resolver.doubt(backend).await.unwrap();
        await_verified("10.99.0.2").await;
        settle(&mut changes).await;
        assert!(leads_to(&resolver.resolve(backend, OnLink).await, PEER), "who is there stays");
        peer.ip("link set peer address 02:00:00:00:00:03");
        assert_eq!(settle(&mut changes).await, 0, "it tells nobody");
        resolver.doubt(backend).await.unwrap();
        await_outcome(&resolver, &mut changes, (backend, OnLink), |outcome| leads_to(outcome, MOVED)).await;
        settle(&mut changes).await;
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev edge nud permanent");
        resolver.doubt(backend).await.unwrap();
        let table = std::process::Command::new("ip").args(["neigh", "show", "10.99.0.2"]).output().unwrap();
        assert!(String::from_utf8_lossy(&table.stdout).contains("PERMANENT"), "{table:?}");
    });
}

#[test]
fn stale_neighbour_is_used_and_verified() {
    lab(|_peer| async {
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev edge nud stale");
        std::fs::write("/proc/sys/net/ipv4/neigh/edge/delay_first_probe_time", "0").unwrap();
        let resolver = Resolver::new().await.unwrap();
        let outcome = resolver.resolve(address("10.99.0.2"), OnLink).await;
        assert!(leads_to(&outcome, PEER), "{outcome:?}");
        await_verified("10.99.0.2").await;
    });
}

#[test]
fn peer_that_is_not_there_causes_no_endless_hints() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.77");
        let outcome = resolver.resolve_within(backend, OnLink, QUIET).await;
        assert!(matches!(outcome, Err(HopError::Unresolved { .. })), "{outcome:?}");
        let mut rounds = 0;
        while let Ok(Some(Changed)) = timeout(QUIET, changes.next()).await {
            rounds += 1;
            assert!(rounds < 10, "resolving causes hints that cause resolving");
            let outcome = resolver.resolve(backend, OnLink).await;
            assert!(matches!(outcome, Err(HopError::Unresolved { .. })), "{outcome:?}");
        }
    });
}

#[test]
fn peer_that_comes_up_later_is_noticed() {
    lab(|peer| async move {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.3");
        resolver.resolve(backend, OnLink).await.unwrap_err();
        settle(&mut changes).await;
        peer.ip("address add 10.99.0.3/24 dev peer");
        // As the next health probe does: the kernel resolves on its own account.
        send_to("10.99.0.3");
        await_outcome(&resolver, &mut changes, (backend, OnLink), Result::is_ok).await;
    });
}

#[test]
fn addresses_that_cannot_be_backends_are_told_apart() {
    lab(|_peer| async {
        ip("route add 10.77.0.0/24 via 10.99.0.2");
        ip("-6 route add fd77::/64 via fd99::2");
        ip("route add blackhole 10.66.0.1");
        ip("route add unreachable 10.66.0.2");
        ip("route add prohibit 10.66.0.3");
        ip("route add 10.55.0.0/24 dev lo");
        let resolver = Resolver::new().await.unwrap();
        let error = async |backend: IpAddr| resolver.resolve(backend, OnLink).await.unwrap_err();
        for address in ["192.0.2.1", "2001:db8::1", "10.66.0.1", "10.66.0.2", "10.66.0.3"].map(address) {
            assert_eq!(error(address).await, HopError::NoRoute { address });
        }
        for (text, gateway) in [("10.77.0.5", "10.99.0.2"), ("fd77::5", "fd99::2")] {
            let (address, gateway) = (address(text), self::address(gateway));
            assert_eq!(error(address).await, HopError::NotOnLink { address, gateway });
        }
        for address in ["10.99.0.1", "127.0.0.1", "fd99::1", "::1"].map(address) {
            assert_eq!(error(address).await, HopError::LocalAddress { address });
        }
        for address in
            ["10.99.0.255", "255.255.255.255", "224.0.0.1", "ff02::1", "0.0.0.0", "::"].map(address)
        {
            assert_eq!(error(address).await, HopError::NotUnicast { address });
        }
        let (address, interface) = (address("10.55.0.1"), "lo".to_owned());
        assert_eq!(error(address).await, HopError::NotEthernet { address, ifindex: 1, interface });
    });
}

#[test]
fn interfaces_that_cannot_be_used_are_told_apart() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let lo = resolver.interface("lo").await;
        assert_eq!(lo, Err(InterfaceError::NotEthernet { name: "lo".into() }));
        for name in ["nowhere", "a-name-longer-than-any-interface-has", ""] {
            let found = resolver.interface(name).await;
            assert_eq!(found, Err(InterfaceError::NotFound { name: name.into() }), "{name:?}");
        }
    });
}

#[test]
fn routes_and_links_that_change_are_noticed() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.2");
        resolver.resolve_within(backend, OnLink, PATIENCE).await.unwrap();
        settle(&mut changes).await;

        let routed = |outcome: &Outcome| matches!(outcome, Err(HopError::NotOnLink { .. }));
        ip("route add 10.99.0.2/32 via 10.99.0.9");
        await_outcome(&resolver, &mut changes, (backend, OnLink), routed).await;
        ip("route delete 10.99.0.2/32");
        await_outcome(&resolver, &mut changes, (backend, OnLink), Result::is_ok).await;
        settle(&mut changes).await;

        let moved = |outcome: &Outcome| outcome.as_ref().is_ok_and(|hop| hop.source_mac == MOVED);
        ip("link set edge address 02:00:00:00:00:03");
        await_outcome(&resolver, &mut changes, (backend, OnLink), moved).await;
        settle(&mut changes).await;

        let cut = |outcome: &Outcome| matches!(outcome, Err(HopError::NoRoute { .. }));
        ip("link set edge down");
        await_outcome(&resolver, &mut changes, (backend, OnLink), cut).await;
        ip("link set edge up");
        await_outcome(&resolver, &mut changes, (backend, OnLink), Result::is_ok).await;
    });
}

#[test]
fn flood_of_notifications_is_no_flood_of_hints() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        settle(&mut changes).await;
        for verb in ["add", "del"] {
            ip_batch(
                (0..8000).map(|n| format!("route {verb} 10.{}.{}.0/24 dev edge", 100 + n / 250, n % 250)),
            );
        }
        let hints = settle(&mut changes).await;
        assert!((1..=5).contains(&hints), "{hints} hints for 16,000 changes");
    });
}

#[test]
fn change_that_an_overrun_hides_is_noticed() {
    lab(|_peer| async {
        // That a link-local address has turned out to be unique would be news in the middle of the test.
        ip("-6 address flush dev edge");
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.2");
        resolver.resolve_within(backend, OnLink, PATIENCE).await.unwrap();
        let neighbour = "neigh replace 10.99.0.50 lladdr 02:00:00:00:00:50 dev edge nud";
        ip(&format!("{neighbour} stale"));
        settle(&mut changes).await;
        // The only thread is busy meanwhile, so the socket's buffer fills up, and with nothing that is news.
        ip_batch((0..4000).map(|n| format!("{neighbour} {}", ["reachable", "stale"][n % 2])));
        let lost = lost_notifications();
        ip("route add 10.99.0.2/32 via 10.99.0.9");
        assert!(
            lost > 0 && lost_notifications() > lost,
            "the notification got through: no test of an overrun"
        );
        let routed = |outcome: &Outcome| matches!(outcome, Err(HopError::NotOnLink { .. }));
        await_outcome(&resolver, &mut changes, (backend, OnLink), routed).await;
    });
}

#[test]
fn works_from_any_task_and_ends_with_the_resolver() {
    lab(|_peer| async {
        let resolver = Arc::new(Resolver::new().await.unwrap());
        let mut changes = resolver.changes();
        let resolve = |_| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.resolve_within(address("10.99.0.2"), OnLink, PATIENCE).await })
        };
        let tasks: Vec<_> = (0..32).map(resolve).collect();
        for task in tasks {
            let outcome = task.await.unwrap();
            assert!(leads_to(&outcome, PEER), "{outcome:?}");
        }
        settle(&mut changes).await;
        drop(resolver);
        assert_eq!(timeout(PATIENCE, changes.next()).await, Ok(None));
    });
}
