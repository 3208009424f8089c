//! The etcd store against real servers: the contract of every store, and what only a server over a
//! network can suffer.

mod contract;
mod etcd_kit;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_kit::{Etcd, Proxy};
use futures_util::future::{BoxFuture, join_all};
use tanako_store::{
    Store, StoreError, Txn, election,
    etcd::{EtcdStore, Options, Tls, User},
};

/// Longer than a loaded machine needs.
const SOON: Duration = Duration::from_secs(60);

fn options(endpoints: Vec<String>) -> Options {
    Options {
        endpoints,
        prefix: "tanako/t/".to_owned(),
        tls: None,
        user: None,
        timeout: Duration::from_secs(20),
    }
}

fn open(options: Options) -> EtcdStore {
    EtcdStore::open(options).expect("good options")
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("no {what} in time"))
}

/// Asks until there is an answer.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let until = Instant::now() + SOON;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    let outcome = store
        .commit(Txn::new().put(key, value.to_owned()))
        .await
        .expect("commits");
    outcome.committed().expect("unconditional")
}

struct Single {
    etcd: Etcd,
    store: EtcdStore,
}

impl Single {
    fn new() -> Self {
        let etcd = Etcd::single();
        let store = open(options(etcd.urls()));
        Self { etcd, store }
    }
}

impl contract::Fixture for Single {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    fn reopen(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.etcd.restart();
            self.store = open(options(self.etcd.urls()));
        })
    }

    fn forget(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let revision = self.store.list("").await.expect("lists").revision;
            self.store.compact(revision).await.expect("compacts");
        })
    }
}

suite!(Single::new());

/// Writes `w/N` for N = 0, 1, … until told to stop; what was acknowledged, in order. A commit whose
/// outcome is unknown is looked up and made up for, as every caller must.
async fn write_until(store: Arc<dyn Store>, mut stop: tokio::sync::oneshot::Receiver<()>) -> u64 {
    let mut n = 0;
    while stop.try_recv().is_err() {
        let key = format!("w/{n:06}");
        match store
            .commit(Txn::new().if_absent(&key).put(&key, "x"))
            .await
        {
            Ok(_) => n += 1,
            Err(StoreError::Unavailable(_)) => {
                if let Ok(Some(_)) = store.get(&key).await {
                    n += 1;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    n
}

/// Follows `w/` until `count` keys were seen: each once, in order.
async fn follow(watch: tanako_store::Watch, count: u64) {
    follow_and_tell(watch, count, &AtomicU64::new(0)).await;
}

/// The same; `progress` is how many were seen.
async fn follow_and_tell(mut watch: tanako_store::Watch, count: u64, progress: &AtomicU64) {
    let mut seen = 0;
    let mut at = 0;
    while seen < count {
        let batch = within("change", watch.next()).await.expect("a batch");
        for event in batch.events {
            assert_eq!(
                event.key(),
                format!("w/{seen:06}"),
                "in order, none twice, none left out"
            );
            assert!(event.revision() > at);
            at = event.revision();
            seen += 1;
            progress.store(seen, Ordering::Release);
        }
        assert!(batch.revision >= at);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_commits_outlive_kill_9_of_the_server() {
    let mut single = Single::new();
    let store: Arc<dyn Store> = Arc::new(single.store.clone());
    let watch = store.watch("w/", 0).await.expect("watches");
    let idle = store.watch("idle/", 0).await.expect("watches");
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(store.clone(), stopped));
    for round in 0..3 {
        // Well into the writing.
        let until = Instant::now() + SOON;
        let next = format!("w/{:06}", (round + 1) * 40);
        while store.get(&next).await.ok().flatten().is_none() {
            assert!(Instant::now() < until, "no progress");
        }
        single.etcd.restart();
    }
    stop.send(()).expect("still writes");
    let written = within("end of the writer", writer).await.expect("no panic");
    assert!(written > 120);
    follow(watch, written).await;
    // Acknowledged = there.
    let listing = store.list("w/").await.expect("lists");
    assert!(listing.items.len() as u64 >= written);
    // A watch that had nothing to tell lives as well.
    let mut idle = idle;
    put(&*store, "idle/1", "x").await;
    let batch = within("change", idle.next()).await.expect("a batch");
    assert_eq!(batch.events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_neither_lose_nor_repeat() {
    let single = Single::new();
    let proxy = Proxy::to(&single.etcd.members[0].socket()).await;
    let store: Arc<dyn Store> = Arc::new(open(options(vec![proxy.url.clone()])));
    let watch = store.watch("w/", 0).await.expect("watches");
    // Written around the proxy: only the watch suffers.
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let direct: Arc<dyn Store> = Arc::new(single.store.clone());
    let writer = tokio::spawn(write_until(direct, stopped));
    let progress = Arc::new(AtomicU64::new(0));
    let follower = {
        let progress = progress.clone();
        tokio::spawn(async move { follow_and_tell(watch, 400, &progress).await })
    };
    // Cut whenever it has got somewhere, and once more while it comes back: a machine under load must
    // get the time that it needs.
    let mut cuts = 0;
    let mut reached = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(7));
    let until = Instant::now() + SOON * 2;
    while !follower.is_finished() {
        assert!(Instant::now() < until, "the watch does not come back");
        tick.tick().await;
        let seen = progress.load(Ordering::Acquire);
        if seen > reached {
            reached = seen;
            proxy.interrupt();
            tick.tick().await;
            proxy.interrupt();
            cuts += 2;
        }
    }
    assert!(cuts > 0, "never interrupted");
    follower.await.expect("no panic");
    stop.send(()).expect("still writes");
    within("end of the writer", writer).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_dropped_behind_a_broken_watch_is_told() {
    let single = Single::new();
    let proxy = Proxy::to(&single.etcd.members[0].socket()).await;
    let store = open(options(vec![proxy.url.clone()]));
    let mut watch = store.watch("k", 0).await.expect("watches");
    put(&single.store, "k", "seen").await;
    within("change", watch.next()).await.expect("a batch");
    proxy.open(false);
    put(&single.store, "k", "missed").await;
    let last = single
        .store
        .commit(Txn::new().delete("k"))
        .await
        .expect("commits")
        .committed()
        .expect("unconditional");
    single.store.compact(last).await.expect("compacts");
    proxy.open(true);
    // The deletion lies at the very revision up to which history was dropped.
    match within("answer", watch.next()).await {
        Err(StoreError::Compacted { oldest }) => assert_eq!(oldest, last + 1),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(watch.next().await, Err(StoreError::Closed)),
        "it has ended"
    );
    for from in [1, 2, last - 1, last] {
        match store.watch("k", from).await {
            Err(StoreError::Compacted { oldest }) => assert_eq!(oldest, last + 1),
            other => panic!("from {from}: {other:?}"),
        }
    }
    store.watch("k", last + 1).await.expect("the oldest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_outlive_kill_9_of_the_server() {
    let mut single = Single::new();
    let store = single.store.clone();
    let lease = store.grant(Duration::from_secs(30)).await.expect("grants");
    store
        .commit(Txn::new().put_leased("kept", "x", lease))
        .await
        .expect("commits");
    let keeper = {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..40 {
                // Waits through the restart within its deadline.
                store.keep_alive(lease).await.expect("lives");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    for _ in 0..2 {
        single.etcd.restart();
    }
    within("end of the keeper", keeper).await.expect("no panic");
    assert!(store.get("kept").await.expect("reads").is_some());
    store.revoke(lease).await.expect("revokes");
    assert!(store.get("kept").await.expect("reads").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_means_deadlines_and_then_it_goes_on() {
    let single = Single::new();
    // One that waits as long as a busy machine needs, and one that does not.
    let patient = &single.store;
    let brief = Duration::from_millis(700);
    let store = open(Options {
        timeout: brief,
        ..options(single.etcd.urls())
    });
    let mut watch = patient.watch("k", 0).await.expect("watches");
    let made = put(patient, "k", "1").await;
    within("change", watch.next()).await.expect("a batch");
    let lease = patient.grant(Duration::from_secs(600)).await;
    let lease = lease.expect("grants");
    // It is connected when the server freezes.
    patiently(async || store.get("k").await).await;
    single.etcd.members[0].freeze(true);
    let calls: [BoxFuture<'_, Result<(), StoreError>>; 5] = [
        Box::pin(async { store.get("k").await.map(drop) }),
        Box::pin(async { store.list("").await.map(drop) }),
        Box::pin(async { store.watch("k", 0).await.map(drop) }),
        Box::pin(async { store.keep_alive(lease).await }),
        Box::pin(async { store.commit(Txn::new().put("k", "2")).await.map(drop) }),
    ];
    for call in calls {
        let begun = Instant::now();
        let error = within("deadline", call).await.expect_err("no answer");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(error.is_retryable() && error.to_string().contains(&single.etcd.urls()[0]));
        assert!(
            begun.elapsed() >= brief / 2,
            "waited only {:?}",
            begun.elapsed()
        );
    }
    single.etcd.members[0].freeze(false);
    patiently(async || store.get("k").await).await;
    patient.keep_alive(lease).await.expect("lives");
    // What became of the commit is open, but the watch tells of it if it happened, and of the next.
    let next = put(patient, "k", "3").await;
    let mut at = made;
    while at < next {
        at = within("change", watch.next())
            .await
            .expect("a batch")
            .revision;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_without_its_leader() {
    let mut etcd = Etcd::cluster(3);
    let store: Arc<dyn Store> = Arc::new(open(options(etcd.urls())));
    let lease = store.grant(Duration::from_secs(60)).await.expect("grants");
    store
        .commit(Txn::new().put_leased("kept", "x", lease))
        .await
        .expect("commits");
    let watch = store.watch("w/", 0).await.expect("watches");
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::spawn(write_until(store.clone(), stopped));
    for round in 0..2u32 {
        let until = Instant::now() + SOON;
        let next = format!("w/{:06}", (round + 1) * 30);
        while store.get(&next).await.ok().flatten().is_none() {
            assert!(Instant::now() < until, "no progress");
        }
        let leader = etcd.leader();
        etcd.members[leader].kill();
        store.keep_alive(lease).await.expect("lives");
        let until = Instant::now() + SOON;
        let more = format!("w/{:06}", (round + 1) * 30 + 20);
        while store.get(&more).await.ok().flatten().is_none() {
            assert!(Instant::now() < until, "no progress without the leader");
        }
        etcd.start();
        etcd.wait_ready();
    }
    stop.send(()).expect("still writes");
    let written = within("end of the writer", writer).await.expect("no panic");
    follow(watch, written).await;
    assert!(store.get("kept").await.expect("reads").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dead_endpoint_of_several_hinders_nothing() {
    let single = Single::new();
    let mut urls = single.etcd.urls();
    // Nobody listens there.
    urls.insert(0, "http://127.0.0.1:1".to_owned());
    urls.push("http://127.0.0.1:2".to_owned());
    for _ in 0..6 {
        // Begins with any of them.
        let store = open(options(urls.clone()));
        put(&store, "k", "x").await;
        store.watch("k", 0).await.expect("watches");
    }
    let nobody = open(Options {
        timeout: Duration::from_secs(3),
        ..options(vec!["http://127.0.0.1:1".to_owned()])
    });
    let error = nobody
        .commit(Txn::new().put("k", "x"))
        .await
        .expect_err("nobody there");
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1") && text.contains("refused"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleets_on_one_server_do_not_see_each_other() {
    let single = Single::new();
    let other = open(Options {
        prefix: "tanako/t2/".to_owned(),
        ..options(single.etcd.urls())
    });
    let mut watch = single.store.watch("", 0).await.expect("watches");
    put(&other, "k", "theirs").await;
    let ours = put(&single.store, "k", "ours").await;
    let batch = within("change", watch.next()).await.expect("a batch");
    assert_eq!((batch.revision, batch.events.len()), (ours, 1));
    assert_eq!(single.store.list("").await.expect("lists").items.len(), 1);
    let theirs = other.get("k").await.expect("reads").expect("there");
    assert_eq!(&*theirs.value, b"theirs");
}

/// A candidate whose server goes away while it waits is elected when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_waits_through_a_restart_of_the_server() {
    let mut single = Single::new();
    let store: Arc<dyn Store> = Arc::new(single.store.clone());
    let ttl = Duration::from_secs(600);
    let first = election::campaign(&store, "office", "a", ttl)
        .await
        .expect("elected");
    let rival = {
        let store = store.clone();
        tokio::spawn(async move { election::campaign(&store, "office", "b", ttl).await })
    };
    // Before it waits it writes, and what becomes of a write under way would be open.
    let until = Instant::now() + SOON;
    while single.etcd.members[0]
        .watches()
        .is_none_or(|count| count == 0)
    {
        assert!(Instant::now() < until, "it does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    single.etcd.restart();
    assert!(!rival.is_finished(), "one at a time");
    let fencing = first.fencing;
    first.resign(&*store).await.expect("resigns");
    let second = within("successor", rival)
        .await
        .expect("no panic")
        .expect("elected");
    assert!(second.fencing > fencing);
}

fn openssl(dir: &Path, args: &str) {
    let output = std::process::Command::new("openssl")
        .current_dir(dir)
        .args(args.split(' '))
        .output()
        .expect("this test needs openssl in PATH");
    assert!(
        output.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A CA, a certificate for the server at `address` and one for a client.
fn certificates(dir: &Path, address: &str) {
    openssl(
        dir,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca",
    );
    for (name, extension) in [
        ("server", format!("subjectAltName=IP:{address}")),
        ("client", "extendedKeyUsage=clientAuth".to_owned()),
    ] {
        fs::write(dir.join("ext"), extension).expect("writes");
        openssl(
            dir,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile ext"
            ),
        );
    }
}

fn password(path: &Path, text: &str) {
    fs::write(path, text).expect("writes");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("sets");
}

/// Users and passwords, then TLS with client certificates on top.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_users_are_kept_to() {
    const PASSWORD: &str = "correct horse";
    let mut single = Single::new();
    let dir = single.etcd.dir().to_owned();
    // The permission is for the fleet's prefix, in base64.
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"r"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("user/add", r#"{"name":"agent","password":"correct horse"}"#),
        ("role/add", r#"{"name":"fleet"}"#),
        (
            "role/grant",
            r#"{"name":"fleet","perm":{"permType":"READWRITE","key":"dGFuYWtvL3Qv","range_end":"dGFuYWtvL3Qw"}}"#,
        ),
        ("user/grant", r#"{"user":"agent","role":"fleet"}"#),
        ("enable", "{}"),
    ] {
        single.etcd.ask(&format!("/v3/auth/{path}"), body);
    }
    let file = dir.join("password");
    password(&file, "wrong");
    let with_user = Options {
        user: Some(User {
            name: "agent".to_owned(),
            password_file: file.clone(),
        }),
        ..options(single.etcd.urls())
    };
    let nobody = &single.store;
    for error in [
        nobody.get("k").await.expect_err("no user"),
        nobody.watch("", 0).await.expect_err("no user"),
        open(with_user.clone())
            .get("k")
            .await
            .expect_err("wrong password"),
    ] {
        assert!(matches!(error, StoreError::Denied(_)), "{error}");
        assert!(error.hint().contains("password file"));
    }
    // The file is read again: no restart is needed after it was set right.
    let store = open(with_user.clone());
    store.get("k").await.expect_err("wrong password");
    password(&file, &format!("{PASSWORD}\n"));
    let mut watch = store.watch("", 0).await.expect("watches");
    put(&store, "k", "1").await;
    within("change", watch.next()).await.expect("a batch");
    let elsewhere = open(Options {
        prefix: "tanako/u/".to_owned(),
        ..with_user.clone()
    });
    for error in [
        elsewhere.get("k").await.expect_err("not ours"),
        elsewhere.watch("", 0).await.expect_err("not ours"),
    ] {
        assert!(matches!(error, StoreError::Denied(_)), "{error}");
        let text = format!("{error} {error:?} {elsewhere:?}");
        assert!(text.contains("agent") && !text.contains(PASSWORD), "{text}");
    }
    // The server forgets its tokens when it restarts.
    single.etcd.restart();
    put(&store, "k", "2").await;
    let batch = within("change", watch.next()).await.expect("a batch");
    assert_eq!(batch.events.len(), 1);

    let member = &mut single.etcd.members[0];
    certificates(&dir, member.address());
    member.kill();
    member.tls = true;
    let path = |name: &str| dir.join(name);
    for (flag, file) in [
        ("--cert-file", "server.pem"),
        ("--key-file", "server.key"),
        ("--trusted-ca-file", "ca.pem"),
    ] {
        member.extra.push(flag.to_owned());
        member.extra.push(path(file).display().to_string());
    }
    member.extra.push("--client-cert-auth".to_owned());
    single.etcd.start();
    single.etcd.wait_ready();
    let tls = Tls {
        ca: path("ca.pem"),
        cert: Some(path("client.pem")),
        key: Some(path("client.key")),
    };
    let secure = |tls: Tls| Options {
        endpoints: single.etcd.urls(),
        tls: Some(tls),
        timeout: Duration::from_secs(3),
        ..with_user.clone()
    };
    fs::set_permissions(path("client.key"), fs::Permissions::from_mode(0o644)).expect("sets");
    let error = EtcdStore::open(secure(tls.clone())).expect_err("others can read the key");
    assert!(error.to_string().contains("chmod 600"), "{error}");
    fs::set_permissions(path("client.key"), fs::Permissions::from_mode(0o600)).expect("sets");
    let store = open(Options {
        timeout: Duration::from_secs(20),
        ..secure(tls.clone())
    });
    assert_eq!(
        &*store.get("k").await.expect("reads").expect("there").value,
        b"2"
    );
    put(&store, "k", "3").await;
    for wrong in [
        // No certificate of ours.
        Tls {
            cert: None,
            key: None,
            ..tls.clone()
        },
        // Theirs is signed by somebody else.
        Tls {
            ca: path("client.pem"),
            ..tls.clone()
        },
    ] {
        let error = open(secure(wrong)).get("k").await.expect_err("no trust");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_leaves_a_silent_member_as_soon_as_a_call_has_found_it_out() {
    let etcd = Etcd::cluster(3);
    // A call gives a silent member half of its time: that must be well before a ping tells.
    let stores: Vec<EtcdStore> = (0..12)
        .map(|_| {
            open(Options {
                timeout: Duration::from_secs(5),
                ..options(etcd.urls())
            })
        })
        .collect();
    let mut watches = Vec::new();
    for store in &stores {
        watches.push(patiently(async || store.watch("k", 0).await).await);
    }
    let leader = etcd.leader();
    let writer = open(options(vec![etcd.members[leader].url()]));
    // Its connections stay open and say nothing, as after a power cut.
    let silent = (leader + 1) % 3;
    etcd.members[silent].freeze(true);
    let reads = stores
        .iter()
        .map(|store| patiently(async move || store.get("k").await));
    within("reads", join_all(reads)).await;
    let made = put(&writer, "k", "1").await;
    for watch in &mut watches {
        // Sooner than a ping could have told: those that watched it have left it.
        let batch = tokio::time::timeout(Duration::from_secs(4), watch.next()).await;
        let batch = batch.expect("it waits at the silent one").expect("a batch");
        assert_eq!(batch.revision, made);
    }
    etcd.members[silent].freeze(false);
}
