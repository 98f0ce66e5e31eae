//! This host's interfaces → its addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::core::decap::HostAddress;

/// Larger blocks have a mapping of their own, which goes when they go.
const MAPPED_BYTES: libc::c_int = 1 << 20;
/// More is not kept free: enough for what a change needs, so that it does not wait for pages.
const KEPT_BYTES: libc::c_int = 4 << 20;

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

/// All addresses, each with its interface's name.
pub fn addresses_by_interface() -> io::Result<Vec<(String, IpAddr)>> {
    Ok(getifaddrs()?.filter_map(|entry| Some((entry.interface_name, ip(&entry.address?)?))).collect())
}

/// The first of an interface's addresses that others may answer to, of the family of `like`, and that is no VIP.
pub fn source(
    own: &[(String, IpAddr)],
    interface: &str,
    like: IpAddr,
    vips: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let fits = |address: &IpAddr| {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        address.is_ipv4() == like.is_ipv4() && !vips.contains(address) && !link_local
    };
    own.iter().filter(|(name, _)| name == interface).map(|(_, address)| *address).find(fits)
}

/// The IP address in a socket address.
fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Interfaces that VLAN devices lie over, by name. Empty where the kernel knows no VLANs, or does not say.
pub fn vlan_carriers() -> BTreeSet<String> {
    carriers(&std::fs::read_to_string("/proc/net/vlan/config").unwrap_or_default())
}

/// From a table of VLAN devices: name, VLAN id and what it lies over, behind two lines of another kind (`net/8021q/vlanproc.c`).
fn carriers(table: &str) -> BTreeSet<String> {
    table.lines().skip(2).filter_map(|line| Some(line.rsplit_once('|')?.1.trim().to_owned())).collect()
}

/// Has the allocator keep little of what was needed for a moment. Left alone, glibc learns from large blocks that come and go
/// to keep ever larger ones, and gives each thread a heap of its own.
pub fn keep_little_memory() {
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MAPPED_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)]
    {
        // SAFETY: the allocator's own function; only what is allocated from now on is concerned. If it refuses, nothing changes.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives memory back to the system that was needed for a moment: what a large configuration was read from, a long answer.
pub fn give_back_memory() {
    // SAFETY: the allocator's own function, which may be called at any time; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::carriers;

    #[test]
    fn what_vlan_devices_lie_over_is_in_the_last_column() {
        let head = "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n";
        let table = format!(
            "{head}eth0.100       | 100  | eth0\nstorage        | 7  | bond1\neth0.4094      | 4094  | eth0\n"
        );
        assert_eq!(carriers(&table), ["bond1".to_owned(), "eth0".to_owned()].into());
        assert_eq!(carriers(head), [].into());
        assert_eq!(carriers(""), [].into());
    }
}
