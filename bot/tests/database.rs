//! Commands that keep something, against database nodes of the test.

mod support;

use serde_json::{Value, json};
use support::node::{Node, Tables};
use support::{Bot, World, eventually, quick, secret_file};

const TOKEN: &str = "database-token";

async fn start(world: &World, nodes: &[&Node]) -> Bot {
    secret_file(&world.path("db-token"), TOKEN);
    let list: Vec<String> = nodes
        .iter()
        .enumerate()
        .map(|(at, node)| format!("node{}={}", at + 1, node.url()))
        .collect();
    let bot = world
        .bot()
        .env("TANAKO_DB_NODES", list.join(","))
        .env("TANAKO_DB_TOKEN_FILE", world.path("db-token"))
        // The tests also look for secrets in the log: everything shall be there.
        .env("RUST_LOG", "trace")
        .start();
    world.commands_registered().await;
    bot.logged("connected to the database").await;
    bot
}

/// A guild, its owner and another member.
struct People {
    guild: String,
    owner: String,
    member: String,
}

async fn people(world: &World) -> People {
    let guild = world.guilds().await.swap_remove(0);
    let owner = world.rest(&format!("guilds/{guild}")).await["owner_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let members = world
        .rest(&format!("guilds/{guild}/members?limit=100"))
        .await;
    let members = members.as_array().unwrap();
    let member = members
        .iter()
        .map(|member| &member["user"])
        .find(|user| user["bot"] != true && user["id"] != owner.as_str())
        .expect("a member who is neither bot nor owner");
    People {
        guild,
        owner,
        member: member["id"].as_str().unwrap().to_owned(),
    }
}

impl People {
    /// The owner uses a command.
    async fn command(&self, world: &World, mut request: Value) -> Value {
        request["guild_id"] = json!(self.guild);
        request["user_id"] = json!(self.owner);
        world.use_command(request).await
    }

    async fn warn(&self, world: &World, reason: &str) -> Value {
        let options = json!({ "member": self.member, "reason": reason });
        self.command(world, json!({ "command": "warn", "options": options }))
            .await
    }

    async fn warnings(&self, world: &World) -> Value {
        self.command(
            world,
            json!({ "command": "warnings", "options": { "member": self.member } }),
        )
        .await
    }
}

fn title(message: &Value) -> &str {
    message["embeds"][0]["title"]
        .as_str()
        .unwrap_or_else(|| message["content"].as_str().unwrap())
}

/// The whole life of warnings and settings, on nodes of either protocol.
async fn warnings_and_settings(original: bool) {
    let world = World::new(quick(3)).await;
    let tables = Tables::default();
    let node = Node::start(tables.clone(), TOKEN, original).await;
    let mut bot = start(&world, &[&node]).await;
    let people = people(&world).await;

    assert_eq!(title(&people.warn(&world, "spam").await), "Case 1: warning");
    assert_eq!(
        title(&people.warn(&world, "more spam").await),
        "Case 2: warning"
    );
    let set = json!({ "command": "config", "subcommand": "set", "options": { "setting": "warn_limit", "value": "7" } });
    assert_eq!(title(&people.command(&world, set.clone()).await), "Changed");
    let mut bad = set;
    bad["options"]["value"] = json!("seven");
    assert!(title(&people.command(&world, bad).await).contains("0 to 50"));

    // Everything survives a restart, since nothing is kept in the process.
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    let _bot = start(&world, &[&node]).await;
    eventually("the second process to answer", || async {
        (world.account().await["sessions_open"] == json!(1)).then_some(())
    })
    .await;
    let listed = people.warnings(&world).await;
    assert_eq!(title(&listed), "Warnings (2)");
    assert_eq!(listed["embeds"][0]["fields"][0]["name"], "Case 2");
    let get =
        json!({ "command": "config", "subcommand": "get", "options": { "setting": "warn_limit" } });
    let shown = people.command(&world, get).await;
    assert!(
        shown["embeds"][0]["fields"][0]["value"]
            .as_str()
            .unwrap()
            .starts_with("**7**"),
        "{shown}"
    );
    let clear = json!({ "command": "clearwarnings", "options": { "member": people.member } });
    assert_eq!(title(&people.command(&world, clear).await), "Cleared");
    assert!(
        people.warnings(&world).await["embeds"][0]["fields"][1]["name"]
            .as_str()
            .unwrap()
            .contains("cleared")
    );
    assert_eq!(
        title(&people.warn(&world, "again").await),
        "Case 3: warning"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_and_settings_are_kept() {
    warnings_and_settings(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_original_protocol_serves_too() {
    warnings_and_settings(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_replaced_by_another() {
    let world = World::new(quick(3)).await;
    let tables = Tables::default();
    let nodes = [
        Node::start(tables.clone(), TOKEN, false).await,
        Node::start(tables.clone(), TOKEN, false).await,
    ];
    let bot = start(&world, &[&nodes[0], &nodes[1]]).await;
    bot.logged("node=node2").await;
    let people = people(&world).await;
    nodes[0].die();
    for case in 1..=6 {
        assert_eq!(
            title(&people.warn(&world, "spam").await),
            format!("Case {case}: warning")
        );
    }
    // Without any node the answer says so.
    nodes[1].die();
    bot.logged("trying on node=node2").await;
    let told = people.warn(&world, "spam").await;
    assert!(
        told["content"]
            .as_str()
            .is_some_and(|words| words.contains("error id")),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guild_rows_and_message_counts_arrive() {
    let world = World::new(quick(5)).await;
    let tables = Tables::default();
    let node = Node::start(tables.clone(), TOKEN, false).await;
    let mut bot = start(&world, &[&node]).await;
    eventually("a row for each guild", || async {
        (tables.rows("guilds").len() == 5).then_some(())
    })
    .await;
    let guild = world.guilds().await.swap_remove(2);
    let event = json!({ "type": "MESSAGE_CREATE", "guild_id": guild, "count": 12 });
    world.post("events", event).await;
    // Stopping flushes what was counted.
    let sent = world
        .account_reaches("sent_by_type.MESSAGE_CREATE", 12)
        .await;
    assert!(sent["events_sent"].as_u64().unwrap() >= 12);
    eventually("12 messages counted", || async {
        let counted: i64 = tables
            .rows("metrics")
            .iter()
            .filter_map(|row| row["value"].as_i64())
            .sum();
        (counted == 12).then_some(())
    })
    .await;
    assert_eq!(bot.terminate().await, 0);
    let rows = tables.rows("metrics");
    assert!(
        rows[0]["id"]
            .as_str()
            .unwrap()
            .starts_with(&format!("guild_messages:{guild}:")),
        "{rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_is_deferred_and_answered_once_and_no_token_is_logged() {
    let world = World::new(quick(3)).await;
    let tables = Tables::default();
    let node = Node::start(tables.clone(), TOKEN, false).await;
    let mut bot = start(&world, &[&node]).await;
    let people = people(&world).await;
    // A warning takes five answers, one after the other: more than the guard waits, less than a call may take.
    tables.slow_down(std::time::Duration::from_millis(700));
    assert_eq!(title(&people.warn(&world, "spam").await), "Case 1: warning");
    let interactions = world.account().await["interactions"].clone();
    assert_eq!(
        (&interactions["deferred"], &interactions["answered"]),
        (&json!(1), &json!(1)),
        "{interactions}"
    );
    assert_eq!(
        (&interactions["answered_twice"], &interactions["late"]),
        (&json!(0), &json!(0)),
        "{interactions}"
    );
    assert_eq!(bot.terminate().await, 0);
    let log = bot.log();
    assert!(
        !log.contains(simcord::DEVELOPMENT_TOKEN) && !log.contains(TOKEN),
        "a token is in the log"
    );
    // How the simulation's interaction tokens begin: base64 of `interaction:`.
    assert!(
        !log.contains("aW50ZXJhY3Rpb246"),
        "an interaction's token is in the log"
    );
}
