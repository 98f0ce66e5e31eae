//! `lb-ebpf` → the object files that are embedded: the load balancer's, the same for who captures, that of `sluice decap`, and that of health checks through the
//! forwarding path.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

#[path = "build/dwarf.rs"]
mod dwarf;
#[path = "build/toolchain.rs"]
#[allow(dead_code, reason = "set-up uses the rest")]
mod toolchain;

/// The objects, by the names of their binaries in `lb-ebpf`.
const OBJECTS: [&str; 4] = ["sluice", "capture", "decap", "probe"];

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

    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out: one build of the objects serves every profile.
    let target = out.ancestors().nth(4).unwrap_or(&out);
    let built = build(root, target);
    for name in OBJECTS {
        let object = toolchain::Toolchain::object(&built, name);
        let bytes = fs::read(&object)
            .map_err(|error| error.to_string())
            .and_then(|bytes| dwarf::without_dwarf(&bytes).map_err(|error| error.to_string()));
        let written = bytes.and_then(|bytes| {
            fs::write(out.join(format!("{name}.bpf.o")), bytes).map_err(|error| error.to_string())
        });
        if let Err(error) = written {
            fail(&format!("cannot take over {}: {error}", object.display()));
        }
    }
}

/// Builds the objects; yields the target folder they are in.
fn build(root: &Path, target: &Path) -> PathBuf {
    let toolchain = toolchain::Toolchain::find(&root.join("target/tools"))
        .unwrap_or_else(|missing| fail(&format!("cannot build the eBPF objects: {missing}")));
    let ebpf_target = target.join("ebpf");
    let mut command = toolchain.build_command(&root.join("lb-ebpf"), &ebpf_target);
    match command.output() {
        Ok(output) if output.status.success() => ebpf_target,
        Ok(output) => {
            fail(&format!("the eBPF objects do not build:\n{}", String::from_utf8_lossy(&output.stderr)))
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
