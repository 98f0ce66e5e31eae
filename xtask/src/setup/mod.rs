//! Set-up: turns a fresh machine into one where everything builds and runs, telling each thing before it is installed.

mod apt;
mod kernels;
mod linker;
mod promtool;
#[path = "../../../lb-userspace/build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the build script, which uses the rest")]
mod toolchain;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::shell::{announced, cargo, has_program, output, root};
use toolchain::{Compiler, Toolchain};

/// A program and the packages that have it.
type Needed = (&'static str, &'static [&'static str]);

/// What the lab and the tests run, and the packages that have it; the first package that the machine knows is taken.
const PROGRAMS: [Needed; 9] = [
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

/// What the tests run beyond the lab: guests with other kernels, a browser, and a reader of captures.
const GUEST_PROGRAMS: [Needed; 4] = [
    ("qemu-system-x86_64", &["qemu-system-x86"]),
    ("busybox", &["busybox-static", "busybox"]),
    ("chromium", &["chromium"]),
    ("tshark", &["tshark"]),
];

/// What the bench runs beyond the lab: a load generator, and what Sluice is compared with.
const BENCH_PROGRAMS: [Needed; 5] = [
    ("wrk", &["wrk"]),
    ("haproxy", &["haproxy"]),
    ("nft", &["nftables"]),
    ("ipvsadm", &["ipvsadm"]),
    (NGINX_STREAM, &["libnginx-mod-stream"]),
];

/// nginx' module for TCP, a file of its own.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Debian's compiler with a prebuilt `core` for BPF.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Where our own tools go: apart from the user's, which may be built for another LLVM.
fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Sets up if a quick look finds something missing that building and the lab need.
pub(crate) fn if_missing() -> Result<()> {
    if missing(&PROGRAMS).is_empty() && Toolchain::find(&tools()).is_ok() {
        return Ok(());
    }
    complete(&[lab_programs, components, ebpf_toolchain])
}

/// Sets up if a quick look finds something missing that the tests need.
pub(crate) fn if_missing_for_tests() -> Result<()> {
    if_missing()?;
    if missing(&GUEST_PROGRAMS).is_empty() && kernels::complete() && promtool::complete() {
        return Ok(());
    }
    complete(&[guest_programs, kernels::ensure, promtool::ensure])
}

/// Sets up if a quick look finds something missing that the bench needs.
pub(crate) fn if_missing_for_bench() -> Result<()> {
    if_missing_for_tests()?;
    if missing(&BENCH_PROGRAMS).is_empty() {
        return Ok(());
    }
    complete(&[|| programs("the programs that the bench compares with", &BENCH_PROGRAMS)])
}

/// The command that builds a binary of `lb-ebpf`, to be named.
pub(crate) fn ebpf_build() -> Result<Command> {
    let toolchain = Toolchain::find(&tools()).map_err(|missing| anyhow!("{missing}"))?;
    Ok(toolchain.build_command(&root().join("lb-ebpf"), &ebpf_target()))
}

/// Where that binary then is.
pub(crate) fn ebpf_object(name: &str) -> PathBuf {
    Toolchain::object(&ebpf_target(), name)
}

fn ebpf_target() -> PathBuf {
    root().join("target/ebpf")
}

/// Installs everything that is missing and proves that the toolchain works.
pub(crate) fn run() -> Result<()> {
    complete(&[lab_programs, components, ebpf_toolchain, guest_programs, kernels::ensure, promtool::ensure])
}

/// Each part goes on without the others: one run names everything that is left to do.
fn complete(parts: &[fn() -> Result<()>]) -> Result<()> {
    let failed = parts.iter().filter_map(|part| part().err());
    let unsolved: Vec<_> = failed.map(|error| format!("{error:#}")).collect();
    if !unsolved.is_empty() {
        bail!("set-up is not complete:\n  - {}", unsolved.join("\n  - "));
    }
    println!("✔ everything is set up");
    Ok(())
}

fn missing(programs: &[Needed]) -> Vec<Needed> {
    programs.iter().copied().filter(|(program, _)| !has_program(program)).collect()
}

fn lab_programs() -> Result<()> {
    programs("the lab's programs", &PROGRAMS)
}

fn guest_programs() -> Result<()> {
    programs("the tests' guests, browser and reader of captures", &GUEST_PROGRAMS)
}

fn programs(what: &str, programs: &[Needed]) -> Result<()> {
    let missing = missing(programs);
    let names = |programs: &[Needed]| programs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        println!("✔ {what}: {}", names(programs));
        return Ok(());
    }
    let candidates: Vec<_> = missing.iter().map(|(_, packages)| *packages).collect();
    let packages = apt::choose(&candidates)?;
    apt::install(&format!("{what} ({})", names(&missing)), &packages)
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
