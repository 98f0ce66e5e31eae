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

// In this order: what is sent, what is left to the host, what is dropped.
verdicts! {
    Forward "forward" "sent to a backend",
    ForwardReturn "forward.return" "a backend's answer, translated back and sent to the customer",
    ReplyIcmpEcho "reply.icmp_echo" "a ping to a VIP, answered",
    ReplyTooBig "reply.too_big" "too big for the way to the backend; the sender was told how big a packet may be",
    ReplyTimeExceeded "reply.time_exceeded" "its time to live ended here; the sender was told",
    PassNotIp "pass.not_ip" "neither IPv4 nor IPv6; left to the host",
    PassNotVip "pass.not_vip" "not for a VIP and port of a service; left to the host",
    PassOtherHost "pass.other_host" "for a VIP, but the frame is addressed to another host's MAC; left to the host",
    PassIcmp "pass.icmp" "ICMP to a VIP that is neither an echo request nor about a flow; left to the host",
    PassPathMtu "pass.path_mtu" "ICMP that tells how large a packet may be on a tunnel's way; noted, and left to the host",
    PassFragment "pass.fragment" "a fragment of what was left to the host; so is this",
    PassMalformedEthernet "pass.malformed_ethernet" "shorter than its Ethernet header and VLAN tags; left to the host",
    PassMalformedIpv4 "pass.malformed_ipv4" "an impossible IPv4 header; left to the host",
    PassMalformedIpv6 "pass.malformed_ipv6" "an impossible IPv6 header; left to the host",
    PassMalformedTransport "pass.malformed_transport" "a truncated or impossible TCP, UDP or ICMP header; left to the host",
    DropNoBackend "drop.no_backend" "the service has no backend that may take the flow",
    DropNoNextHop "drop.no_next_hop" "the chosen backend's MAC address is not known",
    DropTooBig "drop.too_big" "too big for the way to the backend, and its sender was not to be told",
    DropTimeExceeded "drop.time_exceeded" "its time to live ended here, and its sender was not to be told",
    DropFragment "drop.fragment" "a fragment for a VIP whose first fragment was not seen before it",
    DropIpv6Headers "drop.ipv6_headers" "for a VIP, behind too many IPv6 extension headers, or with a routing header that leads on",
    DropIcmpRate "drop.icmp_rate" "would have been answered with ICMP, but too many were in this second",
    DropNatPorts "drop.nat_ports" "no free port was found for a new translated flow",
    DropNatTable "drop.nat_table" "the table of translations is full",
    DropNatSource "drop.nat_source" "there is no address that the packet could be sent on from",
    DropHeadroom "drop.headroom" "the driver left no room for the header to be put in front",
    DropInconsistent "drop.inconsistent" "the tables contradict each other: a fault in Sluice",
}

/// Room for verdicts in the counters: a power of two, so that an index can be masked instead of checked.
pub const VERDICT_SLOTS: usize = 64;

const _: () = assert!(VERDICT_SLOTS.is_power_of_two());

impl Verdict {
    /// The verdict at this place in the counters.
    #[inline(always)]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::ALL.len() {
            // SAFETY: the enum is `repr(u32)`, and its discriminants are the numbers below the length of `ALL`.
            Some(unsafe { core::mem::transmute::<u32, Self>(index as u32) })
        } else {
            None
        }
    }

    /// Whether the packet is sent.
    #[inline(always)]
    pub const fn is_sent(self) -> bool {
        (self as u32) < Self::PassNotIp as u32
    }

    /// Whether the packet is dropped.
    #[inline(always)]
    pub const fn is_dropped(self) -> bool {
        self as u32 >= Self::DropNoBackend as u32
    }
}

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
            assert_eq!(Verdict::from_index(index), Some(*verdict));
            let kind = verdict.name().split('.').next().unwrap();
            assert!(["forward", "reply", "pass", "drop"].contains(&kind), "{kind}");
            assert_eq!(verdict.is_sent(), ["forward", "reply"].contains(&kind), "{}", verdict.name());
            assert_eq!(verdict.is_dropped(), kind == "drop", "{}", verdict.name());
        }
        assert_eq!(Verdict::from_index(Verdict::ALL.len()), None);
    }
}
