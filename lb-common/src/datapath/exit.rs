//! Why a packet leaves the pipeline's straight way: a verdict, or a stage that looks after it.

use crate::verdict::Verdict;

/// A part of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// None: the verdict is found.
    None = 0,
    /// Untagged, whole TCP segments and UDP datagrams right behind the IP header: nearly all packets.
    Plain = 6,
    /// Untagged, whole packets of translated flows, of either direction, that change nothing about their flow.
    NatKnown = 10,
    /// Other answers of backends that are translated back, and fragments without ports of either direction.
    NatReturn = 7,
    /// A new translation for a customer's packet.
    NatNew = 8,
    /// ICMP and ICMPv6 errors about translated flows.
    NatError = 9,
    /// VLAN tags, IPv4 options, IPv6 extension headers, fragments, what is to be remembered of a client, next hops that only the
    /// kernel's tables know.
    Rare = 1,
    /// ICMP and ICMPv6 to a VIP, other than errors.
    Icmp = 2,
    /// ICMP and ICMPv6 errors: about a flow, or a tunnel.
    IcmpError = 3,
    /// Other customers' packets for a service that is translated.
    Nat = 4,
    /// An ICMP error back to the sender: too big for the way on, or its time to live at its end.
    Answer = 5,
    /// The former program with its tables, while they change their size: see [`Moving`](crate::abi::Moving).
    Former = 11,
}

/// Why a packet leaves. Flat, as [`super::Outcome`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its verdict, if `stage` is none or can do nothing for it.
    pub verdict: Verdict,
    /// The stage that looks after it.
    pub stage: Stage,
    /// For [`Stage::Answer`]: bytes of the largest IP packet that would have gone on; 0 if its time to live ended.
    pub mtu: u16,
}

impl Exit {
    /// To the stage that tells the sender: no packet of more than `mtu` bytes by its IP header can go on.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self { verdict: Verdict::DropTooBig, stage: Stage::Answer, mtu }
    }

    /// To the stage that tells the sender: the packet's time to live ended.
    #[inline(always)]
    pub const fn expired() -> Self {
        Self { verdict: Verdict::DropTimeExceeded, stage: Stage::Answer, mtu: 0 }
    }

    /// As one word, to be handed from one program to another.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.verdict as u64 | (self.stage as u64) << 8 | (self.mtu as u64) << 16
    }

    /// From that word; one that is none is a fault.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let verdict = match Verdict::from_index((word & 0xff) as usize) {
            Some(verdict) => verdict,
            None => Verdict::DropInconsistent,
        };
        let stage = match (word >> 8) as u8 {
            1 => Stage::Rare,
            2 => Stage::Icmp,
            3 => Stage::IcmpError,
            4 => Stage::Nat,
            5 => Stage::Answer,
            6 => Stage::Plain,
            7 => Stage::NatReturn,
            8 => Stage::NatNew,
            9 => Stage::NatError,
            10 => Stage::NatKnown,
            11 => Stage::Former,
            _ => Stage::None,
        };
        Self { verdict, stage, mtu: (word >> 16) as u16 }
    }
}

impl From<Verdict> for Exit {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self { verdict, stage: Stage::None, mtu: 0 }
    }
}

impl From<Stage> for Exit {
    #[inline(always)]
    fn from(stage: Stage) -> Self {
        Self { verdict: Verdict::DropInconsistent, stage, mtu: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_survive_the_round_trip() {
        use Stage::{
            Answer, Former, Icmp, IcmpError, Nat, NatError, NatKnown, NatNew, NatReturn, None, Plain, Rare,
        };
        for stage in
            [None, Plain, Rare, Icmp, IcmpError, Nat, NatReturn, NatNew, NatError, NatKnown, Answer, Former]
        {
            for &verdict in Verdict::ALL {
                let exit = Exit { verdict, stage, mtu: 1_480 };
                assert_eq!(Exit::from_word(exit.to_word()), exit);
            }
        }
    }
}
