//! This host's interfaces → its addresses.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::core::decap::HostAddress;

/// All addresses of all interfaces, in order.
pub fn addresses() -> io::Result<Vec<HostAddress>> {
    let entries = getifaddrs()?;
    let mut addresses: Vec<_> = entries
        .filter_map(|entry| {
            let on_loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            Some(HostAddress { address: ip(&entry.address?)?, on_loopback })
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// The IP address in a socket address.
pub(super) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Gives memory back to the system that was needed for a moment: what a large configuration was read from, a long answer.
pub fn give_back_memory() {
    // SAFETY: the allocator's own function, which may be called at any time; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}
