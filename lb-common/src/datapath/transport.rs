//! The flags of a TCP header → what they say of a connection.

/// What a transport header says beyond the ports: the flags of a TCP header that change its connection's state, as they lie
/// there (RFC 9293 section 3.1), and that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(u8);

impl Transport {
    /// Nothing: a fragment, UDP, or a protocol without ports.
    pub const OTHER: Self = Self(0);

    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    /// All that there may be.
    pub(super) const ALL: u8 = Self::FIN | Self::SYN | Self::RST | Self::ACK | Self::TCP;
    /// Flags that open or close a connection.
    pub(super) const NEWS: u8 = Self::FIN | Self::SYN | Self::RST;
    /// In the place of a flag that says nothing of the connection's state.
    const TCP: u8 = 128;

    /// From the flags in a TCP header.
    #[inline(always)]
    pub(crate) const fn tcp(flags: u8) -> Self {
        Self(Self::TCP | flags & (Self::FIN | Self::SYN | Self::RST | Self::ACK))
    }

    /// As a byte.
    #[inline(always)]
    pub(super) const fn bits(self) -> u8 {
        self.0
    }

    /// From that byte.
    #[inline(always)]
    pub(super) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether the packet is part of a connection, or opens one.
    #[inline(always)]
    pub const fn is_tcp(self) -> bool {
        self.0 & Self::TCP != 0
    }

    /// Whether the packet opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 == Self::TCP | Self::SYN
    }

    /// Whether the packet is one of a connection's first, of either direction: SYN.
    #[inline(always)]
    pub const fn begins(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// Whether the packet neither opens a connection nor closes one.
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        self.0 & Self::NEWS == 0
    }

    /// Whether the packet closes a connection: FIN or RST.
    #[inline(always)]
    pub const fn closes(self) -> bool {
        self.0 & (Self::FIN | Self::RST) != 0
    }

    /// Whether the packet ends a connection at once: RST.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }
}
