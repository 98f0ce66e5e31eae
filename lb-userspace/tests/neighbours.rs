//! The resolver against a real kernel: two anonymous network namespaces joined by a veth pair. Needs root.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lb_userspace::io::neighbours::{Changed, Changes, HopError, InterfaceError, Mac, NextHop, Resolver};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::time::{sleep, timeout};

type Outcome = Result<NextHop, HopError>;

const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than the spacing of hints and than the kernel takes to give up on a neighbour here.
const QUIET: Duration = Duration::from_secs(1);
const EDGE: Mac = [2, 0, 0, 0, 0, 1];
const PEER: Mac = [2, 0, 0, 0, 0, 2];
const MOVED: Mac = [2, 0, 0, 0, 0, 3];

/// The other host's namespace: it lives as long as this descriptor.
struct Peer(File);

impl Peer {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::spawn(make).join().unwrap()
    }

    /// Runs `work` in the peer's namespace. A namespace belongs to a thread, so that is a thread of its own.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join().unwrap())
    }

    fn ip(&self, arguments: &str) {
        self.enter(|| ip(arguments));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is there");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip_batch(commands: impl Iterator<Item = String>) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let text = commands.collect::<Vec<_>>().join("\n");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Notifications that the netlink sockets of this namespace had no room for.
fn lost_notifications() -> u64 {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    sockets.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap().parse::<u64>().unwrap()).sum()
}

/// A packet to `address`, such as makes the kernel look for its neighbour.
fn send_to(address: &str) {
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", (address, 9)).unwrap();
}

/// Runs `test` on a thread and in a namespace of its own, where `edge` is joined to the peer's `peer`. All of
/// it vanishes with the thread and the descriptor, however the test ends.
fn lab<F: Future<Output = ()>>(test: impl FnOnce(Arc<Peer>) -> F + Send + 'static) {
    let run = move || {
        let peer = Arc::new(Peer::new());
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), peer.0.as_raw_fd());
        ip(&format!(
            "link add edge address 02:00:00:00:00:01 type veth \
             peer name peer address 02:00:00:00:00:02 netns {namespace}"
        ));
        ip("link set lo up");
        ip("link set edge up");
        ip("address add 10.99.0.1/24 dev edge");
        ip("address add fd99::1/64 dev edge nodad");
        peer.ip("link set peer up");
        peer.ip("address add 10.99.0.2/24 dev peer");
        peer.ip("address add fd99::2/64 dev peer nodad");
        // How long the kernel waits for each of three attempts; otherwise a second.
        std::fs::write("/proc/sys/net/ipv4/neigh/edge/retrans_time_ms", "50").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(peer.clone()));
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn leads_to(outcome: &Outcome, mac: Mac) -> bool {
    outcome.as_ref().is_ok_and(|hop| hop.destination_mac == mac)
}

/// Waits for hints until none has come for a while, and says how many came.
async fn settle(changes: &mut Changes) -> usize {
    let mut count = 0;
    while let Ok(change) = timeout(QUIET, changes.next()).await {
        assert_eq!(change, Some(Changed));
        count += 1;
        assert!(count < 50, "hints without end");
    }
    count
}

/// Resolves on each hint, as the agent does, until the outcome is as `wanted`.
async fn await_outcome(
    resolver: &Resolver,
    changes: &mut Changes,
    backend: IpAddr,
    wanted: impl Fn(&Outcome) -> bool,
) {
    let mut last = None;
    let search = async {
        loop {
            changes.next().await.expect("the resolver lives");
            let outcome = resolver.resolve(backend).await;
            if wanted(&outcome) {
                return;
            }
            last = Some(outcome);
        }
    };
    let found = timeout(PATIENCE, search).await;
    assert!(found.is_ok(), "no hint led to the outcome; last: {last:?}");
}

#[test]
fn resolves_a_peer_over_ipv4_and_ipv6() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let edge = resolver.interface("edge").await.unwrap();
        assert_eq!((edge.name.as_str(), edge.mac, edge.mtu), ("edge", EDGE, 1500));
        let ifindex = edge.ifindex;
        let hop = NextHop { ifindex, destination_mac: PEER, source_mac: EDGE };
        for backend in ["10.99.0.2", "fd99::2"].map(address) {
            let unresolved = HopError::Unresolved { address: backend, ifindex, interface: "edge".into() };
            assert_eq!(resolver.resolve(backend).await, Err(unresolved), "nobody has asked for it yet");
            assert_eq!(resolver.resolve_within(backend, PATIENCE).await, Ok(hop));
            assert_eq!(resolver.resolve(backend).await, Ok(hop));
        }
    });
}

#[test]
fn peer_that_changes_its_mac_is_noticed() {
    lab(|peer| async move {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.2");
        let outcome = resolver.resolve_within(backend, PATIENCE).await;
        assert!(leads_to(&outcome, PEER), "{outcome:?}");
        settle(&mut changes).await;
        peer.ip("link set peer address 02:00:00:00:00:03");
        // With its address the peer has forgotten its neighbours, so it asks, and so tells the new one.
        peer.enter(|| send_to("10.99.0.1"));
        await_outcome(&resolver, &mut changes, backend, |outcome| leads_to(outcome, MOVED)).await;
        settle(&mut changes).await;
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev edge nud permanent");
        await_outcome(&resolver, &mut changes, backend, |outcome| leads_to(outcome, PEER)).await;
    });
}

#[test]
fn stale_neighbour_is_used_and_verified() {
    lab(|_peer| async {
        ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev edge nud stale");
        std::fs::write("/proc/sys/net/ipv4/neigh/edge/delay_first_probe_time", "0").unwrap();
        let resolver = Resolver::new().await.unwrap();
        let outcome = resolver.resolve(address("10.99.0.2")).await;
        assert!(leads_to(&outcome, PEER), "{outcome:?}");
        let verified = async {
            loop {
                let table = Command::new("ip").args(["neigh", "show", "10.99.0.2"]).output().unwrap();
                if String::from_utf8_lossy(&table.stdout).contains("REACHABLE") {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, verified).await.expect("the kernel was made to verify it");
    });
}

#[test]
fn peer_that_is_not_there_causes_no_endless_hints() {
    lab(|_peer| async {
        let resolver = Resolver::new().await.unwrap();
        let mut changes = resolver.changes();
        let backend = address("10.99.0.77");
        let outcome = resolver.resolve_within(backend, QUIET).await;
        assert!(matches!(outcome, Err(HopError::Unresolved { .. })), "{outcome:?}");
        let mut rounds = 0;
        while let Ok(Some(Changed)) = timeout(QUIET, changes.next()).await {
            rounds += 1;
            assert!(rounds < 10, "resolving causes hints that cause resolving");
            let outcome = resolver.resolve(backend).await;
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
        resolver.resolve(backend).await.unwrap_err();
        settle(&mut changes).await;
        peer.ip("address add 10.99.0.3/24 dev peer");
        // As the next health probe does: the kernel resolves on its own account.
        send_to("10.99.0.3");
        await_outcome(&resolver, &mut changes, backend, Result::is_ok).await;
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
        let error = async |backend: IpAddr| resolver.resolve(backend).await.unwrap_err();
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
        resolver.resolve_within(backend, PATIENCE).await.unwrap();
        settle(&mut changes).await;

        let routed = |outcome: &Outcome| matches!(outcome, Err(HopError::NotOnLink { .. }));
        ip("route add 10.99.0.2/32 via 10.99.0.9");
        await_outcome(&resolver, &mut changes, backend, routed).await;
        ip("route delete 10.99.0.2/32");
        await_outcome(&resolver, &mut changes, backend, Result::is_ok).await;
        settle(&mut changes).await;

        let moved = |outcome: &Outcome| outcome.as_ref().is_ok_and(|hop| hop.source_mac == MOVED);
        ip("link set edge address 02:00:00:00:00:03");
        await_outcome(&resolver, &mut changes, backend, moved).await;
        settle(&mut changes).await;

        let cut = |outcome: &Outcome| matches!(outcome, Err(HopError::NoRoute { .. }));
        ip("link set edge down");
        await_outcome(&resolver, &mut changes, backend, cut).await;
        ip("link set edge up");
        await_outcome(&resolver, &mut changes, backend, Result::is_ok).await;
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
        resolver.resolve_within(backend, PATIENCE).await.unwrap();
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
        await_outcome(&resolver, &mut changes, backend, routed).await;
    });
}

#[test]
fn works_from_any_task_and_ends_with_the_resolver() {
    lab(|_peer| async {
        let resolver = Arc::new(Resolver::new().await.unwrap());
        let mut changes = resolver.changes();
        let resolve = |_| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.resolve_within(address("10.99.0.2"), PATIENCE).await })
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
