//! The copy of the session vault in the store: small, seldom, never waited for, and enough for
//! another host to RESUME. On the embedded store and on a real etcd.

#[allow(unused_imports, reason = "these tests need a part of it")]
#[path = "../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;
mod spec_kit;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tanako_agent::{
    history::{self, History},
    vault::{DepositError, Pace, Vault},
};
use tanako_fleet::ProcessSpec;
use tanako_proto::worker::v1::{GuildCounts, SessionDeposit};
use tanako_store::{
    LeaseId, Listing, Outcome, Revision, Store, StoreError, Txn, Watch, embedded, etcd,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(60);
const SHARDS: u32 = 200;

fn spec(process: &str) -> ProcessSpec {
    spec_kit::worker(process, (0..SHARDS).collect(), SHARDS, SOON)
}

fn deposit(shard_id: u32, seq: u64, ack: u64) -> SessionDeposit {
    SessionDeposit {
        shard_id,
        shard_count: SHARDS,
        session_id: format!("secret-session-{shard_id}"),
        seq,
        resume_url: "wss://gateway.example".to_owned(),
        token_sha256: vec![7; 32].into(),
        guilds: (seq == 1).then(|| GuildCounts {
            ids: (0..2_500).map(|n| 81_384_788_765_712_384 + n).collect(),
            members: vec![1; 2_500],
        }),
        handled_interactions: (seq..seq + 3_000).collect(),
        ack,
        ..SessionDeposit::default()
    }
}

/// A store that counts what it is asked for, and can be made to refuse or to hang.
struct Watched {
    inner: Arc<dyn Store>,
    refuse: AtomicBool,
    hang: AtomicBool,
    commits: Mutex<Vec<usize>>,
}

impl Watched {
    fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            refuse: AtomicBool::new(false),
            hang: AtomicBool::new(false),
            commits: Mutex::default(),
        })
    }

    async fn trouble(&self) -> Result<(), StoreError> {
        if self.hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.refuse.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("switched off".to_owned()));
        }
        Ok(())
    }

    fn commits(&self) -> Vec<usize> {
        self.commits.lock().expect("no panic").clone()
    }
}

impl Store for Watched {
    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<tanako_store::KeyValue>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            self.trouble().await?;
            self.inner.list(prefix).await
        })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            self.trouble().await?;
            if txn.ops.iter().any(|op| op.key().starts_with("vault/")) {
                self.commits.lock().expect("no panic").push(txn.ops.len());
            }
            self.inner.commit(txn).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Watch, StoreError>> {
        self.inner.watch(prefix, from)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.revoke(lease)
    }
}

/// An agent's vault.
struct Host {
    cancel: CancellationToken,
    tracker: TaskTracker,
    vault: Vault,
    history: History,
}

impl Host {
    async fn begin(dir: &Path, store: Option<Arc<dyn Store>>, every: Duration) -> Self {
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let config = history::Config {
            directory: dir.join("history"),
            host: "here".to_owned(),
        };
        let history = History::start(config, cancel.clone(), &tracker);
        let (vault_cancel, vault_dir) = (cancel.clone(), dir.join("vault"));
        let vault = Vault::start(vault_dir, history.clone(), vault_cancel, &tracker)
            .await
            .expect("the vault opens");
        if let Some(store) = store {
            let pace = Pace {
                every,
                at_once: true,
            };
            vault.copy_to(store, pace, cancel.clone(), &tracker);
        }
        Self {
            cancel,
            tracker,
            vault,
            history,
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(SOON, self.tracker.wait())
            .await
            .expect("all tasks end");
    }

    async fn give(&self, process: &ProcessSpec, attempt: u64, shard: u32, seq: u64, ack: u64) {
        self.vault
            .deposit(&process.name, attempt, deposit(shard, seq, ack))
            .await
            .expect("kept");
    }

    fn seq(&self, process: &ProcessSpec, shard: u32) -> Option<u64> {
        let sessions = self.vault.sessions_for(process, Some([7; 32]));
        let found = sessions.into_iter().find(|one| one.shard_id == shard);
        found.map(|session| session.seq)
    }

    async fn copied(&self) {
        until("copied", || self.vault.status().uncopied == 0).await;
    }

    async fn events(&self, kind: &str) -> usize {
        let events = self.history.events(1_000, 0, &[]).await;
        events.iter().filter(|event| event.kind == kind).count()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "never {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn embedded_store(dir: &Path) -> Arc<dyn Store> {
    let store = embedded::EmbeddedStore::open(&dir.join("store"), &embedded::Options::default());
    Arc::new(store.expect("opens"))
}

fn etcd_store(servers: &etcd_kit::Etcd) -> Arc<dyn Store> {
    let store = etcd::EtcdStore::open(etcd::Options {
        endpoints: servers.urls(),
        prefix: "tanako/vault-test/".to_owned(),
        tls: None,
        user: None,
        timeout: Duration::from_secs(20),
    });
    Arc::new(store.expect("good options"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_small_few_and_gathered() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Watched::new(embedded_store(dir.path()));
    // So long that only new sessions and last deposits make it copy.
    let host = Host::begin(dir.path(), Some(store.clone()), SOON * 100).await;
    let process = spec("tanako/0");
    host.vault.attach(&process, 1);
    for shard in 0..SHARDS {
        host.give(&process, 1, shard, 1, 0).await;
    }
    until("safe", || host.vault.status().only_here == 0).await;
    host.give(&process, 1, 0, 2, 1).await;
    host.copied().await;
    let before = store.commits().len();
    for round in 2..=11 {
        for shard in 0..SHARDS {
            host.give(&process, 1, shard, round, 0).await;
        }
    }
    // One that is final takes all along.
    host.give(&process, 1, 0, 12, 1).await;
    host.copied().await;
    // Two thousand deposits, two of them final: two passes of four transactions, and one that may
    // have been under way.
    let commits = store.commits().split_off(before);
    assert!(
        commits.len() <= 12 && commits.iter().all(|ops| *ops <= 64),
        "{commits:?}"
    );
    let listing = store.list("vault/").await.expect("lists");
    assert_eq!(listing.items.len(), SHARDS as usize);
    for item in &listing.items {
        assert!(item.value.len() < 4_096, "{} bytes", item.value.len());
    }
    // A set that is no more vanishes from the store, and does not come back from it.
    host.vault.forget("tanako", SHARDS);
    host.copied().await;
    for gone in ["vault/", "guilds/"] {
        let listing = store.list(gone).await.expect("lists");
        assert_eq!(listing.items, []);
    }
    assert!(host.vault.refresh(&process, SOON).await);
    assert_eq!(host.seq(&process, 0), None);
    host.end().await;
}

/// A host may die right after its shards have identified.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_is_copied_at_once() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let store = Watched::new(embedded_store(dirs[0].path()));
    let a = Host::begin(dirs[0].path(), Some(store.clone()), SOON * 100).await;
    let process = spec("tanako/0");
    a.vault.attach(&process, 1);
    let replacing = |id: &str| SessionDeposit {
        session_id: id.to_owned(),
        ..deposit(3, 2, 0)
    };
    for id in ["secret-session-3", "secret-session-another"] {
        let kept = a.vault.deposit(&process.name, 1, replacing(id)).await;
        kept.expect("kept");
        until("safe", || a.vault.status().only_here == 0).await;
        let b = Host::begin(dirs[1].path(), Some(store.clone()), SOON * 100).await;
        assert!(b.vault.refresh(&process, SOON).await);
        let found = b.vault.sessions_for(&process, None);
        let found: Vec<&str> = found.iter().map(|one| one.session_id.as_str()).collect();
        assert_eq!(found, [id]);
        assert_eq!(b.vault.status().only_here, 0);
        b.end().await;
    }
    // One that the store does not get is told of, also by the next life of the agent.
    store.refuse.store(true, Ordering::Relaxed);
    let kept = a.vault.deposit(&process.name, 1, deposit(4, 2, 1)).await;
    kept.expect("kept");
    assert_eq!(a.vault.status().only_here, 1);
    a.end().await;
    let a = Host::begin(dirs[0].path(), Some(store.clone()), SOON * 100).await;
    assert_eq!(a.vault.status().only_here, 2, "the store has not been read");
    store.refuse.store(false, Ordering::Relaxed);
    until("safe", || a.vault.status().only_here == 0).await;
    a.end().await;
}

/// A host dies; another resumes its shards; the first comes back with old files.
async fn another_host_takes_over(store: Arc<dyn Store>) {
    let (a_dir, b_dir) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let process = spec("tanako/0");
    let quick = Duration::from_millis(50);
    let a = Host::begin(a_dir.path(), Some(store.clone()), quick).await;
    a.vault.attach(&process, 7);
    let b = Host::begin(b_dir.path(), Some(store.clone()), quick).await;
    for shard in 0..8 {
        a.give(&process, 7, shard, 100 + u64::from(shard), 0).await;
    }
    a.give(&process, 7, 9, 1, 0).await;
    a.copied().await;
    let list = format!("guilds/tanako/{SHARDS}/9");
    let deadline = tokio::time::Instant::now() + SOON;
    while store.get(&list).await.expect("reads").is_none() {
        assert!(tokio::time::Instant::now() < deadline, "no guild list");
        tokio::time::sleep(quick).await;
    }
    assert!(b.vault.refresh(&process, SOON).await);
    assert_eq!(b.seq(&process, 3), Some(103));
    let guild = 81_384_788_765_712_384;
    assert_eq!(
        b.vault.has_guild("tanako", 9, SHARDS, guild),
        Some(true),
        "a RESUME does not tell the guilds again"
    );
    assert_eq!(b.vault.has_guild("tanako", 3, SHARDS, guild), None);
    // a is cut off, and goes on depositing to nobody's good.
    let saved = tempfile::tempdir().expect("a directory");
    a.give(&process, 7, 3, 105, 1).await;
    let vault_files = a_dir.path().join("vault");
    std::fs::create_dir_all(saved.path().join("vault")).expect("makes");
    for entry in std::fs::read_dir(&vault_files).expect("lists") {
        let entry = entry.expect("lists");
        std::fs::copy(
            entry.path(),
            saved.path().join("vault").join(entry.file_name()),
        )
        .expect("copies");
    }
    // What it has not copied by its end it would try only for a moment.
    a.copied().await;
    a.end().await;

    assert!(b.vault.refresh(&process, SOON).await);
    assert_eq!(b.seq(&process, 3), Some(105), "the last one was final");
    b.vault.attach(&process, 8);
    b.give(&process, 8, 3, 110, 0).await;
    let fresh = SessionDeposit {
        session_id: "secret-session-fresh".to_owned(),
        ..deposit(4, 1, 1)
    };
    b.vault
        .deposit(&process.name, 8, fresh)
        .await
        .expect("kept");
    b.copied().await;

    let a = Host::begin(saved.path(), Some(store.clone()), quick).await;
    until("merged", || a.seq(&process, 3) == Some(110)).await;
    assert_eq!(
        a.seq(&process, 4),
        Some(1),
        "the session that replaced its own"
    );
    assert_eq!(
        a.vault.deposit(&process.name, 7, deposit(3, 120, 0)).await,
        Err(DepositError::Superseded),
        "an attempt that is over"
    );
    // Both go on: nobody's file is lost over the other's writes.
    b.give(&process, 8, 3, 130, 0).await;
    b.copied().await;
    a.copied().await;
    assert!(a.vault.refresh(&process, SOON).await);
    assert_eq!(a.seq(&process, 3), Some(130));
    assert_eq!(b.seq(&process, 3), Some(130));
    a.end().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_takes_over_on_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a directory");
    another_host_takes_over(embedded_store(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_takes_over_on_etcd() {
    let servers = etcd_kit::Etcd::single();
    another_host_takes_over(etcd_store(&servers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_store_that_is_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Watched::new(embedded_store(dir.path()));
    store.hang.store(true, Ordering::Relaxed);
    let quick = Duration::from_millis(20);
    let host = Host::begin(dir.path(), Some(store.clone()), quick).await;
    let process = spec("tanako/0");
    host.vault.attach(&process, 1);
    // The store hangs: last deposits are safe on the own disk all the same, and offered.
    for shard in 0..SHARDS {
        host.give(&process, 1, shard, 5, u64::from(shard % 20 == 0))
            .await;
    }
    assert_eq!(
        host.vault.sessions_for(&process, None).len(),
        SHARDS as usize
    );
    assert!(
        !host
            .vault
            .refresh(&process, Duration::from_millis(50))
            .await
    );
    host.end().await;

    store.hang.store(false, Ordering::Relaxed);
    store.refuse.store(true, Ordering::Relaxed);
    let host = Host::begin(dir.path(), Some(store.clone()), quick).await;
    until("told", || host.vault.status().copy_failing).await;
    host.give(&process, 1, 3, 6, 1).await;
    assert_eq!(host.seq(&process, 3), Some(6));
    assert_eq!(store.commits(), Vec::<usize>::new());
    store.refuse.store(false, Ordering::Relaxed);
    host.copied().await;
    // Told a moment after the copy is there.
    let deadline = Instant::now() + SOON;
    while host.events("vault-copied").await == 0 {
        assert!(Instant::now() < deadline, "never told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!host.vault.status().copy_failing);
    assert_eq!(host.events("vault-not-copied").await, 1, "told once");
    assert_eq!(host.events("vault-copied").await, 1);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_delays_the_copy_only() {
    let mut servers = etcd_kit::Etcd::single();
    let dir = tempfile::tempdir().expect("a directory");
    let store = etcd_store(&servers);
    let quick = Duration::from_millis(50);
    let host = Host::begin(dir.path(), Some(store.clone()), quick).await;
    let process = spec("tanako/0");
    host.vault.attach(&process, 1);
    host.give(&process, 1, 1, 1, 1).await;
    host.copied().await;
    servers.members[0].kill();
    for seq in 2..50 {
        host.give(&process, 1, 1, seq, 1).await;
    }
    assert_eq!(host.seq(&process, 1), Some(49));
    servers.start();
    servers.wait_ready();
    host.copied().await;
    let other = tempfile::tempdir().expect("a directory");
    let heir = Host::begin(other.path(), Some(store), quick).await;
    until("taken in", || heir.seq(&process, 1) == Some(49)).await;
    heir.end().await;
    host.end().await;
}
