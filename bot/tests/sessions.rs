//! Sessions across connections and processes, judged by the simulated Discord's account.

mod support;

use serde_json::json;
use support::agent::{Agent, Served};
use support::{Bot, World, quick};
use tanako_proto::worker::v1::ShardStage;

/// A world with a bot under an agent: two shards in one process.
struct Fleet {
    world: World,
    agent: Agent,
    _served: Served,
    attempt: u64,
}

impl Fleet {
    async fn new(config: simcord::Config) -> Self {
        let world = World::new(config).await;
        let agent = Agent::default();
        let served = agent.serve(&world.path("worker.sock"));
        Self {
            world,
            agent,
            _served: served,
            attempt: 0,
        }
    }

    /// Starts the next attempt and waits until its shards are ready.
    async fn start(&mut self) -> Bot {
        let bot = self.launch().await;
        self.agent.until_stage(ShardStage::Ready).await;
        bot
    }

    /// Starts the next attempt.
    async fn launch(&mut self) -> Bot {
        self.agent.detached().await;
        self.attempt += 1;
        self.agent.state().reports.clear();
        self.world
            .bot()
            .env("TANAKO_SOCKET", self.world.path("worker.sock"))
            .env("TANAKO_PROCESS", "tanako/0")
            .env("TANAKO_ATTEMPT", self.attempt.to_string())
            .env("SHARD_IDS", "0,1")
            .env("SHARD_COUNT", "2")
            .start()
    }

    fn guilds_reported(&self) -> u32 {
        self.agent
            .state()
            .reports
            .last()
            .unwrap()
            .shards
            .iter()
            .map(|shard| shard.guilds)
            .sum()
    }

    /// No event missed or sent again, no interaction answered twice or not at all. Nothing may be on its way.
    async fn nothing_missed(&self, identifies: u64, resumes: u64) {
        let account = self.world.account().await;
        assert_eq!(account["identifies"], json!(identifies), "{account}");
        assert_eq!(account["resumes"], json!(resumes), "{account}");
        for zero in [
            "identifies_refused",
            "events_lost",
            "events_evicted",
            "resumes_while_connected",
        ] {
            assert_eq!(account[zero], json!(0), "{zero}: {account}");
        }
        for zero in ["answered_twice", "unanswered", "late"] {
            assert_eq!(account["interactions"][zero], json!(0), "{zero}: {account}");
        }
        let interactions = &account["interactions"];
        assert_eq!(interactions["answered"], interactions["sent"], "{account}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_resumes_and_misses_nothing() {
    let config = simcord::Config {
        events_per_second: 200.0,
        interactions_per_second: 20.0,
        ..quick(40)
    };
    let mut fleet = Fleet::new(config).await;
    let mut bot = fleet.start().await;
    assert_eq!(fleet.guilds_reported(), 40);
    fleet.world.commands_registered().await;
    fleet
        .world
        .account_reaches("interactions.answered", 20)
        .await;
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    {
        let state = fleet.agent.state();
        assert_eq!(
            (state.acks, state.sessions.len(), state.permits.len()),
            (2, 2, 2)
        );
        assert_eq!(state.discards.len(), 0);
    }
    // Answers count from here on; what happens meanwhile is replayed.
    fleet
        .world
        .post("events", json!({ "type": "MESSAGE_CREATE", "count": 25 }))
        .await;
    let mut bot = fleet.start().await;
    // RESUME brings no GUILD_CREATE: what is known of the guilds came with the session.
    assert_eq!(fleet.guilds_reported(), 40);
    let replayed: u64 = fleet
        .agent
        .state()
        .reports
        .last()
        .unwrap()
        .shards
        .iter()
        .map(|shard| shard.replayed)
        .sum();
    assert!(replayed >= 25, "{replayed} events replayed");
    let answered = fleet.world.account().await["interactions"]["answered"]
        .as_u64()
        .unwrap();
    fleet
        .world
        .account_reaches("interactions.answered", answered + 20)
        .await;
    fleet.world.calm().await;
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    fleet.nothing_missed(2, 2).await;
    assert_eq!(
        fleet.agent.state().permits.len(),
        2,
        "a RESUME needs no permit"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_resumed_from_its_last_deposit() {
    let mut fleet = Fleet::new(simcord::Config {
        events_per_second: 100.0,
        ..quick(20)
    })
    .await;
    let mut bot = fleet.start().await;
    fleet.world.commands_registered().await;
    let id = fleet
        .world
        .post("interactions", json!({ "command": "ping" }))
        .await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    fleet
        .world
        .account_reaches("interactions.answered", 1)
        .await;
    // The deposit follows the answer within a moment.
    let answered = id.parse::<u64>().unwrap();
    let agent = fleet.agent.clone();
    let handled_or_settled = move |state: &support::agent::State| {
        let named = state
            .sessions
            .values()
            .any(|session| session.handled_interactions.contains(&answered));
        let in_reports = state.reports.last().is_some_and(|report| {
            report.shards.iter().any(|shard| {
                shard.interactions == 1
                    && state
                        .sessions
                        .get(&shard.shard_id)
                        .is_some_and(|session| session.seq >= shard.seq)
            })
        });
        named || in_reports
    };
    agent
        .until("the answer to be deposited", handled_or_settled)
        .await;
    bot.kill(&fleet.agent).await;
    let _bot = fleet.start().await;
    fleet
        .world
        .post("rates", json!({ "events_per_second": 0 }))
        .await;
    fleet.nothing_missed(2, 2).await;
}

/// The first process answered two commands above its last settled event; the second is killed before the replay
/// ends; the third must not answer them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_interactions_stay_known_over_two_crashes() {
    let mut fleet = Fleet::new(quick(4)).await;
    let mut bot = fleet.start().await;
    fleet.world.commands_registered().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = fleet
            .world
            .post("interactions", json!({ "command": "ping" }))
            .await["id"]
            .clone();
        ids.push(id.as_str().unwrap().parse::<u64>().unwrap());
    }
    fleet
        .world
        .account_reaches("interactions.answered", 4)
        .await;
    bot.kill(&fleet.agent).await;
    // As if a handler of the oldest event still ran at the time of the last deposit.
    for session in fleet.agent.state().sessions.values_mut() {
        session.seq = 1;
        session.handled_interactions = ids.clone();
    }
    // The gateway is away: the second process holds the session but cannot resume it, and is killed.
    fleet
        .world
        .post("faults/outage", json!({ "seconds": 600, "gateway": true }))
        .await;
    let mut second = fleet.launch().await;
    second.logged("reconnecting").await;
    let hellos = fleet.agent.state().hellos.len();
    fleet
        .agent
        .until("its deposits", |state| {
            state.hellos.len() == hellos && state.reports.len() > 2
        })
        .await;
    second.kill(&fleet.agent).await;
    assert!(
        fleet
            .agent
            .state()
            .sessions
            .values()
            .all(|session| session.handled_interactions == ids)
    );
    fleet
        .world
        .post("faults/outage", json!({ "seconds": 0, "gateway": true }))
        .await;
    let _third = fleet.start().await;
    fleet.nothing_missed(2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opcode_7_resumes_at_once() {
    let mut fleet = Fleet::new(simcord::Config {
        events_per_second: 100.0,
        ..quick(20)
    })
    .await;
    let mut bot = fleet.start().await;
    fleet
        .world
        .post("faults/reconnect", json!({ "all": true }))
        .await;
    fleet.world.account_reaches("resumes", 2).await;
    fleet.agent.until_stage(ShardStage::Ready).await;
    fleet
        .world
        .post("rates", json!({ "events_per_second": 0 }))
        .await;
    assert_eq!(bot.terminate().await, 0);
    fleet.nothing_missed(2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_and_closed_connections_resume() {
    let mut fleet = Fleet::new(quick(10)).await;
    let _bot = fleet.start().await;
    for (resumes, path, body) in [
        (2, "faults/drop", json!({ "all": true })),
        (4, "faults/close", json!({ "all": true, "code": 4000 })),
        (6, "faults/close", json!({ "all": true, "code": 4001 })),
        (
            8,
            "faults/invalid-session",
            json!({ "all": true, "resumable": true }),
        ),
    ] {
        fleet.agent.until_stage(ShardStage::Ready).await;
        fleet.agent.state().reports.clear();
        fleet.world.post(path, body).await;
        fleet.world.account_reaches("resumes", resumes).await;
    }
    fleet.nothing_missed(2, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opcode_9_false_identifies_by_permit_and_discards() {
    let mut fleet = Fleet::new(quick(10)).await;
    let bot = fleet.start().await;
    let old: Vec<String> = fleet
        .agent
        .state()
        .sessions
        .values()
        .map(|session| session.session_id.clone())
        .collect();
    fleet
        .world
        .post(
            "faults/invalid-session",
            json!({ "shard": 1, "resumable": false }),
        )
        .await;
    fleet.world.account_reaches("identifies", 3).await;
    fleet
        .agent
        .until(
            "the void session to be discarded and a new one deposited",
            |state| {
                state
                    .discards
                    .iter()
                    .any(|discard| discard.shard_id == 1 && old.contains(&discard.session_id))
                    && state
                        .sessions
                        .get(&1)
                        .is_some_and(|session| !old.contains(&session.session_id))
            },
        )
        .await;
    assert_eq!(fleet.agent.state().permits.len(), 3, "{}", bot.log());
    fleet.agent.until_stage(ShardStage::Ready).await;
    assert_eq!(fleet.guilds_reported(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_resume_url_costs_no_identify() {
    let mut fleet = Fleet::new(quick(10)).await;
    // READY tells of a resume URL that answers nothing.
    fleet
        .world
        .post("faults/resume-url", json!({ "dead": true }))
        .await;
    let _bot = fleet.start().await;
    fleet
        .world
        .post("faults/drop", json!({ "all": true }))
        .await;
    fleet.world.account_reaches("resumes", 2).await;
    fleet.nothing_missed(2, 2).await;
}

/// A successor finds a URL that answers nothing: after some tries it goes to the general gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_session_with_a_dead_resume_url_is_resumed_elsewhere() {
    let mut fleet = Fleet::new(quick(10)).await;
    let mut bot = fleet.start().await;
    assert_eq!(bot.terminate().await, 0);
    for session in fleet.agent.state().sessions.values_mut() {
        session.resume_url = "ws://127.0.0.1:1".to_owned();
    }
    let _bot = fleet.start().await;
    assert_eq!(fleet.guilds_reported(), 10);
    fleet.nothing_missed(2, 2).await;
}

/// Discord does not know the session any more: the next one costs a permit, and the old one is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_session_that_discord_forgot_is_replaced_by_permit() {
    let mut fleet = Fleet::new(quick(10)).await;
    let mut bot = fleet.start().await;
    assert_eq!(bot.terminate().await, 0);
    let forgotten = "0123456789abcdef0123456789abcdef";
    for session in fleet.agent.state().sessions.values_mut() {
        session.session_id = forgotten.to_owned();
    }
    let _bot = fleet.start().await;
    let account = fleet.world.account().await;
    assert_eq!(
        (&account["identifies"], &account["resumes_refused"]),
        (&json!(4), &json!(2))
    );
    let state = fleet.agent.state();
    assert_eq!(state.permits.len(), 4);
    assert!(
        state
            .discards
            .iter()
            .all(|discard| discard.session_id == forgotten)
    );
    assert_eq!(state.discards.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_another_bot_is_not_resumed() {
    let mut fleet = Fleet::new(quick(10)).await;
    let mut bot = fleet.start().await;
    assert_eq!(bot.terminate().await, 0);
    for session in fleet.agent.state().sessions.values_mut() {
        session.intents += 2;
    }
    let _bot = fleet.start().await;
    let account = fleet.world.account().await;
    assert_eq!(
        (&account["identifies"], &account["resumes"]),
        (&json!(4), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fatal_close_codes_end_with_exit_78() {
    let mut fleet = Fleet::new(quick(10)).await;
    let mut bot = fleet.start().await;
    fleet
        .world
        .post("faults/close", json!({ "shard": 0, "code": 4014 }))
        .await;
    fleet
        .agent
        .until("shard 0 to be fatal and the process to stay", |state| {
            state.reports.last().is_some_and(|report| {
                report.shards[0].stage() == ShardStage::Fatal
                    && report.shards[0].last_error.contains("4014")
                    && report.shards[1].stage() == ShardStage::Ready
            })
        })
        .await;
    assert!(bot.runs());
    fleet
        .world
        .post("faults/close", json!({ "shard": 1, "code": 4014 }))
        .await;
    assert_eq!(bot.exit_code().await, 78, "{}", bot.log());
    assert!(bot.log().contains("privileged intents"), "{}", bot.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_agent_it_identifies_and_answers() {
    let world = World::new(quick(5)).await;
    let mut bot = world.bot().start();
    let names = world.commands_registered().await;
    for name in [
        "ping",
        "metrics",
        "shard",
        "help",
        "serverinfo",
        "userinfo",
        "warn",
        "warnings",
        "clearwarnings",
        "config",
    ] {
        assert!(
            names.iter().any(|registered| registered == name),
            "{name} of {names:?}"
        );
    }
    let pong = world.use_command(json!({ "command": "ping" })).await;
    assert_eq!(pong["embeds"][0]["title"], "Pong!");
    let guild = world.guilds().await.swap_remove(0);
    let info = world
        .use_command(json!({ "command": "serverinfo", "guild_id": guild }))
        .await;
    assert!(
        info["embeds"][0]["footer"]["text"]
            .as_str()
            .unwrap()
            .contains(&guild),
        "{info}"
    );
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    let account = world.account_reaches("sessions_resumable", 1).await;
    assert_eq!(account["identifies"], json!(1));
    assert_eq!(account["closes_received"]["4000"], json!(1));
    // A second start finds the commands registered and leaves them alone.
    let requests = account["rest"]["requests"].as_u64().unwrap();
    assert!(requests > 0);
    let registered = world.get("commands").await;
    let mut bot = world.bot().start();
    world.account_reaches("identifies", 2).await;
    bot.logged("ready").await;
    world.use_command(json!({ "command": "help" })).await;
    assert_eq!(world.get("commands").await, registered);
    assert!(
        !bot.log().contains("registered the commands"),
        "{}",
        bot.log()
    );
    assert_eq!(bot.terminate().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_ends_with_exit_78_and_costs_no_identify() {
    let world = World::new(quick(3)).await;
    support::secret_file(
        &world.path("token"),
        "MTEwMDAwMDAwMDAwMDAwMDAwMA.Gs1mCo.not-the-token",
    );
    let mut bot = world.bot().start();
    assert_eq!(bot.exit_code().await, 78, "{}", bot.log());
    assert!(bot.log().contains("refuses the token"), "{}", bot.log());
    assert_eq!(world.account().await["identifies"], json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_and_token_file_errors_exit_2() {
    let world = World::new(quick(1)).await;
    for (name, value, words) in [
        ("TANAKO_TOKEN_FILE", "/nonexistent/token", "hint"),
        ("SHARD_IDS", "5", "SHARD_COUNT"),
        ("TANAKO_API_URL", "nonsense", "TANAKO_API_URL"),
        ("TANAKO_DB_NODES", "nonsense", "node1=ws://"),
    ] {
        let mut bot = world.bot().env(name, value).start();
        assert_eq!(bot.exit_code().await, 2, "{name}: {}", bot.log());
        assert!(bot.log().contains(words), "{name}: {}", bot.log());
    }
}
