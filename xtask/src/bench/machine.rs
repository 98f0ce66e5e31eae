//! This machine → what a reader of figures must know of it.

use std::fs;
use std::process::Command;

use crate::shell::output;

/// What figures were measured on, and with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// What was typed.
    pub(crate) command: String,
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// This one.
    pub(crate) fn look(command: String) -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let model = model.map_or("unknown", |(_, model)| model);
        let memory = read("/proc/meminfo").lines().next().and_then(gibibytes).unwrap_or_default();
        let first_line = |program: &str, argument: &str| {
            let text = output(Command::new(program).arg(argument)).unwrap_or_default();
            text.lines().next().unwrap_or("unknown").trim().to_owned()
        };
        let mitigation = read("/sys/devices/system/cpu/vulnerabilities/spectre_v2");
        let mut facts = vec![
            ("processor", format!("{model}, {processors} cores, {memory} GiB of memory")),
            ("kernel", first_line("uname", "-sr")),
            ("indirect branches", mitigation.trim().to_owned()),
            (
                "commit",
                output(Command::new("git").args(["describe", "--always", "--dirty"])).unwrap_or_default(),
            ),
            ("compiler", first_line("rustc", "--version")),
        ];
        for (name, argument) in [("haproxy", "-v"), ("nft", "--version")] {
            facts.push((name, first_line(name, argument)));
        }
        Self { command, facts }
    }

    /// As a table.
    pub(crate) fn markdown(&self) -> String {
        let row =
            |(name, value): &(&str, String)| format!("| {name} | {} |\n", value.trim().replace('|', "/"));
        let rows: String = self.facts.iter().map(row).collect();
        format!("| machine | |\n|---|---|\n{rows}")
    }
}

/// Of the first line of `/proc/meminfo`.
fn gibibytes(line: &str) -> Option<String> {
    let kibibytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(format!("{:.0}", kibibytes / 1024.0 / 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_gibibytes() {
        assert_eq!(gibibytes("MemTotal:       24689072 kB").as_deref(), Some("24"));
        assert_eq!(gibibytes(""), None);
    }

    #[test]
    fn a_machine_is_a_table() {
        let table = Machine::look("cargo xtask bench".to_owned()).markdown();
        assert!(table.contains("| kernel | Linux "), "{table}");
    }
}
