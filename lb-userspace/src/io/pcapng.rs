//! Captured packets → a pcapng file in which each says what became of it.
//!
//! A packet that was sent is there twice, one behind the other: on the interface `IFACE in` as it came, on `IFACE out` as it left.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

use crate::core::capture::{CapturedBytes, CapturedPacket};

/// What is behind an interface's name where packets came in on it, and where they left.
pub const CAME_IN: &str = " in";
/// See [`CAME_IN`].
pub const LEFT: &str = " out";
/// The resolution of times: 10⁻⁹ s.
const NANOSECONDS: u8 = 9;
/// `epb_flags`: a packet that came in, and one that left.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A file that is being written.
pub struct PcapngFile<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: BTreeMap<String, u32>,
    snap: u32,
    bytes: u64,
    frames: u64,
}

impl<W: Write> std::fmt::Debug for PcapngFile<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PcapngFile").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl<W: Write> PcapngFile<W> {
    /// Begins a file; so many bytes are kept of each packet.
    pub fn new(writer: W, snap: u32) -> io::Result<Self> {
        let writer = PcapNgWriter::new(writer).map_err(failed)?;
        // A section header without options.
        Ok(Self { writer, interfaces: BTreeMap::new(), snap, bytes: 28, frames: 0 })
    }

    /// Bytes that were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Frames that were written.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Writes a packet as it came in and, if it was sent, as it left.
    pub fn write(&mut self, packet: &CapturedPacket) -> io::Result<()> {
        let comment = packet.comment();
        let time = Duration::from_nanos(packet.time_ns);
        self.frame((&packet.ingress, INBOUND), time, &packet.before, &comment)?;
        if let (Some(egress), Some(after)) = (&packet.egress, &packet.after) {
            self.frame((egress, OUTBOUND), time, after, &comment)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        (interface, flags): (&str, u32),
        timestamp: Duration,
        frame: &CapturedBytes,
        comment: &str,
    ) -> io::Result<()> {
        let way = if flags == INBOUND { CAME_IN } else { LEFT };
        let interface_id = self.interface(format!("{interface}{way}"))?;
        let data = frame.bytes().ok_or_else(|| io::Error::other("a packet's bytes cannot be read"))?;
        let written = self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len: frame.length,
            data: Cow::Owned(data),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Borrowed(comment)),
                EnhancedPacketOption::Flags(flags),
            ],
        });
        self.count(written)?;
        self.frames += 1;
        Ok(())
    }

    /// The number of an interface, which is described when it is met first.
    fn interface(&mut self, name: String) -> io::Result<u32> {
        if let Some(&id) = self.interfaces.get(&name) {
            return Ok(id);
        }
        let id = u32::try_from(self.interfaces.len()).map_err(io::Error::other)?;
        let written = self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name.clone())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        });
        self.count(written)?;
        self.interfaces.insert(name, id);
        Ok(id)
    }

    fn count(&mut self, written: Result<usize, PcapError>) -> io::Result<()> {
        self.bytes += written.map_err(failed)? as u64;
        Ok(())
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }
}

fn failed(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::{Block, PcapNgReader};

    #[test]
    fn a_packet_is_there_as_it_came_and_as_it_left() {
        let packet = CapturedPacket {
            number: 3,
            time_ns: 1_700_000_000_123_456_789,
            verdict: "forward".into(),
            service: Some("web".into()),
            backend: Some("web1".into()),
            backend_address: None,
            new_flow: false,
            ingress: "eth0".into(),
            egress: Some("eth1".into()),
            before: CapturedBytes { length: 60, hex: "0102".into() },
            after: Some(CapturedBytes { length: 80, hex: "030405".into() }),
        };
        let dropped =
            CapturedPacket { verdict: "drop.no_backend".into(), egress: None, after: None, ..packet.clone() };
        let mut bytes = Vec::new();
        let mut file = PcapngFile::new(&mut bytes, 64).unwrap();
        file.write(&packet).unwrap();
        file.write(&dropped).unwrap();
        assert_eq!(file.frames(), 3);
        let told = file.bytes();
        assert_eq!(told, bytes.len() as u64);
        let mut reader = PcapNgReader::new(bytes.as_slice()).unwrap();
        let (mut names, mut frames) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(interface) => names.push(format!("{:?}", interface.options[0])),
                Block::EnhancedPacket(frame) => frames.push(frame),
                block => panic!("{block:?}"),
            }
        }
        assert_eq!(names, ["IfName(\"eth0 in\")", "IfName(\"eth1 out\")"]);
        let of: Vec<_> = frames
            .iter()
            .map(|frame| (frame.interface_id, frame.data.to_vec(), frame.original_len))
            .collect();
        assert_eq!(of, [(0, vec![1, 2], 60), (1, vec![3, 4, 5], 80), (0, vec![1, 2], 60)]);
        assert_eq!(frames[0].timestamp, Duration::from_nanos(packet.time_ns));
        assert_eq!(frames[1].options[0], EnhancedPacketOption::Comment(packet.comment().into()));
        assert!(dropped.comment().contains("drop.no_backend"), "{}", dropped.comment());
    }
}
