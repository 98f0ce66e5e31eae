//! `sluice decap` on a web server: customers are answered through tunnels of every kind, and nothing else is touched.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Output;
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_tests::{
    Daemon, Host, HttpConnection, Lab, UdpEcho, run_checked, send_frame, sluice_binary, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
const ECHO_PORT: u16 = 9_000;
const CUSTOMER_PORT: u16 = 40_000;

const EDGE6: &str = "2001:db8:1::2";
const WEB6: &str = "2001:db8:1::11";
const CUSTOMER6: &str = "2001:db8:1::100";
const VIP6: &str = "2001:db8:2::10";
const LATER_VIP: &str = "203.0.113.77";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A lab with one web server, IPv6 included.
fn lab() -> Lab {
    let lab = Lab::builder().web_servers(1).app_servers(1).start().expect("a lab");
    for (host, address, interface) in [
        (lab.web(0), format!("{WEB6}/64"), "eth0"),
        (lab.web(0), format!("{VIP6}/128"), "lo"),
        (lab.customer(), format!("{CUSTOMER6}/64"), "eth0"),
    ] {
        add_address(host, &address, interface);
    }
    lab
}

fn add_address(host: &Host, address: &str, interface: &str) {
    let mut command = host.command("ip");
    command.args(["address", "add", address, "dev", interface]);
    if address.contains(':') {
        command.arg("nodad");
    }
    run_checked(&mut command).expect("an address");
}

fn start(lab: &Lab, name: &str, arguments: &[&str]) -> Daemon {
    let mut command = lab.web(0).command(sluice_binary().expect("a binary"));
    command.arg("decap").args(arguments);
    let mut daemon =
        Daemon::spawn(command, "sluice decap", &lab.directory().join(name)).expect("sluice decap");
    let mut ended = None;
    wait_until("it is ready", PATIENCE, || {
        ended = daemon.exited().expect("status");
        ended.is_some() || daemon.log().contains("ready")
    })
    .expect("ready");
    assert_eq!(ended, None, "{}", daemon.log());
    daemon
}

/// Ends it and reads the counters it prints.
fn end(mut daemon: Daemon, signal: Signal) -> Value {
    daemon.signal(signal).expect("signal");
    let status = daemon.wait(PATIENCE).expect("an end");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    let log = daemon.log();
    let json = log.get(log.find("\n{").expect("JSON")..).expect("JSON");
    serde_json::from_str(json).expect("JSON")
}

fn run(host: &Host, arguments: &[&str]) -> Output {
    let mut command = host.command(sluice_binary().expect("a binary"));
    command.arg("decap").args(arguments).output().expect("sluice")
}

/// What the customer asks the VIP.
fn question(from: IpAddr, vip: IpAddr, text: &str) -> Vec<u8> {
    let ip = match (from, vip) {
        (IpAddr::V4(from), IpAddr::V4(vip)) => PacketBuilder::ipv4(from.octets(), vip.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(vip)) => PacketBuilder::ipv6(from.octets(), vip.octets(), 60),
        families => panic!("{families:?}"),
    };
    let mut packet = Vec::new();
    ip.udp(CUSTOMER_PORT, ECHO_PORT).write(&mut packet, text.as_bytes()).expect("a packet");
    packet
}

/// Puts the packet on the wire from the edge host, behind `between` in an outer packet of this protocol.
fn send(lab: &Lab, (from, to): (IpAddr, IpAddr), protocol: u8, between: &[u8], packet: &[u8]) {
    let web = lab.web(0).mac("eth0").expect("mac");
    let edge = lab.edge().mac("eth0").expect("mac");
    let payload = [between, packet].concat();
    let ethernet = PacketBuilder::ethernet2(edge, web);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 60),
        families => panic!("{families:?}"),
    };
    let mut frame = Vec::new();
    if protocol == 17 {
        ip.udp(50_000, 6_080).write(&mut frame, &payload).expect("a frame");
    } else {
        ip.write(&mut frame, protocol.into(), &payload).expect("a frame");
    }
    send_frame(lab.edge(), "eth0", &frame).expect("send");
}

fn customer_socket(lab: &Lab, address: IpAddr) -> UdpSocket {
    let socket =
        lab.customer().run(|| UdpSocket::bind((address, CUSTOMER_PORT))).expect("run").expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

fn answer(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut answer = [0; 256];
    let (length, from) = socket.recv_from(&mut answer).expect("an answer");
    (String::from_utf8_lossy(&answer[..length]).into_owned(), from)
}

#[test]
fn customers_are_answered_through_every_tunnel() {
    let lab = lab();
    let (vip4, vip6) = (lab.vip(ECHO_PORT), SocketAddr::from((ip(VIP6), ECHO_PORT)));
    let _echoes = [vip4, vip6].map(|vip| UdpEcho::start(lab.web(0), vip).expect("echo"));
    let customers = [IpAddr::from(lab.customer().address()), ip(CUSTOMER6)];
    let sockets = customers.map(|customer| customer_socket(&lab, customer));
    let edge4 = IpAddr::from(lab.edge().address());
    let web4 = IpAddr::from(lab.web(0).address());
    let from = format!("{edge4},{EDGE6}/128");
    let daemon = start(&lab, "decap.log", &["--iface", "eth0", "--from", &from, "-o", "json"]);

    // Dropped, each under its own name; the first answer is to what comes after them.
    let stranger = question(customers[0], vip4.ip(), "from a stranger");
    send(&lab, (ip("10.0.1.99"), web4), 4, &[], &stranger);
    send(&lab, (ip("2001:db8:1::99"), ip(WEB6)), 17, &[0, 4, 0, 0], &stranger);
    let elsewhere = question(customers[0], web4, "for the web server itself");
    send(&lab, (edge4, web4), 4, &[], &elsewhere);

    let askers = [(&sockets[0], customers[0], vip4), (&sockets[1], customers[1], vip6)];
    let outers = [(edge4, web4), (ip(EDGE6), ip(WEB6))];
    let mut asked = 0;
    for outer in outers {
        for (socket, customer, vip) in askers {
            let inside = if vip.is_ipv4() { 4 } else { 41 };
            let ways: [(&str, u8, &[u8]); 3] = [
                ("ipip", inside, &[]),
                ("gue", 17, &[1, inside, 0, 0, 9, 9, 9, 9]),
                ("gue variant 1", 17, &[]),
            ];
            for (way, protocol, between) in ways {
                let text = format!("{way} from {}", outer.0);
                send(&lab, outer, protocol, between, &question(customer, vip.ip(), &text));
                assert_eq!(answer(socket), (format!("web1:{text}"), vip));
                asked += 1;
            }
        }
    }
    // What is no tunnel goes its way.
    let web = SocketAddr::from((lab.web(0).address(), 80));
    let page = HttpConnection::open(lab.customer(), web, None).expect("connect").get("/").expect("page");
    assert_eq!((page.status, page.served_by()), (200, "web1"));

    let second = run(lab.web(0), &["--iface", "eth0", "--from", &from]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another XDP program"), "{second:?}");

    let counted = end(daemon, Signal::SIGTERM);
    assert_eq!((&counted["interface"], &counted["xdp_mode"]), (&"eth0".into(), &"driver".into()));
    let verdicts = &counted["verdicts"];
    assert_eq!(asked, 12);
    for (verdict, packets) in
        [("decapsulated.ipip", 4), ("decapsulated.gue", 8), ("drop.source", 2), ("drop.not_vip", 1)]
    {
        assert_eq!(verdicts[verdict], packets, "{verdict}: {counted}");
    }
    assert!(verdicts["pass.not_tunnel"].as_u64() > Some(5), "{counted}");
    assert_eq!(verdicts["drop.ecn"], 0, "verdicts that were not met are told too");
    assert!(!has_program(lab.web(0), "eth0"));
}

fn has_program(host: &Host, interface: &str) -> bool {
    let output = run_checked(host.command("ip").args(["link", "show", "dev", interface])).expect("ip");
    String::from_utf8_lossy(&output.stdout).contains("xdp")
}

#[test]
fn a_vip_that_comes_later_is_served_too_and_nothing_stays_after_a_kill() {
    let lab = lab();
    let edge = IpAddr::from(lab.edge().address());
    let web = IpAddr::from(lab.web(0).address());
    let daemon = start(&lab, "decap.log", &["--iface", "eth0", "--from", "10.0.1.0/24"]);
    assert!(has_program(lab.web(0), "eth0"));
    add_address(lab.web(0), &format!("{LATER_VIP}/32"), "lo");
    let vip = SocketAddr::from((ip(LATER_VIP), ECHO_PORT));
    let _echo = UdpEcho::start(lab.web(0), vip).expect("echo");
    let customer = IpAddr::from(lab.customer().address());
    let socket = customer_socket(&lab, customer);
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    let packet = question(customer, vip.ip(), "later");
    wait_until("the new VIP is served", PATIENCE, || {
        send(&lab, (edge, web), 4, &[], &packet);
        socket.recv_from(&mut [0; 64]).is_ok()
    })
    .expect("an answer");
    daemon.signal(Signal::SIGKILL).expect("kill");
    wait_until("the program is gone", PATIENCE, || !has_program(lab.web(0), "eth0")).expect("gone");
}

/// An interface that is made anew has its old name and may have its old number, but no program.
#[test]
fn it_ends_when_its_interface_is_made_anew() {
    let lab = lab();
    let web = lab.web(0);
    let made = "link add name tun9 index 99 type veth peer name tun8";
    web.ip(made).expect("an interface");
    let mut daemon = start(&lab, "decap.log", &["--iface", "tun9", "--from", "10.0.1.0/24"]);
    web.ip(&format!("link delete tun9\n{made}")).expect("another interface");
    let status = daemon.wait(PATIENCE).expect("an end");
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("tun9: the program is not on it any more"), "{}", daemon.log());
}

/// A bridge has no XDP of its own: the program sees what the kernel has already made of a frame.
#[test]
fn without_a_driver_it_runs_in_generic_mode_and_says_so() {
    let lab = lab();
    let (edge, web) = (IpAddr::from(lab.edge().address()), IpAddr::from(lab.web(0).address()));
    let mac = lab.web(0).mac("eth0").expect("mac").map(|byte| format!("{byte:02x}")).join(":");
    for command in [
        format!("link add br0 address {mac} type bridge"),
        "address flush dev eth0".to_owned(),
        "link set eth0 master br0".to_owned(),
        "link set br0 up".to_owned(),
    ] {
        run_checked(lab.web(0).command("ip").args(command.split(' '))).expect("a bridge");
    }
    add_address(lab.web(0), &format!("{web}/24"), "br0");
    add_address(lab.web(0), &format!("{WEB6}/64"), "br0");
    let vip = lab.vip(ECHO_PORT);
    let _echo = UdpEcho::start(lab.web(0), vip).expect("echo");
    let customer = IpAddr::from(lab.customer().address());
    let socket = customer_socket(&lab, customer);
    let from = format!("{edge},{EDGE6}");
    let daemon = start(&lab, "decap.log", &["--iface", "br0", "--from", &from, "-o", "json"]);
    assert!(daemon.log().contains("slower generic mode"), "{}", daemon.log());
    send(&lab, (edge, web), 4, &[], &question(customer, vip.ip(), "ipip"));
    assert_eq!(answer(&socket), ("web1:ipip".to_owned(), vip));
    send(&lab, (ip(EDGE6), ip(WEB6)), 17, &[], &question(customer, vip.ip(), "gue"));
    assert_eq!(answer(&socket), ("web1:gue".to_owned(), vip));
    let counted = end(daemon, Signal::SIGINT);
    assert_eq!((&counted["interface"], &counted["xdp_mode"]), (&"br0".into(), &"generic".into()));
    assert_eq!(counted["verdicts"]["decapsulated.ipip"], 1, "{counted}");
    assert_eq!(counted["verdicts"]["decapsulated.gue"], 1, "{counted}");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let lab = lab();
    let from = ["--from", "10.0.1.2"];
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--iface", "eth0"], 2, "--from"),
        (&["--iface", "eth0", "--from", "10.0.1.2/24"], 2, "write 10.0.1.0/24 or 10.0.1.2"),
        (&["--iface", "eth0", "--from", "10.0.1.0/64"], 2, "an IPv4 prefix is 0 to 32"),
        (&["--iface", "eth0", "--from", "edge"], 2, "not an IP address"),
        (&["--iface", "eth0", from[0], from[1], "--vip", "203.0.113.10:80"], 2, "not an IP address"),
        (&["--iface", "eth0", from[0], from[1], "--vip", "127.0.0.1"], 2, "nobody's VIP"),
        (&["--iface", "eth9", from[0], from[1]], 1, "no interface \"eth9\""),
        // The customer has no VIP on its loopback interface.
        (&["--iface", "eth0", from[0], from[1]], 1, "put the VIPs there"),
    ];
    for (arguments, code, reason) in cases {
        let host = if reason.contains("put the VIPs") { lab.customer() } else { lab.web(0) };
        let output = run(host, arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(reason), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert!(!has_program(lab.web(0), "eth0"));
}
