//! Who may depend on whom: turns what cargo knows of the packages into the dependencies that are not allowed.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Problem, words};
use crate::shell::{cargo, root};

/// What a package may depend on, tests apart.
enum Allowed {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

const RULES: [(&str, Allowed); 5] = [
    ("lb-common", Allowed::Only(&["network-types", "aya"])),
    ("lb-ebpf", Allowed::Only(&["lb-common", "aya-ebpf", "aya-log-ebpf"])),
    ("lb-userspace", Allowed::AllBut(&["lb-tests", "xtask"])),
    // The lab must build before the eBPF toolchain is there.
    ("lb-tests", Allowed::AllBut(&["lb-userspace", "lb-common", "aya", "xtask"])),
    ("xtask", Allowed::AllBut(&["lb-userspace", "lb-common", "aya"])),
];

/// How a lock file marks a crate of a registry; another than cargo's own would be named in a `[registries]` section.
const REGISTRY: &str = "registry+";

/// Asks cargo about the workspace and the eBPF crate, and looks at the lock files.
pub(crate) fn check_workspace() -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for manifest in ["Cargo.toml", "lb-ebpf/Cargo.toml"] {
        let arguments = ["metadata", "--no-deps", "--format-version=1", "--manifest-path", manifest];
        let metadata = words(cargo().args(arguments))?;
        problems
            .extend(dependencies(&serde_json::from_str(&metadata).context("cargo metadata is not JSON")?));
    }
    for file in ["Cargo.lock", "lb-ebpf/Cargo.lock", "fuzz/Cargo.lock", ".cargo/config.toml"] {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("reading {file}"))?;
        problems.extend(registries(file, &text));
    }
    Ok(problems)
}

/// What `cargo metadata` tells of dependencies that are not allowed.
fn dependencies(metadata: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = RULES.iter().find(|(package, _)| *package == name) else { continue };
        for dependency in list(&package["dependencies"]) {
            let on = dependency["name"].as_str().unwrap_or_default();
            let fine = match allowed {
                Allowed::Only(names) => names.contains(&on),
                Allowed::AllBut(names) => !names.contains(&on),
            };
            // Tests and build scripts may know more; their kind is "dev" or "build".
            let mut message = None;
            if dependency["kind"].is_null() && !fine {
                message = Some(format!("{name} must not depend on {on}"));
            } else if name == "lb-common" && on == "aya" && dependency["optional"] != true {
                message = Some("lb-common may depend on aya only under its feature `user`".to_owned());
            }
            problems.extend(message.map(|message| Problem {
                path: format!("{name}/Cargo.toml"),
                line: 1,
                message,
            }));
        }
    }
    problems
}

/// Sources of crates that only exist where somebody happened to build.
fn registries(path: &str, text: &str) -> Vec<Problem> {
    let foreign = |line: &str| {
        let source = line.trim().strip_prefix("source = \"").map(|rest| rest.trim_end_matches('"'));
        source.is_some_and(|source| !source.starts_with(REGISTRY))
            || line.trim().starts_with("[source")
            || line.trim().starts_with("[registries")
    };
    let lines = text.lines().enumerate().filter(|(_, line)| foreign(line));
    lines
        .map(|(number, line)| Problem {
            path: path.to_owned(),
            line: number + 1,
            message: format!("crates come from cargo's own registry only: {}", line.trim()),
        })
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(package: &str, dependency: &Value) -> Vec<String> {
        let metadata = json!({"packages": [{"name": package, "dependencies": [dependency]}]});
        dependencies(&metadata).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn dependencies_go_one_way() {
        for (package, on) in [
            ("lb-common", "serde"),
            ("lb-ebpf", "aya"),
            ("lb-userspace", "lb-tests"),
            ("lb-tests", "lb-userspace"),
            ("xtask", "lb-common"),
        ] {
            let found = messages(package, &json!({"name": on, "kind": null, "optional": false}));
            assert_eq!(found, [format!("{package} must not depend on {on}")]);
            assert!(messages(package, &json!({"name": on, "kind": "dev", "optional": false})).is_empty());
        }
        assert!(messages("lb-ebpf", &json!({"name": "lb-common", "kind": null})).is_empty());
    }

    #[test]
    fn aya_is_an_option_of_lb_common() {
        assert!(messages("lb-common", &json!({"name": "aya", "kind": null, "optional": true})).is_empty());
        assert_eq!(messages("lb-common", &json!({"name": "aya", "kind": null, "optional": false})).len(), 1);
    }

    #[test]
    fn crates_come_from_one_registry() {
        assert!(registries("Cargo.lock", &format!("source = \"{REGISTRY}…\"\n")).is_empty());
        assert_eq!(registries("Cargo.lock", "source = \"git+https://code.example/crate\"\n").len(), 1);
        assert_eq!(registries(".cargo/config.toml", "[registries.mirror]\n").len(), 1);
        assert_eq!(registries(".cargo/config.toml", "[alias]\n[source.crates-io]\n")[0].line, 2);
    }
}
