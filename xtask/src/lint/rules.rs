//! The rules that one file can break: turns a source into the problems in it.

use super::Problem;
use super::source::{Source, is_word};

/// Files stay near or under 400 lines, their unit tests not counted; here "near" ends.
const MAX_LINES: usize = 450;

/// Words that must not stand in some places.
struct Ban {
    /// What the rule says.
    rule: &'static str,
    /// Whether it holds in this file.
    holds: fn(path: &str) -> bool,
    words: &'static [&'static str],
}

const BANS: [Ban; 4] = [
    Ban {
        rule: "packet memory is touched only in lb-ebpf/src/packet.rs",
        holds: |path| path.starts_with("lb-ebpf/") && path != "lb-ebpf/src/packet.rs",
        words: &[
            ".data()",
            ".data_end()",
            ".metadata()",
            "data_end",
            "bpf_xdp_load_bytes",
            "bpf_xdp_store_bytes",
            "bpf_xdp_adjust_head",
            "bpf_xdp_adjust_tail",
        ],
    },
    Ban {
        rule: "maps are declared only in each program's maps.rs in lb-ebpf/src",
        holds: |path| !(path.starts_with("lb-ebpf/src/") && path.ends_with("/maps.rs")),
        words: &["#[btf_map", "#[map"],
    },
    Ban {
        rule: "the core is pure: no aya, tokio, files, sockets, processes or clock",
        holds: |path| path.starts_with("lb-userspace/src/core"),
        words: &[
            "aya::",
            "tokio::",
            "fs::",
            "std::process",
            "std::env",
            "std::os",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "UnixListener",
            "Instant::now",
            "SystemTime::now",
            "thread::",
        ],
    },
    Ban {
        rule: "the core knows nothing of what uses it",
        holds: |path| path.starts_with("lb-userspace/src/core"),
        words: &["crate::io", "crate::agent", "crate::cli"],
    },
];

/// Every rule on one file.
pub(crate) fn check(source: &Source) -> Vec<Problem> {
    let mut problems = banned_words(source);
    problems.extend(header(source));
    problems.extend(length(source));
    problems.extend(reminders(source));
    problems
}

fn banned_words(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for ban in BANS.iter().filter(|ban| (ban.holds)(&source.path)) {
        for (number, line) in source.code.iter().enumerate() {
            for word in ban.words.iter().filter(|word| contains_word(line, word)) {
                problems.push(problem(source, number + 1, format!("`{word}`: {}", ban.rule)));
            }
        }
    }
    problems
}

/// Whether `word` stands in `line` and not as the end of a longer word.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        !word.starts_with(is_word) || !before.is_some_and(is_word)
    })
}

fn header(source: &Source) -> Option<Problem> {
    let first = source.text.lines().next().unwrap_or_default();
    let says_something = first.strip_prefix("//!").is_some_and(|words| words.trim().len() > 10);
    (!says_something && !source.is_tests()).then(|| {
        problem(source, 1, "a module begins with a `//!` sentence: what it turns into what".to_owned())
    })
}

fn length(source: &Source) -> Option<Problem> {
    let lines = source.code.len();
    (lines > MAX_LINES)
        .then(|| problem(source, lines, format!("{lines} lines, more than {MAX_LINES}: this is two modules")))
}

/// A reminder without a reason is never acted on: `TODO(why): what`.
fn reminders(source: &Source) -> Vec<Problem> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut problems = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for mark in marks {
            let without_reason = line.match_indices(mark).any(|(at, _)| {
                let before = line.get(..at).and_then(|before| before.chars().next_back());
                let after = line.get(at + mark.len()..).unwrap_or_default();
                let longer = before.is_some_and(is_word) || after.starts_with(is_word);
                let has_reason = after.starts_with('(') && after.contains("):");
                !(longer || has_reason)
            });
            if without_reason {
                problems.push(problem(
                    source,
                    number + 1,
                    format!("{mark} without a reason: `{mark}(why): what`"),
                ));
            }
        }
    }
    problems
}

fn problem(source: &Source, line: usize, message: String) -> Problem {
    Problem { path: source.path.clone(), line, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! Frames into verdicts.\n";

    fn problems(path: &str, text: &str) -> Vec<(usize, String)> {
        let found = check(&Source::new(path, &format!("{HEADER}{text}")));
        found.into_iter().map(|problem| (problem.line, problem.message)).collect()
    }

    fn breaks(path: &str, text: &str, rule: &str) {
        let found = problems(path, text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].1.contains(rule), "{found:?}");
        assert_eq!(found[0].0, 2);
    }

    #[test]
    fn packet_memory_has_one_place() {
        let code = "let start = context.data();";
        breaks("lb-ebpf/src/main.rs", code, "packet memory");
        assert_eq!(problems("lb-ebpf/src/packet.rs", code), []);
        assert_eq!(problems("lb-userspace/src/io/api.rs", code), []);
    }

    #[test]
    fn maps_have_one_place() {
        let code = "#[btf_map(name = \"flows\")]";
        breaks("lb-ebpf/src/main.rs", code, "maps are declared");
        breaks("lb-common/src/abi.rs", "#[map]", "maps are declared");
        breaks("lb-common/src/maps.rs", code, "maps are declared");
        assert_eq!(problems("lb-ebpf/src/maps.rs", code), []);
        assert_eq!(problems("lb-ebpf/src/decap/maps.rs", code), []);
    }

    #[test]
    fn the_core_is_pure() {
        for code in [
            "use aya::Pod;",
            "let text = fs::read_to_string(path);",
            "let now = Instant::now();",
            "let s = std::net::TcpStream::connect(address);",
            "async fn a() { tokio::spawn(f) }",
        ] {
            breaks("lb-userspace/src/core/health.rs", code, "the core is pure");
            assert_eq!(problems("lb-userspace/src/io/probes.rs", code), []);
        }
        breaks("lb-userspace/src/core/plan.rs", "use crate::io::datapath::Map;", "the core knows nothing");
        let allowed =
            "use std::net::{IpAddr, SocketAddr}; fn at(now: Instant, offs::Type) {} // tokio::spawn";
        assert_eq!(problems("lb-userspace/src/core/plan.rs", allowed), []);
    }

    #[test]
    fn a_module_says_what_it_does() {
        let found = check(&Source::new("xtask/src/ci.rs", "fn a() {}\n"));
        assert!(found.iter().any(|problem| problem.message.contains("begins with")), "{found:?}");
        let found = check(&Source::new("xtask/src/ci.rs", "//! x\n"));
        assert_eq!(found.len(), 1);
        assert!(check(&Source::new("xtask/src/ci/tests.rs", "use super::*;\n")).is_empty());
    }

    #[test]
    fn files_do_not_grow_without_end() {
        let long = "fn a() {}\n".repeat(MAX_LINES);
        let found = problems("lb-common/src/abi.rs", &long);
        assert!(found.len() == 1 && found[0].1.contains("two modules"), "{found:?}");
        let tests = format!("#[cfg(test)]\n{long}");
        assert_eq!(problems("lb-common/src/abi.rs", &tests), []);
    }

    #[test]
    fn a_reminder_has_a_reason() {
        let mark = concat!("TO", "DO");
        breaks("lb-common/src/abi.rs", &format!("// {mark}: later"), "without a reason");
        assert_eq!(problems("lb-common/src/abi.rs", &format!("// {mark}(kernel 7 has it): use it")), []);
        assert_eq!(problems("lb-common/src/abi.rs", &format!("let {mark}S = 1;")), []);
    }
}
