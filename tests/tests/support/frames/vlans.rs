//! Frames whose next hop is on another VLAN, or on none.

use lb_common::verdict::Verdict;

use super::tunnels::packet;
use super::wire::{self, FAMILIES, Family, Packet, TCP, framed};
use super::{Becomes, Named, to_server};
use crate::support::services::{L2_OFF_VLAN, L2_ON_VLAN, OFF_VLAN, ON_VLAN, Tunnel};

/// What tags a frame comes with, and with which it must leave on VLAN 100.
const ONTO: [(&str, &[u8], &[u8]); 6] = [
    ("no tag", &[], &[0x81, 0, 0, 100]),
    ("the tag already", &[0x81, 0, 0, 100], &[0x81, 0, 0, 100]),
    ("another tag", &[0x81, 0, 0, 5], &[0x81, 0, 0, 100]),
    ("a priority and another tag", &[0x81, 0, 0xf0, 5], &[0x81, 0, 0xf0, 100]),
    ("a priority only", &[0x81, 0, 0xa0, 0], &[0x81, 0, 0xa0, 100]),
    ("two tags", &[0x88, 0xa8, 0x0f, 0xff, 0x81, 0, 0, 6], &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 6]),
];
/// The same of a next hop on no VLAN.
const OFF: [(&str, &[u8], &[u8]); 3] = [
    ("no tag", &[], &[]),
    ("a tag", &[0x81, 0, 0, 5], &[]),
    ("two tags", &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], &[]),
];

pub fn frames() -> Vec<Named> {
    let mut frames = Vec::new();
    for family in FAMILIES {
        for (what, came, leaves) in ONTO {
            frames.push(by_mac(family, L2_ON_VLAN, &format!("onto a VLAN with {what}"), came, leaves));
            frames.push(through(family, &ON_VLAN, &format!("onto a VLAN with {what}"), came, leaves));
        }
        for (what, came, leaves) in OFF {
            frames.push(by_mac(family, L2_OFF_VLAN, &format!("off a VLAN with {what}"), came, leaves));
            frames.push(through(family, &OFF_VLAN, &format!("off a VLAN with {what}"), came, leaves));
        }
    }
    frames
}

fn by_mac(family: Family, (vip, servers): (u8, &[u8]), what: &str, came: &[u8], leaves: &[u8]) -> Named {
    let packet = Packet::tcp(family.client(), family.vip(vip), [46_000, 80], wire::ACK, b"GET /").bytes();
    let name = format!("{}: {what}", family.name());
    to_server(name, framed(came, &packet), &framed(leaves, &packet), servers)
}

fn through(family: Family, tunnel: &Tunnel, what: &str, came: &[u8], leaves: &[u8]) -> Named {
    let frame = packet(tunnel, family, TCP, b"GET /").tagged(came);
    let name = format!("{} through {} {what}", family.name(), tunnel.name());
    Named::new(name, frame, Verdict::Forward, Becomes::Tunnelled(*tunnel, leaves.to_vec()))
}
