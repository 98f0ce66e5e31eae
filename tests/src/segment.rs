//! Where hosts are: turns a segment and a host's number on it into addresses of both families.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A broadcast domain of the lab. Every lab uses the same addresses: namespaces keep them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Where the edge host meets the Internet: `10.0.1.0/24`, `fd00:1::/64`.
    Public = 1,
    /// Where web servers meet app servers: `10.0.2.0/24`, `fd00:2::/64`.
    Private = 2,
    /// Where the web servers are, if not on the public segment: `10.0.3.0/24`, `fd00:3::/64`.
    Backends = 3,
    /// Where the customers are, if not on the public segment: `10.0.4.0/24`, `fd00:4::/64`.
    Customers = 4,
    /// Between the customers' router and the edge host's: `10.0.5.0/24`, `fd00:5::/64`.
    Uplink = 5,
    /// Between the edge host's router and the web servers': `10.0.6.0/24`, `fd00:6::/64`.
    Downlink = 6,
}

impl Segment {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Public, Self::Private, Self::Backends, Self::Customers, Self::Uplink, Self::Downlink];

    /// The name of its bridge in the switch namespace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Backends => "backends",
            Self::Customers => "customers",
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
        }
    }

    /// The IPv4 address of the host with this number; its prefix is 24 bits long.
    pub fn v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self as u8, host)
    }

    /// The IPv6 address of the host with this number; its prefix is 64 bits long.
    pub fn v6(self, host: u8) -> Ipv6Addr {
        // The digits are those of the IPv4 address: 10.0.1.11 is fd00:1::11.
        let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
        Ipv6Addr::new(0xfd00, self as u16, 0, 0, 0, 0, 0, digits)
    }

    /// Its prefixes, IPv4 and IPv6.
    pub(crate) fn prefixes(self) -> (String, String) {
        (format!("{}/24", self.v4(0)), format!("{}/64", self.v6(0)))
    }
}

/// An interface of a host: the first of them is `eth0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What it is attached to.
    pub segment: Segment,
    /// The host's number there: the last part of its addresses.
    pub number: u8,
}

impl Attachment {
    /// Its IPv4 address.
    pub fn v4(self) -> Ipv4Addr {
        self.segment.v4(self.number)
    }

    /// Its IPv6 address.
    pub fn v6(self) -> Ipv6Addr {
        self.segment.v6(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_read_alike() {
        let of = |segment: Segment, number| (segment.v4(number).to_string(), segment.v6(number).to_string());
        assert_eq!(of(Segment::Public, 11), ("10.0.1.11".into(), "fd00:1::11".into()));
        assert_eq!(of(Segment::Customers, 205), ("10.0.4.205".into(), "fd00:4::205".into()));
        assert_eq!(Segment::Private.prefixes(), ("10.0.2.0/24".into(), "fd00:2::/64".into()));
    }
}
