//! What every backend of the store must do. A backend's test file calls [`suite!`] with a fixture
//! that hands out an empty store; reopening is part of the fixture, because what survives is too.

mod offices;
mod watching;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tanako_store::{
    Condition, Event, Outcome, Store, StoreError, Txn, Watch, key_max, ops_max, value_bytes_max,
};

pub use offices::*;
pub use watching::*;

/// A backend under test.
pub trait Fixture: Send + Sync {
    /// The store, open.
    fn store(&self) -> Arc<dyn Store>;
    /// Makes the server, or the process that holds the store, come back from what it has on disk.
    fn reopen(&mut self) -> BoxFuture<'_, ()>;
    /// Makes the store drop its history, but for the latest revision or a few more.
    fn forget(&mut self) -> BoxFuture<'_, ()>;
}

const SOON: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("no {what} in time"))
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> u64 {
    let outcome = store
        .commit(Txn::new().put(key, value.to_owned()))
        .await
        .expect("commits");
    outcome.committed().expect("unconditional")
}

async fn value(store: &Arc<dyn Store>, key: &str) -> Option<String> {
    let item = store.get(key).await.expect("reads");
    item.map(|item| String::from_utf8(item.value.to_vec()).expect("text"))
}

async fn next(watch: &mut Watch) -> Vec<(String, u64, bool)> {
    let batch = within("change", watch.next()).await.expect("a batch");
    let seen: Vec<_> = batch
        .events
        .iter()
        .map(|event| {
            (
                event.key().to_owned(),
                event.revision(),
                matches!(event, Event::Put(_)),
            )
        })
        .collect();
    assert!(
        seen.iter()
            .all(|(_, revision, _)| *revision <= batch.revision)
    );
    seen
}

pub async fn reads_and_lists(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    assert_eq!(store.get("absent").await.expect("reads"), None);
    let first = put(&store, "a/1", "x").await;
    let second = put(&store, "a/2", "y").await;
    let third = put(&store, "b", "z").await;
    assert!(first < second && second < third, "each raises the revision");
    let again = put(&store, "a/1", "x2").await;
    let item = store.get("a/1").await.expect("reads").expect("there");
    assert_eq!(
        (item.create_revision, item.mod_revision, item.version),
        (first, again, 2)
    );
    assert_eq!((&*item.value, item.lease), (&b"x2"[..], None));
    let listing = store.list("a/").await.expect("lists");
    let keys: Vec<&str> = listing.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!((keys, listing.revision), (vec!["a/1", "a/2"], again));
    assert_eq!(store.list("").await.expect("lists").items.len(), 3);
    // A key that comes back is a new one.
    store
        .commit(Txn::new().delete("a/1"))
        .await
        .expect("commits");
    let reborn = put(&store, "a/1", "x3").await;
    let item = store.get("a/1").await.expect("reads").expect("there");
    assert_eq!((item.create_revision, item.version), (reborn, 1));
}

pub async fn compares_and_sets(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let made = put(&store, "k", "1").await;
    let conflict = |outcome: Outcome| assert_eq!(outcome, Outcome::Conflict { revision: made });
    let zero = Txn::new()
        .when("none", Condition::ModRevision(0))
        .put("k", "2");
    assert!(matches!(
        store.commit(zero).await,
        Err(StoreError::Invalid(_))
    ));
    conflict(
        store
            .commit(Txn::new().if_absent("k").put("k", "2"))
            .await
            .expect("answers"),
    );
    conflict(
        store
            .commit(Txn::new().if_unchanged("k", made + 9).put("k", "2"))
            .await
            .expect("answers"),
    );
    conflict(
        store
            .commit(Txn::new().if_unchanged("none", made).put("k", "2"))
            .await
            .expect("answers"),
    );
    conflict(
        store
            .commit(
                Txn::new()
                    .if_unchanged("k", made)
                    .if_unchanged("k2", 5)
                    .put("k", "2")
                    .put("l", "2"),
            )
            .await
            .expect("answers"),
    );
    assert_eq!(
        (
            value(&store, "k").await.as_deref(),
            value(&store, "l").await
        ),
        (Some("1"), None)
    );
    // All or nothing, at one revision.
    let txn = Txn::new()
        .if_unchanged("k", made)
        .if_absent("l")
        .put("k", "2")
        .put("l", "2")
        .delete("m");
    let both = store
        .commit(txn)
        .await
        .expect("commits")
        .committed()
        .expect("holds");
    for key in ["k", "l"] {
        assert_eq!(
            store
                .get(key)
                .await
                .expect("reads")
                .expect("there")
                .mod_revision,
            both
        );
    }
    let kept = Txn::new()
        .when("k", Condition::CreateRevision(made))
        .put("k", "3");
    assert!(
        store
            .commit(kept)
            .await
            .expect("answers")
            .committed()
            .is_some()
    );
    // Nothing to do is no change.
    let now = store.list("").await.expect("lists").revision;
    let nothing = store
        .commit(Txn::new().delete("absent"))
        .await
        .expect("commits");
    assert_eq!(nothing, Outcome::Committed { revision: now });
    assert_eq!(store.list("").await.expect("lists").revision, now);
}

pub async fn refuses_what_no_backend_can_hold(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let refuse = async |txn: Txn| store.commit(txn).await.expect_err("refused");
    assert!(matches!(
        refuse(Txn::new().put("", "x")).await,
        StoreError::Invalid(_)
    ));
    assert!(matches!(
        refuse(Txn::new().put("k", "x").delete("k")).await,
        StoreError::Invalid(_)
    ));
    let long = "k".repeat(key_max() + 1);
    assert!(matches!(
        refuse(Txn::new().put(long, "x")).await,
        StoreError::TooLarge { .. }
    ));
    let big = vec![0u8; value_bytes_max() + 1];
    assert!(matches!(
        refuse(Txn::new().put("k", big)).await,
        StoreError::TooLarge { .. }
    ));
    let many = (0..=ops_max()).fold(Txn::new(), |txn, n| txn.put(format!("k{n}"), "x"));
    assert!(matches!(refuse(many).await, StoreError::TooLarge { .. }));
    assert!(store.get("").await.is_err() && store.grant(Duration::ZERO).await.is_err());
    assert_eq!(store.list("").await.expect("lists").items, []);
}

/// More than fits into a page of any server, while it changes: what is listed was so at one revision.
pub async fn lists_what_was_at_one_moment(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    for block in 0..8 {
        let txn = (0..100).fold(Txn::new(), |txn, n| {
            txn.put(format!("m/{block}{n:02}"), vec![b'x'; 4_000])
        });
        store.commit(txn).await.expect("commits");
    }
    let twins = |n: u32| {
        Txn::new()
            .put("m/000", n.to_string())
            .put("m/799", n.to_string())
    };
    store.commit(twins(0)).await.expect("commits");
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 1..=100 {
                store.commit(twins(n)).await.expect("commits");
            }
        })
    };
    let mut listings = 0;
    while !writer.is_finished() || listings == 0 {
        let listing = store.list("m/").await.expect("lists");
        assert_eq!(listing.items.len(), 800);
        assert!(listing.items.is_sorted_by(|a, b| a.key < b.key));
        let (first, last) = (&listing.items[0], &listing.items[799]);
        assert_eq!(first.value, last.value, "half a transaction");
        assert_eq!(first.mod_revision, last.mod_revision);
        assert!(first.mod_revision <= listing.revision);
        listings += 1;
    }
    writer.await.expect("writes");
}

pub async fn one_of_many_wins(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    put(&store, "counter", "0").await;
    let workers = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < 25 {
                let item = store.get("counter").await.expect("reads").expect("there");
                let count: u64 = String::from_utf8(item.value.to_vec())
                    .expect("text")
                    .parse()
                    .expect("a number");
                let txn = Txn::new()
                    .if_unchanged("counter", item.mod_revision)
                    .put("counter", (count + 1).to_string());
                if store
                    .commit(txn)
                    .await
                    .expect("answers")
                    .committed()
                    .is_some()
                {
                    done += 1;
                }
            }
        })
    });
    within("end of the race", futures_util::future::join_all(workers)).await;
    assert_eq!(
        value(&store, "counter").await.as_deref(),
        Some("200"),
        "no lost update"
    );
}

pub async fn leases_end(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    // Long enough for all that is bound to it on a busy machine.
    let short = store.grant(Duration::from_secs(5)).await.expect("grants");
    let long = store.grant(Duration::from_secs(600)).await.expect("grants");
    assert_ne!(short, long);
    let txn = Txn::new()
        .put_leased("l/1", "x", short)
        .put_leased("l/2", "x", short);
    let bound = store
        .commit(txn)
        .await
        .expect("commits")
        .committed()
        .expect("holds");
    store
        .commit(Txn::new().put_leased("l/3", "x", long))
        .await
        .expect("commits");
    store
        .commit(Txn::new().put_leased("l/4", "x", short))
        .await
        .expect("commits");
    store
        .commit(Txn::new().put_leased("l/5", "x", short))
        .await
        .expect("commits");
    // Bound anew, or no longer bound: the old lease takes neither away.
    store
        .commit(Txn::new().put_leased("l/4", "y", long))
        .await
        .expect("commits");
    let unbound = put(&store, "l/5", "y").await;
    assert!(unbound > bound);
    let mut watch = store.watch("l/", unbound + 1).await.expect("watches");
    let mut gone = next(&mut watch).await;
    gone.sort();
    let keys: Vec<(&str, bool)> = gone
        .iter()
        .map(|(key, _, put)| (key.as_str(), *put))
        .collect();
    assert_eq!(keys, [("l/1", false), ("l/2", false)], "in one revision");
    assert!(matches!(
        store.keep_alive(short).await,
        Err(StoreError::NoLease(_))
    ));
    let late = store.commit(Txn::new().put_leased("l/9", "x", short)).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))));
    assert!(matches!(
        store.revoke(short).await,
        Err(StoreError::NoLease(_))
    ));
    assert!(value(&store, "l/4").await.is_some() && value(&store, "l/3").await.is_some());
    store.revoke(long).await.expect("revokes");
    let left = store.list("l/").await.expect("lists").items;
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].key.as_str(), left[0].lease), ("l/5", None));
}

pub async fn leases_live_while_kept(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let lease = store.grant(Duration::from_secs(10)).await.expect("grants");
    store
        .commit(Txn::new().put_leased("kept", "x", lease))
        .await
        .expect("commits");
    let end = tokio::time::Instant::now() + Duration::from_secs(12);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while tokio::time::Instant::now() < end {
        tick.tick().await;
        store.keep_alive(lease).await.expect("lives");
    }
    assert!(value(&store, "kept").await.is_some());
}

pub async fn survives_reopening(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    for n in 0..50 {
        put(&store, &format!("s/{n:02}"), "x").await;
    }
    store
        .commit(Txn::new().delete("s/07"))
        .await
        .expect("commits");
    let before = store.list("").await.expect("lists");
    drop(store);
    fixture.reopen().await;
    let store = fixture.store();
    assert_eq!(store.list("").await.expect("lists"), before);
    assert!(
        put(&store, "s/07", "y").await > before.revision,
        "revisions never fall"
    );
}

/// Makes one test of each rule for the fixture that `$make` (an async block's value) hands out.
#[macro_export]
macro_rules! suite {
    ($make:expr; $($rule:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let mut fixture = $make;
                contract::$rule(&mut fixture).await;
            }
        )*
    };
    ($make:expr) => {
        $crate::suite!($make;
            reads_and_lists,
            compares_and_sets,
            refuses_what_no_backend_can_hold,
            lists_what_was_at_one_moment,
            one_of_many_wins,
            watches_from_any_revision,
            never_splits_a_revision,
            drops_old_history_and_says_so,
            resumes_after_history_is_gone,
            leases_end,
            leases_live_while_kept,
            elects_one_leader_and_fences_the_last,
            takes_the_office_of_who_is_silent,
            passes_the_office_among_many,
            fences_every_commit,
            survives_reopening,
        );
    };
}
