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
        Some(TransportHeader::Icmpv4(icmp)) => lines.push(format!("ICMP {:?}", icmp.icmp_type)),
        Some(TransportHeader::Icmpv6(icmp)) => lines.push(format!("ICMPv6 {:?}", icmp.icmp_type)),
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
