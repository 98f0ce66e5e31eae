//! Snapshots, events and keys → what `sluice top` shows next, and what it asks of the agent. No terminal, no clock.

use std::collections::BTreeMap;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rows::{Key, Row, Selection, rows};
use super::text::Trail;
use crate::core::events::Recorded;
use crate::core::live::Live;

/// Longest filter that is taken.
const MAX_FILTER: usize = 64;
/// How far a page goes.
const PAGE: usize = 10;

/// What the keys mean at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// They move and choose.
    #[default]
    Watch,
    /// They are typed into the filter.
    Filter,
    /// They say whether this is to be done.
    Confirm(Wish),
    /// Any one ends the help.
    Help,
}

/// A backend's state that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) service: String,
    pub(super) backend: String,
    /// `drain` or `enabled`.
    pub(super) state: &'static str,
    /// The revision it rests on.
    pub(super) revision: u64,
}

impl Wish {
    /// What it does, as a question.
    pub(super) fn question(&self) -> String {
        let Self { service, backend, state, .. } = self;
        match *state {
            "drain" => format!("Drain {backend} of {service}: no new flows, established ones stay?"),
            _ => format!("Enable {backend} of {service}: it takes new flows?"),
        }
    }
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    /// Have the agent do this.
    Carry(Wish),
    /// Draw everything anew.
    Redraw,
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Top {
    pub(super) live: Option<Live>,
    pub(super) events: Vec<Recorded>,
    pub(super) selection: Selection,
    pub(super) selected: Option<Key>,
    pub(super) mode: Mode,
    /// What came of the last wish.
    pub(super) notice: Option<String>,
    /// Why the agent does not answer.
    pub(super) gone: Option<String>,
    pub(super) paused: bool,
    pub(super) total: Trail,
    pub(super) trails: BTreeMap<Key, Trail>,
}

impl Top {
    /// What happens right now.
    pub(super) fn update(&mut self, live: Live, events: Vec<Recorded>) {
        if live.seconds > 0.0 {
            self.total.push(live.total.packets_per_second);
            let mut trails = BTreeMap::new();
            for row in rows(&live, &Selection::default()) {
                let key = row.key();
                let mut trail = self.trails.remove(&key).unwrap_or_default();
                trail.push(row.rate().packets_per_second);
                trails.insert(key, trail);
            }
            self.trails = trails;
        }
        if self.selection.focus.as_ref().is_some_and(|name| !live.services.iter().any(|s| s.name == *name)) {
            self.selection.focus = None;
        }
        (self.live, self.events, self.gone) = (Some(live), events, None);
    }

    /// The lines of the table, and which of them is selected.
    pub(super) fn rows(&self) -> (Vec<Row<'_>>, usize) {
        let rows = self.live.as_ref().map(|live| rows(live, &self.selection)).unwrap_or_default();
        let at = self.selected.as_ref().and_then(|key| rows.iter().position(|row| row.key() == *key));
        (rows, at.unwrap_or(0))
    }

    /// A key was pressed.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> Option<Command> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Command::Quit),
                KeyCode::Char('l') => Some(Command::Redraw),
                _ => None,
            };
        }
        self.notice = None;
        match std::mem::take(&mut self.mode) {
            Mode::Watch => return self.on_watch(key.code),
            Mode::Filter => self.on_filter(key.code),
            Mode::Confirm(wish) if matches!(key.code, KeyCode::Char('y' | 'Y')) => {
                return Some(Command::Carry(wish));
            }
            Mode::Confirm(_) => self.notice = Some("nothing was changed".to_owned()),
            Mode::Help => {}
        }
        None
    }

    fn on_filter(&mut self, code: KeyCode) {
        let filter = &mut self.selection.filter;
        match code {
            KeyCode::Enter => return,
            KeyCode::Esc => return filter.clear(),
            KeyCode::Backspace => drop(filter.pop()),
            KeyCode::Char(letter) if filter.len() < MAX_FILTER => filter.push(letter),
            _ => {}
        }
        self.mode = Mode::Filter;
    }

    fn on_watch(&mut self, code: KeyCode) -> Option<Command> {
        match code {
            KeyCode::Char('q') => return Some(Command::Quit),
            KeyCode::Up | KeyCode::Char('k') => self.go(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at, _| at + 1),
            KeyCode::PageUp => self.go(|at, _| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|at, _| at + PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_, _| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_, last| last),
            KeyCode::Enter | KeyCode::Right => self.open(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.back(),
            KeyCode::Char('s') => self.selection.sort = self.selection.sort.next(),
            KeyCode::Char('r') => self.selection.reversed = !self.selection.reversed,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('d') => self.wish("drain"),
            KeyCode::Char('e') => self.wish("enabled"),
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            _ => {}
        }
        None
    }

    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        let (rows, at) = self.rows();
        let last = rows.len().saturating_sub(1);
        let selected = rows.get(to(at, last).min(last)).map(Row::key);
        self.selected = selected;
    }

    /// Only the selected line's service from here on.
    fn open(&mut self) {
        let (rows, at) = self.rows();
        if let Some(key) = rows.get(at).map(Row::key) {
            self.selection.focus = Some(key.service.clone());
            self.selected = Some(key);
        }
    }

    /// All services again; if they are all there, without the filter.
    fn back(&mut self) {
        if self.selection.focus.take().is_none() {
            self.selection.filter.clear();
        }
    }

    /// Asks whether the selected backend is to be in this state.
    fn wish(&mut self, state: &'static str) {
        let (rows, at) = self.rows();
        let chosen = match rows.get(at) {
            Some(Row::Backend(service, backend)) if backend.state == state => {
                Err(format!("{} of {} is so already", backend.name, service.name))
            }
            Some(Row::Backend(service, backend)) => Ok((service.name.clone(), backend.name.clone())),
            _ => Err("select a backend first".to_owned()),
        };
        let revision = self.live.as_ref().map_or(0, |live| live.agent.revision);
        match chosen {
            Ok((service, backend)) => self.mode = Mode::Confirm(Wish { service, backend, state, revision }),
            Err(why) => self.notice = Some(why),
        }
    }
}
