//! Customers are served through the VIP: pages, API, HTTPS, CDN, TCP and UDP, by weight, and nothing else is touched.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;

use lb_tests::{CDN_NAME, Capture, HttpConnection, Lab, SHOP_NAME, Topology, UdpEcho, VIP, send_frame};

const CONNECTIONS: u16 = 1_000;
/// Chosen source ports make the distribution the same in every run.
const FIRST_PORT: u16 = 20_000;

#[test]
fn a_customer_is_served_by_name() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let customer = lab.customer();
    for (path, content) in [
        ("/", "Welcome to the shop"),
        ("/api", "\"path\":\"/api\""),
        ("/api/v1/orders", "\"path\":\"/api/v1/orders\""),
        ("/healthz", "ok"),
    ] {
        let answer = customer.curl(&[&format!("http://{SHOP_NAME}{path}")]).expect(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.served_by().starts_with("web"), "{path}: {answer:?}");
        assert!(answer.text().contains(content), "{path}: {}", answer.text());
    }
    let authority = lab.authority().to_str().expect("path");
    let secure = customer.curl(&["--cacert", authority, &format!("https://{SHOP_NAME}/")]).expect("https");
    assert_eq!(secure.status, 200);

    let through_cdn = |path: &str| customer.curl(&[&format!("http://{CDN_NAME}{path}")]).expect("the CDN");
    let cache = |path: &str| through_cdn(path).headers.get("x-cache").cloned();
    assert_eq!(cache("/").as_deref(), Some("MISS"));
    assert_eq!(cache("/").as_deref(), Some("HIT"));
    assert!(through_cdn("/api/v1/orders").text().contains("/api/v1/orders"));
}

/// How many of the connections each web server answered.
fn answers(lab: &Lab) -> BTreeMap<String, i32> {
    let mut by_server = BTreeMap::new();
    for port in FIRST_PORT..FIRST_PORT + CONNECTIONS {
        let connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        let answer = connection.get_and_close("/").expect("answer");
        assert_eq!(answer.status, 200);
        *by_server.entry(answer.served_by().to_owned()).or_default() += 1;
    }
    by_server
}

#[test]
fn connections_are_spread_by_weight() {
    for weights in [[100, 100], [300, 100]] {
        let lab = Lab::builder().start().expect("a lab");
        let _agent = lab.start_healthy_agent(&lab.config().weights(&weights)).expect("an agent");
        let by_server = answers(&lab);
        let total: u16 = weights.iter().sum();
        for (server, weight) in ["web1", "web2"].into_iter().zip(weights) {
            let expected = i32::from(CONNECTIONS) * i32::from(weight) / i32::from(total);
            let tolerance = i32::from(CONNECTIONS) / 20;
            let got = by_server.get(server).copied().unwrap_or(0);
            assert!((got - expected).abs() <= tolerance, "weights {weights:?}: {by_server:?}");
        }
    }
}

#[test]
fn every_datagram_of_a_flow_reaches_one_backend() {
    const FLOWS: u16 = 200;
    let lab = Lab::builder().start().expect("a lab");
    let service = SocketAddrV4::new(VIP, 9000);
    let echoes: Vec<_> = lab.webs().iter().map(|web| UdpEcho::start(web, service).expect("echo")).collect();
    let _agent = lab.start_healthy_agent(&lab.config().udp(9000)).expect("an agent");
    let mut flows = BTreeMap::<String, u16>::new();
    for port in 30_000..30_000 + FLOWS {
        let bind = || UdpSocket::bind(("0.0.0.0", port));
        let socket = lab.customer().run(bind).expect("run").expect("socket");
        // Connected: only answers from the VIP are taken.
        socket.connect(service).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("timeout");
        let ask = |number: u8| {
            let mut answer = [0; 64];
            socket.send(&[b'0' + number]).expect("send");
            let length = socket.recv(&mut answer).expect("answer");
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            let (server, sent) = answer.split_once(':').expect("name:payload");
            assert_eq!(sent, number.to_string());
            server.to_owned()
        };
        let server = ask(0);
        for number in 1..4 {
            assert_eq!(ask(number), server, "datagram {number} of the flow from port {port}");
        }
        *flows.entry(server).or_default() += 1;
    }
    assert_eq!(echoes.len(), flows.len(), "{flows:?}");
    assert!(flows.values().all(|count| *count > FLOWS / 4), "{flows:?}");
}

#[test]
fn ping_to_the_vip_is_answered() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let mut ping = lab.customer().command("ping");
    ping.args(["-c", "5", "-i", "0.05", "-W", "2", "-s", "1000", &VIP.to_string()]);
    let output = ping.output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn a_megabyte_goes_up_and_comes_down_as_it_was() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    // Enough connections that both web servers take part.
    for _ in 0..8 {
        lab.transfer(lab.vip(80)).expect("transfer");
    }
}

#[test]
fn customers_are_served_across_two_interfaces_and_with_jumbo_frames() {
    let two = Lab::builder().topology(Topology::TwoInterfaces);
    for builder in [two.clone(), two.mtu(9000), Lab::builder().mtu(9000), Lab::builder().backend_mtu(1600)] {
        let lab = builder.clone().start().expect("a lab");
        let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
        for _ in 0..4 {
            lab.transfer(lab.vip(80)).unwrap_or_else(|error| panic!("{builder:?}: {error:#}"));
        }
        let by_server = lab.short_connections(lab.vip(80), 60).expect("short connections");
        assert_eq!(by_server.len(), 2, "{builder:?}: {by_server:?}");
    }
}

/// An IPv4 packet without options; the checksum is given, right or wrong.
fn ipv4(destination: [u8; 4], protocol: u8, fragment: u16, checksum: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("length");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol]);
    packet.extend(checksum.to_be_bytes());
    packet.extend([10, 0, 1, 100]);
    packet.extend(destination);
    packet.extend(payload);
    packet
}

/// Payloads by name: EtherType and what follows. None is for a VIP's published port.
fn strangers() -> Vec<(&'static str, u16, Vec<u8>)> {
    const EDGE: [u8; 4] = [10, 0, 1, 2];
    let vip = VIP.octets();
    let udp = [0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let syn_to_ssh = [0x30, 0x39, 0, 22, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let arp =
        [[0, 1, 8, 0, 6, 4, 0, 1].as_slice(), &[2, 0, 0, 0, 0, 9, 10, 0, 1, 100], &[0, 0, 0, 0, 0, 0], &EDGE];
    let mut ipv6 = vec![0x61, 0x23, 0x45, 0x67, 0, 12, 17, 64];
    ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    ipv6.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    ipv6.extend(udp);
    vec![
        ("an unknown EtherType", 0x88b5, b"a local experiment".to_vec()),
        ("ARP", 0x0806, arp.concat()),
        ("IPv6", 0x86dd, ipv6),
        ("UDP to the edge host", 0x0800, ipv4(EDGE, 17, 0, 0x1234, &udp)),
        ("a fragment to the edge host", 0x0800, ipv4(EDGE, 17, 0x2001, 0x1234, &udp)),
        ("GRE to the edge host", 0x0800, ipv4(EDGE, 47, 0, 0, &[0; 24])),
        ("a TCP header cut short, to the edge host", 0x0800, ipv4(EDGE, 6, 0, 0, &[1, 2, 3])),
        ("TCP to a port of the VIP that is not published", 0x0800, ipv4(vip, 6, 0, 0x1234, &syn_to_ssh)),
        ("UDP to the VIP, where only TCP is published", 0x0800, ipv4(vip, 17, 0, 0x1234, &udp)),
    ]
}

#[test]
fn what_is_not_for_a_vip_passes_bit_identical() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let edge_mac = lab.edge().mac("eth0").expect("mac");
    let customer_mac = lab.customer().mac("eth0").expect("mac");
    for (name, ethertype, payload) in strangers() {
        let frame = [&edge_mac[..], &customer_mac, &ethertype.to_be_bytes(), &payload].concat();
        let mut capture = Capture::start(lab.edge(), "eth0").expect("capture");
        send_frame(lab.customer(), "eth0", &frame).expect("send");
        let seen = capture.find(Duration::from_secs(3), |seen| seen == frame).expect("capture");
        assert!(seen.is_some(), "{name} did not pass, or not as it was: {frame:02x?}");
    }
}

#[test]
fn the_edge_hosts_own_traffic_works() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let address = lab.edge().address().to_string();
    let mut ping = lab.customer().command("ping");
    let output = ping.args(["-c", "3", "-i", "0.05", "-W", "2", &address]).output().expect("ping");
    assert!(output.status.success(), "{output:?}");

    let listen = || TcpListener::bind((lab.edge().address(), 2222));
    let listener = lab.edge().run(listen).expect("run").expect("listen");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut question = [0; 5];
        stream.read_exact(&mut question).expect("question");
        stream.write_all(&question.map(|byte| byte.to_ascii_uppercase())).expect("answer");
    });
    let to = SocketAddr::from((lab.edge().address(), 2222));
    let mut stream = lab.customer().connect(to, None).expect("connect");
    stream.write_all(b"hello").expect("send");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("answer");
    assert_eq!(&answer, b"HELLO");
    answering.join().expect("server");
}

#[test]
fn only_published_ports_are_reached_through_the_vip() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    // Listens on every address of the web servers, the VIP among them.
    let listen =
        |web: &lb_tests::Host| web.run(|| TcpListener::bind("0.0.0.0:8080")).expect("run").expect("listen");
    let _listeners: Vec<_> = lab.webs().iter().map(listen).collect();
    let hidden = format!("http://{SHOP_NAME}:8080/");
    assert!(lab.customer().curl(&["--connect-timeout", "1", &hidden]).is_err());
}

#[test]
fn explain_tells_which_backend_a_connection_will_get() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    for port in 40_000..40_020 {
        let source = format!("{}:{port}", lab.customer().address());
        let explained = agent
            .sluice(&["explain", "--src", &source, "--dst", "203.0.113.10:80", "--syn"])
            .expect("sluice");
        let text = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(explained.status.success(), "{explained:?}");
        let connection = HttpConnection::open(lab.customer(), lab.vip(80), Some(port)).expect("connect");
        let server = connection.get_and_close("/").expect("answer").served_by().to_owned();
        let other = if server == "web1" { "web2" } else { "web1" };
        assert!(
            text.contains(&server) && !text.contains(other),
            "port {port} went to {server}, but:\n{text}"
        );
    }
}
