//! The process under its agent's orders.
//!
//! ```text
//!            ┌────────────── StandDown ───────────────┐
//!            ▼                                        │
//!          WARM ───────────── TakeOver ──────────► ACTIVE ◄── Share ── SHADOW
//! ```
//!
//! Every order may come twice: what is so already is answered as done. What does not fit is refused and
//! changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tanako_proto::worker::v1::SessionDeposit;
use tanako_proto::worker::v1::command::Command;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agent::link::{Answer, CommandId, Farewell, Refusal};
use crate::agent::report::{self, Binding};
use crate::questions;
use crate::services::Services;
use crate::shard::Stage;
use crate::shard::duty::{Duty, Terms};
use crate::shard::set::{ShardSet, until_all};
use crate::shard::task::StoredSession;

/// The agent's acknowledgement of the final deposits, when the process ends.
const FAREWELL_WITHIN: Duration = Duration::from_secs(3);
/// The same, when the process stays: the agent may be just restarting.
const HANDOVER_WITHIN: Duration = Duration::from_secs(10);

const WARM: Terms = Terms {
    duty: Duty::Warm,
    cut: None,
};
const ACTIVE: Terms = Terms {
    duty: Duty::Active,
    cut: None,
};

/// What a process is made of.
pub struct ProcessSetup {
    /// Its shards.
    pub set: ShardSet,
    /// Their numbers.
    pub ids: Vec<u32>,
    /// Of how many.
    pub count: u32,
    /// What sessions are tied to.
    pub binding: Binding,
    /// Everything that handlers use.
    pub services: Arc<Services>,
    /// To the link: sessions to be handed over. None without an agent.
    pub farewell: Option<mpsc::Sender<Farewell>>,
    /// To the link: what became of commands.
    pub answers: mpsc::Sender<Answer>,
    /// Owns the tasks that wait for the end of a command.
    pub tasks: TaskTracker,
}

/// Carries out what the agent orders.
pub struct Process {
    setup: ProcessSetup,
    terms: watch::Sender<Terms>,
    /// Cancelled when this stretch of work is over: nothing can be waited for any more.
    stretch: CancellationToken,
    stretches: u64,
}

impl Process {
    /// On standby.
    pub fn new(setup: ProcessSetup) -> Self {
        Self {
            setup,
            terms: watch::Sender::new(WARM),
            stretch: CancellationToken::new(),
            stretches: 0,
        }
    }

    /// The shards.
    pub const fn set(&self) -> &ShardSet {
        &self.setup.set
    }

    /// The duty and cut in force.
    pub fn terms(&self) -> watch::Receiver<Terms> {
        self.terms.subscribe()
    }

    /// Sets the shards to work.
    pub async fn work(&mut self, sessions: BTreeMap<u32, StoredSession>, terms: Terms) {
        self.stretches += 1;
        self.stretch = CancellationToken::new();
        self.terms.send_replace(terms);
        self.setup.set.work(sessions, terms).await;
    }

    /// Carries out a command; answers it now or later. Gives the time for it when it is to drain and end.
    pub async fn command(&mut self, id: CommandId, command: Command) -> Option<Duration> {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        let result = match command {
            Command::Drain(drain) => {
                self.answer(id, Ok(json!({}))).await;
                return Some(ms(drain.deadline_ms));
            }
            Command::StandDown(order) => Some(self.stand_down(ms(order.deadline_ms)).await),
            Command::TakeOver(order) => self.take_over(id, order.sessions).await,
            Command::Share(order) => {
                let terms = report::terms(order.duty(), order.cut);
                self.share(id, terms).await
            }
            Command::Reconnect(order) => {
                let told = self
                    .reconnect(order.shard_id, order.identify, order.why)
                    .await;
                Some(told)
            }
            Command::Ask(ask) => Some(self.ask(&ask.question)),
            // The link hands on nothing else.
            Command::Backup(_) | Command::Verify(_) | Command::Restore(_) => None,
        };
        if let Some(result) = result {
            self.answer(id, result).await;
        }
        None
    }

    async fn answer(&self, command: CommandId, result: Result<Value, Refusal>) {
        // The link ends with the process only.
        let _ = self.setup.answers.send(Answer { command, result }).await;
    }

    /// Finishes what runs, hands the sessions over, stays warm.
    async fn stand_down(&mut self, within: Duration) -> Result<Value, Refusal> {
        info!(within_ms = within.as_millis() as u64, "standing down");
        let acknowledged = self.hand_over(within, false).await;
        self.terms.send_replace(WARM);
        let Some(acknowledged) = acknowledged else {
            return Err(Refusal {
                code: "not_acknowledged",
                message: "the connections are closed, but the final deposits were not acknowledged"
                    .to_owned(),
                hint: "stand down again: the sessions are kept until they are acknowledged",
            });
        };
        self.setup.set.release().await;
        Ok(json!({ "acknowledged": acknowledged }))
    }

    /// From the last event to closed connections and acknowledged deposits. Gives their number.
    pub async fn hand_over(&mut self, within: Duration, last: bool) -> Option<usize> {
        self.stretch.cancel();
        let started = Instant::now();
        let services = &self.setup.services;
        let (quiesced, closed) = self.setup.set.stand_down(within).await;
        let handed = async {
            quiesced.await;
            services.phase("stop_quiesced_ms", started);
            let acknowledged = self.say_farewell(last).await;
            services.phase("stop_acknowledged_ms", started);
            acknowledged
        };
        let closed = async {
            closed.await;
            services.phase("stop_closed_ms", started);
        };
        let (acknowledged, ()) = tokio::join!(handed, closed);
        info!(
            quiesced_ms = services.phase_ms("stop_quiesced_ms"),
            acknowledged_ms = services.phase_ms("stop_acknowledged_ms"),
            closed_ms = services.phase_ms("stop_closed_ms"),
            "no connection is open any more"
        );
        acknowledged
    }

    /// None when the agent did not acknowledge in time.
    async fn say_farewell(&self, last: bool) -> Option<usize> {
        let Some(farewell) = &self.setup.farewell else {
            return Some(0);
        };
        let (done, answer) = oneshot::channel();
        let said = async {
            farewell.send(Farewell { last, done }).await.ok()?;
            answer.await.ok()
        };
        let within = if last {
            FAREWELL_WITHIN
        } else {
            HANDOVER_WITHIN
        };
        if let Ok(Some((acknowledged, _))) = tokio::time::timeout(within, said).await {
            info!(acknowledged, "the agent has the final deposits");
            Some(acknowledged)
        } else {
            warn!("the agent did not acknowledge the final deposits; it has those of a moment ago");
            None
        }
    }

    /// Answers later, once every shard is established.
    async fn take_over(
        &mut self,
        id: CommandId,
        sessions: Vec<SessionDeposit>,
    ) -> Option<Result<Value, Refusal>> {
        let duty = self.terms.borrow().duty;
        match duty {
            Duty::Shadow => {
                return Some(Err(wrong_state(
                    "this process is connected beside another set: a share gives it events, not a takeover",
                )));
            }
            // Under way, or done before.
            Duty::Active => {}
            Duty::Warm => {
                let (ids, count) = (&self.setup.ids, self.setup.count);
                let usable = report::usable_sessions(sessions, ids, count, &self.setup.binding);
                info!(sessions = usable.len(), "taking over");
                self.work(usable, ACTIVE).await;
            }
        }
        let statuses = self.setup.set.statuses();
        let (stretch, ended) = (self.stretches, self.stretch.clone());
        self.later(id, async move {
            let settled = until_all(statuses.clone(), |status| {
                status.stretch == stretch
                    && (status.established_at != 0 || status.stage == Stage::Fatal)
            });
            tokio::select! {
                () = ended.cancelled() => return Err(interrupted()),
                () = settled => {}
            }
            let (mut resumed, mut identified) = (0, 0);
            for status in &statuses {
                let status = status.borrow();
                if status.stage == Stage::Fatal {
                    return Err(Refusal {
                        code: "fatal",
                        message: format!("shard {}: {}", status.id, status.last_error),
                        hint: "Discord refuses this configuration; trying again does not help",
                    });
                }
                *(if status.resumed {
                    &mut resumed
                } else {
                    &mut identified
                }) += 1;
            }
            Ok(json!({ "resumed": resumed, "identified": identified }))
        });
        None
    }

    /// In force at once; answers later, once what it released has been handled.
    async fn share(&mut self, id: CommandId, terms: Terms) -> Option<Result<Value, Refusal>> {
        if terms.duty == Duty::Warm {
            return Some(Err(wrong_state(
                "a share cannot put a process on standby: it has to stand down",
            )));
        }
        if self.terms.borrow().duty == Duty::Warm {
            return Some(Err(wrong_state(
                "this process is on standby and gets no events: it has to take over first",
            )));
        }
        let shared = self.setup.set.share(terms).await;
        self.terms.send_replace(terms);
        let ended = self.stretch.clone();
        self.later(id, async move {
            let newest = tokio::select! {
                () = ended.cancelled() => None,
                newest = shared => newest,
            };
            let newest = newest.ok_or_else(interrupted)?;
            Ok(json!({ "newest_handled": newest }))
        });
        None
    }

    fn ask(&self, question: &str) -> Result<Value, Refusal> {
        questions::answer(question, &self.setup.services).ok_or_else(|| Refusal {
            code: "unknown-question",
            message: format!(
                "tanako-bot does not know this question, but {}",
                questions::KNOWN.join(", ")
            ),
            hint: "ask one that it knows",
        })
    }

    async fn reconnect(
        &mut self,
        shard: u32,
        identify: bool,
        why: String,
    ) -> Result<Value, Refusal> {
        if self.terms.borrow().duty == Duty::Warm {
            return Err(wrong_state(
                "this process is on standby and has no connections",
            ));
        }
        if self.setup.set.reconnect(shard, identify, why).await {
            Ok(json!({ "reconnecting": shard }))
        } else {
            Err(Refusal {
                code: "unknown_shard",
                message: format!("this process has no shard {shard}"),
                hint: "ask the process that holds it",
            })
        }
    }

    fn later(
        &self,
        command: CommandId,
        work: impl Future<Output = Result<Value, Refusal>> + Send + 'static,
    ) {
        let answers = self.setup.answers.clone();
        self.setup.tasks.spawn(async move {
            let result = work.await;
            let _ = answers.send(Answer { command, result }).await;
        });
    }
}

fn wrong_state(message: &str) -> Refusal {
    Refusal {
        code: "wrong_state",
        message: message.to_owned(),
        hint: "nothing was changed",
    }
}

fn interrupted() -> Refusal {
    Refusal {
        code: "interrupted",
        message: "the process stood down before it was done".to_owned(),
        hint: "ask again after the next takeover",
    }
}
