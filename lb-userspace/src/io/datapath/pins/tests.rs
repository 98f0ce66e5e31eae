use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::sleep;

use super::*;

/// A pin directory that is no bpffs: what does not touch maps works there too.
struct Folder(PinDir);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("sluice-pins-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("maps")).unwrap();
        Self(PinDir::new(root))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.path());
    }
}

#[test]
fn links_of_any_interface_have_names_that_bpffs_takes() {
    let folder = Folder::new();
    let names = ["eth0", "eth0.100", "a%b", "%2E", "%25.%2E"];
    for name in names {
        let link = folder.0.link(name);
        assert!(!link.file_name().unwrap().to_str().unwrap().contains('.'), "{link:?}");
        File::create(link).unwrap();
    }
    let mut found = folder.0.linked_interfaces().unwrap();
    found.sort();
    let mut wanted = names.map(str::to_owned).to_vec();
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(folder.0.link("eth0"), folder.0.path().join("link-eth0"));
}

#[test]
fn a_folder_with_other_things_in_it_may_stay() {
    let folder = Folder::new();
    File::create(folder.0.link("eth0.5")).unwrap();
    File::create(folder.0.map(map::CONTROL)).unwrap();
    File::create(folder.0.path().join("ours")).unwrap();
    assert_eq!(folder.0.remove_all().unwrap(), ["eth0.5"]);
    let left: Vec<_> =
        fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ours"]);
    fs::remove_file(folder.0.path().join("ours")).unwrap();
    assert!(folder.0.remove_all().unwrap().is_empty());
    assert!(!folder.0.exists().unwrap());
    assert!(folder.0.remove_all().unwrap().is_empty(), "nothing there is no failure");
}

#[test]
fn a_link_without_all_maps_is_not_started_over() {
    let folder = Folder::new();
    assert_eq!(folder.0.pinned().unwrap(), Pinned::Nothing);
    File::create(folder.0.link("eth0")).unwrap();
    let error = folder.0.pinned().unwrap_err();
    assert!(matches!(error, PinError::Incompatible { .. }), "{error}");
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[test]
fn the_part_with_a_dot_is_named() {
    assert_eq!(dotted(Path::new("sluice/site.a/b.c")).as_deref(), Some("site.a"));
    assert_eq!(dotted(Path::new("./sluice/../site")), None);
}

#[test]
fn what_may_not_be_looked_at_is_not_taken_for_nothing() {
    let pins = PinDir::new("/sys/fs/bpf/sluice");
    let denied = pins.io(pins.path(), io::Error::from_raw_os_error(libc::EACCES));
    assert!(denied.to_string().ends_with("; run as root"), "{denied}");
    let file = Folder::new();
    File::create(file.0.path().join("file")).unwrap();
    assert!(PinDir::new(file.0.path().join("file/sluice")).exists().is_err());
}

#[tokio::test]
async fn a_lock_that_is_let_go_of_in_time_is_taken() {
    let folder = Folder::new();
    let held = folder.0.lock_within(Duration::ZERO).await.unwrap();
    let error = folder.0.lock_within(Duration::from_millis(60)).await.unwrap_err();
    assert!(matches!(error, PinError::Locked(_)), "{error}");
    let release = tokio::spawn(async move {
        sleep(Duration::from_millis(100)).await;
        drop(held);
    });
    folder.0.lock_within(Duration::from_secs(10)).await.unwrap();
    release.await.unwrap();
}
