//! The ledger in a store, the same on every backend: what was written is there again, what another
//! leader wrote is noticed, what nobody knows is read again, and keys stay few.

#[path = "../../../store/tests/etcd_kit/mod.rs"]
mod etcd_kit;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tanako_fleet::{
    ProcessName,
    identify::{Entry, RECORDS_MAX, Record, Stamp},
};
use tanako_store::{
    Fenced, Layer, Op, Outcome, Store, StoreError, Txn, election,
    embedded::{self, EmbeddedStore},
    etcd,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Ask, BotConfig, Broker, Config, Journal, JournalError};
use crate::history::{self, History};

const SOON: Duration = Duration::from_secs(60);
/// Each in a bucket of its own.
const SHARDS: u32 = 150;
/// Nobody keeps these leases alive: who leaves its office resigns.
const TTL: Duration = Duration::from_secs(600);

fn embedded_store(dir: &Path) -> Arc<dyn Store> {
    let options = embedded::Options::default();
    Arc::new(EmbeddedStore::open(&dir.join("store"), &options).expect("a store"))
}

fn etcd_store(servers: &etcd_kit::Etcd) -> Arc<dyn Store> {
    let store = etcd::EtcdStore::open(etcd::Options {
        endpoints: servers.urls(),
        prefix: "tanako/identify-test/".to_owned(),
        tls: None,
        user: None,
        timeout: Duration::from_secs(20),
    });
    Arc::new(store.expect("a store"))
}

fn grant(permit: u64) -> Record {
    Record {
        at: Stamp {
            boot_id: 1,
            boot_ms: 2,
            wall_ms: 3,
        },
        entry: Entry::Grant {
            permit,
            shard: 4,
            count: 5,
            streak: 0,
            valid_ms: 150,
        },
    }
}

async fn lead(store: &Arc<dyn Store>) -> Fenced {
    let office = election::campaign(store, "office", "me", TTL).await;
    Fenced::new(store.clone(), office.expect("elected"))
}

/// A journal of the office's next holder.
async fn next_leader(store: &Arc<dyn Store>) -> (Fenced, Journal) {
    let fenced = lead(store).await;
    let journal = Journal::new(Arc::new(fenced.clone()));
    (fenced, journal)
}

fn permits(records: &[Option<Record>]) -> Vec<u64> {
    records
        .iter()
        .map(|record| match record.as_ref().map(|r| r.entry) {
            Some(Entry::Grant { permit, .. }) => permit,
            other => panic!("{other:?}"),
        })
        .collect()
}

async fn records_outlive_their_leaders(store: Arc<dyn Store>) {
    let (office, mut journal) = next_leader(&store).await;
    let unread = journal.write("tanako", &[grant(1)], false).await;
    assert!(matches!(unread, Err(JournalError::Unread)), "{unread:?}");
    assert_eq!(journal.read("tanako").await.expect("reads"), []);
    for permit in 1..=3 {
        let keys = journal.write("tanako", &[grant(permit)], false).await;
        assert_eq!(keys.expect("writes"), permit as usize);
    }
    journal.read("tanako2").await.expect("reads");
    journal
        .write("tanako2", &[grant(77)], false)
        .await
        .expect("writes");

    // Another is elected while the first still believes.
    let mut late = Journal::new(Arc::new(office.clone()));
    late.read("tanako").await.expect("reads");
    office
        .leadership()
        .clone()
        .resign(&*store)
        .await
        .expect("resigns");
    let (_, mut second) = next_leader(&store).await;
    let found = second.read("tanako").await.expect("reads");
    assert_eq!(permits(&found), [1, 2, 3]);
    let written = second.write("tanako", &[grant(4), grant(5)], false).await;
    assert_eq!(written.expect("writes"), 4);
    for journal in [&mut journal, &mut late] {
        let refused = journal.write("tanako", &[grant(4)], false).await;
        let refused = refused.expect_err("it leads no more");
        assert!(refused.is_a_matter_of_office(), "{refused:?}");
    }

    // Everything at once, in place of all there is.
    let all: Vec<Record> = (1..=RECORDS_MAX as u64).map(grant).collect();
    let keys = second.write("tanako", &all, true).await.expect("writes");
    assert!(keys <= 20, "{keys}");
    let found = second.read("tanako").await.expect("reads");
    assert_eq!(
        permits(&found),
        (1..=RECORDS_MAX as u64).collect::<Vec<_>>()
    );
    // And once more on top of it: what is deleted and what is written fit into one transaction.
    for _ in keys..64 {
        second
            .write("tanako", &[grant(9)], false)
            .await
            .expect("writes");
    }
    second.write("tanako", &all, true).await.expect("writes");
    let bots = second.bots().await.expect("lists");
    assert_eq!(bots, ["tanako", "tanako2"].map(str::to_owned).into());

    // Two of the same office: the later one is told that it does not know what it builds on.
    let (_, mut other) = (0, Journal::new(store.clone()));
    other.read("tanako").await.expect("reads");
    second
        .write("tanako", &[grant(10)], false)
        .await
        .expect("writes");
    let refused = other.write("tanako", &[grant(10)], false).await;
    assert!(
        matches!(refused, Err(JournalError::Overtaken)),
        "{refused:?}"
    );
}

async fn damage_is_noticed(store: Arc<dyn Store>) {
    let mut journal = Journal::new(store.clone());
    journal.read("tanako").await.expect("reads");
    journal
        .write("tanako", &[grant(1), grant(2)], false)
        .await
        .expect("writes");
    let key = "identify/tanako/log/0000000000000001";
    let item = store.get(key).await.expect("reads").expect("is there");
    let mut value = item.value.to_vec();
    value[70] ^= 1;
    value.extend_from_slice(b"more");
    let txn = Txn::new()
        .put(key, value)
        .put("identify/tanako/log/what", "is this")
        .put("identify/tanako/head", "not a number");
    store.commit(txn).await.expect("writes");
    let found = journal.read("tanako").await.expect("reads");
    assert_eq!(found, [Some(grant(1)), None, None]);
    // Numbers go on behind the newest key.
    let keys = journal.write("tanako", &[grant(3)], false).await;
    assert_eq!(keys.expect("writes"), 2);
}

#[tokio::test]
async fn records_outlive_their_leaders_on_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a directory");
    records_outlive_their_leaders(embedded_store(dir.path())).await;
}

#[tokio::test]
async fn records_outlive_their_leaders_on_etcd() {
    let servers = etcd_kit::Etcd::single();
    records_outlive_their_leaders(etcd_store(&servers)).await;
}

#[tokio::test]
async fn damage_is_noticed_on_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a directory");
    damage_is_noticed(embedded_store(dir.path())).await;
}

/// What a commit comes to.
mod fate {
    pub(super) const WELL: u8 = 0;
    /// Nothing is written, and the store says so.
    pub(super) const REFUSED: u8 = 1;
    /// It is written, but the answer is lost.
    pub(super) const UNKNOWN: u8 = 2;
    /// Another agent leads.
    pub(super) const FENCED: u8 = 3;
}

/// A store in which the commit of the next permit fails as told.
struct Fickle {
    store: Arc<dyn Store>,
    fate: AtomicU8,
}

/// Whether a permit is written down with it.
fn grants(txn: &Txn) -> bool {
    txn.ops.iter().any(|op| match op {
        Op::Put { value, .. } => Record::decode_all(value)
            .iter()
            .flatten()
            .any(|record| matches!(record.entry, Entry::Grant { .. })),
        Op::Delete { .. } => false,
    })
}

impl Layer for Fickle {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            let met = if grants(&txn) {
                self.fate.swap(fate::WELL, Ordering::SeqCst)
            } else {
                fate::WELL
            };
            match met {
                fate::REFUSED => Ok(Outcome::Conflict { revision: 1 }),
                fate::FENCED => Err(StoreError::Fenced {
                    key: "office".to_owned(),
                }),
                fate::UNKNOWN => {
                    self.store.commit(txn).await?;
                    Err(StoreError::Unavailable("the line went dead".to_owned()))
                }
                _ => self.store.commit(txn).await,
            }
        })
    }
}

struct Agent {
    broker: Broker,
    history: History,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Agent {
    async fn start(store: Arc<dyn Store>, dir: &Path) -> Self {
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let history = History::start(
            history::Config {
                directory: dir.join("history"),
                host: "here".to_owned(),
            },
            cancel.clone(),
            &tracker,
        );
        let identity = dir.display().to_string();
        let config = Config { store, identity };
        let broker = Broker::start(config, history.clone(), cancel.clone(), &tracker).await;
        broker
            .configure(vec![BotConfig {
                bot: "tanako".to_owned(),
                max_concurrency: Some(SHARDS),
                reserve: None,
            }])
            .await;
        Self {
            broker,
            history,
            cancel,
            tracker,
        }
    }

    /// One permit, with the shard ready afterwards.
    async fn permit(&self, shard_id: u32) {
        let ask = Ask {
            process: format!("tanako/{shard_id}")
                .parse::<ProcessName>()
                .expect("a name"),
            attempt: 1,
            shard_id,
            shard_count: SHARDS,
            unused: None,
        };
        timeout(SOON, self.broker.acquire(ask))
            .await
            .expect("in time")
            .expect("a permit");
        self.broker.ready("tanako", shard_id, SHARDS).await;
    }

    async fn used(&self, at_least: u32) -> u32 {
        let mut status = self.broker.status();
        let reached = status.wait_for(|status| status.used >= at_least);
        timeout(SOON, reached)
            .await
            .expect("in time")
            .expect("published")
            .used
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait()).await.expect("all end");
    }
}

async fn a_broker_goes_on_where_another_stopped(store: Arc<dyn Store>, dir: &Path) {
    let fickle = Arc::new(Fickle {
        store: store.clone(),
        fate: AtomicU8::new(fate::WELL),
    });
    let first = Agent::start(fickle.clone(), &dir.join("one")).await;
    first.permit(0).await;
    first.permit(1).await;
    // Whatever becomes of a write, its permit counts if it may be in the store, and comes in the end.
    for (shard, trouble) in [fate::REFUSED, fate::UNKNOWN, fate::FENCED]
        .into_iter()
        .enumerate()
    {
        fickle.fate.store(trouble, Ordering::SeqCst);
        first.permit(2 + shard as u32).await;
        assert_eq!(
            fickle.fate.load(Ordering::SeqCst),
            fate::WELL,
            "no permit met it"
        );
    }
    // The unknown one counts.
    let used = first.used(6).await;
    assert!(used <= 9, "{used}");
    let events = first.history.events(20, 0, &["tanako".to_owned()]).await;
    let told = events
        .iter()
        .filter(|event| event.kind == "identify-ledger-unwritable");
    assert_eq!(told.count(), 1, "of the unknown one alone: {events:?}");
    for shard in 10..14 {
        first.permit(shard).await;
    }
    let used = first.used(used + 4).await;
    first.stop().await;

    // On another host, by another clock.
    let second = Agent::start(store.clone(), &dir.join("two")).await;
    assert_eq!(second.used(used).await, used);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_goes_on_where_another_stopped_on_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a directory");
    a_broker_goes_on_where_another_stopped(embedded_store(dir.path()), dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_goes_on_where_another_stopped_on_etcd() {
    let dir = tempfile::tempdir().expect("a directory");
    let servers = etcd_kit::Etcd::single();
    a_broker_goes_on_where_another_stopped(etcd_store(&servers), dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_stay_few_however_many_permits_are_given() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = embedded_store(dir.path());
    let agent = Agent::start(store.clone(), &dir.path().join("one")).await;
    let mut most = 0;
    for shard in 0..SHARDS {
        agent.permit(shard).await;
        let listing = store.list("identify/tanako/").await.expect("lists");
        most = most.max(listing.items.len());
    }
    assert!(most <= 70, "{most} keys");
    assert!(most >= 60, "it was not tried: {most}");
    assert_eq!(agent.used(SHARDS).await, SHARDS);
    agent.stop().await;
    let mut journal = Journal::new(store);
    let records = journal.read("tanako").await.expect("reads");
    let given: BTreeSet<u32> = records
        .iter()
        .flatten()
        .filter_map(|record| match record.entry {
            Entry::Grant { shard, .. } => Some(shard),
            _ => None,
        })
        .collect();
    assert_eq!(given.len(), SHARDS as usize);
}
