//! The pure core of operations under generated sequences: crashes of processes and of the agent,
//! observations that are stale or come twice, pauses, aborts and late clocks.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tanako_agent::{
    operations::{
        Kind, OpState, Operation, Step, StepAction, StepState,
        core::{self, Effect, Input, Observation, Observed},
    },
    supervisor::State,
};
use tanako_fleet::rollout::Sample;

const TIMEOUT_MS: i64 = 10_000;

fn operation(kind: Kind, action: StepAction, count: usize, max_unavailable: u32) -> Operation {
    let steps = (0..count)
        .map(|n| Step::new(format!("bot/{n}"), action, 0, TIMEOUT_MS))
        .collect();
    Operation {
        steps,
        max_unavailable,
        ..Operation::new(1, kind, 0)
    }
}

fn observation(state: State, attempt: u64) -> Observation {
    Observation {
        state,
        ready: state == State::Ready,
        attempt,
        begun: true,
        last_seen: 0,
        detail: String::new(),
        standby: false,
        attached: true,
        newest_handled: 0,
        sample: Sample::default(),
        unsure: false,
        outdated: false,
    }
}

/// Replaces the first attempt.
fn restart(name: &str) -> Effect {
    Effect::Restart(name.to_owned(), 1)
}

fn fleet(count: usize) -> Observed {
    (0..count)
        .map(|n| (format!("bot/{n}"), observation(State::Ready, 1)))
        .collect()
}

/// Processes that do what they are told, and what chance tells them.
struct World {
    now: i64,
    processes: Observed,
    past: Vec<Observed>,
    /// Went down without the operation's doing.
    crashed: BTreeSet<String>,
    /// Orders given.
    orders: Vec<(String, u64)>,
}

impl World {
    fn new(count: usize) -> Self {
        let processes = fleet(count);
        Self {
            now: 1_000,
            past: vec![processes.clone()],
            processes,
            crashed: BTreeSet::new(),
            orders: Vec::new(),
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Effect::Restart(name, attempt) = effect else {
                panic!("{effect:?}")
            };
            self.replace(&name, attempt);
            self.orders.push((name, attempt));
        }
    }

    /// What a supervisor does with the order.
    fn replace(&mut self, name: &str, attempt: u64) {
        let process = self.processes.get_mut(name).expect("known");
        if process.attempt == attempt {
            // It was up, and is down because of the operation, unless it was down already.
            *process = observation(State::Starting, attempt + 1);
            self.past.push(self.processes.clone());
        }
    }

    fn set(&mut self, name: &str, state: State) {
        if let Some(process) = self.processes.get_mut(name) {
            *process = observation(state, process.attempt);
            if state == State::Ready {
                self.crashed.remove(name);
            } else {
                self.crashed.insert(name.to_owned());
            }
            self.past.push(self.processes.clone());
        }
    }

    fn down_by_operation(&self) -> usize {
        self.processes
            .iter()
            .filter(|(name, process)| !process.ready && !self.crashed.contains(*name))
            .count()
    }
}

#[derive(Debug, Clone)]
enum Chance {
    Observe,
    Stale(usize),
    Ready(usize),
    Crash(usize),
    Fail(usize),
    Later(i64),
    AgentRestart,
    /// An order comes again.
    Again(usize),
    Pause,
    Resume,
    Abort,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        6 => Just(Chance::Observe),
        3 => (0usize..50).prop_map(Chance::Stale),
        6 => (0usize..6).prop_map(Chance::Ready),
        2 => (0usize..6).prop_map(Chance::Crash),
        1 => (0usize..6).prop_map(Chance::Fail),
        2 => (0i64..4_000).prop_map(Chance::Later),
        2 => Just(Chance::AgentRestart),
        2 => (0usize..50).prop_map(Chance::Again),
        1 => Just(Chance::Pause),
        1 => Just(Chance::Resume),
        1 => Just(Chance::Abort),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_rolling_restart_never_takes_down_more_than_it_may(
        count in 1usize..6,
        max in 1u32..4,
        chances in prop::collection::vec(chance(), 1..120),
    ) {
        let mut world = World::new(count);
        let mut op = operation(Kind::Restart, StepAction::Restart, count, max);
        for chance in chances {
            let name = |n: usize| format!("bot/{}", n % count);
            let mut effects = Vec::new();
            match chance {
                Chance::Observe => {
                    effects = core::step(&mut op, world.now, Input::Observe(&world.processes));
                }
                Chance::Stale(back) => {
                    let at = world.past.len().saturating_sub(1 + back);
                    let old = world.past[at].clone();
                    effects = core::step(&mut op, world.now, Input::Observe(&old));
                }
                Chance::Ready(n) => world.set(&name(n), State::Ready),
                Chance::Crash(n) => world.set(&name(n), State::Backoff),
                Chance::Fail(n) => world.set(&name(n), State::Failed),
                Chance::Later(ms) => world.now += ms,
                Chance::AgentRestart => {
                    // What was written down is all that the next life knows.
                    let text = serde_json::to_vec(&op).expect("encodes");
                    op = serde_json::from_slice(&text).expect("decodes");
                    // Its first look may be at a table that its supervisor has not filled yet; what was
                    // before, it never sees.
                    world.past = vec![Observed::new(), world.processes.clone()];
                }
                Chance::Again(n) => {
                    if let Some((name, attempt)) = world.orders.get(n).cloned() {
                        world.replace(&name, attempt);
                    }
                }
                Chance::Pause => drop(core::step(&mut op, world.now, Input::Pause)),
                Chance::Resume => drop(core::step(&mut op, world.now, Input::Resume)),
                Chance::Abort => drop(core::step(&mut op, world.now, Input::Abort)),
            }
            world.carry_out(effects);
            prop_assert!(
                world.down_by_operation() <= max as usize,
                "{} down, {max} allowed: {op:#?}", world.down_by_operation()
            );
            let failed = op.steps.iter().any(|step| step.state == StepState::Failed);
            if op.state == OpState::Succeeded {
                prop_assert!(!failed);
            }
            if op.state.is_ended() {
                prop_assert!(op.steps.iter().all(|step| step.state.is_ended()));
                prop_assert!(core::deadline(&op).is_none());
            }
        }
        // No process was restarted twice, whatever the agents saw and however often they asked.
        prop_assert!(world.processes.values().all(|process| process.attempt <= 2));
        // And whatever happened, it comes to an end once the world is calm.
        core::step(&mut op, world.now, Input::Resume);
        for _ in 0..100 {
            if op.state.is_ended() {
                break;
            }
            for n in 0..count {
                world.set(&format!("bot/{n}"), State::Ready);
            }
            let effects = core::step(&mut op, world.now, Input::Observe(&world.processes));
            world.carry_out(effects);
            world.now += 1_000;
        }
        prop_assert!(op.state.is_ended(), "{op:#?}");
    }
}

fn run(op: &mut Operation, world: &Observed, now: i64) -> Vec<Effect> {
    core::step(op, now, Input::Observe(world))
}

#[test]
fn it_stops_at_the_first_that_does_not_become_ready() {
    let mut world = fleet(3);
    let mut op = operation(Kind::Restart, StepAction::Restart, 3, 1);
    assert_eq!(run(&mut op, &world, 1_000), [restart("bot/0")]);
    world.insert("bot/0".to_owned(), observation(State::Starting, 2));
    assert_eq!(run(&mut op, &world, 1_000 + TIMEOUT_MS - 1), []);
    assert_eq!(run(&mut op, &world, 1_000 + TIMEOUT_MS), []);
    assert_eq!(op.state, OpState::Failed);
    let failure = op.failure.expect("says why");
    assert_eq!(
        (failure.code.as_str(), failure.object.as_str()),
        ("not-ready", "bot/0")
    );
    assert!(op.message.contains("2 not touched"), "{}", op.message);
}

#[test]
fn what_was_down_before_is_restarted_first_and_what_the_operator_stopped_does_not_count() {
    let mut world = fleet(3);
    world.insert("bot/2".to_owned(), observation(State::Backoff, 4));
    world.insert("bot/1".to_owned(), observation(State::Stopped, 1));
    let mut op = operation(Kind::Restart, StepAction::Restart, 3, 1);
    op.steps[1] = Step::skipped("bot/1", StepAction::Restart, "stopped by the operator");
    assert_eq!(
        run(&mut op, &world, 1),
        [Effect::Restart("bot/2".to_owned(), 4)]
    );
    world.insert("bot/2".to_owned(), observation(State::Ready, 5));
    assert_eq!(run(&mut op, &world, 2), [restart("bot/0")]);
}

#[test]
fn it_waits_for_a_foreign_failure_and_gives_up_in_the_end() {
    let mut world = fleet(2);
    let mut op = operation(Kind::Restart, StepAction::Restart, 2, 1);
    run(&mut op, &world, 1);
    world.insert("bot/0".to_owned(), observation(State::Ready, 2));
    world.insert(
        "bot/0".to_owned(),
        Observation {
            ready: true,
            ..observation(State::Ready, 2)
        },
    );
    let mut broken = world.clone();
    assert_eq!(run(&mut op, &world, 2), [restart("bot/1")]);
    // bot/1 fails: nothing is restarted any more.
    broken.insert("bot/1".to_owned(), observation(State::Failed, 2));
    run(&mut op, &broken, 3);
    assert_eq!(op.state, OpState::Failed);
}

#[test]
fn one_that_a_failover_prepares_elsewhere_has_not_ended_by_itself() {
    let mut world = fleet(1);
    let mut op = operation(Kind::Rollout, StepAction::Restart, 1, 1);
    run(&mut op, &world, 1);
    // Its second attempt was lost with its host. Another one has it now, and has not started it yet.
    let prepared = Observation {
        begun: false,
        attached: false,
        ..observation(State::Stopped, 2)
    };
    world.insert("bot/0".to_owned(), prepared);
    assert_eq!(run(&mut op, &world, 2), []);
    assert_eq!(op.state, OpState::Running, "{op:#?}");
    world.insert("bot/0".to_owned(), observation(State::Ready, 3));
    run(&mut op, &world, 3);
    assert_eq!(op.state, OpState::Succeeded, "{op:#?}");
    // What has run there and stops has ended.
    let mut op = operation(Kind::Rollout, StepAction::Restart, 1, 1);
    let mut world = fleet(1);
    run(&mut op, &world, 1);
    world.insert("bot/0".to_owned(), observation(State::Stopped, 2));
    run(&mut op, &world, 2);
    assert_eq!(op.state, OpState::Failed);
}

#[test]
fn a_begun_step_is_asked_for_again_only_if_nothing_has_happened() {
    let mut world = fleet(1);
    let mut op = operation(Kind::Restart, StepAction::Restart, 1, 1);
    run(&mut op, &world, 1);
    let reload = |op: &Operation| -> Operation {
        serde_json::from_slice(&serde_json::to_vec(op).expect("encodes")).expect("decodes")
    };
    // The agent died before it asked the supervisor.
    let mut next = reload(&op);
    assert_eq!(run(&mut next, &world, 2), [restart("bot/0")]);
    assert_eq!(run(&mut next, &world, 3), [], "once a life");
    // It died after.
    world.insert("bot/0".to_owned(), observation(State::Starting, 2));
    let mut next = reload(&op);
    assert_eq!(run(&mut next, &world, 2), []);
    world.insert("bot/0".to_owned(), observation(State::Ready, 2));
    run(&mut next, &world, 3);
    assert_eq!(next.state, OpState::Succeeded);
}

#[test]
fn a_table_that_is_not_filled_yet_restarts_nothing_twice() {
    let mut world = fleet(1);
    let mut op = operation(Kind::Restart, StepAction::Restart, 1, 1);
    assert_eq!(run(&mut op, &world, 1), [restart("bot/0")]);
    world.insert("bot/0".to_owned(), observation(State::Ready, 2));
    // The agent dies before it sees that; the next one looks before its supervisor has told of any.
    op.steps[0].issued = false;
    assert_eq!(
        run(&mut op, &Observed::new(), 2),
        [restart("bot/0")],
        "an order for the attempt that is over already"
    );
    run(&mut op, &world, 3);
    assert_eq!(op.state, OpState::Succeeded);
}

#[test]
fn what_came_back_by_its_old_spec_is_restarted_by_the_new_one() {
    let mut world = fleet(1);
    let mut op = operation(Kind::Rollout, StepAction::Restart, 1, 1);
    assert_eq!(run(&mut op, &world, 1), [restart("bot/0")]);
    // It had crashed and come back before the order reached it.
    let back = Observation {
        outdated: true,
        ..observation(State::Ready, 2)
    };
    world.insert("bot/0".to_owned(), back);
    assert_eq!(
        run(&mut op, &world, 2),
        [Effect::Restart("bot/0".to_owned(), 2)]
    );
    assert_eq!(run(&mut op, &world, 3), [], "once");
    world.insert("bot/0".to_owned(), observation(State::Ready, 3));
    run(&mut op, &world, 4);
    assert_eq!(op.state, OpState::Succeeded);
}

#[test]
fn a_begun_restart_waits_anew_when_it_would_now_take_down_the_last_one() {
    let mut op = operation(Kind::Restart, StepAction::Restart, 2, 1);
    let mut world = fleet(2);
    world.insert("bot/0".into(), observation(State::Starting, 1));
    world.insert("bot/1".into(), observation(State::Starting, 1));
    assert_eq!(run(&mut op, &world, 1), [restart("bot/0")]);
    // Before the order was given the agent died; meanwhile the chosen one came up.
    op.steps[0].issued = false;
    world.insert("bot/0".into(), observation(State::Ready, 1));
    assert_eq!(
        run(&mut op, &world, 2),
        [restart("bot/1")],
        "the one that is down goes first"
    );
    assert_eq!(op.steps[0].state, StepState::Pending);
    world.insert("bot/1".into(), observation(State::Ready, 2));
    assert_eq!(run(&mut op, &world, 3), [restart("bot/0")]);
}

#[test]
fn stopping_goes_phase_by_phase() {
    let mut world = fleet(2);
    let mut op = operation(Kind::Stop, StepAction::Stop, 2, 1);
    op.steps[0].phase = 1;
    assert_eq!(run(&mut op, &world, 1), [Effect::Stop("bot/1".to_owned())]);
    world.insert("bot/1".to_owned(), observation(State::Stopping, 1));
    assert_eq!(run(&mut op, &world, 2), []);
    world.insert("bot/1".to_owned(), observation(State::Stopped, 1));
    assert_eq!(run(&mut op, &world, 3), [Effect::Stop("bot/0".to_owned())]);
    world.insert("bot/0".to_owned(), observation(State::Stopped, 1));
    run(&mut op, &world, 4);
    assert_eq!(op.state, OpState::Succeeded);
}

#[test]
fn pause_begins_nothing_new_and_abort_waits_for_what_is_at_work() {
    let mut world = fleet(2);
    let mut op = operation(Kind::Restart, StepAction::Restart, 2, 1);
    run(&mut op, &world, 1);
    core::step(&mut op, 2, Input::Pause);
    world.insert("bot/0".to_owned(), observation(State::Ready, 2));
    assert_eq!(run(&mut op, &world, 3), []);
    assert_eq!(op.state, OpState::Paused);
    core::step(&mut op, 4, Input::Resume);
    assert_eq!(run(&mut op, &world, 5), [restart("bot/1")]);
    core::step(&mut op, 6, Input::Abort);
    run(&mut op, &world, 7);
    assert_eq!(op.state, OpState::Running, "bot/1 is at work");
    world.insert("bot/1".to_owned(), observation(State::Ready, 2));
    run(&mut op, &world, 8);
    assert_eq!(op.state, OpState::Aborted);
}

#[test]
fn one_that_may_have_come_up_unheard_is_not_taken_for_down() {
    let mut fleet = fleet(3);
    // The agent is new, and found one starting.
    let unsure = Observation {
        attached: false,
        unsure: true,
        ..observation(State::Starting, 1)
    };
    fleet.insert("bot/1".to_owned(), unsure);
    let mut op = operation(Kind::Restart, StepAction::Restart, 3, 1);
    let effects = core::step(&mut op, 1, Input::Observe(&fleet));
    assert_eq!(effects, [], "nobody else goes down while it may be down");
    // Another one is down for sure, and goes first.
    fleet.insert("bot/2".to_owned(), observation(State::Backoff, 1));
    let mut op = operation(Kind::Restart, StepAction::Restart, 3, 1);
    let effects = core::step(&mut op, 2, Input::Observe(&fleet));
    assert_eq!(effects, [restart("bot/2")]);
    // It has said that it is still starting: restarting it takes nothing away.
    let mut op = operation(Kind::Restart, StepAction::Restart, 3, 1);
    fleet.insert("bot/1".to_owned(), observation(State::Starting, 1));
    let effects = core::step(&mut op, 3, Input::Observe(&fleet));
    assert_eq!(effects, [restart("bot/1")]);
}

#[test]
fn what_should_go_and_runs_again_is_told_again_by_the_next_life() {
    let mut fleet = fleet(1);
    let mut op = operation(Kind::Apply, StepAction::Remove, 1, 1);
    let effects = core::step(&mut op, 1, Input::Observe(&fleet));
    assert_eq!(effects, [Effect::Forget("bot/0".to_owned())]);
    // The agent dies before it has written that down, and its next life starts the process anew.
    fleet.insert("bot/0".to_owned(), observation(State::Ready, 2));
    let stored = serde_json::to_vec(&op).expect("encodes");
    let mut op: Operation = serde_json::from_slice(&stored).expect("decodes");
    let effects = core::step(&mut op, 2, Input::Observe(&fleet));
    assert_eq!(effects, [Effect::Forget("bot/0".to_owned())]);
    // Elsewhere the coordinator lives on, and is told that the agent is a new one.
    assert_eq!(core::step(&mut op, 3, Input::Observe(&fleet)), []);
    core::step(&mut op, 4, Input::Renewed(&|step| step.object == "bot/0"));
    let effects = core::step(&mut op, 5, Input::Observe(&fleet));
    assert_eq!(effects, [Effect::Forget("bot/0".to_owned())]);
}
