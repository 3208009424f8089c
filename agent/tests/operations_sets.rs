//! Two sets of processes under generated sequences: blue-green, reshard and rollouts of a new spec, with
//! observations that are stale, answers that come late or twice or never, bots that crash at any step, agents
//! that start anew between any two steps, aborts at any time.
//!
//! The world keeps its own book of who is connected, who handles what, and which spec each process runs by,
//! and judges by that, never by what the operation believes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tanako_agent::{
    operations::{
        Kind, OpState, Operation, Step, StepAction, StepState,
        core::{self, Change, Effect, Input, Observation, Observed, Request},
        duties,
        watching::Watch,
    },
    supervisor::State,
};
use tanako_fleet::rollout::{Case, Sample, Strategy as Bringing};
use tanako_proto::worker::v1::{Cut, Duty};

const TIMEOUT_MS: i64 = 20_000;

/// One process as it really is.
#[derive(Debug, Clone)]
struct Proc {
    state: State,
    attempt: u64,
    duty: Duty,
    cut: Option<Cut>,
    /// All shards are connected.
    connected: bool,
    newest_handled: i64,
    last_seen: i64,
    /// The spec that it was started from.
    spec: u32,
    /// The spec that its next attempt is started from.
    defined: u32,
}

/// What was sent to a worker and not yet done.
#[derive(Debug, Clone)]
struct Mail {
    process: String,
    attempt: u64,
    request: Request,
    terms: (Duty, Option<Cut>),
}

struct World {
    now: i64,
    procs: BTreeMap<String, Proc>,
    /// Who has the sessions of a pair, and may therefore connect.
    holder: BTreeMap<usize, String>,
    mail: Vec<Mail>,
    answers: Vec<(String, u64, Request, Result<i64, String>)>,
    /// What was seen, and the spec that each process was to have at that time.
    past: Vec<(Observed, BTreeMap<String, u32>)>,
    /// What is said of the fleet may be late, and never older than what was said before: each host's word
    /// has a number.
    heard: usize,
    duties: BTreeMap<String, (Duty, Option<Cut>)>,
    /// Time in each event's id to the sets that have handled it.
    handled: BTreeMap<i64, BTreeSet<bool>>,
    /// The present spec, and what still runs by another.
    head: u32,
    held: BTreeMap<String, u32>,
    /// old = false, new = true; the active generation.
    active_is_new: bool,
    dropped: bool,
    shadow: bool,
}

fn old(n: usize) -> String {
    format!("bot/{n}")
}

fn new(n: usize) -> String {
    format!("bot/g2-{n}")
}

fn pair_of(name: &str) -> usize {
    name.rsplit(['/', '-'])
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn is_new(name: &str) -> bool {
    name.contains("g2-")
}

impl Proc {
    /// Another attempt begins.
    fn begin(&mut self) {
        self.attempt += 1;
        self.state = State::Starting;
        self.connected = false;
        self.spec = self.defined;
    }
}

impl World {
    fn new(pairs: usize, shadow: bool) -> Self {
        let procs: BTreeMap<String, Proc> = (0..pairs)
            .map(|n| {
                let proc = Proc {
                    state: State::Ready,
                    attempt: 1,
                    duty: Duty::Active,
                    cut: None,
                    connected: true,
                    newest_handled: 0,
                    last_seen: 999_000,
                    spec: 1,
                    defined: 1,
                };
                (old(n), proc)
            })
            .collect();
        let mut world = Self {
            now: 1_000_000,
            procs,
            holder: (0..pairs).map(|n| (n, old(n))).collect(),
            mail: Vec::new(),
            answers: Vec::new(),
            past: Vec::new(),
            heard: 0,
            duties: BTreeMap::new(),
            handled: BTreeMap::new(),
            head: 1,
            held: BTreeMap::new(),
            active_is_new: false,
            dropped: false,
            shadow,
        };
        world.remember();
        world
    }

    fn observed(&self) -> Observed {
        self.procs
            .iter()
            .map(|(name, proc)| {
                let up = proc.state == State::Ready;
                let observation = Observation {
                    state: proc.state,
                    ready: up && proc.connected,
                    attempt: proc.attempt,
                    begun: true,
                    last_seen: proc.last_seen,
                    detail: String::new(),
                    standby: up && proc.duty == Duty::Warm && !proc.connected,
                    attached: up,
                    newest_handled: proc.newest_handled,
                    sample: Sample::default(),
                    unsure: false,
                    outdated: proc.spec != self.spec_of(name),
                };
                (name.clone(), observation)
            })
            .collect()
    }

    fn remember(&mut self) {
        let specs = self
            .procs
            .keys()
            .map(|name| (name.clone(), self.spec_of(name)));
        self.past.push((self.observed(), specs.collect()));
    }

    /// What was seen `back` moments ago, as the coordinator takes it now.
    fn late(&mut self, back: usize) -> Observed {
        let newest = self.past.len().saturating_sub(1);
        self.heard = newest.saturating_sub(back).max(self.heard);
        let (mut seen, specs) = self.past[self.heard].clone();
        for (name, one) in &mut seen {
            one.outdated |= specs[name] != self.spec_of(name);
        }
        seen
    }

    fn spec_of(&self, name: &str) -> u32 {
        self.held.get(name).copied().unwrap_or(self.head)
    }

    /// A process has come up: it says hello, and does what its welcome says.
    fn welcome(&mut self, name: &str) {
        let (duty, cut) = self
            .duties
            .get(name)
            .copied()
            .unwrap_or((Duty::Active, None));
        let holds = self.shadow || self.holder[&pair_of(name)] == name;
        let now = self.now;
        let proc = self.procs.get_mut(name).expect("known");
        proc.state = State::Ready;
        proc.duty = duty;
        proc.cut = cut;
        proc.connected = duty != Duty::Warm && holds;
        proc.last_seen = now;
    }

    fn start(&mut self, name: &str) {
        let defined = self.spec_of(name);
        let proc = self.procs.entry(name.to_owned()).or_insert(Proc {
            state: State::Stopped,
            attempt: 0,
            duty: Duty::Active,
            cut: None,
            connected: false,
            newest_handled: 0,
            last_seen: 0,
            spec: 0,
            defined: 0,
        });
        proc.defined = defined;
        if matches!(proc.state, State::Stopped | State::Failed | State::Backoff) {
            proc.begin();
        }
    }

    fn crash(&mut self, name: &str) {
        if let Some(proc) = self.procs.get_mut(name)
            && proc.state == State::Ready
        {
            proc.state = State::Backoff;
            proc.connected = false;
        }
    }

    fn carry_out(&mut self, op: &Operation, effects: Vec<Effect>) {
        for effect in &effects {
            if let Effect::Document(change) = effect {
                match change {
                    Change::Release(name) => {
                        self.held.remove(name);
                    }
                    Change::TurnBack => {
                        let head = self.head;
                        for name in self.procs.keys() {
                            self.held.entry(name.clone()).or_insert(head);
                        }
                        self.head = 1;
                        self.held.retain(|_, spec| *spec != 1);
                    }
                    Change::Adopt(_) => self.active_is_new = true,
                    Change::Drop(_) => self.dropped = true,
                    Change::Move(..) => panic!("nothing moves here: {change:?}"),
                }
            }
        }
        self.duties = duties::assignments(op)
            .into_iter()
            .map(|(name, one)| (name, (one.duty, one.cut)))
            .collect();
        for effect in effects {
            match effect {
                Effect::Start(name) => self.start(&name),
                Effect::Restart(name, attempt) => {
                    self.start(&name);
                    if let Some(proc) = self.procs.get_mut(&name)
                        && proc.attempt == attempt
                    {
                        proc.begin();
                    }
                }
                Effect::Stop(name) => {
                    if let Some(proc) = self.procs.get_mut(&name) {
                        proc.state = State::Stopped;
                        proc.connected = false;
                    }
                }
                Effect::Forget(name) => {
                    self.procs.remove(&name);
                }
                Effect::Handover(_, to, _) => {
                    self.holder.insert(pair_of(&to), to);
                }
                Effect::StandDown(name, attempt) => self.send(name, attempt, Request::StandDown),
                Effect::TakeOver(name, attempt) => self.send(name, attempt, Request::TakeOver),
                Effect::Share(name, attempt, at) => {
                    self.send(name, attempt, Request::Share { at });
                }
                Effect::Document(_) => {}
                other => panic!("not asked for here: {other:?}"),
            }
        }
        self.remember();
    }

    fn send(&mut self, process: String, attempt: u64, request: Request) {
        let terms = self
            .duties
            .get(&process)
            .copied()
            .unwrap_or((Duty::Active, None));
        self.mail.push(Mail {
            process,
            attempt,
            request,
            terms,
        });
    }

    /// A worker does what it was asked for, if it still can.
    fn deliver(&mut self, at: usize) {
        if self.mail.is_empty() {
            return;
        }
        // Of one process in order, as on a stream.
        let chosen = self.mail[at % self.mail.len()].process.clone();
        let first = self
            .mail
            .iter()
            .position(|mail| mail.process == chosen)
            .expect("there");
        let mail = self.mail.remove(first);
        let (now, holder) = (self.now, self.holder.get(&pair_of(&mail.process)).cloned());
        let shadow = self.shadow;
        let Some(proc) = self.procs.get_mut(&mail.process) else {
            return;
        };
        if proc.attempt != mail.attempt || proc.state != State::Ready {
            self.answers.push((
                mail.process,
                mail.attempt,
                mail.request,
                Err("gone".to_owned()),
            ));
            return;
        }
        match mail.request {
            Request::StandDown => {
                proc.connected = false;
                proc.duty = Duty::Warm;
            }
            Request::TakeOver => {
                proc.duty = Duty::Active;
                proc.connected = holder.as_deref() == Some(mail.process.as_str());
            }
            Request::Share { .. } => (proc.duty, proc.cut) = mail.terms,
            Request::Carry => panic!("nothing moves here"),
        }
        proc.last_seen = now;
        let newest = proc.newest_handled;
        assert!(!shadow || mail.request != Request::TakeOver);
        self.answers
            .push((mail.process.clone(), mail.attempt, mail.request, Ok(newest)));
        self.remember();
    }

    /// An event reaches every set that is connected; one process of a set gets it.
    fn event(&mut self, seed: usize) {
        let id = self.now;
        for set in [false, true] {
            let names: Vec<String> = self
                .procs
                .iter()
                .filter(|(name, proc)| is_new(name) == set && proc.connected)
                .map(|(name, _)| name.clone())
                .collect();
            if names.is_empty() {
                continue;
            }
            let proc = self
                .procs
                .get_mut(&names[seed % names.len()])
                .expect("there");
            let ours = match (proc.duty, proc.cut) {
                (Duty::Active, None) => true,
                (Duty::Active, Some(cut)) => (id < cut.at) == cut.before,
                _ => false,
            };
            if ours {
                proc.newest_handled = proc.newest_handled.max(id);
                self.handled.entry(id).or_default().insert(set);
            }
        }
    }

    fn tick(&mut self, ms: i64) {
        self.now += ms;
        for proc in self
            .procs
            .values_mut()
            .filter(|proc| proc.state == State::Ready)
        {
            proc.last_seen = self.now;
        }
        self.remember();
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), String> {
        if self.shadow {
            for (id, sets) in &self.handled {
                if sets.len() > 1 {
                    return Err(format!("the event of {id} was handled by both sets"));
                }
            }
            return Ok(());
        }
        for n in self.holder.keys() {
            let both = [old(*n), new(*n)]
                .iter()
                .filter(|name| self.procs.get(*name).is_some_and(|proc| proc.connected))
                .count();
            if both > 1 {
                return Err(format!("pair {n} is connected twice"));
            }
        }
        Ok(())
    }
}

fn blue_green(pairs: usize, max: u32, replaces: bool) -> Operation {
    let mut steps = Vec::new();
    for n in 0..pairs {
        steps.push(Step::new(new(n), StepAction::Warm, 0, TIMEOUT_MS));
    }
    for n in 0..pairs {
        steps.push(Step::switch(old(n), new(n), 1, TIMEOUT_MS));
    }
    steps.push(Step::new("bot", StepAction::Observe, 2, TIMEOUT_MS));
    steps.push(Step::new("bot", StepAction::Adopt, 3, TIMEOUT_MS));
    for n in 0..pairs {
        steps.push(Step::new(old(n), StepAction::Remove, 4, TIMEOUT_MS));
    }
    Operation {
        steps,
        max_unavailable: max,
        strategy: Some(Bringing::BlueGreen),
        bots: vec!["bot".to_owned()],
        replaces,
        watch: Some(watch(pairs)),
        ..Operation::new(1, Kind::Rollout, 0)
    }
}

fn watch(pairs: usize) -> Watch {
    Watch {
        changed: (0..pairs).map(new).collect(),
        before: (0..pairs).map(old).collect(),
        case: Case {
            watch_ms: 5_000,
            ..Case::default()
        },
        ..Watch::default()
    }
}

fn reshard(pairs: usize) -> Operation {
    let mut steps = Vec::new();
    for n in 0..pairs {
        steps.push(Step::new(new(n), StepAction::Shadow, 0, TIMEOUT_MS));
    }
    steps.push(Step::new("bot", StepAction::Cut, 1, 90_000));
    steps.push(Step::new("bot", StepAction::Observe, 2, TIMEOUT_MS));
    steps.push(Step::new("bot", StepAction::Adopt, 3, TIMEOUT_MS));
    for n in 0..pairs {
        steps.push(Step::new(old(n), StepAction::Remove, 4, TIMEOUT_MS));
    }
    Operation {
        steps,
        bots: vec!["bot".to_owned()],
        watch: Some(watch(pairs)),
        starting_max: 2,
        ..Operation::new(1, Kind::Reshard, 0)
    }
}

fn rolling(count: usize, max: u32) -> Operation {
    let steps = (0..count)
        .map(|n| Step::new(old(n), StepAction::Restart, 4, TIMEOUT_MS))
        .collect();
    Operation {
        steps,
        max_unavailable: max,
        strategy: Some(Bringing::Rolling),
        replaces: true,
        ..Operation::new(1, Kind::Rollout, 0)
    }
}

#[derive(Debug, Clone)]
enum Chance {
    Observe,
    Stale(usize),
    Deliver(usize),
    Answer(usize),
    AnswerTwice(usize),
    LoseMail(usize),
    ComeUp(usize),
    Crash(usize),
    Fail(usize),
    Event(usize),
    Later(i64),
    AgentRestart,
    Pause,
    Resume,
    Abort,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        10 => Just(Chance::Observe),
        3 => (0usize..60).prop_map(Chance::Stale),
        8 => (0usize..8).prop_map(Chance::Deliver),
        8 => (0usize..8).prop_map(Chance::Answer),
        2 => (0usize..8).prop_map(Chance::AnswerTwice),
        1 => (0usize..8).prop_map(Chance::LoseMail),
        8 => (0usize..12).prop_map(Chance::ComeUp),
        2 => (0usize..12).prop_map(Chance::Crash),
        1 => (0usize..12).prop_map(Chance::Fail),
        6 => (0usize..8).prop_map(Chance::Event),
        5 => (1i64..3_000).prop_map(Chance::Later),
        2 => Just(Chance::AgentRestart),
        1 => Just(Chance::Pause),
        1 => Just(Chance::Resume),
        1 => Just(Chance::Abort),
    ]
}

fn pick(world: &World, n: usize) -> Option<String> {
    let names: Vec<&String> = world.procs.keys().collect();
    (!names.is_empty()).then(|| names[n % names.len()].clone())
}

fn reload(op: &Operation) -> Operation {
    serde_json::from_slice(&serde_json::to_vec(op).expect("encodes")).expect("decodes")
}

fn act(world: &mut World, op: &mut Operation, chance: Chance) {
    let mut effects = Vec::new();
    match chance {
        Chance::Observe => {
            world.remember();
            effects = core::step(op, world.now, Input::Observe(&world.late(0)));
        }
        Chance::Stale(back) => {
            let seen = world.late(back);
            effects = core::step(op, world.now, Input::Observe(&seen));
        }
        Chance::Deliver(n) => world.deliver(n),
        Chance::Answer(n) | Chance::AnswerTwice(n) if !world.answers.is_empty() => {
            let at = n % world.answers.len();
            let answer = world.answers[at].clone();
            if matches!(chance, Chance::Answer(_)) {
                drop(world.answers.remove(at));
            }
            let input = Input::Answered {
                process: &answer.0,
                attempt: answer.1,
                request: answer.2,
                result: answer.3.as_ref().map(|at| *at).map_err(String::as_str),
            };
            effects = core::step(op, world.now, input);
        }
        Chance::Answer(_) | Chance::AnswerTwice(_) => {}
        Chance::LoseMail(n) => {
            if !world.mail.is_empty() {
                let at = n % world.mail.len();
                world.mail.remove(at);
            }
        }
        Chance::ComeUp(n) => {
            if let Some(name) = pick(world, n) {
                let proc = world.procs.get_mut(&name).expect("there");
                if proc.state == State::Backoff {
                    proc.begin();
                } else if proc.state == State::Starting {
                    world.welcome(&name);
                }
                world.remember();
            }
        }
        Chance::Crash(n) => {
            if let Some(name) = pick(world, n) {
                world.crash(&name);
                world.remember();
            }
        }
        Chance::Fail(n) => {
            if let Some(name) = pick(world, n) {
                let proc = world.procs.get_mut(&name).expect("there");
                if matches!(proc.state, State::Backoff | State::Starting) {
                    proc.state = State::Failed;
                    world.remember();
                }
            }
        }
        Chance::Event(n) => world.event(n),
        Chance::Later(ms) => world.tick(ms),
        Chance::AgentRestart => {
            *op = reload(op);
            world.past.clear();
            world.heard = 0;
            world.remember();
            // What it asked for may still be done; nobody hears of it.
            world.answers.clear();
        }
        Chance::Pause => effects = core::step(op, world.now, Input::Pause),
        Chance::Resume => effects = core::step(op, world.now, Input::Resume),
        Chance::Abort => effects = core::step(op, world.now, Input::Abort),
    }
    world.carry_out(op, effects);
}

/// From here on everything works; it must come to its end.
fn calm(world: &mut World, op: &mut Operation) {
    act(world, op, Chance::Resume);
    for round in 0..400 {
        if op.state.is_ended() {
            break;
        }
        let names: Vec<String> = world.procs.keys().cloned().collect();
        for name in names {
            let proc = world.procs.get_mut(&name).expect("there");
            if proc.state == State::Backoff {
                proc.begin();
            }
            if world.procs[&name].state == State::Starting {
                world.welcome(&name);
            }
        }
        while !world.mail.is_empty() {
            world.deliver(0);
        }
        while !world.answers.is_empty() {
            act(world, op, Chance::Answer(0));
        }
        world.event(round);
        world.tick(700);
        act(world, op, Chance::Observe);
    }
}

/// All of one set and nothing of the other.
fn one_set(world: &World) -> Result<bool, String> {
    let news = world.procs.keys().filter(|name| is_new(name)).count();
    let olds = world.procs.len() - news;
    match (olds, news) {
        (0, 0) => Err("nothing is left".to_owned()),
        (_, 0) => Ok(false),
        (0, _) => Ok(true),
        _ => Err(format!("{olds} old and {news} new are left")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn blue_green_ends_in_one_set_and_no_session_is_held_twice(
        pairs in 1usize..4,
        max in 1u32..3,
        replaces in any::<bool>(),
        chances in prop::collection::vec(chance(), 1..160),
    ) {
        let mut world = World::new(pairs, false);
        if replaces {
            world.head = 2;
            world.held = (0..pairs).map(|n| (old(n), 1)).collect();
        }
        let mut op = blue_green(pairs, max, replaces);
        for chance in chances {
            act(&mut world, &mut op, chance);
            prop_assert_eq!(world.check(), Ok(()), "{:#?}", op);
            // A pair is down while its session changes hands.
            let switching = op.steps.iter()
                .filter(|step| step.action == StepAction::Switch && step.state == StepState::Running)
                .count();
            prop_assert!(switching <= max as usize);
        }
        calm(&mut world, &mut op);
        prop_assert_eq!(world.check(), Ok(()));
        prop_assert!(op.state.is_ended(), "{op:#?}");
        let failed_back = op.steps.iter().any(|step| step.back && step.state == StepState::Failed);
        let late = op.steps.iter().any(|step| step.action == StepAction::Remove && step.state == StepState::Failed);
        if !failed_back && !late {
            let is_new = one_set(&world);
            prop_assert_eq!(is_new.clone(), Ok(world.active_is_new), "{:#?}", op);
            prop_assert_eq!(world.dropped, !world.active_is_new);
            prop_assert_eq!(op.state == OpState::Succeeded, world.active_is_new);
            // And whoever is left has the sessions, by the spec that is the present one.
            for (name, proc) in &world.procs {
                prop_assert_eq!(&world.holder[&pair_of(name)], name);
                prop_assert_eq!(world.spec_of(name), world.head);
                prop_assert!(proc.state != State::Ready || proc.duty == Duty::Active, "{} {:?}", name, proc);
            }
        }
    }

    #[test]
    fn a_reshard_handles_each_event_in_one_set_and_ends_in_one(
        pairs in 1usize..4,
        chances in prop::collection::vec(chance(), 1..200),
    ) {
        let mut world = World::new(pairs, true);
        let mut op = reshard(pairs);
        for chance in chances {
            act(&mut world, &mut op, chance);
            prop_assert_eq!(world.check(), Ok(()), "{:#?}", op);
            let starting = op.steps.iter()
                .filter(|step| step.action == StepAction::Shadow && step.state == StepState::Running)
                .count();
            prop_assert!(starting <= 2);
        }
        calm(&mut world, &mut op);
        prop_assert_eq!(world.check(), Ok(()));
        prop_assert!(op.state.is_ended(), "{op:#?}");
        let failed_back = op.steps.iter().any(|step| step.back && step.state == StepState::Failed);
        let late = op.steps.iter().any(|step| step.action == StepAction::Remove && step.state == StepState::Failed);
        if !failed_back && !late {
            prop_assert_eq!(one_set(&world), Ok(world.active_is_new), "{:#?}", op);
            prop_assert_eq!(op.state == OpState::Succeeded, world.active_is_new);
        }
    }

    #[test]
    fn a_rolled_spec_goes_back_whole_or_stays_by_its_own_spec(
        count in 1usize..5,
        max in 1u32..3,
        chances in prop::collection::vec(chance(), 1..120),
    ) {
        let mut world = World::new(count, true);
        world.head = 2;
        world.held = (0..count).map(|n| (old(n), 1)).collect();
        let mut op = rolling(count, max);
        for chance in chances {
            act(&mut world, &mut op, chance);
            // Whoever's turn has not come starts by the old spec, whatever happens to it.
            for step in op.steps.iter().filter(|step| !step.is_begun() && !step.back) {
                if op.state == OpState::Running && op.course == tanako_agent::operations::Course::Forward {
                    prop_assert_eq!(world.spec_of(&step.object), 1);
                }
            }
        }
        let aborted = op.aborting;
        calm(&mut world, &mut op);
        prop_assert!(op.state.is_ended(), "{op:#?}");
        let failed_back = op.steps.iter().any(|step| step.back && step.state == StepState::Failed);
        match op.state {
            OpState::Succeeded => {
                prop_assert!(world.held.is_empty());
                prop_assert!(world.procs.values().all(|proc| proc.state != State::Ready || proc.spec == 2));
            }
            OpState::Aborted => {
                prop_assert!(aborted && world.held.is_empty() && world.head == 1);
                prop_assert!(world.procs.values().all(|proc| proc.state != State::Ready || proc.spec == 1));
            }
            _ => prop_assert!(failed_back || !aborted || world.head == 1 || op.failure.is_some()),
        }
    }
}

#[test]
fn what_was_ready_before_the_way_back_is_not_taken_for_brought_back() {
    let mut world = World::new(1, true);
    world.head = 2;
    world.held = BTreeMap::from([(old(0), 1)]);
    let mut op = rolling(1, 1);
    let chances = [
        Chance::Observe,
        Chance::ComeUp(0),
        Chance::Observe,
        // Of its second attempt nothing is heard yet, nor of what becomes of it.
        Chance::Crash(0),
        Chance::ComeUp(0),
        Chance::ComeUp(0),
        Chance::Abort,
        Chance::Stale(6),
        // It is ready by then, and by the spec of that time.
        Chance::Stale(1),
        Chance::Observe,
    ];
    for chance in chances {
        act(&mut world, &mut op, chance);
    }
    calm(&mut world, &mut op);
    assert_eq!(op.state, OpState::Aborted, "{op:#?}");
    assert_eq!(world.procs[&old(0)].spec, 1);
    assert_eq!(world.procs[&old(0)].attempt, 4, "restarted once");
}

#[test]
fn a_reshard_without_trouble_cuts_once_and_tells_the_old_set_first() {
    let mut world = World::new(2, true);
    let mut op = reshard(2);
    calm(&mut world, &mut op);
    assert_eq!(op.state, OpState::Succeeded, "{op:#?}");
    let cut = op
        .steps
        .iter()
        .find(|step| step.action == StepAction::Cut)
        .expect("there");
    assert_eq!(cut.rounds, 1);
    // Every event has been handled, before and after the cut.
    let sets: BTreeSet<bool> = world.handled.values().flatten().copied().collect();
    assert_eq!(sets, BTreeSet::from([false, true]));
    assert!(
        world
            .handled
            .range(..cut.cut_at)
            .all(|(_, sets)| *sets == BTreeSet::from([false]))
    );
    assert!(
        world
            .handled
            .range(cut.cut_at..)
            .all(|(_, sets)| *sets == BTreeSet::from([true]))
    );
}

#[test]
fn an_abort_after_the_cut_gives_the_events_back() {
    let mut world = World::new(2, true);
    let mut op = reshard(2);
    for _ in 0..400 {
        if op
            .steps
            .iter()
            .any(|step| step.action == StepAction::Observe && step.is_begun())
        {
            break;
        }
        let before = op.state;
        assert!(!before.is_ended(), "{op:#?}");
        let names: Vec<String> = world.procs.keys().cloned().collect();
        for name in names {
            if world.procs[&name].state == State::Starting {
                world.welcome(&name);
            }
        }
        while !world.mail.is_empty() {
            world.deliver(0);
        }
        while !world.answers.is_empty() {
            act(&mut world, &mut op, Chance::Answer(0));
        }
        world.tick(700);
        world.event(0);
        act(&mut world, &mut op, Chance::Observe);
    }
    act(&mut world, &mut op, Chance::Abort);
    calm(&mut world, &mut op);
    assert_eq!(op.state, OpState::Aborted, "{op:#?}");
    assert_eq!(one_set(&world), Ok(false));
    assert_eq!(world.check(), Ok(()));
    assert!(world.dropped && !world.active_is_new);
    // The latest events are the old set's again.
    let (_, last) = world.handled.last_key_value().expect("events");
    assert_eq!(*last, BTreeSet::from([false]));
}

#[test]
fn once_the_new_set_is_the_one_an_abort_changes_nothing() {
    let mut world = World::new(1, false);
    let mut op = blue_green(1, 1, false);
    for _ in 0..400 {
        if op.is_past_return() {
            break;
        }
        let names: Vec<String> = world.procs.keys().cloned().collect();
        for name in names {
            if world.procs[&name].state == State::Starting {
                world.welcome(&name);
            }
        }
        while !world.mail.is_empty() {
            world.deliver(0);
        }
        while !world.answers.is_empty() {
            act(&mut world, &mut op, Chance::Answer(0));
        }
        world.tick(700);
        act(&mut world, &mut op, Chance::Observe);
    }
    act(&mut world, &mut op, Chance::Abort);
    calm(&mut world, &mut op);
    assert_eq!(op.state, OpState::Succeeded, "{op:#?}");
    assert_eq!(one_set(&world), Ok(true));
}

#[test]
fn a_canary_that_does_worse_goes_back_by_itself() {
    let mut steps = vec![
        Step::new(old(0), StepAction::Restart, 0, TIMEOUT_MS),
        Step::new(old(0), StepAction::Observe, 1, TIMEOUT_MS),
    ];
    steps.push(Step::new(old(1), StepAction::Restart, 6, TIMEOUT_MS));
    let mut op = Operation {
        steps,
        strategy: Some(Bringing::Canary),
        replaces: true,
        watch: Some(Watch {
            changed: vec![old(0)],
            before: vec![old(0)],
            siblings: vec![old(1)],
            case: Case {
                watch_ms: 60_000,
                ..Case::default()
            },
            ..Watch::default()
        }),
        ..Operation::new(1, Kind::Rollout, 0)
    };
    let mut world = World::new(2, true);
    world.head = 2;
    world.held = (0..2).map(|n| (old(n), 1)).collect();
    act(&mut world, &mut op, Chance::Observe);
    world.welcome(&old(0));
    world.tick(100);
    act(&mut world, &mut op, Chance::Observe);
    assert!(op.steps[1].is_begun());
    let mut seen = world.observed();
    seen.get_mut(&old(0)).expect("there").sample.lost = 3;
    let effects = core::step(&mut op, world.now, Input::Observe(&seen));
    world.carry_out(&op, effects);
    calm(&mut world, &mut op);
    assert_eq!(op.state, OpState::Failed);
    let failure = op.failure.expect("says why");
    assert_eq!(failure.code, "not-healthy");
    assert!(
        failure.message.contains("lost 3 events"),
        "{}",
        failure.message
    );
    assert!(op.message.ends_with("all is as before"), "{}", op.message);
    assert_eq!((world.head, world.held.len()), (1, 0));
    assert_eq!(world.procs[&old(0)].spec, 1);
    assert_eq!(world.procs[&old(1)].attempt, 1, "never touched");
}
