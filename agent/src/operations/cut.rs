//! A cut: the events of two sets that overlap are shared by the time in their ids, so that each is
//! handled by exactly one.
//!
//! ```text
//!            GIVERS                        TAKERS                      SETTLE
//!  givers are told: only before T   takers are told: from T on   what is late still comes to the
//!  each confirms, and had handled   each confirms                givers; then they may go
//!  nothing from T on ─────────────► ───────────────────────────►
//!       └─ one had, or started anew, or was late: a later T, all again
//! ```
//!
//! T is at least [`LEAD_MS`] ahead of the clock and of the newest time that anyone has handled. Until
//! a taker is told it holds everything, so between the two stages nothing is handled twice, and what is
//! held is not lost. T is in the operation before anybody hears of it.
//!
//! On the way back the sets change places. The new set then still holds events from before the first
//! cut, which the old one has handled: it is not told before they have left its ring ([`RING_MS`]). Where
//! no taker had been told, the old set simply gets everything back (RELEASE).

use super::{
    core::{Effect, Observed, Request},
    model::Operation,
    step::{Step, StepAction, StepState},
};
use crate::supervisor::State;

/// Back only: until the new set holds nothing from before the first cut.
pub const WAIT: u8 = 0;
/// Those that handle what is before the cut are told.
pub const GIVERS: u8 = 1;
/// Those that handle what is from the cut on are told.
pub const TAKERS: u8 = 2;
/// What is late comes in.
pub const SETTLE: u8 = 3;
/// Back only, when no taker had been told: the old set handles everything again.
pub const RELEASE: u8 = 4;

/// How far ahead the cut is: enough for all givers to answer, and for clocks that differ.
pub const LEAD_MS: i64 = 3_000;
/// For how long a process holds an event that is not its own (contract of [`Cut`]), and a little more.
///
/// [`Cut`]: tanako_proto::worker::v1::Cut
pub const RING_MS: i64 = 32_000;
/// After the cut, until the givers may go.
pub const SETTLE_MS: i64 = 5_000;
/// So long after a moment on which not all have agreed, another one is chosen. Far below the ring.
const STALE_MS: i64 = 10_000;
/// So long after the cut a taker that does not confirm is started anew: its session brings back what
/// it held.
const FORCE_MS: i64 = 15_000;
/// How long givers that do not confirm may take to stop on the way back.
const SILENCE_MS: i64 = 60_000;
/// A request without an answer is repeated after this long.
const AGAIN_MS: i64 = 5_000;
/// After an answer that it could not be done.
const RETRY_MS: i64 = 500;

/// The processes of the old set: those that the operation removes in the end.
pub fn old_set(op: &Operation) -> Vec<String> {
    set(op, StepAction::Remove)
}

/// The processes of the new set.
pub fn new_set(op: &Operation) -> Vec<String> {
    set(op, StepAction::Shadow)
}

fn set(op: &Operation, action: StepAction) -> Vec<String> {
    op.steps
        .iter()
        .filter(|step| step.action == action && !step.back)
        .map(|step| step.object.clone())
        .collect()
}

/// The cut that an operation has made on its way forward.
pub fn forward(op: &Operation) -> Option<&Step> {
    op.steps
        .iter()
        .find(|step| step.action == StepAction::Cut && !step.back && step.is_begun())
}

/// Who gives and who takes.
fn sides(op: &Operation, back: bool) -> (Vec<String>, Vec<String>) {
    if back {
        (new_set(op), old_set(op))
    } else {
        (old_set(op), new_set(op))
    }
}

/// Forward, only two whole sets are cut; else the name of one that is not ready.
pub(super) fn may_begin(op: &Operation, step: &Step, observed: &Observed) -> Result<(), String> {
    if step.back {
        return Ok(());
    }
    let (givers, takers) = sides(op, false);
    let ill = givers
        .into_iter()
        .chain(takers)
        .find(|name| !observed.get(name).is_some_and(|process| process.ready));
    ill.map_or(Ok(()), Err)
}

pub(super) fn begin(op: &mut Operation, index: usize, now: i64) {
    let told_takers = forward(op).is_some_and(|step| step.stage >= TAKERS);
    let step = &mut op.steps[index];
    step.state = StepState::Running;
    step.started_at = now;
    let stage = match (step.back, told_takers) {
        (false, _) => GIVERS,
        (true, true) => WAIT,
        (true, false) => RELEASE,
    };
    step.enter(now, stage);
    let ring_end = forward(op).map_or(0, |step| step.cut_at + RING_MS);
    if stage == WAIT && ring_end > now {
        // Half a minute in which nothing seems to happen.
        op.steps[index].message = format!(
            "waits {} s, until no process holds an event from before the cut: handing it back sooner could \
             handle it twice",
            (ring_end - now + 999) / 1000
        );
    }
}

/// When time alone changes something.
pub(super) fn deadline(op: &Operation, step: &Step) -> Option<i64> {
    let end = step.started_at + timeout(op, step);
    let end = if step.back && (step.forced || step.stage != GIVERS) {
        end + SILENCE_MS
    } else {
        end
    };
    Some(match step.stage {
        WAIT => forward(op).map_or(end, |forward| forward.cut_at + RING_MS),
        GIVERS if step.cut_at > 0 => end.min(step.cut_at + STALE_MS),
        TAKERS if !step.forced => end.min(step.cut_at.max(step.stage_at) + FORCE_MS),
        SETTLE if step.message.is_empty() => end.min(step.cut_at.max(step.stage_at) + SETTLE_MS),
        _ => end,
    })
}

/// The way back may have to wait for the ring first.
fn timeout(op: &Operation, step: &Step) -> i64 {
    let ring = if step.back && forward(op).is_some() {
        RING_MS
    } else {
        0
    };
    step.timeout_ms + ring
}

pub(super) fn watch(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let back = op.steps[index].back;
    let (givers, takers) = sides(op, back);
    let forward_at = forward(op).map_or(0, |step| step.cut_at);
    let ring_end = forward_at + RING_MS;
    let late = now >= op.steps[index].started_at + timeout(op, &op.steps[index]);
    let too_late = now >= op.steps[index].started_at + timeout(op, &op.steps[index]) + SILENCE_MS;
    let before = op.steps[index].stage;
    let step = &mut op.steps[index];
    step.asked.retain(|_, asked| asked.again_at > now);
    if step.stage == WAIT && now >= ring_end {
        step.enter(now, GIVERS);
        step.issued = false;
        step.message.clear();
        op.message = format!("{}: its old set takes the events back", step.object);
    }
    if step.stage == GIVERS {
        let given_up = back && late;
        if !given_up || !stands(step, observed, &givers) {
            give(step, now, observed, &givers, effects);
        }
        if given_up {
            silence(step, observed, &givers, effects);
            let silent = is_confirmed(step, observed, &givers, too_late);
            if silent && step.cut_at == 0 {
                // They never came so far that a moment could be agreed on: the old set has all that is
                // newer than what they have handled.
                step.cut_at = newest_of(observed, &givers).max(forward_at - 1) + 1;
            }
        }
        if is_confirmed(step, observed, &givers, back && too_late) {
            step.forced = false;
            step.enter(now, TAKERS);
        }
    }
    if step.stage == TAKERS || step.stage == RELEASE {
        // Whoever starts anew learns it from its welcome, and is told again all the same.
        if step.stage == TAKERS && !step.forced && now >= step.cut_at.max(step.stage_at) + FORCE_MS
        {
            step.forced = true;
            // One that the operator stopped stays so.
            let silent = takers.iter().filter_map(|name| {
                let process = observed.get(name)?;
                let waits = !step.acks.contains(name) && process.state != State::Stopped;
                waits.then(|| Effect::Restart(name.clone(), process.attempt))
            });
            effects.extend(silent);
        }
        tell(step, now, observed, &takers, effects);
        if is_confirmed(step, observed, &takers, back && too_late) {
            if step.stage == RELEASE {
                step.finish(now, StepState::Succeeded, "the old set handles everything");
            } else {
                step.enter(now, SETTLE);
                step.message.clear();
            }
        }
    }
    if step.stage == SETTLE && step.state == StepState::Running {
        settle(step, now, observed, &givers, late);
    }
    let over = if back { too_late } else { late };
    if step.state == StepState::Running && over && step.stage != SETTLE {
        let open: Vec<&str> = if step.stage == GIVERS {
            &givers
        } else {
            &takers
        }
        .iter()
        .filter(|name| !step.acks.contains(*name))
        .map(String::as_str)
        .collect();
        let message = format!("not confirmed by {}", open.join(", "));
        step.finish(now, StepState::Failed, message);
    }
    if step.stage != before || step.state != StepState::Running {
        op.updated_at = now;
    }
}

/// Tells the givers; begins anew with a later moment where one of them may have gone beyond this one.
fn give(
    step: &mut Step,
    now: i64,
    observed: &Observed,
    givers: &[String],
    effects: &mut Vec<Effect>,
) {
    // One that started anew before it had confirmed may have handled anything up to its end.
    let renewed = givers.iter().any(|name| {
        !step.acks.contains(name)
            && step.asked.get(name).is_some_and(|asked| {
                observed
                    .get(name)
                    .is_some_and(|process| process.attempt != asked.attempt)
            })
    });
    // What those that confirmed hold meanwhile must not leave their rings.
    let stale = step.cut_at > 0 && now >= step.cut_at + STALE_MS;
    if !step.issued || renewed || stale {
        let coming = givers.iter().any(|name| {
            observed.get(name).is_some_and(|process| {
                !process.is_down_for_good() && (!process.ready || !process.attached)
            })
        });
        if coming && !stale {
            // It would need another moment anyway.
            step.issued = false;
            "waits until all processes are ready".clone_into(&mut step.message);
            return;
        }
        again(step, now, newest_of(observed, givers));
    }
    tell(step, now, observed, givers, effects);
}

/// Whether givers that are given up need no other moment: there is none yet, and what they have handled
/// says which it is; or those that did not confirm have stopped, and had handled nothing from it on. A
/// later one would leave what happens until then to nobody.
fn stands(step: &Step, observed: &Observed, givers: &[String]) -> bool {
    let open = givers.iter().filter(|name| !step.acks.contains(*name));
    let mut open = open.filter_map(|name| observed.get(name));
    step.cut_at == 0
        || open.all(|process| process.is_down_for_good() && process.newest_handled < step.cut_at)
}

/// Givers that do not confirm in time are stopped, so that they handle nothing more.
fn silence(step: &mut Step, observed: &Observed, givers: &[String], effects: &mut Vec<Effect>) {
    if std::mem::replace(&mut step.forced, true) {
        return;
    }
    let runs = |name: &&String| {
        observed
            .get(*name)
            .is_some_and(|one| !one.is_down_for_good())
    };
    let open = givers.iter().filter(|name| !step.acks.contains(*name));
    effects.extend(open.filter(runs).map(|name| Effect::Stop(name.clone())));
}

/// The newest time that any of them is known to have handled; 0 = none.
fn newest_of(observed: &Observed, names: &[String]) -> i64 {
    names
        .iter()
        .filter_map(|name| observed.get(name))
        .map(|process| process.newest_handled)
        .max()
        .unwrap_or(0)
}

/// Another moment, later than all that anybody has handled.
fn again(step: &mut Step, now: i64, newest: i64) {
    step.issued = true;
    step.rounds += 1;
    // Never earlier than before: what was given away stays so.
    step.cut_at = (now.max(newest) + LEAD_MS).max(step.cut_at);
    step.acks.clear();
    step.asked.clear();
    step.message = format!("agrees on a moment, round {}", step.rounds);
}

fn tell(
    step: &mut Step,
    now: i64,
    observed: &Observed,
    names: &[String],
    effects: &mut Vec<Effect>,
) {
    let at = if step.stage == RELEASE {
        0
    } else {
        step.cut_at
    };
    for name in names {
        let Some(process) = observed.get(name) else {
            continue;
        };
        let reachable = process.attached && process.state == State::Ready;
        if reachable && !step.acks.contains(name) && step.ask(now, name, process.attempt, AGAIN_MS)
        {
            effects.push(Effect::Share(name.clone(), process.attempt, at));
        }
    }
}

/// Whether everybody has confirmed. `give_up`: without those that do not run.
fn is_confirmed(step: &Step, observed: &Observed, names: &[String], give_up: bool) -> bool {
    names.iter().all(|name| {
        let down = observed
            .get(name)
            .is_none_or(super::core::Observation::is_down_for_good);
        step.acks.contains(name) || step.back && down || give_up
    })
}

fn settle(step: &mut Step, now: i64, observed: &Observed, givers: &[String], late: bool) {
    let over = step.cut_at.max(step.stage_at) + SETTLE_MS;
    if now < over {
        return;
    }
    "late events come in".clone_into(&mut step.message);
    // One that has not said a word since may be stopped where it is, with late events unread in its socket.
    let is_silent = |name: &String| {
        let process = observed.get(name);
        process.is_some_and(|process| process.ready && process.last_seen < over - SETTLE_MS / 2)
    };
    if givers.iter().any(is_silent) && !late {
        return;
    }
    // One that came down after the cut gets its late events by its resume.
    let is_whole = |name: &&String| observed.get(*name).is_some_and(|process| process.ready);
    let ill: Vec<&str> = givers
        .iter()
        .filter(|name| !is_whole(name) || is_silent(name))
        .map(String::as_str)
        .collect();
    if ill.is_empty() {
        let set = if step.back { "old" } else { "new" };
        step.finish(
            now,
            StepState::Succeeded,
            format!("the {set} set handles the events"),
        );
    } else if late || step.back {
        let message = format!(
            "{} was down or silent at the end; it may have missed its last events",
            ill.join(", ")
        );
        step.finish(now, StepState::Succeeded, message);
    }
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
    let Request::Share { at } = request else {
        return;
    };
    let current = if step.stage == RELEASE {
        0
    } else {
        step.cut_at
    };
    let asked = step
        .asked
        .get(process)
        .is_some_and(|asked| asked.attempt == attempt);
    // Of another stage, or of a moment that has been given up.
    if !asked || at != current {
        return;
    }
    op.updated_at = now;
    match result {
        Ok(newest) if step.stage == GIVERS && newest >= at => again(step, now, newest),
        Ok(_) => {
            step.asked.remove(process);
            step.acks.insert(process.to_owned());
        }
        Err(why) => {
            step.message = format!("{process}: {why}");
            if let Some(asked) = step.asked.get_mut(process) {
                asked.again_at = now + RETRY_MS;
            }
        }
    }
}
