//! The configuration file: read whole, replaced whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}", path = path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: io::Error,
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<String, StoreError> {
    fs::read_to_string(path).map_err(|cause| StoreError { path: path.to_owned(), cause })
}

/// Replaces a file's content: whoever reads it, and whatever happens meanwhile, it is the old or the new one whole.
/// Permissions stay; a symbolic link is followed, not replaced.
pub fn replace(path: &Path, content: &str) -> Result<(), StoreError> {
    let failed = |cause| StoreError { path: path.to_owned(), cause };
    let target = fs::canonicalize(path).map_err(failed)?;
    let folder = target.parent().unwrap_or(Path::new("/"));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let aside = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = File::create(&aside)?;
        file.set_permissions(fs::metadata(&target)?.permissions())?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, &target)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|cause| {
        // Whether it is there depends on where the writing stopped.
        let _ = fs::remove_file(&aside);
        failed(cause)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn replaces_through_a_link_and_keeps_permissions() {
        let folder = std::env::temp_dir().join(format!("sluice-store-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("sluice.toml"), folder.join("link.toml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        let replaced = replace(&link, "new");
        let content = read(&file);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        let files = fs::read_dir(&folder).unwrap().count();
        fs::remove_dir_all(&folder).unwrap();
        replaced.unwrap();
        assert_eq!(content.unwrap(), "new");
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(files, 2, "nothing is left aside");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nonexistent/sluice.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/sluice.toml: "));
    }
}
