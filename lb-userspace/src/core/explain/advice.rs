//! A packet that was not forwarded, and the tables it met → what would make it be forwarded.

use std::net::SocketAddr;

use lb_common::net::{Protocol, Tuple};
use lb_common::verdict::Verdict;

use super::{Explanation, Ingress, mac, service_name};
use crate::core::config::{BackendState, Config, Probe, Service};
use crate::core::health::{Health, ServiceStatus, Shortfall};
use crate::core::image::{Image, LoadedBackend};
use crate::core::wanted::Knowledge;

/// What is known of the packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Met {
    /// Its five fields, if it could be parsed.
    pub(super) tuple: Option<Tuple>,
    /// The service it was for.
    pub(super) service: Option<u32>,
}

/// One sentence, or nothing where the verdict is as it should be.
pub(super) fn advice(
    verdict: Verdict,
    met: Met,
    frame: &[u8],
    ingress: Ingress,
    image: &Image,
) -> Option<String> {
    let text = match verdict {
        Verdict::PassNotVip => match met.tuple {
            Some(tuple) => not_vip(tuple, image),
            None => "TCP or UDP behind its IP header: services know no other transport protocol".to_owned(),
        },
        Verdict::PassOtherHost => other_host(frame, ingress),
        Verdict::DropNoBackend => no_backend(met.service?, image),
        Verdict::DropNoNextHop => {
            "its backend must answer ARP or neighbour discovery, or the gateway to it: `sluice doctor` tells what is wrong"
                .to_owned()
        }
        Verdict::ReplyTooBig | Verdict::DropTooBig => {
            "a larger MTU on the way to the backend (of an answer: to the customer), or a smaller packet: see `sluice doctor`, check mtu".to_owned()
        }
        Verdict::ReplyTimeExceeded | Verdict::DropTimeExceeded => {
            "a larger time to live: it was sent with too few hops left, or goes round in a circle".to_owned()
        }
        Verdict::DropFragment => {
            "the first fragment of its datagram, just before it and on this node: only that one has the ports".to_owned()
        }
        Verdict::PassFragment => "the first fragment of its datagram being for a service".to_owned(),
        Verdict::DropIpv6Headers => "fewer extension headers, and no routing header with segments left".to_owned(),
        Verdict::PassIcmp => "an echo request, which is answered, or an ICMP error about a flow of a service".to_owned(),
        Verdict::DropIcmpRate => "a pause: more answers by ICMP than are sent in a second, to this sender or to all, were asked for".to_owned(),
        Verdict::DropNatPorts => "more addresses in agent.source_v4 or source_v6, or fewer connections".to_owned(),
        Verdict::DropNatTable => "a larger agent.nat_table_size, or fewer connections".to_owned(),
        Verdict::DropNatSource => "an address in agent.source_v4 or source_v6, of the backend's family".to_owned(),
        Verdict::DropHeadroom => "a driver that leaves room for headers, or xdp_mode = \"generic\"".to_owned(),
        Verdict::DropInconsistent => "nothing: this is a fault in Sluice; please report it".to_owned(),
        Verdict::PassMalformedEthernet
        | Verdict::PassMalformedIpv4
        | Verdict::PassMalformedIpv6
        | Verdict::PassMalformedTransport => "whole and valid headers; a capture may have cut the packet".to_owned(),
        Verdict::PassNotIp => "an IPv4 or IPv6 packet: services are TCP and UDP".to_owned(),
        Verdict::Forward | Verdict::ForwardReturn | Verdict::ReplyIcmpEcho | Verdict::PassPathMtu => return None,
    };
    Some(text)
}

fn not_vip(tuple: Tuple, image: &Image) -> String {
    if matches!(tuple.protocol, Protocol::ICMP | Protocol::ICMPV6) {
        let to = tuple.destination.to_ip();
        return format!("a service with {to} in its vips, of whatever protocol; no service has this address");
    }
    let to = SocketAddr::new(tuple.destination.to_ip(), tuple.ports.destination().get());
    let mut known: Vec<String> = image
        .vips
        .iter()
        .filter(|(key, _)| {
            key.address == tuple.destination && ["tcp", "udp"].contains(&key.protocol.to_string().as_str())
        })
        .map(|(key, target)| {
            let port = if key.port == 0 { "every port".to_owned() } else { format!("port {}", key.port) };
            format!("{} {port} (service {})", key.protocol, service_name(image, target.service))
        })
        .collect();
    known.sort();
    let wanted = format!("a service with \"{to}\" in its vips and protocol = \"{}\"", tuple.protocol);
    match known.as_slice() {
        [] => format!("{wanted}; no service has this address"),
        known => format!("{wanted}; services have of this address: {}", known.join(", ")),
    }
}

fn other_host(frame: &[u8], ingress: Ingress) -> String {
    let to = frame.first_chunk::<6>().map_or_else(String::new, |to| format!(", not {}", mac(*to)));
    format!(
        "this interface's MAC address {} as its destination{to}: whoever sent it took another host for the VIP's; \
         `sluice doctor` finds who answers ARP for it",
        mac(ingress.mac)
    )
}

fn no_backend(service: u32, image: &Image) -> String {
    let of_service = || image.backends.values().filter(|backend| backend.service == service);
    let why = |backend: &LoadedBackend| {
        let reason = match backend {
            LoadedBackend { enabled: false, .. } => "disabled",
            LoadedBackend { healthy: false, .. } => "unhealthy",
            // The tables do not say which.
            LoadedBackend { takes_new: false, .. } => {
                "drained, of weight 0, or one of fewer than min_healthy"
            }
            _ => "not in the ring",
        };
        format!("{} is {reason}", backend.name)
    };
    let told: Vec<String> = of_service().take(10).map(why).collect();
    let name = service_name(image, service);
    if told.is_empty() {
        return format!("a backend: service {name} has none");
    }
    format!(
        "a healthy, enabled backend of service {name} with a weight above 0, or all_down = \"fail-open\": {}",
        told.join(", ")
    )
}

/// Has the advice say why a service has no backend, which the tables alone do not tell: what the configuration says, and what is
/// known of its backends.
pub fn tell_why_down(explanation: &mut Explanation, config: &Config, knowledge: &Knowledge) {
    let service = config.services.iter().find(|service| service.name == explanation.service);
    let Some(service) = service.filter(|_| explanation.verdict == Verdict::DropNoBackend.name()) else {
        return;
    };
    let serving = knowledge.serving(service);
    if serving.status == ServiceStatus::Down && !service.backends.is_empty() {
        explanation.advice = why_down(service, &knowledge.health(service), serving.shortfall);
    }
}

fn why_down(service: &Service, health: &[Health], shortfall: Option<Shortfall>) -> String {
    let reasons = service.backends.iter().zip(health).filter_map(|(backend, health)| {
        let reason = match (backend.state, backend.weight, health) {
            (BackendState::Disabled, ..) => "disabled",
            (BackendState::Drain, ..) => "drained",
            (BackendState::Enabled, 0, _) => "of weight 0",
            _ if service.health.probe == Probe::None => return None,
            (.., Health::Healthy) => return None,
            (.., Health::Unhealthy) => "unhealthy",
            (.., Health::Unknown) => "not checked yet",
        };
        Some(format!("{} is {reason}", backend.name))
    });
    let reasons = reasons.take(10).collect::<Vec<_>>().join(", ");
    let name = &service.name;
    match shortfall {
        None => format!(
            "a healthy, enabled backend of service {name} with a weight above 0, or all_down = \"fail-open\": {reasons}"
        ),
        Some(shortfall) => format!(
            "more healthy, enabled backends of service {name}, or a lower min_healthy, or all_down = \"fail-open\": \
             {shortfall}: {reasons}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::parse;
    use crate::core::wanted::BackendKey;

    /// What is advised for a service of two backends, with these lines for it and for the second backend; the first is healthy, if it
    /// is checked.
    fn advised(of_service: &str, of_second: &str, second: Health) -> String {
        let text = format!(
            "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvips = [\"192.0.2.1:80\"]\n\
             all_down = \"drop\"\n{of_service}\n[service.health]\ntype = \"tcp\"\n\
             [[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.1\"\n\
             [[service.backend]]\nname = \"b2\"\naddress = \"10.0.0.2\"\n{of_second}\n"
        );
        let config = parse(&text).expect("valid");
        let health = [("b1", Health::Healthy), ("b2", second)];
        let health = health.into_iter().map(|(name, health)| (BackendKey::new("web", name), health));
        let knowledge = Knowledge { health: health.collect(), ..Knowledge::default() };
        let mut explanation = Explanation {
            verdict: Verdict::DropNoBackend.name().to_owned(),
            service: "web".to_owned(),
            advice: "of the tables".to_owned(),
            ..Explanation::default()
        };
        tell_why_down(&mut explanation, &config, &knowledge);
        explanation.advice
    }

    #[test]
    fn min_healthy_is_named_where_it_takes_the_service_down() {
        assert_eq!(
            advised("min_healthy = 2", "", Health::Unhealthy),
            "more healthy, enabled backends of service web, or a lower min_healthy, or all_down = \"fail-open\": \
             min_healthy = 2 is not reached, 1 of 2 enabled backends healthy: b2 is unhealthy"
        );
        let drained = advised("min_healthy = 2", "state = \"drain\"", Health::Healthy);
        assert!(
            drained.ends_with("not reached, 1 of 1 enabled backends healthy: b2 is drained"),
            "{drained}"
        );
        // What is known now would let packets through: the tables are about to follow.
        assert_eq!(advised("", "", Health::Unhealthy), "of the tables");
    }
}
