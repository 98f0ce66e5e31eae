//! A program under test → one that gets a fresh frame at every run, and what it is compared with.
//!
//! `BPF_PROG_TEST_RUN` gives a repeated program its own output: one that encapsulates would see its tunnel from the second run
//! on. So `again` restores the frame, makes it one of the next flow, and goes on with the program under test; what it costs by
//! itself is known from `null` in that place.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod settings;

use core::arch::asm;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::FLOW_WAYS;
use lb_common::datapath::Packet;
use lb_common::hash::{self, Key};
use lb_common::net::{Address, Ports, Protocol, Tuple};
use lb_ebpf::packet::XdpPacket;

use settings::{Settings, WORDS};

/// Bytes of the Ethernet header's addresses, and of the whole.
const ADDRESSES: usize = 12;
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
/// In an IPv4 header.
const TOTAL_LENGTH: usize = 2;
/// Where the end of the source address and the source port are in an untagged frame of either family; [`prepare`] knows them as parts
/// of words.
const SOURCE4: [usize; 2] = [26, 34];
/// Where protocol, source, destination and both ports are in an untagged IPv4 frame.
const PROTOCOL4: usize = 23;
const ADDRESS4: usize = 26;
const DESTINATION4: usize = 30;
const PORTS4: usize = 34;
const SOURCE6: [usize; 2] = [34, 54];

/// Restores the frame, makes it one of the next flow, and goes on with the program under test.
#[xdp(frags)]
pub fn again(context: XdpContext) -> u32 {
    if let Some(settings) = maps::settings()
        && prepare(&mut XdpPacket(&context), settings).is_some()
    {
        maps::call(&context);
    }
    xdp_action::XDP_ABORTED
}

/// In whole words and without helpers: this is to cost little. And no field of a header is in two of them: a processor hands on what was
/// written just before, but not pieces of two writes, for which it waits until all before them is done. No frame that a card wrote to
/// memory makes a program wait like that, and one packet's work would never begin before the other's end.
#[inline(always)]
fn prepare(packet: &mut XdpPacket<'_>, settings: &mut Settings) -> Option<()> {
    let length = packet.first_page();
    if settings.length == 0 {
        settings.length = length;
    }
    if length > settings.length {
        packet.shrink_head((length - settings.length) as usize)?;
    } else if length < settings.length {
        packet.grow_head((settings.length - length) as usize)?;
    }
    let mut start = settings.start;
    if settings.family != 0 {
        let next = settings.next + 1;
        settings.next = if next == settings.flows { 0 } else { next };
        // Made one frame ahead: what the program under test reads is not to wait for it.
        let random = core::mem::replace(&mut settings.random, shuffled(settings.next));
        let address = (0x0b00_0000 | random as u32 & 0xff_ffff).to_be();
        let port = u64::from((1_024 + (random >> 24) as u16).to_be());
        let [_, _, _, checksum, port4, _, _, port6, _, _] = &mut start;
        if settings.family == 6 {
            *port4 |= u64::from(address) << 32;
            *port6 |= port;
        } else {
            let sum = settings.sum + (address & 0xffff) + (address >> 16);
            *checksum |= u64::from(address) << 32 | u64::from(!folded(sum)) << 16;
            *port4 |= port << 32;
        }
    }
    let [first, second, rest @ .., before_last, last] = start;
    // What is read from the beginning must lie in what was written last there.
    packet.write(WORDS[1], second)?;
    packet.write(WORDS[0], first)?;
    for (word, at) in rest.into_iter().zip(&WORDS[2..]) {
        packet.write(*at, word)?;
    }
    if settings.family == 6 {
        packet.write(WORDS[8], before_last)?;
        packet.write(WORDS[9], last)?;
    }
    Some(())
}

/// The Internet checksum of what adds up to this (RFC 1071), not yet inverted.
#[inline(always)]
fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Bits of a flow's source: 24 of its address, 15 of its port.
const SOURCE_MASK: u64 = (1 << 39) - 1;

/// A flow's number → its source, as if drawn, and no other flow's: each step can be undone.
#[inline(always)]
fn shuffled(flow: u64) -> u64 {
    let mut mixed = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) & SOURCE_MASK;
    mixed ^= mixed >> 20;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) & SOURCE_MASK;
    mixed ^ mixed >> 20
}

/// Does nothing.
#[xdp(frags)]
pub fn null(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Only reads one line of memory, which is zero, found by a hash of the source: the least that a table of flows can do.
#[xdp(frags)]
pub fn touch(context: XdpContext) -> u32 {
    match touched(&XdpPacket(&context)) {
        Some(0) => xdp_action::XDP_TX,
        _ => xdp_action::XDP_ABORTED,
    }
}

/// The same, and the next frame waits for what was read: what a read takes that nothing else is done beside.
#[xdp(frags)]
pub fn wait(context: XdpContext) -> u32 {
    let read = touched(&XdpPacket(&context));
    match (read, maps::settings()) {
        (Some(word), Some(settings)) => {
            settings.random = settings.random.wrapping_add(word);
            xdp_action::XDP_TX
        }
        _ => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn touched(packet: &XdpPacket<'_>) -> Option<u64> {
    let settings = maps::settings()?;
    let [address, port] = if settings.family == 6 { SOURCE6 } else { SOURCE4 };
    let (address, port): (u32, u16) = (packet.read(address)?, packet.read(port)?);
    let hash = (u64::from(address) << 16 | u64::from(port)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    maps::line((hash * u64::from(settings.lines) >> 32) as u32)
}

/// Only makes room for a tunnel's headers.
#[xdp(frags)]
pub fn grow(context: XdpContext) -> u32 {
    let grown =
        maps::settings().and_then(|settings| XdpPacket(&context).grow_head(settings.growth as usize & 63));
    if grown.is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// Sends the frame as it is: behind `again`, a generator.
#[xdp(frags)]
pub fn transmit(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Sends every IPv4 packet to one host: the least that can be called forwarding.
#[xdp(frags)]
pub fn forward(context: XdpContext) -> u32 {
    send(&mut XdpPacket(&context), false).unwrap_or(xdp_action::XDP_PASS)
}

/// The same after reading one line of memory as [`touch`] does: the least that can be called forwarding by a table of flows.
#[xdp(frags)]
pub fn forward_known(context: XdpContext) -> u32 {
    send_after(&context, false, |packet| touched(packet).map(drop))
}

/// Sends a packet once this is done with it, which may fail.
#[inline(always)]
fn send_after(context: &XdpContext, wrapped: bool, work: impl Fn(&XdpPacket<'_>) -> Option<()>) -> u32 {
    let mut packet = XdpPacket(context);
    if work(&packet).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    send(&mut packet, wrapped).unwrap_or(xdp_action::XDP_PASS)
}

/// The same after remembering an IPv4 packet as one of a new flow: two hashes of its five fields, of different keys; a line of the table looked
/// through for the flow and one of its words replaced; and a slot of a ring read. Nothing is checked, nor is chosen which word: the least that can
/// be called beginning a flow.
#[xdp(frags)]
pub fn forward_new(context: XdpContext) -> u32 {
    send_after(&context, false, remember)
}

/// The keys of both hashes: they are part of the instructions.
const KEYS: [Key; 2] = [[0x9e37_79b9; hash::KEY_WORDS], [0x7f4a_7c15; hash::KEY_WORDS]];

#[inline(always)]
fn remember(packet: &XdpPacket<'_>) -> Option<()> {
    let address = |at| packet.read(at).map(|word: u32| Address::v4(word.to_ne_bytes()));
    let [protocol]: [u8; 1] = packet.read(PROTOCOL4)?;
    let tuple = Tuple {
        source: address(ADDRESS4)?,
        destination: address(DESTINATION4)?,
        ports: Ports::from_word(packet.read(PORTS4)?),
        protocol: Protocol(protocol),
    };
    let [flow, ring] = [hash::flow(&KEYS[0], &tuple), hash::flow(&KEYS[1], &tuple)];
    let line = maps::words(hash::reduce(flow, maps::settings()?.lines))?;
    let mut way = 0;
    while way < FLOW_WAYS {
        if line[way].load() >> 32 == flow & u64::from(u32::MAX) {
            return Some(());
        }
        way += 1;
    }
    let id = maps::slot(ring)?;
    line[flow as usize & (FLOW_WAYS - 1)].store(flow << 32 | u64::from(id));
    Some(())
}

/// The same after about as many instructions as a balancer has, all of which wait for the destination's address: the least that can be called
/// looking at a packet.
#[xdp(frags)]
pub fn forward_at_length(context: XdpContext) -> u32 {
    send_after(&context, false, at_length)
}

/// A template of assembly ten times.
macro_rules! ten {
    ($line:literal) => {
        concat!($line, $line, $line, $line, $line, $line, $line, $line, $line, $line)
    };
}

/// Three hundred instructions in five rows, in each of which every one waits for the one before, and the first for the destination's address.
#[inline(always)]
fn at_length(packet: &XdpPacket<'_>) -> Option<()> {
    let start = u64::from(packet.read::<u32>(DESTINATION4)?);
    let [mut a, mut b, mut c, mut d, mut e] = [start; 5];
    let mut times = 0;
    while times < 6 {
        // SAFETY: the instructions work on the numbers alone.
        unsafe {
            asm!(
                ten!("{a} += {start}\n{b} += {start}\n{c} += {start}\n{d} += {start}\n{e} += {start}\n"),
                a = inout(reg) a, b = inout(reg) b, c = inout(reg) c, d = inout(reg) d, e = inout(reg) e,
                start = in(reg) start, options(nomem, nostack),
            );
        }
        times += 1;
    }
    (a | b | c | d | e != 0).then_some(())
}

/// Puts the same headers in front of every IPv4 packet: the least that can be called a tunnel.
#[xdp(frags)]
pub fn encapsulate(context: XdpContext) -> u32 {
    send(&mut XdpPacket(&context), true).unwrap_or(xdp_action::XDP_PASS)
}

/// The same after as many instructions as in [`forward_at_length`].
#[xdp(frags)]
pub fn encapsulate_at_length(context: XdpContext) -> u32 {
    send_after(&context, true, at_length)
}

#[inline(always)]
fn send(packet: &mut XdpPacket<'_>, wrapped: bool) -> Option<u32> {
    let settings = maps::settings()?;
    let ether_type: u16 = packet.read(ADDRESSES)?;
    if ether_type != IPV4.to_be() {
        return None;
    }
    if wrapped {
        let inner: u16 = packet.read(ETHERNET + TOTAL_LENGTH)?;
        packet.grow_head(size_of_val(&settings.outer))?;
        let length = u16::from_be(inner).wrapping_add(size_of_val(&settings.outer) as u16).to_be();
        let [first, second, third, from, to] = settings.outer;
        // In the upper half of the third word stands the sum without the length.
        let checksum = !folded((third >> 16) + u32::from(length));
        let words =
            [first | u32::from(length) << 16, second, third & 0xffff | u32::from(checksum) << 16, from, to];
        packet.write_both(ADDRESSES, ether_type, words)?;
    }
    // Taken apart, for a copy of twelve bytes is a call of a function.
    let [first, second, rest] = settings.addresses;
    packet.write_both(0, u64::from(first) | u64::from(second) << 32, rest)?;
    Some(xdp_action::XDP_TX)
}

/// Counts the frame and drops it: a sink.
#[xdp(frags)]
pub fn count(_: XdpContext) -> u32 {
    maps::count();
    xdp_action::XDP_DROP
}

/// Leaves the frame to the host.
#[xdp(frags)]
pub fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}
