//! The way back: what has been changed is changed back, in the opposite order.

use super::{
    core::{Change, Effect, not_ready},
    model::{Course, Failure, OpState, Operation},
    step::{Step, StepAction, StepState},
};
use tanako_fleet::rollout::Strategy;

/// Turns the operation back if it should be, and as soon as nothing is half done.
pub(super) fn turn(op: &mut Operation, now: i64, effects: &mut Vec<Effect>) {
    if op.course == Course::Back || op.is_past_return() || !op.can_go_back() {
        return;
    }
    let failed = op
        .steps
        .iter()
        .find(|step| step.state == StepState::Failed)
        .cloned();
    let by_itself = failed.as_ref().is_some_and(|step| {
        op.builds_generation() || op.strategy == Some(Strategy::Canary) && is_canary(op, step)
    });
    if !op.aborting && !by_itself {
        return;
    }
    for step in &mut op.steps {
        let gives_up = matches!(
            step.action,
            StepAction::Observe | StepAction::Warm | StepAction::Shadow | StepAction::Cut
        );
        // These can be left where they are; the others come to their end, which is near.
        if step.state == StepState::Running && gives_up {
            step.finish(now, StepState::Skipped, "given up");
        }
    }
    if op.is_working() {
        return;
    }
    if let Some(step) = &failed
        && op.failure.is_none()
    {
        let message = format!("{} {}: {}", step.action.as_str(), step.object, step.message);
        op.failure = Some(not_ready(&step.object, &message));
    }
    for step in &mut op.steps {
        if step.state == StepState::Pending {
            step.finish(now, StepState::Skipped, "not begun");
        }
    }
    let last = op.steps.iter().map(|step| step.phase).max().unwrap_or(0);
    let undo: Vec<Step> = op
        .steps
        .iter()
        .filter(|step| step.is_begun())
        .filter_map(|step| undo(op, step, last))
        .collect();
    op.steps.extend(undo);
    op.steps
        .sort_by_key(|step| (step.back, if step.back { step.phase } else { 0 }));
    op.course = Course::Back;
    op.blocked_since = 0;
    op.updated_at = now;
    "going back to what was before".clone_into(&mut op.message);
    if op.replaces {
        effects.push(Effect::Document(Change::TurnBack));
    }
}

/// Whether the step is of the one process that goes first.
fn is_canary(op: &Operation, step: &Step) -> bool {
    let watch = op
        .steps
        .iter()
        .find(|step| step.action == StepAction::Observe)
        .map_or(0, |step| step.phase);
    step.phase <= watch
}

/// The step that undoes one; `None` = there is nothing to undo.
fn undo(op: &Operation, step: &Step, last: u16) -> Option<Step> {
    let phase = last + 1 + (last - step.phase);
    let object = step.object.clone();
    let made = |action| Step::new(object.clone(), action, phase, step.timeout_ms);
    let mut undo = match step.action {
        StepAction::Restart if op.replaces => made(StepAction::Restart),
        StepAction::Start if op.replaces => made(StepAction::Remove),
        StepAction::Remove => made(StepAction::Start),
        StepAction::Warm | StepAction::Shadow => made(StepAction::Remove),
        StepAction::Switch => Step::switch(
            step.other.clone(),
            step.object.clone(),
            phase,
            // It may have to stop or start one of them first.
            step.timeout_ms * 2,
        ),
        StepAction::Cut => made(StepAction::Cut),
        _ => return None,
    };
    undo.back = true;
    Some(undo)
}

/// Says how an operation that went back has ended.
pub(super) fn end(op: &mut Operation, failed: Option<&Step>) {
    let undone = op
        .steps
        .iter()
        .filter(|step| step.back && step.state == StepState::Succeeded)
        .count();
    if let Some(step) = failed {
        let message = format!(
            "could not go back everywhere: {} {}: {}",
            step.action.as_str(),
            step.object,
            step.message
        );
        op.state = OpState::Failed;
        let cause = op.failure.take().map_or_else(
            || "it was aborted".to_owned(),
            |failure| format!("it turned back: {}", failure.message),
        );
        op.message = format!("{message} ({cause})");
        op.failure = Some(Failure {
            cause,
            ..not_ready(&step.object, &message)
        });
    } else if let Some(failure) = &mut op.failure {
        op.state = OpState::Failed;
        op.message = if undone == 0 {
            format!("{}; nothing was changed", failure.message)
        } else {
            format!("{}; all is as before", failure.message)
        };
    } else {
        op.state = OpState::Aborted;
        "aborted; all is as before".clone_into(&mut op.message);
    }
}
