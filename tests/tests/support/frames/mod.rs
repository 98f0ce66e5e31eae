//! The named frames: what comes in, what is expected of it.

mod answers;
pub mod echo;
pub mod expect;
mod extensions;
mod fragments;
mod malformed;
mod not_ours;
mod path;
mod plain;
pub mod tunnels;
mod vlans;
pub mod wire;

use etherparse::{IpHeaders, Ipv4Header, PacketBuilder, PacketBuilderStep};
use lb_common::verdict::Verdict;

pub use expect::Becomes;

use super::services::mac;

/// The MAC address of the interface that the frames are sent to.
pub const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub const VIP: [u8; 4] = [203, 0, 113, 10];

/// Offset of the IP header in an untagged frame.
pub const IP: usize = 14;
/// Offset of the transport header behind an IPv4 header without options.
pub const TRANSPORT: usize = 34;

/// A frame and what must become of it.
pub struct Named {
    pub name: String,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    pub becomes: Becomes,
    /// It must go to the backend that the frame before it in the table went to.
    pub follows: bool,
    /// It leaves on another interface.
    pub redirected: bool,
}

impl Named {
    fn new(name: impl Into<String>, frame: Vec<u8>, verdict: Verdict, becomes: Becomes) -> Self {
        Self { name: name.into(), frame, verdict, becomes, follows: false, redirected: false }
    }

    fn following(self) -> Self {
        Self { follows: true, ..self }
    }
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

/// Every frame of the table, in the order in which they must come: fragments follow their first, and what is told of a way
/// comes before what no longer fits it.
pub fn all() -> Vec<Named> {
    let mut frames = plain::frames();
    frames.extend(not_ours::frames());
    frames.extend(echo::frames());
    frames.extend(malformed::frames());
    frames.extend(extensions::frames());
    frames.extend(vlans::frames());
    frames.extend(tunnels::frames());
    frames.extend(fragments::frames());
    frames.extend(answers::frames());
    frames.extend(path::frames());
    frames
}

/// Those for a datapath that also tells senders whose packets may be fragmented.
pub fn all_told() -> Vec<Named> {
    answers::told_anyway()
}

/// With the MAC addresses of one of the plain services' backends (their last byte), otherwise as it came.
fn forward(name: impl Into<String>, frame: Vec<u8>, backends: &[u8]) -> Named {
    let sent = |last: &u8| [&[2, 0, 0, 0, 1, *last][..], &EDGE_MAC, &frame[12..]].concat();
    let sent = backends.iter().map(sent).collect();
    Named::new(name, frame, Verdict::Forward, Becomes::OneOf(sent))
}

/// As `leaves`, but for the MAC addresses, which are those of one of these servers.
fn to_server(name: impl Into<String>, frame: Vec<u8>, leaves: &[u8], servers: &[u8]) -> Named {
    let sent = |server: &u8| [&mac(*server)[..], &EDGE_MAC, &leaves[12..]].concat();
    let sent = servers.iter().map(sent).collect();
    Named::new(name, frame, Verdict::Forward, Becomes::OneOf(sent))
}

fn unchanged(name: impl Into<String>, frame: Vec<u8>, verdict: Verdict) -> Named {
    Named::new(name, frame, verdict, Becomes::Unchanged)
}

fn exactly(name: impl Into<String>, frame: Vec<u8>, verdict: Verdict, leaves: Vec<u8>) -> Named {
    Named::new(name, frame, verdict, Becomes::OneOf(vec![leaves]))
}

const WEB: &[u8] = &[1, 2];
const DNS: &[u8] = &[3, 4];
const ALL: &[u8] = &[5];
