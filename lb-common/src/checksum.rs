//! The Internet checksum (RFC 1071), updated for what a rewrite changes.

use crate::net::Be16;

/// The checksum after one 16-bit word under it changed from `old` to `new` (RFC 1624 equation 3). All three as they
/// lie in memory: one's complement addition does not care about byte order.
#[inline(always)]
pub fn update(checksum: Be16, old: Be16, new: Be16) -> Be16 {
    let sum = u32::from(!checksum.raw()) + u32::from(!old.raw()) + u32::from(new.raw());
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    Be16::from_wire((!(folded as u16)).to_ne_bytes())
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
        assert_eq!(update(Be16::new(0xdd2f), Be16::new(0x5555), Be16::new(0x3285)), Be16::new(0x0000));
    }

    proptest! {
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
            prop_assert_eq!(update(before, Be16::from_wire(old), Be16::from_wire(word)), full(&bytes));
        }
    }
}
