//! What operations ask of supervisor and workers, and the answers of workers.

use std::time::Duration;

use tanako_fleet::ProcessName;
use tanako_proto::worker::v1::{self as wire, command::Command};

use super::task::Task;
use crate::{
    clock::now_ms,
    operations::{
        core::{self, Effect, Input, Request},
        duties,
    },
    supervisor::{Desired as Wanted, SupervisorError},
};

/// How long a worker may take to hear of a cut: it only looks through what it holds.
const SHARE_WITHIN: Duration = Duration::from_secs(5);
/// Besides the grace that its spec gives it to finish its work.
const SLACK: Duration = Duration::from_secs(5);

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
        self.parts.workers.duties().replace(all);
    }

    /// Takes the answer of a worker into its operation.
    pub(super) fn answered(&mut self, answer: Answer) {
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

    /// One order: whom it was about, and whether it was taken.
    pub(super) async fn order(
        &self,
        operation: u64,
        effect: Effect,
    ) -> (String, Result<(), SupervisorError>) {
        let supervisor = &self.parts.supervisor;
        let object = match &effect {
            Effect::Start(object)
            | Effect::Stop(object)
            | Effect::Restart(object)
            | Effect::Forget(object)
            | Effect::StandDown(object, _)
            | Effect::Handover(_, object, _)
            | Effect::TakeOver(object, _)
            | Effect::Share(object, _, _) => object.clone(),
            // Done when the operation was written down.
            Effect::Document(_) => return (String::new(), Ok(())),
        };
        let Ok(name) = object.parse::<ProcessName>() else {
            return (object, Ok(()));
        };
        let result = match effect {
            Effect::Start(_) | Effect::Restart(_) => match self.desired.process(&name) {
                None => Err(SupervisorError::Unknown(name)),
                // A restart is asked for under the old wish: a changed wish would itself start it.
                Some(spec) => match supervisor.define(spec.clone(), Wanted::Running).await {
                    Err(error) => Err(error),
                    Ok(()) if matches!(effect, Effect::Restart(_)) => {
                        supervisor.restart(&name).await
                    }
                    Ok(()) => supervisor.start_process(&name).await,
                },
            },
            Effect::Stop(_) => supervisor.stop(&name).await,
            Effect::Forget(_) => match supervisor.forget(&name).await {
                Err(SupervisorError::Unknown(_)) => Ok(()),
                other => other,
            },
            Effect::StandDown(_, attempt) => {
                self.stand_down(operation, name, attempt);
                Ok(())
            }
            Effect::Handover(from, _, attempt) => {
                self.hand_over(&from, &name, attempt);
                Ok(())
            }
            Effect::TakeOver(_, attempt) => {
                self.take_over(operation, name, attempt);
                Ok(())
            }
            Effect::Share(_, attempt, at) => {
                self.share(operation, name, attempt, at);
                Ok(())
            }
            Effect::Document(_) => Ok(()),
        };
        (object, result)
    }

    fn stand_down(&self, operation: u64, name: ProcessName, attempt: u64) {
        let grace = self
            .table()
            .get(&name)
            .map_or(SLACK, |process| process.spec.stop.grace);
        let command = wire::StandDown {
            deadline_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
        };
        let request = Request::StandDown;
        let command = Command::StandDown(command);
        self.ask_worker(operation, (name, attempt), request, command, grace + SLACK);
    }

    /// From now on the sessions of `from` are `to`'s, whoever of them deposits or starts anew.
    fn hand_over(&self, from: &str, to: &ProcessName, attempt: u64) {
        let table = self.table();
        let from = from
            .parse::<ProcessName>()
            .ok()
            .and_then(|name| table.get(&name).cloned());
        if let (Some(from), Some(to)) = (from, table.get(to)) {
            let moved = self
                .parts
                .vault
                .handover(&from.spec, &to.spec, attempt.max(to.attempt));
            tracing::info!(from = %from.name, to = %to.name, shards = moved.len(), "sessions handed over");
        }
    }

    fn take_over(&self, operation: u64, name: ProcessName, attempt: u64) {
        let table = self.table();
        let Some(process) = table.get(&name) else {
            return;
        };
        let sessions = self.parts.vault.sessions_for(&process.spec, None);
        let within = process.spec.ready.timeout + SLACK;
        let command = Command::TakeOver(wire::TakeOver { sessions });
        self.ask_worker(
            operation,
            (name, attempt),
            Request::TakeOver,
            command,
            within,
        );
    }

    fn share(&self, operation: u64, name: ProcessName, attempt: u64, at: i64) {
        let assignment = self.parts.workers.duties().of(name.as_str());
        let command = Command::Share(wire::Share {
            duty: assignment.duty.into(),
            cut: assignment.cut,
        });
        let request = Request::Share { at };
        self.ask_worker(operation, (name, attempt), request, command, SHARE_WITHIN);
    }

    /// Gives a command and lets its answer come in among the others.
    fn ask_worker(
        &self,
        operation: u64,
        (name, attempt): (ProcessName, u64),
        request: Request,
        command: Command,
        within: Duration,
    ) {
        let workers = self.parts.workers.clone();
        let answers = self.answers.clone();
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            let run = async {
                let run = workers
                    .command(&name, command, within)
                    .await
                    .map_err(|error| error.to_string())?;
                match run.result.await {
                    Ok(Ok(result)) if result.ok => Ok(newest_handled(&result.json)),
                    Ok(Ok(result)) => Err(format!("{} ({})", result.message, result.code)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("the agent dropped the command".to_owned()),
                }
            };
            let result = tokio::select! {
                () = cancel.cancelled() => return,
                result = run => result,
            };
            let answer = Answer {
                operation,
                process: name,
                attempt,
                request,
                result,
            };
            // The coordinator may have ended.
            let _ = answers.send(answer).await;
        });
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
