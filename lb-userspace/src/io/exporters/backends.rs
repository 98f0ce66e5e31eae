//! What is known of each backend → some lines for each, of thousands: without a map of labels for every metric, which would take
//! most of the time.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::BackendLabel;
use crate::core::signals::TcpStats;
use crate::core::stats::{BackendStats, Snapshot};

/// A counter of a backend, if it has it.
type Counter = (&'static str, &'static str, fn(&Values) -> Option<u64>);
/// A gauge.
type Gauge = (&'static str, &'static str, fn(&Values) -> i64);

const COUNTERS: [Counter; 7] = [
    ("backend_packets", "Packets forwarded.", |values| Some(values.packets)),
    ("backend_bytes", "Bytes forwarded, by the IP header.", |values| Some(values.bytes)),
    ("backend_tcp_opened", "Customers' SYNs that were given this backend.", |values| {
        Some(values.tcp?.opened)
    }),
    (
        "backend_tcp_repeated",
        "Customers' SYNs that came again within seconds while nothing had followed the first.",
        |values| Some(values.tcp?.repeated),
    ),
    (
        "backend_tcp_answered",
        "TCP connections of which another packet followed the customer's first.",
        |values| Some(values.tcp?.answered),
    ),
    ("backend_tcp_fins", "Customers' FINs.", |values| Some(values.tcp?.fins)),
    ("backend_tcp_resets", "Customers' RSTs.", |values| Some(values.tcp?.resets)),
];

const GAUGES: [Gauge; 3] = [
    ("backend_active_flows", "Live flows in the flow table.", |values| values.flows),
    ("backend_healthy", "1 if the backend's probes succeed.", |values| values.healthy),
    ("backend_weight", "The configured weight.", |values| values.weight),
];

/// The numbers of one backend.
#[derive(Clone, Copy, Debug)]
struct Values {
    packets: u64,
    bytes: u64,
    flows: i64,
    healthy: i64,
    weight: i64,
    tcp: Option<Tcp>,
}

#[derive(Clone, Copy, Debug)]
struct Tcp {
    opened: u64,
    repeated: u64,
    answered: u64,
    fins: u64,
    resets: u64,
}

/// All backends.
#[derive(Debug)]
struct Backends(Vec<(BackendLabel, Values)>);

/// Adds everything about backends but for histograms.
pub(super) fn register(registry: &mut Registry, snapshot: &Snapshot) {
    let of_service = snapshot.services.iter().flat_map(|service| {
        service.backends.iter().map(|backend| {
            let label = BackendLabel { service: service.name.clone(), backend: backend.name.clone() };
            (label, Values::from(backend))
        })
    });
    registry.register_collector(Box::new(Backends(of_service.collect())));
}

impl From<&BackendStats> for Values {
    fn from(backend: &BackendStats) -> Self {
        let tcp = |&TcpStats { opened, repeated, answered, fins, resets, .. }: &TcpStats| Tcp {
            opened,
            repeated,
            answered,
            fins,
            resets,
        };
        Self {
            packets: backend.packets,
            bytes: backend.bytes,
            flows: i64::try_from(backend.active_flows).unwrap_or(i64::MAX),
            healthy: (backend.health == "healthy").into(),
            weight: backend.weight.into(),
            tcp: backend.tcp.as_ref().map(tcp),
        }
    }
}

impl Collector for Backends {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (label, values) in &self.0 {
                if let Some(value) = value(values) {
                    metric.encode_family(label)?.encode_counter::<BackendLabel, _, u64>(&value, None)?;
                }
            }
        }
        for (name, help, value) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (label, values) in &self.0 {
                metric.encode_family(label)?.encode_gauge(&value(values))?;
            }
        }
        Ok(())
    }
}
