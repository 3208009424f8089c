//! Watches: nothing lost, nothing twice, no revision split, and a way back when history is gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use tanako_store::{Event, Store, StoreError, Txn, ops_max};

use super::{Fixture, next, put, within};

pub async fn watches_from_any_revision(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let first = put(&store, "w/a", "1").await;
    let mut live = store.watch("w/", 0).await.expect("watches");
    put(&store, "other", "x").await;
    let txn = Txn::new().put("w/a", "2").put("w/b", "2").put("x", "2");
    let second = store
        .commit(txn)
        .await
        .expect("commits")
        .committed()
        .expect("holds");
    let both = vec![
        ("w/a".to_owned(), second, true),
        ("w/b".to_owned(), second, true),
    ];
    assert_eq!(
        next(&mut live).await,
        both,
        "a revision is not split, others' keys are left out"
    );
    let third = store
        .commit(Txn::new().delete("w/a"))
        .await
        .expect("commits")
        .committed()
        .expect("holds");
    assert_eq!(next(&mut live).await, [("w/a".to_owned(), third, false)]);
    // From the past: everything since, once, in order.
    let mut past = store.watch("w/", first).await.expect("watches");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(next(&mut past).await);
    }
    let revisions: Vec<u64> = seen.iter().map(|(_, revision, _)| *revision).collect();
    assert_eq!(revisions, [first, second, second, third]);
    // Resumed after a break of the connection or a restart of the process.
    drop((live, past, store));
    fixture.reopen().await;
    let store = fixture.store();
    let mut resumed = store.watch("w/", second + 1).await.expect("watches");
    assert_eq!(next(&mut resumed).await, [("w/a".to_owned(), third, false)]);
}

pub async fn drops_old_history_and_says_so(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let first = put(&store, "h", "0").await;
    let mut slow = store.watch("h", first).await.expect("watches");
    let mut written = vec![first];
    for n in 0..20 {
        written.push(put(&store, "h", &n.to_string()).await);
    }
    fixture.forget().await;
    let oldest = match store.watch("h", first).await {
        Err(StoreError::Compacted { oldest }) => oldest,
        other => panic!("{other:?}"),
    };
    assert!(oldest > first);
    // A watcher that slept past it has what was on its way to it, and then is told. It does not miss
    // changes in silence.
    let mut seen = Vec::new();
    while seen.len() < written.len() {
        match within("answer", slow.next()).await {
            Ok(batch) => seen.extend(batch.events.iter().map(Event::revision)),
            Err(StoreError::Compacted { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, written[..seen.len()]);
    let listing = store.list("h").await.expect("lists");
    let mut next_watch = store
        .watch("h", listing.revision + 1)
        .await
        .expect("the way back");
    let last = put(&store, "h", "end").await;
    assert_eq!(next(&mut next_watch).await, [("h".to_owned(), last, true)]);
}

/// Transactions as large as may be.
pub async fn never_splits_a_revision(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let mut live = store.watch("big/", 0).await.expect("watches");
    let mut revisions = Vec::new();
    for round in 0..6u8 {
        let txn = (0..ops_max()).fold(Txn::new(), |txn, n| {
            txn.put(format!("big/{n:03}"), vec![round; 8_000])
        });
        let outcome = store.commit(txn).await.expect("commits");
        revisions.push(outcome.committed().expect("unconditional"));
    }
    let mut past = store.watch("big/", revisions[0]).await.expect("watches");
    for watch in [&mut live, &mut past] {
        let mut seen = BTreeMap::new();
        while seen.len() < revisions.len() {
            let batch = within("change", watch.next()).await.expect("a batch");
            let mut here: BTreeMap<u64, usize> = BTreeMap::new();
            for event in &batch.events {
                *here.entry(event.revision()).or_default() += 1;
            }
            for (revision, count) in here {
                assert!(revision <= batch.revision);
                assert_eq!(seen.insert(revision, count), None, "comes in one batch");
            }
        }
        let wanted: BTreeMap<u64, usize> = revisions
            .iter()
            .map(|revision| (*revision, ops_max()))
            .collect();
        assert_eq!(seen, wanted);
    }
}

/// A copy kept by listing and watching, as every reader of the store keeps it, while history is
/// dropped again and again: in the end it is equal to the original.
pub async fn resumes_after_history_is_gone(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, done) = (store.clone(), done.clone());
        tokio::spawn(async move { copy(&store, &done).await })
    };
    for round in 0..12u32 {
        for n in 0..15u32 {
            let key = format!("c/{:02}", (round * 7 + n * 5) % 20);
            let txn = if n % 4 == 3 {
                Txn::new().delete(key)
            } else {
                Txn::new().put(key, format!("{round}-{n}"))
            };
            store.commit(txn).await.expect("commits");
        }
        fixture.forget().await;
    }
    done.store(true, Ordering::Release);
    let last = put(&store, "c/end", "x").await;
    let (copy, revision) = within("end of the copy", reader).await.expect("no panic");
    assert!(revision >= last);
    let original: BTreeMap<String, u64> = store
        .list("c/")
        .await
        .expect("lists")
        .items
        .into_iter()
        .map(|item| (item.key, item.mod_revision))
        .collect();
    assert_eq!(copy, original);
}

async fn copy(store: &Arc<dyn Store>, done: &AtomicBool) -> (BTreeMap<String, u64>, u64) {
    let mut seen_end = false;
    loop {
        let listing = store.list("c/").await.expect("lists");
        let mut copy: BTreeMap<String, u64> = listing
            .items
            .into_iter()
            .map(|item| (item.key, item.mod_revision))
            .collect();
        let mut at = listing.revision;
        seen_end |= copy.contains_key("c/end");
        if seen_end && done.load(Ordering::Acquire) {
            return (copy, at);
        }
        let mut watch = match store.watch("c/", at + 1).await {
            Ok(watch) => watch,
            Err(StoreError::Compacted { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        loop {
            let batch = match watch.next().await {
                Ok(batch) => batch,
                Err(StoreError::Compacted { oldest }) => {
                    assert!(oldest > at + 1, "what is there is given");
                    break;
                }
                Err(error) => panic!("{error}"),
            };
            for event in batch.events {
                assert!(event.revision() > at, "nothing twice");
                match event {
                    Event::Put(item) => {
                        seen_end |= item.key == "c/end";
                        copy.insert(item.key, item.mod_revision);
                    }
                    Event::Delete { key, .. } => {
                        assert!(copy.remove(&key).is_some(), "no change was missed");
                    }
                }
            }
            at = batch.revision;
            if seen_end {
                return (copy, at);
            }
        }
    }
}
