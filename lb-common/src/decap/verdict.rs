//! What became of a packet in the decapsulating program, and why: every packet leaves with exactly one verdict.

crate::verdict::verdicts! {
    Ipip "decapsulated.ipip" "IP in IP from a listed source for a VIP; the inner packet went on to the host",
    Gue "decapsulated.gue" "GUE from a listed source for a VIP; the inner packet went on to the host",
    PassNotIp "pass.not_ip" "neither IPv4 nor IPv6; left to the host",
    PassNotTunnel "pass.not_tunnel" "neither IP in IP nor GUE; left to the host",
    PassOtherHost "pass.other_host" "a tunnel packet to an address that is not this host's; left to the host",
    PassMalformedEthernet "pass.malformed_ethernet" "shorter than its Ethernet header and VLAN tags; left to the host",
    PassMalformedIpv4 "pass.malformed_ipv4" "an impossible IPv4 header; left to the host, which discards it",
    PassMalformedIpv6 "pass.malformed_ipv6" "an impossible IPv6 header or extension header; left to the host, which discards it",
    DropSource "drop.source" "a tunnel packet from an outer source that is not listed",
    DropFragment "drop.fragment" "a fragment of a tunnel packet: it cannot be decapsulated",
    DropExtensions "drop.ipv6_extensions" "a tunnel packet behind IPv6 extension headers other than destination options, or more headers than are followed",
    DropMalformedGue "drop.malformed_gue" "a cut or impossible UDP or GUE header",
    DropGueUnsupported "drop.gue_unsupported" "GUE of a kind that is not understood: a control message, or an unknown variant, flag, length or protocol",
    DropMalformedInner "drop.malformed_inner" "the inner IP header is cut, impossible, or promises more than the tunnel packet holds",
    DropNotVip "drop.not_vip" "the inner destination is not a listed VIP",
    DropNested "drop.nested" "the inner packet is a tunnel packet itself",
    DropEcn "drop.ecn" "congestion was experienced in the tunnel, and the inner packet cannot carry the mark (RFC 6040)",
    DropInconsistent "drop.inconsistent" "the frame could not be shortened: a fault in Sluice",
}

impl Verdict {
    /// Whether the frame is discarded; all others go on to the host.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        match self {
            Self::Ipip
            | Self::Gue
            | Self::PassNotIp
            | Self::PassNotTunnel
            | Self::PassOtherHost
            | Self::PassMalformedEthernet
            | Self::PassMalformedIpv4
            | Self::PassMalformedIpv6 => false,
            Self::DropSource
            | Self::DropFragment
            | Self::DropExtensions
            | Self::DropMalformedGue
            | Self::DropGueUnsupported
            | Self::DropMalformedInner
            | Self::DropNotVip
            | Self::DropNested
            | Self::DropEcn
            | Self::DropInconsistent => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_what_becomes_of_the_frame() {
        let names: HashSet<&str> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
        assert_eq!(names.len(), Verdict::ALL.len());
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(verdict.index(), index);
            let kind = verdict.name().split('.').next().unwrap();
            assert!(["decapsulated", "pass", "drop"].contains(&kind), "{kind}");
            assert_eq!(verdict.is_drop(), kind == "drop", "{}", verdict.name());
        }
    }
}
