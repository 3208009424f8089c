//! How an operation on processes goes forward: pure, so that any interleaving of observations,
//! requests, crashes and clocks can be tried in a test.
//!
//! Whoever drives it writes the operation down after each call that returned effects and before
//! carrying them out. After a crash between the two, the next life loads the operation with the step
//! begun, sees by the attempt that nothing has happened yet, and asks for it again.

use std::collections::BTreeMap;

use super::model::{Failure, OpState, Operation, Step, StepAction, StepState};
use crate::supervisor::State;

/// A process, as far as an operation cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Where it is in its life.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
    /// Its latest start.
    pub attempt: u64,
    /// Latest sign of life, in milliseconds since 1970; 0 = unknown.
    pub last_seen: i64,
    /// Why it is in this state.
    pub detail: String,
}

/// All processes of the fleet by name.
pub type Observed = BTreeMap<String, Observation>;

/// What drives an operation.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// What is, now. May be older than what was asked for last.
    Observe(&'a Observed),
    /// Begin no new step.
    Pause,
    /// Go on.
    Resume,
    /// End as soon as the steps at work have ended.
    Abort,
    /// The supervisor refused what was asked for.
    Refused {
        /// The process.
        object: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the process by its current spec.
    Start(String),
    /// Stop it.
    Stop(String),
    /// Restart it by its current spec.
    Restart(String),
    /// Stop it and drop it.
    Forget(String),
}

/// Carries the operation forward. `now` is in milliseconds since 1970.
pub fn step(op: &mut Operation, now: i64, input: Input<'_>) -> Vec<Effect> {
    if op.state.is_ended() {
        return Vec::new();
    }
    let observed = match input {
        Input::Pause => {
            if matches!(op.state, OpState::Pending | OpState::Running) {
                op.state = OpState::Paused;
                op.updated_at = now;
                "paused: steps at work finish, no new one begins".clone_into(&mut op.message);
            }
            return Vec::new();
        }
        Input::Resume => {
            if op.state == OpState::Paused {
                op.state = OpState::Running;
                op.updated_at = now;
                "going on".clone_into(&mut op.message);
            }
            return Vec::new();
        }
        Input::Abort => {
            op.aborting = true;
            op.updated_at = now;
            "aborting: waits for the steps at work".clone_into(&mut op.message);
            return Vec::new();
        }
        Input::Refused { object, reason } => {
            let step = op
                .steps
                .iter_mut()
                .find(|step| step.object == object && step.state == StepState::Running);
            if let Some(step) = step {
                finish(step, now, StepState::Failed, reason.to_owned());
                op.updated_at = now;
            }
            return Vec::new();
        }
        Input::Observe(observed) => observed,
    };
    if op.state == OpState::Pending {
        op.state = OpState::Running;
        op.updated_at = now;
    }
    let mut effects = Vec::new();
    for index in 0..op.steps.len() {
        if op.steps[index].state == StepState::Running {
            watch(op, index, now, observed, &mut effects);
        }
    }
    begin(op, now, observed, &mut effects);
    end(op, now);
    op.count_steps();
    effects
}

/// When something happens even if nothing is observed, in milliseconds since 1970.
pub fn deadline(op: &Operation) -> Option<i64> {
    if op.state.is_ended() {
        return None;
    }
    let steps = op
        .steps
        .iter()
        .filter(|step| step.state == StepState::Running)
        .map(|step| step.started_at + step.timeout_ms);
    let blocked = (op.blocked_since > 0).then(|| op.blocked_since + blocked_max(op));
    steps.chain(blocked).min()
}

/// How long the operation waits for a process that is down without its doing.
fn blocked_max(op: &Operation) -> i64 {
    op.steps
        .iter()
        .map(|step| step.timeout_ms)
        .max()
        .unwrap_or(0)
}

fn watch(
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
        Some(Ok(message)) => finish(step, now, StepState::Succeeded, message),
        Some(Err(message)) => finish(step, now, StepState::Failed, message),
        None if now >= step.started_at + step.timeout_ms => {
            let state = process.map_or("gone", |process| process.state.as_str());
            let detail = process.map_or("", |process| process.detail.as_str());
            let wanted = if matches!(step.action, StepAction::Start | StepAction::Restart) {
                "ready"
            } else {
                "stopped"
            };
            let seconds = step.timeout_ms / 1000;
            let mut message = format!("not {wanted} after {seconds} s; it is {state}");
            if !detail.is_empty() {
                message = format!("{message}: {detail}");
            }
            finish(step, now, StepState::Failed, message);
        }
        None => {
            if !step.issued {
                step.issued = true;
                // The life of the agent that began the step may have ended before it asked.
                if process.is_none_or(|process| process.attempt == step.attempt_before) {
                    effects.push(effect(step));
                }
            }
            return;
        }
    }
    op.updated_at = now;
}

/// Whether the step has come to its end; `None` = not yet.
fn judge(step: &Step, process: &Observation) -> Option<Result<String, String>> {
    let moved = process.attempt > step.attempt_before;
    let gave_up = || {
        let detail = if process.detail.is_empty() {
            "no reason given"
        } else {
            &process.detail
        };
        Some(Err(format!("the process failed: {detail}")))
    };
    match step.action {
        StepAction::Start => match process.state {
            State::Ready if process.ready => Some(Ok("ready".to_owned())),
            State::Failed if moved => gave_up(),
            State::Stopped if moved => Some(Err("the process ended by itself".to_owned())),
            _ => None,
        },
        StepAction::Restart => match process.state {
            State::Ready if process.ready && moved => Some(Ok("ready".to_owned())),
            State::Failed if moved => gave_up(),
            State::Stopped if moved => Some(Err("the process ended by itself".to_owned())),
            _ => None,
        },
        StepAction::Stop => match process.state {
            State::Stopped => Some(Ok("stopped".to_owned())),
            _ => None,
        },
        StepAction::Remove | StepAction::Archive => None,
    }
}

fn finish(step: &mut Step, now: i64, state: StepState, message: String) {
    step.state = state;
    step.message = message;
    step.ended_at = now;
}

fn effect(step: &Step) -> Effect {
    let object = step.object.clone();
    match step.action {
        StepAction::Start => Effect::Start(object),
        StepAction::Stop => Effect::Stop(object),
        StepAction::Restart | StepAction::Archive => Effect::Restart(object),
        StepAction::Remove => Effect::Forget(object),
    }
}

fn begin(op: &mut Operation, now: i64, observed: &Observed, effects: &mut Vec<Effect>) {
    let failed = op.steps.iter().any(|step| step.state == StepState::Failed);
    if failed || op.aborting || op.state == OpState::Paused {
        op.blocked_since = 0;
        return;
    }
    let Some(phase) = op
        .steps
        .iter()
        .filter(|step| !step.state.is_ended())
        .map(|step| step.phase)
        .min()
    else {
        op.blocked_since = 0;
        return;
    };
    // Processes that are down already come first: restarting them takes nothing away.
    let mut order: Vec<usize> = (0..op.steps.len())
        .filter(|&index| {
            let step = &op.steps[index];
            step.phase == phase && step.state == StepState::Pending
        })
        .collect();
    order.sort_by_key(|&index| {
        observed
            .get(&op.steps[index].object)
            .is_some_and(|process| process.ready)
    });
    let mut blocked = false;
    for index in order {
        let (action, object) = (op.steps[index].action, op.steps[index].object.clone());
        if action == StepAction::Restart && !may_restart(op, index, observed) {
            blocked = true;
            break;
        }
        let process = observed.get(&object);
        let step = &mut op.steps[index];
        step.state = StepState::Running;
        step.started_at = now;
        step.issued = true;
        step.attempt_before = process.map_or(0, |process| process.attempt);
        step.last_seen_before = process.map_or(0, |process| process.last_seen);
        if process.is_none() && matches!(action, StepAction::Remove | StepAction::Stop) {
            finish(step, now, StepState::Succeeded, "gone".to_owned());
        } else {
            "waiting".clone_into(&mut step.message);
            effects.push(effect(step));
        }
        op.message = format!("{} {object}", action.as_str());
        op.updated_at = now;
    }
    let working = op.steps.iter().any(|step| step.state == StepState::Running);
    if !blocked || working {
        op.blocked_since = 0;
        return;
    }
    // Nothing of ours is at work and still too many are down: someone else's trouble.
    if op.blocked_since == 0 {
        op.blocked_since = now;
        op.message = format!(
            "waits for {} to become ready",
            down(op, observed).join(", ")
        );
        op.updated_at = now;
    } else if now >= op.blocked_since + blocked_max(op) {
        let down = down(op, observed);
        let message = format!(
            "{} not ready, so nothing else may be restarted",
            down.join(", ")
        );
        op.failure = Some(not_ready(down.first().map_or("", String::as_str), &message));
        op.aborting = true;
        op.blocked_since = 0;
    }
}

/// Processes of the operation that should be ready, are not, and are not at work. What was left out
/// because the operator stopped it is not down but as it should be.
fn down(op: &Operation, observed: &Observed) -> Vec<String> {
    op.steps
        .iter()
        .filter(|step| step.state != StepState::Skipped)
        .filter(|step| step.action == StepAction::Restart && step.state != StepState::Running)
        .filter(|step| {
            observed
                .get(&step.object)
                .is_some_and(|process| !process.ready)
        })
        .map(|step| step.object.clone())
        .collect()
}

fn may_restart(op: &Operation, index: usize, observed: &Observed) -> bool {
    let working = op
        .steps
        .iter()
        .filter(|step| step.action == StepAction::Restart && step.state == StepState::Running)
        .count();
    let max = op.max_unavailable.max(1) as usize;
    if working >= max {
        return false;
    }
    // A step at work counts as down even while an old observation shows it ready.
    let own = &op.steps[index].object;
    let down = down(op, observed);
    down.contains(own) || working + down.len() < max
}

fn end(op: &mut Operation, now: i64) {
    if op.steps.iter().any(|step| step.state == StepState::Running) {
        return;
    }
    let failed = op
        .steps
        .iter()
        .find(|step| step.state == StepState::Failed)
        .cloned();
    if failed.is_none() && !op.aborting && op.steps.iter().any(|step| !step.state.is_ended()) {
        return;
    }
    for step in &mut op.steps {
        if step.state == StepState::Pending {
            finish(step, now, StepState::Skipped, "not begun".to_owned());
        }
    }
    op.updated_at = now;
    op.ended_at = now;
    let skipped = op.steps.iter().filter(|step| step.started_at == 0).count();
    if let Some(step) = failed {
        let message = format!("{} {}: {}", step.action.as_str(), step.object, step.message);
        op.state = OpState::Failed;
        op.message = if skipped > 0 {
            format!("{message}; {skipped} not touched")
        } else {
            message.clone()
        };
        op.failure = Some(not_ready(&step.object, &message));
    } else if op.failure.is_some() {
        op.state = OpState::Failed;
        op.message = op
            .failure
            .as_ref()
            .map(|failure| failure.message.clone())
            .unwrap_or_default();
    } else if op.aborting {
        op.state = OpState::Aborted;
        op.message = format!("aborted; {skipped} not touched");
    } else {
        op.state = OpState::Succeeded;
        "done".clone_into(&mut op.message);
    }
}

fn not_ready(object: &str, message: &str) -> Failure {
    Failure {
        code: "not-ready".to_owned(),
        object: object.to_owned(),
        message: message.to_owned(),
        cause: String::new(),
        hint: format!("look at `tanakoctl logs {object}`, then try again"),
        retryable: true,
    }
}
