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
