//! Chance and what went before → frames of customers, answers to what left, errors about both, and nonsense.

use std::net::IpAddr;

use lb_common::datapath::Outcome;
use lb_common::net::Protocol;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::Wanted;

use super::dice::Dice;
use super::frames;
use super::nat_frames::{EDGE, Family, OTHER_ROUTER, ROUTER, addresses};
use super::packets::{ACK, Body, DESTINATION_OPTIONS, FIN, HOP_BY_HOP, Packet, Piece, ROUTING, RST, SYN};
use super::random_tables::HOSTS;

/// Packets that are remembered, to be answered or quoted.
const REMEMBERED: usize = 64;

/// The network around the balancer.
pub struct Around {
    named: Vec<Vec<u8>>,
    /// Where customers may send to.
    vips: Vec<(IpAddr, u16, Protocol)>,
    /// What customers sent.
    sent: Vec<Packet>,
    /// Frames that went to backends.
    left: Vec<Vec<u8>>,
    /// The packet of the frame that was made last, if it was a customer's.
    last: Option<Packet>,
}

impl Around {
    pub fn new() -> Self {
        let named = frames::all().into_iter().map(|named| named.frame).collect();
        Self { named, vips: vec![], sent: vec![], left: vec![], last: None }
    }

    /// Sends to these services from now on; what was sent before may still be answered.
    pub fn now(&mut self, wanted: &Wanted) {
        let vips = wanted.services.iter().flat_map(|service| &service.vips);
        self.sent.truncate(REMEMBERED / 8);
        self.vips = vips.map(|vip| (vip.address.to_ip(), vip.port, vip.protocol)).collect();
    }

    /// A frame.
    pub fn frame(&mut self, dice: &mut Dice) -> Vec<u8> {
        self.last = None;
        let mut frame = match dice.below(64) {
            0..40 => self.customer(dice),
            40..50 => self.answer(dice),
            50..58 => self.error(dice),
            58..60 => self.echo(dice),
            60..62 => dice.of(&self.named),
            62 => {
                let length = dice.below(200);
                dice.bytes(length)
            }
            _ => [&[EDGE, ROUTER].concat()[..], &dice.bytes(80)].concat(),
        };
        if dice.once_in(6) {
            mutate(dice, &mut frame);
        }
        frame
    }

    /// Is told what became of the frame made last.
    pub fn became(&mut self, dice: &mut Dice, outcome: &Outcome, frame: Vec<u8>) {
        if outcome.verdict == Verdict::Forward {
            remember(dice, &mut self.left, frame);
        }
        if let Some(packet) = self.last.take() {
            remember(dice, &mut self.sent, packet);
        }
    }

    fn customer(&mut self, dice: &mut Dice) -> Vec<u8> {
        if !self.sent.is_empty() && dice.once_in(2) {
            return self.again(dice);
        }
        let (to, port, protocol) = match dice.below(16) {
            0 => {
                let family = dice.of(&[Family::V4, Family::V6]);
                let host = dice.below(HOSTS) as u8;
                let to = dice.of(&[family.virtual_address(host), family.snat(host), family.server(host)]);
                (to, dice.of(&[53, 80, 443, 22]), dice.of(&[Protocol::TCP, Protocol::UDP]))
            }
            _ => dice.of(&self.vips),
        };
        let port = if port == 0 { dice.of(&[0, 53, 80, 8_443]) } else { port };
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let ports = [40_000 + dice.below(64) as u16, port];
        let payload = payload(dice);
        let body = match protocol {
            _ if dice.once_in(50) => Body::Other { protocol: dice.byte(), payload },
            Protocol::TCP => Body::Tcp { ports, flags: flags(dice), payload },
            _ => Body::Udp { ports, payload, checksum: !dice.once_in(4) },
        };
        let client = family.client(dice.below(4) as u8);
        let packet = unusual(dice, Packet::new([EDGE, ROUTER], client, to, body));
        self.last = Some(packet.clone());
        packet.frame()
    }

    /// The next packet of a flow, or the next fragment of a datagram.
    fn again(&mut self, dice: &mut Dice) -> Vec<u8> {
        let mut packet = dice.of(&self.sent);
        if let Some(Piece { offset, length, .. }) = &mut packet.piece {
            *offset += *length;
            return if *offset < 2_000 { packet.frame() } else { dice.of(&self.named) };
        }
        if let Body::Tcp { flags: old, payload: data, .. } = &mut packet.body {
            (*old, *data) = (flags(dice), payload(dice));
        }
        if dice.once_in(16) {
            packet = unusual(dice, packet);
        }
        self.last = Some(packet.clone());
        packet.frame()
    }

    /// What a backend answers to what was sent to it.
    fn answer(&mut self, dice: &mut Dice) -> Vec<u8> {
        let Some(frame) = (!self.left.is_empty()).then(|| dice.of(&self.left)) else {
            return self.customer(dice);
        };
        let Some((source, destination, [from, to])) = addresses(&frame) else {
            return self.customer(dice);
        };
        let (ports, payload) = ([to, from], payload(dice));
        let tcp = protocol_of(&frame) == Some(6);
        let body = if tcp {
            Body::Tcp { ports, flags: flags(dice) | ACK, payload }
        } else {
            Body::Udp { ports, payload, checksum: !dice.once_in(4) }
        };
        let mac: [u8; 6] = frame[..6].try_into().unwrap();
        let mut packet = Packet::new([EDGE, mac], destination, source, body);
        packet.tags = tags_of(&frame).to_vec();
        if dice.once_in(6) {
            packet = unusual(dice, packet);
        }
        if let (Some(piece), true) = (&mut packet.piece, dice.once_in(2)) {
            piece.offset += 64;
        }
        packet.frame()
    }

    /// An error about an answer, which comes to a VIP, or about what was sent to a backend.
    fn error(&mut self, dice: &mut Dice) -> Vec<u8> {
        let quoted = if dice.once_in(2) && !self.sent.is_empty() {
            let sent = dice.of(&self.sent);
            let [from, to] = sent.body.ports();
            let body = sent.body.with_ports([to, from]);
            let answer = Packet { source: sent.destination, destination: sent.source, body, ..sent };
            answer.packet()
        } else if let Some(frame) = (!self.left.is_empty()).then(|| dice.of(&self.left)) {
            frame[14 + tags_of(&frame).len()..].to_vec()
        } else {
            return self.customer(dice);
        };
        let v4 = quoted[0] >> 4 == 4;
        let (to, family) = if v4 {
            (IpAddr::from(<[u8; 4]>::try_from(&quoted[12..16]).unwrap()), Family::V4)
        } else {
            (IpAddr::from(<[u8; 16]>::try_from(&quoted[8..24]).unwrap()), Family::V6)
        };
        let [kind, code] = if v4 {
            dice.of(&[[3, 4], [3, 4], [3, 1], [11, 0], [12, 0], [4, 0], [5, 0]])
        } else {
            dice.of(&[[2, 0], [2, 0], [1, 4], [3, 0], [4, 0], [100, 0], [129, 0]])
        };
        let told: u32 = dice.of(&[1_400, 1_280, 576, 100, 0, 70_000]);
        let mut payload = quoted;
        payload.truncate(dice.of(&[8, 20, 24, 28, 28, 36, 48, 48, 64, 100, 200, 200, 1_200]));
        let rest = told.to_be_bytes();
        let mut packet =
            Packet::new([EDGE, ROUTER], family.router(), to, Body::Icmp { kind, code, rest, payload });
        if dice.once_in(12) {
            packet.hops = 1;
        }
        if dice.once_in(8) {
            packet = unusual(dice, packet);
        }
        packet.frame()
    }

    fn echo(&mut self, dice: &mut Dice) -> Vec<u8> {
        let (to, ..) = dice.of(&self.vips);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let kinds = if to.is_ipv4() { [8, 8, 8, 0, 13] } else { [128, 128, 128, 129, 135] };
        let body = Body::Icmp { kind: dice.of(&kinds), code: 0, rest: [0, 1, 0, 2], payload: payload(dice) };
        let packet = Packet::new([EDGE, ROUTER], family.client(1), to, body);
        if dice.once_in(8) { unusual(dice, packet).frame() } else { packet.frame() }
    }
}

fn remember<T>(dice: &mut Dice, all: &mut Vec<T>, one: T) {
    if all.len() < REMEMBERED {
        all.push(one);
    } else {
        let place = dice.below(REMEMBERED);
        all[place] = one;
    }
}

fn flags(dice: &mut Dice) -> u8 {
    dice.of(&[SYN, SYN, SYN | ACK, ACK, ACK, ACK, ACK | FIN, RST, SYN | FIN, 0])
}

fn payload(dice: &mut Dice) -> Vec<u8> {
    let length = match dice.below(16) {
        0 => 1_200 + dice.below(320),
        1 => dice.of(&[60, 500, 560, 3_000]),
        _ => dice.below(32),
    };
    dice.bytes(length)
}

/// The packet, with something unusual about it in one of three cases.
fn unusual(dice: &mut Dice, mut packet: Packet) -> Packet {
    match dice.below(32) {
        0 => packet.hops = dice.of(&[0, 1, 1, 2]),
        1 => packet.macs = [dice.of(&[OTHER_ROUTER, [0xff; 6]]), ROUTER],
        2 => packet.macs = [EDGE, OTHER_ROUTER],
        3 => packet.tags = vec![0x81, 0, 0x20, dice.of(&[100, 101])],
        4 => packet.tags = vec![0x88, 0xa8, 0, dice.of(&[100, 101]), 0x81, 0, 0, 7],
        5 | 6 if packet.destination.is_ipv4() => packet.extra = vec![1; dice.of(&[4, 8, 40])],
        5..8 if packet.destination.is_ipv6() => {
            let count = dice.of(&[1, 1, 2, 3, 6, 7]);
            let kinds = [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, DESTINATION_OPTIONS, 135];
            packet.extra = (0..count).map(|_| dice.of(&kinds)).collect();
        }
        8..12 => {
            let identification = dice.below(8) as u32;
            packet.piece = Some(Piece { identification, offset: 0, length: 64 });
            packet.body = packet.body.with_payload(vec![7; 1_000]);
            packet.dont_fragment = false;
        }
        12 => packet.dont_fragment = false,
        13 => packet.source = packet.destination,
        _ => {}
    }
    packet
}

fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    for _ in 0..dice.below(4) {
        let at = dice.below(100);
        let byte = dice.byte();
        if let Some(place) = frame.get_mut(at) {
            *place = if dice.once_in(2) { byte } else { *place ^ (1 << (byte & 7)) };
        }
    }
    if dice.once_in(4) {
        let length = dice.below(120);
        frame.resize(length, 0);
    }
}

/// The tags of a frame.
fn tags_of(frame: &[u8]) -> &[u8] {
    let mut end = 12;
    while matches!(frame.get(end..end + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        end += 4;
    }
    frame.get(12..end).unwrap_or_default()
}

fn protocol_of(frame: &[u8]) -> Option<u8> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    match sliced.transport? {
        etherparse::TransportSlice::Tcp(_) => Some(6),
        etherparse::TransportSlice::Udp(_) => Some(17),
        _ => None,
    }
}
