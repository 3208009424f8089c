//! Elections, and the fence that keeps out what comes late.

use std::{sync::Arc, time::Duration};

use tanako_store::{Condition, Fence, Fenced, Outcome, Store, StoreError, Txn, election, ops_max};

use super::{Fixture, put, value, within};

pub async fn elects_one_leader_and_fences_the_last(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let ttl = Duration::from_secs(600);
    let first = within("leader", election::campaign(&store, "leader", "a", ttl))
        .await
        .expect("elected");
    assert_eq!(
        election::leader(&*store, "leader")
            .await
            .expect("reads")
            .as_deref(),
        Some("a")
    );
    let rival = {
        let store = store.clone();
        tokio::spawn(async move { election::campaign(&store, "leader", "b", ttl).await })
    };
    let write = |leader: &election::Leadership, who: &'static str| {
        leader.fence(Txn::new().put("work", who))
    };
    assert!(
        store
            .commit(write(&first, "a"))
            .await
            .expect("answers")
            .committed()
            .is_some()
    );
    assert!(!rival.is_finished(), "one leader at a time");
    store.revoke(first.lease).await.expect("its lease ends");
    let second = within("successor", rival)
        .await
        .expect("no panic")
        .expect("elected");
    assert!(second.fencing > first.fencing);
    // What the old leader still had on the way changes nothing.
    let late = store.commit(write(&first, "late")).await.expect("answers");
    assert!(matches!(late, Outcome::Conflict { .. }));
    assert!(
        store
            .commit(write(&second, "b"))
            .await
            .expect("answers")
            .committed()
            .is_some()
    );
    assert_eq!(value(&store, "work").await.as_deref(), Some("b"));
    second.resign(&*store).await.expect("resigns");
    assert_eq!(
        election::leader(&*store, "leader").await.expect("reads"),
        None
    );
}

/// Nobody resigned: the lease has ended.
pub async fn takes_the_office_of_who_is_silent(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    // But not before the first commit, on a busy machine.
    let brief = Duration::from_secs(5);
    let first = within("leader", election::campaign(&store, "office", "a", brief))
        .await
        .expect("elected");
    let old = Fenced::new(store.clone(), first.clone());
    old.commit(Txn::new().put("word", "a"))
        .await
        .expect("holds the office");
    let long = Duration::from_secs(600);
    let second = within("successor", election::campaign(&store, "office", "b", long))
        .await
        .expect("elected");
    assert!(second.fencing > first.fencing);
    assert!(matches!(
        store.keep_alive(first.lease).await,
        Err(StoreError::NoLease(_))
    ));
    assert!(matches!(
        old.commit(Txn::new().put("word", "late")).await,
        Err(StoreError::Fenced { key }) if key == "office"
    ));
    assert_eq!(value(&store, "word").await.as_deref(), Some("a"));
}

/// Each of several wants the office several times. Whoever holds it reads a number and writes the
/// next one without comparing: with two at a time one would be lost.
pub async fn passes_the_office_among_many(fixture: &mut dyn Fixture) {
    const RIVALS: u64 = 4;
    const TERMS: u64 = 3;
    let store = fixture.store();
    put(&store, "terms", "0").await;
    let rivals = (0..RIVALS).map(|rival| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut fencing = Vec::new();
            for _ in 0..TERMS {
                let who = format!("rival {rival}");
                let ttl = Duration::from_secs(600);
                let held = election::campaign(&store, "office", &who, ttl)
                    .await
                    .expect("elected");
                let leader = election::leader(&*store, "office").await.expect("reads");
                assert_eq!(leader.as_deref(), Some(who.as_str()));
                let fenced = Fenced::new(store.clone(), held.clone());
                let count: u64 = value(&store, "terms")
                    .await
                    .expect("there")
                    .parse()
                    .expect("a number");
                let outcome = fenced
                    .commit(Txn::new().put("terms", (count + 1).to_string()))
                    .await
                    .expect("holds the office");
                assert!(outcome.committed().is_some());
                fencing.push((count, held.fencing));
                held.resign(&*store).await.expect("resigns");
            }
            fencing
        })
    });
    let all = within("end of the race", futures_util::future::join_all(rivals)).await;
    let mut terms: Vec<(u64, u64)> = all
        .into_iter()
        .flat_map(|rival| rival.expect("no panic"))
        .collect();
    terms.sort_unstable();
    assert_eq!(terms.len() as u64, RIVALS * TERMS);
    assert!(
        terms.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1),
        "one after the other, each with a higher fence: {terms:?}"
    );
}

pub async fn fences_every_commit(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let ttl = Duration::from_secs(600);
    let first = within("leader", election::campaign(&store, "office", "a", ttl))
        .await
        .expect("elected");
    let fenced = Fenced::new(store.clone(), first.clone());
    let fence = fenced.fence();
    let shared: Arc<dyn Store> = Arc::new(fenced.clone());
    let made = put(&shared, "k", "1").await;
    // An ordinary conflict stays one.
    let conflict = fenced
        .commit(Txn::new().if_absent("k").put("k", "2"))
        .await
        .expect("answers");
    assert!(matches!(conflict, Outcome::Conflict { .. }));
    assert_eq!(*fence.borrow(), Fence::Holds);
    // The fence takes one comparison of those that a transaction may have.
    let compares = |count: usize| {
        (0..count).fold(Txn::new().put("k", "full"), |txn, n| {
            txn.if_absent(format!("none/{n}"))
        })
    };
    let most = fenced.commit(compares(ops_max() - 1)).await;
    assert!(most.expect("answers").committed().is_some());
    assert!(matches!(
        fenced.commit(compares(ops_max())).await,
        Err(StoreError::TooLarge { .. })
    ));
    assert_eq!(value(&store, "k").await.as_deref(), Some("full"));
    // A vacant office fences as well.
    store.revoke(first.lease).await.expect("its lease ends");
    let refused = fenced
        .commit(Txn::new().put("k", "late").put("l", "late"))
        .await
        .expect_err("fenced");
    assert!(matches!(&refused, StoreError::Fenced { key } if key == "office"));
    assert!(!refused.is_retryable() && refused.hint().contains("another agent"));
    assert_eq!(*fence.borrow(), Fence::Lost);
    // And one that somebody else holds, also when another comparison fails as well.
    let second = within("successor", election::campaign(&store, "office", "b", ttl))
        .await
        .expect("elected");
    for txn in [
        Txn::new().put("k", "late"),
        Txn::new().if_unchanged("k", made).put("k", "late"),
        Txn::new()
            .when("k", Condition::CreateRevision(made))
            .delete("k"),
    ] {
        assert!(matches!(
            fenced.commit(txn).await,
            Err(StoreError::Fenced { .. })
        ));
    }
    assert_eq!(value(&store, "k").await.as_deref(), Some("full"));
    assert_eq!(value(&store, "l").await, None);
    // Reading needs no office.
    assert_eq!(value(&shared, "k").await.as_deref(), Some("full"));
    let now = Fenced::new(store.clone(), second);
    assert!(
        now.commit(Txn::new().put("k", "b"))
            .await
            .expect("holds the office")
            .committed()
            .is_some()
    );
}
