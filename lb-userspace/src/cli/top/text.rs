//! Numbers and their course → short texts that fit a column.

use std::collections::VecDeque;

/// Values that are remembered for each line.
const TRAIL: usize = 120;

/// A quantity in at most five characters: `7`, `0.3`, `950`, `12.3k`, `1.20M`.
pub(super) fn short(value: f64) -> String {
    let mut value = value.max(0.0);
    let mut units = ["", "k", "M", "G", "T", "P"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 999.5
        && let Some(larger) = units.next()
    {
        (value, unit) = (value / 1_000.0, larger);
    }
    let decimals = match (unit, value) {
        ("", value) => usize::from(value.fract() != 0.0 && value < 9.95),
        (_, value) if value < 9.995 => 2,
        (_, value) if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A share in at most five characters: `0%`, `33.3%`, `100%`.
pub(super) fn share(share: f64) -> String {
    match share * 100.0 {
        percent if percent <= 0.0 => "0%".to_owned(),
        percent if percent >= 99.95 => "100%".to_owned(),
        percent => format!("{percent:.1}%"),
    }
}

/// A short time in at most six characters: `950us`, `1.2ms`, `2.5s`.
pub(super) fn span(seconds: f64) -> String {
    let (value, unit) = match seconds.max(0.0) {
        seconds if seconds < 999.5e-6 => (seconds * 1e6, "us"),
        seconds if seconds < 999.5e-3 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    let decimals = usize::from(value < 9.95 && unit != "us");
    format!("{value:.decimals$}{unit}")
}

/// A time in seconds as people read it: its two largest units.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// The last values of a rate, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(VecDeque<f64>);

impl Trail {
    pub(super) fn push(&mut self, value: f64) {
        if self.0.len() >= TRAIL {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// A line of `width` characters, the latest value on the right; the highest level is the largest value in sight.
    pub(super) fn draw(&self, width: usize, glyphs: &Glyphs) -> String {
        let shown = self.0.len().min(width);
        let values = || self.0.iter().skip(self.0.len() - shown);
        let most = values().fold(0.0_f64, |most, &value| most.max(value));
        let level = |value: f64| {
            let top = glyphs.levels.len().saturating_sub(1);
            let at = if most > 0.0 { (value / most * top as f64).ceil() as usize } else { 0 };
            glyphs.levels.get(at.min(top)).copied().unwrap_or(' ')
        };
        let blank = std::iter::repeat_n(' ', width - shown);
        blank.chain(values().map(|&value| level(value))).collect()
    }
}

/// What is drawn with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glyphs {
    levels: &'static [char],
    /// A part of a bar that is full, and one that is not.
    pub(super) bar: [char; 2],
    /// The keys that move up and down.
    pub(super) arrows: &'static str,
}

impl Glyphs {
    /// For a terminal that shows Unicode.
    pub(super) const UNICODE: Self =
        Self {
            levels: &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'], bar: ['█', '░'], arrows: "↑↓"
        };
    /// For one that does not.
    pub(super) const ASCII: Self =
        Self { levels: &['_', '.', '-', ':', '=', '+', '*', '#'], bar: ['#', '.'], arrows: "j/k" };

    /// A bar of `width` characters that is full to this share.
    pub(super) fn bar(&self, share: f64, width: usize) -> String {
        let full = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
        let [on, off] = self.bar;
        std::iter::repeat_n(on, full).chain(std::iter::repeat_n(off, width - full)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.34, "0.3"),
            (3.0, "3"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_340.0, "12.3k"),
            (99_960.0, "100k"),
            (999_600.0, "1.00M"),
            (4.2e9, "4.20G"),
            (-1.0, "0"),
        ] {
            assert_eq!(short(value), text, "{value}");
        }
        assert_eq!([0.0, 0.0004, 1.0 / 3.0, 0.9996].map(share), ["0%", "0.0%", "33.3%", "100%"]);
        assert_eq!(duration(3_725), "1 h 2 min");
        let spans = [0.0, 16.4e-6, 999.4e-6, 1.23e-3, 0.9994, 4.29].map(span);
        assert_eq!(spans, ["0us", "16us", "999us", "1.2ms", "999ms", "4.3s"]);
    }

    #[test]
    fn a_trail_keeps_the_latest_and_scales_by_what_is_seen() {
        let mut trail = Trail::default();
        assert_eq!(trail.draw(3, &Glyphs::ASCII), "   ");
        for value in [1_000.0, 0.0, 1.0, 7.0] {
            trail.push(value);
        }
        assert_eq!(trail.draw(3, &Glyphs::ASCII), "_.#", "the first is out of sight");
        assert_eq!(trail.draw(5, &Glyphs::UNICODE), " █▁▂▂");
        (0..500).for_each(|_| trail.push(0.0));
        assert_eq!(trail.0.len(), TRAIL);
        assert_eq!(Glyphs::ASCII.bar(0.5, 4), "##..");
    }
}
