//! A move: a process goes from one host to another with its sessions.
//!
//! ```text
//!  preparing: defined on `to`, stopped ──► leaving: stops on `from` ──► carrying: its sessions go to `to`
//!        │                                    │                               │
//!        └──────────── failed, aborted: dropped on `to`, started on `from` ◄──┘
//!
//!  carried ──► the assignment says `to`, in the transaction that writes this down ──► starting on `to`
//!                                                        ──► ready, dropped on `from`
//! ```
//!
//! Until the assignment is changed the process is `from`'s, and after that it is `to`'s: whoever goes on
//! after a crash reads on which side it is. It runs nowhere in between, so that no shard has two owners.
//! From a host that is lost nothing is asked: its own lease has seen to it that nothing runs there, and
//! the sessions come from the copy in the store. When the host that it goes to is lost on the way, another
//! one takes its place where that is the fleet's to choose ([`redirect`]); else the process stays where it is.

use super::{
    core::{Change, Effect, Observation, Observed, Request, at},
    model::Operation,
    step::{Asked, Step, StepAction, StepState},
};
use crate::supervisor::State;

/// It is defined on `to`.
pub const PREPARING: u8 = 1;
/// It stops on `from`.
pub const LEAVING: u8 = 2;
/// Its sessions are carried over.
pub const CARRYING: u8 = 3;
/// They have been; the assignment is changed next.
pub const CARRIED: u8 = 4;
/// It is `to`'s, and starts there.
pub const STARTING: u8 = 5;

/// A request without an answer is repeated after this long.
const AGAIN_MS: i64 = 15_000;
/// After an answer that it could not be done.
const RETRY_MS: i64 = 500;
/// Sessions that the old host does not hand out after so many tries are taken from the store's copy.
const TRIES_MAX: u32 = 6;

pub(super) fn begin(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let step = &mut op.steps[index];
    let process = observed.get(&step.object);
    step.state = StepState::Running;
    step.started_at = now;
    step.attempt_before = process.map_or(0, |process| process.attempt);
    step.last_seen_before = process.map_or(0, |process| process.last_seen);
    step.enter(now, PREPARING);
    step.message = format!("is prepared on {}", step.to);
    ask(step, effects);
}

/// The host that was lost is back with what it had: the process is asked of it like of any other. Not once
/// the assignment has been changed; then the host knows that by itself.
pub fn found(op: &mut Operation, now: i64, is_back: impl Fn(&str) -> bool) {
    for step in &mut op.steps {
        let open = step.action == StepAction::Move && !step.state.is_ended();
        if open && step.lost && step.stage < STARTING && is_back(&step.from) {
            step.lost = false;
            step.rounds = 0;
            if step.state == StepState::Running {
                step.enter(now, PREPARING);
                step.issued = false;
            }
            op.updated_at = now;
        }
    }
}

/// Another operation may have moved the process meanwhile, as a failover does: then nothing is left to do
/// here, or it is looked after where it is.
pub fn settle(
    op: &mut Operation,
    now: i64,
    host_of: impl Fn(&str) -> Option<String>,
) -> Vec<Effect> {
    let mut effects = Vec::new();
    for step in &mut op.steps {
        if step.action != StepAction::Move || step.state.is_ended() {
            continue;
        }
        let Some(host) = host_of(&step.object) else {
            continue;
        };
        let due = if step.stage < STARTING {
            &step.from
        } else {
            &step.to
        };
        if host == *due {
            continue;
        }
        op.updated_at = now;
        if step.stage < STARTING {
            if step.is_begun() && step.to != host {
                effects.push(Effect::Depart(step.object.clone(), step.to.clone()));
            }
            let message = format!("is on {host} already");
            step.finish(now, StepState::Succeeded, message);
        } else {
            step.message = format!("starts on {host}, for {} is lost", step.to);
            step.to = host;
        }
    }
    effects
}

/// The hosts that moves go to and that must be reached for it.
pub fn targets(op: &Operation) -> impl Iterator<Item = (usize, &Step)> {
    op.steps.iter().enumerate().filter(|(_, step)| {
        step.action == StepAction::Move && !step.state.is_ended() && step.stage < CARRIED
    })
}

/// The host that the process of the step at `index` was to go to is lost: it goes to another one, or stays.
pub fn redirect(op: &mut Operation, index: usize, now: i64, to: Option<String>) {
    let step = &mut op.steps[index];
    op.updated_at = now;
    match to {
        Some(to) => {
            step.message = format!("goes to {to}, for {} is lost", step.to);
            step.to = to;
            step.to_lost = false;
            step.rounds = 0;
            if step.state == StepState::Running {
                step.enter(now, PREPARING);
                step.issued = false;
            }
        }
        None => step.to_lost = true,
    }
}

/// The host did not do what was asked of it: it is asked again while there is time.
pub(super) fn refused(op: &mut Operation, index: usize, now: i64, why: &str) {
    let step = &mut op.steps[index];
    why.clone_into(&mut step.message);
    step.issued = false;
    let again = Asked {
        attempt: 0,
        again_at: now + RETRY_MS,
    };
    step.asked.insert(step.object.clone(), again);
    op.updated_at = now;
}

/// When time alone changes something.
pub(super) fn deadline(step: &Step) -> i64 {
    let allowed = if step.stage == STARTING {
        step.stage_at
    } else {
        step.started_at
    };
    allowed + step.timeout_ms
}

/// Looks after the step at `index`, which is at work.
pub(super) fn watch(
    op: &mut Operation,
    index: usize,
    now: i64,
    observed: &Observed,
    effects: &mut Vec<Effect>,
) {
    let aborting = op.aborting;
    let step = &mut op.steps[index];
    let before = (step.stage, step.state);
    let here = observed.get(&at(&step.object, &step.from));
    let there = observed.get(&at(&step.object, &step.to));
    if let Some(here) = here.filter(|here| here.attempt == step.attempt_before) {
        step.last_seen_before = step.last_seen_before.max(here.last_seen);
    }
    if step.stage < CARRIED && (aborting || step.to_lost || now >= deadline(step)) {
        let why = if aborting {
            "aborted".to_owned()
        } else if step.to_lost {
            format!("{} is lost", step.to)
        } else {
            format!("{} after {} s", stuck(step, here), step.timeout_ms / 1000)
        };
        give_up(step, now, why, effects);
        op.updated_at = now;
        return;
    }
    match step.stage {
        PREPARING if there.is_some() => {
            if step.lost {
                step.enter(now, CARRYING);
            } else {
                step.enter(now, LEAVING);
                step.message = format!("stops on {}", step.from);
            }
            step.issued = false;
        }
        LEAVING if here.is_none_or(is_gone) => {
            step.enter(now, CARRYING);
            step.message = format!("its sessions go to {}", step.to);
            step.issued = false;
        }
        CARRIED => {
            step.enter(now, STARTING);
            step.message = format!("starts on {}", step.to);
            step.issued = true;
            let (object, to) = (step.object.clone(), step.to.clone());
            effects.push(Effect::Document(Change::Move(object.clone(), to)));
            if !step.was_stopped {
                effects.push(Effect::Start(object));
            }
        }
        STARTING => start(step, now, there, effects),
        _ => {}
    }
    if matches!(step.stage, PREPARING | LEAVING) && is_due(step, now) {
        ask(step, effects);
    }
    // What was prepared may be lost with the agent over there.
    if step.stage == CARRYING && there.is_none() {
        step.enter(now, PREPARING);
        step.issued = false;
        ask(step, effects);
    }
    if step.stage == CARRYING {
        step.asked.retain(|_, asked| asked.again_at > now);
        let (object, from, to) = (step.object.clone(), step.from.clone(), step.to.clone());
        if step.ask(now, &object, 0, AGAIN_MS) {
            effects.push(if step.lost || step.rounds >= TRIES_MAX {
                Effect::Recall(object, to)
            } else {
                Effect::Carry(object, from, to)
            });
        }
    }
    if before != (step.stage, step.state) {
        op.updated_at = now;
    }
}

/// It is `to`'s: until it is ready there, or not wanted.
fn start(step: &mut Step, now: i64, there: Option<&Observation>, effects: &mut Vec<Effect>) {
    let verdict = match there {
        _ if step.was_stopped => Some(Ok(format!("is on {}, stopped", step.to))),
        Some(there) if there.state == State::Ready && there.ready => {
            Some(Ok(format!("ready on {}", step.to)))
        }
        Some(there) if there.has_ended_after(step.attempt_before) => Some(Err(format!(
            "did not start on {}: {}",
            step.to, there.detail
        ))),
        there if now >= deadline(step) => {
            let state = there.map_or("gone", |there| there.state.as_str());
            let detail = there.map_or("", |there| there.detail.as_str());
            let seconds = step.timeout_ms / 1000;
            let to = &step.to;
            Some(Err(format!(
                "not ready on {to} after {seconds} s; it is {state} {detail}"
            )))
        }
        _ => None,
    };
    let verdict = match verdict {
        Some(verdict) => verdict,
        // The life of the agent that wrote it down may have ended before it asked.
        None if is_due(step, now) => {
            step.issued = true;
            step.asked.clear();
            effects.push(Effect::Start(step.object.clone()));
            return;
        }
        None => return,
    };
    // Wherever this ends, it is not `from`'s any more.
    effects.push(Effect::Depart(step.object.clone(), step.from.clone()));
    match verdict {
        Ok(message) => step.finish(now, StepState::Succeeded, message),
        Err(message) => step.finish(now, StepState::Failed, message),
    }
}

/// Whether its host is to be asked now.
fn is_due(step: &Step, now: i64) -> bool {
    !step.issued && step.asked.values().all(|asked| asked.again_at <= now)
}

/// Asks for what the stage needs.
fn ask(step: &mut Step, effects: &mut Vec<Effect>) {
    step.issued = true;
    step.asked.clear();
    let object = step.object.clone();
    effects.push(match step.stage {
        PREPARING => Effect::Prepare(object, step.to.clone(), step.attempt_before),
        _ => Effect::StopAt(object, step.from.clone()),
    });
}

/// It stays where it was.
fn give_up(step: &mut Step, now: i64, why: String, effects: &mut Vec<Effect>) {
    effects.push(Effect::Depart(step.object.clone(), step.to.clone()));
    if !step.was_stopped && !step.lost {
        effects.push(Effect::Start(step.object.clone()));
    }
    let message = format!("stays on {}: {why}", step.from);
    step.finish(now, StepState::Failed, message);
}

fn stuck(step: &Step, here: Option<&Observation>) -> String {
    let state = here.map_or("gone", |here| here.state.as_str());
    match step.stage {
        PREPARING => format!("{} has not taken it", step.to),
        LEAVING => format!("it is {state} on {}", step.from),
        _ => format!("its sessions have not come to {}", step.to),
    }
}

fn is_gone(process: &Observation) -> bool {
    process.is_down_for_good()
}

pub(super) fn answered(
    op: &mut Operation,
    index: usize,
    now: i64,
    process: &str,
    request: Request,
    result: Result<i64, &str>,
) {
    let step = &mut op.steps[index];
    let expected = request == Request::Carry && step.stage == CARRYING && step.object == process;
    if !expected || !step.asked.contains_key(process) {
        return;
    }
    op.updated_at = now;
    match result {
        Ok(kept) => {
            step.done = u64::try_from(kept).unwrap_or(0);
            step.enter(now, CARRIED);
        }
        Err(why) => {
            step.rounds = step.rounds.saturating_add(1);
            why.clone_into(&mut step.message);
            if let Some(asked) = step.asked.get_mut(process) {
                asked.again_at = now + RETRY_MS;
            }
        }
    }
}
