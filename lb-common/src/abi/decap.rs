//! What the decapsulating program and `sluice decap` share: who may send tunnels, and what each address is here.
//!
//! The table of addresses is that of the VIPs ([`super::VipBucket`]), asked with [`DecapRoles::key`]: what stands there
//! in place of a service is [`DecapRoles`]. Nothing of this is pinned.

use super::{Word, vip_key};
use crate::net::{Address, Be16, Protocol};

/// Names of the maps in the decapsulating program's object.
pub mod decap_map {
    /// One [`DecapControl`](super::DecapControl).
    pub const CONTROL: &str = "decap_control";
    /// [`SourcePrefix`](super::SourcePrefix)es, filled from the front.
    pub const SOURCES: &str = "decap_sources";
    /// Two halves of [`VipBucket`](crate::abi::VipBucket)s, of which one is in force.
    pub const ADDRESSES: &str = "decap_addresses";
    /// One [`Verdicts`](crate::abi::Verdicts), per CPU, by [`crate::decap::Verdict`].
    pub const VERDICTS: &str = "decap_verdicts";
}

/// What is in force.
#[derive(Debug, Default)]
#[repr(C)]
pub struct DecapControl {
    /// The first bucket of the half of the addresses that is in force.
    pub first_bucket: Word,
    /// How many sources there are. Written before the program is attached, as they are.
    pub sources: u32,
    /// To a whole word.
    pub padding: u32,
}

/// Addresses from which tunnels are accepted: all that are `address` under `mask`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourcePrefix {
    /// The first address; IPv4 as an IPv4-mapped address.
    pub address: Address,
    /// The bits that must be equal, as they lie in memory.
    pub mask: [u32; 4],
}

impl SourcePrefix {
    /// The addresses whose first `length` bits are those of `address`, counted in its own family; bits beyond do not
    /// matter.
    pub fn new(address: Address, length: u8) -> Self {
        let ones = u32::from(length) + if address.is_v4() { u128::BITS - u32::BITS } else { 0 };
        let zeros = u128::BITS.saturating_sub(ones);
        let bytes = u128::MAX.checked_shl(zeros).unwrap_or(0).to_be_bytes();
        let mut mask = [0; 4];
        for (word, chunk) in mask.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Self { address: masked(address, mask), mask }
    }

    /// Whether an address is one of these.
    #[inline(always)]
    pub fn contains(&self, address: Address) -> bool {
        // `::/0` holds every IPv4-mapped address, but no IPv4 address.
        masked(address, self.mask) == self.address && address.is_v4() == self.address.is_v4()
    }
}

#[inline(always)]
fn masked(address: Address, mask: [u32; 4]) -> Address {
    let ([a, b, c, d], [e, f, g, h]) = (address.words(), mask);
    Address::from_words([a & e, b & f, c & g, d & h])
}

/// What an address is to the decapsulating program, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecapRoles(pub u32);

impl DecapRoles {
    /// An address of this host: tunnels to it end here.
    pub const LOCAL: Self = Self(1);
    /// A VIP: packets for it may come out of tunnels.
    pub const VIP: Self = Self(2);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these are among them.
    #[inline(always)]
    pub const fn has(self, roles: Self) -> bool {
        self.0 & roles.0 == roles.0
    }

    /// The key of an address in the table: that by which the VIP table says that it is a VIP at all.
    #[inline(always)]
    pub const fn key(address: Address) -> u32 {
        vip_key(address, Be16::new(0), Protocol::ICMP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_prefix_contains_its_addresses_and_no_others() {
        let cases = [
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("10.1.2.0", 25, "10.1.2.127", true),
            ("10.1.2.0", 25, "10.1.2.128", false),
            ("10.1.2.99", 24, "10.1.2.1", true),
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("::", 0, "2001:db8::1", true),
            ("::", 0, "203.0.113.9", false),
            ("2001:db8::", 33, "2001:db8:7fff::1", true),
            ("2001:db8::", 33, "2001:db8:8000::1", false),
            ("2001:db8::5", 128, "2001:db8::5", true),
            ("2001:db8::5", 128, "2001:db8::4", false),
        ];
        for (prefix, length, candidate, contained) in cases {
            let found = SourcePrefix::new(address(prefix), length).contains(address(candidate));
            assert_eq!(found, contained, "{candidate} in {prefix}/{length}");
        }
    }

    #[test]
    fn roles_add_up() {
        let both = DecapRoles::LOCAL.and(DecapRoles::VIP);
        assert!(both.has(DecapRoles::LOCAL) && both.has(DecapRoles::VIP));
        assert!(!DecapRoles::LOCAL.has(DecapRoles::VIP) && !DecapRoles::default().has(DecapRoles::LOCAL));
    }
}
