//! Several nodes: any of them answers for any guild.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Client, TestNode, directory, eventually, patient, start_all};
use tanako_db::config::Tuning;
use tanako_db::node::Node;

const NAMES: [&str; 3] = ["node1", "node2", "node3"];

async fn three(directory: &std::path::Path) -> Vec<TestNode> {
    let nodes = start_all(directory, &NAMES, patient()).await;
    for node in &nodes {
        let mut client = node.client().await;
        eventually("all nodes see each other", async || {
            client.ok("cluster_stats", json!({})).await["cluster"]["nodes_up"] == 3
        })
        .await;
    }
    nodes
}

/// A guild whose primary is the node of that name.
fn guild_of(node: &Node, name: &str) -> i64 {
    (1..10_000_i64)
        .find(|guild| node.topology().ring.primary(guild.cast_unsigned()) == name)
        .expect("every node has guilds")
}

#[tokio::test]
async fn any_node_answers_for_any_guild() {
    let directory = directory();
    let nodes = three(directory.path()).await;
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.client().await);
    }
    for guild in 1..=30_i64 {
        let writer = &mut clients[guild as usize % 3];
        writer
            .ok(
                "insert",
                json!({"table": "guilds", "row": {"guild_id": guild, "settings": {"n": guild}}}),
            )
            .await;
        let user = json!({"id": format!("u{guild}"), "guild_id": guild, "user_id": guild % 5});
        writer
            .ok("insert", json!({"table": "users", "row": user}))
            .await;
        let secret = json!({"user_id": guild, "nickname": format!("n{}", guild % 2)});
        writer
            .ok("insert", json!({"table": "secret_users", "row": secret}))
            .await;
        for client in &mut clients {
            let found = client
                .ok(
                    "find_by_id",
                    json!({"table": "guilds", "id_column": "guild_id", "id_value": guild}),
                )
                .await;
            assert_eq!(found["row"]["settings"]["n"], guild);
            let found = client
                .ok(
                    "find_by_id",
                    json!({"table": "users", "id_column": "id", "id_value": format!("u{guild}")}),
                )
                .await;
            assert_eq!(
                found["row"]["guild_id"], guild,
                "found without naming the guild"
            );
            let (code, _) = client
                .refused(
                    "insert",
                    json!({"table": "guilds", "row": {"guild_id": guild}}),
                )
                .await;
            assert_eq!(code, "duplicate_key");
        }
    }
    for node in &nodes {
        let own = node.node.metrics.rows_total();
        assert!(
            (9..=70).contains(&own),
            "{} holds {own} of 90 rows",
            node.settings.name
        );
    }
    let all: u64 = nodes
        .iter()
        .map(|node| node.node.metrics.rows_total())
        .sum();
    assert_eq!(all, 90);
    for client in &mut clients {
        assert_eq!(
            client.ok("count", json!({"table": "guilds"})).await["count"],
            30
        );
        assert_eq!(
            client
                .ok(
                    "count",
                    json!({"table": "users", "conditions": {"user_id": 2}})
                )
                .await["count"],
            6
        );
        assert_eq!(
            client
                .ok(
                    "exists",
                    json!({"table": "secret_users", "conditions": {"nickname": "n1"}})
                )
                .await["exists"],
            true
        );
        assert_eq!(
            client
                .ok(
                    "exists",
                    json!({"table": "secret_users", "conditions": {"nickname": "n7"}})
                )
                .await["exists"],
            false
        );
        let stats = client.ok("stats", json!({})).await["stats"].clone();
        assert_eq!(
            (stats["total_rows"].clone(), stats["table_count"].clone()),
            (json!(90), json!(12))
        );
        assert_eq!(
            client.ok("table_info", json!({"table": "users"})).await["info"]["row_count"],
            30
        );
        let select = json!({"table": "guilds", "columns": ["settings"], "order_by": [["guild_id", "desc"]], "limit": 4, "offset": 3});
        let page = client.ok("select", select).await;
        assert_eq!(
            page["rows"],
            json!([27, 26, 25, 24].map(|n| json!({"settings": {"n": n}})))
        );
        let rest = client
            .ok(
                "select",
                json!({"table": "guilds", "limit": 100, "offset": 25}),
            )
            .await;
        assert_eq!(rest["count"], 5);
    }
    let updated = clients[0]
        .ok(
            "update",
            json!({"table": "users", "conditions": {"user_id": 3}, "data": {"data": {"x": 1}}}),
        )
        .await;
    assert_eq!(updated["updated"], 6);
    let deleted = clients[1]
        .ok(
            "delete",
            json!({"table": "secret_users", "conditions": {"nickname": "n0"}}),
        )
        .await;
    assert_eq!(deleted["deleted"], 15);
    let counted = clients[2]
        .ok(
            "increment",
            json!({"table": "guilds", "conditions": {"guild_id": 9}, "column": "case_counter"}),
        )
        .await;
    assert_eq!(counted["value"], 1);
    let swap = json!({"table": "users", "conditions": {"id": "u4"}, "expected": {"user_id": 4}, "data": {"data": {"y": 2}}});
    let swapped = clients[2].ok("compare_and_set", swap).await;
    assert_eq!(
        (swapped["swapped"].clone(), swapped["row"]["data"].clone()),
        (json!(true), json!({"y": 2}))
    );
    let swap = json!({"table": "users", "conditions": {"id": "nobody"}, "data": {"data": {}}});
    assert_eq!(
        clients[0].ok("compare_and_set", swap).await["row"],
        Value::Null
    );
    let guild = guild_of(&nodes[0].node, "node2");
    let ops = json!([
        {"action": "increment", "data": {"table": "guilds", "conditions": {"guild_id": guild}, "column": "ticket_counter", "create": true}},
        {"action": "upsert", "data": {"table": "tickets", "row": {"ticket_id": "t1", "creator_id": 3}}},
    ]);
    let results = clients[0]
        .ok("transaction", json!({"guild_id": guild, "ops": ops}))
        .await["results"]
        .clone();
    assert_eq!(
        (results[0]["value"].clone(), results[1]["created"].clone()),
        (json!(1), json!(true))
    );
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn many_rows_are_split_and_their_ids_keep_the_order() {
    let directory = directory();
    let nodes = three(directory.path()).await;
    let mut client = nodes[1].client().await;
    let rows: Vec<Value> = (1..=40).map(|guild| json!({"guild_id": guild})).collect();
    let reply = client
        .ok("insert_many", json!({"table": "guilds", "rows": rows}))
        .await;
    assert_eq!(reply["row_ids"], json!((1..=40).collect::<Vec<i64>>()));
    let rows: Vec<Value> = (0..30)
        .map(|n| json!({"metric_type": "cpu", "value": n, "shard_id": n % 4}))
        .collect();
    let ids = client
        .ok("insert_many", json!({"table": "metrics", "rows": rows}))
        .await["row_ids"]
        .clone();
    let ids = ids.as_array().expect("ids").clone();
    assert_eq!(
        ids.iter()
            .map(Value::to_string)
            .collect::<BTreeSet<_>>()
            .len(),
        30
    );
    for (n, id) in ids.iter().enumerate() {
        let found = client
            .ok(
                "find_by_id",
                json!({"table": "metrics", "id_column": "id", "id_value": id}),
            )
            .await;
        assert_eq!(found["row"]["value"], json!(n as f64));
    }
    assert_eq!(
        client
            .ok(
                "count",
                json!({"table": "metrics", "conditions": {"shard_id": 1}})
            )
            .await["count"],
        8
    );
    assert_eq!(
        client
            .ok("insert_many", json!({"table": "guilds", "rows": []}))
            .await["row_ids"],
        json!([])
    );
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_primary_that_is_down_is_named_in_time_and_the_others_go_on() {
    let directory = directory();
    let mut nodes = three(directory.path()).await;
    let mut client = nodes[0].client().await;
    let away = guild_of(&nodes[0].node, "node3");
    let near = guild_of(&nodes[0].node, "node2");
    client
        .ok(
            "insert",
            json!({"table": "guilds", "row": {"guild_id": away}}),
        )
        .await;
    let gone = nodes.pop().expect("three nodes");
    let settings = gone.settings.clone();
    gone.stop().await;
    for (action, data) in [
        (
            "find_by_id",
            json!({"table": "guilds", "id_column": "guild_id", "id_value": away}),
        ),
        (
            "insert",
            json!({"table": "users", "row": {"guild_id": away, "user_id": 1}}),
        ),
        ("count", json!({"table": "guilds"})),
        (
            "select",
            json!({"table": "guilds", "conditions": {"case_counter": 0}}),
        ),
    ] {
        let reply = client.ask(action, data).await;
        assert_eq!(
            (
                reply["success"].clone(),
                reply["code"].clone(),
                reply["retryable"].clone()
            ),
            (json!(false), json!("unavailable"), json!(true)),
            "{reply}"
        );
        assert!(
            reply["error"].as_str().expect("a text").contains("node3"),
            "{reply}"
        );
    }
    client
        .ok(
            "insert",
            json!({"table": "guilds", "row": {"guild_id": near}}),
        )
        .await;
    let cluster = client.ok("cluster_stats", json!({})).await["cluster"].clone();
    assert_eq!(cluster["nodes_up"], 2);

    // It comes back at the same address, and is used again without anybody's help.
    let server = tanako_db::server::Server::bind(settings.listen)
        .await
        .expect("the port is free again");
    let node = Node::open(&settings).expect("opens");
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(server.run(node.clone(), settings.tuning, stop.clone()));
    eventually("the node is used again", async || {
        client
            .ask(
                "find_by_id",
                json!({"table": "guilds", "id_column": "guild_id", "id_value": away}),
            )
            .await["row"]["guild_id"]
            == away
    })
    .await;
    stop.cancel();
    serving.await.expect("ends");
    node.stop().await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_primary_that_hangs_does_not_hang_the_caller() {
    let directory = directory();
    // Accepts connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds");
    let address = silent.local_addr().expect("an address");
    let mut nodes = start_all(directory.path(), &["node1"], Tuning::default()).await;
    let node = nodes.pop().expect("a node");
    let mut settings = node.settings.clone();
    settings.peers.push((
        "node2".to_owned(),
        format!("ws://{address}").parse().expect("a URL"),
    ));
    node.node.set_peers(&settings).expect("a ring");
    let mut client = node.client().await;
    let away = guild_of(&node.node, "node2");
    let (code, _) = client
        .refused(
            "find_by_id",
            json!({"table": "guilds", "id_column": "guild_id", "id_value": away}),
        )
        .await;
    assert_eq!(code, "unavailable");
    node.stop().await;
    drop(silent);
}

#[tokio::test]
async fn nodes_that_disagree_on_the_ring_refuse_instead_of_passing_on_for_ever() {
    let directory = directory();
    let nodes = start_all(directory.path(), &["node1", "node2"], patient()).await;
    // node2 believes in a third node; node1 does not.
    let mut settings = nodes[1].settings.clone();
    settings.peers.push((
        "node3".to_owned(),
        "ws://127.0.0.1:9".parse().expect("a URL"),
    ));
    nodes[1].node.set_peers(&settings).expect("a ring");
    let mut client = nodes[0].client().await;
    let away = guild_of(&nodes[0].node, "node2");
    let find = json!({"table": "guilds", "id_column": "guild_id", "id_value": away});
    eventually("the disagreement is named", async || {
        let reply = client.ask("find_by_id", find.clone()).await;
        assert_eq!(reply["success"], false, "{reply}");
        assert_eq!(reply["retryable"], true, "{reply}");
        reply["code"] == "ring_changed"
    })
    .await;
    // A request that claims to be passed on is answered here or not at all.
    let mut direct = Client::connect(&nodes[0].url).await;
    direct.send(json!({"action": "find_by_id", "data": find, "forwarded": "0123456789abcdef", "request_id": 1}).to_string()).await;
    assert_eq!(
        direct.receive().await.expect("a reply")["code"],
        "ring_changed"
    );
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn pipelined_requests_across_nodes_see_their_own_writes() {
    let directory = directory();
    let nodes = three(directory.path()).await;
    let mut client = nodes[0].client().await;
    for guild in 1..=60_i64 {
        let insert = json!({"action": "insert", "data": {"table": "guilds", "row": {"guild_id": guild}}, "request_id": guild * 2});
        let find = json!({"action": "find_by_id", "data": {"table": "guilds", "id_column": "guild_id", "id_value": guild}, "request_id": guild * 2 + 1});
        client.send(insert.to_string()).await;
        client.send(find.to_string()).await;
    }
    for _ in 0..120 {
        let reply = client.receive().await.expect("a reply");
        assert_eq!(reply["success"], true, "{reply}");
        let id = reply["request_id"].as_i64().expect("an id");
        if id % 2 == 1 {
            assert_eq!(reply["row"]["guild_id"], id / 2, "{reply}");
        }
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn rows_that_another_ring_left_here_are_counted_not_hidden() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    let rows: Vec<Value> = (1..=60).map(|guild| json!({"guild_id": guild})).collect();
    client
        .ok("insert_many", json!({"table": "guilds", "rows": rows}))
        .await;
    let mut settings = node.settings.clone();
    node.stop().await;
    let misplaced = |node: &Node| {
        node.metrics
            .misplaced_rows
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let node = Node::open(&settings).expect("opens");
    assert_eq!(misplaced(&node), 0);
    node.stop().await;
    settings.peers.push((
        "node2".to_owned(),
        "ws://127.0.0.1:9".parse().expect("a URL"),
    ));
    let mut missing = 0;
    for _ in 0..2 {
        let node = Node::open(&settings).expect("opens");
        missing = misplaced(&node);
        assert!((10..50).contains(&missing), "{missing}");
        node.stop().await;
    }
    // The other node's share grows with its weight.
    settings.weights.insert("node2".to_owned(), 9);
    let node = Node::open(&settings).expect("opens");
    assert!(misplaced(&node) > missing, "{}", misplaced(&node));
    node.stop().await;
}
