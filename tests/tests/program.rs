//! The program ring: named frames through the program in the kernel, without a network.

mod support;

use lb_common::abi::Traffic;
use lb_common::verdict::Verdict;
use lb_userspace::io::datapath::Datapath;

use support::frames::{self, Becomes, CLIENT, EDGE_MAC, Flags, VIP};
use support::parity::{SHORTEST, Twins};
use support::{hop, wanted};

/// The frame as it must leave, if it goes to the backend whose next hop ends in `last`.
fn sent_to(frame: &[u8], last: u8) -> Vec<u8> {
    let (destination, source) = hop(last).macs();
    [&destination, &source, &frame[12..]].concat()
}

#[test]
fn every_named_frame_meets_its_verdict() {
    let mut twins = Twins::new(&wanted());
    for named in frames::all() {
        assert!(named.frame.len() >= SHORTEST, "{}: too short to be run", named.name);
        twins.agree(&named.frame);
        let result = twins.through_kernel(&named.frame);
        assert_eq!(result.verdict, named.verdict, "{}", named.name);
        match named.becomes {
            Becomes::Unchanged => assert_eq!(result.frame, named.frame, "{}", named.name),
            Becomes::Exactly(frame) => assert_eq!(result.frame, frame, "{}", named.name),
            Becomes::SentTo(backends) => {
                let possible = backends.iter().any(|&last| result.frame == sent_to(&named.frame, last));
                assert!(possible, "{}: {:02x?}", named.name, result.frame);
            }
        }
        let action = match named.verdict.name().split('.').next() {
            Some("drop") => 1,
            Some("pass") => 2,
            _ => 3,
        };
        assert_eq!(result.action, action, "{}", named.name);
    }
}

/// Verdicts without a named frame: of what is new to the datapath, of translated flows, and those that no frame can bring
/// about by itself.
const ELSEWHERE: [Verdict; 15] = [
    Verdict::ForwardReturn,
    Verdict::ReplyTooBig,
    Verdict::ReplyTimeExceeded,
    Verdict::PassOtherHost,
    Verdict::PassPathMtu,
    Verdict::PassMalformedIpv6,
    Verdict::DropTooBig,
    Verdict::DropTimeExceeded,
    Verdict::DropIpv6Headers,
    Verdict::DropIcmpRate,
    Verdict::DropNatPorts,
    Verdict::DropNatTable,
    Verdict::DropNatSource,
    Verdict::DropHeadroom,
    Verdict::DropInconsistent,
];

#[test]
fn every_verdict_has_a_frame() {
    let frames = frames::all();
    for verdict in Verdict::ALL.iter().filter(|verdict| !ELSEWHERE.contains(verdict)) {
        assert!(frames.iter().any(|named| named.verdict == *verdict), "no frame for {}", verdict.name());
    }
}

#[test]
fn a_frame_for_another_hosts_mac_is_left_alone() {
    let mut twins = Twins::new(&wanted());
    let frame = frames::tcp(VIP, 80, Flags::Syn);
    twins.set_own_mac(EDGE_MAC);
    assert_eq!(twins.agree(&frame).verdict, Verdict::Forward);
    twins.set_own_mac([2, 0, 0, 0, 0, 99]);
    assert_eq!(twins.agree(&frame).verdict, Verdict::PassOtherHost);
    let elsewhere = frames::tcp([203, 0, 113, 99], 80, Flags::Syn);
    assert_eq!(twins.agree(&elsewhere).verdict, Verdict::PassNotVip);
}

/// A ring that names a backend of another service is a fault; it must cost the packet, not the boundary.
#[test]
fn a_ring_that_names_a_foreign_backend_forwards_nothing() {
    use lb_userspace::core::plan::Action;
    let mut twins = Twins::new(&wanted());
    let image = twins.kernel.tables().image();
    let (web, dns) = (image.service_id("web").unwrap(), image.service_id("dns").unwrap());
    let ring = image.services[&dns].ring.clone().unwrap().1;
    let slot = image.services[&web].ring.as_ref().unwrap().0;
    let action = Action::WriteRing { slot, ring };
    twins.kernel.apply(&action).unwrap();
    twins.memory.apply(&action).unwrap();
    let outcome = twins.agree(&frames::tcp(VIP, 80, Flags::Syn));
    assert_eq!(outcome.verdict, Verdict::DropInconsistent);
}

#[test]
fn traffic_is_counted_by_service_and_backend() {
    let mut twins = Twins::new(&wanted());
    let payload = [0; 100];
    let open = frames::tcp_from(frames::ipv4(CLIENT, VIP), 40_000, 80, Flags::Syn, b"");
    let data = frames::tcp_from(frames::ipv4(CLIENT, VIP), 40_000, 80, Flags::Ack, &payload);
    let outcome = twins.agree(&open);
    assert!(outcome.new_flow);
    assert!(!twins.agree(&data).new_flow);
    assert!(!twins.agree(&data).new_flow);
    let expected = Traffic { packets: 3, bytes: 40 + 2 * 140, new_flows: 1, padding: 0 };
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.backends[&outcome.backend], expected);
    assert_eq!(forwarded.services[&outcome.service], expected);
    assert_eq!(forwarded.all, expected);

    // What was counted stays when the backend goes, and when the service does.
    let mut wanted = wanted();
    let name = twins.kernel.tables().image().backends[&outcome.backend].name.clone();
    wanted.services[0].backends.retain(|backend| backend.name != name);
    support::apply(&mut twins.kernel, &wanted);
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.backends.get(&outcome.backend), None);
    assert_eq!(forwarded.services[&outcome.service], expected);
    wanted.services.remove(0);
    support::apply(&mut twins.kernel, &wanted);
    let forwarded = twins.kernel.forwarded().unwrap();
    assert_eq!(forwarded.services.get(&outcome.service), None);
    assert_eq!(forwarded.all, expected);
}

/// Bounds of the design: the program is far from the verifier's limit of a million instructions.
#[test]
fn the_verifier_is_content_with_the_program() {
    let mut twins = Twins::new(&wanted());
    let verified = twins.kernel.verified_instructions().unwrap().unwrap();
    println!("verified instructions: {verified}");
    assert!(verified < 500_000, "{verified}");
}
