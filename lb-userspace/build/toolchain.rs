//! This machine's compilers → the one that builds the eBPF object, or what is missing for it.
//!
//! Shared by `lb-userspace/build.rs`, which builds the object, and `cargo xtask setup`, which installs what is
//! missing; so only the standard library is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target the eBPF object is built for.
const TARGET: &str = "bpfel-unknown-none";

/// The bpf-linker release the build is tested with.
pub const LINKER_VERSION: &str = "0.13.0";

/// Where a compiler for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian's `rustc-web` with its prebuilt BPF `core`, under `/usr/bin`.
    Debian,
    /// A rustup nightly with the component `rust-src`; `core` is built with `-Z build-std`.
    Nightly,
}

/// A compiler for BPF.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Where it comes from.
    pub source: Source,
    /// Major version of its LLVM; bpf-linker must be built with the same.
    pub llvm: u32,
}

/// Everything the eBPF object's build needs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// Path of bpf-linker.
    pub linker: PathBuf,
}

/// What keeps the eBPF object from being built.
#[derive(Clone, Debug)]
pub enum Missing {
    /// No compiler has a `core` for BPF.
    Compiler,
    /// A compiler is there, but no bpf-linker.
    Linker {
        /// LLVM major version the linker must be built with.
        llvm: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => f.write_str(
                "no Rust compiler with a `core` for BPF (Debian's rustc-web with libstd-rust-web-dev-bpf, or a \
                 rustup nightly with rust-src)",
            ),
            Self::Linker { llvm } => write!(f, "no bpf-linker (for LLVM {llvm})"),
        }?;
        f.write_str("; run `cargo xtask setup`")
    }
}

impl Toolchain {
    /// Finds the toolchain; `tools` is the folder `cargo xtask setup` installs into (`target/tools`).
    pub fn find(tools: &Path) -> Result<Self, Missing> {
        let compiler = Compiler::find().ok_or(Missing::Compiler)?;
        let linker = linker(tools).ok_or(Missing::Linker { llvm: compiler.llvm })?;
        Ok(Self { compiler, linker })
    }

    /// The command that builds the crate in the folder `ebpf` into `target_dir`; its objects are then at
    /// [`Toolchain::object`].
    pub fn build_command(&self, ebpf: &Path, target_dir: &Path) -> Command {
        let mut command = match self.compiler.source {
            Source::Debian => {
                let mut command = Command::new("/usr/bin/cargo");
                // aya-ebpf uses `asm_experimental_arch`, which a stable compiler accepts only so.
                command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").arg("build");
                command
            }
            Source::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command
            }
        };
        for inherited in
            ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO"]
        {
            command.env_remove(inherited);
        }
        if self.compiler.source == Source::Nightly {
            command.env_remove("RUSTC");
        }
        let flags = [
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            // v3: 32-bit ALU operations and atomics, in every kernel we support.
            "-Ctarget-cpu=v3",
            // Headers are not aligned in a frame; every supported JIT loads unaligned words.
            "-Ctarget-feature=+allows-misaligned-mem-access",
        ];
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .current_dir(ebpf);
        command
    }

    /// Where [`Toolchain::build_command`] leaves the object of this name.
    pub fn object(target_dir: &Path, name: &str) -> PathBuf {
        target_dir.join(TARGET).join("release").join(name)
    }
}

impl Compiler {
    /// The compiler to use: Debian's where it is installed, else rustup's nightly.
    pub fn find() -> Option<Self> {
        Self::debian().or_else(Self::nightly)
    }

    fn debian() -> Option<Self> {
        let sysroot = output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"]))?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
        let llvm = llvm_major(&output(Command::new("/usr/bin/rustc").arg("-vV"))?)?;
        (core.is_dir() && Path::new("/usr/bin/cargo").exists())
            .then_some(Self { source: Source::Debian, llvm })
    }

    fn nightly() -> Option<Self> {
        let rustc =
            |args: &[&str]| output(Command::new("rustup").args(["run", "nightly", "rustc"]).args(args));
        let sysroot = rustc(&["--print", "sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        let llvm = llvm_major(&rustc(&["-vV"])?)?;
        source.is_dir().then_some(Self { source: Source::Nightly, llvm })
    }
}

/// The linker: `$BPF_LINKER`, else the project's own, else the one on the path.
fn linker(tools: &Path) -> Option<PathBuf> {
    let own = tools.join("bin/bpf-linker");
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("bpf-linker"));
    std::env::var_os("BPF_LINKER")
        .map(PathBuf::from)
        .into_iter()
        .chain([own])
        .chain(on_path)
        .find(|candidate| candidate.is_file())
}

/// The `LLVM version: 22.1.2` line of `rustc -vV`.
fn llvm_major(verbose_version: &str) -> Option<u32> {
    let line = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
