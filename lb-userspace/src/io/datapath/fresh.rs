//! The host → what new maps begin with: a secret key, the length of a tick, the ports of translated packets.

use std::fs::File;
use std::io::Read;

use lb_common::abi::NatPorts;
use lb_common::hash::Key;
use nix::time::{ClockId, clock_getres};

use super::LoadError;

/// A key that nobody outside knows.
pub(super) fn random_key() -> Result<Key, LoadError> {
    let mut bytes = [0; size_of::<Key>()];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|cause| LoadError::Io { what: "/dev/urandom", cause })?;
    let mut words = bytes.chunks_exact(4);
    Ok(std::array::from_fn(|_| {
        words.next().and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }))
}

/// Ports for translated packets: all but those that the host gives to its own connections, health checks among them. `None` if it does
/// not tell these.
pub(super) fn nat_ports() -> Option<NatPorts> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = range.split_ascii_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    Some(NatPorts::around(bounds.next()?, bounds.next()?))
}

/// How far jiffies are shifted to become ticks of about a second: the power of two nearest to the kernel's HZ. The
/// coarse clock's resolution is one jiffy.
pub(super) fn tick_shift() -> Result<u32, LoadError> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| LoadError::Io { what: "clock_getres", cause: errno.into() })?;
    let nanoseconds = u64::try_from(resolution.tv_nsec()).unwrap_or(0).max(1);
    Ok(shift_for(1_000_000_000 / nanoseconds))
}

fn shift_for(hz: u64) -> u32 {
    (hz.max(1) * 1_414 / 1_000).max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::shift_for;

    #[test]
    fn ticks_are_about_a_second() {
        for (hz, shift) in [(100, 7), (250, 8), (300, 8), (1_000, 10)] {
            assert_eq!(shift_for(hz), shift, "{hz} Hz");
        }
    }
}
