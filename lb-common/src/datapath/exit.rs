//! Why a packet leaves the pipeline's straight way: a verdict, or a stage that looks after it.

use crate::verdict::Verdict;

/// A part of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// None: the verdict is found.
    None = 0,
    /// Untagged, whole TCP segments and UDP datagrams right behind the IP header: nearly all packets. Of translated flows, those of either
    /// direction that change nothing about their flow.
    Plain = 6,
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

/// Why a packet leaves: its verdict, the stage that looks after it, and for [`Stage::Answer`] an MTU. One word: of several fields the
/// compiler would cut what a packet leaves with otherwise into pieces of their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(u32);

impl Exit {
    const STAGE_SHIFT: u32 = 8;
    const MTU_SHIFT: u32 = 16;

    /// To a stage, which gives this verdict if it can do nothing.
    #[inline(always)]
    const fn new(verdict: Verdict, stage: Stage, mtu: u16) -> Self {
        Self(verdict as u32 | (stage as u32) << Self::STAGE_SHIFT | (mtu as u32) << Self::MTU_SHIFT)
    }

    /// To the stage that a program is.
    #[inline(always)]
    pub const fn enter(stage: Stage) -> Self {
        Self::new(Verdict::DropInconsistent, stage, 0)
    }

    /// The same exit, to another stage.
    #[inline(always)]
    pub const fn with_stage(self, stage: Stage) -> Self {
        Self(self.0 & !(0xff << Self::STAGE_SHIFT) | (stage as u32) << Self::STAGE_SHIFT)
    }

    /// To the stage that tells the sender: no packet of more than `mtu` bytes by its IP header can go on.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self::new(Verdict::DropTooBig, Stage::Answer, mtu)
    }

    /// To the stage that tells the sender: the packet's time to live ended.
    #[inline(always)]
    pub const fn expired() -> Self {
        Self::new(Verdict::DropTimeExceeded, Stage::Answer, 0)
    }

    /// The verdict, if there is no stage or it can do nothing for the packet; of a word that is none, a fault's.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match Verdict::from_index((self.0 & 0xff) as usize) {
            Some(verdict) => verdict,
            None => Verdict::DropInconsistent,
        }
    }

    /// Whether no stage looks after the packet: the verdict is found.
    #[inline(always)]
    pub(super) const fn is_settled(self) -> bool {
        self.0 & 0xff << Self::STAGE_SHIFT == (Stage::None as u32) << Self::STAGE_SHIFT
    }

    /// The stage that looks after the packet.
    #[inline(always)]
    pub const fn stage(self) -> Stage {
        match (self.0 >> Self::STAGE_SHIFT) as u8 {
            1 => Stage::Rare,
            2 => Stage::Icmp,
            3 => Stage::IcmpError,
            4 => Stage::Nat,
            5 => Stage::Answer,
            6 => Stage::Plain,
            7 => Stage::NatReturn,
            8 => Stage::NatNew,
            9 => Stage::NatError,
            11 => Stage::Former,
            _ => Stage::None,
        }
    }

    /// For [`Stage::Answer`]: bytes of the largest IP packet that would have gone on; 0 if its time to live ended.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> Self::MTU_SHIFT) as u16
    }

    /// As one word, to be handed from one program to another.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0 as u64
    }

    /// From that word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word as u32)
    }

    /// The exit itself. The compiler for BPF is not to know it: it would set a register to it on every packet's way, before the branch
    /// that hardly any takes.
    #[inline(always)]
    fn taken(self) -> Self {
        #[cfg(target_arch = "bpf")]
        {
            let mut word = self.to_word();
            // SAFETY: the instruction adds nothing.
            unsafe { core::arch::asm!("{0} += 0", inout(reg) word) };
            return Self::from_word(word);
        }
        #[cfg(not(target_arch = "bpf"))]
        self
    }
}

impl From<Verdict> for Exit {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self::new(verdict, Stage::None, 0).taken()
    }
}

impl From<Stage> for Exit {
    #[inline(always)]
    fn from(stage: Stage) -> Self {
        Self::enter(stage).taken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_survive_the_round_trip() {
        use Stage::{Answer, Former, Icmp, IcmpError, Nat, NatError, NatNew, NatReturn, None, Plain, Rare};
        for stage in [None, Plain, Rare, Icmp, IcmpError, Nat, NatReturn, NatNew, NatError, Answer, Former] {
            for &verdict in Verdict::ALL {
                let exit = Exit::new(verdict, stage, 1_480);
                let found = Exit::from_word(exit.to_word());
                assert_eq!((found.verdict(), found.stage(), found.mtu()), (verdict, stage, 1_480));
            }
        }
    }
}
