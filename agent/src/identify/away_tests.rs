//! Permits of another agent: answers that are lost, an office that changes hands while somebody waits.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use tanako_fleet::identify::RULE_MS;
use tanako_proto::{
    host::v1::{GatewayReport, PermitReply, PermitRequest},
    worker::v1::GatewayLimits,
};
use tanako_store::{
    Fenced, Store, election,
    embedded::{self, EmbeddedStore},
};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use super::{Ask, BotConfig, Broker, Config, Counter, Office, Upstream};
use crate::{
    clock::boot_ms,
    history::{self, History},
};

const SOON: Duration = Duration::from_secs(90);
const TTL: Duration = Duration::from_secs(3600);

/// The way of one agent to the others, which loses every n-th question and every m-th answer.
struct Way {
    own: &'static str,
    office: watch::Receiver<Office>,
    counters: Mutex<Vec<(&'static str, Counter)>>,
    calls: AtomicU32,
    lossy: bool,
}

impl Way {
    fn new(own: &'static str, office: watch::Receiver<Office>, lossy: bool) -> Arc<Self> {
        Arc::new(Self {
            own,
            office,
            counters: Mutex::default(),
            calls: AtomicU32::new(0),
            lossy,
        })
    }

    fn counter(&self, host: &str) -> Result<Counter, Status> {
        let counters = self.counters.lock().expect("no panic holds it");
        let found = counters.iter().find(|(name, _)| *name == host);
        found
            .map(|(_, counter)| counter.clone())
            .ok_or_else(|| Status::unavailable("no such host"))
    }
}

impl Upstream for Way {
    fn office(&self) -> watch::Receiver<Office> {
        self.office.clone()
    }

    fn acquire(
        &self,
        host: String,
        request: PermitRequest,
    ) -> BoxFuture<'_, Result<PermitReply, Status>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            if self.lossy && call % 5 == 1 {
                return Err(Status::unavailable("the question was lost"));
            }
            let reply = self.counter(&host)?.acquire(request).await;
            if self.lossy && call.is_multiple_of(3) {
                return Err(Status::unavailable("the answer was lost"));
            }
            reply
        })
    }

    fn report(&self, host: String, report: GatewayReport) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            if self.lossy && call.is_multiple_of(2) {
                return Err(Status::unavailable("the report was lost"));
            }
            self.counter(&host)?.report(report).await
        })
    }

    fn own(&self) -> &str {
        self.own
    }
}

struct Agent {
    broker: Broker,
    counter: Counter,
}

/// An agent that leads when `office` says so, by its own way.
async fn agent(
    dir: &Path,
    store: Arc<dyn Store>,
    way: &Arc<Way>,
    max_concurrency: u32,
    stop: (&CancellationToken, &TaskTracker),
) -> Agent {
    let (cancel, tracker) = stop;
    let history = History::start(
        history::Config {
            directory: dir.join(way.own),
            host: way.own.to_owned(),
        },
        cancel.clone(),
        tracker,
    );
    let config = Config {
        store,
        identity: way.own.to_owned(),
    };
    let broker = Broker::start(config, history, cancel.clone(), tracker).await;
    broker
        .configure(vec![BotConfig {
            bot: "tanako".to_owned(),
            max_concurrency: Some(max_concurrency),
            reserve: None,
        }])
        .await;
    broker.set_upstream(
        Arc::clone(way) as Arc<dyn Upstream>,
        cancel.clone(),
        tracker,
    );
    let counter = Counter::open(
        broker.clone(),
        Arc::clone(way) as Arc<dyn Upstream>,
        Arc::new(|process| (process.as_str() == "tanako/15").then(|| "c".to_owned())),
        cancel.clone(),
        tracker,
    );
    Agent { broker, counter }
}

fn ask(shard_id: u32) -> Ask {
    Ask {
        process: format!("tanako/{shard_id}").parse().expect("a name"),
        attempt: 1,
        shard_id,
        shard_count: 16,
        unused: None,
    }
}

fn embedded(dir: &Path) -> Arc<dyn Store> {
    let options = embedded::Options::default();
    Arc::new(EmbeddedStore::open(&dir.join("store"), &options).expect("a store"))
}

async fn lead(store: &Arc<dyn Store>, who: &str) -> Fenced {
    let office = election::campaign(store, "office", who, TTL).await;
    Fenced::new(store.clone(), office.expect("elected"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_questions_and_answers_cost_time_and_no_shard_its_permit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
    let store = embedded(dir.path());
    let fenced: Arc<dyn Store> = Arc::new(lead(&store, "a").await);
    let (_a, at_a) = watch::channel(Office::Here);
    let (_b, at_b) = watch::channel(Office::At("a".to_owned()));
    let (way_a, way_b) = (Way::new("a", at_a, false), Way::new("b", at_b, true));
    let stop = (&cancel, &tracker);
    let a = agent(dir.path(), fenced, &way_a, 16, stop).await;
    // Its own store is never written: it does not lead.
    let b = agent(dir.path(), store.clone(), &way_b, 16, stop).await;
    let counters = vec![("a", a.counter.clone())];
    *way_b.counters.lock().expect("no panic holds it") = counters;

    let permits = join_all((0..8).map(|shard| {
        let broker = b.broker.clone();
        async move {
            let permit = timeout(SOON, broker.acquire(ask(shard))).await;
            let permit = permit.expect("in time").expect("a permit");
            assert!(permit.until_boot_ms <= boot_ms() + tanako_fleet::identify::VALID_MS);
            permit.number
        }
    }))
    .await;
    let mut numbers = permits.clone();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8, "each its own: {permits:?}");

    // What b's workers learn is a's to know.
    let limits = GatewayLimits {
        recommended_shards: 16,
        total: 500,
        remaining: 400,
        reset_after_ms: 1_000_000,
        max_concurrency: 16,
    };
    b.broker.limits("tanako", limits).await;
    let mut status = a.broker.status();
    let known = status.wait_for(|status| status.bots.iter().any(|bot| bot.total == 500));
    drop(timeout(SOON, known).await.expect("in time").expect("runs"));
    let ledgers = b.broker.status().borrow().clone();
    assert!(
        ledgers.bots.iter().all(|bot| bot.used == 0),
        "b's own ledger gave nothing: {ledgers:?}"
    );
    cancel.cancel();
    tracker.close();
    timeout(SOON, tracker.wait()).await.expect("ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_goes_on_at_the_next_office_and_the_bucket_keeps_its_distance() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
    let store = embedded(dir.path());
    let first = lead(&store, "a").await;
    let (here, at_a) = watch::channel(Office::Here);
    let (there, at_b) = watch::channel(Office::At("a".to_owned()));
    let (next, at_c) = watch::channel(Office::At("a".to_owned()));
    let (way_a, way_b, way_c) = (
        Way::new("a", at_a, false),
        Way::new("b", at_b, false),
        Way::new("c", at_c, false),
    );
    let stop = (&cancel, &tracker);
    let a = agent(dir.path(), Arc::new(first.clone()), &way_a, 1, stop).await;
    let b = agent(dir.path(), store.clone(), &way_b, 1, stop).await;
    *way_b.counters.lock().expect("no panic holds it") = vec![("a", a.counter.clone())];

    let permit = timeout(SOON, b.broker.acquire(ask(0))).await;
    let late = permit.expect("in time").expect("a permit");
    // It came too late to its worker, and is given back.
    let again = Ask {
        unused: Some(late.number),
        ..ask(0)
    };
    let permit = timeout(SOON, b.broker.acquire(again)).await;
    let permit = permit.expect("in time").expect("a permit");
    assert!(permit.number > late.number);
    assert_eq!(permit.remaining, late.remaining);
    let given = permit.until_boot_ms;
    let waiting = tokio::spawn({
        let broker = b.broker.clone();
        async move { broker.acquire(ask(1)).await }
    });
    // The second one waits at a for the one bucket there is.
    let mut status = a.broker.status();
    let queued = status.wait_for(|status| status.buckets.iter().any(|one| one.waiting == [1]));
    drop(timeout(SOON, queued).await.expect("in time").expect("runs"));

    // The office goes to c.
    let leadership = first.leadership().clone();
    leadership.resign(&*store).await.expect("resigns");
    let second: Arc<dyn Store> = Arc::new(lead(&store, "c").await);
    let c = agent(dir.path(), second, &way_c, 1, stop).await;
    way_b
        .counters
        .lock()
        .expect("no panic holds it")
        .push(("c", c.counter.clone()));
    next.send_replace(Office::Here);
    here.send_replace(Office::At("c".to_owned()));
    there.send_replace(Office::At("c".to_owned()));
    let permit = timeout(SOON, waiting).await.expect("in time");
    let permit = permit.expect("no panic").expect("a permit");
    let apart = permit.until_boot_ms - given;
    assert!(apart >= RULE_MS, "{apart} ms apart");
    // And at a nobody waits any more.
    let gone = status.wait_for(|status| status.buckets.iter().all(|one| one.waiting.is_empty()));
    drop(timeout(SOON, gone).await.expect("in time").expect("runs"));
    let refused = a
        .counter
        .acquire(PermitRequest {
            id: "x".to_owned(),
            host: "b".to_owned(),
            process: "tanako/3".to_owned(),
            bot: "tanako".to_owned(),
            attempt: 1,
            shard_id: 3,
            shard_count: 16,
            wait_ms: 1_000,
            via: "worker".to_owned(),
            unused: 0,
        })
        .await
        .expect_err("it leads no more");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let nonsense = c
        .counter
        .acquire(PermitRequest {
            bot: "other".to_owned(),
            ..PermitRequest::default()
        })
        .await
        .expect_err("nonsense");
    assert_eq!(nonsense.code(), tonic::Code::InvalidArgument);
    // What another host has is not b's to start.
    let asked = |process: &str| {
        let request = PermitRequest {
            host: "b".to_owned(),
            process: process.to_owned(),
            ..PermitRequest::default()
        };
        c.counter.stranger(&request)
    };
    let problem = asked("tanako/15").expect("it is c's");
    assert_eq!(problem.code, "denied");
    assert!(problem.message.contains("which is host c's"), "{problem:?}");
    assert!(asked("tanako/1").is_none() && asked("").is_none());
    cancel.cancel();
    tracker.close();
    timeout(SOON, tracker.wait()).await.expect("ends");
}
