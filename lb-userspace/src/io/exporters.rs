//! The snapshot and histograms → OpenMetrics text.

mod backends;
mod host;
mod tcp;

use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::core::stats::Snapshot;

/// Histograms, which live as long as the agent.
#[derive(Clone, Debug)]
pub struct Histograms {
    probe_duration: Family<ServiceLabel, Histogram>,
    apply_duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    service: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LostLabel {
    lost: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: String,
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            // 0.25 ms to 8 s.
            probe_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
            }),
            // 0.1 ms to 3.3 s.
            apply_duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
        }
    }
}

impl Histograms {
    /// A probe took this long.
    pub fn probed(&self, service: &str, duration: Duration) {
        let label = ServiceLabel { service: service.to_owned() };
        self.probe_duration.get_or_create(&label).observe(duration.as_secs_f64());
    }

    /// Bringing a change into force took this long.
    pub fn applied(&self, duration: Duration) {
        self.apply_duration.observe(duration.as_secs_f64());
    }

    /// A service is gone.
    pub fn forget(&self, service: &str) {
        self.probe_duration.remove(&ServiceLabel { service: service.to_owned() });
    }
}

/// Renders everything.
pub fn render(snapshot: &Snapshot, histograms: &Histograms) -> String {
    let mut registry = Registry::with_prefix("sluice");
    services(&mut registry, snapshot);
    backends::register(&mut registry, snapshot);
    tcp::register(&mut registry, snapshot);
    agent(&mut registry, snapshot);
    host::register(&mut registry, snapshot);
    program(&mut registry, snapshot);
    registry.register_with_unit(
        "probe_duration",
        "Time a health probe took",
        Unit::Seconds,
        histograms.probe_duration.clone(),
    );
    registry.register_with_unit(
        "apply_duration",
        "Time it took to bring a change into force",
        Unit::Seconds,
        histograms.apply_duration.clone(),
    );
    let mut output = String::new();
    if let Err(error) = text::encode(&mut output, &registry) {
        // Writing to a string cannot fail; a metric that cannot be encoded is named where it is missed.
        let _ = write!(output, "# {error}");
    }
    output
}

fn services(registry: &mut Registry, snapshot: &Snapshot) {
    let counter = Family::<ServiceLabel, Counter>::default;
    let (packets, bytes, new_flows) = (counter(), counter(), counter());
    for service in &snapshot.services {
        let label = ServiceLabel { service: service.name.clone() };
        packets.get_or_create(&label).inc_by(service.packets);
        bytes.get_or_create(&label).inc_by(service.bytes);
        new_flows.get_or_create(&label).inc_by(service.new_flows);
    }
    registry.register("service_packets", "Packets forwarded", packets);
    registry.register("service_bytes", "Bytes forwarded, by the IP header", bytes);
    registry.register("service_new_flows", "Flows that were given a backend", new_flows);
}

fn agent(registry: &mut Registry, snapshot: &Snapshot) {
    let verdicts = Family::<VerdictLabel, Counter>::default();
    for (verdict, &packets) in &snapshot.verdicts {
        verdicts.get_or_create(&VerdictLabel { verdict: verdict.clone() }).inc_by(packets);
    }
    registry.register("verdicts", "Packets by what became of them", verdicts);
    let entries = Gauge::<i64>::default();
    entries.set(i64::try_from(snapshot.flow_table.entries).unwrap_or(i64::MAX));
    registry.register("flow_table_entries", "Entries of the flow table that are taken", entries);
    let evictions = Family::<LostLabel, Counter>::default();
    for (lost, &flows) in &snapshot.flow_table.evictions {
        evictions.get_or_create(&LostLabel { lost: lost.clone() }).inc_by(flows);
    }
    let help = "Entries of the flow table that made way for a new one, by what was lost";
    registry.register("flow_table_evictions", help, evictions);
    let evictions = Counter::<u64>::default();
    evictions.inc_by(snapshot.nat.evictions);
    let help = "Connections of nat that made way for a new one, for their customers had not followed up their opening";
    registry.register("nat_table_evictions", help, evictions);
    for (name, help, value) in [
        ("flow_table_size", "Entries that the flow table can hold", snapshot.flow_table.size),
        ("nat_table_entries", "Translations there are: two for a connection", snapshot.nat.entries),
        ("nat_table_size", "Translations that the table can hold", snapshot.nat.size),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    let build = Family::<VersionLabel, Gauge>::default();
    build.get_or_create(&VersionLabel { version: snapshot.agent.version.clone() }).set(1);
    registry.register("build_info", "The agent's version", build);
}

/// How long the program runs, while the kernel counts that.
fn program(registry: &mut Registry, snapshot: &Snapshot) {
    let Some(program) = snapshot.program else { return };
    let runs = Counter::<u64>::default();
    runs.inc_by(program.count);
    let help = "Runs of the program, one a packet, while kernel.bpf_stats_enabled is 1";
    registry.register("program_runs", help, runs);
    let time = Counter::<f64, AtomicU64>::default();
    time.inc_by(Duration::from_nanos(program.nanoseconds).as_secs_f64());
    let help = "Time that these runs took; divided by their number, the time a packet takes";
    registry.register_with_unit("program_run", help, Unit::Seconds, time);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::abi::{LATENCY_BUCKETS, Traffic};

    use super::*;
    use crate::core::signals::{TcpStats, Timing};

    /// The names that begin with ours in a text.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("sluice_")).collect()
    }

    /// What the shipped dashboard and alert rules ask for is there.
    #[test]
    fn every_metric_that_deploy_names_is_exported() {
        let timing = Timing { buckets: [1; LATENCY_BUCKETS], sum: 1 };
        let tcp = serde_json::to_value(TcpStats::new(&Traffic::default(), &timing)).unwrap();
        let snapshot: Snapshot = serde_json::from_value(serde_json::json!({
            "agent": {"version": "1", "uptime_seconds": 1, "revision": 1, "config": "",
                "not_attached": ["eth2"], "interfaces": [
                {"name": "eth0", "xdp_mode": "driver", "received": {"packets": 5, "bytes": 6, "dropped": 7, "errors": 8}},
                {"name": "eth1", "xdp_mode": "generic"}]},
            "cpus": [{"cpu": 0, "packets": 3}, {"cpu": 2, "packets": 0}],
            "services": [{"name": "web", "vips": [], "protocol": "tcp", "forwarding": "l2-dsr",
                "status": "healthy", "packets": 1, "bytes": 1, "new_flows": 1, "tcp": tcp,
                "backends": [{"name": "a", "address": "10.0.1.1", "weight": 100, "state": "enabled",
                    "health": "healthy", "reason": "", "serving": true, "ring_share": 0.5, "active_flows": 2,
                    "packets": 1, "bytes": 1, "tcp": tcp}]}],
            "verdicts": {"forward": 1},
            "flow_table": {"size": 8, "entries": 4, "evictions": {"established": 1}},
            "nat": {"size": 0, "entries": 0},
            "program": {"count": 4, "nanoseconds": 500_000_000},
        }))
        .unwrap();
        let histograms = Histograms::default();
        histograms.probed("web", Duration::from_millis(1));
        let text = render(&snapshot, &histograms);
        assert!(text.contains("sluice_program_runs_total 4\n"), "{text}");
        assert!(text.contains("sluice_program_run_seconds_total 0.5\n"), "{text}");
        for line in [
            "sluice_cpu_packets_total{cpu=\"0\"} 3",
            "sluice_cpu_packets_total{cpu=\"2\"} 0",
            "sluice_interface_attached{interface=\"eth0\",xdp_mode=\"driver\"} 1",
            "sluice_interface_attached{interface=\"eth1\",xdp_mode=\"generic\"} 1",
            "sluice_interface_attached{interface=\"eth2\",xdp_mode=\"none\"} 0",
            "sluice_interface_received_packets_total{interface=\"eth0\"} 5",
            "sluice_interface_received_bytes_total{interface=\"eth0\"} 6",
            "sluice_interface_received_dropped_total{interface=\"eth0\"} 7",
            "sluice_interface_received_errors_total{interface=\"eth0\"} 8",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let exported: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        for file in
            [include_str!("../../../deploy/sluice.rules.yml"), include_str!("../../../deploy/grafana.json")]
        {
            let named = names(file);
            assert!(named.len() > 5, "{named:?}");
            let missing: Vec<_> = named.difference(&exported).collect();
            assert!(missing.is_empty(), "{missing:?} are not among {exported:?}");
        }
        let rules = include_str!("../../../deploy/sluice.rules.yml");
        assert!(rules.contains("lost=\"established\"") && text.contains("lost=\"established\""));
    }
}
