//! Anonymous network namespaces joined by veth pairs → a kernel whose routes and neighbours a test may turn about.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lb_userspace::io::neighbours::{Changed, Changes, HopError, Mac, NextHop, Reach, Resolver};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::time::{sleep, timeout};

pub type Outcome = Result<NextHop, HopError>;

pub const PATIENCE: Duration = Duration::from_secs(10);
/// How soon a change is to be followed.
pub const FOLLOWED: Duration = Duration::from_secs(1);
/// Longer than the spacing of hints and than the kernel takes to give up on a neighbour here.
pub const QUIET: Duration = Duration::from_secs(1);
pub const EDGE: Mac = [2, 0, 0, 0, 0, 1];
pub const PEER: Mac = [2, 0, 0, 0, 0, 2];
pub const MOVED: Mac = [2, 0, 0, 0, 0, 3];

/// The other host's namespace: it lives as long as this descriptor.
pub struct Peer(File);

impl Peer {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::spawn(make).join().unwrap()
    }

    /// Runs `work` in the peer's namespace. A namespace belongs to a thread, so that is a thread of its own.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join().unwrap())
    }

    /// Where others find the namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn ip(&self, arguments: &str) {
        self.enter(|| ip(arguments));
    }
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is there");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn ip_batch(commands: impl Iterator<Item = String>) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let text = commands.collect::<Vec<_>>().join("\n");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Notifications that the netlink sockets of this namespace had no room for.
pub fn lost_notifications() -> u64 {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    sockets.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap().parse::<u64>().unwrap()).sum()
}

/// A packet to `address`, such as makes the kernel look for its neighbour.
pub fn send_to(address: &str) {
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", (address, 9)).unwrap();
}

/// A setting of an interface in this thread's network namespace.
pub fn set(family: &str, name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{family}/conf/{name}"), value).unwrap();
}

/// Lets IPv6 addresses of new interfaces outlive the link, and be of use as soon as it is there. By default the kernel
/// makes sure for a second or two that nobody else has them, and asks for no neighbour until then.
fn hurry_ipv6() {
    set("ipv6", "default/accept_dad", "0");
    set("ipv6", "default/keep_addr_on_down", "1");
}

/// Joins this namespace and the peer by a second link, `edge2` to `peer2`.
pub fn second_link(peer: &Peer) {
    ip(&format!(
        "link add edge2 address 02:00:00:00:01:01 type veth \
         peer name peer2 address 02:00:00:00:01:02 netns {}",
        peer.path()
    ));
    ip("link set edge2 up");
    ip("address add 10.98.0.1/24 dev edge2");
    ip("address add fd98::1/64 dev edge2 nodad");
    peer.ip("link set peer2 up");
    peer.ip("address add 10.98.0.2/24 dev peer2");
    peer.ip("address add fd98::2/64 dev peer2 nodad");
}

/// Runs `test` on a thread and in a namespace of its own, where `edge` is joined to the peer's `peer`. All of
/// it vanishes with the thread and the descriptor, however the test ends.
pub fn lab<F: Future<Output = ()>>(test: impl FnOnce(Arc<Peer>) -> F + Send + 'static) {
    let run = move || {
        let peer = Arc::new(Peer::new());
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
        hurry_ipv6();
        peer.enter(hurry_ipv6);
        let namespace = peer.path();
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
        // The first IPv6 question after the link has come up may be lost, as its addresses come up beside it.
        std::fs::write("/proc/sys/net/ipv6/neigh/edge/retrans_time_ms", "250").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(peer.clone()));
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn leads_to(outcome: &Outcome, mac: Mac) -> bool {
    outcome.as_ref().is_ok_and(|hop| hop.destination_mac == mac)
}

/// Waits for hints until none has come for a while, and says how many came.
pub async fn settle(changes: &mut Changes) -> usize {
    let mut count = 0;
    while let Ok(change) = timeout(QUIET, changes.next()).await {
        assert_eq!(change, Some(Changed));
        count += 1;
        assert!(count < 50, "hints without end");
    }
    count
}

/// Resolves on each hint, as the agent does, until the outcome is as `wanted`; which must not take long.
pub async fn await_outcome(
    resolver: &Resolver,
    changes: &mut Changes,
    (backend, reach): (IpAddr, Reach),
    wanted: impl Fn(&Outcome) -> bool,
) {
    let mut last = None;
    let search = async {
        loop {
            changes.next().await.expect("the resolver lives");
            let outcome = resolver.resolve(backend, reach).await;
            if wanted(&outcome) {
                return;
            }
            last = Some(outcome);
        }
    };
    let found = timeout(FOLLOWED, search).await;
    assert!(found.is_ok(), "no hint led to the outcome to {backend}; last: {last:?}");
}

/// Waits until the kernel has verified its neighbour.
pub async fn await_verified(neighbour: &str) {
    let verified = async {
        loop {
            let table = Command::new("ip").args(["neigh", "show", neighbour]).output().unwrap();
            if String::from_utf8_lossy(&table.stdout).contains("REACHABLE") {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, verified).await.expect("the kernel was made to verify it");
}
