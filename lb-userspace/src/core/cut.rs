//! The VIPs that are loaded, and those wanted → the services whose flows no longer find the way to them.

use std::collections::{BTreeMap, HashMap};

use lb_common::abi::Forwarding;
use lb_common::net::Protocol;

use super::image::{Image, VipKey, WantedService};

/// How many of a service's flows find the way to it no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of them.
    Whole,
    /// Those of some of its VIPs. Which those are, the flow table does not tell.
    Part,
}

/// The services that stay, by id, and lose a VIP, or whose flows are translated from then on or no longer are.
pub fn cut_off<'a>(
    loaded: &Image,
    wanted: impl Iterator<Item = (u32, &'a WantedService)>,
) -> BTreeMap<u32, Cut> {
    let wanted: BTreeMap<u32, &WantedService> = wanted.collect();
    let keys = wanted.iter().flat_map(|(id, service)| service.vips.iter().map(|key| (*key, *id)));
    let after: HashMap<VipKey, u32> = keys.collect();
    let before: HashMap<VipKey, u32> =
        loaded.vips.iter().map(|(key, target)| (*key, target.service)).collect();
    // Of each service, whether a VIP of it stays, and whether one goes.
    let mut found: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
    let published = |key: &VipKey| [Protocol::TCP, Protocol::UDP].contains(&key.protocol);
    for (key, &id) in before.iter().filter(|(key, id)| published(key) && wanted.contains_key(id)) {
        let every_port = VipKey { port: 0, ..*key };
        let stays = after.get(key).or_else(|| after.get(&every_port)) == Some(&id);
        let (kept, lost) = found.entry(id).or_default();
        *kept |= stays;
        *lost |= !stays;
        if key.port == 0 {
            // Ports of it may have gone to other services, or be all that is left.
            let ports = || after.iter().filter(|(port, _)| VipKey { port: 0, ..**port } == *key);
            *lost |= ports().any(|(port, owner)| *owner != id && before.get(port) != Some(owner));
            *kept |= ports().any(|(_, owner)| *owner == id);
        }
    }
    let translated = |forwarding: Forwarding| forwarding == Forwarding::Nat;
    for backend in loaded.backends.values() {
        let Some(service) = wanted.get(&backend.service) else { continue };
        if translated(service.forwarding) != translated(backend.forwarding) {
            found.insert(backend.service, (false, true));
        }
    }
    let cut = |(kept, lost)| match (kept, lost) {
        (false, true) => Some(Cut::Whole),
        (true, true) => Some(Cut::Part),
        _ => None,
    };
    found.into_iter().filter_map(|(id, found)| Some((id, cut(found)?))).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::net::Address;

    use super::*;
    use crate::core::image::{LoadedBackend, VipTarget};

    fn tcp(host: u8, port: u16) -> VipKey {
        VipKey { address: Address::v4([203, 0, 113, host]), port, protocol: Protocol::TCP }
    }

    fn cut(before: &[(VipKey, u32)], after: &[(VipKey, u32)]) -> Vec<(u32, Cut)> {
        let target = |service| VipTarget { service, ..VipTarget::default() };
        let loaded = Image {
            vips: before.iter().map(|(key, service)| (*key, target(*service))).collect(),
            backends: [(1, LoadedBackend::well("a", 0))].into(),
            ..Image::default()
        };
        let services: Vec<WantedService> = (0..2)
            .map(|id| WantedService {
                name: id.to_string(),
                forwarding: Forwarding::L2Dsr,
                client_affinity: false,
                vips: after.iter().filter(|(_, of)| *of == id).map(|(key, _)| *key).collect(),
                backends: Vec::new(),
            })
            .collect();
        cut_off(&loaded, (0..).zip(&services)).into_iter().collect()
    }

    #[test]
    fn a_service_whose_vip_goes_or_moves_is_cut_off() {
        let one = [(tcp(10, 80), 0)];
        assert_eq!(cut(&one, &one), []);
        assert_eq!(cut(&one, &[(tcp(11, 80), 0)]), [(0, Cut::Whole)]);
        assert_eq!(cut(&one, &[(tcp(10, 80), 1), (tcp(11, 80), 0)]), [(0, Cut::Whole)], "moved");
        let udp = VipKey { protocol: Protocol::UDP, ..tcp(10, 80) };
        assert_eq!(cut(&one, &[(udp, 0)]), [(0, Cut::Whole)]);
        let two = [(tcp(10, 80), 0), (tcp(10, 443), 0)];
        assert_eq!(cut(&two, &one), [(0, Cut::Part)]);
        assert_eq!(cut(&one, &two), []);
    }

    #[test]
    fn every_port_holds_the_ports_that_nobody_else_has() {
        let (every, one) = (tcp(10, 0), tcp(10, 80));
        assert_eq!(cut(&[(one, 0)], &[(every, 0)]), []);
        assert_eq!(cut(&[(every, 0)], &[(one, 0)]), [(0, Cut::Part)]);
        assert_eq!(cut(&[(every, 0)], &[(every, 0), (one, 1)]), [(0, Cut::Part)]);
        assert_eq!(cut(&[(every, 0), (one, 1)], &[(every, 0), (one, 1)]), []);
        assert_eq!(cut(&[(every, 0)], &[(one, 1)]), [(0, Cut::Whole)]);
    }

    #[test]
    fn who_is_translated_from_now_on_loses_all_flows() {
        let loaded = Image { backends: [(1, LoadedBackend::well("a", 0))].into(), ..Image::default() };
        let service = |forwarding| WantedService {
            name: "web".to_owned(),
            forwarding,
            client_affinity: false,
            vips: Vec::new(),
            backends: Vec::new(),
        };
        let cut = |forwarding| cut_off(&loaded, [(0, &service(forwarding))].into_iter());
        assert_eq!(cut(Forwarding::Nat), [(0, Cut::Whole)].into());
        assert_eq!(cut(Forwarding::Ipip), BTreeMap::new());
    }
}
