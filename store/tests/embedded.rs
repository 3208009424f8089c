//! The embedded store: the contract of every store, and what only a store on a local disk can suffer.

mod contract;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_store::{
    Store, StoreError, Txn,
    embedded::{EmbeddedStore, Options},
};

const HISTORY: u64 = 64;

struct Embedded {
    dir: tempfile::TempDir,
    store: Option<Arc<EmbeddedStore>>,
}

fn options() -> Options {
    Options {
        reserve_bytes: 1,
        history_max: HISTORY,
    }
}

fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(path, &options())
}

impl Embedded {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path()).expect("opens");
        Self {
            dir,
            store: Some(Arc::new(store)),
        }
    }
}

impl contract::Fixture for Embedded {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("open")
    }

    fn reopen(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let store = self.store.take().expect("open");
            tokio::task::spawn_blocking(move || store.close())
                .await
                .expect("closes");
            self.store = Some(Arc::new(open(self.dir.path()).expect("opens again")));
        })
    }

    fn forget(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let store = self.store.clone().expect("open");
            for n in 0..HISTORY * 2 {
                let txn = Txn::new().put("elsewhere", n.to_string());
                store.commit(txn).await.expect("commits");
            }
        })
    }
}

suite!(Embedded::new());

#[tokio::test]
async fn a_second_open_is_told_that_the_store_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = open(dir.path()).expect("opens");
    let error = open(dir.path()).expect_err("taken");
    assert!(
        matches!(&error, StoreError::Locked { path } if path == dir.path()),
        "{error}"
    );
}

#[tokio::test]
async fn keys_of_a_process_that_is_gone_vanish() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("opens");
    let lease = store.grant(Duration::from_secs(600)).await.expect("grants");
    store
        .commit(Txn::new().put_leased("mine", "x", lease).put("free", "x"))
        .await
        .expect("commits");
    store.close();
    let store = open(dir.path()).expect("opens");
    assert!(store.get("mine").await.expect("reads").is_none());
    assert!(store.get("free").await.expect("reads").is_some());
    assert!(matches!(
        store.keep_alive(lease).await,
        Err(StoreError::NoLease(_))
    ));
    assert_ne!(
        store.grant(Duration::from_secs(1)).await.expect("grants"),
        lease
    );
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_reading_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("opens");
    let lease = store.grant(Duration::from_secs(600)).await.expect("grants");
    store
        .commit(Txn::new().put("k", "kept").put_leased("orphan", "x", lease))
        .await
        .expect("commits");
    store.close();
    // As if the disk had less left than is kept in reserve.
    let full = Options {
        reserve_bytes: u64::MAX,
        ..options()
    };
    let store = EmbeddedStore::open(dir.path(), &full).expect("opening writes nothing");
    let refused = store
        .commit(Txn::new().put("k", "lost"))
        .await
        .expect_err("refused");
    assert!(matches!(refused, StoreError::NoSpace { .. }) && refused.is_retryable());
    assert!(refused.hint().contains("free disk space"));
    assert_eq!(
        &*store.get("k").await.expect("reads").expect("there").value,
        b"kept"
    );
    store.close();
    let store = open(dir.path()).expect("opens");
    store
        .commit(Txn::new().put("k", "new"))
        .await
        .expect("space again");
    assert!(store.get("orphan").await.expect("reads").is_none());
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("opens");
    let mut watch = store.watch("", 0).await.expect("watches");
    store.close();
    store.close();
    assert!(matches!(
        store.commit(Txn::new().put("k", "x")).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.get("k").await, Err(StoreError::Closed)));
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
}

fn journal(dir: &Path) -> std::path::PathBuf {
    let entries = fs::read_dir(dir).expect("lists");
    entries
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .expect("a journal")
}

/// Bytes all over the first half of a journal, in turn, are damaged: each time the store either holds
/// everything that was acknowledged, or refuses and names the file.
#[tokio::test]
async fn a_damaged_journal_never_loses_in_silence() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("opens");
    for n in 0..6 {
        store
            .commit(Txn::new().put(format!("k{n}"), "some value"))
            .await
            .expect("commits");
    }
    store.close();
    let path = journal(dir.path());
    let mut whole = Vec::new();
    let file = fs::File::open(&path).expect("opens");
    file.take(256 * 1024)
        .read_to_end(&mut whole)
        .expect("reads");
    let used = whole
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty")
        + 1;
    let mut refused = 0;
    for at in (0..used / 2).step_by(23) {
        let copy = tempfile::tempdir().expect("a directory");
        copy_dir(dir.path(), copy.path());
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(journal(copy.path()))
            .expect("opens");
        file.seek(SeekFrom::Start(at as u64)).expect("seeks");
        file.write_all(&[whole[at] ^ 0xff]).expect("writes");
        drop(file);
        match open(copy.path()) {
            Ok(store) => {
                let found = store.list("k").await.expect("lists").items.len();
                assert_eq!(found, 6, "byte {at}: lost without a word");
            }
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(
                    text.contains(&copy.path().display().to_string()),
                    "byte {at}: {text}"
                );
                assert!(!error.hint().is_empty());
            }
        }
    }
    assert!(refused > 0, "damage was never noticed");
}

#[tokio::test]
async fn files_that_are_no_store_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path()).expect("opens");
    store
        .commit(Txn::new().put("k", "x"))
        .await
        .expect("commits");
    store.close();
    fs::write(dir.path().join("version"), b"garbage").expect("writes");
    let error = open(dir.path()).expect_err("damaged").to_string();
    assert!(error.contains("version"), "{error}");
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&target).expect("makes");
            copy_dir(&entry.path(), &target);
        } else {
            // Journals are preallocated and sparse: what is used lies in front.
            let mut bytes = Vec::new();
            let source = fs::File::open(entry.path()).expect("opens");
            let size = source.metadata().expect("a size").len();
            source
                .take(256 * 1024)
                .read_to_end(&mut bytes)
                .expect("reads");
            let mut file = fs::File::create(&target).expect("creates");
            file.write_all(&bytes).expect("writes");
            file.set_len(size).expect("sizes");
        }
    }
}

const CHILD: &str = "TANAKO_STORE_TEST_CHILD";

/// Not a rule but the other half of the next test: writes until it is killed, and tells of each
/// write once that is acknowledged.
#[tokio::test]
async fn child_that_writes() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = Arc::new(open(Path::new(&path)).expect("opens"));
    let writers = (0..4).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0u64.. {
                let key = format!("w{writer}/{n:06}");
                let txn = Txn::new()
                    .put(key.as_str(), n.to_string())
                    .put(format!("last/{writer}"), n.to_string());
                store.commit(txn).await.expect("commits");
                println!("acknowledged {key}");
            }
        })
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acknowledged = Vec::new();
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen = 0;
        while seen < 100 * round {
            let line = lines.next().expect("the child writes").expect("text");
            if let Some((_, key)) = line.split_once("acknowledged ") {
                acknowledged.push(key.to_owned());
                seen += 1;
            }
        }
        child.kill().expect("kills");
        // What it told before it died counts as well.
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| {
            line.split_once("acknowledged ")
                .map(|(_, key)| key.to_owned())
                .filter(|key| key.len() == 9)
        }));
        child.wait().expect("ends");
        let store = open(dir.path()).expect("opens after a kill");
        for key in &acknowledged {
            assert!(
                store.get(key).await.expect("reads").is_some(),
                "{key} was lost"
            );
        }
        // Transactions are whole.
        for writer in 0..4 {
            let listing = store.list(&format!("w{writer}/")).await.expect("lists");
            let last = store
                .get(&format!("last/{writer}"))
                .await
                .expect("reads")
                .expect("there");
            let newest = listing
                .items
                .iter()
                .max_by_key(|item| item.mod_revision)
                .expect("some");
            assert_eq!(newest.mod_revision, last.mod_revision, "half a transaction");
        }
        store.close();
    }
}
