//! Set-up: turns a fresh machine into one where everything builds and runs, telling each thing before it is installed.

mod apt;
mod linker;
#[path = "../../../lb-userspace/build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the build script, which uses the rest")]
mod toolchain;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{announced, cargo, has_program, output, root};
use toolchain::{Compiler, Toolchain};

/// What the lab and the tests run, and the packages that have it; the first package that the machine knows is taken.
const PROGRAMS: [(&str, &[&str]); 9] = [
    ("nginx", &["nginx"]),
    ("curl", &["curl"]),
    ("ip", &["iproute2"]),
    ("ethtool", &["ethtool"]),
    ("bpftool", &["bpftool", "linux-tools-common"]),
    ("openssl", &["openssl"]),
    ("tcpdump", &["tcpdump"]),
    ("ping", &["iputils-ping"]),
    ("nsenter", &["util-linux"]),
];

/// Debian's compiler with a prebuilt `core` for BPF.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Where our own tools go: apart from the user's, which may be built for another LLVM.
fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Sets up if a quick look finds something missing.
pub(crate) fn if_missing() -> Result<()> {
    if missing_programs().is_empty() && Toolchain::find(&tools()).is_ok() {
        return Ok(());
    }
    run()
}

/// Installs what is missing and proves that the toolchain works.
pub(crate) fn run() -> Result<()> {
    let mut unsolved = Vec::new();
    // Each part goes on without the others: one run names everything that is left to do.
    for part in [lab_programs, components, ebpf_toolchain] {
        if let Err(error) = part() {
            unsolved.push(format!("{error:#}"));
        }
    }
    if !unsolved.is_empty() {
        bail!("set-up is not complete:\n  - {}", unsolved.join("\n  - "));
    }
    println!("✔ everything is set up");
    Ok(())
}

fn missing_programs() -> Vec<(&'static str, &'static [&'static str])> {
    PROGRAMS.into_iter().filter(|(program, _)| !has_program(program)).collect()
}

fn lab_programs() -> Result<()> {
    let missing = missing_programs();
    if missing.is_empty() {
        println!("✔ the lab's programs: {}", PROGRAMS.map(|(program, _)| program).join(", "));
        return Ok(());
    }
    let candidates: Vec<_> = missing.iter().map(|(_, packages)| *packages).collect();
    let packages = apt::choose(&candidates)?;
    let wanted: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    apt::install(&format!("the lab's programs ({})", wanted.join(", ")), &packages)
}

/// rustfmt and clippy, which some rustup profiles leave out.
fn components() -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if output(cargo().args([subcommand, "--version"])).is_none() {
            let mut rustup = Command::new("rustup");
            announced(
                &format!("installing {component}, which `cargo xtask lint` needs"),
                rustup.args(["component", "add", component]),
            )?;
        }
    }
    println!("✔ rustfmt and clippy");
    Ok(())
}

fn ebpf_toolchain() -> Result<()> {
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    println!("✔ a compiler for BPF: {}, LLVM {}", name_of(&compiler), compiler.llvm);
    let toolchain = linker::ensure(&tools(), &compiler)?;
    println!("✔ {} links a BPF program", toolchain.linker.display());
    Ok(())
}

fn name_of(compiler: &Compiler) -> &'static str {
    match compiler.source {
        toolchain::Source::Debian => "Debian's rustc-web",
        toolchain::Source::Nightly => "rustup's nightly with rust-src",
    }
}

fn install_compiler() -> Result<Compiler> {
    // Debian's rustup package claims the same files in /usr/bin.
    if apt::available() && apt::known(&DEBIAN_COMPILER) && !apt::installed("rustup") {
        apt::install("Debian's Rust compiler for BPF", &DEBIAN_COMPILER.map(str::to_owned))?;
    } else {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        announced("installing a nightly Rust compiler with the sources of `core`", &mut rustup)?;
    }
    match Compiler::find() {
        Some(compiler) => Ok(compiler),
        None => bail!("the compiler was installed but does not work; try `rustc --print sysroot` by hand"),
    }
}
