//! The store as this host may write what is its own: every commit holds only within the present tenure.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tanako_store::{Condition, Layer, Outcome, Store, StoreError, Txn};

use super::Tenure;
use crate::registry::present_key;

/// A store whose commits also compare that this host's key is the one that its present tenure has. A host that
/// lost its tenure changes nothing with what it still sends, however late that arrives.
pub(super) struct Leased {
    pub(super) store: Arc<dyn Store>,
    pub(super) tenure: Tenure,
    pub(super) host: String,
}

impl Layer for Leased {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            let key = present_key(&self.host);
            let taken_at = {
                let view = self.tenure.watch();
                let view = view.borrow();
                // What is not its own any more must be forgotten first.
                if view.settled { view.taken_at } else { 0 }
            };
            if taken_at == 0 {
                return Err(StoreError::Fenced { key });
            }
            self.store
                .commit(txn.when(key, Condition::CreateRevision(taken_at)))
                .await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tanako_store::embedded::{EmbeddedStore, Options};
    use tokio::sync::watch;

    use super::{super::View, *};

    #[tokio::test]
    async fn who_lost_the_tenure_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = EmbeddedStore::open(dir.path(), &Options::default()).expect("opens");
        let store: Arc<dyn Store> = Arc::new(opened);
        let (view, watched) = watch::channel(View::default());
        let leased = Leased {
            store: store.clone(),
            tenure: Tenure {
                shared: None,
                view: watched,
            },
            host: "a".to_owned(),
        };
        let write = || Txn::new().put("vault/x", "1");
        assert!(matches!(
            leased.commit(write()).await,
            Err(StoreError::Fenced { .. })
        ));
        let take = async || {
            let txn = Txn::new().put(present_key("a"), "i");
            let taken = store.commit(txn).await.expect("writes").committed();
            view.send_modify(|view| (view.settled, view.taken_at) = (true, taken.unwrap_or(0)));
        };
        take().await;
        assert!(
            leased
                .commit(write())
                .await
                .expect("answers")
                .committed()
                .is_some()
        );
        // Gone, and taken by another one since.
        let gone = Txn::new().delete(present_key("a"));
        store.commit(gone).await.expect("writes");
        assert_eq!(
            leased.commit(write()).await.expect("answers").committed(),
            None
        );
        let other = Txn::new().put(present_key("a"), "another");
        store.commit(other).await.expect("writes");
        assert_eq!(
            leased.commit(write()).await.expect("answers").committed(),
            None
        );
        let gone = Txn::new().delete(present_key("a"));
        store.commit(gone).await.expect("writes");
        take().await;
        assert!(
            leased
                .commit(write())
                .await
                .expect("answers")
                .committed()
                .is_some()
        );
    }
}
