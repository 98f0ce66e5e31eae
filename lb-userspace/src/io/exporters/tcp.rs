//! How long customers' TCP connections took to open → histograms of the metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{BackendLabel, ServiceLabel};
use crate::core::signals::{OpeningStats, TcpStats, bounds};
use crate::core::stats::Snapshot;

/// Backends of all TCP services at most that have a histogram of their own: each is twenty lines and more.
pub(super) const MAX_HISTOGRAMS: usize = 256;

/// Adds the histograms of services, and those of backends if these are not too many.
pub(super) fn register(registry: &mut Registry, snapshot: &Snapshot) {
    let services = snapshot.services.iter().filter_map(|service| {
        let opening = service.tcp.as_ref()?.opening.clone();
        Some((ServiceLabel { service: service.name.clone() }, opening))
    });
    registry.register_collector(Box::new(Openings {
        name: "service_opening",
        help: "Time from the SYN to the next packet of those TCP connections that were timed",
        of: services.filter(|(_, opening)| opening.timed > 0).collect(),
    }));
    if backends(snapshot).count() > MAX_HISTOGRAMS {
        return;
    }
    let backends = backends(snapshot).map(|(label, tcp)| (label, tcp.opening.clone()));
    registry.register_collector(Box::new(Openings {
        name: "backend_opening",
        help: "The same by backend, where there are at most 256 of them",
        of: backends.filter(|(_, opening)| opening.timed > 0).collect(),
    }));
}

/// The backends of TCP services.
fn backends(snapshot: &Snapshot) -> impl Iterator<Item = (BackendLabel, &TcpStats)> {
    snapshot.services.iter().flat_map(|service| {
        service.backends.iter().filter_map(|backend| {
            let label = BackendLabel { service: service.name.clone(), backend: backend.name.clone() };
            Some((label, backend.tcp.as_ref()?))
        })
    })
}

/// Histograms that the datapath has made.
#[derive(Debug)]
struct Openings<L> {
    name: &'static str,
    help: &'static str,
    of: Vec<(L, OpeningStats)>,
}

impl<L: EncodeLabelSet + fmt::Debug + Send + Sync + 'static> Collector for Openings<L> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (label, opening) in &self.of {
            // The library's word for the last bucket.
            let bounds = bounds().map(|bound| if bound.is_finite() { bound } else { f64::MAX });
            let buckets: Vec<(f64, u64)> = bounds.zip(opening.buckets.iter().copied()).collect();
            metric.encode_family(label)?.encode_histogram::<L>(
                opening.seconds,
                opening.timed,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{LATENCY_BUCKETS, Traffic};

    use super::*;
    use crate::core::signals::Timing;
    use crate::io::exporters::{Histograms, render};

    fn snapshot(backends: usize) -> Snapshot {
        let mut timing = Timing { sum: 3_000, ..Timing::default() };
        (timing.buckets[0], timing.buckets[6], timing.buckets[LATENCY_BUCKETS - 1]) = (1, 2, 1);
        let traffic =
            Traffic { opened: 9, repeated: 2, answered: 7, fins: 5, resets: 1, ..Traffic::default() };
        let tcp = serde_json::to_value(TcpStats::new(&traffic, &timing)).unwrap();
        let backend = |number: usize| {
            serde_json::json!({"name": format!("web{number}"), "address": "10.0.1.1", "weight": 1,
                "state": "enabled", "health": "healthy", "reason": "", "serving": true, "ring_share": 0.5,
                "active_flows": 2, "packets": 1, "bytes": 1, "tcp": tcp})
        };
        serde_json::from_value(serde_json::json!({
            "agent": {"version": "1", "uptime_seconds": 1, "interfaces": [], "revision": 1, "config": ""},
            "services": [{"name": "web", "vips": [], "protocol": "tcp", "forwarding": "l2-dsr",
                "status": "healthy", "packets": 1, "bytes": 1, "new_flows": 1, "tcp": tcp,
                "backends": (1..=backends).map(backend).collect::<Vec<_>>()}],
            "verdicts": {},
            "flow_table": {"size": 8, "entries": 4},
            "nat": {"size": 0, "entries": 0},
        }))
        .unwrap()
    }

    #[test]
    fn histograms_are_cumulative_and_bounded_in_number() {
        let text = render(&snapshot(1), &Histograms::default());
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}: {text}");
        for labels in ["service=\"web\"", "service=\"web\",backend=\"web1\""] {
            let name = if labels.contains("backend") { "backend" } else { "service" };
            let bucket = format!("sluice_{name}_opening_seconds_bucket{{le=");
            has(&format!("{bucket}\"0.000016384\",{labels}}} 1"));
            has(&format!("{bucket}\"0.001048576\",{labels}}} 3"));
            has(&format!("{bucket}\"+Inf\",{labels}}} 4"));
            has(&format!("sluice_{name}_opening_seconds_count{{{labels}}} 4"));
            has(&format!("sluice_{name}_opening_seconds_sum{{{labels}}} 0.003072"));
        }
        for (name, count) in [("opened", 9), ("repeated", 2), ("answered", 7), ("fins", 5), ("resets", 1)] {
            has(&format!("sluice_backend_tcp_{name}_total{{service=\"web\",backend=\"web1\"}} {count}"));
        }
        let many = render(&snapshot(MAX_HISTOGRAMS + 1), &Histograms::default());
        assert!(!many.contains("sluice_backend_opening_seconds"), "too many");
        assert!(many.contains("sluice_service_opening_seconds_count{service=\"web\"} 4"));
        assert!(render(&snapshot(MAX_HISTOGRAMS), &Histograms::default()).contains("backend=\"web256\"} 4"));
    }
}
