//! What the kernel counts of each interface → what came in there; and which CPUs may have taken it in.

use std::collections::BTreeMap;
use std::fs;

use crate::core::stats::Received;

/// Of this process's network namespace, whichever `/sys` is mounted.
const INTERFACES: &str = "/proc/net/dev";

/// What came in on each interface, by its name. What cannot be read is missing.
pub fn by_interface() -> BTreeMap<String, Received> {
    fs::read_to_string(INTERFACES).map(|text| text.lines().filter_map(received).collect()).unwrap_or_default()
}

/// A line of `/proc/net/dev`: `NAME: bytes packets errs drop …`, where what came in precedes what went out. The kernel has added to
/// `drop` what an interface missed (`rx_missed_errors`).
fn received(line: &str) -> Option<(String, Received)> {
    let (name, counters) = line.rsplit_once(':')?;
    let mut counters = counters.split_ascii_whitespace().map_while(|counter| counter.parse().ok());
    let mut next = || counters.next();
    let (bytes, packets, errors, dropped) = (next()?, next()?, next()?, next()?);
    Some((name.trim().to_owned(), Received { packets, bytes, dropped, errors }))
}

/// The CPUs that are online; none if that cannot be read.
pub fn online_cpus() -> Vec<u32> {
    aya::util::online_cpus().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_an_interface_is_read_and_the_headings_are_not() {
        let headings = "Inter-|   Receive                                                |  Transmit";
        assert_eq!(received(headings), None);
        let named = " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs";
        assert_eq!(received(named), None);
        let line = "  eth0:  987654   4321   3    2    1     0          0         7   11  22 0 0 0 0 0 0";
        let expected = Received { packets: 4_321, bytes: 987_654, dropped: 2, errors: 3 };
        assert_eq!(received(line), Some(("eth0".to_owned(), expected)));
        // An alias has a colon in its name.
        assert_eq!(received(" a:1: 8 4 2 1 0").map(|(name, _)| name), Some("a:1".to_owned()));
        assert_eq!(received("eth0: 1 2 3"), None, "cut off");
    }
}
