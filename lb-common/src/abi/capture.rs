//! What the capturing programs and the agent share: which packets are wanted, and how each is handed over.

use super::Word;
use crate::verdict::Verdict;

/// Bytes of a packet that are kept at most, before and after each: a power of two.
pub const MAX_SNAP: usize = 2_048;
/// Place of the capturing programs in the map `stages`, behind those that do not capture.
pub const CAPTURE_STAGES: u32 = 16;
/// No service: neither that of a packet, nor one that is looked for.
pub const NO_SERVICE: u32 = u32::MAX;

/// Names of the maps that only the capturing programs' object has.
pub mod capture_map {
    /// One [`CaptureControl`](super::CaptureControl).
    pub const CONTROL: &str = "capture";
    /// One [`CaptureCounts`](super::CaptureCounts), per CPU.
    pub const COUNTS: &str = "capture_counts";
    /// [`CaptureRecord`](super::CaptureRecord)s, each with the packet's bytes behind it: a ring buffer.
    pub const RECORDS: &str = "capture_records";
}

/// Which packets are wanted. Words change while packets are read, all else is written before.
#[derive(Debug)]
#[repr(C)]
pub struct CaptureControl {
    /// Until when, in nanoseconds of the monotonic clock. The agent puts it off while somebody reads: without it, all ends.
    pub until: Word,
    /// A bit a verdict, at [`Verdict::index`].
    pub verdicts: Word,
    /// The service's id; [`NO_SERVICE`] if packets are wanted by their backend alone.
    pub service: Word,
    /// 1 if packets are wanted by their service or backend at all.
    pub by_backend: Word,
    /// Bytes that are kept of each packet, at most, from 1 to [`MAX_SNAP`].
    pub snap: u32,
    /// One packet in so many is looked at.
    pub sample: u32,
    /// The network that one of the addresses is of, as four words of [`Address`](crate::net::Address).
    pub network: [u32; 4],
    /// Its mask: zeros if addresses do not matter.
    pub mask: [u32; 4],
    /// One of the ports, as the lower half of [`Ports::word`](crate::net::Ports::word); 0 if they do not matter.
    pub port: u32,
    /// Nothing.
    pub padding: u32,
    /// A bit a backend's id: packets of these are wanted.
    pub backends: [Word; 1_024],
}

/// What is known of a packet when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureSeen {
    /// Its addresses as it came in; zeros if it has none.
    pub source: [u32; 4],
    /// The same.
    pub destination: [u32; 4],
    /// Those that it is translated to, or those of the packet that an ICMP error is about; else zeros.
    pub other_source: [u32; 4],
    /// The same.
    pub other_destination: [u32; 4],
    /// The ports as it came in.
    pub ports: u32,
    /// The ports that belong to the other addresses.
    pub other_ports: u32,
    /// Its service's id, or [`NO_SERVICE`].
    pub service: u32,
    /// Its backend's id, or 0.
    pub backend: u32,
}

impl CaptureSeen {
    /// Nothing yet.
    pub const NOTHING: Self = Self {
        source: [0; 4],
        destination: [0; 4],
        other_source: [0; 4],
        other_destination: [0; 4],
        ports: 0,
        other_ports: 0,
        service: NO_SERVICE,
        backend: 0,
    };
}

/// Packets, counted by each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureCounts {
    /// That were looked at.
    pub seen: u64,
    /// That were wanted.
    pub wanted: u64,
    /// Of these, for which there was no room: nobody read quickly enough.
    pub lost: u64,
    /// Nothing.
    pub padding: u64,
}

/// What is handed over of a packet. Its bytes follow: first those before, then those after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureRecord {
    /// When it came in, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// [`Verdict::index`].
    pub verdict: u32,
    /// [`Action`](crate::datapath::Action).
    pub action: u32,
    /// The interface it came in on.
    pub ingress: u32,
    /// The interface it leaves on, if it is sent.
    pub egress: u32,
    /// [`CaptureSeen::service`].
    pub service: u32,
    /// [`CaptureSeen::backend`].
    pub backend: u32,
    /// Its length as it came in.
    pub before_length: u32,
    /// Its length as it leaves; 0 if it is not sent.
    pub after_length: u32,
    /// Bytes that follow of what came in.
    pub before_bytes: u32,
    /// Bytes that follow of what leaves.
    pub after_bytes: u32,
    /// 1 if its flow was given its backend just now.
    pub new_flow: u32,
    /// Nothing.
    pub padding: u32,
}

impl CaptureControl {
    /// Whether a packet is wanted.
    #[inline(always)]
    pub fn wants(&self, seen: &CaptureSeen, verdict: Verdict) -> bool {
        if self.verdicts.load() & (1 << verdict.index()) == 0 {
            return false;
        }
        if self.by_backend.load() != 0 && !self.is_of_wanted(seen) {
            return false;
        }
        let address = self.is_near(&seen.source)
            || self.is_near(&seen.destination)
            || self.is_near(&seen.other_source)
            || self.is_near(&seen.other_destination);
        address && (self.port == 0 || self.has_port(seen.ports) || self.has_port(seen.other_ports))
    }

    #[inline(always)]
    fn is_of_wanted(&self, seen: &CaptureSeen) -> bool {
        if seen.service != NO_SERVICE && u64::from(seen.service) == self.service.load() {
            return true;
        }
        let word = &self.backends[(seen.backend >> 6) as usize & 1_023];
        seen.backend != 0 && word.load() >> (seen.backend & 63) & 1 != 0
    }

    #[inline(always)]
    fn is_near(&self, address: &[u32; 4]) -> bool {
        let mut differs = 0;
        let mut word = 0;
        while word < 4 {
            differs |= (address[word] ^ self.network[word]) & self.mask[word];
            word += 1;
        }
        differs == 0
    }

    #[inline(always)]
    fn has_port(&self, ports: u32) -> bool {
        ports & 0xffff == self.port || ports >> 16 == self.port
    }
}

/// Lets aya read the records that go through map system calls.
#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` of plain integers without padding between them; every bit pattern is a value.
    unsafe impl aya::Pod for super::CaptureCounts {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, Ports};

    fn control() -> CaptureControl {
        CaptureControl {
            until: Word::new(0),
            verdicts: Word::new(u64::MAX),
            service: Word::new(NO_SERVICE.into()),
            by_backend: Word::new(0),
            snap: 64,
            sample: 1,
            network: [0; 4],
            mask: [0; 4],
            port: 0,
            padding: 0,
            backends: [const { Word::new(0) }; 1_024],
        }
    }

    fn words(address: &str) -> [u32; 4] {
        Address::from(address.parse::<std::net::IpAddr>().unwrap()).words()
    }

    fn seen() -> CaptureSeen {
        CaptureSeen {
            source: words("198.51.100.7"),
            destination: words("203.0.113.10"),
            other_destination: words("10.0.1.11"),
            ports: Ports::new(40_000, 443).word(),
            other_ports: Ports::new(50_000, 8_443).word(),
            service: 3,
            backend: 700,
            ..CaptureSeen::NOTHING
        }
    }

    #[test]
    fn without_conditions_everything_is_wanted() {
        assert!(control().wants(&CaptureSeen::NOTHING, Verdict::PassNotIp));
        assert!(control().wants(&seen(), Verdict::Forward));
    }

    #[test]
    fn every_condition_narrows() {
        let by_verdict = control();
        by_verdict.verdicts.store(1 << Verdict::DropNoBackend.index());
        assert!(
            by_verdict.wants(&seen(), Verdict::DropNoBackend) && !by_verdict.wants(&seen(), Verdict::Forward)
        );

        let by_service = control();
        by_service.by_backend.store(1);
        assert!(
            !by_service.wants(&seen(), Verdict::Forward)
                && !by_service.wants(&CaptureSeen::NOTHING, Verdict::Forward)
        );
        by_service.service.store(3);
        assert!(by_service.wants(&seen(), Verdict::DropNoBackend));
        by_service.service.store(4);
        by_service.backends[700 / 64].store(1 << (700 % 64));
        assert!(by_service.wants(&seen(), Verdict::Forward), "by its backend");
        assert!(!by_service.wants(&CaptureSeen { backend: 701, ..seen() }, Verdict::Forward));

        let wants = |network: &str, bits: [u32; 4]| {
            CaptureControl { network: words(network), mask: bits, ..control() }
                .wants(&seen(), Verdict::Forward)
        };
        let all = [u32::MAX; 4];
        assert!(wants("198.51.100.7", all) && wants("203.0.113.10", all) && wants("10.0.1.11", all));
        assert!(!wants("198.51.100.8", all) && !wants("2001:db8::1", all));
        let of_24 = [u32::MAX, u32::MAX, u32::MAX, u32::from_ne_bytes([255, 255, 255, 0])];
        assert!(wants("198.51.100.99", of_24) && !wants("198.51.101.7", of_24));

        let has = |port: u16| {
            let port = Ports::new(port, 0).word();
            CaptureControl { port, ..control() }.wants(&seen(), Verdict::Forward)
        };
        assert!([40_000, 443, 50_000, 8_443].into_iter().all(has) && !has(80));
    }
}
