//! The verdicts: what became of a packet, and why. Every packet leaves with exactly one, and each one is counted.

/// Declares a program's verdicts once: the enum, its order in the counters, its names and explanations.
macro_rules! verdicts {
    ($($variant:ident $name:literal $explanation:literal,)*) => {
        /// What became of a packet. The discriminant is its place in the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $(#[doc = concat!("`", $name, "`: ", $explanation, ".")] $variant,)*
        }

        const _: () = assert!(Verdict::ALL.len() <= $crate::verdict::VERDICT_SLOTS);

        impl Verdict {
            /// All verdicts in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The place in the counters.
            #[inline(always)]
            pub const fn index(self) -> usize {
                self as usize & ($crate::verdict::VERDICT_SLOTS - 1)
            }

            /// The name in counters and outputs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One clause for people.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)* }
            }
        }
    };
}
pub(crate) use verdicts;

verdicts! {
    Forward "forward" "sent to a backend",
    ReplyIcmpEcho "reply.icmp_echo" "a ping to a VIP, answered",
    PassNotIp "pass.not_ip" "neither IPv4 nor IPv6; left to the host",
    PassNotVip "pass.not_vip" "not for a VIP and port of a service; left to the host",
    PassOtherHost "pass.other_host" "for a VIP, but the frame is addressed to another host's MAC; left to the host",
    PassFragment "pass.fragment" "an IP fragment for a VIP; left to the host",
    PassIcmp "pass.icmp" "ICMP to a VIP other than an echo request; left to the host",
    PassMalformedEthernet "pass.malformed_ethernet" "shorter than its Ethernet header and VLAN tags; left to the host",
    PassMalformedIpv4 "pass.malformed_ipv4" "an impossible IPv4 header; left to the host",
    PassMalformedTransport "pass.malformed_transport" "a truncated or impossible TCP, UDP or ICMP header; left to the host",
    DropNoBackend "drop.no_backend" "the service has no backend that may take the flow",
    DropNoNextHop "drop.no_next_hop" "the chosen backend's MAC address is not known",
    DropInconsistent "drop.inconsistent" "the tables contradict each other: a fault in Sluice",
}

/// Room for verdicts in the counters: a power of two, so that an index can be masked instead of checked.
pub const VERDICT_SLOTS: usize = 32;

const _: () = assert!(VERDICT_SLOTS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_the_kind() {
        let names: HashSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
        assert_eq!(names.len(), Verdict::ALL.len());
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(verdict.index(), index);
            let kind = verdict.name().split('.').next().unwrap();
            assert!(["forward", "reply", "pass", "drop"].contains(&kind), "{kind}");
        }
    }
}
