//! The process under its agent's orders, as `bot/src/{process,shard/set}.rs`.

use std::{collections::BTreeMap, rc::Rc};

use tanako_bot::{
    agent::report::terms,
    shard::duty::{Duty, Terms},
};
use tanako_fleet::vault::Session;
use tanako_proto::worker::v1::ShardStage;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{agent::worker::Command, trace::trace, watch},
    Answer, Bot, Farewell,
    shard::{Leave, Order, Status},
};

/// The agent's acknowledgement of the final deposits when the process ends, in milliseconds.
const FAREWELL_WITHIN: u64 = 3_000;
/// The same, when the process stays.
const HANDOVER_WITHIN: u64 = 10_000;

const WARM: Terms = Terms {
    duty: Duty::Warm,
    cut: None,
};
const ACTIVE: Terms = Terms {
    duty: Duty::Active,
    cut: None,
};

/// Carries out what the agent orders.
pub struct Process {
    bot: Rc<Bot>,
    farewell: mpsc::UnboundedSender<Farewell>,
    answers: mpsc::UnboundedSender<Answer>,
    terms: Terms,
    /// Set when this stretch of work is over: nothing can be waited for any more.
    over: watch::Sender<bool>,
    stretches: u64,
}

/// Stream and number of a command.
type CommandId = (u64, u64);

impl Process {
    /// On standby.
    pub fn new(
        bot: Rc<Bot>,
        farewell: mpsc::UnboundedSender<Farewell>,
        answers: mpsc::UnboundedSender<Answer>,
    ) -> Self {
        Self {
            bot,
            farewell,
            answers,
            terms: WARM,
            over: watch::channel(false).0,
            stretches: 0,
        }
    }

    fn tell_all(&self, mut order: impl FnMut(u32) -> Order) {
        for member in self.bot.members.borrow().iter() {
            let id = member.status.borrow().report.shard_id;
            // Tasks end with the process only.
            let _ = member.orders.send(order(id));
        }
    }

    /// Sets the shards to work.
    pub fn work(&mut self, sessions: Vec<(u32, Session)>, terms: Terms) {
        self.stretches += 1;
        self.over = watch::channel(false).0;
        self.terms = terms;
        let mut sessions: BTreeMap<u32, Session> = sessions.into_iter().collect();
        self.tell_all(|id| Order::Work(sessions.remove(&id).map(Box::new), terms));
    }

    /// Carries out a command; answers it now or later.
    pub async fn command(&mut self, id: CommandId, command: Command) {
        trace!(
            self.bot.sim,
            [self.bot.identity.pid],
            "pid {}: {command:?}",
            self.bot.identity.pid
        );
        let result = match command {
            Command::StandDown(within) => {
                let acknowledged = self.hand_over(within, false).await;
                self.terms = WARM;
                if acknowledged {
                    self.tell_all(|_| Order::Release);
                    Some(Ok(0))
                } else {
                    Some(Err("not acknowledged".to_owned()))
                }
            }
            Command::TakeOver(sessions) => self.take_over(id, sessions),
            Command::Share(assignment) => {
                let terms = terms(assignment.duty, assignment.cut);
                self.share(id, terms)
            }
        };
        if let Some(result) = result {
            self.answer(id, result);
        }
    }

    fn answer(&self, (stream, id): CommandId, result: Result<i64, String>) {
        let _ = self.answers.send(Answer { stream, id, result });
    }

    /// From the last event to closed connections and acknowledged deposits. Whether they were.
    pub async fn hand_over(&mut self, within: u64, last: bool) -> bool {
        self.over.send_replace(true);
        let (mut all_quiesced, mut all_closed) = (Vec::new(), Vec::new());
        self.tell_all(|_| {
            let (quiesced, when_quiesced) = oneshot::channel();
            let (closed, when_closed) = oneshot::channel();
            all_quiesced.push(when_quiesced);
            all_closed.push(when_closed);
            Order::StandDown(Leave {
                within,
                quiesced,
                closed,
            })
        });
        let handed = async {
            ended(all_quiesced).await;
            let (done, answer) = oneshot::channel();
            let _ = self.farewell.send(Farewell { last, done });
            let within = if last {
                FAREWELL_WITHIN
            } else {
                HANDOVER_WITHIN
            };
            tokio::select! {
                biased;
                said = answer => said.is_ok(),
                () = self.bot.sim.sleep(within) => false,
            }
        };
        let (acknowledged, ()) = tokio::join!(handed, ended(all_closed));
        acknowledged
    }

    /// Answers later, once every shard is established.
    fn take_over(
        &mut self,
        id: CommandId,
        sessions: Vec<(u32, Session)>,
    ) -> Option<Result<i64, String>> {
        match self.terms.duty {
            Duty::Shadow => return Some(Err("connected beside another set".to_owned())),
            // Under way, or done before.
            Duty::Active => {}
            Duty::Warm => self.work(sessions, ACTIVE),
        }
        let statuses: Vec<_> = self
            .bot
            .members
            .borrow()
            .iter()
            .map(|member| member.status.clone())
            .collect();
        let stretch = self.stretches;
        self.later(id, async move {
            let settled = |status: &Status| {
                status.stretch == stretch
                    && (status.report.established_at != 0
                        || status.report.stage == ShardStage::Fatal as i32)
            };
            for mut status in statuses {
                let _ = status.wait_for(settled).await;
            }
            Ok(0)
        });
        None
    }

    /// In force at once; answers later, once what it released has been handled.
    fn share(&mut self, id: CommandId, terms: Terms) -> Option<Result<i64, String>> {
        if terms.duty == Duty::Warm {
            return Some(Err("it has to stand down".to_owned()));
        }
        if self.terms.duty == Duty::Warm {
            return Some(Err("it has to take over first".to_owned()));
        }
        let mut answers = Vec::new();
        self.tell_all(|_| {
            let (done, answer) = oneshot::channel();
            answers.push(answer);
            Order::Share(terms, done)
        });
        self.terms = terms;
        self.later(id, async move {
            let mut newest = 0;
            for answer in answers {
                newest = newest.max(answer.await.map_err(|_| "interrupted".to_owned())?);
            }
            Ok(newest)
        });
        None
    }

    fn later(
        &self,
        (stream, id): CommandId,
        work: impl Future<Output = Result<i64, String>> + 'static,
    ) {
        let (answers, mut over) = (self.answers.clone(), self.over.subscribe());
        self.bot.sim.spawn(self.bot.identity.group, async move {
            let result = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => Err("interrupted".to_owned()),
                result = work => result,
            };
            let _ = answers.send(Answer { stream, id, result });
        });
    }
}

async fn ended(parts: Vec<oneshot::Receiver<()>>) {
    for part in parts {
        // A task that is gone has nothing more to say.
        let _ = part.await;
    }
}
