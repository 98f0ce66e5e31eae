//! Figures → drawings as SVG: bars to compare, curves to see growth.

use std::fmt::Write;

/// Sizes in pixels.
const WIDTH: f64 = 860.0;
const LABELS: f64 = 380.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 40.0;
const PLOT: f64 = 300.0;
const MARGIN: f64 = 60.0;

/// By turns.
const COLOURS: [&str; 8] =
    ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222"];

/// A bar: what it is of, how long it is, how far that spreads.
pub(crate) type Bar = (String, f64, f64);
/// A curve: what it is of, and its points.
pub(crate) type Curve = (String, Vec<(f64, f64)>);

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n",
        escaped(title)
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// Bars with whiskers, one below the other.
pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let mut svg = begin(&format!("{title} ({unit})"), HEAD + bars.len() as f64 * (BAR + 4.0) + 10.0);
    let longest = bars.iter().map(|(_, value, spread)| value + spread).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - 80.0) / longest;
    for (index, (label, value, spread)) in bars.iter().enumerate() {
        let y = HEAD + index as f64 * (BAR + 4.0);
        let (length, middle) = (value.max(0.0) * scale, y + BAR / 2.0);
        let [from, to] = [value - spread, value + spread].map(|end| LABELS + end.max(0.0) * scale);
        text(&mut svg, LABELS - 8.0, y + 12.0, "end", label);
        let colour = COLOURS[0];
        let _ = writeln!(
            svg,
            "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>"
        );
        text(&mut svg, to + 6.0, y + 12.0, "start", &format!("{value:.2}"));
    }
    svg + "</svg>\n"
}

/// Curves over logarithmic axes.
pub(crate) fn curves(title: &str, x_axis: &str, y_axis: &str, curves: &[Curve]) -> String {
    let mut svg = begin(title, HEAD + PLOT + MARGIN + curves.len() as f64 * 16.0);
    let points = || curves.iter().flat_map(|(_, points)| points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(pick)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)));
        (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0))
    };
    if points().next().is_none() {
        return svg + "</svg>\n";
    }
    let (x_range, y_range) = (range(|point| point.0), range(|point| point.1));
    let place = |value: f64, (low, high): (f64, f64)| (value.log10() - low) / (high - low);
    let x = |value| MARGIN + place(value, x_range) * (WIDTH - 2.0 * MARGIN);
    let y = |value| HEAD + PLOT - place(value, y_range) * PLOT;
    for power in y_range.0 as i32..=y_range.1 as i32 {
        let (at, value) = (y(10_f64.powi(power)), 10_f64.powi(power));
        let _ = writeln!(svg, "<path d=\"M{MARGIN} {at:.1}H{:.1}\" stroke=\"#dddddd\"/>", WIDTH - MARGIN);
        text(&mut svg, MARGIN - 4.0, at + 4.0, "end", &value.to_string());
    }
    for power in x_range.0 as i32..=x_range.1 as i32 {
        let value = 10_f64.powi(power);
        text(&mut svg, x(value), HEAD + PLOT + 16.0, "middle", &value.to_string());
    }
    text(&mut svg, WIDTH / 2.0, HEAD + PLOT + 34.0, "middle", &format!("{x_axis} → {y_axis}"));
    for (index, (label, points)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let shown = points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        let path: Vec<String> = shown.map(|point| format!("{:.1} {:.1}", x(point.0), y(point.1))).collect();
        if !path.is_empty() {
            let path = path.join("L");
            let _ =
                writeln!(svg, "<path d=\"M{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>");
        }
        let below = HEAD + PLOT + MARGIN - 8.0 + index as f64 * 16.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{MARGIN}\" y=\"{:.1}\" width=\"12\" height=\"8\" fill=\"{colour}\"/>",
            below - 8.0
        );
        text(&mut svg, MARGIN + 18.0, below, "start", label);
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_largest_value() {
        let svg = bars("a < b", "ns", &[("one".into(), 10.0, 0.0), ("two".into(), 20.0, 0.0)]);
        assert!(svg.contains("width=\"200.0\"") && svg.contains("width=\"400.0\""), "{svg}");
        assert!(svg.contains("a &lt; b (ns)"), "{svg}");
    }

    #[test]
    fn a_curve_goes_from_corner_to_corner() {
        let svg = curves("growth", "flows", "ns", &[("hit".into(), vec![(1.0, 1.0), (100.0, 10.0)])]);
        assert!(
            svg.contains(&format!("M{MARGIN:.1} {:.1}L{:.1} {HEAD:.1}", HEAD + PLOT, WIDTH - MARGIN)),
            "{svg}"
        );
        assert!(curves("none", "x", "y", &[]).ends_with("</svg>\n"));
    }
}
