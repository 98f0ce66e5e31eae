//! Any tables and any frames: each leaves with one verdict, and as that verdict says.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lb_common::abi::Forwarding;
use lb_common::datapath::Action;
use lb_common::net::Address;
use lb_common::verdict::Verdict;
use lb_userspace::core::image::LoadedBackend;

use super::bytes::Bytes;
use super::decap;
use super::frames::{self, Spec, damage, icmp_error, reflected};
use super::wire::{self, ICMP, ICMPV6, Ip, Sum, TCP, UDP};
use super::world::{INTERFACES, Sent, UNTAGGED, World};

/// Frames of one input.
const MAX_FRAMES: usize = 24;

pub fn check(input: &[u8]) {
    verdicts(input);
}

/// The same; yields the verdicts that were met.
pub fn verdicts(input: &[u8]) -> Vec<Verdict> {
    let mut met = Vec::new();
    run(input, |world, frame, interface, sent| {
        verify(world, frame, interface, sent);
        met.push(sent.outcome.verdict);
    });
    met
}

/// A packet that went into a tunnel: whether of GUE, whether it and the outer packet are IPv4, how many tags its frame had, and
/// whether it had IPv4 options or IPv6 extension headers.
pub type Tunnelled = (bool, bool, bool, usize, bool);

/// The packets that went into tunnels and came out again as they were.
pub fn tunnelled_packets(input: &[u8]) -> Vec<Tunnelled> {
    let mut tunnelled = Vec::new();
    run(input, |world, frame, interface, sent| {
        verify(world, frame, interface, sent);
        let backend = world.image.backends.get(&sent.outcome.backend);
        let mode = backend.map(|backend| backend.forwarding).unwrap_or_default();
        if let (Forwarding::Ipip | Forwarding::Gue, Some(ip)) = (mode, wire::ip(frame)) {
            let outer_v4 = wire::place(&sent.frame).is_some_and(|(_, v4)| v4);
            let bare = if ip.v4 { 20 } else { 40 };
            let more = ip.transport - ip.at > bare;
            tunnelled.push((mode == Forwarding::Gue, ip.v4, outer_v4, (ip.at - 14) / 4, more));
        }
    });
    tunnelled
}

/// Changes a bit of every frame that leaves: how many frames that is, and how many of them are found to be wrong.
pub fn noticed(input: &[u8]) -> (usize, usize) {
    let (mut changed, mut noticed) = (0, 0);
    run(input, |world, frame, interface, sent| {
        let length = sent.frame.len();
        if sent.outcome.action == Action::Drop || length == 0 {
            return;
        }
        let mut wrong = Sent { frame: sent.frame.clone(), ..*sent };
        wrong.frame[(changed * 31 + frame.len()) % length.min(100)] ^= 1 << (changed % 8);
        changed += 1;
        let verified = catch_unwind(AssertUnwindSafe(|| verify(world, frame, interface, &wrong)));
        noticed += usize::from(verified.is_err());
    });
    (changed, noticed)
}

/// Sends what an input says; `each` sees the world, a frame, the interface it came in on, and what became of it.
fn run(input: &[u8], mut each: impl FnMut(&World, &[u8], u32, &Sent)) {
    let mut bytes = Bytes::new(input);
    let mut world = World::any(&mut bytes);
    let mut last: Option<Vec<u8>> = None;
    let mut frames = 0;
    while !bytes.is_empty() && frames < MAX_FRAMES {
        let interface = bytes.pick(&[1, 1, 2, 3]);
        let mut frame = match (bytes.below(8), &last) {
            (0, _) => {
                world.change(&mut bytes);
                continue;
            }
            (1, _) => {
                let length = bytes.u8().into();
                bytes.slice(length).to_vec()
            }
            (2, Some(last)) => reflected(last),
            (3, Some(last)) => error_about(&mut bytes, last),
            _ => world.any_packet(&mut bytes).frame(),
        };
        if frame.len() >= 6 && !bytes.one_in(8) {
            let (_, mac) = INTERFACES[if interface == 2 { 1 } else { 0 }];
            frame[..6].copy_from_slice(&mac);
        }
        if bytes.one_in(4) {
            damage(&mut bytes, &mut frame);
        }
        let sent = world.send(&frame, interface);
        each(&world, &frame, interface, &sent);
        frames += 1;
        if sent.outcome.verdict.is_sent() {
            last = Some(sent.frame);
        }
    }
}

/// The error that a router on the way of a frame might send about it.
fn error_about(bytes: &mut Bytes<'_>, frame: &[u8]) -> Vec<u8> {
    let Some(ip) = wire::ip(frame) else { return frame.to_vec() };
    let packet = &frame[ip.at..];
    let mtu = bytes.pick(&[1_400, 600, 100]);
    let payload = icmp_error(bytes, ip.v4, mtu, packet);
    let spec = Spec {
        macs: [INTERFACES[0].1, frames::CLIENT_MAC],
        tags: vec![],
        source: address(ip.destination(frame)).to_ip(),
        destination: address(ip.source(frame)).to_ip(),
        tos: 0,
        ttl: 60,
        fragment: 0,
        options: 0,
        extensions: vec![],
        protocol: if ip.v4 { ICMP } else { ICMPV6 },
        payload,
        checksum: true,
    };
    if spec.source.is_ipv4() == spec.destination.is_ipv4() { spec.frame() } else { frame.to_vec() }
}

/// An address as it lies in a header.
pub fn address(bytes: &[u8]) -> Address {
    match bytes.try_into().map(|v4: [u8; 4]| Address::v4(v4)) {
        Ok(v4) => v4,
        Err(_) => {
            let v6: [u8; 16] = bytes.try_into().expect("an address");
            std::net::IpAddr::from(v6).into()
        }
    }
}

/// Whether a frame left as its verdict says.
fn verify(world: &World, frame: &[u8], interface: u32, sent: &Sent) {
    match sent.outcome.verdict {
        Verdict::Forward => forwarded(world, frame, interface, sent),
        Verdict::ForwardReturn => returned(world, frame, sent),
        Verdict::ReplyIcmpEcho => echoed(frame, sent),
        Verdict::ReplyTooBig | Verdict::ReplyTimeExceeded => told(frame, sent),
        _ if sent.outcome.action == Action::Pass => assert_eq!(sent.frame, frame, "left as it came"),
        // The ring still names a backend that was disabled: no agent leaves it so.
        Verdict::DropInconsistent => assert!(world.has_stale_ring()),
        verdict => assert!(verdict.is_dropped(), "{verdict:?}"),
    }
}

fn forwarded(world: &World, frame: &[u8], interface: u32, sent: &Sent) {
    let backend = &world.image.backends[&sent.outcome.backend];
    assert_eq!(backend.service, sent.outcome.service, "a backend of the service");
    assert!(backend.enabled, "no packet goes to a disabled backend");
    let hop = sent.hop.expect("it was sent to a next hop");
    assert_eq!(Some(hop), backend.hop);
    let (to, from) = hop.macs();
    assert_eq!(sent.frame[..12], [to, from].concat());
    let expected = if hop.interface == interface { 0 } else { hop.interface };
    assert_eq!(sent.outcome.interface, expected);
    let (before, after) = (wire::ip(frame).expect("IP"), wire::ip(&sent.frame).expect("IP"));
    tagged(frame, &sent.frame, before.at, after.at, hop.vlan);
    assert_eq!(usize::from(sent.outcome.bytes), before.total.min(0xffff));
    match backend.forwarding {
        Forwarding::L2Dsr => {
            assert_eq!(sent.frame[after.at..], frame[before.at..], "the packet is untouched")
        }
        Forwarding::Ipip | Forwarding::Gue => {
            tunnelled(backend, &sent.frame, &after);
            let unwrapped = decap::unwrapped(&sent.frame).expect("a backend takes it");
            assert_eq!(unwrapped[..after.at - 2], sent.frame[..after.at - 2]);
            assert_eq!(unwrapped[after.at - 2..], frame[before.at - 2..], "the packet is untouched");
        }
        Forwarding::Nat => {
            assert_eq!(address(after.destination(&sent.frame)), backend.address);
            translated(frame, &before, &sent.frame, &after);
        }
    }
}

/// Whether a frame has the tags that its next hop needs.
fn tagged(frame: &[u8], left: &[u8], before: usize, after: usize, vlan: u16) {
    let id = |frame: &[u8], at| if at == 14 { UNTAGGED } else { wire::half(frame, 14).unwrap_or(0) & 0xfff };
    if vlan == 0 || vlan == id(frame, before) {
        assert_eq!(left[12..after - 2], frame[12..before - 2], "the same tags");
    } else {
        assert_eq!(id(left, after), vlan);
    }
}

/// Whether the outer header is one to this backend, with a right checksum.
fn tunnelled(backend: &LoadedBackend, left: &[u8], ip: &Ip) {
    assert_eq!(address(ip.destination(left)), backend.address);
    assert_ne!(ip.header_sum(left), Sum::Wrong);
    if backend.forwarding == Forwarding::Gue {
        assert_eq!(ip.protocol, UDP);
        let port = wire::half(left, ip.transport).expect("a port");
        assert!(port >= 0xc000, "a port of the dynamic range");
    }
}

fn returned(world: &World, frame: &[u8], sent: &Sent) {
    let (before, after) = (wire::ip(frame).expect("IP"), wire::ip(&sent.frame).expect("IP"));
    let from = address(after.source(&sent.frame));
    let mut services = world.wanted.services.iter().filter(|service| service.forwarding == Forwarding::Nat);
    assert!(services.any(|service| service.vips[0].address == from), "{from:?} is a VIP");
    translated(frame, &before, &sent.frame, &after);
}

/// Whether a packet differs only in what a translation changes, and its checksums changed with that.
fn translated(frame: &[u8], before: &Ip, left: &[u8], after: &Ip) {
    assert_eq!(after.ttl(left), before.ttl(frame) - 1);
    assert_eq!(
        (before.total, before.protocol, before.fragment),
        (after.total, after.protocol, after.fragment)
    );
    assert_eq!(before.transport - before.at, after.transport - after.at);
    // Time to live, checksum and addresses apart.
    let (old, new) = (&frame[before.at..before.transport], &left[after.at..after.transport]);
    let may = |at: usize| if before.v4 { at == 8 || (10..20).contains(&at) } else { (7..40).contains(&at) };
    assert!((0..old.len()).all(|at| may(at) || old[at] == new[at]), "the header is untouched");
    kept(frame, before, left, after);
    let ported = before.protocol == TCP || before.protocol == UDP;
    let absent = before.protocol == UDP && wire::half(before.payload(frame), 6) == Some(0);
    if before.later {
        assert_eq!(before.payload(frame), after.payload(left));
    } else if !(absent || before.protocol == ICMP && before.v4) {
        assert_eq!(before.residue(frame), after.residue(left), "the checksum changed with the rest");
    }
    if ported && !before.later {
        // Ports and checksum apart.
        let (old, new) = (before.payload(frame), after.payload(left));
        let sum = if before.protocol == TCP { 16..18 } else { 6..8 };
        let same = |at: &usize| *at < 4 || sum.contains(at) || old[*at] == new[*at];
        assert!((0..old.len()).all(|at| same(&at)), "the payload is untouched");
        if absent {
            assert_eq!(wire::half(new, 6), Some(0), "no checksum stays none");
        }
    }
}

/// Whether checksums that were right are right, and those that were not there are not there.
fn kept(frame: &[u8], before: &Ip, left: &[u8], after: &Ip) {
    let sums = |ip: &Ip, frame: &[u8]| [ip.header_sum(frame), ip.transport_sum(frame)];
    assert_eq!(sums(before, frame), sums(after, left), "checksums: {frame:02x?} → {left:02x?}");
}

fn echoed(frame: &[u8], sent: &Sent) {
    let (before, after) = (wire::ip(frame).expect("IP"), wire::ip(&sent.frame).expect("IP"));
    assert_eq!(sent.frame.len(), frame.len());
    assert_eq!((&frame[..6], &frame[6..12]), (&sent.frame[6..12], &sent.frame[..6]));
    assert_eq!(before.source(frame), after.destination(&sent.frame));
    assert_eq!(before.destination(frame), after.source(&sent.frame));
    assert_eq!(before.payload(frame)[4..], after.payload(&sent.frame)[4..]);
    kept(frame, &before, &sent.frame, &after);
}

/// Whether the frame is an error to the sender that quotes its packet.
fn told(frame: &[u8], sent: &Sent) {
    let (before, after) = (wire::ip(frame).expect("IP"), wire::ip(&sent.frame).expect("IP"));
    assert_eq!(before.source(frame), after.destination(&sent.frame));
    assert_eq!(before.destination(frame), after.source(&sent.frame));
    assert_eq!((&frame[..6], &frame[6..12]), (&sent.frame[6..12], &sent.frame[..6]));
    assert_ne!(after.header_sum(&sent.frame), Sum::Wrong);
    assert_eq!(after.transport_sum(&sent.frame), Sum::Right);
    let quoted = &after.payload(&sent.frame)[8..];
    assert!(frame[before.at..].starts_with(quoted) && quoted.len() >= 28, "it quotes the packet");
}
