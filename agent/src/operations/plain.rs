//! Steps that start, stop, restart or remove one process.

use super::{
    core::{Change, Effect, Observation, Observed},
    model::Operation,
    step::{Step, StepAction, StepState},
};
use crate::supervisor::State;

/// Looks after the step at `index`, which is at work.
pub(super) fn watch(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let step = &mut op.steps[index];
    let process = observed.get(&step.object);
    let verdict = match process {
        None => match step.action {
            StepAction::Remove => Some(Ok("removed".to_owned())),
            StepAction::Stop => Some(Ok("gone".to_owned())),
            // Asked for, and the table is a little behind.
            _ => None,
        },
        Some(process) => {
            if process.attempt == step.attempt_before {
                step.last_seen_before = step.last_seen_before.max(process.last_seen);
            }
            judge(step, process)
        }
    };
    match verdict {
        Some(Ok(message)) => step.finish(now, StepState::Succeeded, message),
        Some(Err(message)) => step.finish(now, StepState::Failed, message),
        None if now >= step.started_at + step.timeout_ms => {
            let state = process.map_or("gone", |process| process.state.as_str());
            let detail = process.map_or("", |process| process.detail.as_str());
            let wanted = match step.action {
                StepAction::Stop | StepAction::Remove => "stopped",
                _ => "ready",
            };
            let seconds = step.timeout_ms / 1000;
            let mut message = format!("not {wanted} after {seconds} s; it is {state}");
            if !detail.is_empty() {
                message = format!("{message}: {detail}");
            }
            step.finish(now, StepState::Failed, message);
        }
        None if process.is_some_and(Observation::is_unknown) => return,
        // It came back by itself, by its old spec, before the order reached it.
        None if step.action == StepAction::Restart
            && process.is_some_and(|process| is_outrun(step, process)) =>
        {
            step.attempt_before = process.map_or(0, |process| process.attempt);
            step.issued = true;
            effects.push(effect(step));
        }
        None if step.issued => return,
        // What should be gone and runs is asked to go again: the life of the agent that was asked may not
        // have written it down, and the next one have started it anew.
        None if matches!(step.action, StepAction::Stop | StepAction::Remove) => {
            step.issued = true;
            effects.push(effect(step));
            return;
        }
        // The life of the agent that began the step may have ended before it asked.
        None if process.is_none_or(|process| process.attempt <= step.attempt_before) => {
            let untouched = process.is_some_and(|process| !process.is_down());
            if untouched && step.action == StepAction::Restart {
                // It may have been down when it was chosen, and be the only one that is not by now.
                step.state = StepState::Pending;
                if may_restart(op, index, observed).is_err() {
                    op.steps[index].started_at = 0;
                    op.updated_at = now;
                    return;
                }
            }
            let step = &mut op.steps[index];
            step.state = StepState::Running;
            step.issued = true;
            effects.push(effect(step));
            return;
        }
        None => {
            step.issued = true;
            return;
        }
    }
    op.updated_at = now;
}

/// Whether the step has come to its end; `None` = not yet.
fn judge(step: &Step, process: &Observation) -> Option<Result<String, String>> {
    let moved = process.attempt > step.attempt_before;
    let ended = || {
        if !process.has_ended_after(step.attempt_before) {
            return None;
        }
        Some(Err(match process.detail.as_str() {
            _ if process.state == State::Stopped => "the process ended by itself".to_owned(),
            "" => "the process failed: no reason given".to_owned(),
            detail => format!("the process failed: {detail}"),
        }))
    };
    match step.action {
        StepAction::Warm => match process.state {
            State::Ready if process.standby => Some(Ok("stands by".to_owned())),
            _ => ended(),
        },
        StepAction::Start | StepAction::Shadow => match process.state {
            State::Ready if process.ready => Some(Ok("ready".to_owned())),
            _ => ended(),
        },
        StepAction::Restart => match process.state {
            State::Ready if process.ready && moved && !process.outdated => {
                Some(Ok("ready".to_owned()))
            }
            _ => ended(),
        },
        StepAction::Stop => match process.state {
            State::Stopped => Some(Ok("stopped".to_owned())),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an attempt runs that is newer than the one to be replaced, and not by the present spec.
fn is_outrun(step: &Step, process: &Observation) -> bool {
    process.attempt > step.attempt_before
        && process.outdated
        && process.state.is_live()
        && process.state != State::Stopping
}

fn effect(step: &Step) -> Effect {
    let object = step.object.clone();
    match step.action {
        StepAction::Stop => Effect::Stop(object),
        StepAction::Restart | StepAction::Archive => Effect::Restart(object, step.attempt_before),
        StepAction::Remove => Effect::Forget(object),
        _ => Effect::Start(object),
    }
}

/// Begins the step at `index`.
pub(super) fn begin(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let releases = op.replaces;
    let step = &mut op.steps[index];
    let process = observed.get(&step.object);
    step.state = StepState::Running;
    step.started_at = now;
    step.issued = true;
    step.attempt_before = process.map_or(0, |process| process.attempt);
    step.last_seen_before = process.map_or(0, |process| process.last_seen);
    if releases
        && matches!(
            step.action,
            StepAction::Start | StepAction::Restart | StepAction::Remove
        )
    {
        effects.push(Effect::Document(Change::Release(step.object.clone())));
    }
    if process.is_none() && matches!(step.action, StepAction::Remove | StepAction::Stop) {
        if step.action == StepAction::Remove {
            // The observation may be from before it was made.
            effects.push(effect(step));
        }
        step.finish(now, StepState::Succeeded, "gone");
    } else {
        "waiting".clone_into(&mut step.message);
        effects.push(effect(step));
    }
}

/// Processes of the operation that should be ready, are not, and are not at work. What was left out
/// because the operator stopped it is not down but as it should be; what could not be brought back
/// has been given up.
fn down(op: &Operation, observed: &Observed) -> Vec<String> {
    let given_up = |object: &str| {
        op.steps
            .iter()
            .any(|step| step.back && step.object == object && step.state == StepState::Failed)
    };
    let working = |object: &str| {
        op.steps
            .iter()
            .any(|step| step.object == object && step.state == StepState::Running)
    };
    let mut down: Vec<String> = op
        .steps
        .iter()
        .filter(|step| step.action == StepAction::Restart)
        // Skipped before the operation began.
        .filter(|step| step.state != StepState::Skipped || step.ended_at > 0)
        .filter(|step| !working(&step.object) && !given_up(&step.object))
        .filter(|step| {
            observed
                .get(&step.object)
                .is_some_and(Observation::is_short)
        })
        .map(|step| step.object.clone())
        .collect();
    down.sort_unstable();
    down.dedup();
    down
}

/// Whether one more may go down; else the names of those that are down already.
pub(super) fn may_restart(op: &Operation, index: usize, observed: &Observed) -> Result<(), String> {
    let own = &op.steps[index].object;
    let Some(process) = observed.get(own) else {
        // Which attempt it would replace is not known yet: the supervisor has just begun.
        return Err(own.clone());
    };
    let working = op
        .steps
        .iter()
        .filter(|step| step.action == StepAction::Restart && step.state == StepState::Running)
        .count();
    let max = op.max_unavailable.max(1) as usize;
    let down = down(op, observed);
    if working >= max {
        return Err(down.join(", "));
    }
    // A step at work counts as down even while an old observation shows it ready.
    let is_down = process.is_down();
    let others = down.iter().filter(|name| *name != own).count();
    if is_down || working + others < max {
        Ok(())
    } else {
        Err(down.join(", "))
    }
}
