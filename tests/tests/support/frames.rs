//! The named frames: what comes in, what is expected of it.

use etherparse::{IpHeaders, Ipv4Header, PacketBuilder, PacketBuilderStep, VlanId};
use lb_common::verdict::Verdict;

/// The MAC address of the interface that the frames are sent to.
pub const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub const VIP: [u8; 4] = [203, 0, 113, 10];

/// Offset of the IPv4 header in an untagged frame.
pub const IP: usize = 14;
/// Offset of the transport header behind an IPv4 header without options.
pub const TRANSPORT: usize = 34;

/// A frame and what must become of it.
pub struct Named {
    pub name: &'static str,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    pub becomes: Becomes,
}

/// What leaves.
#[derive(Clone, Debug)]
pub enum Becomes {
    /// The frame as it came.
    Unchanged,
    /// The frame with the MAC addresses of one of these backends (their last byte), otherwise as it came.
    SentTo(&'static [u8]),
    /// Exactly this frame.
    Exactly(Vec<u8>),
}

/// A TCP segment's flags.
#[derive(Clone, Copy, Debug)]
pub enum Flags {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

type Ip = PacketBuilderStep<IpHeaders>;

pub fn ipv4(from: [u8; 4], to: [u8; 4]) -> Ip {
    let header = Ipv4Header { source: from, destination: to, time_to_live: 60, ..Ipv4Header::default() };
    PacketBuilder::ethernet2(CLIENT_MAC, EDGE_MAC).ip(IpHeaders::Ipv4(header, Default::default()))
}

pub fn tcp_from(ip: Ip, source: u16, destination: u16, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let tcp = ip.tcp(source, destination, 1_000, 65_535);
    let tcp = match flags {
        Flags::Syn => tcp.syn(),
        Flags::SynAck => tcp.syn().ack(1),
        Flags::Ack => tcp.ack(1),
        Flags::Fin => tcp.fin().ack(1),
        Flags::Rst => tcp.rst(),
    };
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

pub fn tcp(to: [u8; 4], port: u16, flags: Flags) -> Vec<u8> {
    tcp_from(ipv4(CLIENT, to), 40_000, port, flags, b"")
}

pub fn udp(to: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    ipv4(CLIENT, to).udp(40_000, port).write(&mut frame, b"question").unwrap();
    frame
}

fn echo(from: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ipv4(from, VIP).icmpv4_echo_request(7, 1).write(&mut frame, payload).unwrap();
    frame
}

/// The answer to [`echo`], built from scratch: all checksums are full computations.
fn echo_reply(payload: &[u8]) -> Vec<u8> {
    let header = Ipv4Header { source: VIP, destination: CLIENT, time_to_live: 64, ..Ipv4Header::default() };
    let ip = PacketBuilder::ethernet2(EDGE_MAC, CLIENT_MAC).ip(IpHeaders::Ipv4(header, Default::default()));
    let mut frame = Vec::new();
    ip.icmpv4_echo_reply(7, 1).write(&mut frame, payload).unwrap();
    frame
}

/// The frame with these bytes at `offset`.
fn patched(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// The frame with these bytes inserted behind the MAC addresses.
fn tagged(frame: Vec<u8>, tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

fn with_options(to: [u8; 4], options: &[u8]) -> Vec<u8> {
    let mut header =
        Ipv4Header { source: CLIENT, destination: to, time_to_live: 60, ..Ipv4Header::default() };
    header.options = options.try_into().unwrap();
    let ip = PacketBuilder::ethernet2(CLIENT_MAC, EDGE_MAC).ip(IpHeaders::Ipv4(header, Default::default()));
    tcp_from(ip, 40_000, 80, Flags::Syn, b"")
}

/// Every frame of the table.
pub fn all() -> Vec<Named> {
    let mut frames = Vec::new();
    frames.extend(forwarded());
    frames.extend(not_ours());
    frames.extend(icmp());
    frames.extend(malformed());
    frames.extend(dropped());
    frames
}

fn named(name: &'static str, frame: Vec<u8>, verdict: Verdict, becomes: Becomes) -> Named {
    Named { name, frame, verdict, becomes }
}

fn forward(name: &'static str, frame: Vec<u8>, backends: &'static [u8]) -> Named {
    named(name, frame, Verdict::Forward, Becomes::SentTo(backends))
}

fn unchanged(name: &'static str, frame: Vec<u8>, verdict: Verdict) -> Named {
    named(name, frame, verdict, Becomes::Unchanged)
}

const WEB: &[u8] = &[1, 2];
const DNS: &[u8] = &[3, 4];
const ALL: &[u8] = &[5];

fn forwarded() -> Vec<Named> {
    let jumbo = tcp_from(ipv4(CLIENT, VIP), 40_000, 80, Flags::Ack, &[7; 3_000]);
    let padded = [tcp(VIP, 80, Flags::Ack), vec![0; 6]].concat();
    let no_checksum = patched(udp(VIP, 53), TRANSPORT + 6, &[0, 0]);
    let tag = [0x81, 0x00, 0x00, 0x64];
    let double_tag = [0x88, 0xa8, 0x00, 0x64, 0x81, 0x00, 0x00, 0x65];
    vec![
        forward("tcp syn", tcp(VIP, 80, Flags::Syn), WEB),
        forward("tcp syn with the second VIP", tcp([203, 0, 113, 11], 80, Flags::Syn), WEB),
        forward(
            "tcp ack of a flow never seen",
            tcp_from(ipv4(CLIENT, VIP), 40_001, 80, Flags::Ack, b"GET /"),
            WEB,
        ),
        forward("tcp syn ack", tcp(VIP, 80, Flags::SynAck), WEB),
        forward("tcp fin", tcp(VIP, 80, Flags::Fin), WEB),
        forward("tcp rst", tcp(VIP, 80, Flags::Rst), WEB),
        forward("tcp from port 0", tcp_from(ipv4(CLIENT, VIP), 0, 80, Flags::Syn, b""), WEB),
        forward("tcp of 3000 bytes", jumbo, WEB),
        forward("tcp, padded to 60 bytes", padded, WEB),
        forward("tcp behind IPv4 options of 4 bytes", with_options(VIP, &[1; 4]), WEB),
        forward("tcp behind IPv4 options of 40 bytes", with_options(VIP, &[1; 40]), WEB),
        forward("tcp with one VLAN tag", tagged(tcp(VIP, 80, Flags::Syn), &tag), WEB),
        forward("tcp with two VLAN tags", tagged(tcp(VIP, 80, Flags::Syn), &double_tag), WEB),
        forward("tcp with DF", patched(tcp(VIP, 80, Flags::Ack), IP + 6, &[0x40, 0]), WEB),
        forward("tcp with TTL 1", patched(tcp(VIP, 80, Flags::Ack), IP + 8, &[1]), WEB),
        forward("tcp with a wrong checksum", patched(tcp(VIP, 80, Flags::Ack), TRANSPORT + 16, &[1, 2]), WEB),
        forward("udp", udp(VIP, 53), DNS),
        forward("udp without a checksum", no_checksum, DNS),
        forward("tcp to a VIP of every port", tcp([203, 0, 113, 20], 8_443, Flags::Syn), ALL),
        forward("tcp to port 0 of a VIP of every port", tcp([203, 0, 113, 20], 0, Flags::Syn), ALL),
    ]
}

fn not_ours() -> Vec<Named> {
    use Verdict::{PassFragment, PassNotIp, PassNotVip};
    let ipv6 = {
        let mut frame = Vec::new();
        let ip = PacketBuilder::ethernet2(CLIENT_MAC, EDGE_MAC).ipv6([1; 16], [2; 16], 64);
        ip.tcp(1, 80, 1, 1).write(&mut frame, b"").unwrap();
        frame
    };
    let mut tagged_arp = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, EDGE_MAC)
        .single_vlan(VlanId::try_new(9).unwrap())
        .ipv4(CLIENT, [10, 0, 0, 1], 9)
        .udp(1, 2)
        .write(&mut tagged_arp, b"")
        .unwrap();
    let more_fragments = |to, port| patched(tcp(to, port, Flags::Ack), IP + 6, &[0x20, 0]);
    let later_fragment = || patched(tcp(VIP, 80, Flags::Ack), IP + 6, &[0, 0xb9]);
    let three_tags = [0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3];
    vec![
        unchanged("arp", patched(vec![0; 60], 12, &[8, 6]), PassNotIp),
        unchanged("lldp", patched(vec![0; 60], 12, &[0x88, 0xcc]), PassNotIp),
        unchanged("an 802.3 length", patched(vec![0; 60], 12, &[0, 40]), PassNotIp),
        unchanged("three VLAN tags", tagged(tcp(VIP, 80, Flags::Syn), &three_tags), PassNotIp),
        unchanged("ipv6", ipv6, PassNotVip),
        unchanged("tcp to another address", tcp([203, 0, 113, 99], 80, Flags::Syn), PassNotVip),
        unchanged("tcp to another port of a VIP", tcp(VIP, 22, Flags::Syn), PassNotVip),
        unchanged("udp to a TCP port of a VIP", udp(VIP, 80), PassNotVip),
        unchanged("tcp to a UDP port of a VIP", tcp(VIP, 53, Flags::Syn), PassNotVip),
        unchanged("udp to an address with all TCP ports", udp([203, 0, 113, 20], 80), PassNotVip),
        unchanged("a tagged packet to the host", tagged_arp, PassNotVip),
        unchanged("sctp to a VIP", patched(tcp(VIP, 80, Flags::Syn), IP + 9, &[132]), PassNotVip),
        unchanged(
            "a later fragment of nothing known",
            patched(later_fragment(), IP + 4, &[0xaa, 1]),
            Verdict::DropFragment,
        ),
        forward("a first fragment to a VIP", more_fragments(VIP, 80), WEB),
        forward("a later fragment to a VIP", later_fragment(), WEB),
        forward("a fragment to a VIP of every port", more_fragments([203, 0, 113, 20], 80), ALL),
        unchanged(
            "a first fragment to another port of a VIP",
            patched(more_fragments(VIP, 22), IP + 4, &[0xaa, 2]),
            PassNotVip,
        ),
        unchanged(
            "a later fragment to another port of a VIP",
            patched(later_fragment(), IP + 4, &[0xaa, 2]),
            PassFragment,
        ),
        unchanged(
            "a fragment to another address",
            patched(tcp([10, 0, 0, 1], 80, Flags::Ack), IP + 6, &[0x20, 0]),
            PassNotVip,
        ),
    ]
}

fn icmp() -> Vec<Named> {
    use Verdict::{PassIcmp, PassNotVip, ReplyIcmpEcho};
    let big = [0x5a; 1_400];
    let to_host = patched(echo(CLIENT, b"ping"), IP + 16, &[10, 0, 0, 1]);
    let fragment = patched(echo(CLIENT, b"ping"), IP + 6, &[0x20, 0]);
    vec![
        named("ping to a VIP", echo(CLIENT, b"ping"), ReplyIcmpEcho, Becomes::Exactly(echo_reply(b"ping"))),
        named("ping without data", echo(CLIENT, b""), ReplyIcmpEcho, Becomes::Exactly(echo_reply(b""))),
        named("ping of 1400 bytes", echo(CLIENT, &big), ReplyIcmpEcho, Becomes::Exactly(echo_reply(&big))),
        unchanged("ping to the host", to_host, PassNotVip),
        unchanged("an echo reply to a VIP", patched(echo(CLIENT, b"x"), TRANSPORT, &[0]), PassIcmp),
        unchanged("unreachable to a VIP", patched(echo(CLIENT, b"x"), TRANSPORT, &[3, 4]), PassIcmp),
        unchanged("an echo request with code 1", patched(echo(CLIENT, b"x"), TRANSPORT, &[8, 1]), PassIcmp),
        unchanged("ping from the VIP itself", echo(VIP, b"x"), PassIcmp),
        unchanged("ping from broadcast", echo([255; 4], b"x"), PassIcmp),
        unchanged("ping from multicast", echo([224, 0, 0, 1], b"x"), PassIcmp),
        unchanged("ping from loopback", echo([127, 0, 0, 1], b"x"), PassIcmp),
        unchanged("ping from nowhere", echo([0; 4], b"x"), PassIcmp),
        unchanged("a fragment of a ping", fragment, PassIcmp),
    ]
}

fn malformed() -> Vec<Named> {
    use Verdict::{PassMalformedEthernet, PassMalformedIpv4, PassMalformedTransport};
    let syn = || tcp(VIP, 80, Flags::Syn);
    let tag_cut = cut(tagged(syn(), &[0x81, 0, 0, 1]), 15);
    let total = |length: u16| patched(syn(), IP + 2, &length.to_be_bytes());
    let udp_total = patched(udp(VIP, 53), IP + 2, &27_u16.to_be_bytes());
    let icmp_total = patched(echo(CLIENT, b""), IP + 2, &27_u16.to_be_bytes());
    vec![
        unchanged("cut within a VLAN tag", tag_cut, PassMalformedEthernet),
        unchanged("cut behind the Ethernet header", cut(syn(), 14), PassMalformedIpv4),
        unchanged("cut within the IPv4 header", cut(syn(), 33), PassMalformedIpv4),
        unchanged("IP version 5", patched(syn(), IP, &[0x55]), PassMalformedIpv4),
        unchanged("a header of 16 bytes", patched(syn(), IP, &[0x44]), PassMalformedIpv4),
        unchanged("a total length of 0", total(0), PassMalformedIpv4),
        unchanged("a total length below the header's", total(19), PassMalformedIpv4),
        unchanged("no room for TCP by the total length", total(39), PassMalformedTransport),
        unchanged("cut within the TCP header", cut(syn(), 53), PassMalformedTransport),
        unchanged("options beyond the frame", patched(syn(), IP, &[0x4f]), PassMalformedIpv4),
        unchanged(
            "options up to the frame's end",
            patched(patched(syn(), IP, &[0x4a]), IP + 2, &[0, 60]),
            PassMalformedTransport,
        ),
        unchanged("no room for UDP by the total length", udp_total, PassMalformedTransport),
        unchanged("cut within the UDP header", cut(udp(VIP, 53), 41), PassMalformedTransport),
        unchanged("no room for ICMP by the total length", icmp_total, PassMalformedTransport),
        unchanged("cut within the ICMP header", cut(echo(CLIENT, b""), 41), PassMalformedTransport),
    ]
}

fn dropped() -> Vec<Named> {
    use Verdict::{DropNoBackend, DropNoNextHop};
    vec![
        unchanged("a service without backends", tcp([203, 0, 113, 30], 80, Flags::Syn), DropNoBackend),
        unchanged("a backend without a next hop", tcp([203, 0, 113, 40], 80, Flags::Syn), DropNoNextHop),
    ]
}
