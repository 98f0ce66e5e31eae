//! Prometheus' checker of rules: turns Debian's package into one program under `target/tools`; nothing is installed, and no
//! server is started.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lb_tests::{promtool, promtool_below};

use super::apt::{self, Suites};
use crate::shell::{announced, root};

/// The package, and of it the one file.
const PACKAGE: &str = "prometheus";
const UNPACK: &str = "dpkg-deb --fsys-tarfile ./*.deb | tar -x ./usr/bin/promtool";

/// Whether it is there.
pub(crate) fn complete() -> bool {
    promtool().is_ok()
}

/// Fetches and unpacks it, if it is missing.
pub(crate) fn ensure() -> Result<()> {
    if !complete() {
        fetch()?;
    }
    println!("✔ promtool, which checks the alert rules");
    Ok(())
}

fn fetch() -> Result<()> {
    let to = promtool_below(root());
    if !apt::available() {
        bail!(
            "this is not a Debian-like machine; put Prometheus' promtool on the path, or at {}",
            to.display()
        );
    }
    let part = root().join("target/tools/promtool.part");
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))?;
    }
    fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    let mut download = Suites::own().command("apt-get");
    // The directory is ours, so apt's own user could not write to it.
    download.args(["-o", "APT::Sandbox::User=root", "download", PACKAGE]).current_dir(&part);
    announced(&format!("fetching {PACKAGE} for its promtool (about 50 MB; not installed)"), &mut download)?;
    let mut unpack = Command::new("sh");
    unpack.args(["-c", UNPACK]).current_dir(&part);
    announced("unpacking promtool, which checks the alert rules", &mut unpack)?;
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    fs::rename(part.join("usr/bin/promtool"), &to).with_context(|| format!("making {}", to.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))
}
