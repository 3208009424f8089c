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
        .start();
    world.commands_registered().await;
    bot.logged("connected to the database").await;
    bot
}

/// Moderator, member and guild for commands: people the simulation knows.
async fn people(world: &World) -> (String, String) {
    let guild = world.guilds().await.swap_remove(0);
    // A member that is certainly no bot and not the one who uses the command.
    (guild, "700000000000000001".to_owned())
}

fn title(message: &Value) -> &str {
    message["embeds"][0]["title"]
        .as_str()
        .unwrap_or_else(|| message["content"].as_str().unwrap())
}

async fn warn(world: &World, guild: &str, member: &str, reason: &str) -> Value {
    let options = json!({ "member": member, "reason": reason });
    world
        .use_command(json!({ "command": "warn", "guild_id": guild, "options": options }))
        .await
}

async fn warnings(world: &World, guild: &str, member: &str) -> Value {
    let request =
        json!({ "command": "warnings", "guild_id": guild, "options": { "member": member } });
    world.use_command(request).await
}

/// The whole life of warnings and settings, on nodes of either protocol.
async fn warnings_and_settings(original: bool) {
    let world = World::new(quick(3)).await;
    let tables = Tables::default();
    let node = Node::start(tables.clone(), TOKEN, original).await;
    let mut bot = start(&world, &[&node]).await;
    let (guild, member) = people(&world).await;

    assert_eq!(
        title(&warn(&world, &guild, &member, "spam").await),
        "Case 1: warning"
    );
    assert_eq!(
        title(&warn(&world, &guild, &member, "more spam").await),
        "Case 2: warning"
    );
    let set = json!({ "command": "config", "subcommand": "set", "guild_id": guild, "options": { "setting": "warn_limit", "value": "7" } });
    assert_eq!(title(&world.use_command(set.clone()).await), "Changed");
    let mut bad = set;
    bad["options"]["value"] = json!("seven");
    assert!(title(&world.use_command(bad).await).contains("0 to 50"));

    // Everything survives a restart, since nothing is kept in the process.
    assert_eq!(bot.terminate().await, 0, "{}", bot.log());
    let _bot = start(&world, &[&node]).await;
    eventually("the second process to answer", || async {
        (world.account().await["sessions_open"] == json!(1)).then_some(())
    })
    .await;
    let listed = warnings(&world, &guild, &member).await;
    assert_eq!(title(&listed), "Warnings (2)");
    assert_eq!(listed["embeds"][0]["fields"][0]["name"], "Case 2");
    let get = json!({ "command": "config", "subcommand": "get", "guild_id": guild, "options": { "setting": "warn_limit" } });
    let shown = world.use_command(get).await;
    assert!(
        shown["embeds"][0]["fields"][0]["value"]
            .as_str()
            .unwrap()
            .starts_with("**7**"),
        "{shown}"
    );
    let clear =
        json!({ "command": "clearwarnings", "guild_id": guild, "options": { "member": member } });
    assert_eq!(title(&world.use_command(clear).await), "Cleared");
    assert!(
        warnings(&world, &guild, &member).await["embeds"][0]["fields"][1]["name"]
            .as_str()
            .unwrap()
            .contains("cleared")
    );
    assert_eq!(
        title(&warn(&world, &guild, &member, "again").await),
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
    let (guild, member) = people(&world).await;
    nodes[0].die();
    for case in 1..=6 {
        assert_eq!(
            title(&warn(&world, &guild, &member, "spam").await),
            format!("Case {case}: warning")
        );
    }
    // Without any node the answer says so.
    nodes[1].die();
    bot.logged("no connection to the database node").await;
    let told = warn(&world, &guild, &member, "spam").await;
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
