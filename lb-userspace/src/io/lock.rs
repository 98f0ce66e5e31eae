//! A folder → held by one process, as long as that lives.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often to look whether another process has let go of a folder.
const POLL: Duration = Duration::from_millis(50);

/// Keeps others away from a folder for as long as it lives.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "held, not used")] File);

impl FolderLock {
    /// Takes a folder for this process; none if another one holds it.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        let folder = File::open(folder)?;
        match folder.try_lock() {
            Ok(()) => Ok(Some(Self(folder))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => Err(cause),
        }
    }

    /// The same; one that another process holds may be let go of within this time.
    pub async fn take_within(folder: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(folder)? {
                None if Instant::now() < deadline => sleep(POLL).await,
                taken => return Ok(taken),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_folder_is_held_by_one_at_a_time() {
        let folder = std::env::temp_dir().join(format!("sluice-lock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let held = FolderLock::take(&folder).unwrap();
        assert!(held.is_some());
        let other = FolderLock::take_within(&folder, Duration::from_secs(3)).await.unwrap();
        assert!(other.is_none());
        drop(held);
        assert!(FolderLock::take(&folder).unwrap().is_some());
        std::fs::remove_dir(&folder).unwrap();
    }
}
