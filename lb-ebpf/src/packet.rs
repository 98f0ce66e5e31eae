//! The XDP context → the datapath's [`Packet`]. The only place where packet memory is touched.

use core::arch::asm;
use core::intrinsics::is_val_statically_known;

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::NextHop;
use lb_common::datapath::{Exit, Extensions, Header, Outcome, Packet, Tables};
use lb_common::net::Address;

use crate::maps::fib_room;
use crate::stages;

/// Address families (`include/linux/socket.h`).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A frame on its way through the driver. With fragments (jumbo frames) only the first page is seen, which holds all
/// headers.
pub struct XdpPacket<'a>(pub &'a XdpContext);

impl XdpPacket<'_> {
    /// The address of `size` bytes at `offset`, unless they reach beyond the frame: the check the verifier asks for.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        let mut start = self.0.data() + offset;
        if !is_val_statically_known(offset) {
            // SAFETY: the instruction adds nothing; it hides from the compiler how this address and others depend on each
            // other. It would leave out checks that follow from others, where the verifier does not follow.
            unsafe { asm!("{0} += 0", inout(reg) start) };
        }
        if start + size > self.0.data_end() { None } else { Some(start) }
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn read<T: Header>(&self, offset: usize) -> Option<T> {
        let start = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes are within the frame, and every bit pattern of a `Header` is a value.
        Some(unsafe { (start as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        let start = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes are within the frame, which belongs to this program until it returns.
        unsafe { (start as *mut T).write_unaligned(header) };
        Some(())
    }

    #[inline(always)]
    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: the context is the running program's; all addresses are taken from it anew at every access.
        (unsafe { bpf_xdp_adjust_head(self.0.ctx, -(bytes as i32)) } == 0).then_some(())
    }

    #[inline(always)]
    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_head(self.0.ctx, bytes as i32) } == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        let now = unsafe { bpf_xdp_get_buff_len(self.0.ctx) };
        let change = bytes as i64 - now as i64;
        if change > 0 {
            return None;
        }
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_tail(self.0.ctx, change as i32) } == 0).then_some(())
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.0.ingress_ifindex() as u32
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
        if unsafe { bpf_fib_lookup(self.0.ctx.cast(), lookup, size, 0) } != 0 {
            return None;
        }
        // The helper puts a gateway's address in place of the destination's.
        // SAFETY: of either member every bit pattern is a value.
        let direct = unsafe {
            if v4 { lookup.__bindgen_anon_4.ipv4_dst == to[3] } else { lookup.__bindgen_anon_4.ipv6_dst == to }
        };
        let found = NextHop::new(lookup.dmac, lookup.smac, lookup.ifindex);
        (hop.first, hop.rest, hop.interface) = (found.first, found.rest, found.interface);
        Some(direct)
    }

    #[inline(always)]
    fn extensions(&self, ip_offset: usize, next: u8, bytes: u16) -> Extensions {
        Extensions::from_word(stages::extensions(self.0.ctx, ip_offset as u64, next.into(), bytes.into()))
    }

    #[inline(always)]
    fn stage<T: Tables>(&mut self, _: &T, exit: Exit) -> Result<Outcome, Exit> {
        stages::call(self.0.ctx, exit)
    }
}
