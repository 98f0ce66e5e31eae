use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A folder of its own, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("sluice-events-{}-{number}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn failure(cause: impl ToString) -> Event {
    Event::NotReconciled { cause: cause.to_string() }
}

fn seqs(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

fn everything() -> Filter {
    Filter { limit: usize::MAX, ..Filter::default() }
}

#[tokio::test]
async fn events_go_on_where_the_agent_before_ended_even_in_the_middle_of_a_line() {
    let folder = Folder::new();
    let log = EventLog::open(&folder.0);
    log.record(failure("a"));
    log.record(failure("b"));
    drop(log);
    let mut file = OpenOptions::new().append(true).open(folder.0.join(FILE)).unwrap();
    file.write_all(b"{\"seq\":3,\"time\":\"2027-").unwrap();
    drop(file);
    let log = EventLog::open(&folder.0);
    log.record(failure("c"));
    let Events { events, last } = log.select(everything()).await;
    assert_eq!((seqs(&events), last), (vec![1, 2, 3], 3));
    assert_eq!(from_folder(&folder.0, &everything()), events, "without an agent");
    assert_eq!(seqs(&from_folder(&folder.0, &Filter { limit: 2, ..Filter::default() })), [2, 3]);
}

#[tokio::test]
async fn the_disk_is_bounded_and_tells_what_memory_has_forgotten() {
    let folder = Folder::new();
    let log = EventLog::open(&folder.0);
    let long = "x".repeat(2_000);
    for _ in 0..10_000 {
        log.record(failure(&long));
    }
    let bytes = |name: &str| fs::metadata(folder.0.join(name)).map_or(0, |metadata| metadata.len());
    let (former, current) = (bytes(FORMER_FILE), bytes(FILE));
    assert!((MAX_FILE_BYTES..MAX_FILE_BYTES + 10_000).contains(&former), "{former}");
    assert!(current < MAX_FILE_BYTES, "{current}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
    let found = log.select(Filter { limit: 3_000, ..Filter::default() }).await.events;
    assert_eq!((found.len(), found.last().unwrap().seq), (3_000, 10_000));
    // Who asks on and on misses none, wherever they are.
    let first = found.first().unwrap().seq;
    let next = log.select(Filter { after: Some(first), limit: 500, ..Filter::default() }).await.events;
    assert_eq!(seqs(&next), (first + 1..=first + 500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_question_waits_for_the_next_event_that_is_wanted() {
    let folder = Folder::new();
    let log = EventLog::open(&folder.0);
    log.record(failure("before"));
    let wanted = Filter { after: Some(1), wait: 20, kind: Some("attached".into()), ..Filter::default() };
    let asked = tokio::spawn({
        let log = log.clone();
        async move { log.select(wanted).await }
    });
    tokio::task::yield_now().await;
    log.record(failure("not wanted"));
    tokio::task::yield_now().await;
    assert!(!asked.is_finished());
    log.record(Event::Attached { interface: "eth0".into() });
    assert_eq!(seqs(&asked.await.unwrap().events), [3]);
    // Numbers of a log that is gone are no reason to be told nothing.
    assert_eq!(log.select(Filter { after: Some(99), ..Filter::default() }).await.events.len(), 3);
}

#[tokio::test]
async fn without_a_place_on_the_disk_memory_serves() {
    let folder = Folder::new();
    fs::write(&folder.0, "a file").unwrap();
    let log = EventLog::open(&folder.0);
    log.record(failure("a"));
    assert_eq!(log.select(everything()).await.events.len(), 1);
    fs::remove_file(&folder.0).unwrap();
}

#[test]
fn a_kind_that_there_is_not_is_refused() {
    let of = |kind: &str| Filter { kind: Some(kind.to_owned()), ..Filter::default() }.check();
    assert_eq!(of("health,applied"), Ok(()));
    assert!(of("health,nope").unwrap_err().starts_with("kind: \"nope\" is not known; known here: ready, "));
}

#[test]
fn only_an_agent_that_served_ends_without_a_word() {
    let folder = Folder::new();
    let lapses = |events: &[Event]| {
        let log = EventLog::open(&folder.0);
        events.iter().for_each(|event| log.record(event.clone()));
        drop(log);
        let log = EventLog::open(&folder.0);
        log.note_lapse();
        matches!(log.latest(1).events.pop().map(|last| last.event), Some(Event::Lapsed { .. }))
    };
    let ready = || Event::Ready { version: "1".into(), what: "services: 1".into() };
    let ending = || Event::Ending { data_plane: "goes on".into() };
    let adopted = || Event::Adopted { services: 1 };
    assert!(!lapses(&[]), "the first one");
    assert!(!lapses(&[adopted()]), "a start that failed");
    assert!(lapses(&[ready(), failure("a")]));
    assert!(!lapses(&[adopted()]), "that was told already");
    assert!(!lapses(&[ready(), ending()]));
    assert!(!lapses(&[adopted()]), "a start that failed, after one that ended");
}

#[test]
fn the_disk_is_bounded_where_no_new_file_can_be_begun() {
    let folder = Folder::new();
    fs::create_dir_all(folder.0.join(FORMER_FILE).join("in the way")).unwrap();
    let log = EventLog::open(&folder.0);
    let long = "x".repeat(2_000);
    for _ in 0..2_500 {
        log.record(failure(&long));
        log.sign_of_life();
    }
    let bytes = fs::metadata(folder.0.join(FILE)).unwrap().len();
    assert!((MAX_FILE_BYTES..MAX_FILE_BYTES + 5_000).contains(&bytes), "{bytes}");
}

/// What was in the way costs nothing but what memory has forgotten meanwhile.
#[tokio::test]
async fn what_could_not_be_written_is_written_once_it_can_be() {
    let folder = Folder::new();
    fs::write(&folder.0, "in the way").unwrap();
    let log = EventLog::open(&folder.0);
    log.record(failure("a"));
    log.record(failure("b"));
    log.sign_of_life();
    fs::remove_file(&folder.0).unwrap();
    log.sign_of_life();
    let written = from_folder(&folder.0, &everything());
    assert_eq!(seqs(&written), [1, 2], "without another event");
    log.record(failure("c"));
    fs::remove_dir_all(&folder.0).unwrap();
    log.0.inner.lock().unwrap().file = None;
    log.record(failure("d"));
    log.sign_of_life();
    assert_eq!(
        seqs(&from_folder(&folder.0, &everything())),
        [4],
        "what was written once is not written again"
    );
}
