//! A switch: the sessions of one process go to another that stands by.
//!
//! ```text
//!  leaving: `object` is asked to stand down          taking: `other` gets the sessions and connects
//!  ────────────────────────────────────────► it did, or ─────────────────────────────────────────► connected
//!                                            it is down for good
//! ```
//!
//! Before the first request goes out, both are to stand by should they start anew (see
//! [`super::duties`]); `other` is to be active from the second stage on. So at no time can two of them
//! hold a session: a crashed `object` comes back standing by and is asked again.

use super::{
    core::{Effect, Observed, Request},
    model::Operation,
    step::{Step, StepState},
};
use crate::supervisor::State;

/// `object` stands down.
pub const LEAVING: u8 = 1;
/// `other` takes over.
pub const TAKING: u8 = 2;

/// A request without an answer is repeated after this long: workers bound their own time, and a lost
/// stream answers at once.
const AGAIN_MS: i64 = 30_000;
/// After an answer that it could not be done.
const RETRY_MS: i64 = 500;

/// Whether the one that takes over is prepared; else its name.
pub(super) fn may_begin(step: &Step, observed: &Observed) -> Result<(), String> {
    // On the way back there is nothing to wait for: it is started if need be.
    let prepared = observed
        .get(&step.other)
        .is_some_and(|process| process.standby);
    if prepared || step.back {
        Ok(())
    } else {
        Err(step.other.clone())
    }
}

pub(super) fn begin(op: &mut Operation, index: usize, now: i64) {
    let step = &mut op.steps[index];
    step.state = StepState::Running;
    step.started_at = now;
    step.enter(now, LEAVING);
    step.message = format!("{} stands down", step.object);
}

/// When time alone changes something.
pub(super) fn deadline(step: &Step) -> i64 {
    let end = step.started_at + step.timeout_ms;
    if step.back && !step.forced {
        end.min(force_at(step))
    } else {
        end
    }
}

/// On the way back a process that does not answer is stopped, or started anew.
fn force_at(step: &Step) -> i64 {
    step.stage_at + step.timeout_ms / 4
}

pub(super) fn watch(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let step = &mut op.steps[index];
    if step.stage == LEAVING {
        // One in backoff comes back, and then stands by; it may be back already.
        let gone = observed
            .get(&step.object)
            .is_none_or(super::core::Observation::is_down_for_good);
        if gone {
            take(step, now);
            op.updated_at = now;
        }
    }
    let step = &mut op.steps[index];
    step.asked.retain(|_, asked| asked.again_at > now);
    let (name, leaving) = if step.stage == LEAVING {
        (step.object.clone(), true)
    } else {
        (step.other.clone(), false)
    };
    let process = observed.get(&name);
    // Reports that are older than the stage say nothing of it.
    let connected = process.is_some_and(|process| {
        process.ready && process.last_seen > step.stage_at && process.state == State::Ready
    });
    if !leaving && connected {
        step.finish(
            now,
            StepState::Succeeded,
            format!("{name} has the sessions"),
        );
        op.updated_at = now;
        return;
    }
    if now >= step.started_at + step.timeout_ms {
        let state = process.map_or("gone", |process| process.state.as_str());
        let message = if leaving {
            format!("{name} did not stand down; it is {state}")
        } else {
            format!("{name} did not take over; it is {state}")
        };
        step.finish(now, StepState::Failed, message);
        op.updated_at = now;
        return;
    }
    if !leaving && !step.issued {
        // Also where it cannot be asked now: whenever it comes back, the sessions are its own.
        step.issued = true;
        let attempt = process.map_or(0, |process| process.attempt);
        effects.push(Effect::Handover(step.object.clone(), name.clone(), attempt));
    }
    let force = step.back && !step.forced && now >= force_at(step);
    if let Some(process) = process
        && process.attached
        && process.state.is_live()
        && !force
    {
        if step.ask(now, &name, process.attempt, AGAIN_MS) {
            effects.push(if leaving {
                Effect::StandDown(name, process.attempt)
            } else {
                Effect::TakeOver(name, process.attempt)
            });
        }
    } else if force {
        step.forced = true;
        op.updated_at = now;
        effects.push(if leaving {
            Effect::Stop(name)
        } else {
            Effect::Restart(name, process.map_or(0, |process| process.attempt))
        });
    }
}

/// The sessions are free: the other may have them.
fn take(step: &mut Step, now: i64) {
    step.enter(now, TAKING);
    step.forced = false;
    step.issued = false;
    step.message = format!("{} takes over", step.other);
}

pub(super) fn answered(
    op: &mut Operation,
    index: usize,
    now: i64,
    (process, attempt): (&str, u64),
    request: Request,
    result: Result<i64, &str>,
) {
    let step = &mut op.steps[index];
    let expected = match (step.stage, request) {
        (LEAVING, Request::StandDown) => step.object == process,
        (TAKING, Request::TakeOver) => step.other == process,
        _ => false,
    };
    // An attempt that is over, or was not asked in this stage.
    let asked = step
        .asked
        .get(process)
        .is_some_and(|asked| asked.attempt == attempt);
    if !expected || !asked {
        return;
    }
    op.updated_at = now;
    match result {
        Ok(_) if step.stage == LEAVING => take(step, now),
        Ok(_) => {
            let message = format!("{process} has the sessions");
            step.finish(now, StepState::Succeeded, message);
        }
        Err(why) => {
            step.message = format!("{process}: {why}");
            if let Some(asked) = step.asked.get_mut(process) {
                asked.again_at = now + RETRY_MS;
            }
        }
    }
}
