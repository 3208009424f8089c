//! Keeps one lease alive and says how that goes.

use std::{sync::Arc, time::Duration};

use tanako_store::{LeaseId, Store, StoreError};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lapse::Lapse;

/// Pause after a keep-alive that failed.
const RETRY: Duration = Duration::from_millis(500);

/// How a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lease {
    /// It lives.
    Kept,
    /// The last keep-alive failed, but it surely still lives.
    Troubled(String),
    /// It may have ended; the store does not say.
    Silent(String),
    /// It has ended.
    Ended,
}

/// Keeps a lease alive until dropped.
pub(super) struct Keeper {
    lease: watch::Receiver<Lease>,
    _stop: DropGuard,
}

impl Keeper {
    /// Of a lease that was asked for at `asked_at`.
    pub(super) fn start(
        store: Arc<dyn Store>,
        id: LeaseId,
        ttl: Duration,
        asked_at: Instant,
    ) -> Self {
        let (sender, lease) = watch::channel(Lease::Kept);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(keep(
            store,
            id,
            Lapse::new(ttl, asked_at),
            sender,
        )));
        Self {
            lease,
            _stop: stop.drop_guard(),
        }
    }

    /// How it is, as a value that changes.
    pub(super) fn lease(&self) -> watch::Receiver<Lease> {
        self.lease.clone()
    }
}

async fn keep(store: Arc<dyn Store>, id: LeaseId, mut lapse: Lapse, lease: watch::Sender<Lease>) {
    let mut next = lapse.due();
    loop {
        tokio::time::sleep_until(next).await;
        let sent_at = Instant::now();
        let answer = {
            let call = store.keep_alive(id);
            tokio::pin!(call);
            loop {
                tokio::select! {
                    answer = &mut call => break answer,
                    // No answer is no news, until the time is up.
                    () = tokio::time::sleep_until(lapse.over()), if !is_silent(&lease) => {
                        say(&lease, Lease::Silent("it does not answer".to_owned()));
                    }
                }
            }
        };
        match answer {
            Ok(()) => {
                lapse.renewed(sent_at);
                say(&lease, Lease::Kept);
                next = lapse.due();
            }
            Err(StoreError::NoLease(_)) => {
                say(&lease, Lease::Ended);
                return;
            }
            Err(error) => {
                let why = error.to_string();
                let now = Instant::now();
                say(
                    &lease,
                    if now < lapse.over() {
                        Lease::Troubled(why)
                    } else {
                        Lease::Silent(why)
                    },
                );
                // Not past the end without a word.
                next = now + RETRY;
                if now < lapse.over() {
                    next = next.min(lapse.over());
                }
            }
        }
    }
}

fn is_silent(lease: &watch::Sender<Lease>) -> bool {
    matches!(*lease.borrow(), Lease::Silent(_))
}

fn say(lease: &watch::Sender<Lease>, now: Lease) {
    lease.send_if_modified(|lease| {
        let changed = *lease != now;
        *lease = now;
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use tanako_store::{KeyValue, Listing, Outcome, Revision, Txn, Watch};

    use super::*;

    /// A store that knows only keep-alives.
    #[derive(Default)]
    struct Scripted(Mutex<Answer>);

    #[derive(Clone, Copy, Default)]
    enum Answer {
        #[default]
        Good,
        Failure,
        Silence,
        Gone,
    }

    impl Scripted {
        fn answer(&self, answer: Answer) {
            *self.0.lock().expect("not poisoned") = answer;
        }
    }

    fn closed<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::Closed)))
    }

    impl Store for Scripted {
        fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>, StoreError>> {
            closed()
        }

        fn list<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
            closed()
        }

        fn commit(&self, _: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
            closed()
        }

        fn watch<'a>(
            &'a self,
            _: &'a str,
            _: Revision,
        ) -> BoxFuture<'a, Result<Watch, StoreError>> {
            closed()
        }

        fn grant(&self, _: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
            closed()
        }

        fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
            let answer = *self.0.lock().expect("not poisoned");
            Box::pin(async move {
                match answer {
                    Answer::Good => Ok(()),
                    Answer::Failure => Err(StoreError::Unavailable("out".to_owned())),
                    Answer::Silence => {
                        // As a call to a frozen server: its deadline ends it.
                        tokio::time::sleep(Duration::from_millis(700)).await;
                        Err(StoreError::Unavailable("late".to_owned()))
                    }
                    Answer::Gone => Err(StoreError::NoLease(lease)),
                }
            })
        }

        fn revoke(&self, _: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
            closed()
        }
    }

    async fn becomes(lease: &mut watch::Receiver<Lease>, what: &str, wish: fn(&Lease) -> bool) {
        let seen = tokio::time::timeout(Duration::from_secs(60), lease.wait_for(wish)).await;
        assert!(matches!(seen, Ok(Ok(_))), "not {what}");
    }

    #[tokio::test]
    async fn trouble_silence_and_the_end_are_told_apart() {
        let store = Arc::new(Scripted::default());
        let ttl = Duration::from_millis(900);
        let begun = Instant::now();
        let keeper = Keeper::start(store.clone(), 7, ttl, begun);
        let mut lease = keeper.lease();
        assert_eq!(*lease.borrow(), Lease::Kept);
        store.answer(Answer::Failure);
        let silent = |lease: &Lease| matches!(lease, Lease::Silent(_));
        let kept = |lease: &Lease| *lease == Lease::Kept;
        becomes(&mut lease, "noticed", |lease| *lease != Lease::Kept).await;
        becomes(&mut lease, "silent", silent).await;
        let over = Lapse::new(ttl, begun).over();
        assert!(Instant::now() >= over, "not before it may have ended");
        store.answer(Answer::Good);
        becomes(&mut lease, "kept", kept).await;
        // One that does not answer at all is silent before its answer is given up.
        store.answer(Answer::Silence);
        becomes(&mut lease, "silent", silent).await;
        store.answer(Answer::Good);
        becomes(&mut lease, "kept", kept).await;
        store.answer(Answer::Gone);
        becomes(&mut lease, "ended", |lease| *lease == Lease::Ended).await;
    }
}
