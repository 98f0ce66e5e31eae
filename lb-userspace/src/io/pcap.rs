//! A packet capture (pcap or pcapng) → the frames in it.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};

/// How a pcapng file begins.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A frame of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedFrame {
    /// Its bytes, as far as they were captured.
    pub bytes: Vec<u8>,
    /// How long it was on the wire.
    pub length: usize,
    /// The name of the interface, where the capture has it.
    pub interface: Option<String>,
}

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// What is in it.
    #[error("{path}: not a readable pcap or pcapng file: {cause}", path = path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: PcapError,
    },
    /// It holds no Ethernet frames.
    #[error("{path}: captured from {link:?}, not from an Ethernet interface; capture on one (not on \"any\")", path = path.display())]
    NotEthernet {
        /// Its path.
        path: PathBuf,
        /// What it was captured from.
        link: DataLink,
    },
}

/// The first frames of a capture, at most `limit`.
pub fn frames(path: &Path, limit: usize) -> Result<Vec<CapturedFrame>, CaptureError> {
    let io = |cause| CaptureError::Io { path: path.to_owned(), cause };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    if magic == PCAPNG_MAGIC { pcapng(path, file, limit) } else { pcap(path, file, limit) }
}

fn check_link(path: &Path, link: DataLink) -> Result<(), CaptureError> {
    match link {
        DataLink::ETHERNET => Ok(()),
        link => Err(CaptureError::NotEthernet { path: path.to_owned(), link }),
    }
}

fn pcap(path: &Path, file: impl Read, limit: usize) -> Result<Vec<CapturedFrame>, CaptureError> {
    let format = |cause| CaptureError::Format { path: path.to_owned(), cause };
    let mut reader = PcapReader::new(file).map_err(format)?;
    check_link(path, reader.header().datalink)?;
    let mut frames = Vec::new();
    while frames.len() < limit
        && let Some(packet) = reader.next_packet()
    {
        let packet = packet.map_err(format)?;
        let (bytes, length) = (packet.data.into_owned(), packet.orig_len as usize);
        frames.push(CapturedFrame { bytes, length, interface: None });
    }
    Ok(frames)
}

fn pcapng(path: &Path, file: impl Read, limit: usize) -> Result<Vec<CapturedFrame>, CaptureError> {
    let format = |cause| CaptureError::Format { path: path.to_owned(), cause };
    let mut reader = PcapNgReader::new(file).map_err(format)?;
    let (mut frames, mut interfaces) = (Vec::new(), Vec::new());
    while frames.len() < limit
        && let Some(block) = reader.next_block()
    {
        match block.map_err(format)? {
            Block::InterfaceDescription(interface) => {
                check_link(path, interface.linktype)?;
                interfaces.push(interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                }));
            }
            Block::EnhancedPacket(packet) => {
                let (bytes, length) = (packet.data.into_owned(), packet.original_len as usize);
                let interface = interfaces.get(packet.interface_id as usize).cloned().flatten();
                frames.push(CapturedFrame { bytes, length, interface });
            }
            Block::SimplePacket(packet) => {
                let (bytes, length) = (packet.data.into_owned(), packet.original_len as usize);
                frames.push(CapturedFrame {
                    bytes,
                    length,
                    interface: interfaces.first().cloned().flatten(),
                });
            }
            _ => {}
        }
    }
    Ok(frames)
}
