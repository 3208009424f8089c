//! A watch: keeps a stream of changes open, whatever happens to the connection.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::Streaming;

use super::{
    assembly::{Assembly, Taken},
    servers::Servers,
    translate::{Keys, signed},
    verdict::{Verdict, is_refusal, judge},
    wire,
};
use crate::{backoff::Backoff, error::StoreError, model::Revision, watch::WatchBatch};

/// Pauses between two tries to get the stream back.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));

/// Why the stream is not there.
enum Broken {
    /// Worth another try.
    Again(String),
    /// Not worth it.
    Final(StoreError),
}

/// A watch that goes on.
pub(super) struct Following {
    servers: Arc<Servers>,
    keys: Keys,
    prefix: String,
    assembly: Assembly,
    stream: Option<(Streaming<wire::WatchResponse>, usize)>,
    preferred: watch::Receiver<usize>,
    opened_at: Instant,
    backoff: Backoff,
    /// Whether a refusal has been answered with a new token already.
    renewed: bool,
}

impl Following {
    /// Opens the stream; `from` 0 = what happens after this has returned.
    pub(super) async fn begin(
        servers: Arc<Servers>,
        keys: Keys,
        prefix: &str,
        from: Revision,
    ) -> Result<Self, StoreError> {
        let mut following = Self {
            assembly: Assembly::new(from),
            stream: None,
            preferred: servers.preferred(),
            opened_at: Instant::now(),
            backoff: Backoff::new(RETRY.0, RETRY.1),
            renewed: false,
            prefix: prefix.to_owned(),
            servers,
            keys,
        };
        let deadline = Instant::now() + following.servers.options().timeout;
        loop {
            let why = match following.open(deadline).await {
                Ok(()) => return Ok(following),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Again(why)) => why,
            };
            let pause = following.backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(StoreError::Unavailable(format!(
                    "{}: no watch within {:?}: {why}",
                    following.servers,
                    following.servers.options().timeout
                )));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The next changes. Waits through outages.
    pub(super) async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            if self.stream.is_none() {
                let deadline = Instant::now() + self.servers.options().timeout;
                match self.open(deadline).await {
                    Ok(()) => {}
                    Err(Broken::Final(error)) => return Err(error),
                    Err(Broken::Again(why)) => {
                        tracing::debug!(prefix = self.prefix, why, "a watch waits for etcd");
                        tokio::time::sleep(self.backoff.pause()).await;
                        continue;
                    }
                }
            }
            match self.read().await {
                Ok(Some(batch)) => return Ok(batch),
                Ok(None) => {}
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Again(why)) => {
                    tracing::debug!(prefix = self.prefix, why, "a watch has lost etcd");
                    tokio::time::sleep(self.backoff.pause()).await;
                }
            }
        }
    }

    /// What the server says to a watch from `from`, of which it is known that it asks too far back.
    pub(super) async fn refusal(&mut self, from: Revision) -> StoreError {
        let deadline = Instant::now() + self.servers.options().timeout;
        match timeout_at(deadline, self.next()).await {
            Ok(Err(error)) => error,
            // At least this much is gone.
            Ok(Ok(_)) | Err(_) => StoreError::Compacted { oldest: from + 1 },
        }
    }

    /// One response: a batch if it completes one.
    async fn read(&mut self) -> Result<Option<WatchBatch>, Broken> {
        let Some((stream, index)) = &mut self.stream else {
            return Ok(None);
        };
        let index = *index;
        let message = tokio::select! {
            biased;
            message = stream.message() => Some(message),
            // It lives as long as the servers.
            _ = self.preferred.wait_for(|member| *member != index) => None,
        };
        let why = match message {
            None => "its member does not answer others".to_owned(),
            Some(Ok(Some(response))) => match self.assembly.take(&self.keys, response) {
                Taken::Nothing => return Ok(None),
                Taken::Batch(batch) => {
                    self.renewed = false;
                    return Ok(Some(batch));
                }
                Taken::Compacted { oldest } => {
                    return Err(Broken::Final(StoreError::Compacted { oldest }));
                }
                Taken::Canceled { reason } => return Err(self.canceled(&reason).await),
            },
            Some(Ok(None)) => "the stream ended".to_owned(),
            Some(Err(status)) => format!("{:?}", judge(&status)),
        };
        self.stream = None;
        self.servers.lost(index, false);
        if self.opened_at.elapsed() > RETRY.1 {
            self.backoff.reset();
        }
        Err(Broken::Again(why))
    }

    /// The server has ended the watch.
    async fn canceled(&mut self, reason: &str) -> Broken {
        self.stream = None;
        if !is_refusal(reason) {
            return Broken::Again(reason.to_owned());
        }
        if self.renewed || self.servers.options().user.is_none() {
            return Broken::Final(self.servers.denied(reason));
        }
        self.renewed = true;
        self.servers.renew().await;
        Broken::Again(reason.to_owned())
    }

    async fn open(&mut self, deadline: Instant) -> Result<(), Broken> {
        self.assembly.restart();
        let request = wire::WatchRequest {
            request_union: Some(wire::watch_request::RequestUnion::CreateRequest(
                wire::WatchCreateRequest {
                    key: self.keys.key(&self.prefix),
                    range_end: self.keys.end(&self.prefix),
                    start_revision: signed(self.assembly.start()),
                    progress_notify: true,
                    fragment: true,
                },
            )),
        };
        // The stream of requests must not end, or the server ends the watch.
        let requests = stream::iter([request]).chain(stream::pending());
        let (peer, request) = match self.servers.prepare(deadline, requests).await {
            Ok(prepared) => prepared,
            Err((index, verdict)) => {
                self.servers.lost(index, true);
                return Err(self.broken(verdict));
            }
        };
        let index = peer.index();
        let opened = timeout_at(deadline, async {
            let mut stream = peer.watch().watch(request).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        })
        .await;
        let (stream, first) = match opened {
            Ok(Ok((stream, Some(first)))) => (stream, first),
            Ok(Ok((_, None))) => {
                self.servers.lost(index, false);
                return Err(Broken::Again("the stream ended".to_owned()));
            }
            Ok(Err(status)) => {
                let verdict = judge(&status);
                self.servers
                    .lost(index, matches!(verdict, Verdict::NotDone(_)));
                if let Verdict::Token(why) = &verdict {
                    return Err(self.canceled(&format!("auth token: {why}")).await);
                }
                return Err(self.broken(verdict));
            }
            Err(_) => {
                self.servers.lost(index, false);
                return Err(Broken::Again("no answer in time".to_owned()));
            }
        };
        self.stream = Some((stream, index));
        self.opened_at = Instant::now();
        match self.assembly.take(&self.keys, first) {
            Taken::Nothing => Ok(()),
            Taken::Compacted { oldest } => Err(Broken::Final(StoreError::Compacted { oldest })),
            Taken::Canceled { reason } => Err(self.canceled(&reason).await),
            // The first response says that the watch stands; one that does not is no etcd's.
            Taken::Batch(_) => Err(Broken::Again("changes before the confirmation".to_owned())),
        }
    }

    fn broken(&self, verdict: Verdict) -> Broken {
        match verdict {
            Verdict::Denied(why) => Broken::Final(self.servers.denied(&why)),
            other => Broken::Again(format!("{other:?}")),
        }
    }
}
