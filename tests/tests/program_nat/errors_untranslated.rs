//! ICMP and ICMPv6 errors about flows of `l2-dsr`, `ipip` and `gue` → sent as they are to the backend that has the flow.

use std::net::IpAddr;

use lb_common::abi::{Forwarding, NextHop};
use lb_common::net::Protocol;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::{VipKey, Wanted};

use crate::errors::kinds;
use crate::support::nat_frames::{EDGE, FAMILIES, Family, OTHER_ROUTER, ROUTER, server_mac};
use crate::support::packets::{ACK, Body, DESTINATION_OPTIONS, HOP_BY_HOP, Packet, Piece, SYN, octets};
use crate::support::parity::Twins;
use crate::support::{backend, service, wanted};

const BACKENDS: u8 = 3;

/// A service of this mode whose VIPs are of one family and whose backends are of another.
fn services(forwarding: Forwarding, vips: Family, servers: Family, drained: Option<u8>) -> Wanted {
    let vip = |protocol| VipKey { address: vips.vip().into(), port: 443, protocol };
    let backends = (1..=BACKENDS).map(|host| {
        let mut hop = NextHop::new(server_mac(host), EDGE, 0);
        hop.source = servers.snat(1).into();
        let ring_weight = if drained == Some(host) { 0 } else { 100 };
        let named = backend(&format!("web{host}"), host);
        lb_userspace::core::image::WantedBackend {
            address: servers.server(host).into(),
            hop: Some(hop),
            ring_weight,
            ..named
        }
    });
    let backends: Vec<_> = backends.collect();
    let services = [("tcp", Protocol::TCP), ("udp", Protocol::UDP)].map(|(name, protocol)| {
        let service = service(name, vec![vip(protocol)], backends.clone());
        lb_userspace::core::image::WantedService { forwarding, ..service }
    });
    Wanted { services: services.into(), ..wanted() }
}

fn customer(family: Family, tcp: bool, port: u16, flags: u8) -> Packet {
    let (ports, payload) = ([port, 443], b"hello".to_vec());
    let body =
        if tcp { Body::Tcp { ports, flags, payload } } else { Body::Udp { ports, payload, checksum: true } };
    Packet::new([EDGE, ROUTER], family.client(7), family.vip(), body)
}

/// What the server sent to that customer, on its way.
fn answer_to(customer: &Packet) -> Packet {
    let [from, to] = customer.body.ports();
    let body = customer.body.with_ports([to, from]).with_payload(vec![9; 99]);
    Packet { source: customer.destination, destination: customer.source, body, hops: 33, ..customer.clone() }
}

/// Bytes in front of a packet.
fn overhead(forwarding: Forwarding, servers: Family) -> usize {
    let ip = if servers == Family::V4 { 20 } else { 40 };
    match forwarding {
        Forwarding::Ipip => ip,
        Forwarding::Gue => ip + 12,
        _ => 0,
    }
}

/// Insists that the frame is this packet, as it is, on its way to this server.
fn went_to(frame: &[u8], packet: &Packet, forwarding: Forwarding, servers: Family, host: u8) {
    assert_eq!(frame[..12], [server_mac(host), EDGE].concat(), "{packet:?}");
    let inner = 14 + overhead(forwarding, servers);
    assert_eq!(frame[inner..], packet.packet(), "{packet:?}");
    if inner > 14 {
        let to: IpAddr = servers.server(host);
        let at = if servers == Family::V4 { 30 } else { 38 };
        assert_eq!(frame[at..at + octets(to).len()], octets(to), "{packet:?}");
    }
}

/// Every mode, with what families of VIPs and servers it has.
fn modes() -> Vec<(Forwarding, Family, Family)> {
    let same = FAMILIES.map(|family| (Forwarding::L2Dsr, family, family));
    let tunnels = [Forwarding::Ipip, Forwarding::Gue].into_iter().flat_map(|forwarding| {
        FAMILIES.into_iter().flat_map(move |vips| FAMILIES.map(|servers| (forwarding, vips, servers)))
    });
    same.into_iter().chain(tunnels).collect()
}

#[test]
fn errors_go_to_the_backend_that_has_the_flow() {
    let mut twins = Twins::new(&wanted());
    twins.set_own_mac(EDGE);
    for (forwarding, vips, servers) in modes() {
        for tcp in [true, false] {
            twins.apply(&Wanted { services: vec![], ..wanted() });
            twins.apply(&services(forwarding, vips, servers, None));
            let packet = customer(vips, tcp, 40_000, ACK);
            let (outcome, frame) = twins.agree_on(&packet.frame());
            assert_eq!(outcome.verdict, Verdict::Forward);
            let host = frame[5];
            went_to(&frame, &packet, forwarding, servers, host);
            // New flows go elsewhere now.
            twins.apply(&services(forwarding, vips, servers, Some(host)));
            let quoted = answer_to(&packet);
            let least = if vips == Family::V4 { 28 } else { 48 };
            for (kind, rest) in kinds(vips) {
                for length in [least, least + 12, 1_000] {
                    let error = quoted.error([EDGE, ROUTER], vips.client(200), *kind, *rest, length);
                    let (outcome, frame) = twins.agree_on(&error.frame());
                    assert_eq!(outcome.verdict, Verdict::Forward, "{forwarding:?} {error:?}");
                    assert!(!outcome.new_flow());
                    went_to(&frame, &error, forwarding, servers, host);
                }
            }
            let [kernel, memory] = twins.changed();
            assert_eq!(kernel, memory);
            assert_eq!(kernel.flows.iter().filter(|word| **word != 0).count(), 1, "errors leave no trace");
        }
    }
}

/// Of a flow that is not in the flow table, the ring says where its packets went.
#[test]
fn errors_about_a_flow_that_was_lost_go_where_the_ring_says() {
    let mut twins = Twins::new(&wanted());
    twins.set_own_mac(EDGE);
    for (forwarding, vips, servers) in modes() {
        twins.apply(&Wanted { services: vec![], ..wanted() });
        twins.apply(&services(forwarding, vips, servers, None));
        let mut hosts = std::collections::BTreeSet::new();
        for port in 40_000..40_020 {
            let packet = customer(vips, true, port, SYN);
            let (kind, rest) = kinds(vips)[0];
            let error = answer_to(&packet).error([EDGE, ROUTER], vips.client(200), kind, rest, 1_000);
            let (_, of_error) = twins.agree_on(&error.frame());
            let (_, of_packet) = twins.agree_on(&packet.frame());
            went_to(&of_error, &error, forwarding, servers, of_packet[5]);
            hosts.insert(of_packet[5]);
        }
        assert!(hosts.len() > 1, "{hosts:?}");
    }
}

#[test]
fn what_is_about_no_flow_of_a_service_passes_bit_identical() {
    let mut twins = Twins::new(&wanted());
    twins.set_own_mac(EDGE);
    for family in FAMILIES {
        twins.apply(&services(Forwarding::L2Dsr, family, family, None));
        let packet = customer(family, true, 40_000, ACK);
        twins.agree(&packet.frame());
        let quoted = answer_to(&packet);
        let (kind, rest) = kinds(family)[0];
        let error =
            |quoted: &Packet, length| quoted.error([EDGE, ROUTER], family.router(), kind, rest, length);
        let header = if family == Family::V4 { 20 } else { 40 };
        let other_port = Packet { body: quoted.body.with_ports([22, 40_000]), ..quoted.clone() };
        let foreign = Packet { source: family.server(9), ..quoted.clone() };
        let foreign = Packet { destination: family.vip(), ..error(&foreign, 1_000) };
        let piece = Some(Piece { identification: 5, offset: 48, length: 48 });
        let later = Packet { piece, ..quoted.clone() };
        let icmp = Body::Icmp { kind: 8, code: 0, rest: [0; 4], payload: vec![] };
        let of_icmp = Packet { body: icmp, ..quoted.clone() };
        for error in [
            error(&other_port, 1_000),
            foreign,
            error(&later, 1_000),
            error(&of_icmp, 1_000),
            error(&quoted, 0),
            error(&quoted, header - 1),
            error(&quoted, header + 3),
        ] {
            let (outcome, frame) = twins.agree_on(&error.frame());
            assert_eq!(outcome.verdict, Verdict::PassIcmp, "{error:?}");
            assert_eq!(frame, error.frame());
        }
        let elsewhere = Packet { macs: [OTHER_ROUTER, ROUTER], ..error(&quoted, 1_000) };
        assert_eq!(twins.agree(&elsewhere.frame()).verdict, Verdict::PassOtherHost);
    }
}

#[test]
fn quoted_packets_may_be_first_fragments_and_have_extension_headers() {
    let mut twins = Twins::new(&wanted());
    twins.set_own_mac(EDGE);
    for (forwarding, vips, servers) in modes() {
        twins.apply(&Wanted { services: vec![], ..wanted() });
        twins.apply(&services(forwarding, vips, servers, None));
        let packet = customer(vips, false, 40_000, ACK);
        let (_, frame) = twins.agree_on(&packet.frame());
        let host = frame[5];
        let extra = if vips == Family::V4 { vec![1; 12] } else { vec![HOP_BY_HOP, DESTINATION_OPTIONS] };
        for piece in [None, Some(Piece { identification: 5, offset: 0, length: 48 })] {
            let quoted = Packet { extra: extra.clone(), piece, dont_fragment: false, ..answer_to(&packet) };
            let (kind, rest) = kinds(vips)[0];
            let error = quoted.error([EDGE, ROUTER], vips.client(200), kind, rest, 1_000);
            // The error itself, too, may have some.
            let error = Packet { extra: extra.clone(), ..error };
            let (outcome, frame) = twins.agree_on(&error.frame());
            assert_eq!(outcome.verdict, Verdict::Forward, "{error:?}");
            went_to(&frame, &error, forwarding, servers, host);
        }
    }
}
