//! Debian packages: turns lists of packages into `apt-get` runs that are announced, quiet and start no services.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::shell::{announced, has_program, output};

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Whether this machine has apt.
pub(crate) fn available() -> bool {
    has_program("apt-get")
}

/// Whether every one of these packages can be installed.
pub(crate) fn known(packages: &[&str]) -> bool {
    refresh();
    packages.iter().all(|package| {
        let policy = output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
        policy.is_some_and(|policy| has_candidate(&policy))
    })
}

/// Whether a package is installed.
pub(crate) fn installed(package: &str) -> bool {
    let status = output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
    status.is_some_and(|status| status.ends_with(" installed"))
}

/// From each list of alternatives the first package that the machine knows.
pub(crate) fn choose(alternatives: &[&[&str]]) -> Result<Vec<String>> {
    let first = || alternatives.iter().filter_map(|names| names.first().copied()).collect::<Vec<_>>();
    if !available() {
        bail!("this is not a Debian-like machine; install by hand: {}", first().join(", "));
    }
    let chosen = alternatives.iter().map(|names| {
        let found = names.iter().find(|name| known(&[name]));
        found.map(|name| (*name).to_owned()).with_context(|| {
            format!("no package {} is known: `apt-get update`, then again", names.join(" or "))
        })
    });
    chosen.collect()
}

/// Installs packages; needs root.
pub(crate) fn install(what: &str, packages: &[String]) -> Result<()> {
    let mut apt = apt_get();
    apt.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    if !nix::unistd::geteuid().is_root() {
        bail!("root is needed to install {what}: `{}`", crate::shell::show(&apt));
    }
    refresh();
    let brings_nginx = packages.iter().any(|package| package == "nginx");
    let services_stay_off = Policy::set()?;
    announced(&format!("installing {what}"), &mut apt)?;
    drop(services_stay_off);
    if brings_nginx && has_program("systemctl") {
        // The package enables a server on port 80 for the next boot; the lab starts its own.
        announced(
            "keeping nginx from starting at boot",
            Command::new("systemctl").args(["disable", "nginx"]),
        )?;
    }
    Ok(())
}

/// Fetches the package lists, once a run.
fn refresh() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if nix::unistd::geteuid().is_root()
            && let Err(error) = announced("refreshing the package lists", apt_get().arg("update"))
        {
            // Old lists may do.
            eprintln!("  {error:#}");
        }
    });
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn has_candidate(policy: &str) -> bool {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    candidate.is_some_and(|version| version != "(none)")
}

/// Keeps packages from starting their services while it is held.
struct Policy {
    ours: bool,
}

impl Policy {
    fn set() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o755);
        let mut file = options.open(POLICY).with_context(|| format!("writing {POLICY}"))?;
        std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")?;
        // Whatever the umask made of the mode.
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("  {POLICY} could not be removed ({error}): remove it, or services won't start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_a_version() {
        assert!(has_candidate("nginx:\n  Installed: (none)\n  Candidate: 1.22.1-9\n"));
        assert!(!has_candidate("bpftool:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
