//! Sampled packets and translations → who the clients are, by backend.
//!
//! The flow table keeps a signature of each flow, which tells no address. Translations are exact, and there are some only for mode `nat`;
//! for all else, packets that come by for a short time are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use etherparse::{LaxPacketHeaders, NetHeaders, TransportHeader};
use lb_common::abi::{Forwarding, Translation, TupleKey};
use serde::{Deserialize, Serialize};

use super::capture::CapturedPacket;
use super::image::Image;

/// Bytes of a packet that are needed: both tags, an IPv6 header, some extension headers, and ports.
pub const SNAP: u32 = 128;
/// Packets that a sample is meant to have; it ends at twice as many.
pub const SAMPLE: u64 = 10_000;

/// Protocol and ports of a flow: what tells a client's flows to one VIP apart.
type Flow = (u8, u16, u16, IpAddr);

/// What was seen of one client at one backend.
#[derive(Clone, Debug, Default)]
struct Seen {
    packets: u64,
    bytes: u64,
    flows: BTreeSet<Flow>,
}

/// A client at a backend of a service.
type Key = (String, String, IpAddr);

/// Whose clients are asked for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Only those of this service.
    pub service: Option<String>,
    /// Only those of backends of this name.
    pub backend: Option<String>,
    /// Lines at most.
    pub lines: usize,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// What was sampled; none if there was no need for it.
    pub sampled: Option<Sampled>,
    /// Translated connections, which are all there are; none if no service that was asked for is of mode `nat`.
    pub translated: Option<u64>,
    /// The lines, the largest share first.
    pub lines: Vec<ClientLine>,
    /// Lines that were left out.
    pub lines_left_out: usize,
    /// What that means, for people.
    pub note: String,
}

/// A sample of packets that were sent to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Packets in it.
    pub packets: u64,
    /// Packets that were sent meanwhile, as the datapath counts them.
    pub of: u64,
    /// How long it took.
    pub seconds: f64,
    /// One packet in so many was looked at.
    pub one_in: u32,
    /// Packets that would have been in it, and came faster than they were read.
    pub lost: u64,
}

/// A client at a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientLine {
    /// The client's address.
    pub client: IpAddr,
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// `sample` or `translations`.
    pub from: Origin,
    /// Its flows: those that had a packet in the sample, or all that are translated.
    pub flows: u64,
    /// Its packets in the sample.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packets: Option<u64>,
    /// The bytes of these, with their Ethernet headers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Its share of the sample's packets, or of all translated connections.
    pub share: f64,
}

/// Where something is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A sample of packets.
    Sample,
    /// The table of translations.
    Translations,
}

impl Origin {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Translations => "translations",
        }
    }
}

/// Which kinds of services there are among those that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Some whose translations tell.
    pub translated: bool,
    /// Some for which packets have to be sampled.
    pub other: bool,
}

impl Question {
    /// Whether a backend of a service is asked for.
    pub fn is_about(&self, service: &str, backend: &str) -> bool {
        let fits = |wanted: &Option<String>, name| wanted.as_deref().is_none_or(|wanted| wanted == name);
        fits(&self.service, service) && fits(&self.backend, backend)
    }

    /// The kinds of the services that are asked for.
    pub fn kinds(&self, names: &Image) -> Kinds {
        let mut kinds = Kinds::default();
        for backend in names.backends.values() {
            let service = names.services.get(&backend.service);
            if service.is_some_and(|service| self.is_about(&service.name, &backend.name)) {
                let is_nat = backend.forwarding == Forwarding::Nat;
                kinds.translated |= is_nat;
                kinds.other |= !is_nat;
            }
        }
        kinds
    }
}

/// What is known of clients so far.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    sampled: BTreeMap<Key, Seen>,
    translated: BTreeMap<Key, u64>,
    packets: u64,
    connections: u64,
}

impl Clients {
    /// Counts the translations of customers' packets.
    pub fn add_translations(
        &mut self,
        translations: impl Iterator<Item = (TupleKey, Translation)>,
        names: &Image,
        question: &Question,
    ) {
        for (key, translation) in translations.filter(|(_, translation)| translation.reply == 0) {
            let Some(backend) = names.backends.get(&translation.backend) else { continue };
            let Some(service) = names.services.get(&backend.service) else { continue };
            if question.is_about(&service.name, &backend.name) {
                self.connections += 1;
                let at = (service.name.clone(), backend.name.clone(), key.source.to_ip());
                *self.translated.entry(at).or_default() += 1;
            }
        }
    }

    /// Counts a sampled packet; those of services whose translations tell are left out, as `is_translated` says.
    pub fn add_packet(&mut self, packet: &CapturedPacket, is_translated: impl Fn(&str) -> bool) {
        let (Some(service), Some(backend)) = (&packet.service, &packet.backend) else { return };
        if is_translated(service) {
            return;
        }
        let Some((client, flow)) = packet.before.bytes().and_then(|frame| client(&frame)) else { return };
        self.packets += 1;
        let seen = self.sampled.entry((service.clone(), backend.clone(), client)).or_default();
        seen.packets += 1;
        seen.bytes += u64::from(packet.before.length);
        seen.flows.insert(flow);
    }

    /// The answer. `sampled` is what is known of the sample, if there was one: its packets are counted here.
    pub fn report(self, kinds: Kinds, sampled: Option<Sampled>, question: &Question) -> ClientReport {
        let (packets, connections) = (self.packets, self.connections);
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let translated = self.translated.into_iter().map(|((service, backend, client), flows)| ClientLine {
            client,
            service,
            backend,
            from: Origin::Translations,
            flows,
            packets: None,
            bytes: None,
            share: share(flows, connections),
        });
        let seen = self.sampled.into_iter().map(|((service, backend, client), seen)| ClientLine {
            client,
            service,
            backend,
            from: Origin::Sample,
            flows: seen.flows.len() as u64,
            packets: Some(seen.packets),
            bytes: Some(seen.bytes),
            share: share(seen.packets, packets),
        });
        let mut lines: Vec<ClientLine> = translated.chain(seen).collect();
        // Equals stay in the order of their names.
        lines.sort_by(|a, b| b.share.total_cmp(&a.share));
        let lines_left_out = lines.len().saturating_sub(question.lines);
        lines.truncate(question.lines);
        let sampled = sampled.map(|sampled| Sampled { packets, of: sampled.of.max(packets), ..sampled });
        let translated = kinds.translated.then_some(connections);
        ClientReport { sampled, translated, lines, lines_left_out, note: note(sampled, translated) }
    }
}

fn note(sampled: Option<Sampled>, translated: Option<u64>) -> String {
    let mut parts = Vec::new();
    if let Some(Sampled { packets, of, seconds, one_in, lost }) = sampled {
        let lost = if lost > 0 { format!(", {lost} lost") } else { String::new() };
        parts.push(format!(
            "sampled: {packets} of {of} packets in {seconds:.1} s (1 in {one_in} looked at{lost}); who sent nothing meanwhile, or \
             little, is not among these"
        ));
    }
    if let Some(connections) = translated {
        parts.push(format!("translations: all {connections} connections of services of mode nat"));
    }
    if parts.is_empty() {
        parts.push("there are no backends".to_owned());
    }
    parts.join("\n")
}

/// The client that a frame comes from, and which of its flows it belongs to. Errors about a flow come from routers: they tell
/// nothing.
fn client(frame: &[u8]) -> Option<(IpAddr, Flow)> {
    let headers = LaxPacketHeaders::from_ethernet(frame).ok()?;
    let (source, destination) = match headers.net? {
        NetHeaders::Ipv4(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        NetHeaders::Ipv6(ip, _) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        NetHeaders::Arp(_) => return None,
    };
    let flow = match headers.transport {
        Some(TransportHeader::Tcp(tcp)) => (6, tcp.source_port, tcp.destination_port, destination),
        Some(TransportHeader::Udp(udp)) => (17, udp.source_port, udp.destination_port, destination),
        Some(_) => return None,
        // A fragment, or more headers than were kept: its flow cannot be told from others.
        None => (0, 0, 0, destination),
    };
    Some((source, flow))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use lb_common::net::{Protocol, Tuple};

    use super::*;
    use crate::core::capture::CapturedBytes;
    use crate::core::image::{LoadedBackend, LoadedService};

    const VIP: [u8; 4] = [203, 0, 113, 10];

    fn names() -> Image {
        let service = |name: &str| LoadedService { name: name.into(), ring: None };
        let backend =
            |service, forwarding| LoadedBackend { forwarding, ..LoadedBackend::well("web1", service) };
        Image {
            services: BTreeMap::from([(0, service("web")), (1, service("api"))]),
            backends: BTreeMap::from([(5, backend(0, Forwarding::Ipip)), (6, backend(1, Forwarding::Nat))]),
            ..Image::default()
        }
    }

    fn frame(source: [u8; 4], port: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, VIP, 64).tcp(port, 80, 1, 1_024);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[7; 900]).unwrap();
        frame
    }

    fn packet(service: &str, frame: &[u8]) -> CapturedPacket {
        let kept = &frame[..frame.len().min(SNAP as usize)];
        CapturedPacket {
            number: 1,
            time_ns: 1,
            verdict: "forward".to_owned(),
            service: Some(service.to_owned()),
            backend: Some("web1".to_owned()),
            backend_address: None,
            new_flow: false,
            ingress: "eth0".to_owned(),
            egress: None,
            before: CapturedBytes::new(frame.len() as u32, kept),
            after: None,
        }
    }

    fn translation(client: [u8; 4], port: u16, reply: u16) -> (TupleKey, Translation) {
        let (source, destination) = (IpAddr::from(client).into(), IpAddr::from(VIP).into());
        let ports = lb_common::net::Ports::new(port, 80);
        let key = TupleKey::of(&Tuple { source, destination, ports, protocol: Protocol::TCP });
        (key, Translation { backend: 6, reply, ..Translation::default() })
    }

    const NEAR: [u8; 4] = [198, 51, 100, 7];
    const FAR: [u8; 4] = [198, 51, 100, 8];

    #[test]
    fn the_sample_and_the_translations_tell_who_the_clients_are() {
        let (names, question) = (names(), Question { lines: 10, ..Question::default() });
        let mut clients = Clients::default();
        let translations = [
            translation(NEAR, 1, 0),
            translation(NEAR, 2, 0),
            translation(FAR, 1, 0),
            translation(FAR, 3, 1),
        ];
        clients.add_translations(translations.into_iter(), &names, &question);
        for (source, port) in [(FAR, 9), (NEAR, 1), (NEAR, 1), (NEAR, 2)] {
            clients.add_packet(&packet("web", &frame(source, port)), |service| service == "api");
        }
        clients.add_packet(&packet("api", &frame(NEAR, 4)), |service| service == "api");
        let kinds = question.kinds(&names);
        assert_eq!(kinds, Kinds { translated: true, other: true });
        let sampled = Sampled { of: 40, seconds: 2.0, one_in: 10, ..Sampled::default() };
        let report = clients.report(kinds, Some(sampled), &question);
        assert_eq!((report.translated, report.sampled.unwrap().packets), (Some(3), 4));
        assert!(
            report.note.starts_with("sampled: 4 of 40 packets in 2.0 s (1 in 10 looked at); "),
            "{report:?}"
        );
        assert!(report.note.contains("\ntranslations: all 3 connections"), "{report:?}");
        let lines = report.lines.iter().map(|line| {
            (line.client.to_string(), line.service.as_str(), line.from, line.flows, line.packets, line.bytes)
        });
        let [near, far] = [NEAR, FAR].map(|client| IpAddr::from(client).to_string());
        let expected = [
            (near.clone(), "web", Origin::Sample, 2, Some(3), Some(3 * 954)),
            (near, "api", Origin::Translations, 2, None, None),
            (far.clone(), "api", Origin::Translations, 1, None, None),
            (far, "web", Origin::Sample, 1, Some(1), Some(954)),
        ];
        assert_eq!(lines.collect::<Vec<_>>(), expected);
        assert!((report.lines[0].share - 0.75).abs() < 1e-9);
    }

    #[test]
    fn a_question_narrows_and_what_is_left_out_is_told() {
        let some = |name: &str| Some(name.to_owned());
        let kinds = |question: &Question| question.kinds(&names());
        let web = Question { service: some("web"), lines: 1, ..Question::default() };
        assert_eq!(kinds(&web), Kinds { translated: false, other: true });
        let api = Question { service: some("api"), backend: some("web1"), lines: 1 };
        assert_eq!(kinds(&api), Kinds { translated: true, other: false });
        let none = Question { backend: some("web9"), ..Question::default() };
        assert_eq!(kinds(&none), Kinds::default());
        let mut clients = Clients::default();
        clients.add_translations(
            [translation(NEAR, 1, 0), translation(FAR, 1, 0)].into_iter(),
            &names(),
            &web,
        );
        assert_eq!(clients.connections, 0);
        clients.add_translations(
            [translation(NEAR, 1, 0), translation(FAR, 1, 0)].into_iter(),
            &names(),
            &api,
        );
        let report = clients.report(kinds(&api), None, &api);
        assert_eq!((report.sampled, report.lines.len(), report.lines_left_out), (None, 1, 1));
    }

    #[test]
    fn a_client_is_found_behind_tags_and_not_behind_errors() {
        let v6 = |source: u16| std::net::Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, source]);
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .double_vlan(7.try_into().unwrap(), 8.try_into().unwrap());
        let builder = builder.ipv6(v6(1).octets(), v6(2).octets(), 64).udp(5_000, 443);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 200]).unwrap();
        let kept = &frame[..SNAP as usize];
        assert_eq!(client(kept), Some((v6(1).into(), (17, 5_000, 443, v6(2).into()))));
        let mut error = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(NEAR, VIP, 64);
        builder.icmpv4_echo_request(1, 1).write(&mut error, &[]).unwrap();
        assert_eq!(client(&error), None);
        for length in 0..frame.len() {
            // Whatever is cut off, nothing fails.
            let _ = client(&frame[..length]);
        }
    }
}
