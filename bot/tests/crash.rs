//! kill -9 in the middle of a command: it is carried out once and answered once.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::agent::{Agent, Served};
use support::node::{Node, Tables};
use support::{Bot, LOOKED_UP, SOON, World, eventually, exact, quick, secret_file};
use tanako_proto::worker::v1::ShardStage;

const TOKEN: &str = "database-token";

/// A bot with an agent and a database, and people to warn.
struct Scene {
    world: World,
    agent: Agent,
    _served: Served,
    tables: Tables,
    node: Node,
    attempt: u64,
}

impl Scene {
    async fn new() -> (Self, Bot) {
        let world = World::new(quick(3)).await;
        let agent = Agent::default();
        let served = agent.serve(&world.path("worker.sock"));
        let tables = Tables::default();
        let node = Node::start(tables.clone(), TOKEN, false).await;
        secret_file(&world.path("db-token"), TOKEN);
        let mut scene = Self {
            world,
            agent,
            _served: served,
            tables,
            node,
            attempt: 0,
        };
        let bot = scene.start().await;
        scene.world.commands_registered().await;
        bot.logged("connected to the database").await;
        // The rows of the guilds are written beside everything else: nothing of them shall be under way.
        let tables = scene.tables.clone();
        eventually("the guilds' rows", || async {
            (tables.rows("guilds").len() == 3).then_some(())
        })
        .await;
        (scene, bot)
    }

    async fn start(&mut self) -> Bot {
        self.attempt += 1;
        self.agent.state().reports.clear();
        let bot = self
            .world
            .bot()
            .env("TANAKO_SOCKET", self.world.path("worker.sock"))
            .env("TANAKO_PROCESS", "tanako/0")
            .env("TANAKO_ATTEMPT", self.attempt.to_string())
            .env("SHARD_IDS", "0")
            .env("SHARD_COUNT", "1")
            .env("TANAKO_DB_NODES", format!("node1={}", self.node.url()))
            .env("TANAKO_DB_TOKEN_FILE", self.world.path("db-token"))
            .start();
        self.agent.until_stage(ShardStage::Ready).await;
        bot
    }

    /// What an administrator sends to warn a member.
    async fn warning(&self) -> Value {
        let guild = self.world.guilds().await.swap_remove(0);
        let owner = self.world.rest(&format!("guilds/{guild}")).await["owner_id"].clone();
        let members = self
            .world
            .rest(&format!("guilds/{guild}/members?limit=100"))
            .await;
        let member = members
            .as_array()
            .unwrap()
            .iter()
            .map(|member| &member["user"])
            .find(|user| user["bot"] != true && user["id"] != owner)
            .expect("a member who is neither bot nor owner")["id"]
            .clone();
        json!({
            "command": "warn", "guild_id": guild, "user_id": owner,
            "options": { "member": member, "reason": "spam" },
        })
    }

    /// Sends a command; gives the interaction's id.
    async fn send(&self, request: Value) -> String {
        let id = self.world.post("interactions", request).await["id"].clone();
        id.as_str().unwrap().to_owned()
    }

    /// An administrator warns a member.
    async fn warn(&self) -> String {
        self.send(self.warning().await).await
    }

    async fn interaction(&self, id: &str) -> Value {
        self.world.get(&format!("interactions/{id}")).await
    }

    /// Whether Discord can be asked or told anything.
    async fn rest(&self, works: bool) {
        let seconds = if works { 0 } else { 600 };
        let outage = json!({ "seconds": seconds, "gateway": false, "rest": true });
        self.world.post("faults/outage", outage).await;
    }

    /// Stops the process as kill -9 does, and lets the next one see what the agent had before `id` came.
    async fn kill(&self, mut bot: Bot, seq_before: u64) {
        bot.kill(&self.agent).await;
        let mut state = self.agent.state();
        let session = state.sessions.get_mut(&0).unwrap();
        session.seq = seq_before;
        session.handled_interactions.clear();
    }

    fn seq(&self) -> u64 {
        self.agent.state().sessions[&0].seq
    }

    /// The command was carried out once and answered once.
    async fn exactly_once(&self, id: &str) -> Value {
        let answered = eventually("the answer", || async {
            let interaction = self.interaction(id).await;
            (interaction["message"]["embeds"][0]["title"] == "Case 1: warning")
                .then_some(interaction)
        })
        .await;
        assert_eq!(answered["state"], "answered", "{answered}");
        let cases = self.tables.rows("moderation_cases");
        assert_eq!(cases.len(), 1, "{cases:?}");
        let guilds = self.tables.rows("guilds");
        let numbers: Vec<&Value> = guilds.iter().map(|row| &row["case_counter"]).collect();
        assert_eq!(numbers.iter().filter(|number| ***number == 1).count(), 1);
        assert!(numbers.iter().all(|number| number.as_i64() <= Some(1)));
        let account = self.world.calm().await;
        exact(&account);
        assert_eq!(
            (&account["identifies"], &account["resumes"]),
            (&json!(1), &json!(1))
        );
        account
    }

    async fn repeated(&self, count: u64) {
        self.agent
            .until("the replay to be counted", |state| {
                state.reports.last().is_some_and(|report| {
                    (report.shards[0].repeated, report.shards[0].duplicated) == (count, 0)
                })
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_anything_was_written() {
    let (mut scene, bot) = Scene::new().await;
    let seq = scene.seq();
    let (tables, requests) = (scene.tables.clone(), scene.tables.requests());
    let warning = scene.warning().await;
    // However late the kill comes: the first read of the database has no answer, no deferral gets through.
    scene.tables.slow_down(SOON);
    scene.rest(false).await;
    let id = scene.send(warning).await;
    eventually("the command to be taken up", || async {
        (tables.requests() > requests).then_some(())
    })
    .await;
    scene.kill(bot, seq).await;
    assert_eq!(scene.interaction(&id).await["state"], "pending");
    scene.tables.slow_down(Duration::ZERO);
    scene.rest(true).await;
    let _bot = scene.start().await;
    scene.exactly_once(&id).await;
    scene.repeated(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_case_was_written_and_before_the_answer() {
    let (mut scene, bot) = Scene::new().await;
    let seq = scene.seq();
    let tables = scene.tables.clone();
    scene.tables.slow_down(Duration::from_millis(300));
    let id = scene.warn().await;
    eventually("the case", || async {
        (!tables.rows("moderation_cases").is_empty()).then_some(())
    })
    .await;
    scene.kill(bot, seq).await;
    scene.tables.slow_down(Duration::ZERO);
    let _bot = scene.start().await;
    scene.exactly_once(&id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_deferral() {
    let (mut scene, bot) = Scene::new().await;
    let seq = scene.seq();
    scene.tables.slow_down(Duration::from_millis(1500));
    let id = scene.warn().await;
    scene
        .world
        .account_reaches("interactions.deferred_open", 1)
        .await;
    scene.kill(bot, seq).await;
    scene.tables.slow_down(Duration::ZERO);
    let _bot = scene.start().await;
    let account = scene.exactly_once(&id).await;
    assert_eq!(account["interactions"]["deferred"], 1, "{account}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_the_answer_and_before_the_next_deposit() {
    let (mut scene, bot) = Scene::new().await;
    let seq = scene.seq();
    let id = scene.warn().await;
    eventually("the answer", || async {
        let interaction = scene.interaction(&id).await;
        (interaction["state"] == "answered").then_some(())
    })
    .await;
    let deferred = scene.world.account().await["interactions"]["deferred"].clone();
    scene.kill(bot, seq).await;
    let bot = scene.start().await;
    scene.repeated(1).await;
    assert!(bot.log().contains(LOOKED_UP), "{}", bot.log());
    let account = scene.exactly_once(&id).await;
    assert_eq!(account["interactions"]["deferred"], deferred, "{account}");
}

/// The replay holds the RESUMED of an earlier resume, and behind it what that process has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_twice_and_resumed_from_before_both() {
    let (mut scene, mut bot) = Scene::new().await;
    let seq = scene.seq();
    let mut replayed = 0;
    for round in 1..=3u64 {
        scene.world.use_command(json!({ "command": "ping" })).await;
        let account = scene.world.account().await;
        assert_eq!(account["events_replayed"], replayed, "{account}");
        scene.kill(bot, seq).await;
        bot = scene.start().await;
        scene.repeated(round).await;
        replayed += scene.agent.state().reports.last().unwrap().shards[0].replayed;
    }
    let account = scene.world.calm().await;
    exact(&account);
    assert_eq!(account["events_replayed"], replayed, "{account}");
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(1), &json!(3))
    );
}

/// Without anybody preparing anything: killed at random moments under load, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_under_load() {
    let (mut scene, mut bot) = Scene::new().await;
    scene
        .world
        .post(
            "rates",
            json!({ "events_per_second": 100, "interactions_per_second": 25 }),
        )
        .await;
    for round in 1..=6u64 {
        let answered = scene.world.account().await["interactions"]["answered"]
            .as_u64()
            .unwrap();
        scene
            .world
            .account_reaches("interactions.answered", answered + fastrand::u64(1..30))
            .await;
        bot.kill(&scene.agent).await;
        bot = scene.start().await;
        scene.world.account_reaches("resumes", round).await;
    }
    let account = scene.world.calm().await;
    exact(&account);
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(1), &json!(6))
    );
    // Numbers without gaps or doubles in each guild, a row for each interaction.
    for guild in scene.tables.rows("guilds") {
        let mut numbers: Vec<i64> = scene
            .tables
            .rows("moderation_cases")
            .iter()
            .filter(|case| case["guild_id"] == guild["guild_id"])
            .map(|case| case["case_id"].as_i64().unwrap())
            .collect();
        numbers.sort_unstable();
        let expected: Vec<i64> = (1..=guild["case_counter"].as_i64().unwrap()).collect();
        assert_eq!(numbers, expected);
    }
    scene
        .agent
        .until("nothing to be answered twice", |state| {
            state.reports.last().is_some_and(|report| {
                report.shards[0].duplicated == 0 && report.shards[0].lost == 0
            })
        })
        .await;
}
