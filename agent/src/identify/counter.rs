//! The desk at which the agents of other hosts ask for permits, while this agent holds the office. What
//! it decides is [`Desk`]'s; here it is carried out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tanako_fleet::{
    ProcessName,
    identify::{AskId, Desk, DeskEffect, DeskInput, DeskReply, Granted, PollId, Refusal, Via},
};
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::{GatewayReport, PermitReply, PermitRequest},
};
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};

use super::{
    AcquireError, Ask, Broker,
    away::{self, Office, Upstream},
};
use crate::clock;

/// Longest name of a place.
const ID_MAX: usize = 64;
/// Shards in one report; a bot may have no more waiting either.
const ESTABLISHED_MAX: usize = 16_384;

/// The host that has a process, as far as whoever decides knows.
pub type Places = Arc<dyn Fn(&ProcessName) -> Option<String> + Send + Sync>;

/// Where agents of other hosts ask; clones are cheap and equal.
#[derive(Clone)]
pub struct Counter(Arc<Shared>);

struct Shared {
    broker: Broker,
    upstream: Arc<dyn Upstream>,
    places: Places,
    state: Mutex<State>,
    wake: Notify,
    next_poll: AtomicU64,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Default)]
struct State {
    desk: Desk,
    polls: HashMap<PollId, oneshot::Sender<DeskReply>>,
    /// Those who wait for the ledger.
    asking: HashMap<AskId, AbortHandle>,
}

impl Counter {
    /// Opens the desk; it is closed when cancelled, and while another agent holds the office.
    pub fn open(
        broker: Broker,
        upstream: Arc<dyn Upstream>,
        places: Places,
        cancel: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let counter = Self(Arc::new(Shared {
            broker,
            upstream,
            places,
            state: Mutex::default(),
            wake: Notify::new(),
            next_poll: AtomicU64::new(1),
            tracker: tracker.clone(),
            cancel,
        }));
        tracker.spawn(counter.clone().keep());
        counter
    }

    /// Why the host that asks gets no permit for this process: another one has it, and it alone may start it.
    pub fn stranger(&self, request: &PermitRequest) -> Option<Problem> {
        let process: ProcessName = request.process.parse().ok()?;
        let at = (self.0.places)(&process).filter(|at| *at != request.host)?;
        let host = &request.host;
        let text = format!("host {host} asks for a permit for {process}, which is host {at}'s");
        let problem = Problem::new("denied", process.to_string(), text)
            .cause("a permit goes to the host that has the process")
            .hint("a host that has just lost it stops it by itself; see `tanakoctl status`");
        Some(problem)
    }

    /// Answers one poll of the agent of `request.host`; that it is this one has been seen by its
    /// certificate. Dropping the future leaves the place for the next poll.
    pub async fn acquire(&self, request: PermitRequest) -> Result<PermitReply, Status> {
        let (id, ask, via) = read(request)?;
        if *self.0.upstream.office().borrow() != Office::Here {
            return Err(away::not_here(self.0.upstream.own()));
        }
        let poll = self.0.next_poll.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let wait_ms = tanako_fleet::identify::WAIT_MAX_MS;
        {
            let mut state = self.lock();
            state.polls.insert(poll, answer);
            let input = DeskInput::Poll { id, poll, wait_ms };
            self.step(&mut state, input, Some((ask, via)));
        }
        let mut waits = Waits {
            counter: self,
            poll: Some(poll),
        };
        let reply = answered.await;
        waits.poll = None;
        match reply {
            Ok(DeskReply::Pending) => Ok(PermitReply {
                pending: true,
                ..PermitReply::default()
            }),
            Ok(DeskReply::Granted {
                number,
                valid_ms,
                remaining,
            }) => Ok(PermitReply {
                permit: number,
                valid_ms,
                remaining,
                ..PermitReply::default()
            }),
            Ok(DeskReply::Refused(why)) => {
                let (refused, free_at) = match why {
                    Refusal::Exhausted { free_at } => ("exhausted", free_at.unwrap_or(0)),
                    Refusal::Superseded => ("superseded", 0),
                    Refusal::Full => ("full", 0),
                };
                Ok(PermitReply {
                    refused: refused.to_owned(),
                    free_at,
                    ..PermitReply::default()
                })
            }
            Ok(DeskReply::Deposed) | Err(_) => Err(away::not_here(self.0.upstream.own())),
        }
    }

    /// Takes in what workers of another host have told their agent.
    pub async fn report(&self, report: GatewayReport) -> Result<(), Status> {
        if report.established.len().max(report.sent.len()) > ESTABLISHED_MAX
            || report.bot.parse::<Bot>().is_err()
        {
            return Err(malformed("the report names no bot, or too many shards"));
        }
        if *self.0.upstream.office().borrow() != Office::Here {
            return Err(away::not_here(self.0.upstream.own()));
        }
        away::take_in(&self.0.broker, &report).await;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps the desk and carries out what it asks for. `ask` is what the poll of this step asks for.
    fn step(&self, state: &mut State, input: DeskInput, ask: Option<(Ask, Via)>) {
        let mut ask = ask;
        for effect in state.desk.step(clock::boot_ms(), input) {
            match effect {
                DeskEffect::Acquire(id) => {
                    let Some((ask, via)) = ask.take() else {
                        continue;
                    };
                    let asking = self.clone().ask(id.clone(), ask, via);
                    let cancel = self.0.cancel.clone();
                    let task = self
                        .0
                        .tracker
                        .spawn(async move { cancel.run_until_cancelled(asking).await });
                    state.asking.insert(id, task.abort_handle());
                }
                DeskEffect::GiveUp(id) => {
                    // Its place in the ledger's queue goes with the task.
                    if let Some(task) = state.asking.remove(&id) {
                        task.abort();
                    }
                }
                DeskEffect::Reply(poll, reply) => {
                    if let Some(answer) = state.polls.remove(&poll) {
                        // Whoever asked may be gone.
                        let _ = answer.send(reply);
                    }
                }
            }
        }
        self.0.wake.notify_one();
    }

    async fn ask(self, id: AskId, ask: Ask, via: Via) {
        let answer = self.0.broker.acquire_here(ask, via).await;
        let mut state = self.lock();
        state.asking.remove(&id);
        let input = match answer {
            Ok(permit) => DeskInput::Granted {
                id,
                permit: Granted {
                    number: permit.number,
                    until_boot_ms: permit.until_boot_ms,
                    remaining: permit.remaining,
                },
            },
            Err(error) => DeskInput::Refused {
                id,
                why: match error {
                    AcquireError::Exhausted { free_at, .. } => Refusal::Exhausted { free_at },
                    AcquireError::Superseded => Refusal::Superseded,
                    AcquireError::Unavailable(_) => Refusal::Full,
                },
            },
        };
        self.step(&mut state, input, None);
    }

    /// Keeps the desk's time, and closes it when the office is another's.
    async fn keep(self) {
        let mut office = self.0.upstream.office();
        loop {
            let deadline = self.lock().desk.deadline();
            let sleep = async {
                match deadline {
                    Some(at) => {
                        let left = (at - clock::boot_ms()).max(0).unsigned_abs();
                        tokio::time::sleep(Duration::from_millis(left + 1)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                () = self.0.cancel.cancelled() => DeskInput::Deposed,
                changed = office.changed() => match changed {
                    Ok(()) if *office.borrow_and_update() == Office::Here => DeskInput::Tick,
                    _ => DeskInput::Deposed,
                },
                () = self.0.wake.notified() => continue,
                () = sleep => DeskInput::Tick,
            };
            self.step(&mut self.lock(), input, None);
            if self.0.cancel.is_cancelled() || office.has_changed().is_err() {
                return;
            }
        }
    }
}

/// A poll that waits, hung up when dropped.
struct Waits<'a> {
    counter: &'a Counter,
    poll: Option<PollId>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(poll) = self.poll {
            let mut state = self.counter.lock();
            state.polls.remove(&poll);
            self.counter
                .step(&mut state, DeskInput::Hangup { poll }, None);
        }
    }
}

/// A name that could be a bot's.
struct Bot;

impl std::str::FromStr for Bot {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        format!("{text}/0")
            .parse::<ProcessName>()
            .map(|_| Self)
            .map_err(|_| ())
    }
}

fn read(request: PermitRequest) -> Result<(AskId, Ask, Via), Status> {
    let via = match request.via.as_str() {
        "worker" => Via::Worker,
        "start" => Via::Start,
        "queue" => Via::Queue,
        _ => return Err(malformed("via is worker, start or queue")),
    };
    let process: ProcessName = request
        .process
        .parse()
        .map_err(|_| malformed("the request names no process"))?;
    let fits = |text: &str| !text.is_empty() && text.len() <= ID_MAX;
    if !fits(&request.id) || !fits(&request.host) || process.group() != request.bot {
        return Err(malformed(
            "the id, the host or the bot is not as it should be",
        ));
    }
    if request.shard_id >= request.shard_count {
        return Err(malformed("there is no such shard"));
    }
    let ask = Ask {
        process,
        attempt: request.attempt,
        shard_id: request.shard_id,
        shard_count: request.shard_count,
        unused: (request.unused != 0).then_some(request.unused),
    };
    Ok(((request.host, request.id), ask, via))
}

fn malformed(what: &str) -> Status {
    Problem::new("invalid-argument", "permit", what)
        .hint("agents of one fleet should be of one version")
        .into_status(Code::InvalidArgument)
}
