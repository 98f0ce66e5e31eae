//! A tunnel packet → the packet inside it, for the host to take: the backend's side of `ipip` and `gue`.
//!
//! Like the load balancer's pipeline this one is written once, over [`Packet`] and [`DecapTables`]. It takes off one
//! outer IPv4 or IPv6 header, and the UDP and GUE headers behind it, if the packet was sent to an address of this host,
//! comes from a listed source and has a listed VIP inside. A tunnel packet to this host that is not so is dropped, for
//! the kernel's own tunnel devices would take it. Whatever is no tunnel packet to this host is not touched.
//!
//! Of the outer packet no checksum is verified: those of the inner packet, which the host verifies, cover what is
//! delivered. The host also discards an inner packet of which the frame holds less than promised.

mod outer;
mod slice;
mod verdict;

pub use slice::DecapSlices;
pub use verdict::Verdict;

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::abi::{
    DECAP_BUCKETS, DecapControl, DecapRoles, MAX_DECAP_SOURCES, SourcePrefix, VIP_PROBES, VipBucket,
};
use crate::checksum::Change;
use crate::datapath::Packet;
use crate::hash;
use crate::net::{Address, Be16, EtherType, Protocol};

use outer::{Outer, Tunnel};

/// Bytes of the GUE header that is always there, and of one word of what may follow it.
const GUE_WORD_BYTES: usize = 4;
/// Words that may follow the first of a GUE header: private data, which is skipped.
pub const MAX_GUE_EXTRA_WORDS: usize = 8;

/// The tables of the decapsulating program.
pub trait DecapTables: Sized {
    /// What is in force.
    fn control(&self) -> Option<&DecapControl>;
    /// A prefix of accepted outer sources.
    fn source(&self, index: u32) -> Option<&SourcePrefix>;
    /// A bucket of the table of addresses, by its index over both halves.
    fn address_bucket(&self, index: u32) -> Option<&VipBucket>;
    /// Counts a packet. Called by [`process`] alone.
    fn count(&self, verdict: Verdict);

    /// What an address is here. The kernel overrides this and the next with functions that are verified by themselves:
    /// the verifier would go through their loops anew for every way that leads to them.
    #[inline(always)]
    fn roles(&self, address: Address) -> DecapRoles {
        roles(self, address)
    }

    /// Whether tunnels are accepted from this source.
    #[inline(always)]
    fn accepts(&self, source: Address) -> bool {
        accepts(self, source)
    }
}

/// What [`DecapTables::roles`] answers, from the table of addresses.
#[inline(always)]
pub fn roles<T: DecapTables>(tables: &T, address: Address) -> DecapRoles {
    let none = DecapRoles::default();
    let Some(control) = tables.control() else { return none };
    let first_bucket = control.first_bucket.load() as u32;
    let key = DecapRoles::key(address);
    let first = hash::vip(address, key);
    let mut probe = 0;
    while probe < VIP_PROBES {
        let index = first.wrapping_add(probe) & (DECAP_BUCKETS - 1);
        let Some(bucket) = tables.address_bucket(first_bucket.wrapping_add(index)) else { return none };
        for slot in &bucket.slots {
            if slot.is(address, key) {
                return DecapRoles(slot.service.into());
            }
            if slot.is_empty() {
                return none;
            }
        }
        probe += 1;
    }
    none
}

/// What [`DecapTables::accepts`] answers, from the list of sources.
#[inline(always)]
pub fn accepts<T: DecapTables>(tables: &T, source: Address) -> bool {
    let Some(control) = tables.control() else { return false };
    let mut index = 0;
    while index < MAX_DECAP_SOURCES && index < control.sources {
        let Some(prefix) = tables.source(index) else { return false };
        if prefix.contains(source) {
            return true;
        }
        index += 1;
    }
    false
}

/// Sends one frame through the pipeline. Every packet leaves here, and here it is counted. The frame goes on to the host
/// unless [`Verdict::is_drop`].
#[inline(always)]
pub fn process<P: Packet, T: DecapTables>(packet: &mut P, tables: &T) -> Verdict {
    let verdict = decapsulate(packet, tables).unwrap_or_else(|verdict| verdict);
    tables.count(verdict);
    verdict
}

#[inline(always)]
fn decapsulate<P: Packet, T: DecapTables>(packet: &mut P, tables: &T) -> Result<Verdict, Verdict> {
    let outer = outer::read(packet)?;
    let tunnel = match outer.tunnel(packet) {
        Some(tunnel) => tunnel,
        None if outer.is_unknown => Tunnel::Ipip,
        None => return Err(Verdict::PassNotTunnel),
    };
    if !tables.roles(outer.destination).has(DecapRoles::LOCAL) {
        return Err(Verdict::PassOtherHost);
    }
    if !tables.accepts(outer.source) {
        return Err(Verdict::DropSource);
    }
    if outer.is_fragment {
        return Err(Verdict::DropFragment);
    }
    if outer.has_foreign_extensions || outer.is_unknown {
        return Err(Verdict::DropExtensions);
    }
    let wrapped = match tunnel {
        Tunnel::Ipip => {
            Wrapped { offset: outer.payload_offset, bytes: outer.payload_bytes, protocol: outer.protocol }
        }
        Tunnel::Gue => gue(packet, &outer)?,
    };
    let inner = Inner::read(packet, &wrapped).ok_or(Verdict::DropMalformedInner)?;
    if !tables.roles(inner.destination).has(DecapRoles::VIP) {
        return Err(Verdict::DropNotVip);
    }
    if inner.protocol == Protocol::IPIP || inner.protocol == Protocol::IPV6 {
        return Err(Verdict::DropNested);
    }
    let ecn = inner.ecn.after(outer.ecn).ok_or(Verdict::DropEcn)?;
    unwrap(packet, &outer, &wrapped, &inner, ecn).ok_or(Verdict::DropInconsistent)?;
    Ok(match tunnel {
        Tunnel::Ipip => Verdict::Ipip,
        Tunnel::Gue => Verdict::Gue,
    })
}

/// Where a wrapped packet lies.
#[derive(Clone, Copy, Debug)]
struct Wrapped {
    /// Offset in bytes.
    offset: usize,
    /// Bytes there are for it by the headers in front of it.
    bytes: usize,
    /// [`Protocol::IPIP`] or [`Protocol::IPV6`].
    protocol: Protocol,
}

/// Steps over UDP and GUE (draft-ietf-intarea-gue): variant 0 with data, or variant 1, which is the inner packet itself.
#[inline(always)]
fn gue<P: Packet>(packet: &P, outer: &Outer) -> Result<Wrapped, Verdict> {
    let [_, _, _, _, high, low, _, _] =
        packet.read::<[u8; UdpHdr::LEN]>(outer.payload_offset).ok_or(Verdict::DropMalformedGue)?;
    let udp_bytes = usize::from(Be16::from_wire([high, low]).get());
    let offset = outer.payload_offset + UdpHdr::LEN;
    if udp_bytes < UdpHdr::LEN + GUE_WORD_BYTES || udp_bytes > outer.payload_bytes {
        return Err(Verdict::DropMalformedGue);
    }
    let bytes = udp_bytes - UdpHdr::LEN;
    let [first, protocol, flags @ ..] =
        packet.read::<[u8; GUE_WORD_BYTES]>(offset).ok_or(Verdict::DropMalformedGue)?;
    // The variant is the upper two bits; in variant 1 they are those of the inner packet's version.
    match first >> 4 {
        4 => return Ok(Wrapped { offset, bytes, protocol: Protocol::IPIP }),
        6 => return Ok(Wrapped { offset, bytes, protocol: Protocol::IPV6 }),
        _ => {}
    }
    let protocol = Protocol(protocol);
    let is_control = first & 0x20 != 0;
    let extra_words = usize::from(first & 0x1f);
    let is_ip = protocol == Protocol::IPIP || protocol == Protocol::IPV6;
    // A flag that is not understood may change what the payload means (section 3.3); we understand none.
    if first >> 6 != 0 || is_control || extra_words > MAX_GUE_EXTRA_WORDS || flags != [0, 0] || !is_ip {
        return Err(Verdict::DropGueUnsupported);
    }
    let header_bytes = GUE_WORD_BYTES * (1 + extra_words);
    let bytes = bytes.checked_sub(header_bytes).ok_or(Verdict::DropMalformedGue)?;
    Ok(Wrapped { offset: offset + header_bytes, bytes, protocol })
}

/// What is looked at of the inner packet.
#[derive(Clone, Copy, Debug)]
struct Inner {
    destination: Address,
    protocol: Protocol,
    ecn: Ecn,
}

impl Inner {
    /// Reads the IP header: complete, of the right version, and with no more behind it than there is room.
    #[inline(always)]
    fn read<P: Packet>(packet: &P, wrapped: &Wrapped) -> Option<Self> {
        if wrapped.protocol == Protocol::IPIP {
            let [first, _, third, _, destination] = packet.read::<[u32; 5]>(wrapped.offset)?;
            let [version_and_length, traffic_class, high, low] = first.to_ne_bytes();
            let header_bytes = usize::from(version_and_length & 0x0f) * 4;
            let total_bytes = usize::from(Be16::from_wire([high, low]).get());
            // The last word of the header is in the frame, so all of it is.
            packet.read::<u32>(wrapped.offset + header_bytes.checked_sub(size_of::<u32>())?)?;
            let fits = header_bytes >= Ipv4Hdr::LEN
                && total_bytes >= header_bytes
                && total_bytes <= wrapped.bytes
                && version_and_length >> 4 == 4;
            fits.then_some(Self {
                destination: Address::v4(destination.to_ne_bytes()),
                protocol: Protocol(third.to_ne_bytes()[1]),
                ecn: Ecn::of(traffic_class),
            })
        } else {
            let [first, second, _, _, _, _, a, b, c, d] = packet.read::<[u32; 10]>(wrapped.offset)?;
            let [version_and_class, class_and_label, ..] = first.to_ne_bytes();
            let [high, low, next, _] = second.to_ne_bytes();
            let total_bytes = Ipv6Hdr::LEN + usize::from(Be16::from_wire([high, low]).get());
            let fits = total_bytes <= wrapped.bytes && version_and_class >> 4 == 6;
            let destination = Address::from_words([a, b, c, d]);
            // On the wire an IPv4-mapped address is nobody's; it must not be taken for an IPv4 VIP.
            (fits && !destination.is_v4()).then_some(Self {
                destination,
                protocol: Protocol(next),
                ecn: Ecn::of(version_and_class << 4 | class_and_label >> 4),
            })
        }
    }
}

/// Explicit congestion notification: the lower two bits of the traffic class (RFC 3168).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ecn(u8);

impl Ecn {
    const NOT_CAPABLE: Self = Self(0);
    const ECT_1: Self = Self(1);
    const ECT_0: Self = Self(2);
    const CONGESTED: Self = Self(3);

    /// That of a traffic class.
    #[inline(always)]
    const fn of(traffic_class: u8) -> Self {
        Self(traffic_class & 3)
    }

    /// What the inner packet says when it leaves a tunnel whose outer header says `outer`; `None` if it must be dropped
    /// (RFC 6040 section 4.2).
    #[inline(always)]
    fn after(self, outer: Self) -> Option<Self> {
        if outer == Self::CONGESTED {
            (self != Self::NOT_CAPABLE).then_some(Self::CONGESTED)
        } else if self == Self::ECT_0 && outer == Self::ECT_1 {
            Some(Self::ECT_1)
        } else {
            Some(self)
        }
    }
}

/// Takes the outer headers off: marks the inner packet, and moves the Ethernet header with its tags in front of it.
#[inline(always)]
fn unwrap<P: Packet>(
    packet: &mut P,
    outer: &Outer,
    wrapped: &Wrapped,
    inner: &Inner,
    ecn: Ecn,
) -> Option<()> {
    let is_v4 = wrapped.protocol == Protocol::IPIP;
    if ecn != inner.ecn {
        mark(packet, wrapped.offset, is_v4, ecn)?;
    }
    let ether_type = if is_v4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let removed = wrapped.offset - outer.ip_offset;
    const ONE_TAG: usize = EthHdr::LEN + 4;
    const TWO_TAGS: usize = EthHdr::LEN + 8;
    match outer.ip_offset {
        EthHdr::LEN => shorten::<P, { EthHdr::LEN }>(packet, removed, ether_type),
        ONE_TAG => shorten::<P, ONE_TAG>(packet, removed, ether_type),
        TWO_TAGS => shorten::<P, TWO_TAGS>(packet, removed, ether_type),
        _ => None,
    }
}

/// Writes the congestion notification into an IP header.
#[inline(always)]
fn mark<P: Packet>(packet: &mut P, offset: usize, is_v4: bool, ecn: Ecn) -> Option<()> {
    let [first, class] = packet.read::<[u8; 2]>(offset)?;
    if !is_v4 {
        return packet.write(offset, [first, class & !0x30 | ecn.0 << 4]);
    }
    const CHECKSUM_OFFSET: usize = 10;
    let marked = [first, class & !3 | ecn.0];
    let checksum = Be16::from_wire(packet.read(offset + CHECKSUM_OFFSET)?);
    let checksum =
        Change::NONE.and_half(Be16::from_wire([first, class]), Be16::from_wire(marked)).apply(checksum);
    packet.write(offset + CHECKSUM_OFFSET, checksum.raw().to_ne_bytes())?;
    packet.write(offset, marked)
}

/// Removes bytes behind an Ethernet header of `LENGTH` bytes, whose last two become `ether_type`.
#[inline(always)]
fn shorten<P: Packet, const LENGTH: usize>(
    packet: &mut P,
    removed: usize,
    ether_type: EtherType,
) -> Option<()> {
    let mut header: [u8; LENGTH] = packet.read(0)?;
    let [.., high, low] = &mut header[..] else { return None };
    [*high, *low] = ether_type.0.raw().to_ne_bytes();
    packet.shrink_head(removed)?;
    packet.write(0, header)
}

#[cfg(test)]
mod tests;
