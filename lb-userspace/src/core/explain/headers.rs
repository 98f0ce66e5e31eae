//! A frame → one line about each of its headers, those inside tunnels included.

use etherparse::{LaxPacketHeaders, LaxPayloadSlice, LinkExtHeader, LinkHeader, NetHeaders, TransportHeader};
use lb_common::abi::GUE_PORT;

use super::mac;

/// Length of the GUE header that Sluice writes.
const GUE_BYTES: usize = 4;
/// Headers within headers that are followed.
const MAX_DEPTH: usize = 3;
/// IP protocol numbers of IPv4 and IPv6 in IP.
const TUNNELS: [u8; 2] = [4, 41];
/// ICMP's types that have to do with forwarding (RFC 792).
const ICMP_TYPES: [(u8, &str); 6] = [
    (0, "echo reply"),
    (3, "destination unreachable"),
    (5, "redirect"),
    (8, "echo request"),
    (11, "time exceeded"),
    (12, "parameter problem"),
];
/// ICMPv6's, and those of neighbour discovery (RFC 4443, RFC 4861).
const ICMPV6_TYPES: [(u8, &str); 11] = [
    (1, "destination unreachable"),
    (2, "packet too big"),
    (3, "time exceeded"),
    (4, "parameter problem"),
    (128, "echo request"),
    (129, "echo reply"),
    (133, "router solicitation"),
    (134, "router advertisement"),
    (135, "neighbor solicitation"),
    (136, "neighbor advertisement"),
    (137, "redirect"),
];

/// The headers of a frame, outermost first; what cannot be parsed is left out. Captures cut frames, so one that is longer by its
/// headers than it is has headers too.
pub(super) fn headers(frame: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Ok(parsed) = LaxPacketHeaders::from_ethernet(frame) {
        tell(&parsed, &mut lines, 0);
    }
    lines
}

fn tell(parsed: &LaxPacketHeaders<'_>, lines: &mut Vec<String>, depth: usize) {
    if let Some(LinkHeader::Ethernet2(ethernet)) = &parsed.link {
        lines.push(format!("Ethernet {} → {}", mac(ethernet.source), mac(ethernet.destination)));
    }
    for extension in &parsed.link_exts {
        if let LinkExtHeader::Vlan(vlan) = extension {
            lines.push(format!("VLAN {}", vlan.vlan_id.value()));
        }
    }
    let mut protocol = None;
    match &parsed.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            protocol = Some(ip.protocol.0);
            let (from, to) = (std::net::Ipv4Addr::from(ip.source), std::net::Ipv4Addr::from(ip.destination));
            lines.push(format!("IPv4 {from} → {to}, TTL {}, {} bytes", ip.time_to_live, ip.total_len));
        }
        Some(NetHeaders::Ipv6(ip, _)) => {
            protocol = Some(ip.next_header.0);
            let (from, to) = (ip.source_addr(), ip.destination_addr());
            let bytes = u32::from(ip.payload_length) + 40;
            lines.push(format!("IPv6 {from} → {to}, hop limit {}, {bytes} bytes", ip.hop_limit));
        }
        _ => {}
    }
    let mut gue = false;
    match &parsed.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            let flags = [(tcp.syn, " SYN"), (tcp.ack, " ACK"), (tcp.fin, " FIN"), (tcp.rst, " RST")];
            let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
            lines.push(format!("TCP {} → {}{flags}", tcp.source_port, tcp.destination_port));
        }
        Some(TransportHeader::Udp(udp)) => {
            gue = udp.destination_port == GUE_PORT;
            lines.push(format!("UDP {} → {}", udp.source_port, udp.destination_port));
        }
        Some(TransportHeader::Icmpv4(icmp)) => lines.push(message("ICMP", &ICMP_TYPES, &icmp.to_bytes())),
        Some(TransportHeader::Icmpv6(icmp)) => {
            lines.push(message("ICMPv6", &ICMPV6_TYPES, &icmp.to_bytes()));
        }
        Some(TransportHeader::Igmp(_)) | None => {}
    }
    let inner = match &parsed.payload {
        LaxPayloadSlice::Udp { payload, .. } if gue => payload.get(GUE_BYTES..),
        LaxPayloadSlice::Ip(payload) if protocol.is_some_and(|number| TUNNELS.contains(&number)) => {
            Some(payload.payload)
        }
        _ => None,
    };
    if let Some(Ok(inner)) = inner.map(LaxPacketHeaders::from_ip)
        && depth < MAX_DEPTH
    {
        if gue {
            lines.push("GUE".to_owned());
        }
        tell(&inner, lines, depth + 1);
    }
}

/// An ICMP message by its type, whose name is among these, and code.
fn message(protocol: &str, types: &[(u8, &str)], bytes: &[u8]) -> String {
    let [kind, code] = [0, 1].map(|at| bytes.get(at).copied().unwrap_or_default());
    let name = types.iter().find(|(number, _)| *number == kind);
    let name = name.map_or_else(|| format!("type {kind}"), |(_, name)| (*name).to_owned());
    format!("{protocol} {name}, code {code}")
}
