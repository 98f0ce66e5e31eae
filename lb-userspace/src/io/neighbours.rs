//! Next hops from the kernel over netlink.
