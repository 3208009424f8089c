//! Rollouts on the real `tanako-agent`: what has not had its turn runs by the old spec, whatever dies; what
//! does not do well is left, or goes back.

mod agent_kit;

use std::{fs, time::Duration};

use agent_kit::{
    Agent, Client, bot, done, end, process, ready, request, signal, spec, status, submit, until,
};
use tanako_proto::fleet::v1::{self as wire};

/// Three processes that say by which spec they run, and are ready when they have said it. None of them ends
/// while there is a file `hold` in the agent's data directory.
fn fleet(version: &str, command: &str) -> String {
    let mut bot = bot(
        "a",
        3,
        &format!("env = {{ V = \"{version}\" }}\nrestart = {{ when = \"always\" }}"),
    );
    let says = format!(
        "echo $TANAKO_PROCESS runs $V; {command} \
         trap 'while [ -e hold ]; do sleep 0.05; done; exit 0' TERM; echo up;"
    );
    for (usual, ours) in [
        (
            "echo begin $TANAKO_PROCESS; trap 'exit 0' TERM;",
            says.as_str(),
        ),
        (
            "{ kind = \"started\", after = \"100ms\", timeout = \"20s\" }",
            "{ kind = \"log\", pattern = \"^up$\", timeout = \"60s\" }",
        ),
        ("grace = \"5s\"", "grace = \"60s\""),
    ] {
        assert!(bot.contains(usual), "{usual} in {bot}");
        bot = bot.replace(usual, ours);
    }
    spec(&bot)
}

fn with_token(agent: &Agent, toml: &str) -> String {
    toml.replace("TOKEN", &agent.path("token").display().to_string())
}

fn rollout(strategy: &str, toml: &str) -> wire::OperationRequest {
    wire::OperationRequest {
        rollout: Some(wire::RolloutRequest {
            strategy: strategy.to_owned(),
            spec_toml: toml.to_owned(),
            observe_s: 2,
            ..wire::RolloutRequest::default()
        }),
        ..request("rollout", &["all"])
    }
}

/// The version that each process said last.
fn versions(agent: &Agent) -> Vec<String> {
    (0..3)
        .map(|n| {
            let log =
                fs::read_to_string(agent.path(&format!("d/logs/a.{n}.log"))).unwrap_or_default();
            let last = log.lines().rev().find_map(|line| line.split_once(" runs "));
            last.map_or_else(String::new, |(_, version)| version.to_owned())
        })
        .collect()
}

async fn control(client: &mut Client, id: &str, action: &str) -> wire::Operation {
    let request = wire::ControlRequest {
        id: id.to_owned(),
        action: action.to_owned(),
    };
    client
        .control_operation(request)
        .await
        .expect("accepted")
        .into_inner()
}

async fn operation(client: &mut Client, id: &str) -> wire::Operation {
    let id = wire::OperationId { id: id.to_owned() };
    client.get_operation(id).await.expect("there").into_inner()
}

/// Waits until the operation is as wished.
async fn until_it(
    client: &mut Client,
    id: &str,
    wish: impl Fn(&wire::Operation) -> bool,
) -> wire::Operation {
    let end = std::time::Instant::now() + agent_kit::SOON;
    loop {
        let op = operation(client, id).await;
        if wish(&op) {
            return op;
        }
        assert!(std::time::Instant::now() < end, "{op:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Begins a rolling rollout and pauses it in its first step, which is done when this returns.
async fn paused_after_the_first(agent: &Agent, client: &mut Client, toml: &str) -> wire::Operation {
    let is_running = |op: &wire::Operation| op.steps.iter().any(|step| step.state == "running");
    let hold = agent.path("d/hold");
    fs::write(&hold, "").expect("writes");
    let op = submit(client, rollout("rolling", toml))
        .await
        .expect("accepted");
    until_it(client, &op.id, is_running).await;
    control(client, &op.id, "pause").await;
    fs::remove_file(&hold).expect("removes");
    until_it(client, &op.id, |op| op.done >= 1 && !is_running(op)).await
}

async fn stored(client: &mut Client) -> String {
    client
        .get_spec(wire::SpecRequest {})
        .await
        .expect("a spec")
        .into_inner()
        .toml
}

#[tokio::test]
async fn what_has_not_had_its_turn_runs_by_the_old_spec_whatever_dies() {
    let mut agent = Agent::new(&fleet("1", ""));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    let next = with_token(&agent, &fleet("2", ""));
    let op = paused_after_the_first(&agent, &mut client, &next).await;
    assert_eq!((op.strategy.as_str(), op.steps.len()), ("rolling", 3));
    assert_eq!(op.done, 1, "{op:#?}");
    let now = status(&mut client).await;
    let pid = process(&now, "a/2").pid;
    // The agent dies, and then one whose turn has not come.
    agent.kill();
    signal(pid, "KILL");
    agent.start();
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| {
        ready(status, 3) && process(status, "a/2").pid != pid
    })
    .await;
    assert_eq!(versions(&agent), ["2", "1", "1"]);
    assert_eq!(operation(&mut client, &op.id).await.state, "paused");
    control(&mut client, &op.id, "resume").await;
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(versions(&agent), ["2", "2", "2"]);
    assert_eq!(ended.receipt_totals.expect("totals").shards, 3);
    // And back again, as a rollout of its own.
    let mut undo = rollout("", "");
    undo.targets.clear();
    undo.rollout
        .as_mut()
        .expect("set above")
        .undo
        .clone_from(&op.id);
    let undone = submit(&mut client, undo.clone()).await.expect("accepted");
    assert_eq!(end(&mut client, &undone.id).await.state, "succeeded");
    assert_eq!(versions(&agent), ["1", "1", "1"]);
    assert!(stored(&mut client).await.contains("V = \"1\""));
    let stale = submit(&mut client, undo)
        .await
        .expect_err("the spec is another now");
    assert_eq!(stale.code, "stale-undo");
}

#[tokio::test]
async fn an_abort_changes_back_what_has_been_changed() {
    let agent = Agent::new(&fleet("1", ""));
    let mut client = agent.client().await;
    let before = until(&mut client, "ready", |status| ready(status, 3)).await;
    let next = with_token(&agent, &fleet("2", ""));
    let op = paused_after_the_first(&agent, &mut client, &next).await;
    assert!(stored(&mut client).await.contains("V = \"2\""));
    control(&mut client, &op.id, "abort").await;
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "aborted", "{ended:#?}");
    assert_eq!(versions(&agent), ["1", "1", "1"]);
    assert!(stored(&mut client).await.contains("V = \"1\""));
    let after = status(&mut client).await;
    let touched = ["a/0", "a/1", "a/2"]
        .iter()
        .filter(|name| process(&before, name).pid != process(&after, name).pid)
        .count();
    assert_eq!(touched, 1, "the others were never touched");
    let mut undo = rollout("", "");
    undo.targets.clear();
    undo.rollout
        .as_mut()
        .expect("set above")
        .undo
        .clone_from(&op.id);
    let refused = submit(&mut client, undo).await.expect_err("went back");
    assert_eq!(refused.code, "nothing-to-undo");
}

#[tokio::test]
async fn a_rollout_stops_at_the_first_that_does_not_become_ready_and_can_be_undone() {
    let agent = Agent::new(&fleet("1", ""));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    let bad = fleet("2", "[ $TANAKO_PROCESS = a/1 ] && exit 3;").replace("\"always\"", "\"never\"");
    let bad = with_token(&agent, &bad);
    let op = submit(&mut client, rollout("rolling", &bad))
        .await
        .expect("accepted");
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "failed", "{ended:#?}");
    let problem = ended.problem.expect("says why");
    assert_eq!(
        (problem.code.as_str(), problem.object.as_str()),
        ("not-ready", "a/1")
    );
    assert!(problem.hint.contains("rollout undo"), "{problem:?}");
    assert!(ended.message.contains("1 not touched"), "{}", ended.message);
    assert_eq!(versions(&agent), ["2", "2", "1"]);
    // What runs by two specs is said until somebody decides, with the command that ends it.
    let command = format!("`tanakoctl rollout undo {}`", ended.id);
    assert!(ended.message.contains(&command), "{}", ended.message);
    let mixed = status(&mut client).await;
    let line = mixed.reasons.iter().find(|line| line.contains("half-way"));
    let line = line.unwrap_or_else(|| panic!("{:?}", mixed.reasons));
    assert!(line.contains(&command) && line.contains("a/2"), "{line}");
    let mut undo = rollout("", "");
    undo.targets.clear();
    undo.rollout
        .as_mut()
        .expect("set above")
        .undo
        .clone_from(&op.id);
    let undone = submit(&mut client, undo).await.expect("accepted");
    let undone = end(&mut client, &undone.id).await;
    assert_eq!(undone.state, "succeeded", "{undone:#?}");
    let after = until(&mut client, "ready", |status| ready(status, 3)).await;
    assert_eq!(versions(&agent), ["1", "1", "1"]);
    assert_eq!(process(&after, "a/2").attempt, 1, "never touched");
    assert_eq!(after.reasons, Vec::<String>::new());
}

#[tokio::test]
async fn a_canary_that_dies_takes_nobody_along() {
    let agent = Agent::new(&fleet("1", ""));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    let bad = with_token(&agent, &fleet("2", "echo up; sleep 1; exit 4;"));
    let mut request = rollout("canary", &bad);
    request.rollout.as_mut().expect("set above").canary = "a/1".to_owned();
    request.rollout.as_mut().expect("set above").observe_s = 20;
    let op = submit(&mut client, request).await.expect("accepted");
    assert_eq!(op.steps[0].object, "a/1");
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "failed", "{ended:#?}");
    let problem = ended.problem.expect("says why");
    assert_eq!(problem.code, "not-healthy", "{problem:?}");
    assert!(
        ended.message.ends_with("all is as before"),
        "{}",
        ended.message
    );
    let after = until(&mut client, "ready", |status| ready(status, 3)).await;
    assert_eq!(versions(&agent), ["1", "1", "1"]);
    assert_eq!(
        (
            process(&after, "a/0").attempt,
            process(&after, "a/2").attempt
        ),
        (1, 1)
    );
    // One that does well is followed by the others.
    let good = with_token(&agent, &fleet("3", ""));
    let op = submit(&mut client, rollout("canary", &good))
        .await
        .expect("accepted");
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(versions(&agent), ["3", "3", "3"]);
}

#[tokio::test]
async fn another_number_of_shards_is_no_matter_of_apply_while_the_bot_runs() {
    let agent = Agent::new(&fleet("1", ""));
    let mut client = agent.client().await;
    until(&mut client, "ready", |status| ready(status, 3)).await;
    let more = with_token(&agent, &fleet("1", "")).replace("shards = 3", "shards = 4");
    let apply = wire::ApplyRequest {
        spec_toml: more.clone(),
        ..wire::ApplyRequest::default()
    };
    let refused = client.apply(apply.clone()).await.expect_err("it runs");
    let problem = wire::Problem::from_status(&refused);
    assert_eq!(problem.code, "needs-reshard");
    assert!(
        problem.hint.contains("tanakoctl reshard a --shards 4"),
        "{problem:?}"
    );
    let refused = submit(&mut client, rollout("rolling", &more))
        .await
        .expect_err("nor of a rollout");
    assert_eq!(refused.code, "needs-reshard");
    // Other processes for the same shards are a matter of a stop, too, and none that `apply` decides.
    let other = with_token(&agent, &fleet("1", ""))
        .replace("shards = 3", "shards = 3\nshards_per_process = 2");
    let relaid = wire::ApplyRequest {
        spec_toml: other.clone(),
        ..wire::ApplyRequest::default()
    };
    let refused = client.apply(relaid).await.expect_err("it runs");
    let problem = wire::Problem::from_status(&refused);
    assert_eq!(problem.code, "needs-stop");
    assert!(problem.hint.contains("tanakoctl stop a"), "{problem:?}");
    let refused = submit(&mut client, rollout("rolling", &other))
        .await
        .expect_err("nor of a rollout");
    assert!(refused.hint.contains("stop a"), "{refused:?}");
    // What a reshard needs is checked before anything moves.
    let mut reshard = request("reshard", &["a"]);
    reshard.reshard = Some(wire::ReshardRequest {
        bot: "a".to_owned(),
        shards: 3,
        ..wire::ReshardRequest::default()
    });
    let refused = submit(&mut client, reshard)
        .await
        .expect_err("that many it has");
    assert_eq!(refused.code, "preflight");
    assert!(refused.message.contains("3 shards already"), "{refused:?}");
    done(&mut client, "stop", &["a"]).await;
    let op = client.apply(apply).await.expect("accepted").into_inner();
    let ended = end(&mut client, &op.id).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    done(&mut client, "start", &["a"]).await;
    until(&mut client, "ready", |status| ready(status, 4)).await;
}
