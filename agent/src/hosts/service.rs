//! The Host service of this agent: what the agents of a fleet ask of each other. That the caller is an
//! agent of this fleet has been seen by its certificate before anything comes here.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use tanako_pki::Peer;
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::{self as wire, host_server::Host, worker_answer::Answer},
    worker::v1::command::Command,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use super::{Local, feed::Feed, wire as convert};
use crate::{
    broadcast::Broadcast,
    coordinator::Caller,
    hub::{board::Board, feed as views},
    identify::Counter,
    identity::{Refusal, Refusals},
    problem,
    tenure::Answering,
};

/// Longest that a command may take; a backup of a large node takes hours.
const WITHIN_MAX: Duration = Duration::from_secs(12 * 3600);
/// Answers to a command that wait for the caller.
const ANSWERS_MAX: usize = 16;
/// Sessions in one message; a process has far fewer shards.
const SESSIONS_MAX: usize = 4096;

/// The service; clones are cheap and equal.
#[derive(Clone)]
pub struct HostService {
    local: Local,
    feed: Feed,
    tenures: Answering,
    board: Option<Arc<Board>>,
    cancel: CancellationToken,
    tracker: TaskTracker,
    counter: Option<Counter>,
    broadcast: Option<Broadcast>,
    refusals: Refusals,
}

impl HostService {
    /// Of this host. Streams end when `cancel` is cancelled.
    pub fn new(
        local: Local,
        feed: Feed,
        tenures: Answering,
        refusals: Refusals,
        cancel: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            local,
            feed,
            tenures,
            board: None,
            cancel,
            tracker,
            counter: None,
            broadcast: None,
            refusals,
        }
    }

    /// Gives permits to agents of other hosts, and puts their questions to the shards of this one.
    #[must_use]
    pub fn answering(mut self, counter: Counter, broadcast: Broadcast) -> Self {
        self.counter = Some(counter);
        self.broadcast = Some(broadcast);
        self
    }

    /// Tells those that show this host, and do not decide about it, what is on this board.
    #[must_use]
    pub fn showing(mut self, board: Arc<Board>) -> Self {
        self.board = Some(board);
        self
    }

    /// Whoever asks for a host must be that host, by its certificate. On this host's own socket there is
    /// none: who may open it may everything.
    fn is_asker<T>(&self, request: &Request<T>, call: &str, host: &str) -> Result<(), Status> {
        match request.extensions().get::<Arc<Peer>>() {
            Some(peer) if peer.name != host => {
                let problem = Problem::new(
                    "denied",
                    host,
                    format!("{peer} asks in the name of host {host:?}"),
                )
                .cause("an agent asks for its own host only")
                .hint("give each host a certificate of its own: tanakoctl join-token --host NAME");
                let caller = request.extensions().get().cloned();
                Err(self.denied(caller, call, problem))
            }
            _ => Ok(()),
        }
    }

    /// Writes down that something was asked for that is another host's.
    fn denied(&self, caller: Option<Caller>, call: &str, problem: Problem) -> Status {
        if let Some(caller) = caller {
            let cause = problem.message.clone();
            self.refusals
                .report(Refusal::new(&caller.who, &caller.from, call, cause));
        }
        problem::status(problem)
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Host for HostService {
    type FollowStream = Streaming<wire::HostUpdate>;
    type CommandStream = Streaming<wire::WorkerAnswer>;

    async fn follow(
        &self,
        request: Request<wire::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let asked = request.into_inner();
        if let Some(board) = self.board.clone().filter(|_| !asked.detail) {
            let (updates, stream) = mpsc::channel(views::UPDATES_MAX);
            let feeding = views::feed(board, asked, updates, self.cancel.child_token());
            self.tracker.spawn(feeding);
            return Ok(Response::new(Box::pin(ReceiverStream::new(stream))));
        }
        let (updates, stream) = mpsc::channel(1);
        let feeding =
            self.feed
                .clone()
                .follow(asked.interval_ms, updates, self.cancel.child_token());
        self.tracker.spawn(feeding);
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn order(
        &self,
        request: Request<wire::OrderRequest>,
    ) -> Result<Response<wire::OrderReply>, Status> {
        let asked = request.into_inner();
        let order = convert::read_order(asked.order)?;
        let object = order
            .process()
            .map_or_else(|| self.local.host.to_string(), ToString::to_string);
        tracing::debug!(epoch = asked.epoch, from = asked.from, ?order, "an order");
        let mut table = self.local.supervisor.status();
        table.mark_unchanged();
        self.local
            .carry_out(asked.epoch, &asked.tenure, asked.sequence, order)
            .await
            .map_err(|error| {
                tracing::warn!(from = asked.from, object, %error, "an order was refused");
                convert::order_status(&error, &object)
            })?;
        let revision = self.feed.shown(table).await;
        Ok(Response::new(wire::OrderReply { revision }))
    }

    async fn command(
        &self,
        request: Request<wire::WorkerCommand>,
    ) -> Result<Response<Self::CommandStream>, Status> {
        let asked = request.into_inner();
        let process = convert::name(&asked.process)?;
        let command: Command = asked
            .command
            .and_then(|command| command.command)
            .ok_or_else(|| {
                convert::malformed("the command is not known to this agent; upgrade it")
            })?;
        self.local
            .gate
            .pass_epoch(asked.epoch)
            .map_err(|error| convert::order_status(&error, &asked.process))?;
        let within = Duration::from_millis(asked.within_ms.into()).min(WITHIN_MAX);
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let run = self.local.command(&process, command, within).await;
        let cancel = self.cancel.clone();
        self.tracker
            .spawn(cancel.run_until_cancelled_owned(async move {
                let last = match run {
                    Err(error) => Answer::Failure(convert::failure(&error)),
                    Ok(mut run) => loop {
                        tokio::select! {
                            // Whoever asked has gone: the command goes on, as it would here.
                            () = answers.closed() => return,
                            Some(progress) = run.progress.recv() => {
                                // A caller that is behind wants the next one anyway.
                                let _ = answers.try_send(Ok(answer(Answer::Progress(progress))));
                            }
                            result = &mut run.result => break match result {
                                Ok(Ok(result)) => Answer::Result(result),
                                Ok(Err(error)) => Answer::Failure(convert::failure(&error)),
                                Err(_) => {
                                    let gone = crate::worker::CommandError::Gone(process);
                                    Answer::Failure(convert::failure(&gone))
                                }
                            },
                        }
                    },
                };
                // The caller may have gone.
                let _ = answers.send(Ok(answer(last))).await;
            }));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn take_sessions(
        &self,
        request: Request<wire::SessionsRequest>,
    ) -> Result<Response<wire::Sessions>, Status> {
        let asked = request.into_inner();
        let process = convert::name(&asked.process)?;
        let kept = self
            .local
            .hand_out(asked.epoch, &process)
            .map_err(|error| convert::order_status(&error, &asked.process))?;
        Ok(Response::new(wire::Sessions {
            epoch: asked.epoch,
            process: asked.process,
            shards: kept.into_iter().map(convert::kept).collect(),
        }))
    }

    async fn give_sessions(
        &self,
        request: Request<wire::Sessions>,
    ) -> Result<Response<wire::SessionsReply>, Status> {
        let given = request.into_inner();
        let process = convert::name(&given.process)?;
        if given.shards.len() > SESSIONS_MAX {
            return Err(convert::malformed("too many sessions"));
        }
        let kept = given.shards.into_iter().map(convert::read_kept).collect();
        let kept = self
            .local
            .take_in(given.epoch, &process, kept)
            .map_err(|error| convert::order_status(&error, &given.process))?;
        Ok(Response::new(wire::SessionsReply {
            kept: u32::try_from(kept).unwrap_or(u32::MAX),
        }))
    }

    async fn acquire_permit(
        &self,
        request: Request<wire::PermitRequest>,
    ) -> Result<Response<wire::PermitReply>, Status> {
        const CALL: &str = "/tanako.host.v1.Host/AcquirePermit";
        self.is_asker(&request, CALL, &request.get_ref().host)?;
        let counter = self.counter.as_ref().ok_or_else(|| not_yet("permits"))?;
        let caller = request.extensions().get().cloned();
        let request = request.into_inner();
        if let Some(stranger) = counter.stranger(&request) {
            return Err(self.denied(caller, CALL, stranger));
        }
        let reply = counter.acquire(request).await?;
        Ok(Response::new(reply))
    }

    async fn report_gateway(
        &self,
        request: Request<wire::GatewayReport>,
    ) -> Result<Response<wire::GatewayReply>, Status> {
        let counter = self.counter.as_ref();
        let counter = counter.ok_or_else(|| not_yet("reports of Discord's limits"))?;
        counter.report(request.into_inner()).await?;
        Ok(Response::new(wire::GatewayReply {}))
    }

    async fn ask_shards(
        &self,
        request: Request<wire::ShardsQuestion>,
    ) -> Result<Response<tanako_proto::worker::v1::BroadcastReply>, Status> {
        let broadcast = self.broadcast.as_ref();
        let broadcast = broadcast.ok_or_else(|| not_yet("questions to its shards"))?;
        let reply = broadcast.answer(request.into_inner()).await;
        reply.map(Response::new).map_err(|problem| {
            let code = match problem.code.as_str() {
                "busy" => tonic::Code::ResourceExhausted,
                _ => tonic::Code::InvalidArgument,
            };
            problem.into_status(code)
        })
    }

    async fn get_standing(
        &self,
        _: Request<wire::StandingRequest>,
    ) -> Result<Response<wire::Standing>, Status> {
        Ok(Response::new(self.tenures.tenure.standing()))
    }

    async fn relay_keep_alive(
        &self,
        request: Request<wire::RelayRequest>,
    ) -> Result<Response<wire::RelayReply>, Status> {
        const CALL: &str = "/tanako.host.v1.Host/RelayKeepAlive";
        self.is_asker(&request, CALL, &request.get_ref().host)?;
        let caller = request.extensions().get().cloned();
        let request = request.into_inner();
        let reply = self.tenures.relay(&request).await;
        let reply = reply.map_err(|problem| self.denied(caller, CALL, *problem))?;
        Ok(Response::new(reply))
    }
}

fn answer(answer: Answer) -> wire::WorkerAnswer {
    wire::WorkerAnswer {
        answer: Some(answer),
    }
}

/// An agent of a version that does not do this yet.
fn not_yet(what: &str) -> Status {
    Problem::new(
        "unsupported",
        "agent",
        format!("this version of the agent does not give {what}"),
    )
    .hint("upgrade the agent of this host")
    .into_status(tonic::Code::Unimplemented)
}
