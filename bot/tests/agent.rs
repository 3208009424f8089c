//! What the agent and the bot say to each other.

mod support;

use serde_json::json;
use support::agent::Agent;
use support::{Bot, World, eventually, quick};
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::{Command, DbVerify, Drain, ProcessStage, ShardStage, WorkerKind};
use tonic::Status;

fn start(world: &World) -> Bot {
    world
        .bot()
        .env("TANAKO_SOCKET", world.path("worker.sock"))
        .env("TANAKO_PROCESS", "tanako/3")
        .env("TANAKO_ATTEMPT", "7")
        .env("SHARD_IDS", "0")
        .env("SHARD_COUNT", "1")
        .start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_hello_reports_limits_and_figures() {
    let world = World::new(simcord::Config {
        heartbeat_interval: std::time::Duration::from_secs(5),
        ..quick(6)
    })
    .await;
    let agent = Agent::default();
    let _served = agent.serve(&world.path("worker.sock"));
    let _bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    world.commands_registered().await;
    world.use_command(json!({ "command": "ping" })).await;
    agent
        .until("the limits and a report with all of it", |state| {
            let limits = state.limits.last();
            let told = limits.is_some_and(|limits| limits.max_concurrency == 16);
            told && state.reports.last().is_some_and(|report| {
                let shard = &report.shards[0];
                report.stage() == ProcessStage::Ready
                    && (shard.guilds, shard.guilds_expected, shard.identifies) == (6, 6, 1)
                    && shard.interactions == 1
                    && shard.latency_ms > 0.0
                    && shard.events_by_type.get("GUILD_CREATE") == Some(&6)
                    && shard.events == shard.events_by_type.values().sum::<u64>()
                    && shard.members > 0
                    && shard.first_event_at > 1_700_000_000_000
                    && shard.established_at >= shard.first_event_at
                    && shard.last_event_at >= shard.established_at
                    && shard.newest_handled > 1_700_000_000_000
                    && (shard.lost, shard.misplaced_guilds, shard.held) == (0, 0, 0)
                    && report
                        .metrics
                        .get("rest_calls_total")
                        .is_some_and(|calls| *calls >= 2.0)
                    && report
                        .metrics
                        .get("rss_bytes")
                        .is_some_and(|bytes| *bytes > 1e6)
            })
        })
        .await;
    let state = agent.state();
    let hello = &state.hellos[0];
    assert_eq!(
        (hello.process.as_str(), hello.attempt, hello.kind()),
        ("tanako/3", 7, WorkerKind::Shard)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_identify_without_a_permit() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    agent.state().refuse_permits = Some(Status::failed_precondition(
        "the budget is exhausted until 23:00",
    ));
    let _served = agent.serve(&world.path("worker.sock"));
    let _bot = start(&world);
    agent
        .until("the shard to wait and say why", |state| {
            state.reports.last().is_some_and(|report| {
                report.stage() == ProcessStage::Starting
                    && report.detail.contains("23:00")
                    && report
                        .shards
                        .iter()
                        .any(|shard| shard.stage() == ShardStage::WaitingPermit)
            })
        })
        .await;
    assert_eq!(world.account().await["identifies"], json!(0));
    agent.state().refuse_permits = None;
    agent.until_stage(ShardStage::Ready).await;
    assert_eq!(world.account().await["identifies"], json!(1));
    assert_eq!(agent.state().permits, [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_that_comes_too_late_is_not_used() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    agent.state().stale_permits = 2;
    let _served = agent.serve(&world.path("worker.sock"));
    let _bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    assert_eq!(agent.state().permits, [0, 0, 0]);
    assert_eq!(agent.state().unused_permits, [0, 1, 2], "given back");
    assert_eq!(world.account().await["identifies"], json!(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_agent_changes_nothing_and_gets_everything_again() {
    let world = World::new(simcord::Config {
        events_per_second: 50.0,
        ..quick(6)
    })
    .await;
    let agent = Agent::default();
    let served = agent.serve(&world.path("worker.sock"));
    let mut bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    agent
        .until("a deposit", |state| !state.sessions.is_empty())
        .await;
    served.die(&agent).await;
    bot.logged("lost the agent").await;
    let events = world.account().await["events_sent"].as_u64().unwrap();
    world.account_reaches("events_sent", events + 50).await;
    // Another agent, which knows nothing of the session.
    let successor = Agent::default();
    let _served = successor.serve(&world.path("worker.sock"));
    successor
        .until("Hello and the full deposit", |state| {
            state.hellos.len() == 1
                && state.sessions.get(&0).is_some_and(|session| {
                    session
                        .guilds
                        .as_ref()
                        .is_some_and(|guilds| guilds.ids.len() == 6)
                })
        })
        .await;
    assert!(bot.runs());
    let account = world.account().await;
    assert_eq!(
        (
            &account["identifies"],
            &account["resumes"],
            &account["connections"]
        ),
        (&json!(1), &json!(0), &json!(1))
    );
    assert_eq!(bot.terminate().await, 0);
    assert_eq!(successor.state().acks, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guild_counts_are_sent_only_when_they_change() {
    let world = World::new(simcord::Config {
        events_per_second: 50.0,
        ..quick(6)
    })
    .await;
    let agent = Agent::default();
    let _served = agent.serve(&world.path("worker.sock"));
    let _bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    let seq = agent
        .state()
        .sessions
        .get(&0)
        .map_or(0, |session| session.seq);
    let before = agent.state().deposits_with_guilds;
    agent
        .until("the sequence number to move on", |state| {
            state
                .sessions
                .get(&0)
                .is_some_and(|session| session.seq > seq + 50)
        })
        .await;
    // One more at most: the snapshot at READY may be a moment behind.
    assert!(agent.state().deposits_with_guilds <= before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_process_leaves_without_touching_the_gateway() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    agent.state().superseded = true;
    let _served = agent.serve(&world.path("worker.sock"));
    let mut bot = start(&world);
    assert_eq!(bot.exit_code().await, 0, "{}", bot.log());
    let account = world.account().await;
    assert_eq!(
        (&account["connections"], &account["identifies"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_refused_with_aborted_means_leave() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    agent.state().refuse_permits = Some(Status::aborted("attempt 8 has attached"));
    let _served = agent.serve(&world.path("worker.sock"));
    let mut bot = start(&world);
    assert_eq!(bot.exit_code().await, 0, "{}", bot.log());
    assert_eq!(world.account().await["identifies"], json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_on_command() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    let _served = agent.serve(&world.path("worker.sock"));
    let mut bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    agent
        .command(Command {
            id: 5,
            command: Some(Order::Verify(DbVerify::default())),
        })
        .await;
    agent
        .until("a refusal", |state| {
            state
                .results
                .iter()
                .any(|result| result.id == 5 && !result.ok)
        })
        .await;
    assert_eq!(agent.state().results[0].code, "unsupported");
    agent
        .command(Command {
            id: 6,
            command: Some(Order::Drain(Drain { deadline_ms: 5000 })),
        })
        .await;
    assert_eq!(bot.exit_code().await, 0, "{}", bot.log());
    let state = agent.state();
    assert!(
        state
            .results
            .iter()
            .any(|result| result.id == 6 && result.ok)
    );
    assert_eq!(state.acks, 1);
    assert_eq!(
        state.reports.last().unwrap().stage(),
        ProcessStage::Draining
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_for_its_agent_and_stops_when_told() {
    let world = World::new(quick(3)).await;
    let mut bot = start(&world);
    bot.logged("lost the agent").await;
    assert_eq!(world.account().await["connections"], json!(0));
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_answer_the_close_holds_nobody_up() {
    let world = World::new(quick(3)).await;
    let agent = Agent::default();
    let _served = agent.serve(&world.path("worker.sock"));
    let mut bot = start(&world);
    agent.until_stage(ShardStage::Ready).await;
    world.post("faults/silence", json!({ "all": true })).await;
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    eventually("no second connection", || async {
        let account = world.account().await;
        (account["connections"] == json!(1)).then_some(())
    })
    .await;
}
