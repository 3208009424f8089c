//! The members of the cluster: connections, failover, deadlines, the token.

use std::{fmt, sync::Mutex, time::Duration};

use futures_util::{future::BoxFuture, stream};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{
    options::{Options, OptionsError},
    verdict::{Verdict, judge},
    wire::{
        self, auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient,
        watch_client::WatchClient,
    },
};
use crate::{backoff::Backoff, error::StoreError};

/// Largest answer taken. A page of a listing, or a piece of a watch's response, is far below.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pauses between two tries of one call.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// The least time that one member gets to answer before the next one is asked.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// Whether a call may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice does no harm.
    Free,
    /// Only while it has surely not been carried out.
    UnlessSent,
}

/// Why a call has failed for good.
#[derive(Debug)]
pub(super) enum Failure {
    /// The revision asked for is gone.
    Compacted,
    /// The revision asked for is yet to come.
    Future,
    /// There is no such lease.
    NoLease,
    /// Everything else.
    Store(StoreError),
}

impl Failure {
    /// For calls that cannot meet the first three.
    pub(super) fn into_error(self, servers: &Servers, what: &str) -> StoreError {
        match self {
            Self::Store(error) => error,
            odd => StoreError::Unavailable(format!("{servers}: {what} was answered with {odd:?}")),
        }
    }
}

/// One member, ready to be asked.
pub(super) struct Peer {
    channel: Channel,
    index: usize,
}

impl Peer {
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Which member it is.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }
}

type Token = MetadataValue<Ascii>;

/// All members of one cluster.
pub(super) struct Servers {
    options: Options,
    /// One for each endpoint; made when needed, made anew after it could not connect.
    channels: Vec<Mutex<Option<Channel>>>,
    /// The member that is asked, until it does not answer.
    preferred: watch::Sender<usize>,
    token: tokio::sync::Mutex<Option<Token>>,
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd at {}", self.options.endpoints.join(", "))
    }
}

impl Servers {
    /// Reads the files once, so that a wrong one is found at the start.
    pub(super) fn new(options: Options) -> Result<Self, OptionsError> {
        for url in &options.endpoints {
            options.endpoint(url)?;
        }
        if let Some(user) = &options.user {
            Options::password(user)?;
        }
        Ok(Self {
            channels: options.endpoints.iter().map(|_| Mutex::default()).collect(),
            // Agents of one fleet begin with different members.
            preferred: watch::Sender::new(fastrand::usize(..options.endpoints.len())),
            token: tokio::sync::Mutex::default(),
            options,
        })
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Asks until there is an answer, a final refusal, or the deadline.
    pub(super) async fn call<Q, A>(
        &self,
        what: &'static str,
        repeat: Repeat,
        request: Q,
        send: impl Fn(Peer, Request<Q>) -> BoxFuture<'static, Result<Response<A>, Status>>,
    ) -> Result<A, Failure>
    where
        Q: Clone,
    {
        let deadline = Instant::now() + self.options.timeout;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut renewed = false;
        loop {
            let until = match repeat {
                Repeat::Free if self.channels.len() > 1 => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    deadline.min(Instant::now() + (left / 2).max(ATTEMPT_MIN))
                }
                _ => deadline,
            };
            let (index, token, outcome) = self.attempt(until, request.clone(), &send).await;
            let why = match outcome {
                Ok(answer) => return Ok(answer),
                Err(Verdict::NotDone(why)) => {
                    self.lost(index, true);
                    why
                }
                Err(Verdict::Unknown(why)) => {
                    self.lost(index, false);
                    if repeat == Repeat::UnlessSent {
                        return Err(Failure::Store(StoreError::Unavailable(format!(
                            "{self}: no answer to {what}, which may have happened: {why}"
                        ))));
                    }
                    why
                }
                Err(Verdict::Token(why)) => {
                    self.forget(token.as_ref()).await;
                    if renewed || self.options.user.is_none() {
                        return Err(Failure::Store(self.denied(&why)));
                    }
                    renewed = true;
                    continue;
                }
                Err(Verdict::Denied(why)) => return Err(Failure::Store(self.denied(&why))),
                Err(Verdict::NoLease) => return Err(Failure::NoLease),
                Err(Verdict::Compacted) => return Err(Failure::Compacted),
                Err(Verdict::Future) => return Err(Failure::Future),
                Err(Verdict::Full) => {
                    return Err(Failure::Store(StoreError::Full {
                        server: self.to_string(),
                    }));
                }
                Err(Verdict::TooLarge(what)) => {
                    return Err(Failure::Store(StoreError::TooLarge {
                        what,
                        max: crate::model::value_bytes_max(),
                    }));
                }
            };
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(Failure::Store(StoreError::Unavailable(format!(
                    "{self}: no answer to {what} within {:?}: {why}",
                    self.options.timeout
                ))));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt<Q, A>(
        &self,
        until: Instant,
        message: Q,
        send: impl Fn(Peer, Request<Q>) -> BoxFuture<'static, Result<Response<A>, Status>>,
    ) -> (usize, Option<Token>, Result<A, Verdict>) {
        let (peer, request) = match self.prepare(until, message).await {
            Ok(prepared) => prepared,
            Err((index, verdict)) => return (index, None, Err(verdict)),
        };
        let index = peer.index;
        let token = request.metadata().get("token").cloned();
        let outcome = match timeout_at(until, send(peer, request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(judge(&status)),
            Err(_) => Err(Verdict::Unknown(format!(
                "{} does not answer in time",
                self.options.endpoints[index]
            ))),
        };
        (index, token, outcome)
    }

    /// The preferred member and the request with its headers.
    pub(super) async fn prepare<Q>(
        &self,
        until: Instant,
        message: Q,
    ) -> Result<(Peer, Request<Q>), (usize, Verdict)> {
        let index = *self.preferred.borrow();
        let channel = self
            .channel(index)
            .map_err(|error| (index, Verdict::NotDone(with_sources(&error))))?;
        let peer = Peer { channel, index };
        let mut request = Request::new(message);
        // A member that has lost its cluster refuses, instead of answering late or never.
        request
            .metadata_mut()
            .insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = self
            .token(&peer, until)
            .await
            .map_err(|verdict| (index, verdict))?
        {
            request.metadata_mut().insert("token", token);
        }
        Ok((peer, request))
    }

    fn channel(&self, index: usize) -> Result<Channel, OptionsError> {
        let mut slot = self.channels[index]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(channel) = &*slot {
            return Ok(channel.clone());
        }
        let endpoint = self.options.endpoint(&self.options.endpoints[index])?;
        let channel = endpoint.connect_lazy();
        *slot = Some(channel.clone());
        Ok(channel)
    }

    /// Prefers the next member. `unconnected`: the connection is set up anew next time, with the
    /// certificates of then.
    pub(super) fn lost(&self, index: usize, unconnected: bool) {
        if unconnected {
            *self.channels[index]
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        }
        // Only if nobody else has moved on from it already.
        self.preferred.send_if_modified(|preferred| {
            let before = *preferred;
            if before == index {
                *preferred = (index + 1) % self.channels.len();
            }
            *preferred != before
        });
    }

    /// Which member is asked. Watches move along with it: a host that has lost its power closes no connection,
    /// and calls find that out long before a stream on which nothing has to come.
    pub(super) fn preferred(&self) -> watch::Receiver<usize> {
        self.preferred.subscribe()
    }

    async fn token(&self, peer: &Peer, until: Instant) -> Result<Option<Token>, Verdict> {
        let Some(user) = &self.options.user else {
            return Ok(None);
        };
        let late = |_| Verdict::NotDone("no token in time".to_owned());
        // Who comes while one is fetched waits for that one.
        let mut held = timeout_at(until, self.token.lock()).await.map_err(late)?;
        if held.is_some() {
            return Ok(held.clone());
        }
        let password =
            Options::password(user).map_err(|error| Verdict::Denied(with_sources(&error)))?;
        let request = wire::AuthenticateRequest {
            name: user.name.clone(),
            password: password.0,
        };
        let answer = timeout_at(until, peer.auth().authenticate(request))
            .await
            .map_err(late)?;
        let text = match answer {
            Ok(answer) => answer.into_inner().token,
            Err(status)
                if status.code() == Code::FailedPrecondition
                    && status.message().contains("not enabled") =>
            {
                // A server without users needs no token.
                return Ok(None);
            }
            Err(status) => {
                return Err(match judge(&status) {
                    // Whether we got a token or not: what we wanted it for has not been sent.
                    Verdict::Unknown(why) => Verdict::NotDone(why),
                    other => other,
                });
            }
        };
        let mut token: Token = text
            .parse()
            .map_err(|_| Verdict::NotDone("the token is not text".to_owned()))?;
        token.set_sensitive(true);
        *held = Some(token.clone());
        Ok(Some(token))
    }

    /// Fetches a new token next time, unless that has happened since `used` was taken.
    async fn forget(&self, used: Option<&Token>) {
        let mut held = self.token.lock().await;
        if held.as_ref() == used {
            *held = None;
        }
    }

    /// Fetches a new token next time.
    pub(super) async fn renew(&self) {
        *self.token.lock().await = None;
    }

    /// A refusal, with who was refused.
    pub(super) fn denied(&self, why: &str) -> StoreError {
        let who = match &self.options.user {
            Some(user) => format!("user {:?}", user.name),
            None => "a client without a user".to_owned(),
        };
        StoreError::Denied(format!("{self} refuses {who}: {why}"))
    }
}

/// Prolongs a lease once: the interface knows only a stream of such requests.
pub(super) async fn keep_alive_once(
    peer: Peer,
    request: Request<wire::LeaseKeepAliveRequest>,
) -> Result<Response<wire::LeaseKeepAliveResponse>, Status> {
    let request = request.map(|message| stream::iter([message]));
    let mut answers = peer.lease().lease_keep_alive(request).await?.into_inner();
    match answers.message().await? {
        Some(answer) => Ok(Response::new(answer)),
        None => Err(Status::unavailable("the stream ended without an answer")),
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
