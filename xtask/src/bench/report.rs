//! Figures → tables for the terminal and for `BENCHMARKS.md`.

use super::figures::{Figure, Group};
use super::machine::Machine;
use super::targets::Outcome;

/// What stands before the part of `BENCHMARKS.md` that is written by hand, and stays.
pub(crate) const BY_HAND: &str = "<!-- What follows is written by hand, and kept by `cargo xtask bench`. -->";

/// One line of a table.
struct Row([String; 5]);

impl Row {
    fn of(figure: &Figure) -> Self {
        let ratio =
            figure.ratio.map_or(String::new(), |ratio| format!("{:.2} ± {:.2}", ratio.median, ratio.spread));
        let value = format!("{} {}", number(figure.value.median), figure.unit);
        let spread = format!("± {}", number(figure.value.spread));
        Self([figure.name.clone(), figure.who.clone(), value, spread, ratio])
    }
}

const HEADINGS: [&str; 5] = ["measured", "of", "value", "spread", "ratio"];

/// With three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.095 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The lines of one group for the terminal, as soon as it is measured.
pub(crate) fn lines(group: &Group) -> Vec<String> {
    let line = |figure: &Figure| {
        let Row([name, who, value, spread, ratio]) = Row::of(figure);
        format!("  {name:<52} {who:<18} {value:>16} {spread:<10} {ratio:>14}")
    };
    group.figures().iter().map(line).collect()
}

/// The targets for the terminal.
pub(crate) fn target_lines(outcomes: &[Outcome]) -> Vec<String> {
    let line = |outcome: &Outcome| {
        let Outcome { what, target, measured, met } = outcome;
        format!("  {} {what:<62} {target:<24} {measured:>9}", if *met { "✔" } else { "✘" })
    };
    outcomes.iter().map(line).collect()
}

/// What each part measures, for readers of the tables.
fn explanation(part: &str) -> &'static str {
    match part {
        "packet" => {
            "The program in the kernel by itself (`BPF_PROG_TEST_RUN`) on fresh frames: nanoseconds of CPU time a packet \
             above an empty program in its place; the ratio is that of the whole to the empty program, which includes what \
             making frames takes. \"Head growth\" only makes room for a tunnel's headers. \"One line of memory\" reads one at \
             random of a table as large as the one with the flows; \"waited for\": with nothing else done meanwhile. \"Remembering\": \
             with two hashes of the flow, a look through its bucket, a word written there, and a slot of a ring read, and nothing \
             checked."
        }
        "live" => {
            "Frames from a generator in the kernel over veth through the balancer to a sink that counts. Closed loop: all on \
             one core, packets a second of its CPU time. Overload: the balancer has a core to itself and is offered more \
             than it can take. The ratio is to a program that only rewrites the MAC addresses."
        }
        "customers" => {
            "`wrk` over veth: customers, balancer and web servers share the machine's cores, so that what the balancer takes \
             is missing elsewhere. The ratio is to a program that only rewrites the MAC addresses, which takes the place of Sluice's \
             for every other sample."
        }
        "attack" => {
            "Good traffic beside a flood of ever-new sources: what of it is kept, of what it was without the flood."
        }
        "control" => {
            "The agent: milliseconds and MiB. The ratio is to a fixed piece of work in the same run, which takes the \
             machine's speed out of it."
        }
        _ => "",
    }
}

/// All of `BENCHMARKS.md` but what is written by hand.
pub(crate) fn document(groups: &[Group], outcomes: &[Outcome], machine: &Machine, more: &[String]) -> String {
    let mut text = format!(
        "# Benchmarks\n\nThe last full run of `{}`. Ratios are of things measured in turns in one run, with half the distance \
         between the quartiles; all other figures are this machine's. The ratios are in `benchmarks.json` as well, which \
         `cargo xtask bench --check` compares a run with.\n\n{}\n## Targets\n\n",
        machine.command,
        machine.markdown()
    );
    let header = |cells: &[&str]| format!("| {} |\n|{}\n", cells.join(" | "), "---|".repeat(cells.len()));
    text += &header(&["measure", "target", "measured", "met"]);
    for Outcome { what, target, measured, met } in outcomes {
        text += &format!("| {what} | {target} | {measured} | {} |\n", if *met { "yes" } else { "**no**" });
    }
    let mut parts: Vec<&str> = groups.iter().map(|group| group.part.as_str()).collect();
    parts.dedup();
    for part in parts {
        text += &format!("\n## {part}\n\n{}\n\n{}", explanation(part), header(&HEADINGS));
        for figure in groups.iter().filter(|group| group.part == part).flat_map(Group::figures) {
            text += &format!("| {} |\n", Row::of(&figure).0.join(" | "));
        }
    }
    for section in more {
        text += &format!("\n{section}");
    }
    text + "\n" + BY_HAND + "\n"
}

/// What of a document was written by hand.
pub(crate) fn by_hand(document: &str) -> &str {
    document.split_once(BY_HAND).map_or("", |(_, rest)| rest.trim_start_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let told = [0.0, 0.012_34, 0.5, 7.25, 12.34, 1234.5, -3.0].map(number);
        assert_eq!(told, ["0", "0.0123", "0.50", "7.25", "12.3", "1234", "-3.00"]);
    }

    #[test]
    fn what_is_written_by_hand_is_kept() {
        let first = document(&[], &[], &Machine::default(), &[]);
        assert_eq!(by_hand(&first), "");
        assert_eq!(by_hand(&format!("{first}\n## What was learnt\n")), "## What was learnt\n");
        assert_eq!(by_hand("something else"), "");
    }

    #[test]
    fn every_figure_has_a_line() {
        let line =
            r#"{"part":"live","name":"64 K","unit":"Mpps","series":{"l2-dsr":[3,3],"bare XDP":[4,4]}}"#;
        let group = Group::parse(line).expect("a group");
        assert_eq!(lines(&group).len(), 2);
        let text = document(&[group], &[], &Machine::default(), &["## More\n".to_owned()]);
        assert!(text.contains("| 64 K | l2-dsr | 3.00 Mpps | ± 0 | 0.75 ± 0.00 |\n"), "{text}");
        assert!(text.contains("\n## More\n"), "{text}");
    }
}
