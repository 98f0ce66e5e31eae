//! What userspace asks of the measuring programs, as it lies in their map; both sides are built with this file.

/// Where the words of a frame stand that `again` restores: the Ethernet header in two that overlap, and the IP header from a word's
/// beginning, so that none of its fields is in two.
pub const WORDS: [usize; 10] = [0, 6, 14, 22, 30, 38, 46, 54, 62, 70];

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Settings {
    /// Flows that take turns; 0 for ever-new ones.
    pub flows: u64,
    /// The flow of the frame after the next one.
    pub next: u64,
    /// The source of the next frame: that of flow 0 to begin with.
    pub random: u64,
    /// How the frame begins, in words that stand at [`WORDS`]: a frame of IPv6 with all of them, others with the first eight. Where
    /// `again` puts a flow's source or a checksum, there are zeros.
    pub start: [u64; WORDS.len()],
    /// Whose source is made that of the next flow: 4, 6, or 0 for none.
    pub family: u32,
    /// Bytes of the frame that lie in its first page; 0 until `again` has seen one.
    pub length: u32,
    /// What the words of an IPv4 header add up to without its source and checksum.
    pub sum: u32,
    /// Bytes that `grow` puts in front.
    pub growth: u32,
    /// Lines that `touch` reads one of.
    pub lines: u32,
    /// Destination and source MAC address of what is forwarded.
    pub addresses: [u32; 3],
    /// IPv4 header of what is encapsulated: its length is zero, and its checksum the folded sum of the rest.
    pub outer: [u32; 5],
    /// To a multiple of eight.
    pub padding: u32,
}

const _: () = assert!(size_of::<Settings>() == 160);
