//! The client's side of `Follow`: one host, for as long as it is wanted, over as many connections as
//! that takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tanako_proto::host::v1::{FollowRequest, HostUpdate, host_client::HostClient};
use tanako_store::Backoff;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use crate::{
    hosts::{Dial, next_update},
    problem::said,
};

/// Largest update: a host of thousands of processes, all of them at once.
const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long connecting and asking may take.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// A stream that says nothing for so long is given up: there is a sign of life each second.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Pauses between two tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Numbers the connections of this agent: each is a life of what its host says.
static LIVES: AtomicU64 = AtomicU64::new(1);

/// What comes of following.
#[derive(Debug)]
pub struct Heard {
    /// The host.
    pub host: Arc<str>,
    /// Rises with each connection; each begins with a snapshot.
    pub life: u64,
    /// What it said, or why it cannot be heard.
    pub said: Result<Box<HostUpdate>, String>,
}

/// Whom to follow, and how.
pub struct Follow {
    /// The way there.
    pub dial: Arc<dyn Dial>,
    /// The host.
    pub host: Arc<str>,
    /// What is asked for.
    pub request: FollowRequest,
    /// Begins a new life at once.
    pub renew: Arc<Notify>,
    /// Where it is told; nothing more is read from the host while that is full.
    pub heard: mpsc::Sender<Heard>,
}

impl Follow {
    /// Follows until dropped, or nobody listens.
    pub async fn run(self) {
        let mut pauses = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let life = LIVES.fetch_add(1, Ordering::Relaxed);
            let why = tokio::select! {
                why = self.live(life, &mut pauses) => why,
                () = self.renew.notified() => continue,
            };
            tracing::debug!(host = %self.host, life, why, "a host cannot be followed");
            let lost = Heard {
                host: self.host.clone(),
                life,
                said: Err(why),
            };
            if self.heard.send(lost).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pauses.pause()) => {}
                () = self.renew.notified() => {}
            }
        }
    }

    /// One connection; returns why it ended.
    async fn live(&self, life: u64, pauses: &mut Backoff) -> String {
        let begin = async {
            let channel = self.dial.channel(&self.host).await?;
            let mut client = HostClient::new(channel).max_decoding_message_size(UPDATE_BYTES_MAX);
            let stream = client.follow(self.request).await;
            stream
                .map(tonic::Response::into_inner)
                .map_err(|status| said(&status))
        };
        let mut stream = match timeout(BEGIN_WITHIN, begin).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return why,
            Err(_) => return format!("no answer within {} s", BEGIN_WITHIN.as_secs()),
        };
        loop {
            let update = match next_update(&mut stream, SILENCE_MAX).await {
                Ok(update) => update,
                Err(why) => return why,
            };
            pauses.reset();
            let heard = Heard {
                host: self.host.clone(),
                life,
                said: Ok(Box::new(update)),
            };
            if self.heard.send(heard).await.is_err() {
                return "nobody listens".to_owned();
            }
        }
    }
}
