//! The Internet checksum (RFC 1071), updated for what a rewrite changes.

use crate::net::{Address, Be16};

/// What a rewrite changes under a checksum (RFC 1624 equation 3), in words as they lie in memory: one's complement addition does
/// not care about byte order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change(u64);

impl Change {
    /// Nothing changes.
    pub const NONE: Self = Self(0);

    /// And this word becomes that one. Both begin at an even offset under the checksum.
    #[inline(always)]
    pub const fn and(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// And these 16 bits become those.
    #[inline(always)]
    pub const fn and_half(self, old: Be16, new: Be16) -> Self {
        Self(self.0 + !old.raw() as u64 + new.raw() as u64)
    }

    /// And all four words of an address.
    #[inline(always)]
    pub const fn and_address(self, old: Address, new: Address) -> Self {
        let (old, new) = (old.words(), new.words());
        // The first three words of IPv4 addresses are the same.
        self.and(old[0], new[0]).and(old[1], new[1]).and(old[2], new[2]).and(old[3], new[3])
    }

    /// The checksum after this change.
    #[inline(always)]
    pub const fn apply(self, checksum: Be16) -> Be16 {
        Be16::from_wire((!fold(self.0 + !checksum.raw() as u64)).to_ne_bytes())
    }

    /// The same for UDP, where 0 stands for no checksum: that stays, and no other becomes it (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: Be16) -> Be16 {
        if checksum.raw() == 0 {
            return checksum;
        }
        let new = self.apply(checksum);
        if new.raw() == 0 { Be16::new(0xffff) } else { new }
    }
}

/// A sum of words as they lie in memory, to become a checksum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// And this word.
    #[inline(always)]
    pub const fn and(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// And the words of an address. IPv4: only the last; the mapping's prefix is none of the packet's.
    #[inline(always)]
    pub const fn and_address(self, address: Address) -> Self {
        let words = address.words();
        if address.is_v4() {
            self.and(words[3])
        } else {
            self.and(words[0]).and(words[1]).and(words[2]).and(words[3])
        }
    }

    /// The checksum.
    #[inline(always)]
    pub const fn checksum(self) -> Be16 {
        Be16::from_wire((!fold(self.0)).to_ne_bytes())
    }
}

/// One's complement sum of the 16-bit parts. Two halves added to the same exchanged: the upper one has the carry of the lower.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The checksum over `bytes`, from scratch; an odd last byte is padded with zero.
pub fn full(bytes: &[u8]) -> Be16 {
    let words = bytes.chunks(2).map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
    let mut sum: u64 = words.map(|pair| u64::from(u16::from_be_bytes(pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Be16::new(!(sum as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 1071 section 3.
    #[test]
    fn full_matches_the_rfc() {
        assert_eq!(full(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), Be16::new(!0xddf2));
    }

    /// The examples of RFC 1624 sections 4 and 5: the case where equation 2 of RFC 1141 fails.
    #[test]
    fn update_matches_the_rfc() {
        let change = Change::NONE.and_half(Be16::new(0x5555), Be16::new(0x3285));
        assert_eq!(change.apply(Be16::new(0xdd2f)), Be16::new(0x0000));
        assert_eq!(change.apply_udp(Be16::new(0xdd2f)), Be16::new(0xffff));
        assert_eq!(change.apply_udp(Be16::new(0)), Be16::new(0));
    }

    proptest! {
        #[test]
        fn a_sum_equals_a_full_computation(words in proptest::collection::vec(any::<u32>(), 1..80)) {
            let bytes: std::vec::Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let sum = words.iter().fold(Sum::default(), |sum, &word| sum.and(word));
            prop_assert_eq!(sum.checksum(), full(&bytes));
        }

        #[test]
        fn update_equals_a_full_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 1..20)
                .prop_map(|mut half| { half.push(1); let twin = half.clone(); half.extend(twin); half }),
            word: [u8; 2],
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(bytes.len() / 2) * 2;
            let before = full(&bytes);
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&word);
            // Data of zeros only is the one case where the two zeros of one's complement differ.
            prop_assume!(bytes.iter().any(|&byte| byte != 0));
            let change = Change::NONE.and_half(Be16::from_wire(old), Be16::from_wire(word));
            prop_assert_eq!(change.apply(before), full(&bytes));
        }
    }
}
