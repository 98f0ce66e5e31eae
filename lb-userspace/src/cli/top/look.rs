//! What the terminal can show → the styles and characters that are drawn with.

use ratatui::style::{Color, Modifier, Style};

use super::text::Glyphs;

/// How things are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) colour: bool,
    pub(super) glyphs: Glyphs,
}

impl Look {
    /// By the environment: no colour if `NO_COLOR` is set, plain characters unless the locale says UTF-8.
    pub(super) fn from_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let unicode = locale.to_lowercase().replace('-', "").ends_with("utf8");
        Self {
            colour: set("NO_COLOR").is_none(),
            glyphs: if unicode { Glyphs::UNICODE } else { Glyphs::ASCII },
        }
    }

    fn coloured(&self, style: Style, colour: Color) -> Style {
        if self.colour { style.fg(colour) } else { style }
    }

    /// For what is as bad as this, as [`Row::alarm`](super::rows::Row::alarm) says.
    pub(super) fn alarm(&self, alarm: u8) -> Style {
        match alarm {
            0 => self.coloured(Style::new(), Color::Green),
            1 => self.coloured(Style::new(), Color::Yellow),
            _ => self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Red),
        }
    }

    pub(super) fn title(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn trail(&self) -> Style {
        self.coloured(Style::new(), Color::Cyan)
    }

    pub(super) fn selected(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}
