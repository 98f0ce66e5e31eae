//! The ways packets take: two interfaces, routers, links narrower than the rest, and all that changes while customers are
//! served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_tests::{Agent, Host, Lab, Load, SOURCES, SOURCES6, Topology, echo_datagram, wait_until};

use crate::ways::{self, WAYS, Way, path_mtu};

/// How soon traffic follows a change of the network.
const FOLLOWS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// A megabyte each way, connections shared by both web servers, and big datagrams.
fn customers_are_served(lab: &Lab, way: Way) {
    let tell = |error: anyhow::Error| -> () { panic!("{way:?}: {error:#}") };
    lab.transfer(way.tcp()).unwrap_or_else(tell);
    let by_server = lab.short_connections(way.tcp(), 60).map_err(tell).expect("connections");
    assert_eq!(by_server.len(), 2, "{way:?}: {by_server:?}");
    for size in [8_000, 30_000] {
        echoed(lab, way, size).unwrap_or_else(tell);
    }
}

/// Has a datagram echoed. A customer who is told that it was too big sends it again, in smaller fragments.
fn echoed(lab: &Lab, way: Way, size: usize) -> anyhow::Result<()> {
    let told = |error: &anyhow::Error| {
        let cause = error.root_cause().downcast_ref::<std::io::Error>();
        cause.and_then(std::io::Error::raw_os_error) == Some(libc::EMSGSIZE)
    };
    match echo_datagram(lab.customer(), way.udp(), size) {
        Err(error) if told(&error) => echo_datagram(lab.customer(), way.udp(), size).map(drop),
        answer => answer.map(drop),
    }
}

/// Where a web server's answers to a customer go: to Sluice, if it translates.
fn answered(lab: &Lab, way: Way) -> IpAddr {
    match (way.is_nat(), way.vip6) {
        (true, false) => Ipv4Addr::new(192, 0, 2, 1).into(),
        (true, true) => Ipv6Addr::new(0x2001, 0xdb8, 0x192, 0, 0, 0, 0, 1).into(),
        (false, _) => way.customer(lab),
    }
}

/// Downloads a megabyte; the one web server that sends it must find out how narrow the path is. Then more of them, until the
/// other one has.
fn senders_are_told(lab: &Lab, way: Way, mtu: u32) {
    // A customer who has found out would ask for less.
    let hosts = lab.webs().iter().chain([lab.customer()]);
    hosts.for_each(|host| host.forget_path_mtu().expect("forget"));
    let told = || -> Vec<u32> {
        lab.download(way.tcp()).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        lab.webs().iter().filter_map(|web| path_mtu(web, answered(lab, way))).collect()
    };
    assert_eq!(told(), [mtu], "{way:?}: the one web server that sent it");
    wait_until("the other one is told", PATIENCE, || told() == [mtu; 2]).expect("told");
}

#[test]
fn every_mode_serves_across_two_interfaces_and_through_a_narrow_link_to_customers() {
    let builder = Lab::builder().topology(Topology::TwoInterfaces).backend_mtu(1_600);
    let lab = builder.start().expect("a lab");
    let _servers = ways::serve(&lab, &WAYS);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &WAYS, &ways::own_sources(), ""));
    WAYS.into_iter().for_each(|way| customers_are_served(&lab, way));
    // Only what web servers answer passes here, on its way to the customers.
    lab.routers()[0].ip("link set eth0 mtu 1400").expect("a narrow link");
    for way in WAYS.into_iter().filter(|way| !way.is_nat()) {
        senders_are_told(&lab, way, 1_400);
        echo_datagram(lab.customer(), way.udp(), 8_000).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    }
    // Datagrams alone tell it too, each web server at the price of one.
    lab.webs().iter().for_each(|web| web.forget_path_mtu().expect("forget"));
    let way = WAYS[7];
    assert!(way.is_tunnel() && way.vip6);
    let echoed = (0..3).any(|_| echo_datagram(lab.customer(), way.udp(), 8_000).is_ok());
    assert!(echoed, "{way:?}: lost, and lost again");
    assert!(lab.webs().iter().any(|web| path_mtu(web, way.customer(&lab)) == Some(1_400)), "{way:?}");
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
}

/// What does not fit into the interface towards the customers would be dropped there without a word.
#[test]
fn web_servers_are_told_which_answers_fit_on_the_interface_that_they_leave_on() {
    let lab = Lab::builder().topology(Topology::TwoInterfaces).start().expect("a lab");
    let nat: Vec<_> = WAYS.into_iter().filter(|way| way.is_nat()).collect();
    let _servers = ways::serve(&lab, &nat);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &nat, &ways::own_sources(), ""));
    nat.iter().for_each(|way| customers_are_served(&lab, *way));
    // It takes no larger ones either.
    lab.edge().ip("link set eth0 mtu 1400").expect("a narrow link");
    nat.into_iter().for_each(|way| senders_are_told(&lab, way, 1_400));
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
}

#[test]
fn translated_answers_that_would_not_be_seen_are_told_of() {
    let lab = Lab::builder().topology(Topology::TwoInterfaces).start().expect("a lab");
    let way = WAYS[10];
    assert!(way.is_nat());
    let _servers = ways::serve(&lab, &[way]);
    let both = ways::config(&lab, &[way], &ways::own_sources(), "");
    let one = both.replace("\"eth0\", \"eth1\"", "\"eth0\"");
    assert_ne!(one, both);
    let reason = |agent: &Agent<'_>| agent.backend(&way.name(), "web1").expect("a backend")["reason"].clone();
    let agent = ways::healthy_agent(&lab, &one);
    assert_eq!(
        reason(&agent),
        "its answers come in on eth1, where the program is not, and so never reach a customer: add eth1 to agent.interfaces"
    );
    let edited = agent.sluice(&["backend", "set-weight", &way.name(), "web1", "50"]).expect("an edit");
    assert!(String::from_utf8_lossy(&edited.stderr).contains("add eth1 to agent.interfaces"), "{edited:?}");
    agent.terminate().expect("end");
    let agent = ways::healthy_agent(&lab, &both);
    assert_eq!(reason(&agent), "");
    customers_are_served(&lab, way);
}

#[test]
fn every_mode_serves_through_routers_and_narrow_links() {
    const TO_BACKENDS: u32 = 1_400;
    const TO_CUSTOMERS: u32 = 1_340;
    let builder = Lab::builder().topology(Topology::Routed).backend_mtu(1_600);
    let lab = builder.narrow_to_backends(TO_BACKENDS).start().expect("a lab");
    let routed: Vec<_> = WAYS.into_iter().filter(|way| way.is_routed()).collect();
    let _servers = ways::serve(&lab, &routed);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &routed, &ways::own_sources(), ""));
    for &way in &routed {
        // From the router to Sluice, and from Sluice to the customer; with `nat`, to the customer at once.
        lab.upload(way.tcp()).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        let told = path_mtu(lab.customer(), way.vip());
        assert_eq!(told, Some(TO_BACKENDS - way.overhead()), "{way:?}: the customer");
        // From the router to the VIP, and from Sluice to the web server.
        senders_are_told(&lab, way, TO_BACKENDS);
        customers_are_served(&lab, way);
    }
    assert!(ways::verdict(&agent, "pass.path_mtu") >= 8, "tunnels' routers were heard");
    assert!(ways::verdict(&agent, "reply.too_big") >= 8, "and customers told");
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);

    for router in &lab.routers()[..2] {
        router.ip(&format!("link set eth1 mtu {TO_CUSTOMERS}")).expect("a narrow link");
    }
    for &way in &routed {
        senders_are_told(&lab, way, TO_CUSTOMERS);
        customers_are_served(&lab, way);
    }
    // Of each IPv6 datagram whose sender had to be told, the last fragment was small enough to come as far as this.
    let told = routed.iter().filter(|way| way.vip6).count() as u64;
    assert_eq!(ways::verdict(&agent, "drop.fragment"), told);
    assert_eq!(ways::drops(&agent, &["drop.fragment"]), [""; 0]);
}

#[test]
fn customers_are_told_what_fits_where_tunnels_have_no_room() {
    let lab = Lab::builder().start().expect("a lab");
    let tunnels: Vec<_> = WAYS.into_iter().filter(|way| way.is_tunnel()).collect();
    let _servers = ways::serve(&lab, &tunnels);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &tunnels, "", ""));
    for &way in &tunnels {
        lab.upload(way.tcp()).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        assert_eq!(path_mtu(lab.customer(), way.vip()), Some(1_500 - way.overhead()), "{way:?}");
        customers_are_served(&lab, way);
    }
    let told = ways::verdict(&agent, "reply.too_big");
    assert!(told >= tunnels.len() as u64, "{told}");
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
    // A datagram that may be fragmented is not answered for: its fragments are dropped under their name.
    lab.customer().forget_path_mtu().expect("forget");
    echo_datagram(lab.customer(), tunnels[0].udp(), 8_000).expect_err("too big without a word");
    assert!(ways::verdict(&agent, "drop.too_big") > 0);
    assert_eq!(ways::drops(&agent, &["drop.too_big"]), [""; 0]);
}

/// Datagrams of one flow, one after another, until stopped.
struct Beat {
    way: Way,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Beat {
    /// Starts a flow that this web server answers.
    fn start(lab: &Lab, way: Way, server: &Host) -> Self {
        let socket = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((way.customer(lab), 0))?;
            socket.connect(way.udp())?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(socket)
        };
        let expected = format!("{}:beat", server.name());
        let socket = std::iter::repeat_with(|| lab.customer().run(socket).expect("run").expect("socket"))
            .take(64)
            .find(|socket| beat(socket).unwrap_or_else(|error| panic!("{way:?}: {error}")) == expected)
            .expect("some flow is this server's");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        let stopping = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            let (mut last, mut silence) = (Instant::now(), Duration::ZERO);
            while !end.load(Ordering::Relaxed) {
                let answered = beat(&socket).is_ok_and(|answer| answer == expected);
                silence = silence.max(last.elapsed());
                if answered {
                    last = Instant::now();
                    // A load, not a flood.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            silence
        });
        Self { way, stopping, thread }
    }

    /// The longest time without an answer.
    fn stop(self) -> (Way, Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        (self.way, self.thread.join().expect("a beat"))
    }
}

/// Sends one datagram and receives its echo.
fn beat(socket: &UdpSocket) -> std::io::Result<String> {
    let mut answer = [0; 64];
    socket.send(b"beat")?;
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Fails if a flow had no answer for longer than traffic may take to follow.
fn all_followed(beats: Vec<Beat>, what: &str) {
    let silences: Vec<_> = beats.into_iter().map(Beat::stop).collect();
    eprintln!("{what}: {:?}", silences.iter().map(|(_, silence)| *silence).max());
    for (way, silence) in silences {
        assert!(silence < FOLLOWS, "{what}: {way:?} had no answer for {silence:?}");
    }
}

/// Gives an interface another hardware address, and has the host tell its neighbours, as one does whose card was changed.
fn change_mac(host: &Host, interface: &str, mac: &str) {
    host.sysctl(&format!("net/ipv4/conf/{interface}/arp_notify"), "1").expect("sysctl");
    host.sysctl(&format!("net/ipv6/conf/{interface}/ndisc_notify"), "1").expect("sysctl");
    host.ip(&format!("link set {interface} address {mac}")).expect("another address");
}

#[test]
fn traffic_follows_a_backend_whose_mac_address_changes() {
    let lab = Lab::builder().backend_mtu(1_600).start().expect("a lab");
    let _servers = ways::serve(&lab, &WAYS);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &WAYS, "", ""));
    let beats = WAYS.into_iter().map(|way| Beat::start(&lab, way, lab.web(0))).collect();
    let load = Load::start(lab.customer(), WAYS[0].tcp(), "/", 1);
    let flow_on = |requests| {
        let before = load.done();
        wait_until("requests go on", PATIENCE, || load.done() >= before + requests).expect("load");
    };
    flow_on(50);
    change_mac(lab.web(0), "eth0", "02:00:00:00:99:11");
    // Long enough that whoever has not followed shows.
    std::thread::sleep(FOLLOWS);
    flow_on(50);
    all_followed(beats, "a backend's MAC address");
    let report = load.stop().expect("report");
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(report.by_server.len(), 2, "{report:?}");
    drop(agent);
}

/// The kernel by itself believes in an old address for some forty seconds.
#[test]
fn a_backend_whose_mac_address_changes_in_silence_is_found_again_by_its_checks() {
    let lab = Lab::builder().start().expect("a lab");
    let way = WAYS[0];
    let _servers = ways::serve(&lab, &[way]);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &[way], "", ""));
    let is =
        |health: &str| agent.backend(&way.name(), "web1").is_ok_and(|backend| backend["health"] == health);
    lab.web(0).ip("link set eth0 address 02:00:00:00:99:12").expect("another address");
    wait_until("it is missed", PATIENCE, || is("unhealthy")).expect("a failed check");
    wait_until("it is found", PATIENCE, || is("healthy")).unwrap_or_else(|_| panic!("{}", agent.log()));
    customers_are_served(&lab, way);
}

/// Whether packets of this way leave by the interface they came in on.
fn leaves_where_it_came_in(lab: &Lab, agent: &Agent<'_>, way: Way) -> bool {
    let (source, vip) =
        (format!("{}", std::net::SocketAddr::new(way.customer(lab), 1)), way.tcp().to_string());
    let output = agent.sluice(&["explain", "--src", &source, "--dst", &vip, "--syn", "-o", "json"]);
    let explained: serde_json::Value = serde_json::from_slice(&output.expect("sluice").stdout).expect("JSON");
    match explained["action"].as_str() {
        Some("transmit") => true,
        Some("redirect") => false,
        _ => panic!("{way:?}: {explained}"),
    }
}

#[test]
fn traffic_follows_a_route_to_another_interface_and_a_gateway() {
    let builder = Lab::builder().topology(Topology::TwoInterfaces).backend_mtu(1_600);
    let lab = builder.start().expect("a lab");
    // What the web servers answer to Sluice must not need the interface that goes away.
    let answers = format!("route replace {SOURCES} via 10.0.3.1\nroute replace {SOURCES6} via fd00:3::1");
    lab.webs().iter().for_each(|web| web.ip(&answers).expect("routes"));
    let routed: Vec<_> = WAYS.into_iter().filter(|way| way.is_routed()).collect();
    let _servers = ways::serve(&lab, &routed);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &routed, &ways::own_sources(), ""));
    let beats: Vec<_> = routed.iter().map(|way| Beat::start(&lab, *way, lab.web(0))).collect();
    let follow = |by_router: bool, what: &str| {
        let all = || routed[..2].iter().all(|way| leaves_where_it_came_in(&lab, &agent, *way) == by_router);
        wait_until(what, PATIENCE, all).expect("traffic follows");
    };
    follow(false, "the web servers are next to eth1");
    lab.edge().link_down("eth1").expect("pull");
    follow(true, "the router is all that is left");
    change_mac(&lab.routers()[0], "eth0", "02:00:00:00:99:01");
    std::thread::sleep(FOLLOWS);
    lab.edge().link_up("eth1").expect("plug in");
    follow(false, "the web servers are back");
    std::thread::sleep(FOLLOWS);
    all_followed(beats, "an interface and a gateway");
}
