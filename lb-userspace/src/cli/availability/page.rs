//! A report on availability → a page for a browser that needs nothing else.

use std::fmt::Write;

use super::{cause, covered, failover, length, lost, named, outage, share, summed_up, when, who};
use crate::core::report::{MAX_LISTED, Report, Status};

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#667;--line:#d5d9e0;\
--healthy:#2a9d5c;--degraded:#e0b020;--failing-open:#e07020;--down:#cc2f3b;--unknown:#b8bec8}\
@media(prefers-color-scheme:dark){:root{--fg:#e4e7ec;--bg:#15181d;--soft:#98a;--line:#343a44;--unknown:#4a515d}}\
body{font:15px/1.45 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:70rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}p{color:var(--soft)}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--soft);font-weight:600}td.n{white-space:nowrap}\
.bar{display:block;width:100%;height:1.3rem;border-radius:.2rem}\
.healthy{fill:var(--healthy);background:var(--healthy)}.degraded{fill:var(--degraded);background:var(--degraded)}\
.failing-open{fill:var(--failing-open);background:var(--failing-open)}.down{fill:var(--down);background:var(--down)}\
.unknown{fill:var(--unknown);background:var(--unknown)}\
.key span{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;margin:0 .3rem 0 1rem}\
@media print{body{margin:0}}";

/// The page.
pub(super) fn render(report: &Report) -> String {
    let title = format!("Availability, {} to {}", when(report.since), when(report.until));
    let mut body = format!("<h1>{}</h1>", escape(&title));
    for line in covered(report) {
        body.push_str(&format!("<p>{}</p>", escape(&line)));
    }
    body.push_str(&summary(report));
    body.push_str(&timelines(report));
    let outages = report
        .services
        .iter()
        .flat_map(|service| service.outages.last.iter().map(move |item| named(service, outage(item))));
    body.push_str(&section(
        "Outages: too few healthy backends",
        &["service", "status", "from", "length", ""],
        outages,
    ));
    let failovers = report
        .services
        .iter()
        .flat_map(|service| service.failovers.last.iter().map(move |item| named(service, failover(item))));
    let header = ["service", "backend", "from", "length", "reason"];
    body.push_str(&section("Failovers: a backend was out", &header, failovers));
    let gaps = report
        .record
        .gaps
        .last
        .iter()
        .map(|gap| vec![when(gap.from), gap.until.map_or("now".to_owned(), when), cause(gap).to_owned()]);
    body.push_str(&section("Not watched", &["from", "until", "why"], gaps));
    body.push_str(&changes(report));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"content-security-policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>",
        escape(&title)
    )
}

fn summary(report: &Report) -> String {
    let header = [
        "service",
        "available",
        "healthy",
        "degraded",
        "failing open",
        "down",
        "unknown",
        "outages",
        "longest outage",
        "failovers",
        "longest failover",
    ];
    section("Services", &header, report.services.iter().map(summed_up))
}

/// A bar for each service, over the time that is reported on.
fn timelines(report: &Report) -> String {
    let (since, until) = (report.since.as_millisecond(), report.until.as_millisecond());
    let whole = (until - since).max(1) as f64;
    let mut text = "<h2>Over the time</h2><p class=\"key\">".to_owned();
    for status in Status::ALL {
        let _ = write!(text, "<span class=\"{}\"></span>{}", class(status), status.name());
    }
    text.push_str("</p><div class=\"scroll\"><table>");
    for service in &report.services {
        let _ = write!(
            text,
            "<tr><td class=\"n\">{}</td><td style=\"width:80%\"><svg class=\"bar\" viewBox=\"0 0 1000 10\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"available: {}\">",
            escape(&service.name),
            share(service.availability)
        );
        for period in &service.periods.last {
            let (from, to) = (period.from.as_millisecond(), period.until.as_millisecond());
            let x = (from - since) as f64 / whole * 1_000.0;
            // What is too short to be seen is shown all the same.
            let width = ((to - from) as f64 / whole * 1_000.0).max(0.5);
            let _ = write!(
                text,
                "<rect class=\"{}\" x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"10\"><title>{} from {} for {}</title></rect>",
                class(period.status),
                period.status.name(),
                when(period.from),
                length((to - from) as f64 / 1_000.0)
            );
        }
        text.push_str("</svg></td></tr>");
    }
    text.push_str("</table></div>");
    text
}

fn class(status: Status) -> &'static str {
    match status {
        Status::Healthy => "healthy",
        Status::Degraded => "degraded",
        Status::FailingOpen => "failing-open",
        Status::Down => "down",
        Status::Unknown => "unknown",
    }
}

fn changes(report: &Report) -> String {
    let lines = report.changes.last.iter().map(|change| {
        vec![
            change.revision.to_string(),
            when(change.at),
            change.uid.map_or("agent".to_owned(), who),
            change.what.clone(),
            change.values.to_string(),
            lost(change),
        ]
    });
    let header = ["revision", "when", "who", "what", "values changed", "flows lost"];
    let begin = report.record.changes_begin.filter(|begin| *begin > report.since);
    let known = begin.map_or(String::new(), |begin| format!("<p>Known since {}.</p>", when(begin)));
    let refused = format!("<p>Changes that were refused: {}</p>", report.refused);
    section("Changes", &header, lines) + &known + &refused
}

/// A heading and a table; nothing if it has no lines.
fn section(title: &str, header: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut rows = String::new();
    for line in lines.take(MAX_LISTED) {
        let cells: Vec<String> = line.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = write!(rows, "<tr>{}</tr>", cells.concat());
    }
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<String> = header.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let (title, header) = (escape(title), header.concat());
    format!("<h2>{title}</h2><div class=\"scroll\"><table><tr>{header}</tr>{rows}</table></div>")
}

/// A text that is no markup.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup_that_was_told_of() {
        assert_eq!(escape("<b a=\"1\" c='2'>&"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
        let row = section("<i>", &["<u>"], [vec!["<script>".to_owned()]].into_iter());
        assert!(!row.contains("<i>") && !row.contains("<u>") && !row.contains("<script>"), "{row}");
        assert_eq!(section("empty", &[], std::iter::empty()), "");
    }
}
