//! A frame → what it says, read by other code than the datapath's, and whether its checksums are right.

use lb_common::checksum::full;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// An IP packet in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// Offset of the IP header in bytes.
    pub at: usize,
    pub v4: bool,
    /// Bytes by the header.
    pub total: usize,
    /// Offset of what the last IP header carries.
    pub transport: usize,
    pub protocol: u8,
    pub fragment: bool,
    pub later: bool,
}

/// How a checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Equal to a full computation.
    Right,
    Wrong,
    /// UDP over IPv4 without one.
    Absent,
    /// A fragment, cut, or a protocol without.
    Unknown,
}

/// The IP packet in a frame.
pub fn ip(frame: &[u8]) -> Option<Ip> {
    let (at, v4) = place(frame)?;
    ip_at(frame, at, v4)
}

/// Where the IP header is, behind at most two tags, and whether it is one of IPv4.
pub fn place(frame: &[u8]) -> Option<(usize, bool)> {
    let mut at = 12;
    let mut kind = frame.get(at..at + 2)?;
    while (kind == [0x81, 0] || kind == [0x88, 0xa8]) && at < 20 {
        at += 4;
        kind = frame.get(at..at + 2)?;
    }
    match kind {
        [8, 0] => Some((at + 2, true)),
        [0x86, 0xdd] => Some((at + 2, false)),
        _ => None,
    }
}

/// The IP packet at this offset.
pub fn ip_at(frame: &[u8], at: usize, v4: bool) -> Option<Ip> {
    let bytes = frame.get(at..)?;
    if v4 {
        let header = usize::from(bytes.first()? & 15) * 4;
        let place = half(bytes, 6)?;
        let total = half(bytes, 2)?.into();
        (bytes[0] >> 4 == 4 && header >= 20 && bytes.len() >= header && total >= header).then_some(Ip {
            at,
            v4,
            total,
            transport: at + header,
            protocol: *bytes.get(9)?,
            fragment: place & 0x3fff != 0,
            later: place & 0x1fff != 0,
        })
    } else {
        let total = 40 + usize::from(half(bytes, 4)?);
        let mut ip =
            Ip { at, v4, total, transport: at + 40, protocol: *bytes.get(6)?, fragment: false, later: false };
        while matches!(ip.protocol, 0 | 43 | 44 | 60) && !ip.later {
            let header = frame.get(ip.transport..ip.transport + 8)?;
            if ip.protocol == 44 {
                let place = half(header, 2)?;
                (ip.fragment, ip.later) = (ip.fragment || place & !6 != 0, place & !7 != 0);
                ip.transport += 8;
            } else {
                ip.transport += (usize::from(header[1]) + 1) * 8;
            }
            ip.protocol = header[0];
        }
        (bytes[0] >> 4 == 6 && bytes.len() >= 40).then_some(ip)
    }
}

pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Ip {
    pub fn source<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.v4 { &frame[self.at + 12..self.at + 16] } else { &frame[self.at + 8..self.at + 24] }
    }

    pub fn destination<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.v4 { &frame[self.at + 16..self.at + 20] } else { &frame[self.at + 24..self.at + 40] }
    }

    /// Time to live or hop limit.
    pub fn ttl(&self, frame: &[u8]) -> u8 {
        frame[self.at + if self.v4 { 8 } else { 7 }]
    }

    /// What the IP header carries, as much as the frame has of it.
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let end = frame.len().min(self.at + self.total);
        frame.get(self.transport..end).unwrap_or_default()
    }

    /// How the IPv4 header's checksum is.
    pub fn header_sum(&self, frame: &[u8]) -> Sum {
        if !self.v4 {
            return Sum::Unknown;
        }
        verify(frame[self.at..self.transport].to_vec(), 10, false)
    }

    /// How the checksum of what it carries is.
    pub fn transport_sum(&self, frame: &[u8]) -> Sum {
        let payload = self.payload(frame);
        if self.fragment || self.at + self.total > frame.len() {
            return Sum::Unknown;
        }
        let at = match self.protocol {
            TCP if payload.len() >= 20 => 16,
            UDP if half(payload, 4).map(usize::from) == Some(payload.len()) && payload.len() >= 8 => 6,
            ICMP if self.v4 && payload.len() >= 8 => 2,
            ICMPV6 if !self.v4 && payload.len() >= 8 => 2,
            _ => return Sum::Unknown,
        };
        if self.protocol == UDP && half(payload, at) == Some(0) {
            return if self.v4 { Sum::Absent } else { Sum::Wrong };
        }
        let mut bytes = payload.to_vec();
        if payload.len() % 2 == 1 {
            bytes.push(0);
        }
        if self.protocol != ICMP {
            bytes.extend(self.source(frame).iter().chain(self.destination(frame)));
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend([0, self.protocol]);
        }
        verify(bytes, at, self.protocol == UDP)
    }

    /// The one's complement sum of addresses and payload: what a translation must not change, whether the checksum was
    /// right or not, and also in a first fragment.
    pub fn residue(&self, frame: &[u8]) -> u32 {
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| b.into())).sum()
        };
        (words(self.source(frame)) + words(self.destination(frame)) + words(self.payload(frame))) % 0xffff
    }
}

/// How the checksum at this place, over all these bytes, is. UDP writes zero as all ones (RFC 768).
fn verify(mut bytes: Vec<u8>, at: usize, udp: bool) -> Sum {
    let told = half(&bytes, at);
    bytes[at..at + 2].fill(0);
    let sum = match full(&bytes).get() {
        0 if udp => 0xffff,
        sum => sum,
    };
    if told == Some(sum) { Sum::Right } else { Sum::Wrong }
}
