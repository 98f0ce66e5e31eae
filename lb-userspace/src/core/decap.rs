//! What `sluice decap` is told and what the host's addresses are → the records its program reads.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::abi::{DECAP_BUCKETS, DecapRoles, SourcePrefix, Verdicts, VipBucket};
use lb_common::decap::Verdict;
use lb_common::net::{Address, Protocol};

use super::image::{VipKey, VipTarget};
use super::vips;

/// A block of addresses: `10.0.0.0/24`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The record for the program.
    pub fn record(self) -> SourcePrefix {
        SourcePrefix::new(self.address.into(), self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address = parse_address(address)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(length) => length.parse().ok().filter(|length| *length <= most).ok_or_else(|| {
                let family = if address.is_ipv4() { "an IPv4" } else { "an IPv6" };
                format!("the length of {family} prefix is 0 to {most}")
            })?,
        };
        let first = SourcePrefix::new(address.into(), length).address.to_ip();
        if Address::from(first) != Address::from(address) {
            return Err(format!("there are bits beyond the prefix; write {first}/{length} or {address}"));
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A VIP as it is named on the command line.
pub fn parse_vip(text: &str) -> Result<IpAddr, String> {
    let address = parse_address(text)?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err("this can be nobody's VIP".to_owned());
    }
    Ok(address)
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!("write {v4} for this IPv4-mapped address"));
    }
    Ok(address)
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// It is on the loopback interface.
    pub on_loopback: bool,
}

/// Every address that matters, and what it is.
pub type Roles = BTreeMap<Address, DecapRoles>;

/// What each address is: tunnels end at the host's, and carry packets for `vips`; for those on the loopback interface,
/// but `127.0.0.0/8` and `::1`, if none are named.
pub fn roles(host: &[HostAddress], vips: &[IpAddr]) -> Roles {
    let mut roles = Roles::new();
    let mut add = |address: IpAddr, role| {
        let known = roles.entry(address.into()).or_default();
        *known = known.and(role);
    };
    for known in host.iter().filter(|known| !known.address.is_loopback()) {
        add(known.address, DecapRoles::LOCAL);
        if vips.is_empty() && known.on_loopback {
            add(known.address, DecapRoles::VIP);
        }
    }
    for &vip in vips {
        add(vip, DecapRoles::VIP);
    }
    roles
}

/// The addresses that have these roles, in order.
pub fn with_roles(roles: &Roles, wanted: DecapRoles) -> Vec<IpAddr> {
    let having = roles.iter().filter(|(_, roles)| roles.has(wanted));
    let mut addresses: Vec<_> = having.map(|(address, _)| address.to_ip()).collect();
    addresses.sort();
    addresses
}

/// One half of the table of addresses; `None` if they are too many.
pub fn table(roles: &Roles) -> Option<Vec<VipBucket>> {
    let entries: Vec<_> = roles
        .iter()
        .map(|(&address, roles)| {
            let key = VipKey { address, port: 0, protocol: Protocol::ICMP };
            (key, VipTarget { service: roles.0, ..VipTarget::default() })
        })
        .collect();
    vips::build(&entries, DECAP_BUCKETS)
}

/// Packets by the verdicts' names.
pub fn verdicts(verdicts: &Verdicts) -> BTreeMap<&'static str, u64> {
    Verdict::ALL.iter().zip(verdicts.packets).map(|(verdict, packets)| (verdict.name(), packets)).collect()
}

#[cfg(test)]
mod tests;
