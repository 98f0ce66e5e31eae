use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A state directory of its own, removed with everything in it.
struct State(PathBuf);

impl State {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("sluice-history-{}-{number}", std::process::id())))
    }

    fn open(&self) -> History {
        History::open(&self.0)
    }

    fn files(&self) -> usize {
        fs::read_dir(self.0.join("history")).unwrap().count()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn entry(revision: u64) -> Entry {
    Entry::new(revision, Some(1_000), format!("change {revision}"))
}

fn revisions(history: &History) -> Vec<u64> {
    history.entries().map(|entry| entry.revision).collect()
}

#[test]
fn who_confirmed_a_change_is_kept_with_it() {
    let state = State::new();
    let mut history = state.open();
    history.confirm(None).unwrap();
    history.push(entry(1), "one").unwrap();
    history.push(entry(2), "two").unwrap();
    history.confirm(Some(7)).unwrap();
    let again = state.open();
    let confirmed: Vec<_> = again.entries().map(|entry| entry.confirmed.map(|by| by.uid)).collect();
    assert_eq!((confirmed, again.text(2).unwrap()), (vec![None, Some(Some(7))], Some("two".into())));
    assert_eq!(revisions(&again), [1, 2]);
}

#[test]
fn what_is_kept_is_found_again() {
    let state = State::new();
    let mut history = state.open();
    assert_eq!(history.last_revision(), 0);
    let change = Change { path: "a".into(), before: None, after: Some("1".into()) };
    let second = entry(2).with_effect(&vec![change; 30], &[], 7);
    history.push(entry(1), "one").unwrap();
    history.push(second.clone(), "two").unwrap();
    assert_eq!((second.changes.len(), second.changes_count, second.flows_lost), (20, 30, 7));

    let again = state.open();
    assert_eq!(
        again.entries().cloned().collect::<Vec<_>>(),
        [history.entries().next().unwrap().clone(), second]
    );
    assert_eq!((again.text(1).unwrap(), again.text(2).unwrap()), (Some("one".into()), Some("two".into())));
    assert_eq!((again.text(3).unwrap(), again.last_revision()), (None, 2));
    let mode = fs::metadata(state.0.join("history")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "a configuration may hold a secret");
}

#[test]
fn the_disk_is_bounded() {
    let state = State::new();
    let mut history = state.open();
    for revision in 1..=MAX_ENTRIES as u64 + 5 {
        history.push(entry(revision), "small").unwrap();
    }
    assert_eq!((history.entries().count(), state.files()), (MAX_ENTRIES, MAX_ENTRIES));
    assert_eq!(revisions(&history)[0], 6);
    let large = "x".repeat((MAX_BYTES / 2) as usize);
    for revision in 200..203 {
        history.push(entry(revision), &large).unwrap();
    }
    assert_eq!((revisions(&history), state.files()), (vec![201, 202], 2), "the last two, whatever they take");
    assert_eq!(revisions(&state.open()), [201, 202]);
}

#[test]
fn a_change_that_waits_survives_until_it_is_settled() {
    let state = State::new();
    let history = state.open();
    assert_eq!(history.pending().unwrap(), None);
    let pending =
        Pending { revision: 3, uid: None, what: "apply".into(), before: "a".into(), after: "b".into() };
    history.set_pending(&pending).unwrap();
    assert_eq!(state.open().pending().unwrap(), Some(pending));
    assert_eq!(state.open().entries().count(), 0, "it is no entry");
    history.clear_pending().unwrap();
    history.clear_pending().unwrap();
    assert_eq!(history.pending().unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_left_out() {
    let state = State::new();
    let mut history = state.open();
    history.push(entry(1), "one").unwrap();
    fs::write(history.path_of(2), "{").unwrap();
    fs::rename(history.path_of(1), history.path_of(4)).unwrap();
    history.push(entry(3), "three").unwrap();
    assert_eq!(revisions(&state.open()), [3]);
    fs::write(history.pending_path(), "{").unwrap();
    let error = state.open().pending().unwrap_err().to_string();
    assert!(error.contains("unconfirmed.json"), "{error}");
}

#[test]
fn without_a_folder_nothing_is_kept_and_that_is_told() {
    let state = State::new();
    fs::write(&state.0, "no folder").unwrap();
    let mut history = state.open();
    assert!(history.push(entry(1), "one").is_err());
    assert_eq!(history.last_revision(), 1, "known until the agent ends");
    assert!(history.text(1).is_err());
    fs::remove_file(&state.0).unwrap();
}
