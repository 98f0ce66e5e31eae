//! What somebody wants to capture → what the programs look for; a packet that they handed over → what is told of it.

use std::collections::BTreeSet;

use lb_common::abi::{CaptureCounts, CaptureRecord, MAX_SNAP, NO_SERVICE, SourcePrefix};
use lb_common::net::Ports;
use lb_common::verdict::Verdict;
use serde::{Deserialize, Serialize};

use super::decap::Prefix;
use super::image::Image;

#[cfg(test)]
mod tests;

/// The longest that one capture may take, in seconds.
pub const MAX_SECONDS: u64 = 3_600;

/// Which packets are wanted, and how many: what `POST /v1/capture` takes. Every condition narrows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureRequest {
    /// Only packets of this service, answers of its backends included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only packets to and from backends of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only packets from or to this address or network, before or after their translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Only packets from or to this port, before or after their translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Only packets with one of these verdicts; `drop`, `pass` and `reply` are all of their kind.
    pub verdicts: Vec<String>,
    /// Bytes that are kept of each packet.
    pub snap: u32,
    /// One packet in so many is looked at.
    pub sample: u32,
    /// Ends after so many packets; 0 = never.
    pub count: u64,
    /// Ends after so many seconds.
    pub seconds: u64,
}

impl Default for CaptureRequest {
    fn default() -> Self {
        Self {
            service: None,
            backend: None,
            address: None,
            port: None,
            verdicts: Vec::new(),
            snap: 256,
            sample: 1,
            count: 0,
            seconds: 60,
        }
    }
}

/// What the programs look for, ids apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A bit a verdict.
    pub verdicts: u64,
    /// The network; every address is in the one without a mask.
    pub network: SourcePrefix,
    /// As in [`lb_common::abi::CaptureControl`].
    pub port: u32,
    /// As there.
    pub snap: u32,
    /// As there.
    pub sample: u32,
}

/// The ids of services and backends that are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedIds {
    /// Whether they matter at all.
    pub by_backend: bool,
    /// The service's.
    pub service: u32,
    /// The backends'.
    pub backends: BTreeSet<u16>,
}

impl CaptureRequest {
    /// What the programs are to look for, or everything that is wrong with the request.
    pub fn wanted(&self, names: &Image) -> Result<Wanted, Vec<String>> {
        let mut errors = Vec::new();
        if let Some(service) = &self.service
            && names.service_id(service).is_none()
        {
            errors.push(format!(
                "service: there is no {service:?}; `sluice service list` shows those there are"
            ));
        }
        if self.backend.is_some() && self.ids(names).backends.is_empty() {
            let backend = self.backend.as_deref().unwrap_or_default();
            let of = self.service.as_ref().map_or(String::new(), |service| format!(" of service {service}"));
            errors
                .push(format!("backend: there is no {backend:?}{of}; `sluice status` shows those there are"));
        }
        let network = match self.address.as_deref().map(str::parse::<Prefix>).transpose() {
            Ok(prefix) => prefix.map(Prefix::record),
            Err(error) => {
                errors.push(format!("address: {error}"));
                None
            }
        };
        let verdicts = verdicts(&self.verdicts).unwrap_or_else(|error| {
            errors.push(error);
            0
        });
        let mut range = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                errors.push(format!("{name}: {value} is not from {least} to {most}"));
            }
        };
        range("snap", self.snap.into(), 64, MAX_SNAP as u64);
        range("sample", self.sample.into(), 1, 1 << 30);
        range("seconds", self.seconds, 1, MAX_SECONDS);
        if let Some(port) = self.port {
            range("port", port.into(), 1, u16::MAX.into());
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let everything =
            SourcePrefix { mask: [0; 4], ..SourcePrefix::new(std::net::IpAddr::from([0; 16]).into(), 0) };
        Ok(Wanted {
            verdicts,
            network: network.unwrap_or(everything),
            port: self.port.map_or(0, |port| Ports::new(port, 0).word()),
            snap: self.snap,
            sample: self.sample,
        })
    }

    /// The ids that are looked for, as names and ids are now.
    pub fn ids(&self, names: &Image) -> WantedIds {
        let service = self.service.as_ref().map(|service| names.service_id(service));
        let backends = names.backends.iter().filter(|(_, backend)| {
            service.is_none_or(|service| Some(backend.service) == service)
                && self.backend.as_ref().is_none_or(|wanted| backend.name == *wanted)
        });
        let by_backend = self.service.is_some() || self.backend.is_some();
        WantedIds {
            by_backend,
            service: if self.backend.is_some() { None } else { service.flatten() }.unwrap_or(NO_SERVICE),
            backends: if by_backend { backends.map(|(&id, _)| id).collect() } else { BTreeSet::new() },
        }
    }
}

/// The bits of verdicts by name or kind; without any, all.
fn verdicts(names: &[String]) -> Result<u64, String> {
    if names.is_empty() {
        return Ok(u64::MAX);
    }
    let mut bits = 0;
    for name in names {
        let exact = Verdict::ALL.iter().filter(|verdict| verdict.name() == name);
        let mut found: u64 = exact.map(|verdict| 1 << verdict.index()).sum();
        if found == 0 {
            let kind = |verdict: &&Verdict| verdict.name().split('.').next() == Some(name);
            found = Verdict::ALL.iter().filter(kind).map(|verdict| 1 << verdict.index()).sum();
        }
        if found == 0 {
            return Err(format!(
                "verdict: there is no {name:?}; it is one of those that `sluice status` counts, or drop, pass or reply for all of a kind"
            ));
        }
        bits |= found;
    }
    Ok(bits)
}

/// A line of the answer to `POST /v1/capture`: JSON, one object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureLine {
    /// Packets are looked at from now on.
    Started {
        /// On these interfaces.
        interfaces: Vec<String>,
    },
    /// A packet.
    Packet(Box<CapturedPacket>),
    /// Every second: what was counted so far.
    Counts(Counts),
    /// No more will come.
    Ended {
        /// Why.
        reason: EndReason,
        /// What was counted.
        counts: Counts,
    },
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// So many packets were captured as were asked for.
    Count,
    /// So much time went by as was asked for.
    Time,
    /// Somebody asked for it.
    Stopped,
    /// Tables were replaced by larger or smaller ones, and the programs with them.
    Resized,
    /// The agent ends.
    AgentEnds,
    /// Whoever asked does not listen any more.
    Gone,
}

impl EndReason {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Count => "so many packets were asked for",
            Self::Time => "the time is over",
            Self::Stopped => "stopped",
            Self::Resized => "the tables were given another size; start it again",
            Self::AgentEnds => "the agent ends",
            Self::Gone => "nobody listened any more",
        }
    }
}

/// Packets, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// That were looked at.
    pub seen: u64,
    /// Of these, that were wanted.
    pub wanted: u64,
    /// Of these, that were lost: they came faster than they were read.
    pub lost: u64,
}

impl From<CaptureCounts> for Counts {
    fn from(CaptureCounts { seen, wanted, lost, .. }: CaptureCounts) -> Self {
        Self { seen, wanted, lost }
    }
}

/// A packet, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// From 1.
    pub number: u64,
    /// When it came in, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The verdict.
    pub verdict: String,
    /// Its service, if it has one.
    pub service: Option<String>,
    /// Its backend, if it has one.
    pub backend: Option<String>,
    /// The backend's address.
    pub backend_address: Option<String>,
    /// Whether its flow was given its backend just now.
    pub new_flow: bool,
    /// The interface it came in on.
    pub ingress: String,
    /// The interface it left on, if it was sent.
    pub egress: Option<String>,
    /// As it came in.
    pub before: CapturedBytes,
    /// As it left, if it was sent.
    pub after: Option<CapturedBytes>,
}

/// A packet's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedBytes {
    /// Its length.
    pub length: u32,
    /// The first ones, in hexadecimal digits.
    pub hex: String,
}

impl CapturedBytes {
    /// Of so long a packet, these first bytes.
    pub fn new(length: u32, bytes: &[u8]) -> Self {
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        let digit = |bits: u8| DIGITS.get(usize::from(bits & 15)).copied().unwrap_or('0');
        let hex = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect();
        Self { length, hex }
    }

    /// The bytes; none if the digits are not such.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let digit = |letter: &u8| char::from(*letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pairs = self.hex.as_bytes().chunks(2);
        pairs.map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
    }
}

impl CapturedPacket {
    /// Of a record as the programs hand it over; none if it is no such. `interface` tells names, and `since_epoch` is to be
    /// added to its time.
    pub fn read(
        bytes: &[u8],
        number: u64,
        since_epoch: i64,
        names: &Image,
        interface: impl Fn(u32) -> String,
    ) -> Option<Self> {
        let (head, body) = bytes.split_at_checked(size_of::<CaptureRecord>())?;
        let record = head_of(head)?;
        let (before, body) = body.split_at_checked(record.before_bytes as usize)?;
        let after = body.get(..record.after_bytes as usize)?;
        let backend = u16::try_from(record.backend).ok().and_then(|id| names.backends.get(&id));
        let service = if record.service == NO_SERVICE {
            backend.map(|backend| backend.service)
        } else {
            Some(record.service)
        };
        let sent = record.after_length > 0;
        Some(Self {
            number,
            time_ns: record.time.saturating_add_signed(since_epoch),
            verdict: Verdict::from_index(record.verdict as usize)?.name().to_owned(),
            service: service.map(|id| {
                names.services.get(&id).map_or_else(|| format!("#{id}"), |named| named.name.clone())
            }),
            backend: match backend {
                Some(backend) => Some(backend.name.clone()),
                None => (record.backend != 0).then(|| format!("#{}", record.backend)),
            },
            backend_address: backend.map(|backend| backend.address.to_ip().to_string()),
            new_flow: record.new_flow != 0,
            ingress: interface(record.ingress),
            egress: sent.then(|| interface(record.egress)),
            before: CapturedBytes::new(record.before_length, before),
            after: sent.then(|| CapturedBytes::new(record.after_length, after)),
        })
    }

    /// What is said of it in the capture's file.
    pub fn comment(&self) -> String {
        let meaning = Verdict::ALL.iter().find(|verdict| verdict.name() == self.verdict);
        let meaning = meaning.map_or("", |verdict| verdict.explanation());
        let mut parts = vec![format!("#{} {}: {meaning}", self.number, self.verdict)];
        parts.extend(self.service.as_ref().map(|service| format!("service {service}")));
        parts.extend(self.backend.as_ref().map(|backend| match &self.backend_address {
            Some(address) => format!("backend {backend} ({address})"),
            None => format!("backend {backend}"),
        }));
        if self.new_flow {
            parts.push("new flow".to_owned());
        }
        parts.join("; ")
    }
}

/// The fields in front.
fn head_of(bytes: &[u8]) -> Option<CaptureRecord> {
    let (time, rest) = bytes.split_first_chunk::<8>()?;
    let mut words = rest.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
    let mut next = || words.next();
    Some(CaptureRecord {
        time: u64::from_ne_bytes(*time),
        verdict: next()?,
        action: next()?,
        ingress: next()?,
        egress: next()?,
        service: next()?,
        backend: next()?,
        before_length: next()?,
        after_length: next()?,
        before_bytes: next()?,
        after_bytes: next()?,
        new_flow: next()?,
        padding: next()?,
    })
}
