//! Verbs that change something: plan, cost, confirmation, following, results.

use tanako_proto::fleet::v1::{
    Advice, Backup, Cost, Operation, OperationStep, PlanChange, PlanReply, Problem, Proposal,
    plan_request::Of,
};
use tonic::Code;

use crate::{
    fake::{AT, restart_plan, restarted, restarting},
    world::World,
};

fn restartable() -> World {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.plan = restart_plan();
        state.operation = restarting();
        state.updates = vec![restarting(), restarted()];
    }
    world
}

#[tokio::test]
async fn a_restart_shows_its_plan_and_its_receipt() {
    let world = restartable();
    let ran = world.run(&["restart", "tanako", "--yes"]).await;
    insta::assert_snapshot!(ran.all());
    let state = world.fake.state();
    let request = &state.submitted[0];
    assert_eq!(
        (
            request.kind.as_str(),
            request.base_version,
            request.max_unavailable
        ),
        ("restart", 3, 1)
    );
    assert_eq!(request.targets, ["tanako"]);
    assert_eq!(request.request_id.len(), 32);
}

#[tokio::test]
async fn the_result_as_json_is_the_operation() {
    let world = restartable();
    let ran = world
        .run(&["restart", "tanako", "--yes", "-o", "json"])
        .await;
    insta::assert_snapshot!(ran.all());
    let wide = world
        .run(&["restart", "tanako", "--yes", "-o", "wide", "-q"])
        .await;
    insta::assert_snapshot!(wide.all());
}

#[tokio::test]
async fn without_a_terminal_a_disruptive_change_needs_a_flag() {
    let world = restartable();
    for verb in ["stop", "restart"] {
        let ran = world.run(&[verb, "tanako", "-o", "json"]).await;
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        let error = ran.error();
        assert_eq!(error["code"], "confirmation-required");
        assert!(
            error["hint"]
                .as_str()
                .is_some_and(|hint| hint.contains("--yes")),
            "{error}"
        );
        assert!(
            error["cause"]
                .as_str()
                .is_some_and(|cause| cause
                    .contains("2 processes (4 shards with 10000 guilds) of fleet test")),
            "{error}"
        );
    }
    assert!(world.fake.state().untouched());
}

#[tokio::test]
async fn a_production_fleet_wants_its_name() {
    let world = restartable();
    world.fake.state().status.production = true;
    let ran = world.run(&["restart", "tanako", "--yes"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(ran.stderr.contains("--confirm=test"), "{}", ran.stderr);
    let ran = world.run(&["restart", "tanako", "--confirm=tset"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all());
    assert!(world.fake.state().untouched());
    let ran = world.run(&["restart", "tanako", "--confirm=test"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
}

#[tokio::test]
async fn a_context_can_call_a_fleet_production_as_well() {
    let world = restartable();
    world.config(&format!(
        "current = \"live\"\n[contexts.live]\nsocket = {:?}\nproduction = true\n",
        world.socket()
    ));
    let ran = world.run(&["stop", "tanako", "--yes"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(ran.stderr.contains("--confirm=test"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let world = restartable();
    let ran = world.run(&["restart", "tanako", "--dry-run"]).await;
    insta::assert_snapshot!(ran.all());
    let json = world
        .run(&["restart", "tanako", "--dry-run", "-o", "json"])
        .await;
    assert_eq!(json.code, Some(4));
    assert_eq!(json.json()["cost"]["processes_restarted"], 2);
    world.fake.state().plan = PlanReply {
        version: 3,
        ..PlanReply::default()
    };
    assert_eq!(
        world.run(&["start", "tanako", "--dry-run"]).await.code,
        Some(0)
    );
    // Every verb that changes something has it.
    world.fake.state().backups = vec![Backup {
        date: "20261118".into(),
        ..Backup::default()
    }];
    for verb in [
        "start all",
        "stop all",
        "backup",
        "backup prune",
        "backup verify",
        "restore --date 20261118",
    ] {
        let mut arguments: Vec<&str> = verb.split(' ').collect();
        arguments.push("--dry-run");
        let ran = world.run(&arguments).await;
        assert_eq!(ran.code, Some(0), "{verb}: {}", ran.all());
    }
    assert!(world.fake.state().untouched());
}

#[tokio::test]
async fn nothing_to_change_is_3() {
    let world = World::new();
    world.fake.state().operation = Operation {
        unchanged: true,
        done: 0,
        total: 0,
        message: "all of it runs already".into(),
        receipt: vec![],
        kind: "start".into(),
        ..restarted()
    };
    let ran = world.run(&["start", "tanako"]).await;
    insta::assert_snapshot!(ran.all());
    let json = world.run(&["start", "tanako", "-o", "json"]).await;
    assert_eq!(
        (json.code, json.json()["unchanged"].as_bool()),
        (Some(3), Some(true))
    );
}

#[tokio::test]
async fn detached_operations_are_left_to_the_fleet() {
    let world = restartable();
    let ran = world
        .run(&["restart", "tanako", "--yes", "--detach", "-o", "name"])
        .await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "op-17\n"),
        "{}",
        ran.all()
    );
    assert!(
        ran.stderr.contains("tanakoctl operation watch op-17"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn following_survives_a_restart_of_the_agent() {
    let world = restartable();
    world.fake.state().cuts = 2;
    let ran = world.run(&["restart", "tanako", "--yes"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("succeeded"));
    assert_eq!(world.fake.state().cuts, 0);
    assert_eq!(world.fake.state().submitted.len(), 1);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    let world = restartable();
    world.fake.state().lost_answers = 2;
    let ran = world.run(&["restart", "tanako", "--yes"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let state = world.fake.state();
    assert_eq!(state.submitted.len(), 3);
    assert!(
        state
            .submitted
            .iter()
            .all(|request| request.request_id == state.submitted[0].request_id)
    );
}

#[tokio::test]
async fn an_operation_that_takes_too_long_goes_on_without_us() {
    let world = restartable();
    world.fake.state().updates = vec![restarting()];
    let ran = world
        .run(&[
            "restart",
            "tanako",
            "--yes",
            "--timeout",
            "300ms",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(ran.code, Some(12), "{}", ran.all());
    let error = ran.error();
    assert_eq!(error["object"], "operation op-17");
    assert!(
        error["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("operation watch op-17")),
        "{error}"
    );
}

#[tokio::test]
async fn a_failed_operation_names_what_failed() {
    let world = restartable();
    let failed = Operation {
        state: "failed".into(),
        done: 1,
        receipt: vec![],
        steps: vec![OperationStep {
            object: "tanako/1".into(),
            state: "failed".into(),
            message: "not ready within 60 s".into(),
            ..OperationStep::default()
        }],
        problem: Some(
            Problem::new(
                "not-ready",
                "tanako/1",
                "it did not become ready within 60 s",
            )
            .cause("exited with 1, 5 times")
            .hint("tanakoctl logs tanako/1"),
        ),
        ..restarted()
    };
    world.fake.state().updates = vec![restarting(), failed];
    let ran = world.run(&["restart", "tanako", "--yes"]).await;
    insta::assert_snapshot!(ran.all());
}

#[tokio::test]
async fn another_operation_in_the_way_is_11() {
    let world = restartable();
    let problem = Problem::new("conflict", "tanako", "another operation runs")
        .cause("restart op-16 holds tanako/1")
        .hint("wait for it: tanakoctl operation watch op-16");
    world
        .fake
        .state()
        .fails
        .insert("submit", (Code::Aborted, Some(problem)));
    let ran = world
        .run(&["restart", "tanako", "--yes", "-o", "json"])
        .await;
    assert_eq!(ran.code, Some(11), "{}", ran.all());
    assert_eq!(ran.error()["cause"], "restart op-16 holds tanako/1");
}

#[tokio::test]
async fn misspelt_targets_get_the_name_that_was_meant() {
    let world = restartable();
    let ran = world.run(&["restart", "tanka/1", "--yes"]).await;
    insta::assert_snapshot!(ran.all());
    let json = world.run(&["stop", "db/nod1", "--yes", "-o", "json"]).await;
    assert_eq!(json.code, Some(1));
    assert_eq!(json.error()["hint"], "did you mean db/node1?");
    assert_eq!(world.run(&["logs", "tanakoo"]).await.code, Some(1));
    assert_eq!(world.run(&["start", "shrd:1"]).await.code, Some(2));
    assert!(world.fake.state().untouched());
}

const SPEC: &str = "[fleet]\nname = \"test\"\n\n[bots.tanako]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\nshards = 4\n";

#[tokio::test]
async fn plan_and_apply() {
    let world = restartable();
    let file = world.write("fleet.toml", SPEC);
    let ran = world.run(&["plan"]).await;
    assert_eq!(ran.code, Some(4), "{}", ran.all());
    insta::assert_snapshot!("plan", ran.all());
    let refused = world.run(&["apply", "fleet.toml"]).await;
    insta::assert_snapshot!("apply_refused", refused.all());
    assert!(world.fake.state().untouched());
    let ran = world
        .run(&[
            "apply",
            file.to_str().expect("utf-8"),
            "--yes",
            "--no-start",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    {
        let state = world.fake.state();
        let request = &state.applied[0];
        assert_eq!(
            (
                request.base_version,
                request.no_start,
                request.spec_toml.as_str()
            ),
            (3, true, SPEC)
        );
        assert!(matches!(&state.planned[0].of, Some(Of::SpecToml(text)) if text == SPEC));
    }
    // Nothing that hurts: nothing is asked.
    world.fake.state().plan.changes = vec![PlanChange {
        action: "create".into(),
        object: "tanako/2".into(),
        why: "new".into(),
    }];
    assert_eq!(world.run(&["apply"]).await.code, Some(0));
    world.fake.state().plan = PlanReply {
        version: 3,
        cost: Some(Cost::default()),
        ..PlanReply::default()
    };
    assert_eq!(world.run(&["plan"]).await.code, Some(0));
}

#[tokio::test]
async fn a_stale_plan_is_refused_with_its_hint() {
    let world = restartable();
    world.write("fleet.toml", SPEC);
    let problem = Problem::new(
        "stale-plan",
        "fleet test",
        "the fleet has changed since the plan was made",
    )
    .cause("the plan was made from version 3, the fleet is at 4")
    .hint("look at it again: tanakoctl plan fleet.toml");
    world
        .fake
        .state()
        .fails
        .insert("apply", (Code::FailedPrecondition, Some(problem)));
    let ran = world.run(&["apply", "--yes", "-q"]).await;
    insta::assert_snapshot!(ran.all());
}

#[tokio::test]
async fn a_wrong_spec_is_refused_before_the_agent_is_asked() {
    let world = World::empty();
    world.write("fleet.toml", "[fleet]\nname = \"test\"\nprodution = true\n");
    let ran = world.run(&["plan", "fleet.toml"]).await;
    insta::assert_snapshot!(ran.all());
    let json = world.run(&["apply", "fleet.toml", "-o", "json"]).await;
    assert_eq!(json.code, Some(1));
    let error = json.error();
    assert_eq!(
        (
            error["code"].as_str(),
            error["object"].as_str(),
            error["hint"].as_str()
        ),
        (
            Some("invalid-spec"),
            Some("fleet.toml:3"),
            Some("did you mean `production`?")
        )
    );
    assert_eq!(world.run(&["plan", "none.toml"]).await.code, Some(1));
}

#[tokio::test]
async fn backups_and_restores() {
    let world = World::new();
    let rows = |done, state: &str| Operation {
        id: "op-3".into(),
        kind: "backup".into(),
        state: state.into(),
        done,
        total: 10_000,
        unit: "rows".into(),
        date: "20261118".into(),
        created_at: AT,
        ended_at: if state == "running" { 0 } else { AT + 4_000 },
        ..Operation::default()
    };
    {
        let mut state = world.fake.state();
        state.operation = rows(0, "running");
        state.updates = vec![rows(5_000, "running"), rows(10_000, "succeeded")];
        state.backups = vec![Backup {
            date: "20261118".into(),
            state: "verified".into(),
            ..Backup::default()
        }];
    }
    let ran = world.run(&["backup", "--date", "20261118"]).await;
    insta::assert_snapshot!("backup", ran.all());
    assert_eq!(world.run(&["backup", "verify"]).await.code, Some(0));
    // Destructive: --yes is not enough, the fleet's name is.
    for arguments in [
        vec!["restore", "--date", "20261118"],
        vec!["backup", "prune", "--keep", "3"],
    ] {
        let mut with_yes = arguments.clone();
        with_yes.push("--yes");
        let ran = world.run(&with_yes).await;
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        assert!(ran.stderr.contains("--confirm=test"), "{}", ran.stderr);
        let mut confirmed = arguments.clone();
        confirmed.push("--confirm=test");
        let ran = world.run(&confirmed).await;
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
    let kinds: Vec<_> = {
        let state = world.fake.state();
        state
            .submitted
            .iter()
            .map(|request| (request.kind.clone(), request.date.clone(), request.keep))
            .collect()
    };
    let expected = [
        ("backup", "20261118", 0),
        ("backup-verify", "", 0),
        ("restore", "20261118", 0),
        ("backup-prune", "", 3),
    ];
    assert_eq!(
        kinds,
        expected.map(|(kind, date, keep)| (kind.to_owned(), date.to_owned(), keep))
    );
    let ran = world
        .run(&[
            "restore",
            "--date",
            "20261119",
            "--confirm=test",
            "-o",
            "json",
        ])
        .await;
    assert_eq!(
        (ran.code, ran.error()["code"].as_str()),
        (Some(1), Some("unknown-backup"))
    );
    assert!(
        ran.error()["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("20261118"))
    );
    assert_eq!(
        world.run(&["restore", "--date", "2026-11-18"]).await.code,
        Some(2)
    );
}

#[tokio::test]
async fn operations_are_controlled_by_their_id() {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.operations = vec![restarting()];
        state.operation = restarting();
        state.updates = vec![restarted()];
    }
    assert_eq!(
        world.run(&["operation", "pause", "op-17"]).await.code,
        Some(0)
    );
    assert_eq!(
        world.run(&["operation", "abort", "op-17"]).await.code,
        Some(1),
        "needs --yes"
    );
    assert_eq!(
        world
            .run(&["operation", "abort", "op-17", "--yes"])
            .await
            .code,
        Some(0)
    );
    let actions: Vec<_> = {
        let state = world.fake.state();
        state
            .controlled
            .iter()
            .map(|request| request.action.clone())
            .collect()
    };
    assert_eq!(actions, ["pause", "abort"]);
    let ran = world.run(&["operation", "watch", "op-17"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert!(ran.stdout.contains("succeeded"));
    let ran = world
        .run(&["operation", "show", "op-71", "-o", "json"])
        .await;
    assert_eq!(
        (ran.code, ran.error()["hint"].as_str()),
        (Some(1), Some("did you mean op-17?"))
    );
}

#[tokio::test]
async fn the_agent_is_upgraded_and_waited_for() {
    let world = World::new();
    assert_eq!(
        world.run(&["agent", "upgrade", "--dry-run"]).await.code,
        Some(4)
    );
    assert!(world.fake.state().untouched());
    let ran = world.run(&["agent", "upgrade", "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    assert_eq!(
        ran.json(),
        serde_json::json!({"from_version": "0.1.0", "to_version": "0.2.0"})
    );
}

#[tokio::test]
async fn readonly_refuses_every_change() {
    let world = restartable();
    world.write("fleet.toml", SPEC);
    for verb in [
        "start all",
        "stop all --yes",
        "restart all --yes",
        "apply --yes",
        "backup",
        "backup prune --confirm=test",
        "restore --date 20261118 --confirm=test",
        "operation abort op-17 --yes",
        "agent upgrade",
        "context use test",
        "demo up",
        "init new.toml",
    ] {
        let mut arguments = vec!["--readonly"];
        arguments.extend(verb.split(' '));
        let ran = world.run(&arguments).await;
        assert_eq!(ran.code, Some(13), "{verb}: {}", ran.all());
        assert!(ran.stderr.contains("--readonly"), "{}", ran.stderr);
        let mut arguments: Vec<&str> = verb.split(' ').collect();
        arguments.extend(["-o", "json"]);
        let ran = world.run_with(("TANAKO_READONLY", "1"), &arguments).await;
        assert_eq!(
            (ran.code, ran.error()["code"].as_str()),
            (Some(13), Some("readonly")),
            "{verb}"
        );
    }
    assert!(world.fake.state().untouched());
    // Reading and looking ahead stay possible.
    assert_eq!(world.run(&["--readonly", "status"]).await.code, Some(0));
    assert_eq!(
        world
            .run(&["--readonly", "restart", "all", "--dry-run"])
            .await
            .code,
        Some(4)
    );
}

/// A plan and the operation for moving what runs on a host.
fn draining(world: &World, state: &str, problem: Option<Problem>) {
    let mut fake = world.fake.state();
    let change = |action: &str, object: &str, why: &str| PlanChange {
        action: action.into(),
        object: object.into(),
        why: why.into(),
    };
    fake.plan = PlanReply {
        version: 3,
        changes: vec![
            change(
                "cordon",
                "host:alpha",
                "it gets nothing new, and what it runs moves",
            ),
            change(
                "move",
                "tanako/0",
                "from alpha to beta: its host is drained",
            ),
            change(
                "move",
                "tanako/1",
                "from alpha to gamma: its host is drained",
            ),
            change("keep", "db/node1", "its data lies there"),
        ],
        cost: Some(Cost {
            processes_moved: 2,
            identifies_left: 996,
            seconds: 6,
            ..Cost::default()
        }),
        warnings: vec!["db/node1 stays: its data lies there".into()],
        ..PlanReply::default()
    };
    let operation = |state: &str| Operation {
        id: "drain-9".into(),
        kind: "drain".into(),
        targets: vec!["host:alpha".into()],
        state: state.into(),
        ..restarted()
    };
    fake.operation = operation("running");
    fake.updates = vec![Operation {
        problem,
        ..operation(state)
    }];
}

#[tokio::test]
async fn a_drain_shows_where_everything_goes_before_it_asks() {
    let world = World::new();
    draining(&world, "succeeded", None);
    let dry = world.run(&["drain", "alpha", "--dry-run"]).await;
    assert_eq!(dry.code, Some(4), "{}", dry.all());
    insta::assert_snapshot!("drain_dry", dry.all());
    let refused = world.run(&["drain", "alpha"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    assert!(world.fake.state().untouched());
    let json = world
        .run(&["drain", "alpha", "--dry-run", "-o", "json"])
        .await
        .json();
    assert_eq!(json["cost"]["processes_moved"].as_u64(), Some(2));
    let ran = world
        .run(&[
            "drain",
            "host:alpha",
            "--deadline",
            "10m",
            "--max-unavailable",
            "3",
            "--yes",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let sent = world.fake.state().submitted.clone();
    assert_eq!(
        (
            &*sent[0].kind,
            &*sent[0].targets,
            sent[0].deadline_s,
            sent[0].max_unavailable
        ),
        ("drain", &["host:alpha".to_owned()][..], 600, 3)
    );
}

#[tokio::test]
async fn a_drain_that_leaves_something_behind_is_1_and_names_it() {
    let world = World::new();
    let problem = Problem {
        code: "not-drained".into(),
        object: "host:alpha".into(),
        message: "1 process stays on host:alpha: db/node1 (its data lies there)".into(),
        hint: "the host stays cordoned".into(),
        ..Problem::default()
    };
    draining(&world, "failed", Some(problem));
    let ran = world.run(&["drain", "alpha", "--yes"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(
        ran.stderr.contains("db/node1 (its data lies there)"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn hosts_are_checked_before_anything_is_asked() {
    let world = World::new();
    for verb in ["cordon", "uncordon", "drain"] {
        let ran = world.run(&[verb, "alfa"]).await;
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        assert!(
            ran.stderr.contains("did you mean host:alpha?"),
            "{}",
            ran.stderr
        );
        assert_eq!(world.run(&[verb]).await.code, Some(2));
    }
    assert!(world.fake.state().untouched());
}

#[tokio::test]
async fn a_cordon_asks_nothing_and_a_rebalance_does() {
    let world = World::new();
    draining(&world, "succeeded", None);
    world.fake.state().plan.changes.truncate(1);
    let ran = world.run(&["cordon", "alpha"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    draining(&world, "succeeded", None);
    assert_eq!(world.run(&["rebalance"]).await.code, Some(1));
    assert_eq!(world.run(&["rebalance", "--yes"]).await.code, Some(0));
    let kinds: Vec<String> = world
        .fake
        .state()
        .submitted
        .iter()
        .map(|request| request.kind.clone())
        .collect();
    assert_eq!(kinds, ["cordon", "rebalance"]);
}

#[tokio::test]
async fn advice_is_4_when_there_is_some() {
    let world = World::new();
    let ran = world.run(&["advise"]).await;
    assert_eq!((ran.code, &*ran.stdout), (Some(0), "nothing to change\n"));
    world.fake.state().advice = Advice {
        proposals: vec![Proposal {
            kind: "reshard".into(),
            object: "tanako".into(),
            from: 8,
            to: 18,
            urgency: "soon".into(),
            summary: "reshard tanako from 8 to 18 shards".into(),
            reasons: vec!["17000 guilds on 8 shards: 2125 each, Discord allows 2500".into()],
            command: "tanakoctl reshard tanako --shards 18".into(),
        }],
        notes: vec!["one host: when it is lost, everything is".into()],
        unknown: vec!["how fast tanako grows: nothing is recorded yet".into()],
        may_act: vec!["rebalance".into()],
        acted_at: 1_763_691_605_000,
        at: 1_763_691_605_000,
    };
    let ran = world.run(&["advise"]).await;
    assert_eq!(ran.code, Some(4));
    insta::assert_snapshot!("advise", ran.all());
    let json = world.run(&["advise", "-o", "json"]).await.json();
    assert_eq!(json["proposals"][0]["to"].as_u64(), Some(18));
    assert!(world.fake.state().untouched());
}
