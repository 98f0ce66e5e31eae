//! A packet and its backend → the frame as it leaves.

use super::pick::Pick;
use super::{Packet, Step, Tables};
use crate::verdict::Verdict;

/// Direct server return on one segment: only the MAC addresses change. Yields the index of the interface to transmit
/// on; 0 for the one the packet came from.
#[inline(always)]
pub(super) fn l2_dsr<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    pick: &Pick<'_>,
) -> Result<u32, Verdict> {
    if !pick.word.is_resolved() {
        return Err(Verdict::DropNoNextHop);
    }
    let hop = pick.backend.hop(pick.word);
    tables.observe(Step::NextHop { backend: pick.id, hop: *hop });
    packet.write(8, hop.rest).ok_or(Verdict::PassMalformedEthernet)?;
    packet.write(0, hop.first).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(if hop.interface == 0 || hop.interface == packet.interface() { 0 } else { hop.interface })
}
