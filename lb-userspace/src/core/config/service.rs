//! The `[[service]]` tables → [`Service`]s, names and VIPs unique across them.

use std::collections::HashMap;

use lb_common::abi::{MAX_BACKENDS, MAX_SERVICES};

use super::health::DefaultPort;
use super::reader::{List, Section};
use super::sources::Sources;
use super::{Affinity, AllDown, Backend, Forwarding, Protocol, Service, Vip, backend, health, values};

const FORWARDING: [(&str, Forwarding); 4] = [
    ("l2-dsr", Forwarding::L2Dsr),
    ("ipip", Forwarding::Ipip),
    ("gue", Forwarding::Gue),
    ("nat", Forwarding::Nat),
];
const AFFINITY: [(&str, Affinity); 2] = [("connection", Affinity::Connection), ("client", Affinity::Client)];

/// What earlier services have taken, each with words for where.
#[derive(Default)]
pub(super) struct Taken {
    names: HashMap<String, String>,
    vips: HashMap<(Protocol, Vip), String>,
    backends: usize,
}

impl Taken {
    /// All VIPs, each with words for where.
    pub(super) fn vips(&self) -> impl Iterator<Item = (Vip, &str)> {
        self.vips.iter().map(|((_, vip), here)| (*vip, here.as_str()))
    }
}

/// The services, `None` when one of them is wrong in a way that leaves no value.
pub(super) fn read_all(
    sections: Vec<Section<'_>>,
    sources: &Sources,
    taken: &mut Taken,
) -> Option<Vec<Service>> {
    let mut services = Vec::with_capacity(sections.len());
    for (index, section) in sections.into_iter().enumerate() {
        if index == MAX_SERVICES as usize {
            section.wrong_at(section.place(), format!("more than {MAX_SERVICES} services"));
        }
        services.push(read(index, section, sources, taken));
    }
    services.into_iter().collect()
}

fn read(index: usize, mut service: Section<'_>, sources: &Sources, taken: &mut Taken) -> Option<Service> {
    let name = service.required("name", "write name = \"…\", unique among services", values::name);
    let here = match &name {
        Some(name) => format!("service[{index}] {name:?}, line {}", service.place().line),
        None => format!("service[{index}], line {}", service.place().line),
    };
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let protocol = service.or("protocol", Protocol::Tcp, values::choice(&protocols));
    let vips = service.list("vips", "write vips = [\"address:port\"]", values::vip);
    check_unique(&service, name.as_deref(), protocol, &vips, &here, taken);

    let forwarding = service.or("forwarding", Forwarding::L2Dsr, values::choice(&FORWARDING));
    let affinity = service.or("affinity", Affinity::Connection, values::choice(&AFFINITY));
    let all_down = service.or(
        "all_down",
        AllDown::FailOpen,
        values::choice(&[("fail-open", AllDown::FailOpen), ("drop", AllDown::Drop)]),
    );
    let min_healthy = service.or("min_healthy", 0, values::integer(0..=u32::from(u16::MAX)));

    let sections = service.tables("backend");
    let backends_count = sections.len();
    taken.backends = taken.backends.saturating_add(backends_count);
    if taken.backends > MAX_BACKENDS as usize {
        service.wrong("backend", format!("more than {MAX_BACKENDS} backends in all services together"));
    }
    if let Some(min_healthy) = min_healthy
        && usize::try_from(min_healthy).is_ok_and(|least| least > backends_count)
    {
        let message = format!(
            "must be at most the number of backends, {backends_count}, not {min_healthy}: the service would always \
             count as down"
        );
        service.missing("min_healthy", message);
    }
    let nat_vip = if forwarding == Some(Forwarding::Nat) { nat_vip(&service, &vips, sources) } else { None };
    let frontend = backend::Frontend { vips: &vips, forwarding, port: shared_port(&vips), nat_vip };
    let backends = backend::read_all(sections, &frontend);
    let port = default_port(&frontend, backends.as_deref());
    let health = match service.table("health") {
        Some(section) => {
            let vips: Vec<Vip> = vips.elements.iter().map(|element| element.value).collect();
            health::read(section, port, forwarding, &vips, backends.as_deref())
        }
        None if service.has("health") => None,
        None => protocol.map(|protocol| health::default(protocol, port)),
    };
    service.finish();
    Some(Service {
        name: name?,
        vips: vips.elements.into_iter().map(|element| element.value).collect(),
        protocol: protocol?,
        forwarding: forwarding?,
        affinity: affinity?,
        all_down: all_down?,
        min_healthy: min_healthy?,
        health: health?,
        backends: backends?,
    })
}

fn check_unique(
    service: &Section<'_>,
    name: Option<&str>,
    protocol: Option<Protocol>,
    vips: &List<Vip>,
    here: &str,
    taken: &mut Taken,
) {
    if let Some(name) = name {
        if let Some(other) = taken.names.get(name) {
            service.wrong("name", format!("{name:?} is already used by {other}; choose another"));
        } else {
            taken.names.insert(name.to_owned(), here.to_owned());
        }
    }
    let Some(protocol) = protocol else { return };
    for element in &vips.elements {
        let vip = element.value;
        if let Some(other) = taken.vips.get(&(protocol, vip)) {
            service.wrong_at(
                &element.place,
                format!("{vip} is already used by {other}; a VIP belongs to one service of a protocol"),
            );
        } else {
            taken.vips.insert((protocol, vip), here.to_owned());
        }
    }
}

/// What the VIPs' ports say about the port that backends listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SharedPort {
    /// All VIPs have this one, which is not 0.
    One(u16),
    /// They differ, or stand for every port.
    None,
    /// Some VIPs are wrong: nothing is known, nothing follows.
    Unknown,
}

fn shared_port(vips: &List<Vip>) -> SharedPort {
    let mut ports = vips.elements.iter().map(|element| element.value.port);
    match ports.next() {
        _ if !vips.complete => SharedPort::Unknown,
        Some(first) if first != 0 && ports.all(|port| port == first) => SharedPort::One(first),
        Some(_) => SharedPort::None,
        None => SharedPort::Unknown,
    }
}

/// The VIP whose family the backends of a `nat` service must have; `None` when that cannot be said.
fn nat_vip(service: &Section<'_>, vips: &List<Vip>, sources: &Sources) -> Option<Vip> {
    let first = vips.elements.first()?.value;
    let is_other = |vip: Vip| vip.address.is_ipv4() != first.address.is_ipv4();
    if let Some(other) = vips.elements.iter().find(|element| is_other(element.value)) {
        service.wrong_at(
            &other.place,
            format!(
                "{} and {first} are of different families, and Sluice does not translate between families; make it \
                 a nat service of its own",
                other.value
            ),
        );
        return None;
    }
    if let Some(key) = sources.without_single(first.address) {
        service.wrong(
            "forwarding",
            format!(
                "nat needs an address to translate clients to, and agent.{key} has only prefixes; add an address there"
            ),
        );
    }
    Some(first)
}

/// What is known of the port that probes connect to where the health check names none.
fn default_port(frontend: &backend::Frontend<'_>, backends: Option<&[Backend]>) -> DefaultPort {
    match (frontend.port, frontend.forwarding, backends) {
        (SharedPort::One(_), ..) => DefaultPort::Clear,
        (SharedPort::Unknown, ..) | (_, None, _) | (_, Some(Forwarding::Nat), None) => DefaultPort::Unknown,
        (_, Some(Forwarding::Nat), Some([first, others @ ..]))
            if first.port.is_some() && others.iter().all(|backend| backend.port.is_some()) =>
        {
            DefaultPort::Clear
        }
        _ => DefaultPort::Unclear,
    }
}
