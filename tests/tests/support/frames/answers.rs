//! Packets that are too big for a tunnel: answered, or dropped where no answer may go.

use std::net::IpAddr;

use lb_common::verdict::Verdict::{DropTooBig, ReplyTooBig};

use super::tunnels::{combinations, of_bytes, packet};
use super::wire::{Family, MF, Packet, TCP, UDP, framed, ip_bytes, returned};
use super::{IP, Named, exactly, patched, unchanged};
use crate::support::services::{BOUNDLESS, JUMBO, TUNNELS};

/// Bytes that are quoted at most.
const QUOTE: usize = 256;

/// Says that the packet is too big, and how big it might be; from where it was to go.
fn told(packet: &Packet, tags: &[u8], mtu: usize) -> Vec<u8> {
    let bytes = packet.bytes();
    let quote = &bytes[..QUOTE.min(bytes.len())];
    let mtu = u16::try_from(mtu).unwrap().to_be_bytes();
    let kind = if packet.from.is_ipv4() { [3, 4] } else { [2, 0] };
    let answer = Packet::icmp(packet.to, packet.from, kind, [0, 0, mtu[0], mtu[1]], quote);
    returned(tags, &Packet { hops: 64, ..answer }.bytes())
}

/// The packet comes, and its sender is told.
pub fn answered(name: impl Into<String>, packet: &Packet, mtu: usize) -> Named {
    exactly(name, packet.frame(), ReplyTooBig, told(packet, &[], mtu))
}

pub fn frames() -> Vec<Named> {
    let mut frames = Vec::new();
    for (tunnel, family, protocol, name) in combinations() {
        let room = tunnel.room();
        let big = of_bytes(&tunnel, family, protocol, room + 1);
        frames.push(answered(format!("{name}, a byte too big"), &big, room));
        if family == Family::V4 {
            let big = Packet { fragmentation: 0, ..big.clone() };
            frames.push(unchanged(format!("{name}, too big, may be fragmented"), big.frame(), DropTooBig));
        }
        frames.extend(unanswered(&big, &name));
        let tags = [0x88, 0xa8, 0, 0x64, 0x81, 0, 0, 0x65];
        let name = format!("{name}, too big on two VLANs");
        frames.push(exactly(name, big.tagged(&tags), ReplyTooBig, told(&big, &tags, room)));
    }
    for family in [Family::V4, Family::V6] {
        let big = of_bytes(&JUMBO, family, TCP, 8_949);
        frames.push(answered(format!("{}: too big for a jumbo frame", family.name()), &big, 8_948));
    }
    frames.extend(beyond_all_bounds());
    frames
}

/// From where no answer goes.
fn unanswered(big: &Packet, name: &str) -> Vec<Named> {
    let nobody: &[&str] = match Family::of(big.from) {
        Family::V4 => &["224.0.0.9", "255.255.255.255", "127.0.0.1", "0.0.0.0"],
        Family::V6 => &["ff02::9", "::"],
    };
    let mut froms: Vec<IpAddr> = nobody.iter().map(|from| from.parse().unwrap()).collect();
    froms.push(big.to);
    let one = |from: IpAddr| {
        let big = Packet { from, ..big.clone() };
        unchanged(format!("{name}, too big, from {from}"), big.frame(), DropTooBig)
    };
    // One tunnel is enough for all of them.
    if big.to == Family::of(big.to).vip(TUNNELS[0].vip) {
        froms.into_iter().map(one).collect()
    } else {
        vec![]
    }
}

/// Lengths that, together with what goes in front, no header can say.
fn beyond_all_bounds() -> Vec<Named> {
    let mut frames = Vec::new();
    for tunnel in &BOUNDLESS {
        let small = packet(tunnel, Family::V4, UDP, b"question");
        let frame = patched(small.frame(), IP + 2, &[0xff, 0xff]);
        let mtu = 65_535 - tunnel.overhead();
        let quoted = &frame[IP..];
        let quote = &quoted[..quoted.len() & !3];
        assert_eq!(ip_bytes(quoted), 65_535);
        let rest = u32::try_from(mtu).unwrap().to_be_bytes();
        let answer = Packet::icmp(small.to, small.from, [3, 4], rest, quote);
        let answer = Packet { hops: 64, ..answer }.bytes();
        let name = format!("65,535 bytes through {}", tunnel.name());
        frames.push(exactly(name, framed(&[], quoted), ReplyTooBig, returned(&[], &answer)));
    }
    frames
}

/// The same where senders are told whose packets may be fragmented: IPv4 without DF.
pub fn told_anyway() -> Vec<Named> {
    let mut frames = Vec::new();
    for (tunnel, family, protocol, name) in combinations() {
        let room = tunnel.room();
        let big = of_bytes(&tunnel, family, protocol, room + 1);
        frames.push(answered(format!("{name}, a byte too big"), &big, room));
        if family == Family::V6 {
            continue;
        }
        let may_fragment = Packet { fragmentation: 0, ..big };
        frames.push(answered(format!("{name}, too big, may be fragmented"), &may_fragment, room));
        let first = Packet { fragmentation: MF, identification: 3, ..may_fragment.clone() };
        frames.push(answered(format!("{name}, a first fragment too big"), &first, room));
        let later = Packet { fragmentation: 185, identification: 3, ..may_fragment };
        frames.push(unchanged(format!("{name}, a later fragment too big"), later.frame(), DropTooBig));
    }
    frames
}
