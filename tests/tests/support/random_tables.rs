//! Chance → services of every mode and family, as an agent could want them.

use std::collections::BTreeSet;

use lb_common::abi::{Forwarding, NextHop};
use lb_common::datapath::TimedOpenings;
use lb_common::net::{Address, Protocol};
use lb_userspace::core::image::{Globals, VipKey, Wanted, WantedBackend, WantedService};

use super::dice::Dice;
use super::nat_frames::{EDGE, Family, UNTAGGED, server_mac};

/// Services of one table at most.
pub const SERVICES: usize = 8;
/// Backends of one service at most.
pub const BACKENDS: usize = 4;
/// VIPs of one service at most.
const VIPS: usize = 3;
/// Addresses of the hosts in play: the last byte is below.
pub const HOSTS: usize = 6;
pub const VIP_PORTS: [u16; 4] = [0, 53, 80, 443];

/// Services, at most [`SERVICES`].
pub fn wanted(dice: &mut Dice) -> Wanted {
    let mut taken = BTreeSet::new();
    let services: Vec<WantedService> =
        (0..1 + dice.below(SERVICES)).map(|number| service(dice, number, &mut taken)).collect();
    let globals = globals(dice);
    let snat = snat(&services, &globals);
    Wanted { ring_seed: super::SEED, globals, snat, services, ..Wanted::default() }
}

fn globals(dice: &mut Dice) -> Globals {
    let mut list = |family: Family| {
        let count = dice.of(&[0, 0, 1, 3]);
        (1..=count).map(|host| Address::from(family.snat(host))).collect::<Vec<_>>()
    };
    let snat = [list(Family::V4), list(Family::V6)];
    let sources = [Family::V4, Family::V6]
        .map(|family| if dice.once_in(2) { family.snat(50).into() } else { Address::ZERO });
    let timed_openings = TimedOpenings::one_in(dice.of(&[0, 1, 1, 8]));
    Globals { reply_oversized: dice.once_in(2), timed_openings, sources, snat }
}

/// The addresses whose packets are looked up as answers: as the agent has them.
fn snat(services: &[WantedService], globals: &Globals) -> BTreeSet<Address> {
    let translated = services.iter().filter(|service| service.forwarding == Forwarding::Nat);
    let sources = translated.flat_map(|service| &service.backends).filter_map(|backend| backend.hop);
    let sources = sources.map(|hop| hop.source).filter(|source| !source.is_zero());
    globals.snat.iter().flatten().copied().chain(sources).collect()
}

fn service(dice: &mut Dice, number: usize, taken: &mut BTreeSet<(Address, u16, u8)>) -> WantedService {
    let forwarding =
        dice.of(&[Forwarding::Nat, Forwarding::Nat, Forwarding::L2Dsr, Forwarding::Ipip, Forwarding::Gue]);
    let protocol = dice.of(&[Protocol::TCP, Protocol::UDP]);
    let family = dice.of(&[Family::V4, Family::V6]);
    let mut vips = Vec::new();
    for _ in 0..1 + dice.below(VIPS) {
        // Only tunnels cross families.
        let tunnel = matches!(forwarding, Forwarding::Ipip | Forwarding::Gue);
        let family = if tunnel { dice.of(&[Family::V4, Family::V6]) } else { family };
        let host = dice.below(HOSTS) as u8;
        let key =
            VipKey { address: family.virtual_address(host).into(), port: dice.of(&VIP_PORTS), protocol };
        if taken.insert((key.address, key.port, protocol.0)) {
            vips.push(key);
        }
    }
    let count = dice.of(&[0, 1, 2, 2, 3, 3, BACKENDS, BACKENDS]);
    let backends = (0..count).map(|place| backend(dice, family, number * BACKENDS + place)).collect();
    let client_affinity = dice.once_in(3);
    WantedService { name: format!("service{number}"), forwarding, client_affinity, vips, backends }
}

fn backend(dice: &mut Dice, family: Family, number: usize) -> WantedBackend {
    let host = 1 + number as u8;
    let enabled = !dice.once_in(10);
    let healthy = !dice.once_in(8);
    // A ring with a disabled backend is a fault, which must be met alike.
    let eligible = healthy && enabled || dice.once_in(20);
    WantedBackend {
        // Now and then it is another server.
        name: format!("backend{number}-{}", dice.below(2)),
        address: family.server(host).into(),
        enabled,
        healthy,
        probed_healthy: healthy,
        ring_weight: if eligible { dice.of(&[0, 1, 100, 100, 100]) } else { 0 },
        port: dice.of(&[0, 0, 80, 8_080]),
        hop: (!dice.once_in(10)).then(|| hop(dice, family, host)),
    }
}

fn hop(dice: &mut Dice, family: Family, host: u8) -> NextHop {
    let mut hop = NextHop::new(server_mac(host), EDGE, dice.of(&[0, 0, 1, 7]));
    if !dice.once_in(10) {
        hop.source = family.snat(dice.of(&[1, 50, 60])).into();
    }
    hop.source_mask = dice.of(&[0, 0, 0xff_u32.to_be(), 0xffff_u32.to_be()]);
    hop.mtu = dice.of(&[0, 0, 0, 1_500, 1_500, 1_280, 576, 100]);
    hop.vlan = dice.of(&[0, 0, 0, UNTAGGED, 100, 300]);
    hop
}
