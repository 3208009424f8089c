//! Rollouts and reshards: preflight, confirmation, following, going back.

use tanako_proto::fleet::v1::{Cost, Operation, PlanChange, PlanCheck, PlanReply, Problem};
use tonic::Code;

use crate::{
    fake::{restarted, restarting},
    world::World,
};

fn rollout(id: &str, kind: &str, state: &str) -> Operation {
    Operation {
        id: id.into(),
        kind: kind.into(),
        state: state.into(),
        strategy: if kind == "rollout" { "blue-green" } else { "" }.into(),
        ..restarted()
    }
}

fn check(check: &str, state: &str, message: &str) -> PlanCheck {
    PlanCheck {
        check: check.into(),
        state: state.into(),
        message: message.into(),
    }
}

fn reshard_plan() -> PlanReply {
    let change = |action: &str, object: &str, why: &str| PlanChange {
        action: action.into(),
        object: object.into(),
        why: why.into(),
    };
    PlanReply {
        version: 3,
        changes: vec![
            change("create", "tanako/g2-0", "connects beside the old set"),
            change("create", "tanako/g2-1", "connects beside the old set"),
            change("remove", "tanako/0", "removed once the new set serves"),
            change("remove", "tanako/1", "removed once the new set serves"),
        ],
        cost: Some(Cost {
            processes_started: 2,
            processes_stopped: 2,
            identifies: 8,
            identifies_left: 996,
            seconds: 45,
            ..Cost::default()
        }),
        warnings: vec!["afterwards set shards = 8 in your fleet.toml".into()],
        checks: vec![
            check(
                "count",
                "warning",
                "4 shards become 8; Discord recommends 16",
            ),
            check("budget", "ok", "8 IDENTIFYs, 988 left afterwards"),
        ],
    }
}

#[tokio::test]
async fn a_reshard_shows_everything_it_has_looked_at_before_it_asks() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.plan = reshard_plan();
        state.operation = rollout("reshard-9", "reshard", "running");
        state.updates = vec![rollout("reshard-9", "reshard", "succeeded")];
    }
    let refused = world.run(&["reshard", "tanako", "--shards", "8"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert!(world.fake.state().untouched());
    let dry = world
        .run(&["reshard", "tanako", "--shards", "8", "--dry-run"])
        .await;
    insta::assert_snapshot!(dry.all());
    let json = world
        .run(&[
            "reshard",
            "tanako",
            "--shards",
            "8",
            "--dry-run",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(json.code, Some(4));
    assert_eq!(json.json()["checks"][1]["check"], "budget");
    let ran = world
        .run(&[
            "reshard",
            "tanako",
            "--shards",
            "8",
            "--observe",
            "30s",
            "--yes",
            "-q",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let state = world.fake.state();
    let request = &state.submitted[0];
    let reshard = request.reshard.clone().expect("a reshard");
    assert_eq!(
        (
            reshard.bot.as_str(),
            reshard.shards,
            reshard.shards_per_process,
            reshard.observe_s
        ),
        ("tanako", 8, 0, 30)
    );
    assert_eq!(
        (request.kind.as_str(), request.base_version),
        ("reshard", 3)
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_what_to_do() {
    let world = World::new();
    let problem = Problem::new(
        "preflight",
        "tanako",
        "it needs 8 IDENTIFYs, 3 may be spent",
    )
    .hint("it fits in 2 h 10 min");
    world
        .fake
        .state()
        .fails
        .insert("plan", (Code::FailedPrecondition, Some(problem)));
    let ran = world.run(&["reshard", "tanako", "--yes"]).await;
    insta::assert_snapshot!(ran.all());
    assert!(world.fake.state().untouched());
}

#[tokio::test]
async fn a_rollout_takes_its_strategy_and_its_file_along() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.plan = reshard_plan();
        state.operation = restarting();
        state.updates = vec![restarted()];
    }
    let file = world.write(
        "new.toml",
        "[fleet]\nname = \"test\"\n[bots.tanako]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\nshards = 4\n",
    );
    let file = file.to_str().expect("a plain path");
    let ran = world
        .run(&[
            "rollout",
            "start",
            "tanako",
            "--strategy",
            "canary",
            "--canary",
            "tanako/1",
            "--file",
            file,
            "--observe",
            "90s",
            "--max-unavailable",
            "2",
            "--yes",
            "-q",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    {
        let state = world.fake.state();
        let request = &state.submitted[0];
        let rollout = request.rollout.clone().expect("a rollout");
        assert_eq!(
            (request.kind.as_str(), request.max_unavailable),
            ("rollout", 2)
        );
        assert_eq!(request.targets, ["tanako"]);
        assert_eq!(
            (
                rollout.strategy.as_str(),
                rollout.canary.as_str(),
                rollout.observe_s
            ),
            ("canary", "tanako/1", 90)
        );
        assert!(rollout.spec_toml.contains("shards = 4"));
        assert!(rollout.file_name.ends_with("new.toml"));
    }
    // A mistake in the file costs nothing.
    let bad = world.write("bad.toml", "[fleet]\nname = 7\n");
    let ran = world
        .run(&[
            "rollout",
            "start",
            "--file",
            bad.to_str().expect("a plain path"),
            "--yes",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(ran.error()["code"], "invalid-spec", "{}", ran.all());
    let odd = world
        .run(&["rollout", "start", "--strategy", "big-bang"])
        .await;
    assert_eq!(odd.code, Some(2), "{}", odd.all());
    assert_eq!(world.fake.state().submitted.len(), 1);
}

#[tokio::test]
async fn without_an_id_the_one_under_way_is_meant_or_the_latest() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.operations = vec![
            restarted(),
            rollout("rollout-12", "rollout", "running"),
            rollout("rollout-8", "rollout", "succeeded"),
        ];
        state.operation = rollout("rollout-12", "rollout", "paused");
    }
    let status = world.run(&["rollout", "status"]).await;
    insta::assert_snapshot!(status.all());
    let status = world
        .run(&["rollout", "status", "rollout-8", "-o", "json"])
        .await;
    assert_eq!(status.json()["strategy"], "blue-green");
    for (verb, flags) in [("pause", None), ("resume", None), ("abort", Some("--yes"))] {
        let mut arguments = vec!["rollout", verb];
        arguments.extend(flags);
        let ran = world.run(&arguments).await;
        assert_eq!(ran.code, Some(0), "{}", ran.all());
        let state = world.fake.state();
        let asked = state.controlled.last().expect("asked");
        assert_eq!(
            (asked.id.as_str(), asked.action.as_str()),
            ("rollout-12", verb)
        );
    }
    // An abort moves processes: it is asked for.
    let ran = world.run(&["rollout", "abort"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    world.fake.state().operations.remove(1);
    let ran = world.run(&["rollout", "pause", "-o", "json"]).await;
    assert_eq!(ran.error()["code"], "nothing-under-way", "{}", ran.all());
}

#[tokio::test]
async fn the_latest_rollout_that_has_ended_is_undone() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.plan = reshard_plan();
        state.operations = vec![
            rollout("reshard-13", "reshard", "succeeded"),
            rollout("rollout-12", "rollout", "failed"),
            rollout("rollout-8", "rollout", "succeeded"),
        ];
        state.operation = restarting();
        state.updates = vec![restarted()];
    }
    let ran = world.run(&["rollout", "undo", "--yes", "-q"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let state = world.fake.state();
    let rollout = state.submitted[0].rollout.clone().expect("a rollout");
    assert_eq!(
        (rollout.undo.as_str(), rollout.strategy.as_str()),
        ("rollout-12", "")
    );
}
