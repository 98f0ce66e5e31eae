//! Packets to VIPs and backends, and what comes back → facts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::net::if_::if_nametoindex;

use super::wire::{Next, exchange};
use super::{Ways, name_of};
use crate::core::config::{BackendState, Config, Forwarding, Protocol};
use crate::core::doctor::{Facts, VipAnswer, VipProbe, frames};
use crate::io::host;
use crate::io::neighbours::{Reach, Resolver};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// How long answers may take.
const PATIENCE: Duration = Duration::from_millis(600);
/// Source ports of opening packets: one for each, so that answers are told apart.
const FIRST_PORT: u16 = 20_000;
/// Opening packets at most.
const MAX_OPENINGS: u16 = 2_000;
/// Port that a VIP of every port is asked for.
const ANY_PORT: u16 = 80;

type Mac = [u8; 6];

/// Asks everything there is to be asked; without the right to send packets, nothing.
pub(super) async fn run(
    config: &Config,
    resolver: &Resolver,
    ways: &Ways,
    facts: &mut Facts,
) -> io::Result<()> {
    let own = host::addresses_by_interface()?;
    let vips: BTreeSet<IpAddr> =
        config.services.iter().flat_map(|service| &service.vips).map(|vip| vip.address).collect();
    let mut segments = BTreeMap::new();
    for name in
        config.agent.interfaces.iter().cloned().chain(ways.values().flatten().map(|way| name_of(way.ifindex)))
    {
        if let Ok(interface) = resolver.interface(&name).await {
            segments.insert(name, interface.mac);
        }
    }
    let pings = pings(resolver, &own, &vips, facts).await;
    let openings = openings(config, ways, &own, &vips);
    let asked = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let arp = ask_arp(&segments, &own, &vips)?;
        Ok((arp, open(openings)?, ping(pings)?))
    });
    match asked.await.map_err(io::Error::other)? {
        Ok((arp, openings, routed)) => {
            (facts.arp_answers, facts.vip_probes, facts.routed_here) = (arp, openings, routed);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Who on the segments answers for the VIPs, this host apart.
fn ask_arp(
    segments: &BTreeMap<String, Mac>,
    own: &[(String, IpAddr)],
    vips: &BTreeSet<IpAddr>,
) -> io::Result<Vec<(IpAddr, Mac)>> {
    let mut answers = BTreeSet::new();
    for (name, &mac) in segments {
        let Ok(ifindex) = if_nametoindex(name.as_str()) else { continue };
        let request = |vip: &IpAddr| {
            let IpAddr::V4(v4) = vip else { return None };
            let from = match host::source(own, name, *vip, vips) {
                Some(IpAddr::V4(own)) => own,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            Some(frames::arp_request(mac, from, *v4))
        };
        let requests: Vec<Vec<u8>> = vips.iter().filter_map(request).collect();
        exchange(ifindex, ARP, &requests, PATIENCE, |frame| {
            if let Some((address, mac)) = frames::arp_answer(frame)
                && vips.contains(&address.into())
                && !segments.values().any(|own| *own == mac)
            {
                answers.insert((IpAddr::from(address), mac));
            }
            Next::Wait
        })?;
    }
    Ok(answers.into_iter().collect())
}

/// An opening packet that is to be sent.
struct Opening {
    ifindex: u32,
    macs: (Mac, Mac),
    from: SocketAddr,
    probe: VipProbe,
}

/// The opening packets for all VIPs of `l2-dsr` services to all their backends.
fn openings(config: &Config, ways: &Ways, own: &[(String, IpAddr)], vips: &BTreeSet<IpAddr>) -> Vec<Opening> {
    let mut openings = Vec::new();
    let mut ports = FIRST_PORT..FIRST_PORT + MAX_OPENINGS;
    let direct = config
        .services
        .iter()
        .filter(|service| service.forwarding == Forwarding::L2Dsr && service.protocol == Protocol::Tcp);
    for service in direct {
        for backend in service.backends.iter().filter(|backend| backend.state != BackendState::Disabled) {
            let Some(Ok(way)) = ways.get(&(backend.address, true)) else { continue };
            let interface = name_of(way.ifindex);
            for vip in &service.vips {
                let port = if vip.port == 0 { service.probe_port(backend).unwrap_or(0) } else { vip.port };
                let vip = SocketAddr::new(vip.address, if port == 0 { ANY_PORT } else { port });
                let source = host::source(own, &interface, vip.ip(), vips).filter(|_| way.vlan.is_none());
                let (Some(source), Some(port)) = (source, ports.next()) else { continue };
                openings.push(Opening {
                    ifindex: way.ifindex,
                    macs: (way.source_mac, way.destination_mac),
                    from: SocketAddr::new(source, port),
                    probe: VipProbe {
                        service: service.name.clone(),
                        backend: backend.name.clone(),
                        address: backend.address,
                        vip,
                        answer: VipAnswer::Nothing,
                    },
                });
            }
        }
    }
    openings
}

/// Sends opening packets and ends what they opened.
fn open(mut openings: Vec<Opening>) -> io::Result<Vec<VipProbe>> {
    let places: BTreeSet<(u32, bool)> =
        openings.iter().map(|opening| (opening.ifindex, opening.from.is_ipv4())).collect();
    for (ifindex, v4) in places {
        let here = |opening: &&mut Opening| opening.ifindex == ifindex && opening.from.is_ipv4() == v4;
        let mut here: Vec<&mut Opening> = openings.iter_mut().filter(here).collect();
        let packets: Vec<Vec<u8>> = here
            .iter()
            .filter_map(|opening| frames::opening(opening.macs, opening.from, opening.probe.vip))
            .collect();
        let mut open = here.len();
        exchange(ifindex, if v4 { IPV4 } else { IPV6 }, &packets, PATIENCE, |frame| {
            let Some(answer) = frames::answer(frame) else { return Next::Wait };
            let asked =
                here.iter_mut().find(|opening| opening.from == answer.to && opening.probe.vip == answer.vip);
            let Some(asked) = asked else { return Next::Wait };
            if asked.probe.answer == VipAnswer::Nothing {
                open -= 1;
            }
            asked.probe.answer = if answer.accepted { VipAnswer::Accepted } else { VipAnswer::Refused };
            match answer.reset(asked.macs).filter(|_| answer.accepted) {
                Some(reset) => Next::Send(reset),
                None if open == 0 => Next::End,
                None => Next::Wait,
            }
        })?;
    }
    Ok(openings.into_iter().map(|opening| opening.probe).collect())
}

/// An echo request to a VIP that is to be sent to the gateway.
struct Ping {
    ifindex: u32,
    macs: (Mac, Mac),
    from: IpAddr,
    vip: IpAddr,
}

/// The echo requests to VIPs that are no addresses of this host, for which the routes of this host lead somewhere.
async fn pings(
    resolver: &Resolver,
    own: &[(String, IpAddr)],
    vips: &BTreeSet<IpAddr>,
    facts: &Facts,
) -> Vec<Ping> {
    let mut pings = Vec::new();
    for &vip in vips.iter().filter(|vip| !facts.local_vips.contains(vip)) {
        let Ok(way) = resolver.resolve_within(vip, Reach::Routed, PATIENCE).await else { continue };
        if let Some(from) = host::source(own, &name_of(way.ifindex), vip, vips).filter(|_| way.vlan.is_none())
        {
            let macs = (way.source_mac, way.destination_mac);
            pings.push(Ping { ifindex: way.ifindex, macs, from, vip });
        }
    }
    pings
}

/// Whether each of them came back, or was answered.
fn ping(pings: Vec<Ping>) -> io::Result<BTreeMap<IpAddr, bool>> {
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1);
    let mut seen: BTreeMap<IpAddr, bool> = pings.iter().map(|ping| (ping.vip, false)).collect();
    for ping in pings {
        let Some(request) = frames::ping(ping.macs, ping.from, ping.vip, id) else { continue };
        let ether_type = if ping.vip.is_ipv4() { IPV4 } else { IPV6 };
        exchange(ping.ifindex, ether_type, &[request], PATIENCE, |frame| {
            if frames::ping_seen(frame, ping.macs.0, id) != Some(ping.vip) {
                return Next::Wait;
            }
            seen.insert(ping.vip, true);
            Next::End
        })?;
    }
    Ok(seen)
}
