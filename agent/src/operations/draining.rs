//! A drain: its deadline, and how it ends; pure.
//!
//! When the deadline comes, what has not begun to move stays; what is on its way arrives. A drain that leaves
//! something behind has failed, and says what stays and why: the host must not be switched off.

use super::{
    model::{Course, Failure, Kind, Operation},
    step::StepState,
};

/// Names given before the rest is counted.
const NAMES_MAX: usize = 3;

/// Gives up what has not begun, once the deadline has come.
pub(super) fn expire(op: &mut Operation, now: i64) {
    if deadline(op).is_none_or(|at| now < at) || op.course == Course::Back {
        return;
    }
    for step in &mut op.steps {
        if step.state == StepState::Pending {
            step.finish(now, StepState::Skipped, "not begun when the deadline came");
        }
    }
    op.blocked_since = 0;
    op.updated_at = now;
}

/// When it gives up what has not begun, in milliseconds since 1970.
pub(super) fn deadline(op: &Operation) -> Option<i64> {
    let open = || op.steps.iter().any(|step| step.state == StepState::Pending);
    (op.deadline_at > 0 && !op.state.is_ended() && open()).then_some(op.deadline_at)
}

/// Why a drain whose steps have ended has not emptied its hosts; `None` = it has, or it is no drain.
pub fn failure(op: &Operation) -> Option<Failure> {
    if op.kind != Kind::Drain {
        return None;
    }
    let stays: Vec<String> = op
        .steps
        .iter()
        .filter(|step| step.state == StepState::Skipped)
        .map(|step| format!("{} ({})", step.object, step.message))
        .collect();
    if stays.is_empty() {
        return None;
    }
    let shown = stays.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>();
    let more = match stays.len() - shown.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let hosts = op.targets.join(" ");
    let (count, verb) = match stays.len() {
        1 => ("1 process".to_owned(), "stays"),
        many => (format!("{many} processes"), "stay"),
    };
    Some(Failure {
        code: "not-drained".to_owned(),
        object: hosts.clone(),
        message: format!("{count} {verb} on {hosts}: {}{more}", shown.join("; ")),
        cause: String::new(),
        hint: format!(
            "the host stays cordoned; `tanakoctl operation show {}` names them all, `tanakoctl uncordon {hosts}` gives the host back",
            op.id
        ),
        retryable: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{
        OpState, Step, StepAction,
        core::{self, Input, Observed},
    };

    fn drain(steps: Vec<Step>) -> Operation {
        Operation {
            targets: vec!["host:a".to_owned()],
            steps,
            ..Operation::new(7, Kind::Drain, 1_000)
        }
    }

    fn moving(process: &str) -> Step {
        Step::moving(process, "a", "b", 60_000)
    }

    #[test]
    fn the_deadline_gives_up_what_has_not_begun_and_lets_the_rest_arrive() {
        let mut op = drain(vec![moving("x/0"), moving("x/1")]);
        op.deadline_at = 10_000;
        let observed = Observed::new();
        core::step(&mut op, 2_000, Input::Observe(&observed));
        assert_eq!(op.steps[0].state, StepState::Running);
        assert!(core::deadline(&op).is_some_and(|at| at <= 10_000));
        core::step(&mut op, 10_000, Input::Observe(&observed));
        let states: Vec<StepState> = op.steps.iter().map(|step| step.state).collect();
        assert_eq!(states, [StepState::Running, StepState::Skipped]);
        assert_eq!(op.state, OpState::Running);
        op.steps[0].finish(11_000, StepState::Succeeded, "ready on b");
        core::step(&mut op, 20_000, Input::Observe(&observed));
        assert_eq!(op.state, OpState::Failed);
        let failure = op.failure.expect("a reason");
        assert_eq!(
            (&*failure.code, &*failure.message),
            (
                "not-drained",
                "1 process stays on host:a: x/1 (not begun when the deadline came)"
            )
        );
    }

    #[test]
    fn a_paused_drain_gives_up_too() {
        let mut op = drain(vec![moving("x/0")]);
        op.deadline_at = 10_000;
        core::step(&mut op, 2_000, Input::Pause);
        core::step(&mut op, 10_000, Input::Observe(&Observed::new()));
        assert_eq!(op.state, OpState::Failed);
    }

    #[test]
    fn what_stays_from_the_beginning_is_named() {
        let stays = |count: usize| {
            let all = (0..count).map(|at| {
                Step::skipped(format!("db/n{at}"), StepAction::Move, "its data lies there")
            });
            failure(&drain(all.collect()))
        };
        assert_eq!(stays(0), None);
        let text = stays(5).expect("a failure").message;
        assert!(text.starts_with("5 processes stay on host:a: db/n0 (its data lies there); "));
        assert!(text.ends_with("; and 2 more"), "{text}");
        let mut other = drain(vec![Step::skipped("x/0", StepAction::Move, "is there")]);
        other.kind = Kind::Rebalance;
        assert_eq!(failure(&other), None);
    }
}
