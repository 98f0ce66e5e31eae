//! Lines of the table → cells in the columns that a screen of this width has room for.

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::look::Look;
use super::rows::Row;
use super::state::Top;
use super::text::{Trail, share, short, span};

/// What a column shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Name,
    State,
    Packets,
    Bits,
    New,
    Flows,
    Weight,
    Ring,
    Got,
    Opening,
    Repeated,
    Trail,
    Reason,
}

/// A column: what, its title, its width, and the narrowest screen that shows it.
struct Column(What, &'static str, usize, usize);

const COLUMNS: [Column; 13] = [
    Column(What::Name, "NAME", 12, 0),
    Column(What::State, "STATE", 12, 0),
    Column(What::Packets, "PKT/S", 5, 0),
    Column(What::Bits, "BIT/S", 5, 44),
    Column(What::New, "NEW/S", 5, 100),
    Column(What::Flows, "FLOWS", 5, 50),
    Column(What::Weight, "WANT", 5, 58),
    Column(What::Ring, "RING", 5, 64),
    Column(What::Got, "GOT", 5, 70),
    Column(What::Opening, "OPEN", 6, 92),
    Column(What::Repeated, "AGAIN", 5, 98),
    Column(What::Trail, "TREND", 10, 80),
    Column(What::Reason, "REASON", 24, 120),
];

/// Which columns a screen has, and how wide they are: names and reasons share what is left.
pub(super) struct Table {
    columns: Vec<(&'static Column, usize)>,
}

impl Table {
    pub(super) fn new(width: u16) -> Self {
        let width = usize::from(width);
        let columns: Vec<_> = COLUMNS.iter().filter(|column| width >= column.3).collect();
        let taken: usize = columns.iter().map(|column| column.2 + 1).sum();
        // One character stands before the names.
        let left = width.saturating_sub(taken);
        let has_reason = columns.iter().any(|column| column.0 == What::Reason);
        let for_name = if has_reason { (left / 3).min(20) } else { left.min(28) };
        let widths = columns.into_iter().map(|column| match column.0 {
            What::Name => (column, column.2 + for_name),
            What::Reason => (column, column.2 + left.saturating_sub(for_name)),
            _ => (column, column.2),
        });
        Self { columns: widths.collect() }
    }

    pub(super) fn header(&self, look: &Look) -> Line<'static> {
        let cells = self.columns.iter().map(|(column, width)| fit(column.1, *width, column.0));
        Line::styled(format!(" {}", cells.collect::<Vec<_>>().join(" ")), look.title())
    }

    /// A line of the table.
    pub(super) fn line(&self, row: &Row<'_>, top: &Top, selected: bool, look: &Look) -> Line<'static> {
        let alarm = row.alarm();
        let mut spans = vec![Span::raw(if alarm > 1 { "!" } else { " " })];
        for (column, width) in &self.columns {
            let text = match column.0 {
                What::Trail => {
                    let key = row.key();
                    let trail = top.trails.get(&key).map(|trail: &Trail| trail.draw(*width, &look.glyphs));
                    trail.unwrap_or_default()
                }
                what => cell(what, row),
            };
            let style = match (column.0, row) {
                (What::State | What::Reason, _) => look.alarm(alarm),
                (What::Trail, _) => look.trail(),
                (_, Row::Service(_)) => Style::new().add_modifier(Modifier::BOLD),
                _ => Style::new(),
            };
            spans.push(Span::styled(fit(&text, *width, column.0), style));
            spans.push(Span::raw(" "));
        }
        let line = Line::from(spans);
        if selected { line.style(look.selected()) } else { line }
    }
}

fn cell(what: What, row: &Row<'_>) -> String {
    match (what, row) {
        (What::Name, Row::Service(service)) => service.name.clone(),
        (What::Name, Row::Backend(_, backend)) => format!("  {}", backend.name),
        (What::State, row) => row.state(),
        (What::Packets, row) => short(row.rate().packets_per_second),
        (What::Bits, row) => short(row.rate().bits_per_second),
        (What::New, Row::Service(service)) => short(service.new_flows_per_second),
        (What::Flows, row) => short(row.active_flows() as f64),
        (What::Weight, Row::Backend(_, backend)) => share(backend.weight_share),
        (What::Ring, Row::Backend(_, backend)) => share(backend.ring_share),
        (What::Got, Row::Backend(_, backend)) => share(backend.traffic_share),
        (What::Opening, row) => row.tcp().and_then(|tcp| tcp.opening_median).map(span).unwrap_or_default(),
        (What::Repeated, row) => row.tcp().map(|tcp| short(tcp.repeated_per_second)).unwrap_or_default(),
        (What::Reason, Row::Backend(_, backend)) => backend.reason.clone(),
        (What::Reason, Row::Service(service)) => service.vips.join(" "),
        _ => String::new(),
    }
}

/// A text in exactly so many characters: numbers at the right, and what is too long ends in a dot.
fn fit(text: &str, width: usize, what: What) -> String {
    let length = text.chars().count();
    if length > width {
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        return format!("{kept}.");
    }
    match what {
        What::Name | What::State | What::Reason => format!("{text:<width$}"),
        _ => format!("{text:>width$}"),
    }
}
