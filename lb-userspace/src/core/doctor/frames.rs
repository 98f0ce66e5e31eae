//! Questions to hosts on a segment → frames; frames that come back → answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Icmpv4Type, Icmpv6Type, LinkHeader, NetHeaders, PacketBuilder,
    PacketHeaders, TransportHeader,
};

/// Broadcast.
const ALL: [u8; 6] = [255; 6];
const TTL: u8 = 64;
const WINDOW: u16 = 1_024;

/// Asks who has the VIP; `own` may be unspecified.
pub fn arp_request(mac: [u8; 6], own: Ipv4Addr, vip: Ipv4Addr) -> Vec<u8> {
    let request = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: own.octets(),
        target_mac: [0; 6],
        target_ipv4: vip.octets(),
    };
    let addresses = ALL.into_iter().chain(mac);
    addresses.chain(EtherType::ARP.0.to_be_bytes()).chain(request.to_bytes()).collect()
}

/// Who says that the VIP is his.
pub fn arp_answer(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let NetHeaders::Arp(arp) = PacketHeaders::from_ethernet_slice(frame).ok()?.net? else { return None };
    let arp = arp.try_eth_ipv4().ok()?;
    (arp.operation == ArpOperation::REPLY).then(|| (arp.sender_ipv4_addr(), arp.sender_mac))
}

/// A TCP packet without data: one that opens a connection, or one that ends it.
fn tcp(
    macs: ([u8; 6], [u8; 6]),
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    opens: bool,
) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), TTL),
        _ => return None,
    };
    let tcp = ip.tcp(from.port(), to.port(), sequence, WINDOW);
    let mut frame = Vec::new();
    let written = if opens { tcp.syn().write(&mut frame, &[]) } else { tcp.rst().write(&mut frame, &[]) };
    written.is_ok().then_some(frame)
}

/// Opens a connection to the VIP, straight at the host with this MAC address. MAC addresses: own, its.
pub fn opening(macs: ([u8; 6], [u8; 6]), from: SocketAddr, vip: SocketAddr) -> Option<Vec<u8>> {
    tcp(macs, from, vip, 1, true)
}

/// An answer to [`opening`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The VIP, which it comes from.
    pub vip: SocketAddr,
    /// Whom it is to.
    pub to: SocketAddr,
    /// Whether the connection is accepted; else it is refused.
    pub accepted: bool,
    /// The number that a packet which ends the connection has to bear.
    pub acknowledged: u32,
}

impl Answer {
    /// Ends the connection, so that nothing of it stays at the server.
    pub fn reset(&self, macs: ([u8; 6], [u8; 6])) -> Option<Vec<u8>> {
        tcp(macs, self.to, self.vip, self.acknowledged, false)
    }
}

/// The answer in a frame.
pub fn answer(frame: &[u8]) -> Option<Answer> {
    let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let (from, to) = addresses(&headers)?;
    let TransportHeader::Tcp(tcp) = headers.transport? else { return None };
    let accepted = tcp.syn && tcp.ack && !tcp.rst;
    (accepted || tcp.rst).then(|| Answer {
        vip: SocketAddr::new(from, tcp.source_port),
        to: SocketAddr::new(to, tcp.destination_port),
        accepted,
        acknowledged: tcp.acknowledgment_number,
    })
}

fn addresses(headers: &PacketHeaders<'_>) -> Option<(IpAddr, IpAddr)> {
    match headers.net.as_ref()? {
        NetHeaders::Ipv4(ip, _) => Some((ip.source.into(), ip.destination.into())),
        NetHeaders::Ipv6(ip, _) => Some((ip.source.into(), ip.destination.into())),
        NetHeaders::Arp(_) => None,
    }
}

/// An echo request to the VIP, by way of the host with this MAC address. MAC addresses: own, its.
pub fn ping(macs: ([u8; 6], [u8; 6]), from: IpAddr, vip: IpAddr, id: u16) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let mut frame = Vec::new();
    let written = match (from, vip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ethernet.ipv4(from.octets(), to.octets(), TTL).icmpv4_echo_request(id, 1).write(&mut frame, &[])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            ethernet.ipv6(from.octets(), to.octets(), TTL).icmpv6_echo_request(id, 1).write(&mut frame, &[])
        }
        _ => return None,
    };
    written.is_ok().then_some(frame)
}

/// The VIP whose echo request has come back with this frame, or was answered by it. `own` sent it.
pub fn ping_seen(frame: &[u8], own: [u8; 6], id: u16) -> Option<IpAddr> {
    let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let Some(LinkHeader::Ethernet2(ethernet)) = &headers.link else { return None };
    if ethernet.source == own {
        return None;
    }
    let (from, to) = addresses(&headers)?;
    let (is_answer, found) = match headers.transport? {
        TransportHeader::Icmpv4(icmp) => match icmp.icmp_type {
            Icmpv4Type::EchoReply(echo) => (true, echo.id),
            Icmpv4Type::EchoRequest(echo) => (false, echo.id),
            _ => return None,
        },
        TransportHeader::Icmpv6(icmp) => match icmp.icmp_type {
            Icmpv6Type::EchoReply(echo) => (true, echo.id),
            Icmpv6Type::EchoRequest(echo) => (false, echo.id),
            _ => return None,
        },
        _ => return None,
    };
    (found == id).then_some(if is_answer { from } else { to })
}
