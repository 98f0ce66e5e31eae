//! The XDP context → the datapath's [`Packet`]. The only place where packet memory is touched.

use core::arch::asm;
use core::intrinsics::is_val_statically_known;

use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use lb_common::datapath::{Header, Packet};

/// A frame on its way through the driver. With fragments (jumbo frames) only the first page is seen, which holds all
/// headers.
pub struct XdpPacket<'a>(pub &'a XdpContext);

impl XdpPacket<'_> {
    /// Bytes of the frame that are in its first page.
    #[inline(always)]
    pub fn first_page(&self) -> u32 {
        (self.0.data_end() - self.0.data()) as u32
    }

    /// Bytes of the frame, fragments included.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        // SAFETY: the context is the running program's.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as u32 }
    }

    /// Copies the first bytes of the frame; `false` if there are not so many.
    ///
    /// # Safety
    ///
    /// `to` has room for `bytes`, which is more than 0, and the verifier can tell.
    #[inline(always)]
    pub unsafe fn copy(&self, to: *mut u8, bytes: u32) -> bool {
        // SAFETY: the context is the running program's; the rest is the caller's.
        unsafe { bpf_xdp_load_bytes(self.0.ctx, 0, to.cast(), bytes) == 0 }
    }

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
    fn write_both<A: Header, B: Header>(&mut self, offset: usize, first: A, second: B) -> Option<()> {
        let start = self.at(offset, size_of::<A>() + size_of::<B>())?;
        // SAFETY: as above.
        unsafe {
            (start as *mut A).write_unaligned(first);
            ((start + size_of::<A>()) as *mut B).write_unaligned(second);
        }
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
}
