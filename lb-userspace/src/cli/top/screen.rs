//! The state of `sluice top` and the size of a terminal → what is on it.

use lb_common::verdict::Verdict;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::look::Look;
use super::rows::Row;
use super::state::{Mode, Top};
use super::table::Table;
use super::text::{duration, short, span};
use crate::core::events::{Recorded, Severity};
use crate::core::live::{Live, LiveTcp};

/// From this width on, drops and events stand beside each other.
const WIDE: u16 = 110;
/// Fewer lines than this between head and foot are all the table's.
const MIN_FOR_PANELS: u16 = 9;
/// Lines that drops and events take at most.
const MAX_PANELS: u16 = 12;

const HELP: [&str; 17] = [
    "Keys",
    "  up, down, k, j, PgUp, PgDn, g, G   move",
    "  Enter      only this service        Esc    back",
    "  s          what comes first         r      the other way round",
    "  /          filter by name, address, state or reason; Esc clears it",
    "  d          drain the selected backend     e      enable it (after a question)",
    "  p, space   pause                    Ctrl-L draw anew         q  quit",
    "",
    "Columns",
    "  WANT   the share of new flows that a backend's weight asks for",
    "  RING   its share of the ring's slots: 0 while it is not to take any",
    "  GOT    its share of the service's packets just now",
    "  OPEN   median time from a customer's SYN to its next packet: the server's",
    "         answer and the way to and fro. Lost answers, and a server's own RSTs",
    "         and FINs, do not show: only customers' packets are seen",
    "  AGAIN  SYNs a second that came again with nothing after the first",
    "  TREND  packets a second, the latest on the right, each line in a scale of its own",
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, top: &Top, look: &Look) {
    let [head, body, detail, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(1),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Some(live) = &top.live else { return };
    frame.render_widget(Paragraph::new(header(top, live, head.width, look)), head);
    if top.mode == Mode::Help {
        frame.render_widget(Paragraph::new(HELP.map(Line::raw).to_vec()), body);
    } else {
        let panels = panels_height(body.height);
        let [table, panels] = Layout::vertical([Constraint::Min(1), Constraint::Length(panels)]).areas(body);
        draw_table(frame, table, top, look);
        draw_panels(frame, panels, top, live, look);
    }
    frame.render_widget(Paragraph::new(detail_line(top, look)), detail);
    frame.render_widget(Paragraph::new(foot_line(top, look)), foot);
}

fn panels_height(body: u16) -> u16 {
    if body < MIN_FOR_PANELS { 0 } else { (body * 9 / 20).min(MAX_PANELS) }
}

/// The agent, all traffic, and how full the tables are.
fn header(top: &Top, live: &Live, width: u16, look: &Look) -> Vec<Line<'static>> {
    let agent = &live.agent;
    let interfaces: Vec<String> = (agent.interfaces.iter())
        .map(|interface| format!("{} ({})", interface.name, interface.xdp_mode))
        .collect();
    let attached =
        if interfaces.is_empty() { "attached to nothing".to_owned() } else { interfaces.join(", ") };
    let mut first = vec![
        Span::styled(format!("sluice {}", agent.version), look.title()),
        Span::raw(format!(
            "  up {}  {attached}  revision {}",
            duration(agent.uptime_seconds),
            agent.revision
        )),
    ];
    first.extend(agent.missing().map(|name| Span::styled(format!("  NOT ON {name}"), look.alarm(2))));
    if top.gone.is_some() {
        first.push(Span::styled("  THE AGENT DOES NOT ANSWER", look.alarm(2)));
    } else if top.paused {
        first.push(Span::styled("  PAUSED", look.alarm(1)));
    }
    let new_flows: f64 = live.services.iter().map(|service| service.new_flows_per_second).sum();
    let rates = format!(
        "{} pkt/s  {} bit/s  {} new flows/s  ",
        short(live.total.packets_per_second),
        short(live.total.bits_per_second),
        short(new_flows)
    );
    let left = usize::from(width).saturating_sub(rates.len());
    let trail = top.total.draw(left, &look.glyphs);
    let second = vec![Span::styled(rates, look.title()), Span::styled(trail, look.trail())];
    vec![Line::from(first), Line::from(second), pressure(live, look)]
}

/// How full the tables are, and what they lose.
fn pressure(live: &Live, look: &Look) -> Line<'static> {
    let share = |taken: u64, size: u64| if size > 0 { taken as f64 / size as f64 } else { 0.0 };
    let flows = share(live.flow_table.entries, live.flow_table.size);
    let lost = live.evictions_per_second.get("established").copied().unwrap_or(0.0);
    let nat = share(live.nat.entries, live.nat.size);
    let alarm = |share: f64, lost: f64| match share {
        _ if lost > 0.0 => look.alarm(2),
        share if share >= 0.9 => look.alarm(1),
        _ => Style::new(),
    };
    let mut spans = vec![Span::styled(
        format!(
            "flow table {} {:.1} % of {}, {} live flows lost/s",
            look.glyphs.bar(flows, 10),
            flows * 100.0,
            short(live.flow_table.size as f64),
            short(lost)
        ),
        alarm(flows, lost),
    )];
    if live.nat.size > 0 {
        let text = format!("  nat {:.1} % of {}", nat * 100.0, short(live.nat.size as f64));
        spans.push(Span::styled(text, alarm(nat, 0.0)));
    }
    Line::from(spans)
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, top: &Top, look: &Look) {
    let table = Table::new(area.width);
    let (rows, at) = top.rows();
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    // The selected line is in sight, in the middle if there is more than fits.
    let first = at.saturating_sub(room / 2).min(rows.len().saturating_sub(room));
    let mut lines = vec![table.header(look)];
    for (number, row) in rows.iter().enumerate().skip(first).take(room) {
        lines.push(table.line(row, top, number == at, look));
    }
    if rows.is_empty() {
        let what = if top.selection.filter.is_empty() { "no services" } else { "nothing fits the filter" };
        lines.push(Line::raw(format!(" {what}")));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_panels(frame: &mut Frame<'_>, area: Rect, top: &Top, live: &Live, look: &Look) {
    if area.height == 0 {
        return;
    }
    let [left, right] = if area.width >= WIDE {
        Layout::horizontal([Constraint::Percentage(45), Constraint::Fill(1)]).areas(area)
    } else {
        let wanted = u16::try_from(live.drops.len()).unwrap_or(u16::MAX).saturating_add(1);
        let drops = wanted.clamp(2, (area.height / 2).max(2));
        Layout::vertical([Constraint::Length(drops), Constraint::Fill(1)]).areas(area)
    };
    frame.render_widget(Paragraph::new(drops(live, left.height, look)), left);
    frame.render_widget(Paragraph::new(events(top, right.height, look)), right);
}

/// What was dropped, and why.
fn drops(live: &Live, height: u16, look: &Look) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(" DROPS", look.title())];
    if live.drops.is_empty() {
        lines.push(Line::raw("  none"));
    }
    for drop in live.drops.iter().take(usize::from(height.saturating_sub(1))) {
        let known = Verdict::ALL.iter().find(|verdict| verdict.name() == drop.verdict);
        let explanation = known.map_or("", |verdict| verdict.explanation());
        let text = format!(
            "  {:<18} {:>5}/s {:>6}  {explanation}",
            drop.verdict,
            short(drop.packets_per_second),
            short(drop.packets as f64)
        );
        let style = if drop.packets_per_second > 0.0 { look.alarm(2) } else { Style::new() };
        lines.push(Line::styled(text, style));
    }
    lines
}

/// What happened lately, the latest last.
fn events(top: &Top, height: u16, look: &Look) -> Vec<Line<'static>> {
    let focus = top.selection.focus.as_deref();
    let about = |event: &&Recorded| focus.is_none() || event.event.service() == focus;
    let events: Vec<&Recorded> = top.events.iter().filter(about).collect();
    let room = usize::from(height.saturating_sub(1));
    let title = focus.map_or_else(|| " EVENTS (UTC)".to_owned(), |name| format!(" EVENTS of {name} (UTC)"));
    let mut lines = vec![Line::styled(title, look.title())];
    if events.is_empty() {
        lines.push(Line::raw("  none"));
    }
    for event in events.iter().skip(events.len().saturating_sub(room)) {
        let alarm = match event.severity {
            Severity::Info => 0,
            Severity::Warn => 1,
            Severity::Error => 2,
        };
        let style = if alarm == 0 { Style::new() } else { look.alarm(alarm) };
        let time = event.time.to_string();
        let time = time.get(11..19).unwrap_or(&time);
        lines.push(Line::styled(format!("  {time} {}", event.line()), style));
    }
    lines
}

/// More about the selected line.
fn detail_line(top: &Top, look: &Look) -> Line<'static> {
    let (rows, at) = top.rows();
    match rows.get(at) {
        Some(Row::Backend(service, backend)) => {
            let reason = if backend.reason.is_empty() { "nothing is wrong with it" } else { &backend.reason };
            let text = format!(
                "{}/{} {} weight {}: {reason}{}",
                service.name,
                backend.name,
                backend.address,
                backend.weight,
                opening(backend.tcp.as_ref())
            );
            Line::styled(text, look.title())
        }
        Some(Row::Service(service)) => {
            let vips = service.vips.join(" ");
            let opening = opening(service.tcp.as_ref());
            let text =
                format!("{}: {} {vips} by {}{opening}", service.name, service.protocol, service.forwarding);
            Line::styled(text, look.title())
        }
        None => Line::default(),
    }
}

/// How connections open and end, in a clause that may be cut at its end.
fn opening(tcp: Option<&LiveTcp>) -> String {
    let Some(tcp) = tcp else { return String::new() };
    let time = match (tcp.opening_median, tcp.opening_p99) {
        (Some(median), Some(p99)) => format!("opens in {}, 99 % in {}; ", span(median), span(p99)),
        _ => String::new(),
    };
    let [again, fins, resets] =
        [tcp.repeated_per_second, tcp.fins_per_second, tcp.resets_per_second].map(short);
    format!("; {time}SYN again {again}/s, FIN {fins}/s, RST {resets}/s")
}

/// What the keys do, what is asked, or what came of it.
fn foot_line(top: &Top, look: &Look) -> Line<'static> {
    let plain = |text: String| Line::styled(text, look.selected());
    match (&top.mode, &top.notice, &top.gone) {
        (Mode::Filter, ..) => {
            plain(format!("filter: {}_  (Enter keeps it, Esc clears it)", top.selection.filter))
        }
        (Mode::Confirm(wish), ..) => plain(format!("{}  y/n", wish.question())),
        (Mode::Help, ..) => plain("any key: back".to_owned()),
        (Mode::Watch, Some(notice), _) => plain(notice.clone()),
        (Mode::Watch, None, Some(why)) => Line::styled(why.clone(), look.alarm(2)),
        (Mode::Watch, None, None) => {
            let selection = &top.selection;
            let order = if selection.reversed { " reversed" } else { "" };
            let mut text = format!(
                "{} move  Enter open  s sort: {}{order}  / filter  d drain  e enable  ? help  q quit",
                look.glyphs.arrows,
                selection.sort.name()
            );
            if !selection.filter.is_empty() {
                text = format!("[{}]  {text}", selection.filter);
            }
            Line::raw(text)
        }
    }
}

#[cfg(test)]
mod tests;
