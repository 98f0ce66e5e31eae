//! A network that changes → next hops that follow within a second: neighbours, gateways, routes, interfaces.

use std::process::Command;
use std::time::Duration;

use lb_userspace::io::neighbours::Reach::{self, OnLink, Routed};
use lb_userspace::io::neighbours::{Changes, HopError, Mac, Resolver};
use tokio::time::timeout;

use super::lab::{
    FOLLOWED, MOVED, Outcome, PATIENCE, PEER, Peer, address, ip, lab, leads_to, second_link, set, settle,
};

/// The peer's MAC address on the second link.
const SECOND: Mac = [2, 0, 0, 0, 1, 2];

/// Backends behind gateways: IPv4, IPv6, and IPv4 behind an IPv6 gateway.
const ROUTED: [(&str, Reach); 3] = [("10.77.0.5", Routed), ("fd77::5", Routed), ("10.78.0.5", Routed)];
/// The same, and two on the link.
const ALL: [(&str, Reach); 5] = [ROUTED[0], ROUTED[1], ROUTED[2], ("10.99.0.2", OnLink), ("fd99::2", OnLink)];

/// How long a kernel may take to notice that a link is lost or back, on top.
const NOTICED: Duration = Duration::from_secs(1);

/// The routes to the backends that are behind gateways: over the first link, or over the second.
fn route(verb: &str, link: u8, metric: u8) {
    let (v4, v6) = (format!("10.{link}.0.2"), format!("fd{link}::2"));
    ip(&format!("route {verb} 10.77.0.0/24 via {v4} metric {metric}"));
    ip(&format!("route {verb} 10.78.0.0/24 via inet6 {v6} metric {metric}"));
    ip(&format!("-6 route {verb} fd77::/64 via {v6} metric {metric}"));
}

/// What looks after some next hops as the agent does: on each hint it resolves them all.
struct Watch {
    resolver: Resolver,
    changes: Changes,
    targets: Vec<(&'static str, Reach)>,
}

impl Watch {
    /// All targets are resolved, and nothing is left to be told.
    async fn new(targets: &[(&'static str, Reach)]) -> Self {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        for (backend, reach) in targets {
            let outcome = resolver.resolve_within(address(backend), *reach, PATIENCE).await;
            assert!(leads_to(&outcome, PEER), "{outcome:?}");
        }
        settle(&mut changes).await;
        Self { resolver, changes, targets: targets.to_vec() }
    }

    /// Waits until each outcome is as `wanted`, which must not take long.
    async fn until(&mut self, wanted: impl Fn(&Outcome) -> bool) {
        self.until_within(FOLLOWED, wanted).await;
    }

    async fn until_within(&mut self, patience: Duration, wanted: impl Fn(&Outcome) -> bool) {
        let mut last = Vec::new();
        let search = async {
            loop {
                self.changes.next().await.expect("the resolver lives");
                last.clear();
                for (backend, reach) in &self.targets {
                    last.push(self.resolver.resolve(address(backend), *reach).await);
                }
                if last.iter().all(&wanted) {
                    return;
                }
            }
        };
        let found = timeout(patience, search).await;
        assert!(found.is_ok(), "no hint led to the outcomes; last: {last:?}");
    }

    async fn until_at(&mut self, mac: Mac) {
        self.until(|outcome| leads_to(outcome, mac)).await;
        settle(&mut self.changes).await;
    }
}

#[test]
fn neighbour_that_announces_another_mac_is_followed() {
    lab(|peer| async move {
        route("add", 99, 10);
        peer.enter(|| {
            set("ipv4", "peer/arp_notify", "1");
            set("ipv6", "peer/ndisc_notify", "1");
        });
        let mut watch = Watch::new(&ALL).await;
        // A gratuitous ARP and an unsolicited neighbour advertisement, as one of a pair of gateways sends that takes over.
        peer.ip("link set peer address 02:00:00:00:00:03");
        watch.until_at(MOVED).await;
        peer.ip("link set peer address 02:00:00:00:00:02");
        watch.until_at(PEER).await;
    });
}

#[test]
fn neighbour_entry_that_is_replaced_is_followed() {
    lab(|_peer| async move {
        route("add", 99, 10);
        let mut watch = Watch::new(&ALL).await;
        for neighbour in ["10.99.0.2", "fd99::2"] {
            ip(&format!("neigh replace {neighbour} lladdr 02:00:00:00:00:03 dev edge nud permanent"));
        }
        watch.until_at(MOVED).await;
    });
}

#[test]
fn route_that_moves_to_another_link_is_followed() {
    lab(|peer| async move {
        second_link(&peer);
        route("add", 99, 10);
        let mut watch = Watch::new(&ROUTED).await;
        // Nobody has asked for the gateways there yet.
        route("replace", 98, 10);
        watch.until_at(SECOND).await;
        // A route that is preferred, beside the one there is, and then gone again.
        route("add", 99, 5);
        watch.until_at(PEER).await;
        route("del", 99, 5);
        watch.until_at(SECOND).await;
    });
}

#[test]
fn nexthop_object_that_is_replaced_is_followed() {
    lab(|peer| async move {
        second_link(&peer);
        ip("nexthop add id 4 via 10.99.0.2 dev edge");
        ip("nexthop add id 6 via fd99::2 dev edge");
        ip("route add 10.77.0.0/24 nhid 4");
        ip("route add 10.78.0.0/24 nhid 6");
        ip("-6 route add fd77::/64 nhid 6");
        let mut watch = Watch::new(&ROUTED).await;
        // As routing daemons do it: no route is announced anew.
        ip("nexthop replace id 4 via 10.98.0.2 dev edge2");
        ip("nexthop replace id 6 via fd98::2 dev edge2");
        watch.until_at(SECOND).await;
    });
}

#[test]
fn interface_that_goes_down_gives_way_to_another_route() {
    lab(|peer| async move {
        second_link(&peer);
        route("add", 99, 10);
        let mut watch = Watch::new(&ROUTED).await;
        // Only now: of two gateways the kernel prefers one that has answered already, whatever the metric.
        route("add", 98, 20);
        settle(&mut watch.changes).await;
        ip("link set edge down");
        watch.until_at(SECOND).await;
        ip("link set edge up");
        route("replace", 99, 10);
        watch.until_within(NOTICED + FOLLOWED, |outcome| leads_to(outcome, PEER)).await;
    });
}

/// Takes the link away at the peer's end and gives it back.
async fn flap(peer: &Peer, watch: &mut Watch) {
    peer.ip("link set peer down");
    let cut = |outcome: &Outcome| matches!(outcome, Err(HopError::LinkDown { .. }));
    watch.until_within(NOTICED + FOLLOWED, cut).await;
    settle(&mut watch.changes).await;
    let neighbours = Command::new("ip").args(["neigh", "show", "10.99.0.2"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&neighbours.stdout), "", "asked for over a link that is not there");
    peer.ip("link set peer up");
    watch.until_within(NOTICED + FOLLOWED, |outcome| leads_to(outcome, PEER)).await;
    settle(&mut watch.changes).await;
}

#[test]
fn link_that_is_cut_and_comes_back_is_followed() {
    lab(|peer| async move {
        route("add", 99, 10);
        let mut watch = Watch::new(&ALL).await;
        flap(&peer, &mut watch).await;
        flap(&peer, &mut watch).await;
    });
}

#[test]
fn mtu_of_interface_and_route_is_followed() {
    lab(|_peer| async move {
        route("add", 99, 10);
        let mut watch = Watch::new(&ROUTED).await;
        let is = |mtu| move |outcome: &Outcome| outcome.as_ref().is_ok_and(|hop| hop.mtu == mtu);
        ip("link set edge mtu 1400");
        watch.until(is(1400)).await;
        for route in ["10.77.0.0/24 via 10.99.0.2", "10.78.0.0/24 via inet6 fd99::2", "fd77::/64 via fd99::2"]
        {
            ip(&format!("route replace {route} metric 10 mtu 1300"));
        }
        watch.until(is(1300)).await;
    });
}
