//! Kernels to test on: turns Debian's packages into unpacked images and modules under `target/kernels`; nothing is
//! installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lb_tests::GuestKernel;

use super::apt::{self, Suites};
use crate::shell::{announced, root};

/// The release that has every series we test.
const RELEASE: &str = "bookworm";

/// Of a package, what a guest may need: the image, and modules of networking and of what these build upon.
const UNPACK: &str = "dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards '*/boot/vmlinuz-*' '*/kernel/net/*' \
                      '*/kernel/drivers/net/*' '*/kernel/lib/*' '*/kernel/crypto/*'";

/// Whether every kernel is there.
pub(crate) fn complete() -> bool {
    GuestKernel::SERIES.iter().all(|series| GuestKernel::find(series).is_ok())
}

/// Fetches and unpacks the kernels that are missing.
pub(crate) fn ensure() -> Result<()> {
    for series in GuestKernel::SERIES {
        if GuestKernel::find(series).is_err() {
            fetch(series)?;
        }
    }
    println!("✔ kernels for the tests' guests: {}", GuestKernel::SERIES.join(", "));
    Ok(())
}

fn fetch(series: &'static str) -> Result<()> {
    let to = GuestKernel::directory(root(), series);
    let part = to.with_file_name(format!("{series}.part"));
    if !apt::available() {
        bail!("this is not a Debian-like machine; unpack Debian's kernel {series} into {}", to.display());
    }
    for directory in [&to, &part] {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    let (suites, package) = choose(series)?;
    let shown = part.display();
    let mut download = suites.command("apt-get");
    // The directory is ours, so apt's own user could not write to it.
    download.args(["-o", "APT::Sandbox::User=root", "download", &package]).current_dir(&part);
    announced(&format!("fetching {package} into {shown} (about 100 MB; not installed)"), &mut download)?;
    let mut unpack = Command::new("sh");
    unpack.args(["-c", UNPACK]).current_dir(&part);
    announced(&format!("unpacking it for the tests' guests with kernel {series}"), &mut unpack)?;
    for package in packages_in(&part)? {
        fs::remove_file(&package).with_context(|| format!("removing {}", package.display()))?;
    }
    fs::rename(&part, &to).with_context(|| format!("renaming {shown}"))?;
    GuestKernel::find(series).map(drop)
}

fn packages_in(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb")).collect())
}

/// The newest package of the series, among the machine's own suites or else those of the release that has them all.
fn choose(series: &str) -> Result<(Suites, String)> {
    let own = Suites::own();
    if let Some(package) = newest(series, &own.packages(&prefix(series))) {
        return Ok((own, package));
    }
    let cache = root().join("target/kernels/apt");
    let release = Suites::of_release(RELEASE, &cache)?;
    let found = newest(series, &release.packages(&prefix(series)));
    let package = found.with_context(|| {
        format!("no package of Debian's kernel {series} is known: add {RELEASE} to apt's sources, then again")
    })?;
    Ok((release, package))
}

fn prefix(series: &str) -> String {
    format!("linux-image-{series}.")
}

/// The newest of the signed images without a flavour: `linux-image-6.1.0-56-amd64`, not `…-cloud-amd64`.
fn newest(series: &str, packages: &str) -> Option<String> {
    let versions = packages.lines().filter_map(|name| {
        let version = name.trim().strip_prefix(&prefix(series))?.strip_suffix("-amd64")?;
        let plain = !version.contains("cloud") && !version.contains("rt") && !version.contains("bpo");
        plain.then(|| (numbers(version), name.trim().to_owned()))
    });
    versions.max().map(|(_, name)| name)
}

/// The numbers in a version, in order.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_image_is_taken() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-6.1.0-57-cloud-amd64\n\
                     linux-image-6.1.0-57-amd64-dbg\nlinux-image-6.1.0-58-rt-amd64\nlinux-image-6.12.1-amd64\n";
        assert_eq!(newest("6.1", names).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12", names).as_deref(), Some("linux-image-6.12.1-amd64"));
        assert_eq!(newest("6.2", names), None);
    }
}
