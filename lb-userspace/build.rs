//! `lb-ebpf` → the object file that the agent embeds.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

#[path = "build/toolchain.rs"]
#[allow(dead_code, reason = "set-up uses the rest")]
mod toolchain;

fn main() {
    let (Some(manifest), Some(out)) = (path("CARGO_MANIFEST_DIR"), path("OUT_DIR")) else {
        fail("cargo did not name its folders")
    };
    let root = manifest.parent().unwrap_or(&manifest);
    for watched in ["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-ebpf/Cargo.lock", "lb-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=BPF_LINKER");
    println!("cargo::rerun-if-env-changed=PATH");

    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out: one build of the object serves every profile.
    let target = out.ancestors().nth(4).unwrap_or(&out);
    let object = build(root, target);
    if let Err(error) = fs::copy(&object, out.join("sluice.bpf.o")) {
        fail(&format!("cannot copy {}: {error}", object.display()));
    }
}

fn build(root: &Path, target: &Path) -> PathBuf {
    let toolchain = toolchain::Toolchain::find(&root.join("target/tools"))
        .unwrap_or_else(|missing| fail(&format!("cannot build the eBPF object: {missing}")));
    let ebpf_target = target.join("ebpf");
    let mut command = toolchain.build_command(&root.join("lb-ebpf"), &ebpf_target);
    match command.output() {
        Ok(output) if output.status.success() => toolchain::Toolchain::object(&ebpf_target),
        Ok(output) => {
            fail(&format!("the eBPF object does not build:\n{}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => fail(&format!("cannot run {command:?}: {error}")),
    }
}

fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(1)
}
