//! The VIP table: (VIP, port, protocol) → service id.

use super::VIP_WAYS;
use crate::net::{Address, Be16, Protocol};

/// One VIP, port and protocol, and the service it belongs to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VipSlot {
    /// The virtual address.
    pub address: Address,
    /// The service's id.
    pub service: u32,
    /// The port; 0 for every port.
    pub port: Be16,
    /// IP protocol number. ICMP marks that the address is a VIP at all.
    pub protocol: u8,
    /// 1 if the slot holds a VIP, 0 if it is empty.
    pub used: u8,
    /// To half a cache line.
    pub padding: [u8; 8],
}

impl VipSlot {
    /// Whether this slot holds this VIP.
    #[inline(always)]
    pub fn is(&self, address: Address, port: Be16, protocol: Protocol) -> bool {
        self.used != 0 && self.address == address && self.port == port && self.protocol == protocol.0
    }
}

/// Two VIPs: a cache line. An empty slot ends the search.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct VipBucket {
    /// Filled from the front.
    pub slots: [VipSlot; VIP_WAYS],
}
