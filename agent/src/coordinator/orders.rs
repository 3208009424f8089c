//! What operations ask of hosts and workers, and what comes back.

use std::{sync::Arc, time::Duration};

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::worker::v1::{self as wire, command::Command};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::task::Task;
use crate::{
    clock::now_ms,
    hosts::{Hosts, Order, OrderError},
    operations::{
        core::{self, Effect, Input, Request},
        duties,
    },
    supervisor::{Desired as Wanted, SupervisorError, Table},
};

/// How long a worker may take to hear of a cut: it only looks through what it holds.
const SHARE_WITHIN: Duration = Duration::from_secs(5);
/// Besides the grace that its spec gives it to finish its work.
const SLACK: Duration = Duration::from_secs(5);

/// What comes back of errands.
pub(super) enum Told {
    /// A worker's answer.
    Answer(Answer),
    /// An order that was not carried out: operation, process, why.
    Refused(u64, String, String),
}

/// A worker's answer to what an operation asked of it.
pub(super) struct Answer {
    operation: u64,
    process: ProcessName,
    attempt: u64,
    request: Request,
    result: Result<i64, String>,
}

impl Task {
    /// Tells everybody who starts from now on what to do.
    pub(super) fn assign_duties(&mut self) {
        let operations = self.active.iter().map(|active| &active.op);
        let all = duties::all(now_ms(), &mut self.lingering, operations);
        self.hosts.set_duties(all);
    }

    /// Takes in what came of an errand.
    pub(super) fn told(&mut self, told: Told) {
        match told {
            Told::Answer(answer) => self.answered(answer),
            Told::Refused(operation, object, why) => self.refused(operation, &object, &why),
        }
    }

    /// An order was not carried out.
    pub(super) fn refused(&mut self, operation: u64, object: &str, why: &str) {
        tracing::error!(
            process = object,
            error = why,
            "a step could not be carried out"
        );
        let mut active = self.active.iter_mut();
        let Some(active) = active.find(|active| active.op.number == operation) else {
            return;
        };
        let input = Input::Refused {
            object,
            reason: why,
        };
        core::step(&mut active.op, now_ms(), input);
        active.dirty = true;
    }

    /// Takes the answer of a worker into its operation.
    fn answered(&mut self, answer: Answer) {
        let Some(active) = self
            .active
            .iter_mut()
            .find(|active| active.op.number == answer.operation)
        else {
            return;
        };
        if let Err(why) = &answer.result {
            tracing::warn!(
                process = %answer.process, attempt = answer.attempt, request = ?answer.request, error = %why,
                "a worker did not do what an operation asked for"
            );
        }
        let before = active.op.clone();
        core::step(
            &mut active.op,
            now_ms(),
            Input::Answered {
                process: answer.process.as_str(),
                attempt: answer.attempt,
                request: answer.request,
                result: answer.result.as_ref().map(|at| *at).map_err(String::as_str),
            },
        );
        active.dirty |= active.op != before;
    }

    /// What carries errands out.
    pub(super) fn courier(&self) -> Courier {
        Courier {
            hosts: self.hosts.clone(),
            told: self.answers.clone(),
            cancel: self.cancel.clone(),
            tracker: self.tracker.clone(),
        }
    }

    /// What the effects of an operation come to, by process and in their order: those for this host, and
    /// those for others.
    pub(super) fn errands(
        &self,
        operation: u64,
        effects: Vec<Effect>,
    ) -> (Vec<Errands>, Vec<Errands>) {
        let table = self.table();
        let mut all: Vec<Errands> = Vec::new();
        for effect in effects {
            let Some((object, errand)) = self.errand(&table, effect) else {
                continue;
            };
            match all.iter_mut().find(|errands| errands.object == object) {
                Some(errands) => errands.list.push(errand),
                None => all.push(Errands {
                    operation,
                    object,
                    list: vec![errand],
                }),
            }
        }
        all.into_iter().partition(|errands| {
            let name = errands.object.parse::<ProcessName>();
            let far = |errand: &Errand| {
                matches!(
                    errand,
                    Errand::At(..) | Errand::Depart(..) | Errand::Carry(..)
                )
            };
            let own = name.map_or(true, |name| self.hosts.is_own(&name));
            own && !errands.list.iter().any(far)
        })
    }

    fn errand(&self, table: &Table, effect: Effect) -> Option<(String, Errand)> {
        let object = effect.object()?.to_owned();
        let name: ProcessName = object.parse().ok()?;
        let spec = self.desired.process(&name).cloned();
        let process = table.get(&name);
        let errand = match effect {
            Effect::Start(_) => Errand::Start(name, spec),
            Effect::Restart(_, attempt) => Errand::Restart(name, attempt, spec),
            Effect::Stop(_) => Errand::Order(Order::Stop(name)),
            Effect::Forget(_) => Errand::Order(Order::Forget(name)),
            Effect::StandDown(_, attempt) => {
                let grace = process.map_or(SLACK, |process| process.spec.stop.grace);
                Errand::Ask(Ask {
                    worker: (name, attempt),
                    request: Request::StandDown,
                    command: Command::StandDown(wire::StandDown {
                        deadline_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
                    }),
                    within: grace + SLACK,
                })
            }
            // From now on the sessions are its own, whoever of the two deposits or starts anew.
            Effect::Handover(from, _, attempt) => {
                Errand::Order(Order::Handover(from.parse().ok()?, name, attempt))
            }
            Effect::TakeOver(_, attempt) => Errand::Ask(Ask {
                within: process?.spec.ready.timeout + SLACK,
                worker: (name, attempt),
                request: Request::TakeOver,
                // The sessions are kept where it runs.
                command: Command::TakeOver(wire::TakeOver::default()),
            }),
            Effect::Share(_, attempt, at) => {
                let assignment = self.hosts.duty_of(name.as_str());
                Errand::Ask(Ask {
                    worker: (name, attempt),
                    request: Request::Share { at },
                    command: Command::Share(wire::Share {
                        duty: assignment.duty.into(),
                        cut: assignment.cut,
                    }),
                    within: SHARE_WITHIN,
                })
            }
            Effect::Prepare(_, host, attempt_min) => {
                let order = Order::Define(spec?, Wanted::Stopped, attempt_min);
                Errand::At(host, order)
            }
            Effect::StopAt(_, host) => Errand::At(host, Order::Stop(name)),
            Effect::Depart(_, host) => Errand::Depart(host, name),
            Effect::Carry(_, from, to) => Errand::Carry(name, Some(from), to),
            Effect::Recall(_, to) => Errand::Carry(name, None, to),
            Effect::Document(_) => return None,
        };
        Some((object, errand))
    }
}

/// What an operation wants done about one process, in this order.
pub(super) struct Errands {
    operation: u64,
    object: String,
    list: Vec<Errand>,
}

enum Errand {
    Order(Order),
    /// By this spec; `None` = there is none any more.
    Start(ProcessName, Option<Arc<ProcessSpec>>),
    Restart(ProcessName, u64, Option<Arc<ProcessSpec>>),
    Ask(Ask),
    /// To a certain host.
    At(String, Order),
    /// What a host that is away is told when it is back anyway.
    Depart(String, ProcessName),
    /// Sessions, from a host or (`None`) from the store, to a host.
    Carry(ProcessName, Option<String>, String),
}

/// A command for a worker, whose answer comes in among the others.
struct Ask {
    worker: (ProcessName, u64),
    request: Request,
    command: Command,
    within: Duration,
}

/// Carries errands out.
pub(super) struct Courier {
    hosts: Hosts,
    told: mpsc::Sender<Told>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Courier {
    /// Whom an errand was about and why it came to nothing, if one did; the ones after it are left.
    pub(super) async fn run(&self, errands: Errands) -> Option<(String, String)> {
        let Errands {
            operation,
            object,
            list,
        } = errands;
        for errand in list {
            let done = match errand {
                Errand::Order(order) => self.hosts.order(order).await,
                Errand::Start(name, Some(spec)) => {
                    match self.hosts.define(&spec, Wanted::Running).await {
                        Ok(()) => self.hosts.order(Order::Start(name)).await,
                        error => error,
                    }
                }
                // A restart is asked for under the old wish: a changed wish would itself start it.
                Errand::Restart(name, attempt, Some(spec)) => {
                    match self.hosts.define(&spec, Wanted::Running).await {
                        Ok(()) => self.hosts.order(Order::Restart(name, attempt)).await,
                        error => error,
                    }
                }
                Errand::Start(name, None) | Errand::Restart(name, _, None) => {
                    let text = SupervisorError::Unknown(name).to_string();
                    return Some((object, text));
                }
                Errand::Ask(ask) => {
                    self.ask(operation, ask);
                    Ok(())
                }
                Errand::At(host, order) => self.hosts.order_at(&host, order).await,
                Errand::Depart(host, name) => {
                    if let Err(error) = self.hosts.order_at(&host, Order::Depart(name)).await {
                        tracing::info!(process = object, host, %error, "a host is told later that it has gone");
                    }
                    Ok(())
                }
                Errand::Carry(name, from, to) => {
                    self.carry(operation, name, from, to).await;
                    Ok(())
                }
            };
            match done {
                // What is newer counts.
                Ok(()) | Err(OrderError::Overtaken(_)) => {}
                Err(error) => return Some((object, error.to_string())),
            }
        }
        None
    }

    /// The same, telling the coordinator what came to nothing.
    pub(super) async fn run_and_tell(&self, errands: Errands) {
        let operation = errands.operation;
        if let Some((object, why)) = self.run(errands).await {
            // The coordinator may have ended.
            let _ = self.told.send(Told::Refused(operation, object, why)).await;
        }
    }

    /// Brings sessions to a host; how many, or why not, comes in among the answers.
    async fn carry(&self, operation: u64, process: ProcessName, from: Option<String>, to: String) {
        let carried = if let Some(from) = from {
            self.hosts.carry(&process, &from, &to).await
        } else {
            let order = Order::Recall(process.clone());
            self.hosts.order_at(&to, order).await.map(|()| 0)
        };
        let result = carried
            .map(|kept| i64::try_from(kept).unwrap_or(i64::MAX))
            .map_err(|error| error.to_string());
        let answer = Answer {
            operation,
            process,
            attempt: 0,
            request: Request::Carry,
            result,
        };
        // The coordinator may have ended.
        let _ = self.told.send(Told::Answer(answer)).await;
    }

    /// Gives a command and lets its answer come in among the others.
    fn ask(&self, operation: u64, ask: Ask) {
        let (hosts, told) = (self.hosts.clone(), self.told.clone());
        let Ask {
            worker: (process, attempt),
            request,
            command,
            within,
        } = ask;
        let task = async move {
            let run = async {
                let run = hosts
                    .command(&process, command, within)
                    .await
                    .map_err(|error| error.to_string())?;
                match run.result.await {
                    Ok(Ok(result)) if result.ok => Ok(newest_handled(&result.json)),
                    Ok(Ok(result)) => Err(format!("{} ({})", result.message, result.code)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("the agent dropped the command".to_owned()),
                }
            };
            let result = run.await;
            let answer = Answer {
                operation,
                process,
                attempt,
                request,
                result,
            };
            // The coordinator may have ended.
            let _ = told.send(Told::Answer(answer)).await;
        };
        let cancel = self.cancel.clone();
        self.tracker.spawn(cancel.run_until_cancelled_owned(task));
    }
}

/// What a worker says of itself in its answer.
fn newest_handled(json: &str) -> i64 {
    serde_json::from_str::<serde_json::Value>(json)
        .ok()
        .and_then(|value| value.get("newest_handled")?.as_i64())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_say_nothing() {
        assert_eq!(newest_handled("{\"newest_handled\":17}"), 17);
        for odd in ["", "{}", "[1]", "{\"newest_handled\":\"x\"}"] {
            assert_eq!(newest_handled(odd), 0, "{odd}");
        }
    }
}
