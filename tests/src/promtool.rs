//! Prometheus' own checker of rules: turns "is it here?" into its path.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where set-up unpacks it, below the workspace.
pub fn promtool_below(workspace: &Path) -> PathBuf {
    workspace.join("target/tools/bin/promtool")
}

/// Finds it where set-up has put it, or else on the path.
pub fn promtool() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("promtool"));
    match [promtool_below(workspace)].into_iter().chain(on_path).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no promtool: run `cargo xtask setup`"),
    }
}
