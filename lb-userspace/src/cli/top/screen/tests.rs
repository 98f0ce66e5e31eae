use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use serde_json::{Value, json};

use super::super::state::{Command, Wish};
use super::super::text::Glyphs;
use super::*;
use crate::core::live::live;
use crate::core::stats::Snapshot;

const COLOURED: Look = Look { colour: true, glyphs: Glyphs::UNICODE };
const PLAIN: Look = Look { colour: false, glyphs: Glyphs::ASCII };

/// One in sixteen is timed; each backend takes twice as long as the one before.
fn tcp(number: u64, packets: u64) -> Value {
    let opened = packets / 20;
    let mut buckets = [0; 20];
    buckets[number as usize + 3] = opened / 16;
    json!({"opened": opened, "repeated": opened / 50, "answered": opened, "fins": opened, "resets": opened / 9,
        "opening": {"timed": opened / 16, "seconds": 1.5, "buckets": buckets}})
}

fn backend(number: u64, packets: u64, differs: &Value) -> Value {
    let mut backend = json!({"name": format!("web{number}"), "address": format!("10.0.1.1{number}"), "weight": 100,
        "state": "enabled", "health": "healthy", "reason": "", "serving": true, "ring_share": 0.5,
        "active_flows": 1_200 * number, "packets": packets, "bytes": packets * 700, "tcp": tcp(number, packets)});
    let values = backend.as_object_mut().unwrap();
    values.extend(differs.as_object().unwrap().clone());
    backend
}

/// After so many seconds.
fn snapshot(seconds: u64) -> Snapshot {
    let dead = json!({"health": "unhealthy", "serving": false, "ring_share": 0.0,
        "reason": "no answer for VIP 203.0.113.10 within 1s, though 10.0.1.13 itself answers"});
    let drained = json!({"state": "drain", "serving": false, "ring_share": 0.0});
    let service = |name: &str, status: &str, packets: u64, backends: Vec<Value>| {
        json!({"name": name, "vips": ["203.0.113.10:80", "[2001:db8::10]:80"], "protocol": "tcp",
            "forwarding": "l2-dsr", "status": status, "packets": packets, "bytes": packets * 700,
            "new_flows": packets / 20, "tcp": tcp(2, packets), "backends": backends})
    };
    let at = |rate: u64| seconds * rate * (10 + seconds % 7);
    serde_json::from_value(json!({
        "agent": {"version": "0.1.0", "uptime_seconds": 3_725 + seconds, "revision": 4, "config": "/etc/sluice.toml",
            "interfaces": [{"name": "eth0", "xdp_mode": "driver"}]},
        "services": [
            service("web", "degraded", at(1_300), vec![
                backend(1, at(600), &json!({})), backend(2, at(650), &json!({})),
                backend(3, at(50), &dead), backend(4, 70, &drained)]),
            service("quic", "healthy", at(90_000), vec![
                backend(1, at(60_000), &json!({"weight": 200})), backend(2, at(30_000), &json!({}))]),
            service("api-of-the-integrations-partners", "down", 0, vec![backend(9, 0, &dead)]),
        ],
        "verdicts": {"forward": at(91_300), "drop.no_backend": at(20), "drop.fragment": 3, "drop.too_big": 0},
        "flow_table": {"size": 1_048_576, "entries": 262_144, "evictions": {"established": 7, "expired": at(1)}},
        "nat": {"size": 262_144, "entries": 0},
    }))
    .unwrap()
}

fn events() -> Vec<Recorded> {
    let event = |seq: u64, severity: &str, text: &str, rest: Value| {
        let mut event = json!({"seq": seq, "time": format!("2026-03-01T12:00:0{seq}.310Z"), "severity": severity,
            "text": text});
        event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    };
    let health = json!({"event": "health", "service": "web", "backend": "web3", "from": "healthy",
        "to": "unhealthy", "reason": "no answer", "lasted_ms": 61_000});
    let applied = json!({"event": "applied", "by": "apply", "revision": 4, "changes": [], "changes_total": 0,
        "flows_lost": 0});
    let drained = json!({"event": "drained", "service": "web", "backend": "web4"});
    vec![
        event(1, "info", "apply: revision 4 is in force: 1 change", applied),
        event(2, "warn", "service web: backend web3: healthy \u{2192} unhealthy: no answer", health),
        event(3, "info", "service web: backend web4: drained: no live flow is left", drained),
    ]
}

fn sample() -> Top {
    let mut top = Top::default();
    for second in 1..=40 {
        top.update(live(Some(&snapshot(second - 1)), &snapshot(second), 1.0), events());
    }
    top
}

fn buffer(top: &Top, width: u16, height: u16, look: &Look) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, top, look)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let line = |cells: &[ratatui::buffer::Cell]| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        format!("{}\n", line.trim_end())
    };
    buffer.content.chunks(width).map(line).collect()
}

/// Compares with what was saved; `SLUICE_BLESS=1` saves what is.
fn is_as_saved(name: &str, screen: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/screen/saved").join(name);
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::write(&file, screen).unwrap();
    }
    let saved = std::fs::read_to_string(&file).unwrap();
    assert!(saved == screen, "{name} was:\n{saved}\nand is:\n{screen}");
}

fn press(top: &mut Top, keys: &[KeyCode]) -> Option<Command> {
    keys.iter().fold(None, |_, &key| top.on_key(KeyEvent::new(key, KeyModifiers::NONE)))
}

fn type_in(top: &mut Top, keys: &str) -> Option<Command> {
    press(top, &keys.chars().map(KeyCode::Char).collect::<Vec<_>>())
}

#[test]
fn screens_are_as_saved() {
    let mut top = sample();
    press(&mut top, &[KeyCode::Down, KeyCode::Down, KeyCode::Down]);
    is_as_saved("80x24.txt", &text(&buffer(&top, 80, 24, &COLOURED)));
    is_as_saved("80x24-plain.txt", &text(&buffer(&top, 80, 24, &PLAIN)));
    is_as_saved("140x36.txt", &text(&buffer(&top, 140, 36, &COLOURED)));
    type_in(&mut top, "?");
    is_as_saved("80x24-help.txt", &text(&buffer(&top, 80, 24, &COLOURED)));
    press(&mut top, &[KeyCode::Esc, KeyCode::Enter, KeyCode::Char('d')]);
    is_as_saved("80x24-drain.txt", &text(&buffer(&top, 80, 24, &COLOURED)));
}

#[test]
fn every_size_is_drawn_and_the_selected_line_is_in_sight() {
    let mut top = sample();
    for width in [1, 20, 39, 60, 80, 109, 110, 300] {
        for height in [1, 3, 6, 7, 14, 24, 60] {
            buffer(&top, width, height, &COLOURED);
        }
    }
    for _ in 0..20 {
        let (rows, at) = top.rows();
        let name = match rows[at] {
            Row::Service(service) => format!("{:.6}", service.name),
            Row::Backend(_, backend) => format!("  {}", backend.name),
        };
        let drawn = buffer(&top, 50, 12, &COLOURED);
        let reversed = drawn.content.chunks(50).find(|line| line[0].modifier.contains(look_reversed()));
        let line: String = reversed.expect("a selected line").iter().map(|cell| cell.symbol()).collect();
        assert!(line.contains(&name), "{name}: {line}");
        press(&mut top, &[KeyCode::Down]);
    }
}

fn look_reversed() -> ratatui::style::Modifier {
    ratatui::style::Modifier::REVERSED
}

#[test]
fn without_colour_there_is_none_and_what_is_wrong_is_still_marked() {
    let mut top = sample();
    top.gone = Some("no agent answers".to_owned());
    let plain = buffer(&top, 80, 24, &PLAIN);
    assert!(plain.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    assert!(text(&plain).is_ascii() || text(&plain).contains('\u{2192}'), "only what events bring along");
    assert!(
        text(&plain).contains("\n!  web3") && text(&plain).contains("DOES NOT ANSWER"),
        "{}",
        text(&plain)
    );
    let coloured = buffer(&top, 80, 24, &COLOURED);
    assert!(coloured.content.iter().any(|cell| cell.fg == Color::Red));
}

#[test]
fn an_interface_that_the_program_is_not_on_is_named() {
    let mut snapshot = snapshot(1);
    snapshot.agent.not_attached = vec!["eth1".into()];
    let mut head = |no_attach: bool| {
        snapshot.agent.no_attach = no_attach;
        let mut top = Top::default();
        top.update(live(None, &snapshot, 1.0), events());
        text(&buffer(&top, 80, 24, &PLAIN))
    };
    assert!(head(false).contains("eth0 (driver)") && head(false).contains("NOT ON eth1"), "{}", head(false));
    assert!(!head(true).contains("NOT ON"), "it was not to be attached");
}

#[test]
fn lines_are_sorted_filtered_and_opened() {
    let mut top = sample();
    let names = |top: &Top| -> Vec<String> {
        let name = |row: &Row<'_>| row.key().backend.unwrap_or(row.key().service);
        top.rows().0.iter().map(name).collect()
    };
    let api = "api-of-the-integrations-partners";
    assert_eq!(names(&top), ["web", "web1", "web2", "web3", "web4", "quic", "web1", "web2", api, "web9"]);
    type_in(&mut top, "s");
    assert_eq!(names(&top)[0], api, "by name");
    type_in(&mut top, "s");
    assert_eq!(names(&top)[..5], ["quic", "web1", "web2", "web", "web2"], "by packets");
    type_in(&mut top, "r");
    assert_eq!(names(&top)[0], api, "reversed");
    type_in(&mut top, "rsss");
    assert_eq!(names(&top)[..4], [api, "web9", "web", "web3"], "what is wrong first");
    type_in(&mut top, "/1.13");
    assert!(matches!(top.mode, Mode::Filter));
    press(&mut top, &[KeyCode::Enter]);
    assert_eq!(names(&top), [api, "web9", "web", "web3"], "by the reason too");
    press(&mut top, &[KeyCode::Esc]);
    assert_eq!(names(&top).len(), 10);
    press(&mut top, &[KeyCode::Home, KeyCode::Down, KeyCode::Enter]);
    assert_eq!(names(&top), [api, "web9"]);
    press(&mut top, &[KeyCode::Esc]);
    assert_eq!(names(&top).len(), 10);
    assert_eq!(type_in(&mut top, "q"), Some(Command::Quit));
}

#[test]
fn nothing_is_changed_without_a_yes() {
    let mut top = sample();
    type_in(&mut top, "d");
    assert_eq!(top.notice.as_deref(), Some("select a backend first"));
    press(&mut top, &[KeyCode::Down]);
    for refusal in [KeyCode::Char('n'), KeyCode::Enter, KeyCode::Esc, KeyCode::Char('q')] {
        assert_eq!(press(&mut top, &[KeyCode::Char('d'), refusal]), None);
        assert_eq!((&top.mode, top.notice.as_deref()), (&Mode::Watch, Some("nothing was changed")));
    }
    let wish =
        |backend: &str, state| Wish { service: "web".into(), backend: backend.into(), state, revision: 4 };
    assert_eq!(type_in(&mut top, "dy"), Some(Command::Carry(wish("web1", "drain"))));
    type_in(&mut top, "e");
    assert_eq!(top.notice.as_deref(), Some("web1 of web is so already"));
    type_in(&mut top, "jjj");
    assert_eq!(type_in(&mut top, "ey"), Some(Command::Carry(wish("web4", "enabled"))));
}
