//! A packet understood → the same, as the kernel's verifier knows it: without how it was found out.
//!
//! There are many ways through the parser, by family, tags and extension headers, and the verifier would go through all
//! that follows once for each. What comes back out of a map's memory is the same to it whichever way it went in, so that
//! what follows is gone through once.

use network_types::eth::EthHdr;

use super::Tables;
#[cfg(doc)]
use super::parse;
use super::parse::{Fragment, MAX_OFFSET, Parsed, Quoted};
use super::pick::Fields;
use super::transport::Transport;
use crate::abi::Word;
use crate::net::{Address, Ports, Protocol, Tuple};
use crate::verdict::Verdict;

/// Offsets of transport headers are at most this, a mask: behind the most and longest of extension headers.
const TRANSPORT_OFFSET_MASK: u64 = (1 << 14) - 1;

const FRAGMENT: u64 = 1;
const LATER: u64 = 2;

/// An offset of an IP header, such that the verifier sees it behind an Ethernet header, and near it.
#[inline(always)]
pub(super) const fn ip_offset(offset: u8) -> usize {
    EthHdr::LEN + (offset.wrapping_sub(EthHdr::LEN as u8) & 15) as usize
}

/// Room for a packet understood.
#[derive(Debug, Default)]
pub(super) struct Settled {
    addresses: [Word; 4],
    /// Ports, protocol, transport flags, fragment flags.
    flow: Word,
    /// Offset of the IP header, of the transport header, bytes.
    place: Word,
    identification: Word,
}

impl Settled {
    #[inline(always)]
    fn put_tuple(&self, tuple: &Tuple, flags: u64) {
        let ([a, b, c, d], [e, f, g, h]) = (tuple.source.words(), tuple.destination.words());
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        self.addresses[0].store(pair(a, b));
        self.addresses[1].store(pair(c, d));
        self.addresses[2].store(pair(e, f));
        self.addresses[3].store(pair(g, h));
        self.flow.store(u64::from(tuple.ports.word()) | u64::from(tuple.protocol.0) << 32 | flags << 40);
    }

    #[inline(always)]
    fn tuple_of(&self, flow: u64) -> Tuple {
        let [a, b, c, d] =
            [&self.addresses[0], &self.addresses[1], &self.addresses[2], &self.addresses[3]].map(Word::load);
        Tuple {
            source: Address::from_words([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]),
            destination: Address::from_words([c as u32, (c >> 32) as u32, d as u32, (d >> 32) as u32]),
            ports: Ports::from_word(flow as u32),
            protocol: Protocol((flow >> 32) as u8),
        }
    }
}

/// On BPF the stack is short: they are read again whenever they are needed.
impl Fields for Settled {
    #[inline(always)]
    fn tuple(&self) -> Tuple {
        self.tuple_of(self.flow.load())
    }
}

/// What [`parse::whole`] makes of a packet.
#[inline(always)]
pub(super) fn settle<T: Tables>(
    tables: &T,
    (parsed, fragment): (Parsed, Fragment),
) -> Result<(Parsed, Fragment), Verdict> {
    let scratch = tables.scratch().ok_or(Verdict::DropInconsistent)?;
    let room = &scratch.work.parsed;
    let flags = if fragment.is { FRAGMENT } else { 0 } | if fragment.later { LATER } else { 0 };
    room.put_tuple(&parsed.tuple, u64::from(parsed.transport.bits()) | flags << 8);
    room.place.store(
        u64::from(parsed.ip_offset as u8)
            | (parsed.transport_offset as u64) << 16
            | u64::from(parsed.bytes) << 32,
    );
    room.identification.store(fragment.identification.into());

    let (flow, place) = (room.flow.load(), room.place.load());
    let parsed = Parsed {
        tuple: room.tuple_of(flow),
        transport: Transport::from_bits((flow >> 40) as u8),
        ip_offset: ip_offset(place as u8),
        transport_offset: (place >> 16 & TRANSPORT_OFFSET_MASK) as usize,
        bytes: (place >> 32) as u16,
    };
    let flags = flow >> 48;
    let fragment = Fragment {
        identification: room.identification.load() as u32,
        is: flags & FRAGMENT != 0,
        later: flags & LATER != 0,
    };
    Ok((parsed, fragment))
}

/// What [`parse::quoted`] makes of a packet.
#[inline(always)]
pub(super) fn settle_quoted<T: Tables>(tables: &T, quoted: &Quoted) -> Option<Quoted> {
    let scratch = tables.scratch()?;
    let room = &scratch.work.parsed;
    room.put_tuple(&quoted.tuple, 0);
    room.place.store((quoted.transport_offset as u64) << 16);
    let (flow, place) = (room.flow.load(), room.place.load());
    let transport_offset = (place >> 16) as usize & MAX_OFFSET;
    Some(Quoted { tuple: room.tuple_of(flow), transport_offset })
}
