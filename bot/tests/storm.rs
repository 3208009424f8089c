//! When Discord, the agent or a connection fails: sessions are kept, nothing is spent, nothing is missed.

mod support;

use std::time::Duration;

use serde_json::json;
use support::agent::{Agent, Served};
use support::{Bot, LOOKED_UP, World, exact, quick};
use tanako_proto::worker::v1::command::Command as Order;
use tanako_proto::worker::v1::{ProcessReport, ProcessStage, Reconnect, ShardStage};

struct Scene {
    world: World,
    agent: Agent,
    served: Served,
}

impl Scene {
    async fn new(config: simcord::Config) -> Self {
        let world = World::new(config).await;
        let agent = Agent::default();
        let served = agent.serve(&world.path("worker.sock"));
        Self {
            world,
            agent,
            served,
        }
    }

    fn bot(&self, shards: &str, count: u32) -> support::BotBuilder {
        self.world
            .bot()
            .env("TANAKO_SOCKET", self.world.path("worker.sock"))
            .env("TANAKO_PROCESS", "tanako/0")
            .env("TANAKO_ATTEMPT", "1")
            .env("SHARD_IDS", shards)
            .env("SHARD_COUNT", count.to_string())
    }

    async fn four_shards(&self) -> Bot {
        let bot = self.bot("0,1,2,3", 4).start();
        self.agent.until_stage(ShardStage::Ready).await;
        self.world.commands_registered().await;
        let rates = json!({ "events_per_second": 100, "interactions_per_second": 10 });
        self.world.post("rates", rates).await;
        bot
    }

    async fn outage(&self, seconds: u64, gateway: bool, rest: bool) {
        let body = json!({ "seconds": seconds, "gateway": gateway, "rest": rest });
        self.world.post("faults/outage", body).await;
    }

    async fn reported(&self, what: &str, check: impl Fn(&ProcessReport) -> bool) {
        self.agent
            .until(what, |state| state.reports.last().is_some_and(&check))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_gateway_costs_nothing() {
    let scene = Scene::new(quick(20)).await;
    let mut bot = scene.four_shards().await;
    for round in 1..=2u64 {
        scene.outage(600, true, false).await;
        scene
            .reported("every shard to try on", |report| {
                // Ready once means ready: nobody shall restart the process for an outage.
                report.stage() == ProcessStage::Ready
                    && report.shards.iter().all(|shard| {
                        shard.stage() != ShardStage::Ready
                            && shard.reconnects > round
                            && !shard.last_error.is_empty()
                    })
                    && report.detail.contains("cannot connect to the gateway")
            })
            .await;
        assert!(bot.runs());
        scene.outage(0, true, false).await;
        scene.world.account_reaches("resumes", 4 * round).await;
        scene.agent.until_stage(ShardStage::Ready).await;
    }
    let account = scene.world.calm().await;
    exact(&account);
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(4), &json!(8))
    );
    assert_eq!(
        scene.agent.state().permits.len(),
        4,
        "no permit was asked for"
    );
    assert!(scene.agent.state().discards.is_empty());
    scene
        .reported("nothing lost, nothing twice", |report| {
            report
                .shards
                .iter()
                .all(|shard| (shard.lost, shard.duplicated, shard.identifies) == (0, 0, 1))
        })
        .await;
}

/// What comes as a replay to the very process that had the session cannot have been handled by another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interactions_of_an_outage_are_answered_after_it() {
    let scene = Scene::new(quick(20)).await;
    let bot = scene.four_shards().await;
    scene.outage(600, true, false).await;
    let sent = scene.world.account().await["interactions"]["sent"]
        .as_u64()
        .unwrap();
    scene
        .world
        .account_reaches("interactions.sent", sent + 10)
        .await;
    scene.outage(0, true, false).await;
    scene.world.account_reaches("resumes", 4).await;
    let account = scene.world.calm().await;
    exact(&account);
    assert!(!bot.log().contains(LOOKED_UP), "{}", bot.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_agent_holds_no_resume_up() {
    let scene = Scene::new(quick(20)).await;
    let mut bot = scene.four_shards().await;
    scene.served.die(&scene.agent).await;
    bot.logged("lost the agent").await;
    scene
        .world
        .post("faults/drop", json!({ "all": true }))
        .await;
    scene.world.account_reaches("resumes", 4).await;
    let account = scene.world.calm().await;
    exact(&account);
    assert_eq!(account["identifies"], 4);
    assert!(bot.runs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_gateway_bot_and_says_so() {
    let scene = Scene::new(quick(5)).await;
    scene.outage(600, false, true).await;
    let mut bot = scene.bot("0", 1).without("TANAKO_GATEWAY_URL").start();
    scene
        .reported("the reason of the wait", |report| {
            report.stage() == ProcessStage::Starting
                && report.shards.len() == 1
                && report.shards[0].stage() == ShardStage::Connecting
                && report.shards[0].last_error.contains("/gateway/bot")
                && report.detail.contains("cannot ask /gateway/bot")
        })
        .await;
    assert!(bot.runs());
    scene.outage(0, false, true).await;
    scene.agent.until_stage(ShardStage::Ready).await;
    scene
        .reported("no complaint any more", |report| report.detail.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_a_zombie_and_resumed() {
    let scene = Scene::new(simcord::Config {
        heartbeat_interval: Duration::from_secs(5),
        ..quick(10)
    })
    .await;
    let _bot = scene.bot("0", 1).start();
    scene.agent.until_stage(ShardStage::Ready).await;
    scene
        .world
        .post("faults/silence", json!({ "all": true }))
        .await;
    scene
        .reported("the zombie", |report| {
            let shard = &report.shards[0];
            shard.zombies >= 1 && shard.resumes >= 1 && shard.stage() == ShardStage::Ready
        })
        .await;
    let account = scene.world.account().await;
    assert_eq!(account["identifies"], 1, "{account}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_replaced_on_demand() {
    let scene = Scene::new(quick(20)).await;
    let _bot = scene.four_shards().await;
    let reconnect = async |shard_id, identify| {
        let order = Reconnect {
            shard_id,
            identify,
            why: "no MESSAGE_CREATE for two minutes".to_owned(),
        };
        scene.agent.order(Order::Reconnect(order)).await
    };
    let unknown = reconnect(7, false).await;
    assert_eq!(
        (unknown.ok, unknown.code.as_str()),
        (false, "unknown_shard")
    );
    assert!(reconnect(2, false).await.ok);
    scene
        .reported("shard 2 to have resumed", |report| {
            let resumes: Vec<u64> = report.shards.iter().map(|shard| shard.resumes).collect();
            resumes == [0, 0, 1, 0]
        })
        .await;
    scene.agent.until_stage(ShardStage::Ready).await;
    // An interaction on its way to the session that is given up would be lost with it.
    scene.world.calm().await;
    let old = scene.agent.state().sessions[&1].session_id.clone();
    assert!(reconnect(1, true).await.ok);
    scene
        .agent
        .until("a new session of shard 1", |state| {
            let discarded = state
                .discards
                .iter()
                .any(|discard| (discard.shard_id, &discard.session_id) == (1, &old));
            discarded
                && state
                    .sessions
                    .get(&1)
                    .is_some_and(|session| session.session_id != old)
        })
        .await;
    scene.agent.until_stage(ShardStage::Ready).await;
    let account = scene.world.account().await;
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(5), &json!(1))
    );
    assert_eq!(scene.agent.state().permits.len(), 5);
    assert_eq!(account["interactions"]["answered_twice"], 0);
}
