//! The `[[service.backend]]` tables of a service → [`Backend`]s that go with its VIPs and its forwarding.

use std::collections::HashMap;
use std::net::IpAddr;

use super::reader::{List, Section};
use super::service::SharedPort;
use super::{Backend, BackendState, Forwarding, Vip, values};
use crate::core::names;

/// Weight of a backend that does not say.
const WEIGHT_DEFAULT: u16 = 100;

/// What of a service its backends must go with.
pub(super) struct Frontend<'a> {
    pub(super) vips: &'a List<Vip>,
    /// `None` when it is wrong: then nothing follows from it.
    pub(super) forwarding: Option<Forwarding>,
    pub(super) port: SharedPort,
    /// A VIP whose family the backends must have.
    pub(super) nat_vip: Option<Vip>,
}

/// The backends, `None` when one of them is wrong in a way that leaves no value.
pub(super) fn read_all(sections: Vec<Section<'_>>, frontend: &Frontend<'_>) -> Option<Vec<Backend>> {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut addresses: HashMap<IpAddr, (usize, Option<String>)> = HashMap::new();
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
            let (first, by) = addresses.entry(address).or_insert_with(|| (index, name.clone()));
            if *first != index {
                let by = by.as_ref().map_or(String::new(), |name| format!(" {name:?}"));
                backend.wrong(
                    "address",
                    format!("{address} is already used by backend[{first}]{by}; choose another"),
                );
            }
            check_address(&backend, address, frontend);
        }
        backends.push(read(backend, name, address, frontend));
    }
    backends.into_iter().collect()
}

fn read(
    mut backend: Section<'_>,
    name: Option<String>,
    address: Option<IpAddr>,
    frontend: &Frontend<'_>,
) -> Option<Backend> {
    let port = port(&mut backend, frontend);
    let weight = backend.or("weight", WEIGHT_DEFAULT, values::integer(0..=u16::MAX));
    let states = [
        ("enabled", BackendState::Enabled),
        ("drain", BackendState::Drain),
        ("disabled", BackendState::Disabled),
    ];
    let state = backend.or("state", BackendState::Enabled, values::choice(&states));
    backend.finish();
    Some(Backend { name: name?, address: address?, port: port?, weight: weight?, state: state? })
}

fn check_address(backend: &Section<'_>, address: IpAddr, frontend: &Frontend<'_>) {
    if frontend.vips.elements.iter().any(|vip| vip.value.address == address) {
        backend.wrong("address", format!("{address} is this service's VIP; write the server's own address"));
    }
    if let Some(vip) = frontend.nat_vip.filter(|vip| vip.address.is_ipv4() != address.is_ipv4()) {
        let message = format!(
            "{address} and the VIP {vip} are of different families, and Sluice does not translate between families; \
             write the server's {} address, or use ipip or gue",
            if vip.address.is_ipv4() { "IPv4" } else { "IPv6" },
        );
        backend.wrong("address", message);
    }
}

/// The port to translate to. In the other modes one is accepted where it changes nothing, so that a file written for
/// `nat` reads well.
fn port(backend: &mut Section<'_>, frontend: &Frontend<'_>) -> Option<Option<u16>> {
    let Some(port) = backend.optional("port", values::integer(1..=u16::MAX))? else { return Some(None) };
    let Some(mode) = frontend.forwarding else { return Some(None) };
    if mode == Forwarding::Nat {
        if let Some(vip) = frontend.vips.elements.iter().find(|vip| vip.value.port == 0) {
            let message =
                format!("the VIP {} stands for every port, and each is kept; remove this one", vip.value);
            backend.wrong("port", message);
        }
        return Some(Some(port));
    }
    let mode = names::forwarding(mode);
    let keeps = match frontend.port {
        SharedPort::Unknown => return Some(None),
        SharedPort::One(vip_port) if vip_port == port => return Some(None),
        SharedPort::One(vip_port) => format!("{mode} keeps the VIP's port {vip_port}"),
        SharedPort::None => format!("{mode} keeps the VIP's port"),
    };
    backend.wrong("port", format!("only nat translates ports, {keeps}; remove it"));
    None
}
