//! Two processes of one bot: one stands down and another takes over; two sets share events by a cut.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::agent::{Agent, Served};
use support::{Bot, World, eventually, exact, quick};
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::{
    CommandResult, Cut, Duty, ProcessStage, Reconnect, ShardStage, Share, StandDown, TakeOver,
};

/// One process with an agent of its own.
struct Process {
    name: &'static str,
    attempt: u64,
    agent: Agent,
    _served: Served,
    bot: Bot,
}

fn launch(world: &World, name: &str, attempt: u64) -> Bot {
    world
        .bot()
        .env("TANAKO_SOCKET", world.path(&format!("{name}.sock")))
        .env("TANAKO_PROCESS", format!("tanako/{name}"))
        .env("TANAKO_ATTEMPT", attempt.to_string())
        .start()
}

impl Process {
    fn start(world: &World, name: &'static str, duty: Duty, shards: &[u32], count: u32) -> Self {
        let agent = Agent::default();
        {
            let mut state = agent.state();
            state.duty = duty;
            state.shards = (shards.to_vec(), count);
        }
        let served = agent.serve(&world.path(&format!("{name}.sock")));
        Self {
            name,
            attempt: 1,
            agent,
            _served: served,
            bot: launch(world, name, 1),
        }
    }

    /// kill -9, and the next attempt with what was deposited and these terms.
    async fn crash(&mut self, world: &World, duty: Duty, cut: Option<Cut>) {
        self.bot.kill(&self.agent).await;
        {
            let mut state = self.agent.state();
            state.reports.clear();
            state.duty = duty;
            state.cut = cut;
        }
        self.attempt += 1;
        self.bot = launch(world, self.name, self.attempt);
    }

    async fn ready(&self, stage: ShardStage) {
        self.agent.until_stage(stage).await;
        self.agent
            .until("the process to be ready", |state| {
                state
                    .reports
                    .last()
                    .is_some_and(|report| report.stage() == ProcessStage::Ready)
            })
            .await;
    }

    async fn stand_down(&self) -> CommandResult {
        let order = StandDown {
            deadline_ms: 20_000,
        };
        self.agent.order(Order::StandDown(order)).await
    }

    /// Takes over what another process has deposited.
    async fn take_over(&self, from: &Self) -> CommandResult {
        let sessions = from.agent.state().sessions.values().cloned().collect();
        self.agent
            .order(Order::TakeOver(TakeOver { sessions }))
            .await
    }

    async fn share(&self, duty: Duty, cut: Option<Cut>) -> CommandResult {
        let order = Share {
            duty: duty.into(),
            cut,
        };
        self.agent.order(Order::Share(order)).await
    }

    fn sum(&self, of: impl Fn(&tanako_proto::worker::v1::ShardReport) -> u64) -> u64 {
        let state = self.agent.state();
        state.reports.last().unwrap().shards.iter().map(of).sum()
    }
}

#[track_caller]
fn done(result: &CommandResult) -> Value {
    assert!(result.ok, "{result:?}");
    serde_json::from_str(&result.json).unwrap()
}

#[track_caller]
fn refused(result: &CommandResult, code: &str) {
    assert!(!result.ok, "{result:?}");
    assert_eq!(result.code, code, "{result:?}");
    assert!(!result.message.is_empty() && !result.hint.is_empty());
}

/// Events and commands from now on.
async fn load(world: &World) {
    let rates = json!({ "events_per_second": 150, "interactions_per_second": 20 });
    world.post("rates", rates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stands_down_another_takes_over_and_back() {
    let world = World::new(quick(20)).await;
    let old = Process::start(&world, "0", Duty::Unspecified, &[0, 1], 2);
    old.ready(ShardStage::Ready).await;
    world.commands_registered().await;
    load(&world).await;
    let mut new = Process::start(&world, "g2-0", Duty::Warm, &[0, 1], 2);
    new.ready(ShardStage::Standby).await;
    assert_eq!(
        world.account().await["connections"],
        2,
        "warm means unconnected"
    );
    refused(&new.share(Duty::Active, None).await, "wrong_state");
    let reconnect = Reconnect {
        shard_id: 0,
        ..Reconnect::default()
    };
    refused(
        &new.agent.order(Order::Reconnect(reconnect)).await,
        "wrong_state",
    );
    // Standing down twice is standing down once.
    assert_eq!(done(&new.stand_down().await)["acknowledged"], 0);

    world.account_reaches("interactions.answered", 20).await;
    assert_eq!(done(&old.stand_down().await)["acknowledged"], 2);
    old.ready(ShardStage::Standby).await;
    let sessions: Vec<_> = old.agent.state().sessions.values().cloned().collect();
    for session in &sessions {
        assert!(session.last_event_at > 0, "{session:?}");
        assert!(session.stopped_at >= session.last_event_at, "{session:?}");
    }
    let taken = done(&new.take_over(&old).await);
    assert_eq!(taken, json!({ "resumed": 2, "identified": 0 }));
    // The gap of each shard is told by both reports together.
    new.agent
        .until("figures", |state| {
            state.reports.last().is_some_and(|report| {
                report.shards.iter().all(|shard| {
                    let old = sessions
                        .iter()
                        .find(|session| session.shard_id == shard.shard_id)
                        .unwrap();
                    shard.first_event_at >= old.last_event_at
                        && shard.established_at >= old.stopped_at
                        && shard.event_lag_ms > 0.0
                })
            })
        })
        .await;
    // Told a second time, as after a lost answer.
    assert_eq!(done(&new.take_over(&old).await), taken);
    let answered = world.account().await["interactions"]["answered"]
        .as_u64()
        .unwrap();
    world
        .account_reaches("interactions.answered", answered + 20)
        .await;

    // And back, for a rollback.
    assert_eq!(done(&new.stand_down().await)["acknowledged"], 2);
    assert_eq!(done(&new.stand_down().await)["acknowledged"], 0);
    let taken = done(&old.take_over(&new).await);
    assert_eq!(taken, json!({ "resumed": 2, "identified": 0 }));
    let account = world.calm().await;
    exact(&account);
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(2), &json!(4))
    );
    assert_eq!(old.sum(|shard| shard.lost + shard.duplicated), 0);
    assert_eq!(new.bot.terminate().await, 0, "{}", new.bot.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_confirmed_stays_ones_own() {
    let world = World::new(quick(6)).await;
    let process = Process::start(&world, "0", Duty::Active, &[0], 1);
    process.ready(ShardStage::Ready).await;
    process.agent.state().keep_acks = true;
    refused(&process.stand_down().await, "not_acknowledged");
    // Nobody has the session, and nobody hands one over: it is resumed all the same.
    let result = process
        .agent
        .order(Order::TakeOver(TakeOver::default()))
        .await;
    assert_eq!(done(&result), json!({ "resumed": 1, "identified": 0 }));
    assert_eq!(world.account().await["identifies"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_without_a_session_identifies_and_can_be_interrupted() {
    let world = World::new(quick(6)).await;
    let process = Process::start(&world, "0", Duty::Warm, &[0], 1);
    process.ready(ShardStage::Standby).await;
    process.agent.state().refuse_permits = Some(tonic::Status::failed_precondition(
        "the budget is exhausted",
    ));
    let id = process
        .agent
        .begin(Order::TakeOver(TakeOver::default()))
        .await;
    process.agent.until_stage(ShardStage::WaitingPermit).await;
    assert_eq!(done(&process.stand_down().await)["acknowledged"], 0);
    process
        .agent
        .until("the takeover to fail", |state| {
            state
                .results
                .iter()
                .any(|result| result.id == id && result.code == "interrupted")
        })
        .await;
    process.agent.state().refuse_permits = None;
    let result = process
        .agent
        .order(Order::TakeOver(TakeOver::default()))
        .await;
    assert_eq!(done(&result), json!({ "resumed": 0, "identified": 1 }));
}

/// From choosing a cut to the cut: enough for a busy machine to tell everybody.
const LEAD_MS: i64 = 5000;

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as i64
}

/// One set of one shard, another of two shards: from the cut on the second one answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sets_share_by_a_cut_and_each_interaction_is_answered_once() {
    let world = World::new(quick(20)).await;
    let mut old = Process::start(&world, "0", Duty::Active, &[0], 1);
    old.ready(ShardStage::Ready).await;
    world.commands_registered().await;
    load(&world).await;
    let new = Process::start(&world, "g2-0", Duty::Shadow, &[0, 1], 2);
    new.ready(ShardStage::Ready).await;
    refused(&new.take_over(&old).await, "wrong_state");
    refused(&new.share(Duty::Warm, None).await, "wrong_state");
    world.account_reaches("interactions.answered", 40).await;
    new.agent
        .until("the shadow to hold events", |state| {
            state
                .reports
                .last()
                .is_some_and(|report| report.shards.iter().all(|shard| shard.held > 0))
        })
        .await;
    assert_eq!(new.sum(|shard| shard.interactions), 0);

    let at = now_ms().max(old.sum(|shard| shard.newest_handled as u64) as i64) + LEAD_MS;
    let before = Some(Cut { at, before: true });
    let newest = done(&old.share(Duty::Active, before).await)["newest_handled"].clone();
    assert!(newest.as_i64().unwrap() < at, "{newest} {at}");
    // Told twice.
    done(&old.share(Duty::Active, before).await);
    let from = Some(Cut { at, before: false });
    done(&new.share(Duty::Active, from).await);
    eventually("both to have had their turn", || async {
        let both = new.sum(|shard| shard.interactions) >= 40 && now_ms() > at + 1000;
        both.then_some(())
    })
    .await;
    let account = world.account().await;
    assert_eq!(old.bot.terminate().await, 0, "{}", old.bot.log());
    let answered = account["interactions"]["answered"].as_u64().unwrap();
    world
        .account_reaches("interactions.answered", answered + 20)
        .await;
    let account = world.calm().await;
    exact(&account);
    assert_eq!(account["identifies"], 3, "{account}");
    let handled = old.sum(|shard| shard.interactions) + new.sum(|shard| shard.interactions);
    eventually("all to be reported", || async {
        let handled = old.sum(|shard| shard.interactions) + new.sum(|shard| shard.interactions);
        (account["interactions"]["sent"].as_u64() == Some(handled)).then_some(())
    })
    .await;
    assert!(handled > 0);
}

/// The new set dies before it has its turn: the old one goes back to everything, and nothing is lost meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_cut_gives_back_what_was_held() {
    let world = World::new(quick(20)).await;
    let old = Process::start(&world, "0", Duty::Active, &[0], 1);
    old.ready(ShardStage::Ready).await;
    world.commands_registered().await;
    load(&world).await;
    world.account_reaches("interactions.answered", 10).await;
    // A cut in the past of everything that comes.
    let at = now_ms();
    let before = Some(Cut { at, before: true });
    done(&old.share(Duty::Active, before).await);
    old.agent
        .until("events to be held", |state| {
            state
                .reports
                .last()
                .is_some_and(|report| report.shards[0].held > 20)
        })
        .await;
    let deposit = old.agent.state().sessions[&0].clone();
    let reported = old.sum(|shard| shard.seq);
    assert!(deposit.seq < reported, "held events are in flight");
    done(&old.share(Duty::Active, None).await);
    old.agent
        .until("nothing to be held", |state| {
            state
                .reports
                .last()
                .is_some_and(|report| report.shards[0].held == 0)
        })
        .await;
    exact(&world.calm().await);
}

/// Two sets that both believe it is their turn: Discord takes one answer, and both sides count the same doubles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cut_doubles_are_counted_as_discord_counts_them() {
    let world = World::new(quick(20)).await;
    let old = Process::start(&world, "0", Duty::Active, &[0], 1);
    old.ready(ShardStage::Ready).await;
    world.commands_registered().await;
    let new = Process::start(&world, "g2-0", Duty::Active, &[0, 1], 2);
    new.ready(ShardStage::Ready).await;
    let rates = json!({ "interactions_per_second": 20 });
    world.post("rates", rates).await;
    world
        .account_reaches("interactions.answered_twice", 10)
        .await;
    let account = world.calm().await;
    assert_eq!(account["interactions"]["unanswered"], 0, "{account}");
    eventually("the doubles to be reported", || async {
        let twice = world.account().await["interactions"]["answered_twice"].as_u64();
        let told = |process: &Process| process.sum(|shard| shard.duplicated);
        (twice == Some(told(&old) + told(&new))).then_some(())
    })
    .await;
    let failed = |process: &Process| process.sum(|shard| shard.interactions_failed);
    assert_eq!(failed(&old) + failed(&new), 0, "a double is no failure");
}

/// Both sets are killed on both sides of the cut, and come back with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_holds_through_crashes_of_both_sets() {
    let world = World::new(quick(20)).await;
    let mut old = Process::start(&world, "0", Duty::Active, &[0], 1);
    old.ready(ShardStage::Ready).await;
    world.commands_registered().await;
    load(&world).await;
    let mut new = Process::start(&world, "g2-0", Duty::Shadow, &[0, 1], 2);
    new.ready(ShardStage::Ready).await;
    new.crash(&world, Duty::Shadow, None).await;
    new.ready(ShardStage::Ready).await;

    let at = now_ms() + LEAD_MS;
    let (before, from) = (Cut { at, before: true }, Cut { at, before: false });
    done(&old.share(Duty::Active, Some(before)).await);
    old.crash(&world, Duty::Active, Some(before)).await;
    done(&new.share(Duty::Active, Some(from)).await);
    old.ready(ShardStage::Ready).await;
    new.crash(&world, Duty::Active, Some(from)).await;
    new.ready(ShardStage::Ready).await;
    eventually("the cut to be over", || async {
        (now_ms() > at + 500).then_some(())
    })
    .await;
    old.crash(&world, Duty::Active, Some(before)).await;
    old.ready(ShardStage::Ready).await;
    new.crash(&world, Duty::Active, Some(from)).await;
    new.ready(ShardStage::Ready).await;
    let answered = world.account().await["interactions"]["answered"]
        .as_u64()
        .unwrap();
    world
        .account_reaches("interactions.answered", answered + 20)
        .await;
    let account = world.calm().await;
    for process in [&old, &new] {
        // Shown when the test fails.
        let counts = |of: fn(&tanako_proto::worker::v1::ShardReport) -> u64| process.sum(of);
        eprintln!(
            "{} attempt {}: {} handled, {} repeated, {} duplicated, {} failed, {} replayed",
            process.name,
            process.attempt,
            counts(|shard| shard.interactions),
            counts(|shard| shard.repeated),
            counts(|shard| shard.duplicated),
            counts(|shard| shard.interactions_failed),
            counts(|shard| shard.replayed),
        );
    }
    exact(&account);
    assert_eq!(account["identifies"], 3, "{account}");
    assert_eq!(old.sum(|shard| shard.duplicated), 0);
    assert_eq!(new.sum(|shard| shard.duplicated), 0);
}
