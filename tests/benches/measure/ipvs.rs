//! A machine whose kernel has IPVS, which this one's may lack → millions of packets a second, for Sluice and IPVS in it.
//!
//! It is emulated: only ratios of one run mean anything.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::{GUEST_RESULTS, Guest, GuestKernel};

use crate::live;
use crate::object::{OBJECT, built};
use crate::samples::Group;

const PART: &str = "ipvs";
const KERNEL: &str = "6.12";
/// The first is what a module that others need asks the kernel for by name.
const MODULES: [&str; 4] = ["crc32c_generic", "veth", "ip_vs", "ip_vs_mh"];
const PROGRAMS: [&str; 5] = ["bash", "ip", "ipvsadm", "sysctl", "unshare"];
const TIMEOUT: Duration = Duration::from_secs(300);
/// What this program is asked for in the guest.
pub const INSIDE: &str = "inside-a-guest";

/// Boots the machine, which measures, and prints what it found as [`crate::samples::print`] would.
pub fn run() -> Result<()> {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("a path in UTF-8")?;
    let object = built();
    let mut guest = Guest::new(GuestKernel::find(KERNEL)?).file(&object).program(own)?;
    for program in PROGRAMS {
        guest = guest.program(program)?;
    }
    for module in MODULES {
        guest = guest.module(module);
    }
    let object = object.to_str().context("a path in UTF-8")?;
    let report = guest.variable(OBJECT, object).timeout(TIMEOUT).run(&[own, INSIDE])?;
    ensure!(report.status == 0, "the guest failed:\n{}", report.console);
    ensure!(!report.results.is_empty(), "the guest measured nothing:\n{}", report.console);
    report.results.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// What is run there.
pub fn inside() -> Result<()> {
    let results = std::env::var(GUEST_RESULTS).context("this is run in a guest")?;
    let mut results = OpenOptions::new().append(true).open(results)?;
    let mut written = Ok(());
    live::beside_ipvs(&mut |group| {
        let name = format!("emulated Linux {KERNEL}, {}", group.name);
        written = writeln!(results, "{}", Group { part: PART, name, ..group }.line());
    })?;
    Ok(written?)
}
