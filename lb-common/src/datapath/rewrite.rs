//! A packet and its backend → the frame as it leaves.

use super::{Packet, Step, Tables};
use crate::abi::Backend;
use crate::verdict::Verdict;

/// Direct server return on one segment: only the MAC addresses change. Yields the index of the interface to transmit
/// on; 0 for the one the packet came from.
#[inline(always)]
pub(super) fn l2_dsr<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    id: u16,
    backend: &Backend,
) -> Result<u32, Verdict> {
    let word = backend.load();
    if !word.resolved {
        return Err(Verdict::DropNoNextHop);
    }
    let hop = if word.second_hop { &backend.hops[1] } else { &backend.hops[0] };
    tables.observe(Step::NextHop { backend: id, macs: hop.macs, interface: hop.interface });
    packet.write(0, hop.macs).ok_or(Verdict::PassMalformedEthernet)?;
    Ok(if hop.interface == packet.interface() { 0 } else { hop.interface })
}
