//! The XDP context → the datapath's [`Packet`]. The only place where packet memory is touched.

use aya_ebpf::programs::XdpContext;
use lb_common::datapath::{Header, Packet};

/// A frame on its way through the driver. With fragments (jumbo frames) only the first page is seen, which holds all
/// headers.
pub struct XdpPacket<'a>(pub &'a XdpContext);

impl XdpPacket<'_> {
    /// The address of `size` bytes at `offset`, unless they reach beyond the frame: the check the verifier asks for.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        let start = self.0.data() + offset;
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
    fn interface(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }
}
