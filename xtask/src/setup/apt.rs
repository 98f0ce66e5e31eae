//! Debian packages: turns lists of packages into `apt-get` runs that are announced, quiet and start no services.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::shell::{announced, has_program, output};

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// The keys of Debian's releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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

/// Where packages are looked for: the machine's own suites, or others of the same archives.
pub(crate) struct Suites {
    options: Vec<String>,
}

impl Suites {
    /// The machine's own.
    pub(crate) fn own() -> Self {
        refresh();
        Self { options: Vec::new() }
    }

    /// The machine's archives of Debian's, but the suites of `release`; lists are kept in `cache`, apart from the
    /// machine's.
    pub(crate) fn of_release(release: &str, cache: &Path) -> Result<Self> {
        let mut targets = Command::new("apt-get");
        targets.args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
        ]);
        let sources = sources(&output(&mut targets).unwrap_or_default(), release);
        let lists = cache.join("lists");
        fs::create_dir_all(lists.join("partial")).with_context(|| format!("making {}", lists.display()))?;
        let file = cache.join("sources.list");
        fs::write(&file, sources).with_context(|| format!("writing {}", file.display()))?;
        let option = |name: &str, value: &Path| ["-o".to_owned(), format!("{name}={}", value.display())];
        let options = [
            option("Dir::Etc::SourceList", &file),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &lists),
            option("Dir::Cache", cache),
            option("APT::Sandbox::User", Path::new("root")),
        ];
        let suites = Self { options: options.concat() };
        announced(
            &format!("fetching the package lists of {release}"),
            suites.command("apt-get").arg("update"),
        )?;
        Ok(suites)
    }

    /// A command of apt's that looks there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").args(&self.options);
        command
    }

    /// The names of packages that begin with `prefix`, one a line.
    pub(crate) fn packages(&self, prefix: &str) -> String {
        output(self.command("apt-cache").args(["pkgnames", prefix])).unwrap_or_default()
    }
}

/// What apt knows of its indices, one a line, as sources of another release: only the suites' names change.
fn sources(targets: &str, release: &str) -> String {
    let mut lines: Vec<_> = targets.lines().filter_map(|target| source(target, release)).collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

fn source(target: &str, release: &str) -> Option<String> {
    let mut words = target.split_whitespace();
    let (origin, archive, suite) = (words.next()?, words.next()?, words.next()?);
    // `trixie-security` → `bookworm-security`.
    let suite = suite.split_once('-').map_or(release.to_owned(), |(_, part)| format!("{release}-{part}"));
    (origin == "Debian").then(|| format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"))
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

    #[test]
    fn sources_of_another_release_keep_their_archives() {
        let targets = "Debian http://a.example/debian/ trixie\nDebian http://a.example/debian/ trixie\n\
                       Debian http://s.example/ trixie-security\nOther http://o.example/ trixie\n";
        let expected = [("http://a.example/debian/", "bookworm"), ("http://s.example/", "bookworm-security")];
        let lines =
            expected.map(|(archive, suite)| format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"));
        assert_eq!(sources(targets, "bookworm"), lines.concat());
    }
}
