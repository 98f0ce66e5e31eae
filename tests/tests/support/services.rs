//! The services beyond the plain ones: tunnels of every kind, VLANs, another interface, client affinity.

use std::net::IpAddr;

use lb_common::abi::{Forwarding, NextHop};
use lb_common::net::Protocol;
use lb_userspace::core::image::{VipKey, WantedBackend, WantedService};

use super::frames::EDGE_MAC;
use super::frames::wire::{FAMILIES, Family};
use super::{backend, service};

/// What stands between outer and inner IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ipip,
    Gue,
}

/// Two services, of TCP and UDP port 443 of the same VIPs of both families, whose backends are at the ends of tunnels.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    pub kind: Kind,
    pub outer: Family,
    /// Number of the VIPs.
    pub vip: u8,
    /// Numbers of the servers.
    pub servers: &'static [u8],
    /// Bits of the source's end that are filled by flow.
    pub free_bits: u32,
    pub mtu: u16,
    pub vlan: u16,
    /// Whether there is a source.
    pub sourced: bool,
}

impl Tunnel {
    const fn new(kind: Kind, outer: Family, vip: u8, servers: &'static [u8]) -> Self {
        Self { kind, outer, vip, servers, free_bits: 0, mtu: 1_500, vlan: 0, sourced: true }
    }

    pub fn name(&self) -> String {
        format!("{:?} over {}, VIP {}", self.kind, self.outer.name(), self.vip)
    }

    /// Bytes in front of the inner packet.
    pub fn overhead(&self) -> usize {
        let ip = if self.outer == Family::V4 { 20 } else { 40 };
        ip + if self.kind == Kind::Gue { 12 } else { 0 }
    }

    /// Bytes of the largest packet that fits.
    pub fn room(&self) -> usize {
        usize::from(self.mtu) - self.overhead()
    }
}

use Family::{V4, V6};
use Kind::{Gue, Ipip};

/// One of every kind.
pub const TUNNELS: [Tunnel; 4] = [
    Tunnel::new(Ipip, V4, 50, &[10, 11]),
    Tunnel::new(Ipip, V6, 51, &[12, 13]),
    Tunnel::new(Gue, V4, 52, &[14, 15]),
    Tunnel::new(Gue, V6, 53, &[16, 17]),
];
/// Those whose source is a prefix.
pub const PREFIXED: [Tunnel; 3] = [
    Tunnel { free_bits: 16, ..Tunnel::new(Ipip, V4, 54, &[18]) },
    Tunnel { free_bits: 32, ..Tunnel::new(Ipip, V6, 55, &[19]) },
    Tunnel { free_bits: 8, ..Tunnel::new(Gue, V4, 56, &[20]) },
];
/// Those that have no source.
pub const UNSOURCED: [Tunnel; 2] = [
    Tunnel { sourced: false, ..Tunnel::new(Ipip, V4, 57, &[21]) },
    Tunnel { sourced: false, ..Tunnel::new(Gue, V6, 58, &[22]) },
];
/// Those whose way has a narrow link.
pub const NARROW: [Tunnel; 4] = [
    Tunnel::new(Ipip, V4, 60, &[23]),
    Tunnel::new(Ipip, V6, 61, &[24]),
    Tunnel::new(Gue, V4, 62, &[25]),
    Tunnel::new(Gue, V6, 63, &[26]),
];
/// The next hop is on a VLAN.
pub const ON_VLAN: Tunnel = Tunnel { vlan: VLAN, ..Tunnel::new(Ipip, V4, 64, &[27]) };
/// The next hop is on none.
pub const OFF_VLAN: Tunnel = Tunnel { vlan: NO_VLAN, ..Tunnel::new(Gue, V6, 65, &[28]) };
/// Nothing is too big.
pub const BOUNDLESS: [Tunnel; 2] = [
    Tunnel { mtu: 0, ..Tunnel::new(Ipip, V4, 66, &[29]) },
    Tunnel { mtu: 0, ..Tunnel::new(Gue, V6, 68, &[31]) },
];
pub const JUMBO: Tunnel = Tunnel { mtu: 9_000, ..Tunnel::new(Gue, V6, 67, &[30]) };

pub const VLAN: u16 = 100;
/// [`NextHop::vlan`] of a next hop on no VLAN.
pub const NO_VLAN: u16 = 0x1000;
/// An interface that frames do not come in on.
pub const OTHER_INTERFACE: u32 = 7;

/// VIP numbers of services of TCP port 80, `l2-dsr`, and the servers' numbers.
pub const L2_ON_VLAN: (u8, &[u8]) = (70, &[40]);
pub const L2_OFF_VLAN: (u8, &[u8]) = (71, &[41]);
pub const L2_REDIRECTED: (u8, &[u8]) = (72, &[42]);
pub const L2_STICKY: (u8, &[u8]) = (73, &[43, 44, 45]);
pub const L2_HALF_OFF: (u8, &[u8]) = (74, &[46, 47]);
pub const L2_OFF: (u8, &[u8]) = (75, &[48]);

pub fn tunnels() -> Vec<Tunnel> {
    let mut all = [&TUNNELS[..], &PREFIXED, &UNSOURCED, &NARROW, &BOUNDLESS].concat();
    all.extend([ON_VLAN, OFF_VLAN, JUMBO]);
    all
}

pub fn mac(server: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, server]
}

fn vips(number: u8, port: u16, protocol: Protocol) -> Vec<VipKey> {
    FAMILIES.map(|family| VipKey { address: family.vip(number).into(), port, protocol }).to_vec()
}

fn tunnel_backend(tunnel: &Tunnel, server: u8) -> WantedBackend {
    let mut hop = NextHop::new(mac(server), EDGE_MAC, 0);
    let edge: IpAddr = tunnel.outer.edge();
    if tunnel.sourced {
        hop.source = edge.into();
    }
    let free = ((1_u64 << tunnel.free_bits) - 1) as u32;
    (hop.source_mask, hop.mtu, hop.vlan) = (free.to_be(), tunnel.mtu, tunnel.vlan);
    let address = tunnel.outer.server(server).into();
    WantedBackend { address, hop: Some(hop), ..backend(&format!("tunnel{server}"), server) }
}

fn tunnel_services(tunnel: &Tunnel) -> [WantedService; 2] {
    let forwarding = if tunnel.kind == Ipip { Forwarding::Ipip } else { Forwarding::Gue };
    [Protocol::TCP, Protocol::UDP].map(|protocol| {
        let servers = tunnel.servers.iter().map(|&server| tunnel_backend(tunnel, server)).collect();
        let name = format!("tunnel{}-{protocol}", tunnel.vip);
        WantedService { forwarding, ..service(&name, vips(tunnel.vip, 443, protocol), servers) }
    })
}

fn l2_service((vip, servers): (u8, &[u8])) -> WantedService {
    let servers = servers.iter().map(|&server| {
        let hop = Some(NextHop::new(mac(server), EDGE_MAC, 0));
        WantedBackend {
            address: V4.server(server).into(),
            hop,
            ..backend(&format!("server{server}"), server)
        }
    });
    service(&format!("l2-{vip}"), vips(vip, 80, Protocol::TCP), servers.collect())
}

/// The same with every next hop changed.
fn with_hops(mut service: WantedService, change: impl Fn(&mut NextHop)) -> WantedService {
    service.backends.iter_mut().filter_map(|backend| backend.hop.as_mut()).for_each(change);
    service
}

/// The same with its first backend disabled.
fn first_disabled(mut service: WantedService) -> WantedService {
    let first = &mut service.backends[0];
    (first.enabled, first.ring_weight) = (false, 0);
    service
}

pub fn services() -> Vec<WantedService> {
    let mut services: Vec<WantedService> = tunnels().iter().flat_map(tunnel_services).collect();
    services.extend([
        with_hops(l2_service(L2_ON_VLAN), |hop| hop.vlan = VLAN),
        with_hops(l2_service(L2_OFF_VLAN), |hop| hop.vlan = NO_VLAN),
        with_hops(l2_service(L2_REDIRECTED), |hop| hop.interface = OTHER_INTERFACE),
        WantedService { client_affinity: true, ..l2_service(L2_STICKY) },
        first_disabled(l2_service(L2_HALF_OFF)),
        first_disabled(l2_service(L2_OFF)),
    ]);
    services
}
