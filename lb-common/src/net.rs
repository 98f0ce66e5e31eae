//! Numbers of the wire as types: byte order, EtherType and IP protocol cannot be mixed up.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use network_types::eth;
use network_types::ip::IpProto;

/// A 16-bit number in network byte order, as it lies in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From the two bytes of the wire.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes of the wire as a native word: for hashing and comparing, not for arithmetic.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// An IEEE 802 EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EtherType(pub Be16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(Be16(eth::EtherType::Ipv4 as u16));
    /// IPv6 (RFC 2464).
    pub const IPV6: Self = Self(Be16(eth::EtherType::Ipv6 as u16));
    /// A customer VLAN tag follows (IEEE 802.1Q).
    pub const VLAN: Self = Self(Be16(eth::EtherType::Ieee8021q as u16));
    /// A service VLAN tag follows (IEEE 802.1ad).
    pub const SERVICE_VLAN: Self = Self(Be16(eth::EtherType::Ieee8021ad as u16));

    /// Whether a VLAN tag follows.
    #[inline(always)]
    pub fn is_vlan(self) -> bool {
        self == Self::VLAN || self == Self::SERVICE_VLAN
    }
}

/// An IP protocol number (IANA "Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(IpProto::Icmp as u8);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(IpProto::Tcp as u8);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(IpProto::Udp as u8);
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: Self = Self(IpProto::Ipv4 as u8);
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: Self = Self(IpProto::Ipv6 as u8);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(IpProto::Ipv6Icmp as u8);
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: Self = Self(IpProto::HopOpt as u8);
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: Self = Self(IpProto::Ipv6Route as u8);
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: Self = Self(IpProto::Ipv6Frag as u8);
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: Self = Self(IpProto::Ipv6Opts as u8);
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self(other) => write!(f, "protocol {other}"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An IP address of either family: four words in network byte order. IPv4 is held as an IPv4-mapped IPv6 address
/// (RFC 4291 section 2.5.5.2), so one comparison serves both.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address([u32; 4]);

impl Address {
    const V4_PREFIX: u32 = 0xffff_u32.to_be();
    /// `::`, which stands for no address.
    pub const ZERO: Self = Self([0; 4]);

    /// From the four bytes of an IPv4 address on the wire.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self([0, 0, Self::V4_PREFIX, u32::from_ne_bytes(bytes)])
    }

    /// Whether this is no address.
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// The address with these bits of its last word set, as they lie in memory.
    #[inline(always)]
    pub const fn with_low_bits(self, bits: u32) -> Self {
        let [a, b, c, d] = self.0;
        Self([a, b, c, d | bits])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] | self.0[1] | (self.0[2] ^ Self::V4_PREFIX) == 0
    }

    /// From the four words of an IPv6 address, as they lie in memory.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words as they lie in memory: for hashing.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The address as the standard library knows it.
    pub fn to_ip(self) -> IpAddr {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => return v4.into(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Self(words)
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.octets())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// Source and destination port as the four bytes that every transport header begins with. Kept in one word, for so they
/// are loaded, hashed and compared.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Ports(u32);

impl Ports {
    /// From two ports.
    pub const fn new(source: u16, destination: u16) -> Self {
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        Self(u32::from_le_bytes([a, b, c, d]))
    }

    /// From the four bytes of the wire, loaded little-endian.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The four bytes of the wire as a word.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The source port.
    #[inline(always)]
    pub const fn source(self) -> Be16 {
        Be16(self.0 as u16)
    }

    /// The destination port.
    #[inline(always)]
    pub const fn destination(self) -> Be16 {
        Be16((self.0 >> 16) as u16)
    }

    /// From two ports of the wire.
    #[inline(always)]
    pub const fn of(source: Be16, destination: Be16) -> Self {
        Self(source.0 as u32 | (destination.0 as u32) << 16)
    }

    /// Those of the other direction.
    #[inline(always)]
    pub const fn swapped(self) -> Self {
        Self(self.0.rotate_left(16))
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} → {:?}", self.source(), self.destination())
    }
}

/// Whose packet it is: the five fields that name a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The ports; zero for protocols without.
    pub ports: Ports,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// That of the other direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: self.ports.swapped(),
            protocol: self.protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.1", "0.0.0.0", "2001:db8::7", "::", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(address).to_ip(), address);
            assert_eq!(Address::from(address).is_v4(), address.is_ipv4());
        }
    }

    #[test]
    fn ports_are_those_of_the_wire() {
        let ports = Ports::new(40_000, 443);
        assert_eq!((ports.source().get(), ports.destination().get()), (40_000, 443));
        let [a, b, c, d] = [0x9c, 0x40, 0x01, 0xbb];
        assert_eq!(Ports::from_word(u32::from_le_bytes([a, b, c, d])), ports);
    }

    #[test]
    fn words_of_the_wire_keep_their_order() {
        assert_eq!(Be16::from_wire([0x12, 0x34]).get(), 0x1234);
        assert_eq!(Be16::new(0x1234), Be16::from_wire([0x12, 0x34]));
        assert_eq!(EtherType(Be16::new(0x0800)), EtherType::IPV4);
        assert_eq!(EtherType(Be16::new(0x8100)), EtherType::VLAN);
        assert_eq!(EtherType(Be16::new(0x88a8)), EtherType::SERVICE_VLAN);
    }
}
