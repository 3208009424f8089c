//! Drops old history of a shared store, so that it does not grow for ever: sessions alone rewrite a few
//! kB a shard every few seconds. Done by whoever decides; every member of the fleet that sleeps longer
//! than the history reaches back lists again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tanako_store::{Revision, Store, StoreError, etcd::EtcdStore};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{KEY, Standing};

/// Looks in the time that is kept.
const LOOKS: u32 = 4;

/// Which revisions are how old; pure.
#[derive(Debug)]
struct Ages {
    keep: Duration,
    /// Oldest first; as many as there are looks in the time that is kept, and one.
    seen: VecDeque<(Instant, Revision)>,
}

impl Ages {
    fn new(keep: Duration) -> Self {
        Self {
            keep,
            seen: VecDeque::new(),
        }
    }

    /// The store is at `revision`; up to which one its history may be dropped.
    fn note(&mut self, now: Instant, revision: Revision) -> Option<Revision> {
        self.seen.push_back((now, revision));
        let mut old = None;
        while let Some((at, revision)) = self.seen.front().copied()
            && now.saturating_duration_since(at) >= self.keep
        {
            old = Some(revision);
            self.seen.pop_front();
        }
        old
    }
}

/// Keeps `keep` of the history of `store` while this agent decides.
pub(super) async fn compact(
    store: Arc<EtcdStore>,
    standing: watch::Receiver<Standing>,
    keep: Duration,
) {
    let mut ages = Ages::new(keep);
    let mut look = interval(keep / LOOKS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let decides = matches!(*standing.borrow(), Standing::Holding { .. });
        if !decides {
            continue;
        }
        if let Err(error) = drop_old(&store, &mut ages).await {
            tracing::warn!(%error, hint = error.hint(), "the history of the store cannot be dropped");
        }
    }
}

async fn drop_old(store: &EtcdStore, ages: &mut Ages) -> Result<(), StoreError> {
    let now = store.list(KEY).await?.revision;
    if let Some(old) = ages.note(Instant::now(), now) {
        store.compact(old).await?;
        tracing::debug!(revision = old, "history of the store dropped");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_younger_than_what_is_kept_is_dropped() {
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let mut ages = Ages::new(minute * 10);
        let mut dropped = Vec::new();
        for n in 0..40u32 {
            let revision = u64::from(n) * 100;
            if let Some(old) = ages.note(start + minute * n, revision) {
                assert!(old <= revision - 1000, "{old} at {revision}");
                dropped.push(old);
            }
            assert!(ages.seen.len() <= 10);
        }
        assert!(dropped.is_sorted_by(|a, b| a < b) && dropped.len() == 30);
        // After a pause everything that is old goes at once.
        assert_eq!(ages.note(start + minute * 100, 9_000), Some(3_900));
    }
}
