//! Two sets of shards under a coordinator: every interaction is answered exactly once.

use proptest::prelude::*;

use super::super::seq::{SeqTracker, Ticket};
use super::*;

const ACTIVE: Terms = Terms {
    duty: Duty::Active,
    cut: None,
};
const SHADOW: Terms = Terms {
    duty: Duty::Shadow,
    cut: None,
};

const fn id(time: i64) -> u64 {
    ((time as u64) - DISCORD_EPOCH_MS) << 22
}

const START: i64 = 1_800_000_000_000;

fn cut(duty: Duty, at: i64, before: bool) -> Terms {
    Terms {
        duty,
        cut: Some(Cut { at, before }),
    }
}

#[test]
fn times_are_discords() {
    // From Discord's documentation of snowflakes.
    assert_eq!(time_of(175_928_847_299_117_063), 1_462_015_105_796);
}

#[test]
fn a_cut_gives_each_time_to_exactly_one_set() {
    for time in [START - 1, START, START + 1] {
        let old = cut(Duty::Active, START, true).is_ours(time);
        let new = cut(Duty::Shadow, START, false).is_ours(time);
        assert!(old != new && new == (time >= START), "{time}");
    }
    assert!(ACTIVE.is_ours(0) && !SHADOW.is_ours(0));
    assert!(!cut(Duty::Warm, START, true).is_ours(0));
}

#[test]
fn held_events_are_dropped_after_half_a_minute_and_beyond_the_bound() {
    let now = Instant::now();
    let mut desk = Desk::new(SHADOW, 100, 2);
    for n in 0..3 {
        let decision = desk.arrive(now + Duration::from_secs(n), id(START) + n, n, false);
        assert_eq!(decision, Decision::Hold);
    }
    assert_eq!(desk.expire(now), [0], "the oldest beyond two");
    let just_before = now + HELD_FOR + Duration::from_millis(999);
    assert!(desk.expire(just_before).is_empty());
    assert_eq!(desk.expire(now + Duration::from_secs(1) + HELD_FOR), [1]);
    assert_eq!(desk.share(ACTIVE), [2]);
    assert_eq!(desk.newest_handled(), START);
}

#[test]
fn what_cannot_be_looked_up_counts_as_handled_for_the_cut() {
    let now = Instant::now();
    let mut desk = Desk::new(cut(Duty::Active, START, true), 100, 10);
    assert!(matches!(
        desk.arrive(now, id(START + 5), (), true),
        Decision::LookUp(())
    ));
    let decision = desk.found(now, id(START + 5), (), Standing::Unknown);
    assert_eq!(decision, Decision::Hold);
    assert_eq!(desk.newest_handled(), START + 5);
}

/// A set of shards as one process with one session.
struct Set {
    desk: Desk<Taken>,
    seq: SeqTracker,
    /// Next event of the session's stream; its number is this plus one.
    next: usize,
    /// Events before this one are replays of a predecessor's session.
    replay_until: usize,
    running: Vec<Handler>,
    deposit: Deposit,
    inbox: VecDeque<Message>,
    latest: Option<Message>,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    event: usize,
    ticket: Ticket,
}

struct Handler {
    taken: Taken,
    answered: bool,
}

#[derive(Clone, Default)]
struct Deposit {
    seq: u64,
    handled: Vec<u64>,
    newest: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Message {
    number: u32,
    terms: Terms,
}

/// What the coordinator is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Plan {
    Idle,
    /// Waits for the old set's answer.
    Old(i64),
    /// Waits for the new set's.
    New(i64),
    Aborting,
    Done,
}

struct Model {
    events: Vec<u64>,
    time: i64,
    now: Instant,
    answers: Vec<u32>,
    sets: [Set; 2],
    /// What a new attempt is told: the durable truth, written before a message goes out.
    duties: [Terms; 2],
    plan: Plan,
    skew: i64,
    number: u32,
    /// Answer to the latest message of the coordinator.
    acked: Option<(u32, i64)>,
}

impl Set {
    fn new(terms: Terms, deposit: Deposit, replay_until: usize) -> Self {
        let mut desk = Desk::new(terms, 1000, 1000);
        desk.inherit(&deposit.handled, deposit.newest);
        let mut seq = SeqTracker::default();
        seq.reset(deposit.seq);
        Self {
            desk,
            seq,
            next: deposit.seq as usize,
            replay_until,
            running: Vec::new(),
            deposit,
            inbox: VecDeque::new(),
            latest: None,
        }
    }

    fn is_unsure(&self) -> bool {
        self.next < self.replay_until
    }
}

impl Model {
    fn new(skew: i64) -> Self {
        Self {
            events: Vec::new(),
            time: START,
            now: Instant::now(),
            answers: Vec::new(),
            sets: [
                Set::new(ACTIVE, Deposit::default(), 0),
                Set::new(SHADOW, Deposit::default(), 0),
            ],
            duties: [ACTIVE, SHADOW],
            plan: Plan::Idle,
            skew,
            number: 0,
            acked: None,
        }
    }

    fn deliver(&mut self, which: usize) {
        let set = &mut self.sets[which];
        let Some(event) = self.events.get(set.next).copied() else {
            return;
        };
        let replay = set.is_unsure();
        let at = set.next;
        set.next += 1;
        let ticket = set.seq.begin(at as u64 + 1, event);
        let taken = Taken { event: at, ticket };
        let mut decision = set.desk.arrive(self.now, event, taken, replay);
        if let Decision::LookUp(taken) = decision {
            let standing = if self.answers[at] > 0 {
                Standing::Answered
            } else {
                Standing::Open
            };
            decision = set.desk.found(self.now, event, taken, standing);
        }
        match decision {
            Decision::Handle(taken) => set.running.push(Handler {
                taken,
                answered: false,
            }),
            Decision::Ignore(taken) => set.seq.finish(taken.ticket),
            Decision::Hold => {}
            Decision::LookUp(_) => unreachable!("looked up already"),
        }
    }

    fn answer(&mut self, which: usize, pick: usize) {
        let set = &mut self.sets[which];
        if set.running.is_empty() {
            return;
        }
        let pick = pick % set.running.len();
        let handler = &mut set.running[pick];
        if !handler.answered {
            handler.answered = true;
            self.answers[handler.taken.event] += 1;
        }
    }

    fn finish(&mut self, which: usize, pick: usize) {
        self.answer(which, pick);
        let set = &mut self.sets[which];
        if !set.running.is_empty() {
            let handler = set.running.swap_remove(pick % set.running.len());
            set.seq.finish(handler.taken.ticket);
        }
    }

    fn deposit(&mut self, which: usize) {
        let set = &mut self.sets[which];
        let mut handled = set.deposit.handled.clone();
        if !set.is_unsure() {
            handled.clear();
        }
        handled.extend(set.seq.handled_above());
        set.deposit = Deposit {
            seq: set.seq.settled(),
            handled,
            newest: set.desk.newest_handled(),
        };
    }

    fn crash(&mut self, which: usize) {
        let set = &mut self.sets[which];
        let deposit = set.deposit.clone();
        // Commands under way die with the process; the coordinator sends its latest one again.
        let lost = set
            .inbox
            .iter()
            .copied()
            .chain(set.latest)
            .max_by_key(|message| message.number);
        *set = Set::new(self.duties[which], deposit, self.events.len());
        set.inbox
            .extend(lost.filter(|message| message.number == self.number));
    }

    fn send(&mut self, which: usize, terms: Terms) {
        self.duties[which] = terms;
        self.number += 1;
        let message = Message {
            number: self.number,
            terms,
        };
        self.sets[which].inbox.push_back(message);
    }

    /// A set takes its next message. It answers only when it knows what its predecessor handled.
    fn take(&mut self, which: usize) {
        let set = &mut self.sets[which];
        let Some(message) = set.inbox.front().copied() else {
            return;
        };
        for taken in set.desk.share(message.terms) {
            set.running.push(Handler {
                taken,
                answered: false,
            });
        }
        if set.is_unsure() {
            return;
        }
        set.inbox.pop_front();
        set.latest = Some(message);
        if message.number == self.number {
            self.acked = Some((message.number, set.desk.newest_handled()));
        }
    }

    fn coordinate(&mut self, abort: bool) {
        let acked = self
            .acked
            .filter(|(number, _)| *number == self.number)
            .map(|(_, newest)| newest);
        match (self.plan, acked) {
            (Plan::Idle, _) => {
                // As in the latest report: behind.
                let newest = self.sets[0].deposit.newest;
                self.choose(newest);
            }
            (Plan::Old(_), _) if abort => {
                self.plan = Plan::Aborting;
                self.send(0, ACTIVE);
            }
            (Plan::Old(at), Some(newest)) if newest < at => {
                self.plan = Plan::New(at);
                self.send(1, cut(Duty::Active, at, false));
            }
            (Plan::Old(_), Some(newest)) => self.choose(newest),
            (Plan::New(_) | Plan::Aborting, Some(_)) => self.plan = Plan::Done,
            _ => {}
        }
    }

    fn choose(&mut self, newest: i64) {
        let at = (self.time + self.skew).max(newest) + 3000;
        self.plan = Plan::Old(at);
        self.send(0, cut(Duty::Active, at, true));
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for _ in 0..20 {
            for which in 0..2 {
                while self.sets[which].next < self.events.len() {
                    self.deliver(which);
                }
                while !self.sets[which].inbox.is_empty() {
                    self.take(which);
                }
                while !self.sets[which].running.is_empty() {
                    self.finish(which, 0);
                }
            }
            if self.plan != Plan::Idle {
                self.coordinate(false);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Event(i64),
    Deliver(usize),
    Answer(usize, usize),
    Finish(usize, usize),
    Deposit(usize),
    Crash(usize),
    Coordinate(bool),
    Take(usize),
    TakeAgain(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let set = || 0..2usize;
    prop_oneof![
        6 => (0..2000i64).prop_map(Step::Event),
        8 => set().prop_map(Step::Deliver),
        2 => (set(), any::<usize>()).prop_map(|(set, pick)| Step::Answer(set, pick)),
        4 => (set(), any::<usize>()).prop_map(|(set, pick)| Step::Finish(set, pick)),
        2 => set().prop_map(Step::Deposit),
        1 => set().prop_map(Step::Crash),
        2 => prop::bool::weighted(0.1).prop_map(Step::Coordinate),
        3 => set().prop_map(Step::Take),
        1 => set().prop_map(Step::TakeAgain),
        1 => (0..100u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    /// Whatever the coordinator's clock says, however late and often its messages come, in whatever order the
    /// sets get their events, and whichever of them dies at which point.
    #[test]
    fn every_interaction_is_answered_exactly_once(
        skew in -60_000..60_000i64,
        steps in prop::collection::vec(step(), 0..250),
    ) {
        let mut model = Model::new(skew);
        for step in steps {
            match step {
                Step::Event(later) => {
                    model.time += later;
                    // Several ids may share a millisecond.
                    model.events.push(id(model.time) + model.events.len() as u64);
                    model.answers.push(0);
                }
                Step::Deliver(set) => model.deliver(set),
                Step::Answer(set, pick) => model.answer(set, pick),
                Step::Finish(set, pick) => model.finish(set, pick),
                Step::Deposit(set) => model.deposit(set),
                Step::Crash(set) => model.crash(set),
                Step::Coordinate(abort) => model.coordinate(abort),
                Step::Take(set) => model.take(set),
                Step::TakeAgain(set) => {
                    // The same message a second time, as after a lost answer.
                    let latest = model.sets[set].latest;
                    model.sets[set].inbox.extend(latest.filter(|message| message.number == model.number));
                }
                Step::Wait(ms) => model.now += Duration::from_millis(ms),
            }
            for set in &mut model.sets {
                prop_assert!(set.desk.expire(model.now).is_empty(), "all within half a minute");
                prop_assert!(set.seq.settled() as usize <= set.next);
            }
            prop_assert!(model.answers.iter().all(|answers| *answers <= 1));
        }
        model.settle();
        prop_assert!(matches!(model.plan, Plan::Idle | Plan::Done), "{:?}", model.plan);
        let twice_or_never: Vec<usize> =
            (0..model.events.len()).filter(|event| model.answers[*event] != 1).collect();
        prop_assert!(twice_or_never.is_empty(), "{:?}", twice_or_never);
        // What was held only is let go of in the end, and holds no number back.
        for set in &mut model.sets {
            for taken in set.desk.expire(model.now + HELD_FOR) {
                set.seq.release(taken.ticket);
            }
            prop_assert_eq!(set.desk.held(), 0);
            prop_assert_eq!(set.seq.settled() as usize, model.events.len());
        }
    }
}
