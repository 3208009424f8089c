//! Two sets that overlap, in the situations in which the simulator has found them wrong.

use std::collections::BTreeMap;

use tanako_agent::{
    coordinator::planning,
    desired::{Desired, Document},
    operations::{
        Course, Kind, OpState, Operation, Step, StepAction, StepState,
        core::{self, Effect, Input, Observation, Observed, Request},
        cut, duties,
    },
    supervisor::{Desired as Wanted, State},
};
use tanako_fleet::{
    rollout::Sample,
    spec::{Generation, Places},
};
use tanako_store::{
    Store, Txn,
    embedded::{EmbeddedStore, Options},
};

const T: i64 = 1_000_000;

fn up(now: i64) -> Observation {
    Observation {
        state: State::Ready,
        ready: true,
        attempt: 1,
        begun: true,
        last_seen: now,
        detail: String::new(),
        standby: false,
        attached: true,
        newest_handled: now - 500,
        sample: Sample::default(),
        unsure: false,
        outdated: false,
    }
}

/// A reshard of `b/0` to `b/g2-0`, whose new set is connected.
fn reshard() -> Operation {
    let mut shadow = Step::new("b/g2-0", StepAction::Shadow, 0, 60_000);
    shadow.started_at = T - 10_000;
    shadow.finish(T - 1_000, StepState::Succeeded, "ready");
    Operation {
        state: OpState::Running,
        bots: vec!["b".to_owned()],
        steps: vec![
            shadow,
            Step::new("b", StepAction::Cut, 1, 90_000),
            Step::new("b", StepAction::Adopt, 3, 5_000),
            Step::new("b/0", StepAction::Remove, 4, 30_000),
        ],
        ..Operation::new(1, Kind::Reshard, T)
    }
}

fn fleet(now: i64) -> Observed {
    let names = ["b/0", "b/g2-0"];
    names.map(|name| (name.to_owned(), up(now))).into()
}

fn answer(op: &mut Operation, now: i64, process: &str, at: i64) {
    let answered = Input::Answered {
        process,
        attempt: 1,
        request: Request::Share { at },
        result: Ok(at - cut::LEAD_MS),
    };
    core::step(op, now, answered);
}

fn cut_of(op: &Operation, back: bool) -> &Step {
    let mut cuts = op.steps.iter();
    cuts.find(|step| step.action == StepAction::Cut && step.back == back)
        .expect("there is one")
}

/// Forward until both sides have confirmed; the moment.
fn cut_over(op: &mut Operation) -> i64 {
    // It begins, then tells the givers.
    core::step(op, T, Input::Observe(&fleet(T)));
    core::step(op, T, Input::Observe(&fleet(T)));
    let at = cut_of(op, false).cut_at;
    answer(op, T + 1, "b/0", at);
    core::step(op, T + 2, Input::Observe(&fleet(T)));
    answer(op, T + 3, "b/g2-0", at);
    core::step(op, T + 4, Input::Observe(&fleet(T)));
    assert_eq!(cut_of(op, false).stage, cut::SETTLE);
    at
}

#[test]
fn a_giver_that_is_stopped_where_it_is_may_have_late_events_unread() {
    let mut op = reshard();
    let at = cut_over(&mut op);
    let over = at + cut::SETTLE_MS;
    let mut seen = fleet(over);
    seen.insert("b/0".to_owned(), up(T));
    core::step(&mut op, over + 1, Input::Observe(&seen));
    assert_eq!(cut_of(&op, false).state, StepState::Running);
    core::step(&mut op, over + 2, Input::Observe(&fleet(over)));
    assert_eq!(cut_of(&op, false).state, StepState::Succeeded);
}

#[test]
fn givers_that_are_given_up_without_a_moment_leave_all_that_is_new_to_the_old_set() {
    let mut op = reshard();
    let at = cut_over(&mut op);
    core::step(&mut op, T + 5, Input::Abort);
    core::step(&mut op, T + 6, Input::Observe(&fleet(T)));
    assert_eq!(op.course, Course::Back);
    // The new set never comes back.
    let mut seen = fleet(T);
    let gone = Observation {
        ready: false,
        newest_handled: at + 700,
        ..up(T)
    };
    seen.insert("b/g2-0".to_owned(), gone);
    let late = T + 130_000;
    core::step(&mut op, at + cut::RING_MS + 1, Input::Observe(&seen));
    let effects = core::step(&mut op, late, Input::Observe(&seen));
    assert_eq!(effects, [Effect::Stop("b/g2-0".to_owned())]);
    assert_eq!(cut_of(&op, true).stage, cut::GIVERS, "it is not silent yet");
    let silent = Observation {
        state: State::Stopped,
        attached: false,
        ..seen["b/g2-0"].clone()
    };
    seen.insert("b/g2-0".to_owned(), silent);
    core::step(&mut op, late + 1, Input::Observe(&seen));
    assert_eq!(cut_of(&op, true).cut_at, at + 701);
    let duties = duties::assignments(&op);
    let old = duties["b/0"].cut.expect("the old set has a part");
    assert_eq!((old.at, old.before), (at + 701, false));
}

#[test]
fn a_process_that_the_operator_stopped_is_not_started_to_hear_of_a_cut() {
    let mut op = reshard();
    let at = cut_over(&mut op);
    core::step(&mut op, T + 5, Input::Abort);
    let mut seen = fleet(T);
    seen.insert(
        "b/0".to_owned(),
        Observation {
            state: State::Stopped,
            ready: false,
            attached: false,
            ..up(T)
        },
    );
    for now in (T + 6..at + cut::RING_MS + 200_000).step_by(1_000) {
        let effects = core::step(&mut op, now, Input::Observe(&seen));
        assert!(
            !effects.contains(&Effect::Restart("b/0".to_owned(), 1)),
            "at {now}"
        );
        let back = op.steps.iter().find(|step| step.back);
        if let Some(at) = back.map(|step| step.cut_at).filter(|at| *at > 0) {
            answer(&mut op, now, "b/g2-0", at);
        }
    }
}

#[test]
fn an_operation_on_two_sets_holds_both_until_it_has_ended() {
    let mut op = reshard();
    cut_over(&mut op);
    core::step(&mut op, T + 5, Input::Abort);
    core::step(&mut op, T + 6, Input::Observe(&fleet(T)));
    assert!(op.holds("b/0") && op.holds("b/g2-0") && op.builds("b"));
    let steps = [Step::new("b/g3-0", StepAction::Shadow, 0, 1)];
    let found = planning::in_the_way([&op], &steps, &["b".to_owned()]);
    assert_eq!(found.map(|(object, _)| object), Some("b".to_owned()));
    op.state = OpState::Aborted;
    assert!(planning::in_the_way([&op], &steps, &["b".to_owned()]).is_none());
}

fn document() -> Document {
    Document {
        toml: "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"x\"]\ntoken_file = \"/t\"\nshards = 1"
            .to_owned(),
        ..Document::default()
    }
}

fn places() -> Places {
    Places {
        data_dir: "/d".to_owned(),
    }
}

async fn desired(document: &Document) -> Desired {
    let dir = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(dir.path(), &Options::default()).expect("opens");
    let value = serde_json::to_vec(document).expect("encodes");
    let written = store.commit(Txn::new().put("desired", value)).await;
    assert!(written.is_ok());
    Desired::load(&store, places()).await.expect("loads")
}

#[tokio::test]
async fn a_restart_that_ends_before_a_stopped_process_leaves_it_stopped() {
    // It was asked for by its name, so it is wanted again from the moment of acceptance on.
    let desired = desired(&document()).await;
    let mut restart = Step::new("b/0", StepAction::Restart, 0, 60_000);
    restart.was_stopped = true;
    let mut op = Operation {
        state: OpState::Running,
        steps: vec![restart],
        ..Operation::new(1, Kind::Restart, T)
    };
    let first = |op: &Operation| {
        let told = planning::wanted_at_first(&desired, &[op], &BTreeMap::new());
        told.first().map(|(_, wanted)| *wanted)
    };
    assert_eq!(first(&op), Some(Wanted::Stopped), "before its turn");
    core::step(&mut op, T, Input::Abort);
    core::step(&mut op, T, Input::Observe(&Observed::new()));
    assert_eq!(op.state, OpState::Aborted);
    let after = planning::reverted(&desired, &op).expect("there is something to take back");
    let name = "b/0".parse().expect("a name");
    assert!(desired.is_wanted(&name) && !after.is_wanted(&name));
    op.steps[0].started_at = T;
    assert!(planning::reverted(&desired, &op).is_none(), "it had begun");
}

#[tokio::test]
async fn what_was_removed_on_the_way_back_is_not_started_by_the_next_term() {
    let mut document = document();
    let spec = document.resolve(&places()).expect("resolves").spec;
    let next = Generation {
        number: 2,
        shards: 2,
        shards_per_process: 1,
    };
    document.build("b", &spec.expect("one"), next);
    let desired = desired(&document).await;
    let mut op = reshard();
    op.course = Course::Back;
    // One of the new set is gone again, the other was never begun.
    let mut removed = Step::new("b/g2-0", StepAction::Remove, 5, 30_000);
    (removed.back, removed.started_at) = (true, T);
    removed.finish(T, StepState::Succeeded, "removed");
    let never = Step::skipped("b/g2-1", StepAction::Shadow, "not begun");
    op.steps.extend([removed, never]);
    let told = planning::wanted_at_first(&desired, &[&op], &BTreeMap::new());
    let names: Vec<&str> = told.iter().map(|(spec, _)| spec.name.as_str()).collect();
    assert_eq!(names, ["b/0"]);
}
