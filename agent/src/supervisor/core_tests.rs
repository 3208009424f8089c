//! The policy under generated sequences, with stale and duplicate inputs on purpose.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tanako_fleet::{
    ProcessKind, ProcessSpec,
    process::{Limits, LogPolicy, Probe, Readiness, RestartPolicy, RestartWhen, StopPolicy},
};

use super::{
    core::{Core, Effect, Exit, Input},
    status::{Desired, State, kind},
};

fn spec() -> ProcessSpec {
    ProcessSpec {
        name: "a/0".parse().expect("a name"),
        kind: ProcessKind::Shard,
        command: vec!["bot".to_owned()],
        directory: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        shard_ids: vec![0],
        shard_count: 1,
        gated: false,
        identify_queue: false,
        ready: Readiness {
            probe: Probe::Worker,
            timeout: Duration::from_secs(30),
        },
        watchdog: Some(Duration::from_secs(10)),
        restart: RestartPolicy {
            when: RestartWhen::Always,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            reset_after: Duration::from_secs(60),
            crash_loop_starts: 5,
            crash_loop_window: Duration::from_secs(60),
        },
        stop: StopPolicy {
            signal: "TERM".to_owned(),
            grace: Duration::from_secs(20),
        },
        limits: Limits::default(),
        logs: LogPolicy {
            max_bytes: 1,
            keep: 1,
        },
    }
}

/// Plays the operating system: what was asked of it, and what really runs.
struct World {
    core: Core,
    now: Instant,
    /// Attempts handed to the spawner.
    spawning: Option<u64>,
    alive: Option<u64>,
    starts: Vec<u64>,
    events: Vec<&'static str>,
    signals: Vec<Effect>,
    waiting: Option<u64>,
}

impl World {
    fn new(spec: ProcessSpec) -> Self {
        Self {
            core: Core::new(Arc::new(spec), fastrand::Rng::with_seed(1)),
            now: Instant::now(),
            spawning: None,
            alive: None,
            starts: Vec::new(),
            events: Vec::new(),
            signals: Vec::new(),
            waiting: None,
        }
    }

    fn input(&mut self, input: Input) {
        let effects = self.core.step(self.now, input);
        for effect in effects {
            match effect {
                Effect::Acquire(attempt) => {
                    assert_eq!(
                        (self.alive, self.spawning, self.waiting),
                        (None, None, None)
                    );
                    self.waiting = Some(attempt);
                }
                Effect::Release(attempt) => {
                    assert_eq!(self.waiting, Some(attempt));
                    self.waiting = None;
                }
                Effect::Spawn(attempt) => {
                    assert_eq!(
                        (self.alive, self.spawning),
                        (None, None),
                        "never two live attempts"
                    );
                    assert!(self.starts.last().is_none_or(|last| *last < attempt));
                    self.waiting = None;
                    self.spawning = Some(attempt);
                    self.starts.push(attempt);
                }
                Effect::Terminate(attempt) | Effect::Kill(attempt) => {
                    assert_eq!(self.alive, Some(attempt), "only what lives is signalled");
                    self.signals.push(effect);
                }
                Effect::Event(_, kind, _, message) => {
                    assert!(!message.is_empty());
                    self.events.push(kind);
                }
            }
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        self.input(Input::Tick);
    }

    /// Lets the next deadline pass.
    fn deadline(&mut self) -> bool {
        let Some(at) = self.core.deadline() else {
            return false;
        };
        self.now = self.now.max(at);
        self.input(Input::Tick);
        true
    }

    fn spawned(&mut self) {
        if let Some(attempt) = self.spawning.take() {
            self.alive = Some(attempt);
            self.input(Input::Spawned(attempt));
        }
    }

    fn exit(&mut self, exit: Exit) {
        if let Some(attempt) = self.alive.take() {
            self.input(Input::Exited(attempt, exit));
        }
    }

    fn up(spec: ProcessSpec) -> Self {
        let mut world = Self::new(spec);
        world.input(Input::Start);
        world.spawned();
        world.input(Input::Ready(1));
        assert_eq!(world.core.state(), State::Ready);
        world
    }
}

#[test]
fn the_first_restart_is_immediate_and_the_guard_gives_up() {
    let mut world = World::up(spec());
    world.exit(Exit::Code(1));
    assert_eq!(world.starts, [1, 2]);
    for _ in 0..3 {
        world.spawned();
        world.exit(Exit::Code(1));
        assert_eq!(world.core.state(), State::Backoff);
        world.deadline();
    }
    assert_eq!(world.core.restarts(), 4);
    world.spawned();
    world.exit(Exit::Code(1));
    assert_eq!(world.core.state(), State::Failed);
    assert!(world.events.contains(&kind::CRASH_LOOP));
    assert!(world.core.detail().contains("exit code 1"));
    assert!(!world.deadline(), "nothing brings it back by itself");
    world.input(Input::Start);
    assert_eq!(world.starts.last(), Some(&6));
}

#[test]
fn a_long_ready_run_resets_the_backoff() {
    let mut world = World::up(spec());
    world.exit(Exit::Code(1));
    world.spawned();
    world.input(Input::Ready(2));
    for _ in 0..7 {
        world.pass(Duration::from_secs(9));
        world.input(Input::Alive(2));
    }
    world.exit(Exit::Code(1));
    assert_eq!(world.starts, [1, 2, 3], "the first failure again");
}

#[test]
fn a_readiness_timeout_is_a_failed_start() {
    let mut world = World::new(spec());
    world.input(Input::Start);
    world.spawned();
    world.pass(Duration::from_secs(29));
    assert_eq!(world.core.state(), State::Starting);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.core.state(), State::Stopping);
    assert!(world.core.detail().contains("not ready within 30 s"));
    // Too late.
    world.input(Input::Ready(1));
    assert_eq!(world.core.state(), State::Stopping);
    world.exit(Exit::Signal(15));
    assert_eq!((world.core.restarts(), world.starts.len()), (1, 2));
    assert!(world.events.contains(&kind::READY_TIMEOUT));
    assert!(!world.events.contains(&kind::READY));
}

#[test]
fn silence_is_noticed_and_a_hung_process_is_killed_soon() {
    let mut world = World::up(spec());
    world.pass(Duration::from_secs(9));
    world.input(Input::Alive(1));
    world.pass(Duration::from_secs(9));
    assert_eq!(world.core.state(), State::Ready);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.core.state(), State::Stopping);
    assert_eq!(world.signals, [Effect::Terminate(1)]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.signals.last(), Some(&Effect::Kill(1)));
    world.exit(Exit::Signal(9));
    assert_eq!(world.starts, [1, 2]);
}

#[test]
fn an_agent_that_was_away_listens_before_it_judges() {
    let mut world = World::up(spec());
    world.now += Duration::from_secs(60);
    world.input(Input::Away);
    world.pass(Duration::from_secs(4));
    assert_eq!(
        world.core.state(),
        State::Ready,
        "nobody was there to hear it"
    );
    world.input(Input::Alive(1));
    world.input(Input::Away);
    world.pass(Duration::from_secs(9));
    assert_eq!(
        world.core.state(),
        State::Ready,
        "and it gets no less time than others"
    );
    world.pass(Duration::from_secs(1));
    assert_eq!(
        world.core.state(),
        State::Stopping,
        "it was silent all the same"
    );

    let mut world = World::new(spec());
    world.input(Input::Start);
    world.spawned();
    world.now += Duration::from_secs(300);
    world.input(Input::Away);
    world.pass(Duration::ZERO);
    world.input(Input::Ready(1));
    assert_eq!(world.core.state(), State::Ready);
}

#[test]
fn what_is_stopped_while_it_is_spawned_is_stopped_after() {
    let mut world = World::new(spec());
    world.input(Input::Start);
    world.input(Input::Stop);
    assert_eq!(world.core.state(), State::Stopping);
    world.spawned();
    assert_eq!(world.signals, [Effect::Terminate(1)]);
    world.exit(Exit::Signal(15));
    assert_eq!(world.core.state(), State::Stopped);
    assert_eq!(world.starts, [1]);
}

#[test]
fn a_stop_at_the_gate_gives_the_place_back() {
    let mut spec = spec();
    spec.gated = true;
    let mut world = World::new(spec);
    world.input(Input::Start);
    assert_eq!((world.waiting, world.starts.len()), (Some(1), 0));
    world.input(Input::Stop);
    world.input(Input::Permit(1, Ok(())));
    assert_eq!(
        (world.core.state(), world.starts.len()),
        (State::Stopped, 0)
    );
    world.input(Input::Start);
    world.input(Input::Permit(1, Ok(())));
    assert!(world.starts.is_empty(), "an old permit opens nothing");
    world.input(Input::Permit(2, Err("budget spent".to_owned())));
    assert_eq!(world.core.state(), State::Backoff);
    assert!(world.core.detail().contains("budget spent"));
}

#[test]
fn a_changed_spec_gives_a_failed_process_a_new_chance() {
    let mut world = World::new(spec());
    world.input(Input::Start);
    for _ in 0..5 {
        if let Some(attempt) = world.spawning.take() {
            world.input(Input::SpawnFailed(attempt, "command not found".to_owned()));
        }
        world.deadline();
    }
    assert_eq!(world.core.state(), State::Failed);
    let starts = world.starts.len();
    world.input(Input::Define(Arc::new(spec()), Desired::Running));
    assert_eq!(world.starts.len(), starts, "nothing has changed");
    let mut changed = spec();
    changed.command = vec!["other".to_owned()];
    world.input(Input::Define(Arc::new(changed), Desired::Running));
    assert_eq!(world.starts.len(), starts + 1);
}

#[test]
fn what_an_agent_writes_down_the_next_goes_on_with() {
    let mut world = World::up(spec());
    world.exit(Exit::Code(1));
    world.spawned();
    world.input(Input::Ready(2));
    let resume = |world: &World, alive| {
        Core::resume(
            Arc::clone(world.core.spec()),
            world.core.memory(),
            alive,
            world.now,
            fastrand::Rng::with_seed(2),
        )
    };
    let (core, effects) = resume(&world, true);
    assert_eq!(
        (core.state(), core.attempt(), core.restarts(), effects.len()),
        (State::Ready, 2, 1, 0)
    );
    let (core, effects) = resume(&world, false);
    assert_eq!(
        (core.state(), core.attempt()),
        (State::Backoff, 2),
        "the second in a row"
    );
    assert!(matches!(effects[0], Effect::Event(_, kind::EXITED, 2, _)));
    world.input(Input::Stop);
    let (core, effects) = resume(&world, true);
    assert_eq!(
        (core.state(), core.desired()),
        (State::Stopping, Desired::Stopped)
    );
    assert_eq!(effects, [Effect::Terminate(2)]);
    let (core, effects) = resume(&world, false);
    assert_eq!((core.state(), effects.len()), (State::Stopped, 0));
}

/// One move of a generated game.
#[derive(Debug, Clone)]
enum Move {
    Operator(u8),
    Spawned,
    SpawnFailed,
    Exit(u8),
    /// An input of the current attempt, whatever state it is in.
    Say(u8),
    /// An input of another attempt; some are stale, some never were.
    Stale(u8, u8),
    /// The latest answer again.
    Twice(u8),
    Permit(bool),
    Pass(u32),
    Deadline,
    /// The agent dies and comes back.
    Resume,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => (0_u8..6).prop_map(Move::Operator),
        4 => Just(Move::Spawned),
        1 => Just(Move::SpawnFailed),
        3 => (0_u8..4).prop_map(Move::Exit),
        3 => (0_u8..6).prop_map(Move::Say),
        3 => (0_u8..9, 0_u8..4).prop_map(|(what, back)| Move::Stale(what, back)),
        2 => (0_u8..3).prop_map(Move::Twice),
        2 => any::<bool>().prop_map(Move::Permit),
        2 => (0_u32..40_000).prop_map(Move::Pass),
        4 => Just(Move::Deadline),
        1 => Just(Move::Resume),
    ];
    prop::collection::vec(one, 1..120)
}

fn say(attempt: u64, what: u8) -> Input {
    match what {
        0 => Input::Ready(attempt),
        1 => Input::NotReady(attempt, "why".to_owned()),
        2 => Input::Alive(attempt),
        3 => Input::Draining(attempt),
        4 => Input::OverLimit(attempt, "too much".to_owned()),
        5 => Input::Spawned(attempt),
        6 => Input::SpawnFailed(attempt, "why".to_owned()),
        7 => Input::Exited(attempt, Exit::Code(1)),
        _ => Input::Permit(attempt, Ok(())),
    }
}

fn exit(what: u8) -> Exit {
    match what {
        0 => Exit::Code(0),
        1 => Exit::Code(1),
        2 => Exit::Signal(9),
        _ => Exit::Unknown,
    }
}

fn play(world: &mut World, one: Move) {
    let attempt = world.core.attempt();
    match one {
        Move::Operator(0) => {
            world.input(Input::Start);
            assert_ne!(world.core.state(), State::Failed);
            assert_ne!(world.core.state(), State::Stopped);
            assert_ne!(
                world.core.state(),
                State::Backoff,
                "a manual start never waits"
            );
        }
        Move::Operator(1) => world.input(Input::Stop),
        Move::Operator(2) => {
            world.input(Input::Restart(attempt));
            let replaced = world.core.attempt() > attempt || world.core.is_live();
            assert!(replaced, "{}", world.core.state());
        }
        Move::Operator(3) => {
            let spec = Arc::clone(world.core.spec());
            world.input(Input::Define(spec, Desired::Running));
        }
        Move::Operator(4) => {
            let mut spec = (**world.core.spec()).clone();
            spec.command.push("more".to_owned());
            let desired = world.core.desired();
            world.input(Input::Define(Arc::new(spec), desired));
        }
        Move::Operator(_) => {
            let spec = Arc::clone(world.core.spec());
            world.input(Input::Define(spec, Desired::Stopped));
        }
        Move::Spawned => world.spawned(),
        Move::SpawnFailed => {
            if let Some(attempt) = world.spawning.take() {
                world.input(Input::SpawnFailed(attempt, "why".to_owned()));
            }
        }
        Move::Exit(what) => world.exit(exit(what)),
        Move::Say(what) if world.alive == Some(attempt) => world.input(say(attempt, what.min(5))),
        Move::Say(_) => {}
        Move::Stale(what, back) => {
            let old = attempt.wrapping_sub(u64::from(back) + 1);
            world.input(say(old, what));
            let (before, starts) = (world.core.state(), world.starts.len());
            world.input(Input::Restart(old));
            assert_eq!((world.core.state(), world.starts.len()), (before, starts));
        }
        // What was answered already is answered again.
        Move::Twice(0) if world.alive.is_some() => world.input(Input::Spawned(attempt)),
        Move::Twice(1) if world.alive.is_none() && world.spawning.is_none() => {
            world.input(Input::Exited(attempt, Exit::Code(1)));
        }
        Move::Twice(_) if world.alive.is_some() => world.input(Input::Permit(attempt, Ok(()))),
        Move::Twice(_) => {}
        Move::Permit(open) => {
            if let Some(attempt) = world.waiting.take() {
                let answer = if open { Ok(()) } else { Err("no".to_owned()) };
                world.input(Input::Permit(attempt, answer));
            }
        }
        Move::Pass(ms) => world.pass(Duration::from_millis(u64::from(ms))),
        Move::Deadline => {
            world.deadline();
        }
        Move::Resume => {
            // Starts under way at its death are found running or are lost.
            if world.spawning.is_some() {
                world.spawned();
            }
            world.waiting = None;
            let (core, effects) = Core::resume(
                Arc::clone(world.core.spec()),
                world.core.memory(),
                world.alive.is_some(),
                world.now,
                fastrand::Rng::with_seed(3),
            );
            assert_eq!(core.desired(), world.core.desired());
            assert!(core.attempt() >= world.core.attempt());
            world.core = core;
            let now = world.now;
            for effect in effects {
                match effect {
                    Effect::Spawn(attempt) => {
                        assert_eq!((world.alive, world.spawning), (None, None));
                        world.spawning = Some(attempt);
                        world.starts.push(attempt);
                    }
                    Effect::Acquire(attempt) => world.waiting = Some(attempt),
                    Effect::Terminate(attempt) => assert_eq!(world.alive, Some(attempt)),
                    Effect::Event(..) => {}
                    other => panic!("{other:?} at {now:?}"),
                }
            }
        }
    }
}

/// What must hold after every move.
fn check(world: &World) {
    let (core, now) = (&world.core, world.now);
    let state = core.state();
    if core.desired() == Desired::Stopped {
        assert!(
            matches!(state, State::Stopped | State::Stopping | State::Draining),
            "stopped stays stopped: {state}"
        );
    } else if state == State::Stopped {
        assert!(
            core.detail().contains("finished") || core.attempt() == 0,
            "wanted, and stopped without a reason"
        );
    }
    if state == State::Failed {
        assert!(!core.detail().is_empty(), "failed without a reason");
    }
    if let Some(at) = core.next_start_at() {
        let longest = core.spec().restart.backoff_max;
        assert!(at <= now + longest, "backoff is bounded");
    }
    assert_eq!(
        core.is_live(),
        world.alive.is_some() || world.spawning.is_some(),
        "{state}"
    );
    // Nothing that waits for time waits for ever.
    let needs_time = matches!(state, State::Backoff)
        || (world.alive.is_some() && matches!(state, State::Stopping | State::Starting));
    assert!(!needs_time || core.deadline().is_some(), "{state}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_rules_hold_in_every_game(
        moves in moves(),
        gated in any::<bool>(),
        when in prop_oneof![
            4 => Just(RestartWhen::Always),
            1 => Just(RestartWhen::OnFailure),
            1 => Just(RestartWhen::Never),
        ],
        started in any::<bool>(),
        guard in 0_u32..6,
    ) {
        let mut spec = spec();
        spec.gated = gated;
        spec.restart.when = when;
        spec.restart.crash_loop_starts = guard;
        if started {
            spec.ready.probe = Probe::Started { after: Duration::from_secs(2) };
        }
        let mut world = World::new(spec);
        for one in moves {
            play(&mut world, one);
            check(&world);
        }
        // What is wanted comes back, or says why not; what is not wanted goes.
        for _ in 0..40 {
            match (world.core.state(), world.core.desired()) {
                (State::Failed, Desired::Running) | (State::Stopped, _) => break,
                (State::Ready | State::Running, Desired::Running) => break,
                _ => {}
            }
            if let Some(attempt) = world.waiting.take() {
                world.input(Input::Permit(attempt, Ok(())));
            } else if world.spawning.is_some() {
                world.spawned();
            } else if world.alive.is_some()
                && matches!(world.core.state(), State::Stopping | State::Draining)
            {
                world.exit(Exit::Signal(9));
            } else if world.alive.is_some() {
                world.input(Input::Ready(world.core.attempt()));
            } else {
                prop_assert!(world.deadline(), "stuck in {}", world.core.state());
            }
            check(&world);
        }
        match world.core.desired() {
            Desired::Running => prop_assert!(
                world.core.state() != State::Stopped || world.core.detail().contains("finished")
                    || world.core.attempt() == 0
            ),
            Desired::Stopped => prop_assert_eq!(world.core.state(), State::Stopped),
        }
        // And by hand it always starts.
        let starts = world.starts.len();
        let was_live = world.core.is_live();
        world.input(Input::Start);
        if let Some(attempt) = world.waiting.take() {
            world.input(Input::Permit(attempt, Ok(())));
        }
        prop_assert!(was_live || world.starts.len() == starts + 1);
    }
}
