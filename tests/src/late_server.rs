//! A server that is slow to answer: turns customers' SYNs for a VIP that its host does not have into SYN-ACKs some time later, and
//! counts what customers send.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::Socket;

use crate::frames::{packet_socket, receive};
use crate::host::Host;

/// How often it looks whether an answer is due.
const TICK: Duration = Duration::from_millis(1);
const IPV4: u16 = 0x0800;
/// Bytes of the headers that it sends: Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What customers have sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// SYNs.
    pub syns: u64,
    /// FINs.
    pub fins: u64,
    /// RSTs.
    pub resets: u64,
    /// All packets.
    pub packets: u64,
}

/// The server; it ends when dropped. It opens connections and ends them with an RST, and that is all.
#[derive(Debug)]
pub struct LateServer {
    ending: Arc<AtomicBool>,
    sent: Arc<Mutex<Sent>>,
    thread: Option<JoinHandle<()>>,
}

impl LateServer {
    /// Answers so late, from `host`, which must not have the VIP: else its kernel answers, too. `customer` is on its segment.
    pub fn start(host: &Host, customer: &Host, vip: SocketAddrV4, late: Duration) -> Result<Self> {
        let socket = packet_socket(host, "eth0", IPV4)?;
        socket.set_read_timeout(Some(TICK)).context("setting a timeout")?;
        let addresses = [customer.mac("eth0")?, host.mac("eth0")?].concat();
        let (ending, sent) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (end, counted) = (Arc::clone(&ending), Arc::clone(&sent));
        let thread = std::thread::spawn(move || serve(&socket, &addresses, vip, late, &end, &counted));
        Ok(Self { ending, sent, thread: Some(thread) })
    }

    /// What customers have sent it so far.
    pub fn sent(&self) -> Sent {
        *self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for LateServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    socket: &Socket,
    addresses: &[u8],
    vip: SocketAddrV4,
    late: Duration,
    ending: &AtomicBool,
    sent: &Mutex<Sent>,
) {
    let mut due: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    while !ending.load(Ordering::Relaxed) {
        while due.front().is_some_and(|(when, _)| *when <= Instant::now()) {
            if let Some((_, frame)) = due.pop_front() {
                // One that is lost shows at the customer's end.
                let _ = socket.send(&frame);
            }
        }
        let frame = match receive(socket, &mut buffer) {
            Ok(frame) => frame,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        let Some(packet) = frame.get(14..).filter(|packet| is_for(packet, vip)) else { continue };
        let flags = packet.get(33).copied().unwrap_or(0);
        if let Ok(mut sent) = sent.lock() {
            sent.packets += 1;
            sent.syns += u64::from(flags & SYN != 0);
            sent.fins += u64::from(flags & FIN != 0);
            sent.resets += u64::from(flags & RST != 0);
        }
        let (answer, wait) = match flags & (SYN | FIN | RST) {
            SYN => (SYN | ACK, late),
            FIN => (RST | ACK, Duration::ZERO),
            _ => continue,
        };
        if let Some(answer) = answer_to(packet, answer) {
            let when = Instant::now() + wait;
            let place = due.partition_point(|(other, _)| *other <= when);
            due.insert(place, (when, [addresses, &IPV4.to_be_bytes(), &answer].concat()));
        }
    }
}

/// Whether this is a TCP packet without IP options to the VIP.
fn is_for(packet: &[u8], vip: SocketAddrV4) -> bool {
    packet.first() == Some(&0x45)
        && packet.get(9) == Some(&6)
        && packet.get(16..20) == Some(&vip.ip().octets())
        && packet.get(22..24) == Some(&vip.port().to_be_bytes())
}

/// The IP packet that answers one with these flags.
fn answer_to(packet: &[u8], flags: u8) -> Option<Vec<u8>> {
    let (from, to) = (packet.get(12..16)?, packet.get(16..20)?);
    let sequence = u32::from_be_bytes(packet.get(24..28)?.try_into().ok()?).wrapping_add(1);
    let mut tcp = [packet.get(22..24)?, packet.get(20..22)?, packet.get(28..32)?].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [to, from, &[0, 6, 0, 20], &tcp].concat();
    tcp.get_mut(16..18)?.copy_from_slice(&checksum(&pseudo));
    let length = u16::try_from(HEADERS - 14).ok()?.to_be_bytes();
    let mut ip = [&[0x45, 0][..], &length, &[0, 0, 0x40, 0, 64, 6, 0, 0], to, from].concat();
    let sum = checksum(&ip);
    ip.get_mut(10..12)?.copy_from_slice(&sum);
    Some([ip, tcp].concat())
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
