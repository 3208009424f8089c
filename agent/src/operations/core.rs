//! How an operation on processes goes forward: pure, so that any interleaving of observations,
//! answers, requests, crashes and clocks can be tried in a test.
//!
//! Whoever drives it writes the operation down after each call that returned effects and before
//! carrying them out; a change of the desired state ([`Effect::Document`]) in the same transaction.
//! After a crash between the two, the next life loads the operation with the step begun, sees by the
//! attempt that nothing has happened yet, and asks for it again. Commands to workers are asked for
//! again by each life: they are idempotent.

use std::collections::BTreeMap;

use tanako_fleet::rollout::Sample;

use super::{
    back, cut, draining,
    model::{Course, Failure, OpState, Operation},
    moving, plain,
    step::{Step, StepAction, StepState},
    switch, watching,
};
use crate::supervisor::State;

/// A process, as far as an operation cares.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Where it is in its life.
    pub state: State,
    /// Whether it is ready, and all of its shards, where it reports them, are connected.
    pub ready: bool,
    /// Its latest start, there or on the host that it had before.
    pub attempt: u64,
    /// Whether that was where it is now. One that is moved is prepared first, with the number that it had.
    pub begun: bool,
    /// Latest sign of life of that attempt, in milliseconds since 1970; 0 = unknown.
    pub last_seen: i64,
    /// Why it is in this state.
    pub detail: String,
    /// It reports that it stands by: prepared, and no shard connected.
    pub standby: bool,
    /// It can be given commands.
    pub attached: bool,
    /// Time in the newest id that it has handled, on Discord's clock; 0 = none.
    pub newest_handled: i64,
    /// Its figures.
    pub sample: Sample,
    /// It was starting when it was last heard of, and may have come up since: its agent was away, or its
    /// stream is.
    pub unsure: bool,
    /// Its latest attempt was not started from the spec that is asked for now.
    pub outdated: bool,
}

impl Observation {
    /// Whether nothing is known of it, not even its latest attempt: its host has not been heard yet.
    pub fn is_unknown(&self) -> bool {
        self.unsure && self.attempt == 0
    }

    /// Whether it is surely down: a restart takes nothing away.
    pub fn is_down(&self) -> bool {
        self.state != State::Ready && !self.unsure
    }

    /// Whether it does not serve as it should, or may not. After the agent's restart no worker has
    /// reported yet: what the supervisor took over as ready counts as whole until its worker says
    /// otherwise.
    pub fn is_short(&self) -> bool {
        self.state != State::Ready || (self.attached && !self.ready)
    }

    /// Whether it does not run, and nothing but the operator or an operation starts it.
    pub fn is_down_for_good(&self) -> bool {
        matches!(self.state, State::Stopped | State::Failed)
    }

    /// Whether an attempt after that one has come to an end where it is, and nothing but the operator or an
    /// operation starts another.
    pub fn has_ended_after(&self, attempt: u64) -> bool {
        let ended = match self.state {
            State::Failed => true,
            // What is only prepared has not ended.
            State::Stopped => self.begun,
            _ => false,
        };
        ended && self.attempt > attempt
    }
}

/// All processes of the fleet by name, each on the host that it belongs to; and, for those on the move,
/// what each of the two hosts has of it, by [`at`].
pub type Observed = BTreeMap<String, Observation>;

/// A process on a certain host, among the [`Observed`].
pub fn at(process: &str, host: &str) -> String {
    format!("{process}@{host}")
}

/// What a worker was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Give the sessions up, stay.
    StandDown,
    /// Take sessions.
    TakeOver,
    /// Handle what the cut at this time gives to it; 0 = everything.
    Share {
        /// See [`super::step::Step::cut_at`].
        at: i64,
    },
    /// Have its sessions on the host that it moves to. Asked of hosts, not of the process: the attempt is
    /// 0, the answer how many sessions there are.
    Carry,
}

/// What drives an operation.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// What is, now. May be older than what was asked for last.
    Observe(&'a Observed),
    /// Begin no new step.
    Pause,
    /// Go on.
    Resume,
    /// End as soon as the steps at work have ended; go back where there is a way.
    Abort,
    /// The agent that carries these steps out was started anew: what it was asked for may be lost, and is
    /// looked after again.
    Renewed(&'a dyn Fn(&Step) -> bool),
    /// The supervisor refused what was asked for, or its host did not answer.
    Refused {
        /// The process.
        object: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A worker answered.
    Answered {
        /// The process.
        process: &'a str,
        /// The attempt that was asked.
        attempt: u64,
        /// What for.
        request: Request,
        /// The newest time that it had handled, or why it did not do it.
        result: Result<i64, &'a str>,
    },
}

/// A change of the desired state, in the transaction that writes the operation down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// From now on this process runs by the present spec.
    Release(String),
    /// The spec that the operation replaced is the present one again; what runs goes on by the spec
    /// it runs by until it is released.
    TurnBack,
    /// The next generation of each of these bots becomes the one.
    Adopt(Vec<String>),
    /// The next generation of each of these bots is given up.
    Drop(Vec<String>),
    /// From now on this process is that host's.
    Move(String, String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the process by its current spec.
    Start(String),
    /// Stop it.
    Stop(String),
    /// Replace this attempt of it by one of its current spec; nothing, where it has been replaced.
    Restart(String, u64),
    /// Stop it and drop it.
    Forget(String),
    /// Ask this attempt to give its sessions up. Its answer is [`Input::Answered`].
    StandDown(String, u64),
    /// The sessions of the first process belong to the second, of which this is the attempt.
    Handover(String, String, u64),
    /// Give this attempt the sessions that belong to it and ask it to connect.
    TakeOver(String, u64),
    /// Tell this attempt its duty and cut, as [`super::duties::assignments`] says, at this time.
    Share(String, u64, i64),
    /// Define the process on that host, stopped; its attempts there have higher numbers than this.
    Prepare(String, String, u64),
    /// Stop the process on that host.
    StopAt(String, String),
    /// Carry the sessions of the process from the first host to the second. The answer is
    /// [`Input::Answered`].
    Carry(String, String, String),
    /// Take the sessions of the process in on that host, from the copy in the store. The answer is
    /// [`Input::Answered`].
    Recall(String, String),
    /// Drop the process on that host, and what is kept of its sessions there.
    Depart(String, String),
    /// Change the desired state.
    Document(Change),
}

impl Effect {
    /// The process that something happens to; `None` = it is done when the operation is written down.
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Start(object)
            | Self::Stop(object)
            | Self::Restart(object, _)
            | Self::Forget(object)
            | Self::StandDown(object, _)
            | Self::Handover(_, object, _)
            | Self::TakeOver(object, _)
            | Self::Share(object, _, _)
            | Self::Prepare(object, _, _)
            | Self::StopAt(object, _)
            | Self::Carry(object, _, _)
            | Self::Recall(object, _)
            | Self::Depart(object, _) => Some(object),
            Self::Document(_) => None,
        }
    }
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
            if op.is_past_return() {
                // The new set serves; what is left is to remove the old one.
                return Vec::new();
            }
            op.aborting = true;
            op.updated_at = now;
            if op.state == OpState::Paused {
                op.state = OpState::Running;
            }
            "aborting: waits for the steps at work".clone_into(&mut op.message);
            return Vec::new();
        }
        Input::Renewed(is_its) => {
            let running = op.steps.iter_mut();
            let running = running.filter(|step| step.state == StepState::Running);
            for step in running.filter(|step| is_its(step)) {
                step.issued = false;
                step.asked.clear();
            }
            return Vec::new();
        }
        Input::Refused { object, reason } => {
            let mut steps = op.steps.iter();
            let index =
                steps.position(|step| step.object == object && step.state == StepState::Running);
            match index {
                // Between two hosts it must not be left.
                Some(index) if op.steps[index].action == StepAction::Move => {
                    moving::refused(op, index, now, reason);
                }
                Some(index) => {
                    op.steps[index].finish(now, StepState::Failed, reason);
                    op.updated_at = now;
                }
                None => {}
            }
            return Vec::new();
        }
        Input::Answered {
            process,
            attempt,
            request,
            result,
        } => {
            for index in 0..op.steps.len() {
                if op.steps[index].state == StepState::Running {
                    match op.steps[index].action {
                        StepAction::Switch => {
                            switch::answered(op, index, now, (process, attempt), request, result);
                        }
                        StepAction::Cut => {
                            cut::answered(op, index, now, (process, attempt), request, result);
                        }
                        StepAction::Move => {
                            moving::answered(op, index, now, process, request, result);
                        }
                        _ => {}
                    }
                }
            }
            return Vec::new();
        }
        Input::Observe(observed) => observed,
    };
    if op.state == OpState::Pending {
        op.state = OpState::Running;
        op.updated_at = now;
        watching::remember(op, observed);
    }
    let mut effects = Vec::new();
    for index in 0..op.steps.len() {
        if op.steps[index].state != StepState::Running {
            continue;
        }
        match op.steps[index].action {
            StepAction::Switch => switch::watch(op, index, now, observed, &mut effects),
            StepAction::Cut => cut::watch(op, index, now, observed, &mut effects),
            StepAction::Observe => watching::watch(op, index, now, observed),
            StepAction::Move => moving::watch(op, index, now, observed, &mut effects),
            _ => plain::watch(op, index, now, observed, &mut effects),
        }
    }
    draining::expire(op, now);
    back::turn(op, now, &mut effects);
    let forward = op.course;
    begin(op, now, observed, &mut effects);
    // It may have given up waiting.
    back::turn(op, now, &mut effects);
    if op.course != forward {
        begin(op, now, observed, &mut effects);
    }
    end(op, now, observed, &mut effects);
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
        .flat_map(|step| {
            let again = step.asked.values().map(|asked| asked.again_at);
            let own = match step.action {
                StepAction::Observe => watching::deadline(op),
                StepAction::Cut => cut::deadline(op, step),
                StepAction::Switch => Some(switch::deadline(step)),
                StepAction::Move => Some(moving::deadline(step)),
                _ => Some(step.started_at + step.timeout_ms),
            };
            again.chain(own)
        });
    let blocked = (op.blocked_since > 0).then(|| op.blocked_since + blocked_max(op));
    let settled = (!op.is_working()).then(|| settled_at(op)).flatten();
    steps
        .chain(blocked)
        .chain(settled)
        .chain(draining::deadline(op))
        .min()
}

/// How long the operation waits for a process that is down without its doing.
fn blocked_max(op: &Operation) -> i64 {
    op.steps
        .iter()
        .map(|step| step.timeout_ms)
        .max()
        .unwrap_or(0)
}

fn begin(op: &mut Operation, now: i64, observed: &Observed, effects: &mut Vec<Effect>) {
    let is_back = op.course == Course::Back;
    // On the way back one failure is no reason to leave the others where they are.
    let failed = !is_back && op.steps.iter().any(|step| step.state == StepState::Failed);
    let aborted = !is_back && op.aborting;
    if failed || aborted || op.state == OpState::Paused {
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
            .is_some_and(|process| !process.is_down())
    });
    let mut waits = None;
    for index in order {
        if let Err(reason) = may_begin(op, index, observed) {
            waits = Some(reason);
            break;
        }
        match op.steps[index].action {
            StepAction::Switch => switch::begin(op, index, now),
            StepAction::Cut => cut::begin(op, index, now),
            StepAction::Observe => watching::begin(op, index, now, observed),
            StepAction::Move => moving::begin(op, index, now, observed, effects),
            StepAction::Adopt => {
                effects.push(Effect::Document(Change::Adopt(op.bots.clone())));
                op.steps[index].started_at = now;
                op.steps[index].finish(now, StepState::Succeeded, "the new set is the one");
            }
            _ => plain::begin(op, index, now, observed, effects),
        }
        let step = &op.steps[index];
        op.message = said(step);
        op.updated_at = now;
    }
    let Some(waits) = waits.filter(|_| !op.is_working()) else {
        op.blocked_since = 0;
        return;
    };
    // Nothing of ours is at work and still it cannot go on: someone else's trouble.
    if op.blocked_since == 0 {
        op.blocked_since = now;
        op.message = format!("waits for {waits} to become ready");
        op.updated_at = now;
    } else if now >= op.blocked_since + blocked_max(op) {
        let first = waits.split(',').next().unwrap_or_default();
        let why = match observed.get(first).map(|seen| seen.detail.as_str()) {
            Some(detail) if !detail.is_empty() => format!(" ({detail})"),
            _ => String::new(),
        };
        let message = format!("{waits} not ready{why}, so nothing else may be changed");
        op.failure = Some(not_ready(first, &message));
        op.blocked_since = 0;
        if is_back {
            for step in &mut op.steps {
                if step.state == StepState::Pending {
                    step.finish(now, StepState::Failed, message.clone());
                }
            }
        } else {
            op.aborting = true;
        }
    }
}

/// What an operation is at, in words.
fn said(step: &Step) -> String {
    let (object, other) = (&step.object, &step.other);
    match (step.action, step.back) {
        (StepAction::Switch, _) => format!("{other} takes over from {object}"),
        (StepAction::Cut, false) => format!("{object}: its new set takes over the events"),
        (StepAction::Cut, true) if !step.message.is_empty() => {
            format!("going back: {object} {}", step.message)
        }
        (StepAction::Cut, true) => format!("{object}: its old set takes the events back"),
        (StepAction::Observe, _) => format!("watches {object}"),
        (StepAction::Move, _) => format!("moves {object} from {} to {}", step.from, step.to),
        (StepAction::Adopt, _) => "the new set is the one".to_owned(),
        (action, false) => format!("{} {object}", action.as_str()),
        (action, true) => format!("going back: {} {object}", action.as_str()),
    }
}

/// Whether a step may begin now; else the names of those that are in its way.
fn may_begin(op: &Operation, index: usize, observed: &Observed) -> Result<(), String> {
    let step = &op.steps[index];
    // What it would be judged by is not known.
    if !step.lost
        && observed
            .get(&step.object)
            .is_some_and(Observation::is_unknown)
    {
        return Err(step.object.clone());
    }
    let working = |action: StepAction| {
        op.steps
            .iter()
            .filter(|step| step.action == action && step.state == StepState::Running)
            .count()
    };
    let max = op.max_unavailable.max(1) as usize;
    match step.action {
        StepAction::Restart => plain::may_restart(op, index, observed),
        StepAction::Switch if working(StepAction::Switch) >= max => Err(step.other.clone()),
        StepAction::Switch => switch::may_begin(step, observed),
        StepAction::Move if working(StepAction::Move) >= max => Err(step.object.clone()),
        StepAction::Cut => cut::may_begin(op, step, observed),
        StepAction::Warm | StepAction::Shadow
            if op.starting_max > 0 && working(step.action) >= op.starting_max as usize =>
        {
            Err(step.object.clone())
        }
        _ => Ok(()),
    }
}

/// A report that came after the end of a step tells what it cost in full. Nobody waits longer for it.
const SETTLE_MS: i64 = 1_500;

fn settled_at(op: &Operation) -> Option<i64> {
    op.steps
        .iter()
        .filter(|step| step.has_receipt() && step.state == StepState::Succeeded)
        .map(|step| step.ended_at + SETTLE_MS)
        .max()
}

/// Whether every worker that was restarted or took over has reported since.
fn is_settled(op: &Operation, now: i64, observed: &Observed) -> bool {
    op.steps
        .iter()
        .filter(|step| step.has_receipt() && step.state == StepState::Succeeded)
        .all(|step| {
            now >= step.ended_at + SETTLE_MS
                || observed.get(step.taker()).is_none_or(|process| {
                    process.last_seen == 0 || process.last_seen > step.ended_at
                })
        })
}

fn end(op: &mut Operation, now: i64, observed: &Observed, effects: &mut Vec<Effect>) {
    if op.is_working() {
        return;
    }
    let is_back = op.course == Course::Back;
    let open = op.steps.iter().any(|step| !step.state.is_ended());
    let failed = op
        .steps
        .iter()
        .find(|step| step.state == StepState::Failed && (!is_back || step.back))
        .cloned();
    let stops = !is_back && (failed.is_some() || op.aborting);
    if open && !stops || !is_settled(op, now, observed) {
        return;
    }
    for step in &mut op.steps {
        if step.state == StepState::Pending {
            step.finish(now, StepState::Skipped, "not begun");
        }
    }
    op.updated_at = now;
    op.ended_at = now;
    let untouched = op
        .steps
        .iter()
        .filter(|step| !step.is_begun() && !step.back)
        .count();
    if is_back {
        if op.builds_generation() {
            effects.push(Effect::Document(Change::Drop(op.bots.clone())));
        }
        back::end(op, failed.as_ref());
    } else if let Some(step) = failed {
        let message = format!("{} {}: {}", step.action.as_str(), step.object, step.message);
        op.state = OpState::Failed;
        op.message = match untouched {
            0 => message.clone(),
            // Two specs run beside each other now, and nobody but the operator knows which is wanted.
            _ if op.replaces => format!(
                "{message}; {untouched} not touched and still by the old spec: `tanakoctl rollout undo {}` brings all back to it",
                op.id
            ),
            _ => format!("{message}; {untouched} not touched"),
        };
        let mut failure = not_ready(&step.object, &message);
        if op.replaces {
            failure.hint = format!(
                "look at `tanakoctl logs {}`; go back with `tanakoctl rollout undo {}`, or roll a mended spec out",
                step.object, op.id
            );
        }
        op.failure = Some(failure);
    } else if op.failure.is_some() {
        op.state = OpState::Failed;
        op.message = op
            .failure
            .as_ref()
            .map(|failure| failure.message.clone())
            .unwrap_or_default();
    } else if op.aborting {
        op.state = OpState::Aborted;
        op.message = format!("aborted; {untouched} not touched");
    } else if let Some(failure) = draining::failure(op) {
        op.state = OpState::Failed;
        op.message.clone_from(&failure.message);
        op.failure = Some(failure);
    } else {
        op.state = OpState::Succeeded;
        "done".clone_into(&mut op.message);
    }
}

/// What is said of a process that does not become ready.
pub(super) fn not_ready(object: &str, message: &str) -> Failure {
    Failure {
        code: "not-ready".to_owned(),
        object: object.to_owned(),
        message: message.to_owned(),
        cause: String::new(),
        hint: format!("look at `tanakoctl logs {object}`, then try again"),
        retryable: true,
    }
}
