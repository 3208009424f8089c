//! The store with the authority of the office: commits hold only within the present term.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tanako_store::{Layer, Outcome, Store, StoreError, Txn};
use tokio::sync::watch;

use super::{KEY, Term};

/// A store for those who outlive terms. A commit is fenced by the term in which it is made; between
/// terms it is [`StoreError::Fenced`] at once. What was read in one term and is written in another is
/// not kept apart by this: compare what you build on.
pub(super) struct Authority {
    pub(super) store: Arc<dyn Store>,
    pub(super) term: watch::Receiver<Option<Term>>,
}

impl Layer for Authority {
    fn behind(&self) -> &dyn Store {
        &*self.store
    }

    fn commit_through(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        async move {
            let term = self.term.borrow().clone();
            match term {
                Some(term) => term.commit(txn).await,
                None => Err(StoreError::Fenced {
                    key: KEY.to_owned(),
                }),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tanako_store::{
        Fenced, election,
        embedded::{EmbeddedStore, Options},
    };

    use super::*;

    #[tokio::test]
    async fn commits_are_fenced_by_the_present_term_and_refused_between_terms() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = EmbeddedStore::open(dir.path(), &Options::default()).expect("opens");
        let store: Arc<dyn Store> = Arc::new(opened);
        let (terms, term) = watch::channel(None);
        let authority = Authority {
            store: store.clone(),
            term,
        };
        let write = || Txn::new().put("k", "x");
        let refused = |outcome| matches!(outcome, Err(StoreError::Fenced { .. }));
        assert!(refused(authority.commit(write()).await));
        let ttl = Duration::from_secs(600);
        for host in ["a", "b"] {
            let held = election::campaign(&store, KEY, host, ttl)
                .await
                .expect("elected");
            let fenced: Term = Arc::new(Fenced::new(store.clone(), held.clone()));
            terms.send_replace(Some(fenced));
            assert!(authority.commit(write()).await.expect("holds").committed() > None);
            held.resign(&*store).await.expect("resigns");
            assert!(refused(authority.commit(write()).await));
        }
        terms.send_replace(None);
        assert!(refused(authority.commit(write()).await));
        assert!(authority.get("k").await.expect("reads").is_some());
    }
}
