//! What the program did on each CPU, and what came in on its interfaces → some lines for each.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::core::stats::{Received, Snapshot};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CpuLabel {
    cpu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabel {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttachedLabel {
    interface: String,
    xdp_mode: String,
}

/// A counter of an interface.
type OfInterface = (&'static str, &'static str, fn(&Received) -> u64);

const OF_INTERFACES: [OfInterface; 4] = [
    ("interface_received_packets", "Packets that came in, counted by the interface's driver", |received| {
        received.packets
    }),
    ("interface_received_bytes", "Bytes that came in, counted by the interface's driver", |received| {
        received.bytes
    }),
    (
        "interface_received_dropped",
        "Packets that came in and found no room, or nobody who takes them, counted by driver and kernel; some drivers \
         count what the program drops, too",
        |received| received.dropped,
    ),
    (
        "interface_received_errors",
        "Packets that came in broken, counted by the interface's driver",
        |received| received.errors,
    ),
];

/// Adds the lines: one for each CPU, five for each interface that the program is attached to, one for each other one.
pub(super) fn register(registry: &mut Registry, snapshot: &Snapshot) {
    let cpus = Family::<CpuLabel, Counter>::default();
    for stats in &snapshot.cpus {
        cpus.get_or_create(&CpuLabel { cpu: stats.cpu }).inc_by(stats.packets);
    }
    let help = "Packets by the CPU that the program ran on, counted by the program: those of sluice_verdicts, \
                spread as the interfaces' queues are";
    registry.register("cpu_packets", help, cpus);
    let attached = Family::<AttachedLabel, Gauge>::default();
    for interface in &snapshot.agent.interfaces {
        let label = AttachedLabel { interface: interface.name.clone(), xdp_mode: interface.xdp_mode.clone() };
        attached.get_or_create(&label).set(1);
    }
    for interface in &snapshot.agent.not_attached {
        let label = AttachedLabel { interface: interface.clone(), xdp_mode: "none".to_owned() };
        attached.get_or_create(&label).set(0);
    }
    let help = "1 for each interface that the program is attached to, and how: driver, or generic, which is slower; 0 for \
                one of agent.interfaces that it is not attached to";
    registry.register("interface_attached", help, attached);
    for (name, help, count) in OF_INTERFACES {
        let counters = Family::<InterfaceLabel, Counter>::default();
        for interface in &snapshot.agent.interfaces {
            if let Some(received) = &interface.received {
                let label = InterfaceLabel { interface: interface.name.clone() };
                counters.get_or_create(&label).inc_by(count(received));
            }
        }
        registry.register(name, help, counters);
    }
}
