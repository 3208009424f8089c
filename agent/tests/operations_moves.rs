//! Moves of a process between two hosts, against orders that come late, twice or never, observations that
//! are old, coordinators that die, and aborts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tanako_agent::{
    operations::{
        Kind, OpState, Operation, Step, StepState,
        core::{self, Change, Effect, Input, Observation, Observed, Request, at},
        moving,
    },
    supervisor::State,
};
use tanako_fleet::rollout::Sample;

const NAME: &str = "x/0";
const TIMEOUT_MS: i64 = 60_000;
/// The one of the process before it moves.
const ATTEMPT: u64 = 7;

/// What a host has of the process.
#[derive(Debug, Clone, PartialEq)]
struct Proc {
    state: State,
    attempt: u64,
    /// Whether that attempt was started here.
    begun: bool,
}

impl Proc {
    /// It had that number elsewhere.
    fn count_from(&mut self, attempt: u64) {
        if !self.live() && attempt > self.attempt {
            (self.attempt, self.begun) = (attempt, false);
        }
    }

    fn live(&self) -> bool {
        self.state.is_live()
    }
}

/// Two hosts, the store, and what is on its way.
#[derive(Debug)]
struct World {
    now: i64,
    /// As the coordinator has it in memory.
    op: Operation,
    /// As the store has it, with the assignment.
    stored: (Operation, &'static str),
    hosts: BTreeMap<&'static str, Option<Proc>>,
    /// Where the sessions are.
    sessions: &'static str,
    /// What may be observed: the latest last.
    seen: Vec<Observed>,
    orders: Vec<Effect>,
    answers: Vec<Result<i64, &'static str>>,
    wanted: bool,
}

fn host(name: &str) -> &'static str {
    if name == "a" { "a" } else { "b" }
}

fn observation(proc: &Proc, now: i64) -> Observation {
    Observation {
        state: proc.state,
        ready: proc.state == State::Ready,
        attempt: proc.attempt,
        begun: proc.begun,
        last_seen: if proc.state == State::Ready { now } else { 0 },
        detail: String::new(),
        standby: false,
        attached: proc.state == State::Ready,
        newest_handled: 0,
        sample: Sample::default(),
        unsure: false,
        outdated: false,
    }
}

impl World {
    fn new(wanted: bool, lost: bool) -> Self {
        let mut op = Operation::new(1, Kind::Move, 1_000);
        let mut step = Step::moving(NAME, "a", "b", TIMEOUT_MS);
        step.was_stopped = !wanted;
        step.lost = lost;
        op.steps = vec![step];
        let state = match (wanted, lost) {
            (true, false) => State::Ready,
            _ => State::Stopped,
        };
        let own = Proc {
            state,
            attempt: ATTEMPT,
            begun: true,
        };
        let hosts = BTreeMap::from([("a", (!lost).then_some(own)), ("b", None)]);
        let mut world = Self {
            now: 1_000,
            stored: (op.clone(), "a"),
            op,
            hosts,
            sessions: "a",
            seen: Vec::new(),
            orders: Vec::new(),
            answers: Vec::new(),
            wanted,
        };
        world.look();
        world
    }

    fn look(&mut self) {
        let mut observed = Observed::new();
        for (host, proc) in &self.hosts {
            let Some(proc) = proc else { continue };
            let seen = observation(proc, self.now);
            if *host == self.stored.1 {
                observed.insert(NAME.to_owned(), seen.clone());
            }
            observed.insert(at(NAME, host), seen);
        }
        self.seen.push(observed);
    }

    /// One round of the coordinator; `old`: by how much its picture is behind.
    fn round(&mut self, old: usize) {
        let index = self.seen.len().saturating_sub(1 + old);
        let observed = self.seen[index].clone();
        let effects = core::step(&mut self.op, self.now, Input::Observe(&observed));
        if effects.is_empty() && !self.op.state.is_ended() {
            return;
        }
        // Written down, with the assignment, before anything is carried out.
        let mut place = self.stored.1;
        for effect in &effects {
            if let Effect::Document(Change::Move(_, to)) = effect {
                place = host(to);
            }
        }
        self.stored = (self.op.clone(), place);
        self.orders.extend(effects);
    }

    /// The coordinator dies; the next one has what is stored. Orders that are on their way arrive or not.
    fn crash(&mut self, arrive: bool) {
        let bytes = serde_json::to_vec(&self.stored.0).expect("is written");
        self.op = serde_json::from_slice(&bytes).expect("is read");
        self.answers.clear();
        if !arrive {
            self.orders.clear();
        }
        self.reconcile();
    }

    /// A term begins: hosts are told what is theirs.
    fn reconcile(&mut self) {
        let step = &self.op.steps[0];
        let moving = step.state == StepState::Running;
        let place = self.stored.1;
        for (host, proc) in &mut self.hosts {
            if *host != place && !moving {
                *proc = None;
            }
        }
        if !moving && self.wanted {
            self.start(place);
        }
    }

    fn start(&mut self, host: &'static str) {
        let proc = self.hosts.entry(host).or_default();
        let proc = proc.get_or_insert(Proc {
            state: State::Stopped,
            attempt: 0,
            begun: false,
        });
        if !proc.live() {
            proc.state = State::Starting;
            proc.attempt += 1;
            proc.begun = true;
        }
    }

    /// A host carries out the order at `index`.
    fn carry_out(&mut self, index: usize) {
        if self.orders.is_empty() {
            return;
        }
        let order = self.orders.remove(index % self.orders.len());
        match order {
            Effect::Prepare(_, to, min) => {
                let proc = self.hosts.entry(host(&to)).or_default();
                let proc = proc.get_or_insert(Proc {
                    state: State::Stopped,
                    attempt: 0,
                    begun: false,
                });
                proc.count_from(min);
            }
            Effect::StopAt(_, from) => {
                if let Some(Some(proc)) = self.hosts.get_mut(host(&from))
                    && proc.live()
                {
                    proc.state = State::Stopping;
                }
            }
            Effect::Carry(_, from, to) => {
                let there = self.hosts[host(&to)].is_some();
                let free = self.hosts[host(&from)]
                    .as_ref()
                    .is_none_or(|proc| !proc.live());
                if there && free {
                    self.sessions = host(&to);
                    self.answers.push(Ok(1));
                } else {
                    self.answers.push(Err("not now"));
                }
            }
            Effect::Recall(_, to) => {
                if let Some(Some(proc)) = self.hosts.get_mut(host(&to)) {
                    // The sessions say which attempt had them.
                    proc.count_from(ATTEMPT);
                    self.sessions = host(&to);
                    self.answers.push(Ok(0));
                } else {
                    self.answers.push(Err("not there"));
                }
            }
            Effect::Depart(_, from) => {
                // By the time it is carried out the process may be this host's again.
                if self.stored.1 != host(&from) {
                    self.hosts.insert(host(&from), None);
                }
            }
            Effect::Start(_) => self.start(self.stored.1),
            Effect::Document(_) => {}
            other => panic!("not asked for in a move: {other:?}"),
        }
    }

    /// Time passes on the hosts.
    fn pass(&mut self, ms: i64) {
        self.now += ms;
        for proc in self.hosts.values_mut().flatten() {
            proc.state = match proc.state {
                State::Starting => State::Ready,
                State::Stopping => State::Stopped,
                other => other,
            };
        }
        self.look();
    }

    /// A host did not do what it was asked for, or did it and did not say so.
    fn refuse(&mut self, index: usize) {
        if !self.orders.is_empty() {
            let at = index % self.orders.len();
            match self.orders[at] {
                // The answers to these are others.
                Effect::Carry(..) | Effect::Recall(..) | Effect::Document(_) => return,
                _ => drop(self.orders.remove(at)),
            }
        }
        let input = Input::Refused {
            object: NAME,
            reason: "host b does not answer",
        };
        core::step(&mut self.op, self.now, input);
    }

    /// The host that it goes to is lost, and there is no other.
    fn lose_target(&mut self) {
        let open: Vec<usize> = moving::targets(&self.op).map(|(index, _)| index).collect();
        for index in open {
            moving::redirect(&mut self.op, index, self.now, None);
        }
    }

    fn answer(&mut self) {
        if let Some(result) = self.answers.pop() {
            let input = Input::Answered {
                process: NAME,
                attempt: 0,
                request: Request::Carry,
                result,
            };
            core::step(&mut self.op, self.now, input);
        }
    }

    fn check(&self) {
        let live: Vec<_> = self
            .hosts
            .iter()
            .filter(|(_, proc)| proc.as_ref().is_some_and(Proc::live))
            .map(|(host, _)| *host)
            .collect();
        assert!(live.len() <= 1, "two owners: {self:#?}");
        if let [host] = live[..] {
            assert_eq!(
                host, self.stored.1,
                "it runs where it does not belong: {self:#?}"
            );
            assert!(
                host == "a" || self.sessions == "b",
                "started without its sessions: {self:#?}"
            );
        }
    }

    /// Everything that is on its way arrives, and nothing goes wrong any more.
    fn settle(&mut self) {
        for _ in 0..400 {
            while !self.orders.is_empty() {
                self.carry_out(0);
                self.check();
            }
            self.answer();
            self.pass(200);
            self.round(0);
            self.check();
            if self.op.state.is_ended() && self.orders.is_empty() {
                break;
            }
        }
        assert!(self.op.state.is_ended(), "it never ends: {self:#?}");
        self.reconcile();
        self.pass(200);
        self.pass(200);
        self.check();
        for (host, proc) in &self.hosts {
            let runs = proc.as_ref().is_some_and(|proc| proc.state == State::Ready);
            let lost = self.op.steps[0].lost && self.stored.1 == "a";
            assert_eq!(
                runs,
                *host == self.stored.1 && self.wanted && !lost || runs && lost,
                "{self:#?}"
            );
        }
        let moved = self.op.state == OpState::Succeeded;
        assert!(!moved || self.stored.1 == "b", "{self:#?}");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Round(usize),
    Order(usize),
    Again(usize),
    Answer,
    Pass(i64),
    Crash(bool),
    Abort,
    Refuse(usize),
    LoseTarget,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0usize..3).prop_map(Act::Round),
        6 => any::<usize>().prop_map(Act::Order),
        1 => any::<usize>().prop_map(Act::Again),
        4 => Just(Act::Answer),
        4 => (50i64..3_000).prop_map(Act::Pass),
        1 => any::<bool>().prop_map(Act::Crash),
        1 => Just(Act::Abort),
        2 => any::<usize>().prop_map(Act::Refuse),
        1 => Just(Act::LoseTarget),
    ];
    prop::collection::vec(act, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_process_has_one_owner_whatever_goes_wrong(acts in acts(), wanted: bool) {
        let mut world = World::new(wanted, false);
        for act in acts {
            match act {
                Act::Round(old) => world.round(old),
                Act::Order(index) => world.carry_out(index),
                Act::Again(index) => {
                    // An order whose answer was lost is given once more.
                    if !world.orders.is_empty() {
                        let order = world.orders[index % world.orders.len()].clone();
                        if !matches!(order, Effect::Start(_)) {
                            world.orders.insert(0, order);
                        }
                    }
                }
                Act::Answer => world.answer(),
                Act::Pass(ms) => world.pass(ms),
                Act::Crash(arrive) => world.crash(arrive),
                Act::Abort => {
                    core::step(&mut world.op, world.now, Input::Abort);
                }
                Act::Refuse(index) => world.refuse(index),
                Act::LoseTarget => world.lose_target(),
            }
            world.check();
        }
        world.settle();
    }
}

#[test]
fn a_move_goes_step_by_step_and_tells_where_it_is() {
    let mut world = World::new(true, false);
    world.settle();
    assert_eq!(world.op.state, OpState::Succeeded);
    let step = &world.op.steps[0];
    assert_eq!(
        (step.state, step.message.as_str()),
        (StepState::Succeeded, "ready on b")
    );
    let there = world.hosts["b"].clone().expect("is there");
    assert_eq!(there.attempt, 8, "attempts go on where they were");
    assert_eq!(world.hosts["a"], None);
}

#[test]
fn from_a_lost_host_nothing_is_asked() {
    let mut world = World::new(true, true);
    world.round(0);
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.extend(world.orders.clone());
        while !world.orders.is_empty() {
            world.carry_out(0);
        }
        world.answer();
        world.pass(200);
        world.round(0);
    }
    assert_eq!(world.op.steps[0].state, StepState::Succeeded);
    assert!(
        asked
            .iter()
            .any(|effect| matches!(effect, Effect::Recall(..)))
    );
    assert!(
        !asked
            .iter()
            .any(|effect| matches!(effect, Effect::StopAt(..) | Effect::Carry(..)))
    );
}

#[test]
fn what_is_not_started_yet_has_not_failed_to_start() {
    // The agent that decides has never heard of the lost host.
    let mut world = World::new(true, true);
    for _ in 0..20 {
        // It looks twice before anybody has done what it asks.
        world.round(0);
        world.round(0);
        while !world.orders.is_empty() {
            world.carry_out(0);
        }
        world.answer();
        world.pass(200);
    }
    let step = &world.op.steps[0];
    assert_eq!(step.state, StepState::Succeeded, "{}", step.message);
    let there = world.hosts["b"].clone().expect("is there");
    assert_eq!(there.attempt, ATTEMPT + 1);
}

#[test]
fn a_host_that_is_back_is_asked_like_any_other() {
    let mut world = World::new(true, true);
    world.round(0);
    // Its agent has what it had: the assignment has not been changed.
    let own = Proc {
        state: State::Ready,
        attempt: 9,
        begun: true,
    };
    world.hosts.insert("a", Some(own));
    world.look();
    moving::found(&mut world.op, world.now, |host| host == "a");
    assert!(!world.op.steps[0].lost);
    world.settle();
    assert_eq!(world.op.state, OpState::Succeeded, "{:#?}", world.op);
    assert_eq!(world.hosts["a"], None);
    let there = world.hosts["b"].clone().expect("is there");
    assert_eq!(there.state, State::Ready);
}

#[test]
fn what_the_old_host_does_not_hand_out_comes_from_the_store() {
    let mut world = World::new(true, false);
    world.round(0);
    let mut recalled = false;
    for _ in 0..200 {
        while !world.orders.is_empty() {
            if matches!(world.orders[0], Effect::Carry(..)) {
                world.orders.remove(0);
                world.answers.push(Err("host a does not answer"));
                continue;
            }
            recalled |= matches!(world.orders[0], Effect::Recall(..));
            world.carry_out(0);
        }
        world.answer();
        world.pass(200);
        world.round(0);
        world.check();
        if world.op.state.is_ended() {
            break;
        }
    }
    assert!(recalled);
    assert_eq!(world.op.state, OpState::Succeeded, "{:#?}", world.op);
}

#[test]
fn a_process_that_cannot_be_prepared_stays_where_it_is() {
    let mut world = World::new(true, false);
    for _ in 0..(TIMEOUT_MS / 500 + 10) {
        world.round(0);
        // The other host takes nothing.
        world
            .orders
            .retain(|order| !matches!(order, Effect::Prepare(..)));
        while !world.orders.is_empty() {
            world.carry_out(0);
        }
        world.pass(500);
    }
    assert_eq!(world.op.state, OpState::Failed);
    assert!(
        world.op.message.contains("stays on a"),
        "{}",
        world.op.message
    );
    let own = world.hosts["a"].clone().expect("is there");
    assert_eq!(
        (own.state, own.attempt),
        (State::Ready, 7),
        "it was not touched"
    );
}

#[test]
fn a_process_is_not_left_between_two_hosts_when_one_refuses() {
    let mut world = World::new(true, false);
    world.round(0);
    world.carry_out(0);
    world.pass(200);
    world.round(0);
    // Asked to stop, and no answer.
    assert!(
        matches!(world.orders[0], Effect::StopAt(..)),
        "{:?}",
        world.orders
    );
    world.refuse(0);
    world.round(0);
    assert_eq!(world.orders, [], "not again at once");
    world.settle();
    assert_eq!(world.op.state, OpState::Succeeded, "{:#?}", world.op);
}

#[test]
fn a_process_whose_target_is_lost_goes_to_another_host_or_stays() {
    // On its way already, stopped on `a`.
    let stopped = || {
        let mut world = World::new(true, false);
        for _ in 0..2 {
            world.round(0);
            world.carry_out(0);
            world.pass(200);
            world.pass(200);
        }
        world.round(0);
        assert_eq!(world.op.steps[0].stage, moving::CARRYING);
        // What was asked of the lost host stays without an answer.
        world.orders.clear();
        world
    };
    let mut world = stopped();
    world.lose_target();
    world.settle();
    assert_eq!(world.op.state, OpState::Failed);
    assert!(
        world.op.message.contains("stays on a: b is lost"),
        "{}",
        world.op.message
    );
    let own = world.hosts["a"].clone().expect("is there");
    assert_eq!(own.state, State::Ready);

    let mut world = stopped();
    moving::redirect(&mut world.op, 0, world.now, Some("c".to_owned()));
    let effects = core::step(&mut world.op, world.now, Input::Observe(&Observed::new()));
    let prepared = Effect::Prepare(NAME.to_owned(), "c".to_owned(), 7);
    assert_eq!(effects, [prepared]);
}

#[test]
fn what_a_failover_has_moved_is_not_moved_again() {
    let mut world = World::new(true, false);
    world.round(0);
    let host_of = |host: &'static str| move |_: &str| Some(host.to_owned());
    let nothing = moving::settle(&mut world.op, world.now, host_of("a"));
    assert_eq!(nothing, [], "it is where it should be");
    let effects = moving::settle(&mut world.op, world.now, host_of("c"));
    let step = &world.op.steps[0];
    assert_eq!(
        (step.state, &*step.message),
        (StepState::Succeeded, "is on c already")
    );
    let prepared = Effect::Depart(NAME.to_owned(), "b".to_owned());
    assert_eq!(effects, [prepared], "what was prepared there is dropped");

    // Moved on from where it was starting: it is looked after there.
    let mut world = World::new(true, false);
    world.round(0);
    world.op.steps[0].stage = moving::STARTING;
    assert_eq!(
        moving::settle(&mut world.op, world.now, host_of("c")),
        [],
        "nothing to drop"
    );
    assert_eq!(world.op.steps[0].to, "c");
    assert_eq!(world.op.steps[0].state, StepState::Running);
}
