//! What the probing programs and the agent share: the mark of a health check's packets, and where each leads.

use super::Word;
use crate::net::Address;

/// The mark (`SO_MARK`) of packets that are to go through the forwarding path: this, and the index of a
/// [`ProbeTarget`] in the bits that [`PROBE_MARK_MASK`] leaves.
pub const PROBE_MARK: u32 = 0x5100_0000;
/// The bits of [`PROBE_MARK`].
pub const PROBE_MARK_MASK: u32 = 0xff00_0000;

/// Names of the maps that only the probing programs' object has.
pub mod probe_map {
    /// [`ProbeTarget`](super::ProbeTarget)s by index.
    pub const TARGETS: &str = "probe_targets";
    /// The backend's [`Address`](crate::net::Address) by the [`TupleKey`](crate::abi::TupleKey) of its answers.
    pub const ANSWERS: &str = "probe_answers";
}

/// Where a health check goes: it is a connection to the backend's own address as far as the host knows, and one to the VIP
/// on the wire.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProbeTarget {
    /// The VIP that the backend is to be asked at. Written before `backend`.
    pub vip: Address,
    /// The backend's own address, of the same family.
    pub address: Address,
    /// The backend's id; 0 while it has none.
    pub backend: Word,
    /// Packets that were sent. Counted without a lock: that it changes is what matters.
    pub sent: Word,
    /// Packets that came back.
    pub answered: Word,
    /// To a cache line.
    pub padding: Word,
}
