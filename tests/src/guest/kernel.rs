//! Kernels to be tested: turns a series ("6.1") into the image that set-up has unpacked, and names of modules into
//! files in the order in which they must be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::run_checked;

/// A kernel of Debian's that was unpacked by `cargo xtask setup`.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    series: &'static str,
    image: PathBuf,
    /// Files of modules by name, underscores for hyphens.
    modules: BTreeMap<String, PathBuf>,
}

impl GuestKernel {
    /// The series that are tested besides the running kernel: the oldest supported one and the next that Debian kept.
    pub const SERIES: [&'static str; 2] = ["6.1", "6.12"];

    /// Where set-up unpacks the kernel of a series, below the workspace.
    pub fn directory(workspace: &Path, series: &str) -> PathBuf {
        workspace.join("target/kernels").join(series)
    }

    /// Finds the kernel of a series.
    pub fn find(series: &'static str) -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let directory = Self::directory(workspace, series);
        Self::unpacked(series, &directory).with_context(|| {
            format!("no kernel {series} in {}: run `cargo xtask setup`", directory.display())
        })
    }

    fn unpacked(series: &'static str, directory: &Path) -> Result<Self> {
        let mut image = None;
        let mut modules = BTreeMap::new();
        visit(directory, &mut |file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("vmlinuz-") {
                image = Some(file.to_owned());
            } else if let Some((module, _)) = name.split_once(".ko") {
                modules.insert(plain(module), file.to_owned());
            }
        })?;
        Ok(Self { series, image: image.context("no vmlinuz-*")?, modules })
    }

    /// Its series: the first two numbers of its version.
    pub fn series(&self) -> &'static str {
        self.series
    }

    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// The contents of these modules and of those they need, in the order in which they must be loaded.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Vec<u8>>> {
        let mut loaded = BTreeSet::new();
        let mut contents = Vec::new();
        for name in names {
            self.load(name, &mut loaded, &mut contents)?;
        }
        Ok(contents)
    }

    fn load(&self, name: &str, loaded: &mut BTreeSet<String>, into: &mut Vec<Vec<u8>>) -> Result<()> {
        if !loaded.insert(plain(name)) {
            return Ok(());
        }
        let file = self.modules.get(&plain(name));
        let file = file.with_context(|| format!("kernel {} has no module {name}", self.series))?;
        let content = read_module(file)?;
        for needed in dependencies(&content) {
            self.load(&needed, loaded, into)?;
        }
        into.push(content);
        Ok(())
    }
}

/// Module names are written with hyphens in file names and with underscores elsewhere.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn visit(directory: &Path, found: &mut impl FnMut(&Path)) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), found)?;
        } else {
            found(&entry.path());
        }
    }
    Ok(())
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    match file.extension().and_then(|end| end.to_str()) {
        Some("ko") => fs::read(file).with_context(|| format!("reading {}", file.display())),
        Some("xz") => Ok(run_checked(Command::new("busybox").arg("xzcat").arg(file))?.stdout),
        _ => bail!("{}: neither .ko nor .ko.xz", file.display()),
    }
}

/// What a module says it needs, in the list of `name=value` strings that it carries (section `.modinfo`).
fn dependencies(module: &[u8]) -> Vec<String> {
    let mark = b"\0depends=";
    let Some(at) = module.windows(mark.len()).position(|window| window == mark) else { return Vec::new() };
    let value = module[at + mark.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(dependencies(&module("ip_tunnel,tunnel4")), ["ip_tunnel", "tunnel4"]);
        assert!(dependencies(&module("")).is_empty());
        assert!(dependencies(b"\x7fELF").is_empty());
    }

    #[test]
    fn modules_come_after_those_they_need_and_once() {
        let directory = std::env::temp_dir().join(format!("sluice-modules-{}", std::process::id()));
        fs::create_dir_all(directory.join("kernel")).expect("a directory");
        let all = [("a", "c-d,b"), ("b", "c_d"), ("c-d", "")];
        for (name, depends) in all {
            fs::write(directory.join(format!("kernel/{name}.ko")), module(depends)).expect("a module");
        }
        fs::write(directory.join("vmlinuz-1"), "").expect("an image");
        let kernel = GuestKernel::unpacked("6.1", &directory);
        let loaded = kernel.as_ref().map(|kernel| kernel.modules(&["a", "b"]));
        fs::remove_dir_all(&directory).expect("removed");
        let expected = [module(""), module("c_d"), module("c-d,b")];
        assert_eq!(loaded.expect("a kernel").expect("modules"), expected);
        assert!(kernel.expect("a kernel").modules(&["z"]).is_err());
    }
}
