//! `sluice status`: what runs and how it is.

use super::client::Client;
use super::output::{Columns, percent};
use super::{Failure, Format, OutputFlag, output};
use crate::core::signals::TcpStats;
use crate::core::stats::{BackendStats, ServiceStats, Snapshot};

/// Show what runs and how it is
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Exit with 4 if a service is not healthy, or the program is not on an interface
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    format: OutputFlag,
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let snapshot: Snapshot = client.get("/v1/status").await?;
    match arguments.format.output {
        Format::Json => output::json(&snapshot)?,
        Format::Table => output::print(&render(&snapshot))?,
    }
    let off = snapshot.agent.missing().map(|interface| format!("the program is not on {interface}"));
    let unwell = snapshot.services.iter().filter(|service| service.status != "healthy");
    let unwell = unwell.map(|service| format!("service {} is {}", service.name, service.status));
    let unwell: Vec<String> = off.chain(unwell).collect();
    if arguments.check && !unwell.is_empty() {
        return Err(Failure::NotAsWished(unwell.join("; ")));
    }
    Ok(())
}

fn render(snapshot: &Snapshot) -> String {
    let agent = &snapshot.agent;
    let interfaces: Vec<String> = agent
        .interfaces
        .iter()
        .map(|interface| format!("{} ({} mode)", interface.name, interface.xdp_mode))
        .collect();
    let attached = if interfaces.is_empty() {
        "attached to nothing".to_owned()
    } else {
        let not = agent.not_attached.iter().map(|name| format!(", NOT on {name}"));
        format!("on {}{}", interfaces.join(", "), not.collect::<String>())
    };
    let waiting = agent.unconfirmed.as_ref().map_or(String::new(), |waiting| format!("\n{waiting}"));
    let mut parts = vec![format!(
        "sluice {}, up {} s, {attached}\nconfiguration {}, revision {}; flow table: {} of {} entries taken{waiting}",
        agent.version,
        agent.uptime_seconds,
        agent.config,
        agent.revision,
        snapshot.flow_table.entries,
        snapshot.flow_table.size,
    )];
    parts.extend(snapshot.services.iter().map(service));
    let counted: Vec<_> = snapshot.verdicts.iter().filter(|(_, packets)| **packets > 0).collect();
    if !counted.is_empty() {
        let mut columns = Columns::with_header(&["verdict", "packets"]);
        for (verdict, packets) in counted {
            columns.line(vec![verdict.clone(), packets.to_string()]);
        }
        parts.push(columns.render(""));
    }
    parts.join("\n\n")
}

/// A service and its backends, for people.
pub(super) fn service(service: &ServiceStats) -> String {
    let mut columns = Columns::with_header(&[
        "backend", "address", "state", "health", "weight", "share", "flows", "packets", "bytes", "",
    ]);
    for backend in &service.backends {
        columns.line(cells(backend));
    }
    let reason = if service.reason.is_empty() { String::new() } else { format!(": {}", service.reason) };
    format!(
        "service {}: {}{reason}\n  {} {} by {}; {} packets, {} bytes, {} new flows\n{}",
        service.name,
        service.status,
        service.protocol,
        service.vips.join(" "),
        service.forwarding,
        service.packets,
        service.bytes,
        service.new_flows,
        columns.render("  "),
    ) + &service.tcp.as_ref().filter(|tcp| tcp.opened > 0).map(connections).unwrap_or_default()
}

/// What customers' packets show of a service's connections, in a line.
fn connections(tcp: &TcpStats) -> String {
    let time = match (tcp.opening.quantile(0.5), tcp.opening.quantile(0.99)) {
        (Some(median), Some(most)) => {
            let [median, most] = [median, most].map(|seconds| seconds * 1e3);
            format!(
                "; opening takes {median:.2} ms, at most {most:.2} ms for 99 % (of {} timed)",
                tcp.opening.timed
            )
        }
        _ => String::new(),
    };
    let TcpStats { opened, repeated, fins, resets, .. } = tcp;
    format!("\n  customers' packets: {opened} SYNs, {repeated} came again, {fins} FINs, {resets} RSTs{time}")
}

fn cells(backend: &BackendStats) -> Vec<String> {
    vec![
        backend.name.clone(),
        backend.address.clone(),
        backend.state.clone(),
        backend.health.clone(),
        backend.weight.to_string(),
        percent(backend.ring_share),
        backend.active_flows.to_string(),
        backend.packets.to_string(),
        backend.bytes.to_string(),
        backend.reason.clone(),
    ]
}
