//! Configuration, health and counters → the one snapshot that status, metrics and API render.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use lb_common::abi::{RING_SIZE, Traffic, Verdicts};
use lb_common::flow::Eviction;
use lb_common::net::Address;
use lb_common::verdict::Verdict;
use serde::{Deserialize, Serialize};

use super::config::{self, Config, Probe};
use super::image::Image;
use super::names;
use super::signals::{TcpStats, Timing, Timings};
use super::wanted::{BackendKey, Knowledge};

/// Everything the agent shows, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The agent itself.
    pub agent: AgentStatus,
    /// The services, in the order of the configuration.
    pub services: Vec<ServiceStats>,
    /// Packets by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// The same packets by the CPU that the program ran on: those that are online, and others that have counted some.
    #[serde(default)]
    pub cpus: Vec<CpuStats>,
    /// The flow table.
    pub flow_table: FlowTable,
    /// The table of translations.
    pub nat: NatTable,
    /// How long the program ran; only while the kernel counts that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramRuns>,
}

impl Snapshot {
    /// The services that packets have been counted for.
    pub fn counted(&self) -> BTreeSet<String> {
        let seen = self.services.iter().filter(|service| service.packets > 0);
        seen.map(|service| service.name.clone()).collect()
    }
}

/// How long the program ran, the stages that it went on with included, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRuns {
    /// Runs: one a packet.
    pub count: u64,
    /// All of them together, in nanoseconds.
    pub nanoseconds: u64,
}

/// The agent itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The interfaces the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Those of the configuration that it is not attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_attached: Vec<String>,
    /// Whether the agent was told not to attach it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_attach: bool,
    /// Grows with every change of the configuration that came into force.
    pub revision: u64,
    /// The configuration file.
    pub config: String,
    /// The change that waits for its confirmation, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
}

impl AgentStatus {
    /// The interfaces that the program should be on, and is not.
    pub fn missing(&self) -> impl Iterator<Item = &String> {
        self.not_attached.iter().filter(|_| !self.no_attach)
    }
}

/// A change that waits for its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// The revision it made.
    pub revision: u64,
    /// Seconds that are left.
    pub seconds_left: u64,
    /// Whether it is undone already, but for the configuration file, which cannot be written: what is left then is the time until that
    /// is tried again.
    pub undone: bool,
    /// Nobody confirmed it in time, and this is why it could not be undone, or written back: what is left is the time until that is tried
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, seconds_left, undone, failed } = self;
        if let (Some(cause), false) = (failed, undone) {
            write!(
                f,
                "nobody confirmed revision {revision} in time, and it cannot be undone: {cause}; tried again in {seconds_left} s, \
                 and `sluice confirm` keeps it"
            )
        } else if *undone {
            write!(
                f,
                "revision {revision} is undone, but the configuration file cannot be written and still says it; tried again in \
                 {seconds_left} s"
            )
        } else {
            write!(f, "revision {revision} is undone in {seconds_left} s unless `sluice confirm` comes")
        }
    }
}

/// An interface the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `driver` or `generic`.
    pub xdp_mode: String,
    /// What its driver and the kernel count; none if the interface is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Received>,
}

/// What came in on an interface as its driver and the kernel count it, since the interface was made: not by the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that found no room or nobody who takes them; some drivers count those that the program drops, too.
    pub dropped: u64,
    /// Packets that came in broken.
    pub errors: u64,
}

/// What a CPU did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Its number.
    pub cpu: u32,
    /// Packets that have met their verdict there.
    pub packets: u64,
}

/// The flow table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    /// Flows it can hold.
    pub size: u64,
    /// Entries taken, idle ones included.
    pub entries: u64,
    /// Entries that made way for a new one, by what was lost: `expired`, `probation` or `established` flows.
    #[serde(default)]
    pub evictions: BTreeMap<String, u64>,
}

/// The table of translations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTable {
    /// Translations it can hold: two for a connection.
    pub size: u64,
    /// Translations there are.
    pub entries: u64,
    /// Connections that made way for a new one where there was no room: their customers had sent nothing that followed their opening.
    #[serde(default)]
    pub evictions: u64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<String>,
    /// Its protocol.
    pub protocol: String,
    /// Its forwarding mode.
    pub forwarding: String,
    /// `healthy`, `degraded`, `failing-open` or `down`.
    pub status: String,
    /// Why, if `min_healthy` alone is not reached; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, by the IP header.
    pub bytes: u64,
    /// Flows that were given a backend.
    pub new_flows: u64,
    /// What customers' packets show of its connections, backends it had before included; none unless it is a TCP service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpStats>,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<BackendStats>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStats {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// Its configured weight.
    pub weight: u16,
    /// What the operator wants: `enabled`, `drain` or `disabled`.
    pub state: String,
    /// What the probes say: `unknown`, `healthy` or `unhealthy`.
    pub health: String,
    /// Why the last probe failed, or the next hop is not known; empty if neither is so.
    pub reason: String,
    /// Whether it takes new flows.
    pub serving: bool,
    /// Its share of the ring's slots, 0 to 1.
    pub ring_share: f64,
    /// Live flows in the flow table.
    pub active_flows: u64,
    /// Packets forwarded to it.
    pub packets: u64,
    /// Their bytes, by the IP header.
    pub bytes: u64,
    /// What customers' packets show of its connections; none unless its service is one of TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpStats>,
}

/// What was read from the datapath.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// What is loaded.
    pub image: Image,
    /// Packets by verdict.
    pub verdicts: Verdicts,
    /// Packets by CPU.
    pub cpus: Vec<CpuStats>,
    /// Traffic by service id.
    pub services: BTreeMap<u32, Traffic>,
    /// Traffic by backend id.
    pub backends: BTreeMap<u16, Traffic>,
    /// Live flows by backend id.
    pub flows: BTreeMap<u16, u64>,
    /// How long connections took to open.
    pub timings: Timings,
    /// The flow table.
    pub flow_table: FlowTable,
    /// The table of translations.
    pub nat: NatTable,
    /// How long the program ran, while the kernel counts that.
    pub program: Option<ProgramRuns>,
}

/// Puts the snapshot together; `reasons` says what is wrong with a backend.
pub fn snapshot(
    agent: AgentStatus,
    config: &Config,
    knowledge: &Knowledge,
    reasons: &BTreeMap<BackendKey, String>,
    readings: &Readings,
) -> Snapshot {
    let ids = readings.image.backend_ids();
    let names = readings.image.ids_by_name();
    let service = |service: &config::Service| {
        let id = names.get(service.name.as_str()).copied();
        service_stats((service, id), knowledge, reasons, readings, &ids)
    };
    Snapshot {
        agent,
        services: config.services.iter().map(service).collect(),
        verdicts: verdicts(&readings.verdicts),
        cpus: readings.cpus.clone(),
        flow_table: FlowTable { evictions: evictions(&readings.verdicts), ..readings.flow_table.clone() },
        nat: NatTable { evictions: evicted(&readings.verdicts, Eviction::Unfollowed), ..readings.nat },
        program: readings.program,
    }
}

/// What each CPU did, from packets by CPU from CPU 0 on. CPUs that are not online show only if they have counted any.
pub fn cpus(packets: &[u64], online: &[u32]) -> Vec<CpuStats> {
    let all = (0..).zip(packets).map(|(cpu, &packets)| CpuStats { cpu, packets });
    all.filter(|stats| stats.packets > 0 || online.contains(&stats.cpu)).collect()
}

/// Packets by the verdicts' names.
pub fn verdicts(verdicts: &Verdicts) -> BTreeMap<String, u64> {
    let named = |(verdict, &packets): (&Verdict, &u64)| (verdict.name().to_owned(), packets);
    Verdict::ALL.iter().zip(&verdicts.packets).map(named).collect()
}

/// Entries of the flow table that made way, by what was lost.
fn evictions(verdicts: &Verdicts) -> BTreeMap<String, u64> {
    let named = |&(eviction, name): &(_, &str)| (name.to_owned(), evicted(verdicts, eviction));
    Eviction::NAMED.iter().map(named).collect()
}

fn evicted(verdicts: &Verdicts, eviction: Eviction) -> u64 {
    verdicts.evictions.get(eviction as usize).copied().unwrap_or(0)
}

/// Of a service and its id, if it is loaded.
fn service_stats(
    (service, id): (&config::Service, Option<u32>),
    knowledge: &Knowledge,
    reasons: &BTreeMap<BackendKey, String>,
    readings: &Readings,
    ids: &HashMap<(u32, &str, Address), u16>,
) -> ServiceStats {
    let traffic = id.and_then(|id| readings.services.get(&id)).copied().unwrap_or_default();
    let ring = id.and_then(|id| readings.image.services.get(&id)?.ring.as_ref()).map(|(_, ring)| ring);
    let serving = knowledge.serving(service);
    let tcp = |traffic: &Traffic, timing: Option<&Timing>| {
        let timing = timing.copied().unwrap_or_default();
        (service.protocol == config::Protocol::Tcp).then(|| TcpStats::new(traffic, &timing))
    };
    // One key for all: most of the work would be making them.
    let mut key = BackendKey::new(&service.name, "");
    let backends = service.backends.iter().zip(&serving.eligible).map(|(backend, &eligible)| {
        key.backend.clone_from(&backend.name);
        let id = id.and_then(|id| ids.get(&(id, backend.name.as_str(), backend.address.into()))).copied();
        let traffic = id.and_then(|id| readings.backends.get(&id)).copied().unwrap_or_default();
        let slots = id.and_then(|id| ring?.slots.get(&id)).copied().unwrap_or(0);
        let health = match service.health.probe {
            Probe::None => super::health::Health::Unknown,
            _ => knowledge.health.get(&key).copied().unwrap_or_default(),
        };
        BackendStats {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            weight: backend.weight,
            state: names::state(backend.state).to_owned(),
            health: names::health(health).to_owned(),
            reason: reasons.get(&key).cloned().unwrap_or_default(),
            serving: eligible,
            ring_share: slots as f64 / RING_SIZE as f64,
            active_flows: id.and_then(|id| readings.flows.get(&id)).copied().unwrap_or(0),
            packets: traffic.packets,
            bytes: traffic.bytes,
            tcp: tcp(&traffic, id.and_then(|id| readings.timings.backends.get(&id))),
        }
    });
    ServiceStats {
        name: service.name.clone(),
        vips: service.vips.iter().map(ToString::to_string).collect(),
        protocol: names::protocol(service.protocol).to_owned(),
        forwarding: names::forwarding(service.forwarding).to_owned(),
        status: names::status(serving.status).to_owned(),
        reason: serving.shortfall.map(|shortfall| shortfall.to_string()).unwrap_or_default(),
        packets: traffic.packets,
        bytes: traffic.bytes,
        new_flows: traffic.new_flows,
        tcp: tcp(&traffic, id.and_then(|id| readings.timings.services.get(&id))),
        backends: backends.collect(),
    }
}
