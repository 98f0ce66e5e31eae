//! The `[[service]]` tables → [`Service`]s, names and VIPs unique across them.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::abi::{MAX_BACKENDS, MAX_SERVICES};

use super::reader::{List, Section};
use super::{AllDown, Backend, BackendState, Forwarding, Protocol, Service, Vip, health, values};

/// Weight of a backend that does not say.
const WEIGHT_DEFAULT: u16 = 100;

/// What earlier services have taken, each with words for where.
#[derive(Default)]
struct Taken {
    names: HashMap<String, String>,
    vips: HashMap<(Protocol, Vip), String>,
    backends: usize,
}

/// The services, `None` when one of them is wrong in a way that leaves no value.
pub(super) fn read_all(sections: Vec<Section<'_>>) -> Option<Vec<Service>> {
    let mut taken = Taken::default();
    let mut services = Vec::with_capacity(sections.len());
    for (index, section) in sections.into_iter().enumerate() {
        if index == MAX_SERVICES as usize {
            section.wrong_at(section.place(), format!("more than {MAX_SERVICES} services"));
        }
        services.push(read(index, section, &mut taken));
    }
    services.into_iter().collect()
}

fn read(index: usize, mut service: Section<'_>, taken: &mut Taken) -> Option<Service> {
    let name = service.required("name", "write name = \"…\", unique among services", values::name);
    let here = match &name {
        Some(name) => format!("service[{index}] {name:?}, line {}", service.place().line),
        None => format!("service[{index}], line {}", service.place().line),
    };
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let protocol = service.or("protocol", Protocol::Tcp, values::choice(&protocols, &[]));
    let vips = service.list("vips", "write vips = [\"address:port\"]", values::vip);
    check_unique(&service, name.as_deref(), protocol, &vips, &here, taken);

    let forwarding = service.or(
        "forwarding",
        Forwarding::L2Dsr,
        values::choice(&[("l2-dsr", Forwarding::L2Dsr)], &["ipip", "gue", "nat"]),
    );
    service.or("affinity", (), values::choice(&[("connection", ())], &["client"]));
    let all_down = service.or(
        "all_down",
        AllDown::FailOpen,
        values::choice(&[("fail-open", AllDown::FailOpen), ("drop", AllDown::Drop)], &[]),
    );
    let min_healthy = service.or("min_healthy", 0, values::integer(0..=u32::from(u16::MAX)));

    let port = shared_port(&vips);
    let health = match service.table("health") {
        Some(section) => health::read(section, port),
        None if service.has("health") => None,
        None => protocol.map(|protocol| health::default(protocol, port)),
    };
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
    // Which ports are possible follows from the forwarding.
    let backend_port = if forwarding.is_some() { port } else { SharedPort::Unknown };
    let backends = read_backends(sections, &vips, backend_port);
    service.finish();
    Some(Service {
        name: name?,
        vips: vips.elements.into_iter().map(|element| element.value).collect(),
        protocol: protocol?,
        forwarding: forwarding?,
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

fn read_backends(sections: Vec<Section<'_>>, vips: &List<Vip>, port: SharedPort) -> Option<Vec<Backend>> {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut addresses: HashMap<IpAddr, usize> = HashMap::new();
    let mut backends = Vec::with_capacity(sections.len());
    for (index, mut backend) in sections.into_iter().enumerate() {
        let name = backend.required("name", "write name = \"…\", unique in its service", values::name);
        if let Some(name) = &name {
            let first = *names.entry(name.clone()).or_insert(index);
            if first != index {
                backend
                    .wrong("name", format!("{name:?} is already used by backend[{first}]; choose another"));
            }
        }
        let address =
            backend.required("address", "write address = \"…\", the server's own", values::backend_address);
        if let Some(address) = address {
            let first = *addresses.entry(address).or_insert(index);
            if first != index {
                backend
                    .wrong("address", format!("{address} is already used by backend[{first}]; remove one"));
            }
            if vips.elements.iter().any(|vip| vip.value.address == address) {
                backend.wrong(
                    "address",
                    format!("{address} is this service's VIP; write the server's own address"),
                );
            }
        }
        check_port(&mut backend, port);
        let weight = backend.or("weight", WEIGHT_DEFAULT, values::integer(0..=u16::MAX));
        let states = [
            ("enabled", BackendState::Enabled),
            ("drain", BackendState::Drain),
            ("disabled", BackendState::Disabled),
        ];
        let state = backend.or("state", BackendState::Enabled, values::choice(&states, &[]));
        backend.finish();
        backends.push(read_backend(name, address, weight, state));
    }
    backends.into_iter().collect()
}

fn read_backend(
    name: Option<String>,
    address: Option<IpAddr>,
    weight: Option<u16>,
    state: Option<BackendState>,
) -> Option<Backend> {
    Some(Backend { name: name?, address: address?, weight: weight?, state: state? })
}

/// A port is accepted where it changes nothing, so that a file written for `nat` reads well.
fn check_port(backend: &mut Section<'_>, shared: SharedPort) {
    let Some(Some(port)) = backend.optional("port", values::integer(1..=u16::MAX)) else { return };
    let keeps = match shared {
        SharedPort::Unknown => return,
        SharedPort::One(vip_port) if vip_port == port => return,
        SharedPort::One(vip_port) => format!("l2-dsr keeps the VIP's port {vip_port}"),
        SharedPort::None => "l2-dsr keeps the VIP's port".to_owned(),
    };
    backend.wrong("port", format!("only nat translates ports, {keeps}; remove it"));
}
