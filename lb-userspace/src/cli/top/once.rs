//! What happens right now → text or JSON that is printed once.

use std::borrow::Cow;

use serde::Serialize;

use super::super::output::{self, Columns};
use super::super::{Failure, Format};
use super::rows::{Row, Selection, rows};
use super::text::{duration, share, short, span};
use crate::core::events::Recorded;
use crate::core::live::{Live, LiveTcp};

/// Events that the text has.
const EVENTS: usize = 10;

/// What is printed as JSON.
#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    live: &'a Live,
    events: &'a [Recorded],
}

pub(super) fn print(format: Format, live: &Live, events: &[Recorded]) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(&View { live, events }),
        Format::Table => output::print(&render(live, events)),
    }
}

fn render(live: &Live, events: &[Recorded]) -> String {
    let mut parts = vec![format!(
        "sluice {}, up {}, revision {}; in {:.1} s: {} pkt/s, {} bit/s\nflow table: {} of {} entries taken, {} live \
         flows lost/s; nat: {} of {}",
        live.agent.version,
        duration(live.agent.uptime_seconds),
        live.agent.revision,
        live.seconds,
        short(live.total.packets_per_second),
        short(live.total.bits_per_second),
        live.flow_table.entries,
        live.flow_table.size,
        short(live.evictions_per_second.get("established").copied().unwrap_or(0.0)),
        live.nat.entries,
        live.nat.size,
    )];
    let mut table = Columns::with_header(&[
        "name", "state", "pkt/s", "bit/s", "new/s", "flows", "want", "ring", "got", "open", "99 %",
        "again/s", "rst/s", "",
    ]);
    for row in rows(live, &Selection::default()) {
        table.line(cells(&row));
    }
    parts.push(table.render(""));
    if !live.drops.is_empty() {
        let mut drops = Columns::with_header(&["dropped", "pkt/s", "packets"]);
        for drop in &live.drops {
            let rate = short(drop.packets_per_second);
            drops.line(vec![drop.verdict.clone(), rate, drop.packets.to_string()]);
        }
        parts.push(drops.render(""));
    }
    let last = events.iter().skip(events.len().saturating_sub(EVENTS));
    let lines: Vec<String> = last.map(|event| format!("{:.3}  {}", event.time, event.line())).collect();
    if !lines.is_empty() {
        parts.push(lines.join("\n"));
    }
    parts.join("\n\n")
}

fn cells(row: &Row<'_>) -> Vec<String> {
    let (name, new_flows, shares, reason): (_, _, _, Cow<'_, str>) = match row {
        Row::Service(service) => {
            let new_flows = short(service.new_flows_per_second);
            (service.name.clone(), new_flows, [const { String::new() }; 3], service.vips.join(" ").into())
        }
        Row::Backend(_, backend) => {
            let shares = [backend.weight_share, backend.ring_share, backend.traffic_share].map(share);
            (format!("  {}", backend.name), String::new(), shares, (&backend.reason).into())
        }
    };
    let [want, ring, got] = shares;
    let rate = row.rate();
    let tcp = row.tcp();
    let time = |of: fn(&LiveTcp) -> Option<f64>| tcp.and_then(of).map(span).unwrap_or_default();
    let per_second = |of: fn(&LiveTcp) -> f64| tcp.map(of).map(short).unwrap_or_default();
    vec![
        name,
        row.state(),
        short(rate.packets_per_second),
        short(rate.bits_per_second),
        new_flows,
        row.active_flows().to_string(),
        want,
        ring,
        got,
        time(|tcp| tcp.opening_median),
        time(|tcp| tcp.opening_p99),
        per_second(|tcp| tcp.repeated_per_second),
        per_second(|tcp| tcp.resets_per_second),
        reason.into_owned(),
    ]
}
