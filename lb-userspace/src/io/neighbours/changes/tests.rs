use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::*;

const A: Mac = [2, 0, 0, 0, 0, 1];
const B: Mac = [2, 0, 0, 0, 0, 2];

fn entry(state: NeighbourState, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = message::neighbour_at(7, "10.0.1.11".parse().unwrap());
    message.header.state = state;
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

fn neighbour(state: NeighbourState, mac: Option<Mac>) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(entry(state, mac))
}

fn gone(mac: Option<Mac>) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(entry(NeighbourState::Failed, mac))
}

fn link(mac: Mac, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = rtnetlink::packet_route::link::LinkLayerType::Ether;
    message.header.flags = flags;
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message
}

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[test]
fn neighbour_is_news_when_its_usable_mac_changes() {
    use NeighbourState::{Delay, Failed, Probe, Reachable, Stale};
    let mut seen = Seen::default();
    for (message, news) in [
        (neighbour(Reachable, Some(A)), true),
        (neighbour(Stale, Some(A)), false),
        (neighbour(Delay, Some(A)), false),
        (neighbour(Probe, Some(A)), false),
        (neighbour(Stale, Some(B)), true),
        (neighbour(Failed, Some(B)), true),
        (neighbour(Failed, None), false),
        (neighbour(Reachable, Some(B)), true),
        (gone(Some(B)), true),
    ] {
        assert_eq!(seen.note(&message), news, "{message:?}");
    }
    assert!(seen.neighbours.is_empty());
}

#[test]
fn unanswered_neighbour_is_news_once() {
    let mut seen = Seen::default();
    assert!(seen.note(&neighbour(NeighbourState::Failed, None)));
    assert!(!seen.note(&neighbour(NeighbourState::Failed, None)));
    assert!(!seen.note(&gone(None)), "it was of no use before either");
    assert!(seen.note(&gone(Some(A))), "never seen: it may have been in use");
}

#[test]
fn link_is_news_when_its_address_or_state_changes() {
    let up = LinkFlags::Up | LinkFlags::Running;
    let mut seen = Seen::default();
    for (message, news) in [
        (RouteNetlinkMessage::NewLink(link(A, up)), true),
        (RouteNetlinkMessage::NewLink(link(A, up)), false),
        (RouteNetlinkMessage::NewLink(link(B, up)), true),
        (RouteNetlinkMessage::NewLink(link(B, LinkFlags::Up)), true),
        (RouteNetlinkMessage::DelLink(link(B, LinkFlags::Up)), true),
        (RouteNetlinkMessage::NewLink(link(B, LinkFlags::Up)), true),
    ] {
        assert_eq!(seen.note(&message), news, "{message:?}");
    }
    let mut port = link(A, up);
    port.header.interface_family = AddressFamily::Bridge;
    assert!(!seen.note(&RouteNetlinkMessage::NewLink(port)));
}

#[test]
fn routes_are_news_unless_cloned() {
    let mut route = message::route_to("10.0.1.11".parse().unwrap());
    let mut seen = Seen::default();
    assert!(seen.note(&RouteNetlinkMessage::NewRoute(route.clone())));
    assert!(seen.note(&RouteNetlinkMessage::DelRoute(route.clone())));
    route.header.flags = RouteFlags::Cloned;
    assert!(!seen.note(&RouteNetlinkMessage::NewRoute(route)));
}

#[test]
fn every_message_of_a_datagram_counts_and_unreadable_ones_may_be_news() {
    let mut seen = Seen::default();
    let repeated = bytes(neighbour(NeighbourState::Reachable, Some(A)));
    assert!(seen.note_datagram(&repeated));
    assert!(!seen.note_datagram(&repeated));
    let moved = bytes(neighbour(NeighbourState::Reachable, Some(B)));
    assert!(seen.note_datagram(&[repeated.clone(), moved.clone()].concat()));
    assert!(!seen.note_datagram(&moved));
    assert!(seen.note_datagram(&moved[..moved.len() - 1]), "truncated");
    assert!(seen.note_datagram(&[0; 3]), "no header");
    let mut unknown = moved;
    unknown[4..6].copy_from_slice(&0x7fffu16.to_ne_bytes());
    assert!(seen.note_datagram(&unknown), "unknown type");
    assert!(!seen.note_datagram(&[]));
}

#[tokio::test(start_paused = true)]
async fn hints_are_coalesced_spaced_and_the_last_is_kept() {
    let (sender, receiver) = watch::channel(0);
    let mut changes = Changes::new(receiver);
    let began = Instant::now();
    sender.send_modify(|count| *count += 1);
    sender.send_modify(|count| *count += 1);
    assert_eq!(changes.next().await, Some(Changed));
    assert_eq!(began.elapsed(), Duration::ZERO, "the first comes at once");
    sender.send_modify(|count| *count += 1);
    let cancelled = tokio::time::timeout(SPACING / 2, changes.next()).await;
    assert!(cancelled.is_err(), "not sooner than the spacing");
    assert_eq!(changes.next().await, Some(Changed), "and not lost by cancelling");
    assert_eq!(began.elapsed(), SPACING);
    let quiet = tokio::time::timeout(SPACING * 10, changes.next()).await;
    assert!(quiet.is_err());
    drop(sender);
    assert_eq!(changes.next().await, None);
}
