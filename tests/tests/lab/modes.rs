//! Every forwarding mode in every mixture of families: customers are served whole, by all web servers, in small frames and
//! jumbo frames, tagged and not.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket};
use lb_tests::{Agent, Capture, HttpConnection, Lab, VIP, VIP6, echo_datagram, send_frame, vlan_tagged};
use serde_json::Value;

use crate::ways::{self, WAYS, Way};

const PATIENCE: Duration = Duration::from_secs(3);

/// A megabyte each way, a thousand connections shared by both web servers, and datagrams of any size.
fn customers_are_served(lab: &Lab, way: Way) {
    let start = Instant::now();
    for _ in 0..2 {
        lab.transfer(way.tcp()).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    }
    let by_server = lab.short_connections(way.tcp(), 1_000);
    let by_server = by_server.unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    assert!(by_server.len() == 2 && by_server.values().all(|count| *count > 400), "{way:?}: {by_server:?}");
    for size in [1, 1_400, 8_000, 30_000] {
        echo_datagram(lab.customer(), way.udp(), size).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    }
    eprintln!("{way:?} took {:?}", start.elapsed());
}

/// `sluice explain` says where a connection goes, and how its packets leave.
fn explain_is_right(lab: &Lab, agent: &Agent<'_>, way: Way) {
    const PORT: u16 = 29_999;
    let (source, vip) = (SocketAddr::new(way.customer(lab), PORT).to_string(), way.tcp().to_string());
    let output = agent.sluice(&["explain", "--src", &source, "--dst", &vip, "--syn", "-o", "json"]);
    let output = output.expect("sluice");
    assert!(output.status.success(), "{way:?}: {output:?}");
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(explained["verdict"], "forward", "{way:?}: {explained}");
    let backend = explained["backend"].as_str().expect("a backend");
    let rewritten = explained["rewritten"].as_str().expect("a frame");
    let web = lab.webs().iter().find(|web| web.name() == backend).expect("a web server");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(rewritten.starts_with(&hex(&web.mac("eth0").expect("mac"))), "{way:?}: {explained}");
    let there = if way.is_routed() { way.backend(web) } else { way.vip() };
    let there = match there {
        IpAddr::V4(address) => hex(&address.octets()),
        IpAddr::V6(address) => hex(&address.octets()),
    };
    assert!(rewritten.contains(&there), "{way:?}: {explained}");
    let connection = HttpConnection::open(lab.customer(), way.tcp(), Some(PORT)).expect("connect");
    assert_eq!(connection.get_and_close("/").expect("page").served_by(), backend, "{way:?}");
}

/// Every way at once, in a lab of this MTU.
fn every_way_is_served(mtu: u32, sources: &str) {
    let lab = Lab::builder().mtu(mtu).backend_mtu(mtu + 100).start().expect("a lab");
    let _servers = ways::serve(&lab, &WAYS);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &WAYS, sources, ""));
    for way in WAYS {
        ways::ping(lab.customer(), way.vip(), mtu - 100);
        explain_is_right(&lab, &agent, way);
        customers_are_served(&lab, way);
    }
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
    assert_eq!(ways::verdict(&agent, "reply.icmp_echo"), 2 * WAYS.len() as u64);
    for way in WAYS {
        let service = agent.service(&way.name()).expect("service");
        // The transfers, the short connections, and the one that was explained, but for those from a port that another had just
        // used: nothing else, and nothing twice.
        let flows = service["new_flows"].as_u64().expect("a count");
        assert!((900..=4 + 1_000 + 1).contains(&flows), "{way:?}: {service}");
        assert!(service["bytes"].as_u64() > Some(2 << 20), "{way:?}: two uploads: {service}");
    }
}

#[test]
fn every_mode_serves_customers_of_either_family() {
    every_way_is_served(1_500, "");
}

#[test]
fn every_mode_serves_them_in_jumbo_frames() {
    every_way_is_served(9_000, &ways::own_sources());
}

/// A datagram of the customer in a frame for the edge host.
fn datagram(lab: &Lab, way: Way, text: &str) -> Vec<u8> {
    let [customer, edge] = [lab.customer(), lab.edge()].map(|host| host.mac("eth0").expect("mac"));
    let ethernet = PacketBuilder::ethernet2(customer, edge);
    let ip = match (way.customer(lab), way.vip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 60),
        families => panic!("{families:?}"),
    };
    let mut frame = Vec::new();
    ip.udp(40_000, ways::UDP_PORT).write(&mut frame, text.as_bytes()).expect("a frame");
    frame
}

/// The destination of a frame's outer packet, its protocol, and its destination port if that is UDP.
fn outer(frame: &[u8]) -> (IpAddr, u8, Option<u16>) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
    let ports = sliced.transport.as_ref().and_then(|transport| match transport {
        etherparse::TransportSlice::Udp(udp) => Some(udp.destination_port()),
        _ => None,
    });
    match sliced.net.expect("a packet") {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().destination_addr().into(), ip.header().protocol().0, ports)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (ip.header().destination_addr().into(), ip.header().next_header().0, ports)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn vlan_tags_are_kept_by_every_mode() {
    const UDP: u8 = 17;
    let lab = Lab::builder().web_servers(1).backend_mtu(1_600).start().expect("a lab");
    ways::announce(&lab, &WAYS);
    let agent = ways::healthy_agent(&lab, &ways::config(&lab, &WAYS, "", ""));
    let web = lab.web(0);
    let macs = [web.mac("eth0").expect("mac"), lab.edge().mac("eth0").expect("mac")].concat();
    let both_tags = [(0x88a8_u16, 0x0064_u16), (0x8100, 0x6007)];
    let seen = |way: Way, tags: &[(u16, u16)], when: &str| {
        let text = format!("{}, {} tags, {when}", way.name(), tags.len());
        let mut capture = Capture::start(web, "eth0").expect("capture");
        let frame = vlan_tagged(&datagram(&lab, way, &text), tags);
        send_frame(lab.customer(), "eth0", &frame).expect("send");
        let seen = capture.find(PATIENCE, |frame| frame.ends_with(text.as_bytes())).expect("capture");
        let seen = seen.unwrap_or_else(|| panic!("{text}: nothing came"));
        let tagged = vlan_tagged(&macs, tags);
        assert!(seen.starts_with(&tagged), "{text}: {seen:02x?} has not the tags of {frame:02x?}");
        seen
    };
    for way in WAYS {
        let inner = if way.vip6 { 41 } else { 4 };
        let expected = match way.mode {
            "l2-dsr" => (way.vip(), UDP, Some(ways::UDP_PORT)),
            "ipip" => (way.backend(web), inner, None),
            "gue" => (way.backend(web), UDP, Some(6_080)),
            _ => (way.backend(web), UDP, Some(way.echo(web).port())),
        };
        for tags in [&both_tags[1..], &both_tags] {
            assert_eq!(outer(&seen(way, tags, "as they arrive")), expected, "{way:?}");
        }
    }
    let _decaps = ways::unpack(&lab);
    for way in WAYS.into_iter().filter(|way| way.is_tunnel()) {
        for tags in [&both_tags[1..], &both_tags] {
            let unpacked = outer(&seen(way, tags, "unpacked"));
            assert_eq!(unpacked, (way.vip(), UDP, Some(ways::UDP_PORT)), "{way:?}");
        }
    }
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
}

#[test]
fn connections_of_one_customer_stay_together_with_client_affinity() {
    const CUSTOMERS: u8 = 12;
    let lab = Lab::builder().backend_mtu(1_600).start().expect("a lab");
    let _servers = ways::serve(&lab, &WAYS);
    let config = ways::config(&lab, &WAYS, "", "affinity = \"client\"");
    let _agent = ways::healthy_agent(&lab, &config);
    let at = lab.customer().attachments()[0].segment;
    let addresses = (160..160 + CUSTOMERS).map(|number| [IpAddr::from(at.v4(number)), at.v6(number).into()]);
    let addresses: Vec<_> = addresses.collect();
    let add =
        |[v4, v6]: &[IpAddr; 2]| format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
    lab.customer().ip(&addresses.iter().map(add).collect::<String>()).expect("addresses");
    for way in WAYS {
        let many = lab.short_connections(way.tcp(), 60).expect("connections");
        assert_eq!(many.len(), 1, "{way:?}: {many:?}");
        let ask = |address: &[IpAddr; 2]| {
            let from = address[usize::from(way.vip6)].to_string();
            let page = lab.customer().curl(&["--interface", &from, &format!("http://{}/", way.tcp())]);
            page.unwrap_or_else(|error| panic!("{way:?}: {error:#}")).served_by().to_owned()
        };
        let by_address: Vec<_> = addresses.iter().map(ask).collect();
        let again: Vec<_> = addresses.iter().map(ask).collect();
        assert_eq!(by_address, again, "{way:?}");
        // All on one is 1 in 2,000, and the same in every run.
        assert_eq!(by_address.into_iter().collect::<BTreeSet<_>>(), ways::both_webs(), "{way:?}");
    }
}

#[test]
fn vips_on_the_edge_hosts_interface_are_found_by_their_neighbours() {
    let lab = Lab::builder().start().expect("a lab");
    let vips = format!("addr add {VIP}/32 dev eth0\naddr add {VIP6}/128 dev eth0 nodad");
    lab.edge().ip(&vips).expect("VIPs");
    // On the link, without a router to them.
    let routes = format!("route replace {VIP}/32 dev eth0\nroute replace {VIP6}/128 dev eth0");
    lab.customer().ip(&routes).expect("routes");
    let agent = lab.start_healthy_agent(&lab.config().ipv6()).expect("an agent");
    for vip in lab.both_vips(80) {
        ways::ping(lab.customer(), vip.ip(), 1_000);
        lab.transfer(vip).unwrap_or_else(|error| panic!("{vip}: {error:#}"));
        let by_server = lab.short_connections(vip, 60).expect("connections");
        assert_eq!(by_server.into_keys().collect::<BTreeSet<_>>(), ways::both_webs(), "{vip}");
    }
    assert_eq!(ways::drops(&agent, &[]), [""; 0]);
}
