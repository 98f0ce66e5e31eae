//! A frame → the datapath's [`Packet`], with what only the load balancer's programs ask for: the kernel's routes, and extension headers.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_fib_lookup};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::NextHop;
use lb_common::datapath::{self, Extensions, Header, Packet};
use lb_common::net::Address;
use lb_ebpf::packet::XdpPacket;

use crate::maps::fib_room;

/// Address families (`include/linux/socket.h`).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A frame that the load balancer steers.
pub struct Steered<'a>(pub XdpPacket<'a>);

impl Packet for Steered<'_> {
    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        self.0.read(offset)
    }

    #[inline(always)]
    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        self.0.write(offset, header)
    }

    #[inline(always)]
    fn write_both<A: Header, B: Header>(&mut self, offset: usize, first: A, second: B) -> Option<()> {
        self.0.write_both(offset, first, second)
    }

    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        self.0.grow_head(bytes)
    }

    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        self.0.shrink_head(bytes)
    }

    #[inline(always)]
    fn truncate(&mut self, bytes: usize) -> Option<()> {
        self.0.truncate(bytes)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.0.interface()
    }

    #[inline(always)]
    fn mtu(&self, interface: u32) -> u16 {
        let mut mtu = 0;
        // SAFETY: the helper reads and writes the integer. If there is no such interface, it leaves it alone.
        unsafe { bpf_check_mtu(self.0.0.ctx.cast(), interface, &raw mut mtu, 0, 0) };
        mtu.min(u16::MAX.into()) as u16
    }

    #[inline(always)]
    fn route(&self, from: Address, to: Address, hop: &mut NextHop) -> Option<bool> {
        let room = fib_room()?;
        let v4 = to.is_v4();
        let (from, to) = (from.words(), to.words());
        // SAFETY: this CPU's own record, which nobody else reads or writes meanwhile, and of which every bit pattern is a value.
        // What is only answered is left as it was; what is asked is written by words, for of bytes the compiler makes a
        // loop that the verifier goes through for each.
        let lookup = unsafe {
            (*room)[0] = u64::from(if v4 { AF_INET } else { AF_INET6 });
            (*room)[1] = u64::from(self.interface());
            &mut *room.cast::<FibLookup>()
        };
        if v4 {
            lookup.__bindgen_anon_3.ipv4_src = from[3];
            lookup.__bindgen_anon_4.ipv4_dst = to[3];
        } else {
            lookup.__bindgen_anon_3.ipv6_src = from;
            lookup.__bindgen_anon_4.ipv6_dst = to;
        }
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the structure is as long as said, and the helper writes only to it.
        if unsafe { bpf_fib_lookup(self.0.0.ctx.cast(), lookup, size, 0) } != 0 {
            return None;
        }
        // The helper puts a gateway's address in place of the destination's.
        // SAFETY: of either member every bit pattern is a value.
        let direct = unsafe {
            if v4 {
                lookup.__bindgen_anon_4.ipv4_dst == to[3]
            } else {
                lookup.__bindgen_anon_4.ipv6_dst == to
            }
        };
        let found = NextHop::new(lookup.dmac, lookup.smac, lookup.ifindex);
        (hop.first, hop.rest, hop.interface) = (found.first, found.rest, found.interface);
        Some(direct)
    }

    #[inline(always)]
    fn extensions(&self, ip_offset: usize, next: u8, bytes: u16) -> Extensions {
        Extensions::from_word(extensions(self.0.0.ctx, ip_offset as u64, next.into(), bytes.into()))
    }
}

/// See [`datapath::extensions`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn extensions(context: *mut xdp_md, ip_offset: u64, next: u64, bytes: u64) -> u64 {
    let context = XdpContext::new(context);
    let ip_offset = ip_offset as usize & datapath::MAX_OFFSET;
    datapath::extensions(&XdpPacket(&context), ip_offset, next as u8, bytes as u16).word()
}
