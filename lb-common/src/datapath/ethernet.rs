//! A frame → the EtherType of what it carries, and where that begins. Both pipelines begin with this.

use network_types::eth::EthHdr;

use super::Packet;
use crate::net::{Be16, EtherType};

/// VLAN tags a frame may carry.
const MAX_VLAN_TAGS: usize = 2;
/// Bytes of an EtherType.
const ETHER_TYPE_BYTES: usize = 2;
/// Bytes of a VLAN tag: tag control information and the EtherType that follows (IEEE 802.1Q).
pub(super) const VLAN_TAG_BYTES: usize = 4;

/// Steps over the Ethernet header and VLAN tags: the EtherType, and the offset of what it names; `None` if the frame is
/// shorter.
#[inline(always)]
pub(crate) fn ethernet<P: Packet>(packet: &P) -> Option<(EtherType, usize)> {
    let mut ether_type = EtherType(Be16::from_wire(packet.read(EthHdr::LEN - ETHER_TYPE_BYTES)?));
    let mut offset = EthHdr::LEN;
    let mut tags = 0;
    while tags < MAX_VLAN_TAGS && ether_type.is_vlan() {
        let [_, _, high, low] = packet.read::<[u8; VLAN_TAG_BYTES]>(offset)?;
        ether_type = EtherType(Be16::from_wire([high, low]));
        offset += VLAN_TAG_BYTES;
        tags += 1;
    }
    Some((ether_type, offset))
}
