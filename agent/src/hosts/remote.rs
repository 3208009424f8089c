//! The connection to another host: follows it for as long as the term lasts, and takes one try at an order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tanako_fleet::ProcessName;
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::{self as wire, host_client::HostClient, worker_answer::Answer},
    worker::v1 as worker,
};
use tanako_store::Backoff;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Code, Status, transport::Channel};

use super::{
    Dial, MESSAGE_BYTES_MAX, Order, OrderError, TRY_WITHIN, handle::Sink, next_update,
    wire as convert,
};
use crate::{
    problem::said,
    vault::Kept,
    worker::{CommandError, CommandRun},
};

/// How often it is told what changed.
const INTERVAL_MS: u32 = 100;
/// There is a sign of life each second; one that is silent for longer is not heard any more.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Pauses between two tries to follow.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Progress of a command that waits for whoever asked.
const PROGRESS_MAX: usize = 64;
/// Besides the time that a command may take, for its answer to arrive.
const ANSWER_SLACK: Duration = Duration::from_secs(5);

/// What is needed to speak to one host.
pub(super) struct Remote {
    pub(super) name: Arc<str>,
    pub(super) own: Arc<str>,
    pub(super) epoch: u64,
    pub(super) dial: Arc<dyn Dial>,
    /// Which version of the duties it has been told; 0 = none.
    pub(super) told: AtomicU64,
}

impl Remote {
    fn away(&self, why: impl Into<String>) -> OrderError {
        OrderError::Away {
            host: Arc::clone(&self.name),
            why: why.into(),
        }
    }

    async fn client(&self) -> Result<HostClient<Channel>, OrderError> {
        let channel = match timeout(TRY_WITHIN, self.dial.channel(&self.name)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(why)) => return Err(self.away(why)),
            Err(_) => return Err(self.away("no connection in time")),
        };
        Ok(HostClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Follows until dropped.
    pub(super) async fn follow(self: Arc<Self>, sink: Sink) {
        let mut pauses = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let why = self.follow_once(&sink, &mut pauses).await;
            sink.lose(&self.name, &why);
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    /// One connection; why it ended.
    async fn follow_once(&self, sink: &Sink, pauses: &mut Backoff) -> String {
        let request = wire::FollowRequest {
            interval_ms: INTERVAL_MS,
            detail: true,
        };
        let begun = async {
            let mut client = self.client().await.map_err(|error| match error {
                OrderError::Away { why, .. } => why,
                other => other.to_string(),
            })?;
            let stream = client.follow(request).await;
            stream
                .map(tonic::Response::into_inner)
                .map_err(|status| said(&status))
        };
        let mut stream = match timeout(TRY_WITHIN, begun).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return why,
            Err(_) => return "no answer in time".to_owned(),
        };
        let mut first = true;
        loop {
            let update = match next_update(&mut stream, SILENCE_MAX).await {
                Ok(update) => update,
                Err(why) => return why,
            };
            let instance = update.snapshot.then(|| update.instance.clone());
            match sink.take(&self.name, first, update) {
                Ok(is_new) => {
                    if is_new && instance.is_some() {
                        // Another life of its agent knows nothing of what this one was told.
                        self.told.store(0, Ordering::Release);
                    }
                }
                Err(nonsense) => return nonsense.to_string(),
            }
            first = false;
            pauses.reset();
        }
    }

    /// One try; the revision that shows the effect.
    pub(super) async fn order(
        &self,
        tenure: &str,
        sequence: u64,
        order: &Order,
    ) -> Result<u64, OrderError> {
        let request = wire::OrderRequest {
            epoch: self.epoch,
            from: self.own.to_string(),
            sequence,
            tenure: tenure.to_owned(),
            order: Some(convert::order(order)),
        };
        let call = async {
            let mut client = self.client().await?;
            let reply = client.order(request).await;
            reply.map_err(|status| self.refused(&status, order.process()))
        };
        match timeout(TRY_WITHIN, call).await {
            Ok(reply) => reply.map(|reply| reply.into_inner().revision),
            Err(_) => Err(self.away("no answer in time")),
        }
    }

    /// The sessions of a process that has stopped there.
    pub(super) async fn take_sessions(
        &self,
        process: &ProcessName,
    ) -> Result<Vec<Kept>, OrderError> {
        let request = wire::SessionsRequest {
            epoch: self.epoch,
            process: process.to_string(),
        };
        let call = async {
            let mut client = self.client().await?;
            let reply = client.take_sessions(request).await;
            reply.map_err(|status| self.refused(&status, Some(process)))
        };
        match timeout(TRY_WITHIN, call).await {
            Ok(reply) => {
                let shards = reply?.into_inner().shards;
                Ok(shards.into_iter().map(convert::read_kept).collect())
            }
            Err(_) => Err(self.away("no answer in time")),
        }
    }

    /// Has it keep the sessions of a process that will start there; how many it keeps.
    pub(super) async fn give_sessions(
        &self,
        process: &ProcessName,
        kept: &[Kept],
    ) -> Result<usize, OrderError> {
        let request = wire::Sessions {
            epoch: self.epoch,
            process: process.to_string(),
            shards: kept.iter().cloned().map(convert::kept).collect(),
        };
        let call = async {
            let mut client = self.client().await?;
            let reply = client.give_sessions(request).await;
            reply.map_err(|status| self.refused(&status, Some(process)))
        };
        match timeout(TRY_WITHIN, call).await {
            Ok(reply) => Ok(reply?.into_inner().kept as usize),
            Err(_) => Err(self.away("no answer in time")),
        }
    }

    /// Gives a worker of it a command.
    pub(super) async fn command(
        &self,
        process: &ProcessName,
        command: worker::command::Command,
        within: Duration,
        tasks: &tokio_util::task::TaskTracker,
    ) -> Result<CommandRun, CommandError> {
        let away = |why: String| CommandError::Away(process.clone(), why);
        let request = wire::WorkerCommand {
            epoch: self.epoch,
            process: process.to_string(),
            command: Some(worker::Command {
                id: 0,
                command: Some(command),
            }),
            within_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        };
        let call = async {
            let mut client = self
                .client()
                .await
                .map_err(|error| away(error.to_string()))?;
            let stream = client.command(request).await;
            stream.map_err(|status| away(format!("host {}: {}", self.name, said(&status))))
        };
        let mut stream = match timeout(TRY_WITHIN, call).await {
            Ok(stream) => stream?.into_inner(),
            Err(_) => return Err(away(format!("host {} does not answer in time", self.name))),
        };
        let (progress, progress_rx) = mpsc::channel(PROGRESS_MAX);
        let (mut result, result_rx) = oneshot::channel();
        let (process, host) = (process.clone(), Arc::clone(&self.name));
        tasks.spawn(async move {
            let pump = async {
                loop {
                    match stream.message().await {
                        Ok(Some(wire::WorkerAnswer {
                            answer: Some(answer),
                        })) => match answer {
                            // A reader that is behind wants the next one anyway.
                            Answer::Progress(one) => drop(progress.try_send(one)),
                            Answer::Result(result) => return Ok(result),
                            Answer::Failure(failure) => {
                                return Err(convert::read_failure(&failure, &process, within));
                            }
                        },
                        Ok(_) => return Err(CommandError::Gone(process.clone())),
                        Err(status) => {
                            let why = format!("host {host}: {}", said(&status));
                            return Err(CommandError::Away(process.clone(), why));
                        }
                    }
                }
            };
            let outcome = tokio::select! {
                // Whoever asked has gone.
                () = result.closed() => return,
                outcome = timeout(within.saturating_add(ANSWER_SLACK), pump) => outcome,
            };
            let outcome =
                outcome.unwrap_or_else(|_| Err(CommandError::Timeout(process.clone(), within)));
            // Whoever asked may have gone.
            let _ = result.send(outcome);
        });
        Ok(CommandRun {
            progress: progress_rx,
            result: result_rx,
        })
    }

    fn refused(&self, status: &Status, process: Option<&ProcessName>) -> OrderError {
        let problem = Problem::from_status(status);
        match (problem.code.as_str(), process) {
            ("stale-epoch", _) => OrderError::Stale {
                epoch: self.epoch,
                seen: 0,
            },
            ("stale-tenure", _) => OrderError::Past,
            ("stale-order", Some(process)) => OrderError::Overtaken(process.clone()),
            ("stopping", _) => self.away(problem.message),
            _ if is_lost(status) => self.away(said(status)),
            _ => OrderError::Refused(Box::new(problem)),
        }
    }
}

/// Whether the call did not come through, as far as can be told.
fn is_lost(status: &Status) -> bool {
    let told = !status.details().is_empty();
    !told
        && matches!(
            status.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Internal
        )
}
