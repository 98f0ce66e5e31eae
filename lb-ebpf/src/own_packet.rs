//! A socket buffer → the datapath's [`Packet`]: what the host sends itself, and what comes in for it.
//!
//! Everything goes by helpers. Were packet memory written to directly, the kernel would make every packet that passes the
//! program writable first, whether it is changed or not.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_PSEUDO_HDR,
};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_load_bytes,
    bpf_skb_load_bytes_relative, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use lb_common::datapath::{Header, OwnPacket, Packet, Parsed, Side};
use lb_common::net::Address;

/// Says that an IPv6 address is replaced (`BPF_F_IPV6` of linux/bpf.h, since Linux 6.16): the interface's checksum of the whole
/// packet stays right only then.
const BPF_F_IPV6: u64 = 1 << 7;
/// Bytes of an Ethernet header (IEEE 802.3) without tags, which the kernel takes out.
const ETHERNET_BYTES: usize = 14;
/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in an IPv4 header.
const IPV4_CHECKSUM: usize = 10;
/// Bytes of an address.
const V6_BYTES: u32 = size_of::<Address>() as u32;
const V4_BYTES: u64 = size_of::<u32>() as u64;

/// A packet on its way between the host and an interface.
pub struct SkbPacket<'a> {
    context: &'a TcContext,
    /// Bytes of the Ethernet header, from whose start offsets are counted, that are not where the packet begins.
    missing: usize,
}

impl<'a> SkbPacket<'a> {
    /// One that the host sends.
    #[inline(always)]
    pub fn leaving(context: &'a TcContext) -> Self {
        Self { context, missing: 0 }
    }

    /// One that came in. After XDP in generic mode it may begin with its IP header: the kernel's copy for the program does not know how long
    /// the header in front of that is (`skb_pp_cow_data` of net/core/skbuff.c leaves `mac_len` at 0).
    #[inline(always)]
    pub fn entering(context: &'a TcContext) -> Self {
        let packet = Self::leaving(context);
        let [start, header] = [packet.read::<[u8; ETHERNET_BYTES]>(0), packet.read_header(0)];
        let missing = if header.is_some() && start != header { ETHERNET_BYTES } else { 0 };
        Self { context, missing }
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }

    /// Where the packet has what is at this offset from the start of its Ethernet header.
    #[inline(always)]
    fn at(&self, offset: usize) -> u32 {
        offset.wrapping_sub(self.missing) as u32
    }

    /// Reads a part of the Ethernet header, wherever the packet begins.
    #[inline(always)]
    fn read_header<T: Header>(&self, offset: usize) -> Option<T> {
        let mut header = MaybeUninit::<T>::uninit();
        let (to, bytes) = (header.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: as in `read`.
        unsafe {
            (bpf_skb_load_bytes_relative(self.skb().cast(), offset as u32, to, bytes, BPF_HDR_START_MAC) == 0)
                .then(|| header.assume_init())
        }
    }
}

/// A header on the stack where words of any size are aligned: the verifier asks for that, and the compiler writes several parts at once.
#[repr(align(8))]
struct Aligned<T>(T);

impl Packet for SkbPacket<'_> {
    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        if offset < self.missing {
            return self.read_header(offset);
        }
        let mut header = MaybeUninit::<T>::uninit();
        let (to, bytes) = (header.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: the helper writes as many bytes as said, all or none; every bit pattern of a `Header` is a value.
        unsafe {
            (bpf_skb_load_bytes(self.skb().cast(), self.at(offset), to, bytes) == 0)
                .then(|| header.assume_init())
        }
    }

    #[inline(always)]
    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        let header = Aligned(header);
        let (from, bytes) = ((&raw const header.0).cast(), size_of::<T>() as u32);
        // SAFETY: the helper reads as many bytes as said.
        (unsafe { bpf_skb_store_bytes(self.skb(), self.at(offset), from, bytes, 0) } == 0).then_some(())
    }

    /// Between the Ethernet header and the packet's own IP header; of which kind the header is that this is for, its length
    /// tells: that of an IPv4 or IPv6 header, or 12 more for UDP and GUE.
    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        let kind = match bytes {
            20 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            32 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
            40 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            52 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
            _ => return None,
        };
        // SAFETY: the helper takes integers.
        let grown = unsafe { bpf_skb_adjust_room(self.skb(), bytes as i32, BPF_ADJ_ROOM_MAC, kind.into()) };
        (grown == 0).then_some(())
    }

    /// Not needed here.
    #[inline(always)]
    fn shrink_head(&mut self, _: usize) -> Option<()> {
        None
    }

    /// Not needed here.
    #[inline(always)]
    fn truncate(&mut self, _: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the running program's.
        unsafe { (*self.skb()).ifindex }
    }
}

impl OwnPacket for SkbPacket<'_> {
    #[inline(always)]
    fn readdress(&mut self, parsed: &Parsed, side: Side, to: Address) -> Option<()> {
        let from = match side {
            Side::Source => parsed.tuple.source,
            Side::Destination => parsed.tuple.destination,
        };
        let checksum = self.at(parsed.transport_offset + TCP_CHECKSUM);
        let (from, to_words) = (from.words(), to.words());
        let pseudo = u64::from(BPF_F_PSEUDO_HDR);
        if to.is_v4() {
            let (from, to) = (u64::from(from[3]), u64::from(to_words[3]));
            let header = self.at(parsed.ip_offset + IPV4_CHECKSUM);
            // SAFETY: the helpers take integers.
            let failed = unsafe {
                bpf_l4_csum_replace(self.skb(), checksum, from, to, pseudo | V4_BYTES)
                    | bpf_l3_csum_replace(self.skb(), header, from, to, V4_BYTES)
            };
            let at = parsed.ip_offset + if side == Side::Source { 12 } else { 16 };
            return if failed == 0 { self.write(at, to_words[3]) } else { None };
        }
        let mut from = from;
        let mut to = to_words;
        // SAFETY: both are as long as said, and only read.
        let change =
            unsafe { bpf_csum_diff(from.as_mut_ptr(), V6_BYTES, to.as_mut_ptr(), V6_BYTES, 0) } as u64;
        // SAFETY: the helper takes integers. A kernel that knows no such flag does nothing, and is asked without.
        let failed = unsafe {
            bpf_l4_csum_replace(self.skb(), checksum, 0, change, pseudo | BPF_F_IPV6) != 0
                && bpf_l4_csum_replace(self.skb(), checksum, 0, change, pseudo) != 0
        };
        let at = parsed.ip_offset + if side == Side::Source { 8 } else { 24 };
        if failed { None } else { self.write(at, to) }
    }
}
