//! What a network card's driver says of its settings, asked as `ethtool` does (`linux/ethtool.h`).

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::core::doctor::NicFacts;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_DRIVER: u32 = 0x03;
const GET_FLAGS: u32 = 0x25;
const GET_HASHED_FIELDS: u32 = 0x29;
const GET_GRO: u32 = 0x2b;
const GET_SPREAD: u32 = 0x38;
const GET_CHANNELS: u32 = 0x3c;
const FLAG_RX_VLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;
const UDP_OVER_IPV4: u32 = 2;
/// Both ports: the first four bytes of the transport header.
const PORTS_HASHED: u32 = 1 << 6 | 1 << 7;
/// Words of the largest answer that is asked for.
const WORDS: usize = 64;
/// Most entries of a spread table that are read.
const MAX_SPREAD: usize = 4_096;

/// All there is to know; what the driver does not tell is absent.
pub(super) fn settings(interface: &str) -> NicFacts {
    let Some(driver) = Asked::new(interface) else { return NicFacts::default() };
    let word = |command, index| driver.ask::<WORDS>([command, 0]).and_then(|words| words.get(index).copied());
    let flags = word(GET_FLAGS, 1);
    let channels = driver.ask::<WORDS>([GET_CHANNELS, 0]);
    let queues = channels.and_then(|words| {
        let [_, max_rx, _, _, max_combined, rx, _, _, combined, ..] = words;
        let (now, most) = (rx + combined, max_rx.max(max_combined));
        (now > 0 && most > 0).then_some((now, most))
    });
    let hashed = driver.ask::<WORDS>([GET_HASHED_FIELDS, UDP_OVER_IPV4]);
    NicFacts {
        driver: driver.ask::<WORDS>([GET_DRIVER, 0]).map(|words| name(&words)).unwrap_or_default(),
        queues,
        rss_queues: driver.spread(),
        // The fields are the low half of a 64-bit word behind command and kind.
        udp_ports_hashed: hashed
            .map(|words| words[2])
            .filter(|&fields| fields != 0)
            .map(|fields| fields & PORTS_HASHED == PORTS_HASHED),
        lro: flags.map(|flags| flags & FLAG_LRO != 0),
        gro: word(GET_GRO, 1).map(|on| on != 0),
        rx_vlan: flags.map(|flags| flags & FLAG_RX_VLAN != 0),
    }
}

/// The driver's name: 32 bytes behind the command.
fn name(words: &[u32; WORDS]) -> String {
    let bytes: Vec<u8> = words
        .iter()
        .skip(1)
        .take(8)
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An interface, and a socket to ask through.
struct Asked {
    socket: OwnedFd,
    request: libc::ifreq,
}

impl Asked {
    fn new(interface: &str) -> Option<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
        // SAFETY: zeros are a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return None;
        }
        for (byte, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *byte = from as libc::c_char;
        }
        Some(Self { socket, request })
    }

    /// The answer to one question, whose first two words are given.
    fn ask<const N: usize>(&self, [command, argument]: [u32; 2]) -> Option<[u32; N]> {
        // Of u64, for the alignment of what the kernel writes there.
        let mut words = Aligned([0_u32; N]);
        if let [first, second, ..] = words.0.as_mut_slice() {
            (*first, *second) = (command, argument);
        }
        let mut request = self.request;
        request.ifr_ifru.ifru_data = words.0.as_mut_ptr().cast();
        // SAFETY: the request names live memory, larger than every answer to the questions asked here: the table of spread
        // queues is no longer than the length that `spread` gives.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        (result == 0).then_some(words.0)
    }

    /// How many queues packets are spread over.
    fn spread(&self) -> Option<u32> {
        // Asked with a length of 0, the driver tells it.
        let length = *self.ask::<WORDS>([GET_SPREAD, 0])?.get(1)?;
        let entries = usize::try_from(length).ok().filter(|&length| (1..=MAX_SPREAD).contains(&length))?;
        let table = self.ask::<{ MAX_SPREAD + 2 }>([GET_SPREAD, length])?;
        let queues: BTreeSet<u32> = table.iter().skip(2).take(entries).copied().collect();
        u32::try_from(queues.len()).ok()
    }
}

/// Aligned as the kernel's 64-bit words are.
#[repr(C, align(8))]
struct Aligned<T>(T);
