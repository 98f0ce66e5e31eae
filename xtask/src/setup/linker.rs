//! bpf-linker: turns a compiler into a toolchain whose linker reads that compiler's bitcode, building one if need be.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::apt;
use super::toolchain::{Compiler, LINKER_VERSION, Toolchain};
use crate::shell::{announced, cargo, has_program};

/// A toolchain proven by linking a program with it; installs our own linker where the one found does not do.
pub(crate) fn ensure(tools: &Path, compiler: &Compiler) -> Result<Toolchain> {
    if let Ok(toolchain) = Toolchain::find(tools) {
        match prove(tools, &toolchain) {
            Ok(()) => return Ok(toolchain),
            // One of the user's, for another LLVM: ours comes before it.
            Err(error) if !toolchain.linker.starts_with(tools) => {
                eprintln!(
                    "  {} does not do for LLVM {}: {error:#}",
                    toolchain.linker.display(),
                    compiler.llvm
                );
            }
            Err(error) => eprintln!("  the project's own bpf-linker no longer works: {error:#}"),
        }
    }
    install(tools, compiler.llvm)?;
    let toolchain = Toolchain::find(tools).map_err(|missing| anyhow::anyhow!("{missing}"))?;
    prove(tools, &toolchain).context("bpf-linker was built but does not link")?;
    Ok(toolchain)
}

fn install(tools: &Path, llvm: u32) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("include/llvm-c").exists() {
        let package = format!("llvm-{llvm}-dev");
        if !apt::available() || !apt::known(&[&package]) {
            bail!(
                "no package {package} is known here, and bpf-linker is built from it: add the packages of \
                 https://apt.llvm.org (`llvm.sh {llvm}`), then run `cargo xtask setup` again"
            );
        }
        apt::install(&format!("LLVM {llvm}, which bpf-linker is built with"), &[package])?;
    }
    if !has_program("c++") {
        apt::install("a C++ compiler, which LLVM's libraries need", &["g++".to_owned()])?;
    }
    let mut build = cargo();
    build.env("LLVM_PREFIX", &prefix);
    build.args(["install", "bpf-linker", "--locked", "--force", "--version", LINKER_VERSION]);
    build.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"]).arg(tools);
    announced(&format!("building bpf-linker {LINKER_VERSION} for LLVM {llvm} (about a minute)"), &mut build)
}

/// Builds a program of one function: a linker with another LLVM than the compiler's fails on the first bitcode.
fn prove(tools: &Path, toolchain: &Toolchain) -> Result<()> {
    let project = tools.join("probe");
    fs::create_dir_all(project.join("src")).with_context(|| format!("making {}", project.display()))?;
    for (file, content) in [("Cargo.toml", MANIFEST), ("Cargo.lock", LOCK), ("src/main.rs", PROGRAM)] {
        let file = project.join(file);
        // Written once, so that cargo finds nothing to do the next time.
        if fs::read_to_string(&file).is_ok_and(|found| found == content) {
            continue;
        }
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
    }
    let mut build = toolchain.build_command(&project, &project.join("target"));
    let output = build.stdin(Stdio::null()).output().context("running the BPF compiler")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let reason = words.lines().find(|line| line.contains("error")).unwrap_or("it fails");
        bail!("{reason}");
    }
    Ok(())
}

const MANIFEST: &str = "[package]
name = \"probe\"
version = \"0.0.0\"
edition = \"2024\"

[workspace]

[profile.release]
panic = \"abort\"
";

const LOCK: &str = "version = 4

[[package]]
name = \"probe\"
version = \"0.0.0\"
";

const PROGRAM: &str = "#![no_std]
#![no_main]

#[unsafe(no_mangle)]
#[unsafe(link_section = \"xdp\")]
extern \"C\" fn pass() -> u32 {
    2
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";
