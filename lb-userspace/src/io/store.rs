//! The configuration file: read whole, replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// What is said of a file that nobody may write.
const READ_ONLY: &str = "is read-only, so nothing was changed; make it writable (chmod u+w), or change it where it comes \
                         from and have the agent read it again (SIGHUP)";

/// What is said of a file that another cannot take the place of.
fn not_replaced(cause: io::Error) -> io::Error {
    io::Error::new(
        cause.kind(),
        format!(
            "cannot be replaced ({cause}) and is left as it is; if it is immutable: chattr -i; if it is mounted by itself, as in a \
             container: mount its folder instead"
        ),
    )
}

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}:{line}{cause}", path = path.display(), line = line_of(cause))]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: io::Error,
}

/// What a file holds is no text.
#[derive(Debug, thiserror::Error)]
#[error("not UTF-8; write the file in UTF-8")]
struct NotUtf8 {
    /// The line, from 1, with the first byte that is none.
    line: usize,
}

impl StoreError {
    /// Whether the file is there and can be read, but what it holds is wrong.
    pub fn is_content(&self) -> bool {
        not_utf8(&self.cause).is_some()
    }
}

fn not_utf8(cause: &io::Error) -> Option<&NotUtf8> {
    cause.get_ref()?.downcast_ref()
}

/// What stands between a file's name and what is wrong with it.
fn line_of(cause: &io::Error) -> String {
    not_utf8(cause).map_or_else(|| " ".to_owned(), |NotUtf8 { line }| format!("{line}: "))
}

/// Bytes that a configuration file has at most: a hundred times those of ten thousand backends.
const MAX_BYTES: u64 = 128 << 20;

/// What a path leads to does not end, or not soon.
#[derive(Debug, thiserror::Error)]
#[error("larger than {} MiB, so no configuration; name another file", MAX_BYTES >> 20)]
struct TooLarge;

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<String, StoreError> {
    let bytes = bytes(path).map_err(|cause| StoreError { path: path.to_owned(), cause })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = 1 + good.filter(|byte| **byte == b'\n').count();
        let cause = io::Error::new(io::ErrorKind::InvalidData, NotUtf8 { line });
        StoreError { path: path.to_owned(), cause }
    })
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, TooLarge));
    }
    Ok(bytes)
}

/// Reads a configuration file; none if there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<String>, StoreError> {
    match read(path) {
        Err(error) if error.cause.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

/// New content of a file, beside it. Dropped without [`Prepared::commit`] it is removed again.
#[derive(Debug)]
#[must_use = "the file keeps its content until this is committed"]
pub struct Prepared {
    path: PathBuf,
    target: PathBuf,
    aside: Aside,
}

/// Writes what [`Prepared::commit`] will put in the file's place, with its permissions and owner; a file that is not
/// there any more is made anew, for its owner alone. What can fail for want of space or permission fails here, mostly; it is [`Prepared::commit`] that
/// waits for the disk.
pub fn prepare(path: &Path, content: &str) -> Result<Prepared, StoreError> {
    let failed = |cause| StoreError { path: path.to_owned(), cause };
    let target = resolve(path).map_err(failed)?;
    let aside = Aside::write(&target, content).map_err(failed)?;
    Ok(Prepared { path: path.to_owned(), target, aside })
}

impl Prepared {
    /// Puts the new content in the file's place.
    pub fn commit(mut self) -> Result<(), StoreError> {
        let committed = self.aside.put_in_place(&self.target);
        committed.map_err(|cause| StoreError { path: self.path, cause })
    }
}

/// The file that a path leads to through symbolic links, whether or not it exists.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let absolute = std::path::absolute(path)?;
    match fs::read_link(&absolute) {
        // A circle of links is another error than “not found”, so this comes to an end.
        Ok(target) => resolve(&folder_of(&absolute).join(target)),
        Err(_) => Ok(absolute),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A file beside another one, removed when dropped, unless it has taken that one's place.
#[derive(Debug)]
struct Aside {
    /// Where it is; none once it has taken the other one's place.
    path: Option<PathBuf>,
    file: Option<File>,
}

impl Aside {
    fn write(target: &Path, content: &str) -> io::Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = folder_of(target).join(format!(".{name}.{}", std::process::id()));
        let former = match fs::metadata(target) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(former) = &former
            && former.mode() & 0o222 == 0
        {
            // Root could replace it all the same; whoever took away the permission does not want that.
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, READ_ONLY));
        }
        // One left behind by a process of the same number that was killed.
        let _ = fs::remove_file(&path);
        let mut options = OpenOptions::new();
        // It may hold what not everybody is to read, and nothing says who may.
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path)?;
        let mut aside = Self { path: Some(path), file: None };
        if let Some(former) = former {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (former.uid(), former.gid()) {
                fchown(&file, Some(former.uid()), Some(former.gid()))?;
            }
            file.set_permissions(former.permissions())?;
        }
        file.write_all(content.as_bytes())?;
        aside.file = Some(file);
        Ok(aside)
    }

    fn put_in_place(&mut self, target: &Path) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            file.sync_all()?;
        }
        if let Some(path) = &self.path {
            fs::rename(path, target).map_err(not_replaced)?;
            self.path = None;
        }
        File::open(folder_of(target))?.sync_all()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If it is gone already, so much the better.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, content: &str) -> Result<(), StoreError> {
        prepare(path, content)?.commit()
    }

    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder of its own, removed with everything in it.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("sluice-store-{}-{number}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn count(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_is_no_text_is_told_with_its_line() {
        let path = std::env::temp_dir().join(format!("sluice-utf8-{}.toml", std::process::id()));
        fs::write(&path, b"[agent]\n# caf\xe9\n").unwrap();
        let error = read(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(error.is_content());
        assert_eq!(error.to_string(), format!("{}:2: not UTF-8; write the file in UTF-8", path.display()));
        let missing = read(&path).unwrap_err();
        assert!(!missing.is_content());
        assert!(missing.to_string().starts_with(&format!("{}: No such file", path.display())), "{missing}");
    }

    #[test]
    fn replaces_through_a_link_and_keeps_permissions_and_owner() {
        let folder = Folder::new();
        let (file, link) = (folder.join("sluice.toml"), folder.join("link.toml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("sluice.toml", &link).unwrap();
        let root = nix::unistd::geteuid().is_root();
        if root {
            chown(&file, Some(1), Some(2)).unwrap();
        }
        write(&link, "new").unwrap();
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!(read(&file).unwrap(), "new");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert!(!root || (metadata.uid(), metadata.gid()) == (1, 2));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(folder.count(), 2, "nothing is left aside");
    }

    #[test]
    fn what_is_prepared_changes_nothing_until_it_is_committed() {
        let folder = Folder::new();
        let file = folder.join("sluice.toml");
        fs::write(&file, "old").unwrap();
        let prepared = prepare(&file, "new").unwrap();
        assert_eq!((read(&file).unwrap().as_str(), folder.count()), ("old", 2));
        drop(prepared);
        assert_eq!((read(&file).unwrap().as_str(), folder.count()), ("old", 1));
        prepare(&file, "new").unwrap().commit().unwrap();
        assert_eq!((read(&file).unwrap().as_str(), folder.count()), ("new", 1));
    }

    #[test]
    fn a_file_that_is_gone_is_made_anew_where_its_link_leads() {
        let folder = Folder::new();
        let (file, link) = (folder.join("sluice.toml"), folder.join("link.toml"));
        symlink("sluice.toml", &link).unwrap();
        prepare(&link, "new").unwrap().commit().unwrap();
        assert_eq!(read(&file).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        fs::remove_file(&file).unwrap();
        prepare(&file, "newer").unwrap().commit().unwrap();
        assert_eq!(read(&link).unwrap(), "newer");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600,
            "nothing says who may read it"
        );
        let error = prepare(&folder.join("none/sluice.toml"), "new").unwrap_err();
        assert!(error.to_string().contains("none/sluice.toml: No such file"), "{error}");
    }

    #[test]
    fn what_nobody_may_write_is_not_replaced() {
        let folder = Folder::new();
        let file = folder.join("sluice.toml");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        let error = prepare(&file, "new").unwrap_err().to_string();
        assert!(error.contains("sluice.toml: is read-only") && error.contains("chmod u+w"), "{error}");
        assert_eq!((read(&file).unwrap().as_str(), folder.count()), ("old", 1));
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_eq!(read_if_there(Path::new("/nonexistent/sluice.toml")).unwrap(), None);
        let error = read(Path::new("/nonexistent/sluice.toml")).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/sluice.toml: "));
    }
}
