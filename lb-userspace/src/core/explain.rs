//! A packet and the live tables → what the datapath does with it, step by step, by running the datapath's own code.

mod advice;
mod headers;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use lb_common::abi::{FlowBucket, FragmentRoute, HEADROOM, NextHop, TranslationBucket, TupleKey};
use lb_common::datapath::{Action, Refusal, Step};
use lb_common::flow::{State, Tick};
use lb_common::net::{Protocol, Tuple};
use lb_common::slice::{Fragments, SlicePacket, SliceTables, TableSlices};
use lb_common::translations::Buckets;
use serde::{Deserialize, Serialize};

use super::image::Image;
use advice::{Met, advice};

pub use advice::tell_why_down;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The packet.
    pub packet: PacketSpec,
    /// Name of the interface it comes in on; the first attached one if absent.
    pub interface: Option<String>,
}

/// The packet asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketSpec {
    /// A packet of these five fields, without payload.
    Tuple {
        /// Source address and port.
        source: SocketAddr,
        /// Destination address and port.
        destination: SocketAddr,
        /// Transport protocol.
        protocol: SpecProtocol,
        /// Whether a TCP packet opens the connection.
        syn: bool,
    },
    /// A whole frame from the destination MAC on, in hexadecimal.
    Frame(String),
}

/// Transport protocol of a packet asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An ICMP or ICMPv6 echo request; the ports do not count.
    Icmp,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The frame asked about, in hexadecimal.
    pub frame: String,
    /// The steps, in order.
    pub steps: Vec<String>,
    /// The verdict, as counted.
    pub verdict: String,
    /// What the verdict means.
    pub meaning: String,
    /// `pass`, `drop`, `transmit` or `redirect`.
    pub action: String,
    /// The service it was for; empty if for none.
    pub service: String,
    /// The backend it went to; empty if to none.
    pub backend: String,
    /// The frame as it leaves, in hexadecimal, if it was rewritten.
    pub rewritten: Option<String>,
    /// Its headers as it leaves, outermost first, if it is sent.
    #[serde(default)]
    pub headers: Vec<String>,
    /// What would make it be forwarded; empty if it is, or is better not.
    #[serde(default)]
    pub advice: String,
}

/// Why a question cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The addresses are of two families.
    #[error("--src and --dst must both be IPv4 addresses, or both IPv6 addresses")]
    Family,
    /// The packet is to open what is no connection.
    #[error("--syn: only TCP has it; leave it out, or ask for --proto tcp")]
    Syn,
    /// There is no frame.
    #[error("--frame: no bytes in it; write the frame in hexadecimal, from the destination MAC on")]
    NoFrame,
    /// The frame is not hexadecimal.
    #[error("--frame: not hexadecimal: {0}")]
    Hex(String),
    /// The frame is too long.
    #[error("--frame: {0} bytes, a frame has at most {MAX_FRAME}")]
    TooLong(usize),
    /// The packet could not be built.
    #[error("the packet cannot be built: {0}")]
    Build(String),
}

/// Longest frame that may be asked about, in bytes.
pub const MAX_FRAME: usize = 9_216;

/// The interface a packet comes in on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ingress {
    /// The kernel's index.
    pub index: u32,
    /// Its own MAC address, to which packets made from five fields are addressed.
    pub mac: [u8; 6],
}

/// The frame asked about.
pub fn frame(packet: &PacketSpec, ingress: Ingress) -> Result<Vec<u8>, QuestionError> {
    match packet {
        PacketSpec::Frame(hex) => parse_hex(hex),
        PacketSpec::Tuple { protocol: SpecProtocol::Udp | SpecProtocol::Icmp, syn: true, .. } => {
            Err(QuestionError::Syn)
        }
        PacketSpec::Tuple { source, destination, protocol, syn } => {
            build(*source, *destination, *protocol, *syn, ingress)
        }
    }
}

fn build(
    source: SocketAddr,
    destination: SocketAddr,
    protocol: SpecProtocol,
    syn: bool,
    ingress: Ingress,
) -> Result<Vec<u8>, QuestionError> {
    const SOMEBODY: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let ethernet = PacketBuilder::ethernet2(SOMEBODY, ingress.mac);
    let is_v4 = source.is_ipv4();
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => return Err(QuestionError::Family),
    };
    let mut frame = Vec::new();
    match protocol {
        SpecProtocol::Udp => ip.udp(source.port(), destination.port()).write(&mut frame, &[]),
        SpecProtocol::Icmp if is_v4 => ip.icmpv4_echo_request(1, 1).write(&mut frame, &[]),
        SpecProtocol::Icmp => ip.icmpv6_echo_request(1, 1).write(&mut frame, &[]),
        SpecProtocol::Tcp => {
            let tcp = ip.tcp(source.port(), destination.port(), 1, 65_535);
            if syn { tcp.syn().write(&mut frame, &[]) } else { tcp.ack(1).write(&mut frame, &[]) }
        }
    }
    .map_err(|error| QuestionError::Build(error.to_string()))?;
    Ok(frame)
}

/// The live map `fragments`, which stays as it is: only later packets would ask.
struct Untouched<'a>(&'a dyn Fragments);

impl Fragments for Untouched<'_> {
    fn fragment(&self, key: &TupleKey) -> Option<FragmentRoute> {
        self.0.fragment(key)
    }

    fn set_fragment(&self, _: &TupleKey, _: &FragmentRoute) {}
}

/// The live table of translations, with a copy of each bucket that a packet asks for: it finds there the translation that it has
/// just been given.
struct Aside<'a> {
    live: &'a [TranslationBucket],
    first: OnceCell<Box<Copied>>,
}

/// A copied bucket, and the next.
struct Copied {
    index: u32,
    bucket: TranslationBucket,
    next: OnceCell<Box<Copied>>,
}

impl Buckets for Aside<'_> {
    fn translation_bucket(&self, index: u32) -> Option<&TranslationBucket> {
        let live = self.live.get(index as usize)?;
        let copy = || {
            let bucket = TranslationBucket::default();
            let words = bucket.lines.iter().flat_map(|line| &line.words);
            let live = live.lines.iter().flat_map(|line| &line.words);
            words.zip(live).for_each(|(word, live)| word.store(live.load()));
            Box::new(Copied { index, bucket, next: OnceCell::new() })
        };
        let mut at = self.first.get_or_init(copy);
        while at.index != index {
            at = at.next.get_or_init(copy);
        }
        Some(&at.bucket)
    }
}

/// Runs the frame through the datapath over these tables, which stay as they are. `mtus` are those of interfaces, by index.
pub fn explain(
    tables: TableSlices<'_>,
    image: &Image,
    now: Tick,
    frame: Vec<u8>,
    ingress: Ingress,
    mtus: &[(u32, u16)],
) -> Explanation {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&frame);
    let steps = RefCell::new(Vec::new());
    let scratch = FlowBucket::default();
    let aside = Aside { live: tables.translations, first: OnceCell::new() };
    let untouched = Untouched(tables.fragments);
    let tables = TableSlices { fragments: &untouched, ..tables };
    let met = Cell::new(Met::default());
    let tell = |step| {
        match step {
            Step::Parsed(tuple) => met.set(Met { tuple: Some(tuple), ..met.get() }),
            Step::Classified { service, .. } => met.set(Met { service: Some(service), ..met.get() }),
            _ => {}
        }
        let mut steps = steps.borrow_mut();
        let told = describe(step, image);
        // A later stage goes through the first steps again.
        if !steps.contains(&told) {
            steps.push(told);
        }
    };
    let mut live = SliceTables::new(tables, now);
    live.observer = &tell;
    live.scratch = Some(&scratch);
    live.aside = Some(&aside);
    let mut packet = SlicePacket::new(&mut buffer, HEADROOM, ingress.index).with_mtus(mtus);
    let outcome = live.process(&mut packet);
    let forwarded = outcome.backend != 0;
    let sent = outcome.verdict.is_sent();
    let service = if forwarded { Some(outcome.service) } else { met.get().service };
    Explanation {
        headers: if sent { headers::headers(packet.bytes()) } else { Vec::new() },
        advice: advice(outcome.verdict, met.get(), &frame, ingress, image).unwrap_or_default(),
        frame: to_hex(&frame),
        steps: steps.take(),
        verdict: outcome.verdict.name().to_owned(),
        meaning: outcome.verdict.explanation().to_owned(),
        action: action(outcome.action).to_owned(),
        service: service.map_or_else(String::new, |id| service_name(image, id)),
        backend: if forwarded { backend_name(image, outcome.backend) } else { String::new() },
        rewritten: (packet.bytes() != frame).then(|| to_hex(packet.bytes())),
    }
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Drop => "drop",
        Action::Transmit => "transmit",
        Action::Redirect => "redirect",
    }
}

fn service_name(image: &Image, id: u32) -> String {
    image.services.get(&id).map_or_else(|| format!("#{id}"), |service| service.name.clone())
}

fn backend_name(image: &Image, id: u16) -> String {
    image.backends.get(&id).map_or_else(|| format!("#{id}"), |backend| backend.name.clone())
}

fn describe(step: Step, image: &Image) -> String {
    match step {
        Step::Parsed(tuple) => format!("parsed: {}", five_fields(&tuple)),
        Step::Quoted(tuple) => format!("an ICMP error about: {}", five_fields(&tuple)),
        Step::ClientLookup(None) => {
            "client affinity: no entry, the ring is asked by source address".to_owned()
        }
        Step::ClientLookup(Some(backend)) => {
            format!("client affinity: this client is with backend {}", backend_name(image, backend))
        }
        Step::FragmentLookup(None) => "fragments: the first of this datagram was not seen".to_owned(),
        Step::FragmentLookup(Some(0)) => {
            "fragments: the first of this datagram was left to the host".to_owned()
        }
        Step::FragmentLookup(Some(backend)) => {
            format!("fragments: the first of this datagram went to backend {}", backend_name(image, backend))
        }
        Step::Translated { tuple, new, reply } => format!(
            "translated{}: {}{}",
            if reply { " back" } else { "" },
            five_fields(&tuple),
            if new { ", newly" } else { "" },
        ),
        Step::AnswerOf(backend) => format!("an answer of backend {}", backend_name(image, backend)),
        Step::Classified { service, any_port } => format!(
            "service: {}{}",
            service_name(image, service),
            if any_port { ", through its VIP of every port" } else { "" },
        ),
        Step::FlowLookup { bucket, signature, found: None } => {
            format!("flow table: bucket {bucket}, signature {signature:08x}: no entry, a new flow")
        }
        Step::FlowLookup { bucket, signature, found: Some((backend, state, age)) } => format!(
            "flow table: bucket {bucket}, signature {signature:08x}: with backend {}, {}, last seen about {age} s ago",
            backend_name(image, backend),
            match state {
                State::Opening => "opening",
                State::Established => "established",
                State::Closing => "closing",
            },
        ),
        Step::EntryRefused(refusal) => format!(
            "entry not followed: {}",
            match refusal {
                Refusal::BackendGone => "its backend is gone, disabled, or of another service",
                Refusal::BackendUnhealthy =>
                    "its backend is unhealthy, and the packet has no connection to lose",
                Refusal::OpensAnew => "the packet opens a connection anew",
            },
        ),
        Step::RingLookup { ring, slot, backend } => {
            format!("ring: slot {slot} of ring {ring}: backend {}", backend_name(image, backend))
        }
        Step::NextHop { backend, hop } => {
            format!("next hop of {}: {}", backend_name(image, backend), next_hop(&hop))
        }
    }
}

fn next_hop(hop: &NextHop) -> String {
    let (destination, source) = hop.macs();
    let out = match hop.interface {
        0 => "where it came from".to_owned(),
        index => format!("interface {index}"),
    };
    let vlan = match hop.vlan {
        0 => String::new(),
        NextHop::UNTAGGED => ", without VLAN tags".to_owned(),
        id => format!(", VLAN {id}"),
    };
    let mtu = if hop.mtu == 0 { String::new() } else { format!(", MTU {}", hop.mtu) };
    format!("destination MAC {}, source MAC {}, out {out}{vlan}{mtu}", mac(destination), mac(source))
}

fn five_fields(tuple: &Tuple) -> String {
    if matches!(tuple.protocol, Protocol::ICMP | Protocol::ICMPV6) {
        return format!("{} from {} to {}", tuple.protocol, tuple.source.to_ip(), tuple.destination.to_ip());
    }
    format!(
        "{} from {} to {}",
        tuple.protocol,
        SocketAddr::new(tuple.source.to_ip(), tuple.ports.source().get()),
        SocketAddr::new(tuple.destination.to_ip(), tuple.ports.destination().get()),
    )
}

/// A MAC address in its usual notation.
pub fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal digits; white space and colons between bytes are skipped.
pub fn parse_hex(text: &str) -> Result<Vec<u8>, QuestionError> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).ok_or_else(|| QuestionError::Hex(format!("{c:?} is no digit"))))
        .collect::<Result<_, _>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err(QuestionError::Hex("an odd number of digits".into()));
    }
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | (digit & 15) as u8))
        .collect();
    match bytes.len() {
        0 => Err(QuestionError::NoFrame),
        1..=MAX_FRAME => Ok(bytes),
        more => Err(QuestionError::TooLong(more)),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, NetHeaders, TransportHeader};

    use super::*;

    #[test]
    fn hex_survives_the_round_trip() {
        assert_eq!(parse_hex("02 00:fF\n").unwrap(), [2, 0, 255]);
        assert_eq!(parse_hex(&to_hex(&[0, 17, 255])).unwrap(), [0, 17, 255]);
    }

    /// The packet of five fields is read back, by another's parser, as what was asked about.
    #[test]
    fn packets_are_built_in_both_families() {
        let (from, to) = ("198.51.100.7:40000", "203.0.113.10:443");
        let (from6, to6) = ("[2001:db8::7]:40000", "[2001:db8:1::10]:443");
        for (source, destination) in [(from, to), (from6, to6)] {
            let built = |protocol, syn| {
                let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
                let ingress = Ingress { index: 1, mac: [2, 0, 0, 0, 0, 9] };
                frame(&PacketSpec::Tuple { source, destination, protocol, syn }, ingress).unwrap()
            };
            for (bytes, expected) in [
                (built(SpecProtocol::Tcp, true), "tcp syn"),
                (built(SpecProtocol::Tcp, false), "tcp ack"),
                (built(SpecProtocol::Udp, false), "udp"),
                (built(SpecProtocol::Icmp, false), "echo"),
            ] {
                let headers = etherparse::PacketHeaders::from_ethernet_slice(&bytes).unwrap();
                let (from, to): (IpAddr, IpAddr) = match headers.net {
                    Some(NetHeaders::Ipv4(ip, _)) => (ip.source.into(), ip.destination.into()),
                    Some(NetHeaders::Ipv6(ip, _)) => (ip.source.into(), ip.destination.into()),
                    other => panic!("{other:?}"),
                };
                let (ports, kind) = match headers.transport {
                    Some(TransportHeader::Tcp(tcp)) => {
                        ([tcp.source_port, tcp.destination_port], if tcp.syn { "tcp syn" } else { "tcp ack" })
                    }
                    Some(TransportHeader::Udp(udp)) => ([udp.source_port, udp.destination_port], "udp"),
                    Some(TransportHeader::Icmpv4(icmp))
                        if matches!(icmp.icmp_type, Icmpv4Type::EchoRequest(_)) =>
                    {
                        ([40_000, 443], "echo")
                    }
                    Some(TransportHeader::Icmpv6(icmp))
                        if matches!(icmp.icmp_type, Icmpv6Type::EchoRequest(_)) =>
                    {
                        ([40_000, 443], "echo")
                    }
                    other => panic!("{other:?}"),
                };
                let [source_port, destination_port] = ports;
                assert_eq!(SocketAddr::new(from, source_port).to_string(), source);
                assert_eq!(SocketAddr::new(to, destination_port).to_string(), destination);
                assert_eq!(kind, expected);
            }
        }
        for (source, destination) in [(from, to6), (from6, to)] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let packet = PacketSpec::Tuple { source, destination, protocol: SpecProtocol::Udp, syn: false };
            assert_eq!(frame(&packet, Ingress::default()), Err(QuestionError::Family));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(matches!(parse_hex("0g"), Err(QuestionError::Hex(_))));
        assert!(matches!(parse_hex("012"), Err(QuestionError::Hex(_))));
        assert!(matches!(parse_hex(&"00".repeat(MAX_FRAME + 1)), Err(QuestionError::TooLong(9_217))));
    }
}
