//! Two snapshots and the time between them → what happens right now: rates, shares and drops, for `sluice top`.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::signals::TcpStats;
use super::stats::{AgentStatus, BackendStats, FlowTable, NatTable, ServiceStats, Snapshot};

/// What happens right now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Seconds that the rates are taken over; 0 if there was one snapshot only, and every rate is 0 then.
    pub seconds: f64,
    /// The agent itself.
    pub agent: AgentStatus,
    /// Of all services.
    pub total: Rate,
    /// The services, in the order of the configuration.
    pub services: Vec<LiveService>,
    /// Packets that were dropped, by verdict; those that never were are left out. The quickest first.
    pub drops: Vec<LiveDrop>,
    /// The flow table.
    pub flow_table: FlowTable,
    /// Entries of the flow table that made way, each second, by what was lost.
    pub evictions_per_second: BTreeMap<String, f64>,
    /// The table of translations.
    pub nat: NatTable,
}

/// Traffic by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Packets forwarded each second.
    pub packets_per_second: f64,
    /// Their bits each second, by the IP header.
    pub bits_per_second: f64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveService {
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
    /// Its traffic.
    pub rate: Rate,
    /// Flows that were given a backend, each second.
    pub new_flows_per_second: f64,
    /// Live flows in the flow table.
    pub active_flows: u64,
    /// What customers' packets show of its connections; none unless it is a TCP service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<LiveTcp>,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<LiveBackend>,
}

/// What customers' packets show of TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveTcp {
    /// Connections that were given a backend, each second.
    pub opened_per_second: f64,
    /// SYNs that came again while nothing had followed the first, each second.
    pub repeated_per_second: f64,
    /// FINs each second.
    pub fins_per_second: f64,
    /// RSTs each second.
    pub resets_per_second: f64,
    /// The time in seconds that half of the connections took at most to open, of those timed in this time; of all if none was.
    pub opening_median: Option<f64>,
    /// The same of 99 % of them.
    pub opening_p99: Option<f64>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveBackend {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// What the operator wants: `enabled`, `drain` or `disabled`.
    pub state: String,
    /// What the probes say: `unknown`, `healthy` or `unhealthy`.
    pub health: String,
    /// Whether it takes new flows.
    pub serving: bool,
    /// What is wrong with it; empty if nothing is.
    pub reason: String,
    /// Its configured weight.
    pub weight: u16,
    /// The share of new flows that its weight asks for, 0 to 1: 0 unless it is enabled.
    pub weight_share: f64,
    /// Its share of the ring's slots, 0 to 1.
    pub ring_share: f64,
    /// Its share of the service's packets, 0 to 1.
    pub traffic_share: f64,
    /// Live flows in the flow table.
    pub active_flows: u64,
    /// Its traffic.
    pub rate: Rate,
    /// What customers' packets show of its connections; none unless its service is one of TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<LiveTcp>,
}

/// Packets that were dropped under one verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveDrop {
    /// The verdict.
    pub verdict: String,
    /// How many there were since the tables were made.
    pub packets: u64,
    /// How many there are each second.
    pub packets_per_second: f64,
}

/// Whether a verdict says that the packet was dropped.
pub fn is_drop(verdict: &str) -> bool {
    verdict.starts_with("drop.")
}

/// Counts and the time between them → how many each second. A counter that began anew has not moved.
fn per_second(before: u64, after: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { after.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

/// What happened between two snapshots that are so many seconds apart. What was not in the first has no rate yet.
pub fn live(before: Option<&Snapshot>, after: &Snapshot, seconds: f64) -> Live {
    let seconds = if before.is_some() { seconds } else { 0.0 };
    let before = before.unwrap_or(after);
    let former: HashMap<&str, &ServiceStats> =
        before.services.iter().map(|service| (service.name.as_str(), service)).collect();
    let services: Vec<LiveService> = (after.services.iter())
        .map(|service| live_service(former.get(service.name.as_str()).unwrap_or(&service), service, seconds))
        .collect();
    let total = Rate {
        packets_per_second: services.iter().map(|service| service.rate.packets_per_second).sum(),
        bits_per_second: services.iter().map(|service| service.rate.bits_per_second).sum(),
    };
    let evictions = after.flow_table.evictions.iter().map(|(lost, &count)| {
        let was = before.flow_table.evictions.get(lost).copied().unwrap_or(0);
        (lost.clone(), per_second(was, count, seconds))
    });
    Live {
        seconds,
        agent: after.agent.clone(),
        total,
        services,
        drops: drops(before, after, seconds),
        flow_table: after.flow_table.clone(),
        evictions_per_second: evictions.collect(),
        nat: after.nat,
    }
}

fn drops(before: &Snapshot, after: &Snapshot, seconds: f64) -> Vec<LiveDrop> {
    let dropped = after.verdicts.iter().filter(|(verdict, packets)| is_drop(verdict) && **packets > 0);
    let mut drops: Vec<LiveDrop> = dropped
        .map(|(verdict, &packets)| LiveDrop {
            verdict: verdict.clone(),
            packets,
            packets_per_second: per_second(
                before.verdicts.get(verdict).copied().unwrap_or(0),
                packets,
                seconds,
            ),
        })
        .collect();
    drops.sort_by(|a, b| {
        b.packets_per_second.total_cmp(&a.packets_per_second).then(b.packets.cmp(&a.packets))
    });
    drops
}

fn live_service(before: &ServiceStats, after: &ServiceStats, seconds: f64) -> LiveService {
    let former: HashMap<(&str, &str), &BackendStats> = (before.backends.iter())
        .map(|backend| ((backend.name.as_str(), backend.address.as_str()), backend))
        .collect();
    let moved = |backend: &BackendStats| {
        let before = former.get(&(backend.name.as_str(), backend.address.as_str()));
        before.map_or(0, |before| backend.packets.saturating_sub(before.packets))
    };
    let weights: u64 = after.backends.iter().map(wanted_weight).sum();
    let packets: u64 = after.backends.iter().map(moved).sum();
    let share = |part: u64, whole: u64| if whole > 0 { part as f64 / whole as f64 } else { 0.0 };
    let backends = after.backends.iter().map(|backend| {
        let before =
            former.get(&(backend.name.as_str(), backend.address.as_str())).copied().unwrap_or(backend);
        LiveBackend {
            name: backend.name.clone(),
            address: backend.address.clone(),
            state: backend.state.clone(),
            health: backend.health.clone(),
            serving: backend.serving,
            reason: backend.reason.clone(),
            weight: backend.weight,
            weight_share: share(wanted_weight(backend), weights),
            ring_share: backend.ring_share,
            traffic_share: share(moved(backend), packets),
            active_flows: backend.active_flows,
            rate: rate((before.packets, before.bytes), (backend.packets, backend.bytes), seconds),
            tcp: tcp(before.tcp.as_ref(), backend.tcp.as_ref(), seconds),
        }
    });
    LiveService {
        name: after.name.clone(),
        vips: after.vips.clone(),
        protocol: after.protocol.clone(),
        forwarding: after.forwarding.clone(),
        status: after.status.clone(),
        rate: rate((before.packets, before.bytes), (after.packets, after.bytes), seconds),
        new_flows_per_second: per_second(before.new_flows, after.new_flows, seconds),
        active_flows: after.backends.iter().map(|backend| backend.active_flows).sum(),
        tcp: tcp(before.tcp.as_ref(), after.tcp.as_ref(), seconds),
        backends: backends.collect(),
    }
}

fn tcp(before: Option<&TcpStats>, after: Option<&TcpStats>, seconds: f64) -> Option<LiveTcp> {
    let after = after?;
    let before = before.unwrap_or(after);
    let since = after.opening.since(&before.opening);
    let opening = if since.timed > 0 { &since } else { &after.opening };
    Some(LiveTcp {
        opened_per_second: per_second(before.opened, after.opened, seconds),
        repeated_per_second: per_second(before.repeated, after.repeated, seconds),
        fins_per_second: per_second(before.fins, after.fins, seconds),
        resets_per_second: per_second(before.resets, after.resets, seconds),
        opening_median: opening.quantile(0.5),
        opening_p99: opening.quantile(0.99),
    })
}

fn wanted_weight(backend: &BackendStats) -> u64 {
    if backend.state == "enabled" { backend.weight.into() } else { 0 }
}

/// Packets and bytes at two moments → the traffic between them.
fn rate(before: (u64, u64), after: (u64, u64), seconds: f64) -> Rate {
    Rate {
        packets_per_second: per_second(before.0, after.0, seconds),
        bits_per_second: 8.0 * per_second(before.1, after.1, seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service of two backends that have forwarded so many packets of 100 bytes.
    fn snapshot(packets: [u64; 2], drops: u64) -> Snapshot {
        let backend = |name: &str, packets: u64, state: &str| {
            serde_json::json!({"name": name, "address": "10.0.1.1", "weight": 100, "state": state,
                "health": "healthy", "reason": "", "serving": true, "ring_share": 0.5, "active_flows": 2,
                "packets": packets, "bytes": packets * 100})
        };
        let sum = packets.iter().sum::<u64>();
        serde_json::from_value(serde_json::json!({
            "agent": {"version": "1", "uptime_seconds": 1, "interfaces": [], "revision": 1, "config": ""},
            "services": [{"name": "web", "vips": [], "protocol": "tcp", "forwarding": "l2-dsr",
                "status": "healthy", "packets": sum, "bytes": sum * 100, "new_flows": sum / 10,
                "backends": [backend("a", packets[0], "enabled"), backend("b", packets[1], "drain")]}],
            "verdicts": {"forward": sum, "drop.fragment": drops, "drop.no_backend": 1, "drop.too_big": 0},
            "flow_table": {"size": 8, "entries": 4, "evictions": {"expired": sum}},
            "nat": {"size": 0, "entries": 0},
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_what_moved_in_the_time_between() {
        let live = live(Some(&snapshot([100, 300], 0)), &snapshot([130, 310], 6), 2.0);
        let web = &live.services[0];
        assert_eq!(web.rate, Rate { packets_per_second: 20.0, bits_per_second: 16_000.0 });
        assert_eq!((live.total, web.new_flows_per_second, web.active_flows), (web.rate, 2.0, 4));
        assert_eq!((web.backends[0].traffic_share, web.backends[1].traffic_share), (0.75, 0.25));
        assert_eq!((web.backends[0].weight_share, web.backends[1].weight_share), (1.0, 0.0));
        assert_eq!(live.evictions_per_second["expired"], 20.0);
        let drops: Vec<_> =
            live.drops.iter().map(|drop| (drop.verdict.as_str(), drop.packets_per_second)).collect();
        assert_eq!(drops, [("drop.fragment", 3.0), ("drop.no_backend", 0.0)]);
    }

    #[test]
    fn without_a_former_snapshot_or_after_a_reset_nothing_has_moved() {
        let now = snapshot([5, 5], 0);
        for before in [None, Some(&snapshot([100, 100], 0))] {
            let live = live(before, &now, 1.0);
            assert_eq!(live.total, Rate::default());
            assert_eq!(live.services[0].backends[0].traffic_share, 0.0);
        }
        let mut other = snapshot([1, 1], 0);
        other.services[0].backends[0].address = "10.0.1.9".to_owned();
        let live = live(Some(&other), &now, 1.0);
        assert_eq!(live.services[0].backends[0].rate.packets_per_second, 0.0, "another server");
        assert_eq!(live.services[0].backends[1].rate.packets_per_second, 4.0);
    }
}
