//! The wire protocol, every action on every table, against a real node over a real WebSocket.

mod support;

use serde_json::{Value, json};
use support::{Client, TestNode, directory};
use tanako_db::schema::{Kind, TABLES, Table};

/// A row with only what a row must have.
fn minimal(table: &Table, number: i64) -> Value {
    let mut row = json!({});
    row[table.key().name] = id(table, number);
    if table.guild.is_some() {
        row["guild_id"] = if table.key_is_guild() {
            json!(number)
        } else {
            json!(4_000 + number % 3)
        };
    }
    row
}

fn id(table: &Table, number: i64) -> Value {
    match table.key().kind {
        Kind::Text => json!(format!("row-{number}")),
        _ => json!(number),
    }
}

/// Another value than the default for a column.
fn sample(kind: Kind) -> Value {
    match kind {
        Kind::Snowflake => json!(81_384_788_765_712_384_i64),
        Kind::Int64 => json!(9_007_199_254_740_993_i64),
        Kind::Int32 => json!(41),
        Kind::Float64 => json!(2.5),
        Kind::Bool => json!(false),
        Kind::Text => json!("tëxt \"quoted\" \u{1f600}"),
        Kind::Json => json!({"b": [1, {"c": null}], "a": "x"}),
        Kind::Time => json!("2026-11-21T10:20:30.000001+00:00"),
    }
}

#[tokio::test]
async fn every_action_on_every_table() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    for table in TABLES {
        let (name, key) = (table.name, table.key().name);
        let in_table = |more: Value| {
            let mut data = json!({"table": name});
            data.as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            data
        };
        let one = in_table(json!({"id_column": key, "id_value": id(table, 7)}));
        let condition = json!({ key: id(table, 7) });

        let reply = client
            .ok("insert", in_table(json!({"row": minimal(table, 7)})))
            .await;
        assert_eq!(reply["row_id"], id(table, 7), "{name}");
        let row = client.ok("find_by_id", one.clone()).await["row"].clone();
        let columns: Vec<&String> = row.as_object().expect("a row").keys().collect();
        assert_eq!(columns.len(), table.columns.len(), "{name}: {columns:?}");
        for column in table.columns {
            let value = &row[column.name];
            if column.name == key || column.name == "guild_id" {
                continue;
            }
            match (column.declared_default(), column.kind) {
                (Some(default), _) => {
                    assert_eq!(value.to_string(), default, "{name}.{}", column.name);
                }
                (None, _) if column.nullable => assert!(value.is_null(), "{name}.{}", column.name),
                (None, Kind::Time) => {
                    assert!(value.as_str().is_some_and(|time| time.contains('T')));
                }
                (None, _) => assert!(!value.is_null(), "{name}.{}", column.name),
            }
        }

        let (code, text) = client
            .refused("insert", in_table(json!({"row": minimal(table, 7)})))
            .await;
        assert_eq!(code, "duplicate_key");
        assert!(
            text.contains("Duplicate primary key") && text.contains(name),
            "{text}"
        );

        let mut set = json!({});
        for column in &table.columns[1..] {
            if column.name != "guild_id" {
                set[column.name] = sample(column.kind);
            }
        }
        let update = in_table(json!({"data": set, "conditions": condition}));
        assert_eq!(client.ok("update", update).await["updated"], 1, "{name}");
        let row = client
            .ok("find_one", in_table(json!({"conditions": set})))
            .await["row"]
            .clone();
        for (column, value) in set.as_object().expect("an object") {
            assert_eq!(&row[column], value, "{name}.{column}");
        }
        for (column, value) in set.as_object().expect("an object") {
            let found = client
                .ok("count", in_table(json!({"conditions": {column: value}})))
                .await;
            assert_eq!(found["count"], 1, "{name}.{column} is found by its value");
        }

        let rows: Vec<Value> = (8..12).map(|number| minimal(table, number)).collect();
        let reply = client
            .ok("insert_many", in_table(json!({"rows": rows})))
            .await;
        assert_eq!(
            reply["row_ids"],
            json!((8..12).map(|number| id(table, number)).collect::<Vec<_>>())
        );
        let some = [minimal(table, 20), minimal(table, 8), minimal(table, 21)];
        let (code, _) = client
            .refused("insert_many", in_table(json!({"rows": some})))
            .await;
        assert_eq!(code, "duplicate_key");
        assert_eq!(
            client.ok("count", in_table(json!({}))).await["count"],
            5,
            "all or none"
        );

        let all = client.ok("select", in_table(json!({}))).await;
        assert_eq!(
            (
                all["count"].clone(),
                all["rows"].as_array().expect("rows").len()
            ),
            (json!(5), 5)
        );
        let page = client
            .ok(
                "select",
                in_table(
                    json!({"columns": [key], "order_by": [[key, "desc"]], "limit": 2, "offset": 1}),
                ),
            )
            .await;
        let sorted: Vec<Value> = match table.key().kind {
            Kind::Text => vec![id(table, 8), id(table, 7)].into_iter().rev().collect(),
            _ => vec![id(table, 10), id(table, 9)],
        };
        let expected: Vec<Value> = match table.key().kind {
            // row-9, row-8, row-7, row-11, row-10
            Kind::Text => vec![id(table, 8), id(table, 7)],
            _ => sorted,
        };
        let found: Vec<Value> = page["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row[key].clone())
            .collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(page["rows"][0].as_object().expect("a row").len(), 1);

        assert_eq!(
            client
                .ok("exists", in_table(json!({"conditions": condition})))
                .await["exists"],
            true
        );
        let info = client.ok("table_info", in_table(json!({}))).await["info"].clone();
        assert_eq!(
            (info["name"].clone(), info["row_count"].clone()),
            (json!(name), json!(5))
        );
        assert_eq!(
            info["columns"].as_array().expect("columns").len(),
            table.columns.len()
        );

        let mut given = minimal(table, 7);
        let changed = table
            .columns
            .iter()
            .find(|column| set.get(column.name).is_some())
            .expect("a column");
        given[changed.name] = set[changed.name].clone();
        let reply = client.ok("upsert", in_table(json!({"row": given}))).await;
        assert_eq!(
            (reply["created"].clone(), reply["row_id"].clone()),
            (json!(false), id(table, 7))
        );
        let reply = client
            .ok("upsert", in_table(json!({"row": minimal(table, 30)})))
            .await;
        assert_eq!(reply["created"], true);

        let swap = |expected: Value| {
            in_table(json!({
                "conditions": condition, "expected": {changed.name: expected}, "data": {changed.name: set[changed.name]},
            }))
        };
        let reply = client
            .ok("compare_and_set", swap(set[changed.name].clone()))
            .await;
        assert_eq!(
            (reply["swapped"].clone(), reply["updated"].clone()),
            (json!(true), json!(1))
        );
        let other = if changed.kind == Kind::Bool {
            json!(true)
        } else {
            json!(null)
        };
        let reply = client.ok("compare_and_set", swap(other)).await;
        assert_eq!(
            (reply["swapped"].clone(), reply["row"][key].clone()),
            (json!(false), id(table, 7))
        );

        for action in ["update", "delete"] {
            let data = in_table(json!({"data": set, "conditions": {}}));
            let (code, text) = client.refused(action, data).await;
            assert_eq!(code, "empty_conditions", "{text}");
        }
        assert_eq!(client.ok("count", in_table(json!({}))).await["count"], 6);
        assert_eq!(
            client
                .ok("delete", in_table(json!({"conditions": condition})))
                .await["deleted"],
            1
        );
        assert_eq!(
            client.ok("find_by_id", one.clone()).await["row"],
            Value::Null
        );
        for number in 8..12 {
            let other = in_table(json!({"id_column": key, "id_value": id(table, number)}));
            assert_eq!(
                client.ok("find_by_id", other).await["row"][key],
                id(table, number),
                "the others are still found"
            );
        }
        assert_eq!(
            client.ok("delete", in_table(json!({"all": true}))).await["deleted"],
            5,
            "{name}"
        );
        assert_eq!(
            client.ok("exists", in_table(json!({}))).await["exists"],
            false
        );
        let left = client
            .ok(
                "count",
                in_table(json!({"conditions": {changed.name: set[changed.name]}})),
            )
            .await;
        assert_eq!(left["count"], 0, "no index entry is left in {name}");
    }
    node.stop().await;
}

#[tokio::test]
async fn requests_without_a_table() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    let pong = client.ok("ping", json!({})).await;
    assert_eq!(pong["pong"], true);
    assert!(pong["timestamp"].as_str().expect("a time").contains('T'));
    let tables = client.ok("list_tables", json!({})).await["tables"].clone();
    assert_eq!(tables.as_array().expect("a list").len(), 12);
    client
        .ok("insert", json!({"table": "guilds", "row": {"guild_id": 1}}))
        .await;
    let stats = client.ok("stats", json!({})).await["stats"].clone();
    assert_eq!(
        (
            stats["tables"]["guilds"]["rows"].clone(),
            stats["total_rows"].clone()
        ),
        (json!(1), json!(1))
    );
    let cluster = client.ok("cluster_stats", json!({})).await["cluster"].clone();
    assert_eq!(
        (cluster["node"].clone(), cluster["node_count"].clone()),
        (json!("node1"), json!(1))
    );
    client.ok("vacuum", json!({})).await;
    let elsewhere = directory.path().join("elsewhere");
    let path = client.ok("backup", json!({"backup_dir": elsewhere})).await["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    assert!(
        path.starts_with(directory.path().join("backups").to_str().expect("UTF-8")),
        "{path}"
    );
    assert!(std::path::Path::new(&path).is_file() && !elsewhere.exists());
    node.stop().await;
}

#[tokio::test]
async fn request_ids_come_back_as_they_were() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    for id in [json!("a\"b"), json!(7), json!(1.5), json!(null), json!("")] {
        client
            .send(json!({"action": "ping", "request_id": id}).to_string())
            .await;
        assert_eq!(client.receive().await.expect("a reply")["request_id"], id);
    }
    client.send(r#"{"action":"ping"}"#.to_owned()).await;
    let reply = client.receive().await.expect("a reply");
    assert_eq!(reply.get("request_id"), Some(&Value::Null));
    node.stop().await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    client
        .ok(
            "insert",
            json!({"table": "users", "row": {"id": "a", "guild_id": 1, "user_id": 2}}),
        )
        .await;
    for (action, data, code, part) in [
        ("nope", json!({}), "unknown_action", "Unknown action: nope"),
        (
            "select",
            json!({"table": "nope"}),
            "unknown_table",
            "Table nope does not exist",
        ),
        (
            "insert",
            json!({"table": "nope", "row": {}}),
            "unknown_table",
            "Table nope does not exist",
        ),
        (
            "table_info",
            json!({"table": "nope"}),
            "unknown_table",
            "Table nope does not exist",
        ),
        (
            "select",
            json!({}),
            "unknown_table",
            "Table None does not exist",
        ),
        (
            "insert",
            json!({"table": "guilds"}),
            "bad_request",
            "Missing row",
        ),
        (
            "insert",
            json!({"table": "guilds", "row": {}}),
            "bad_request",
            "Missing column guild_id",
        ),
        (
            "insert",
            json!({"table": "users", "row": {"id": "b"}}),
            "bad_request",
            "Missing column guild_id",
        ),
        (
            "insert",
            json!({"table": "guilds", "row": []}),
            "bad_request",
            "Invalid row",
        ),
        (
            "insert",
            json!({"table": "guilds", "row": {"guild_id": 1, "x": 2}}),
            "unknown_column",
            "Column x does not exist in table guilds",
        ),
        (
            "insert",
            json!({"table": "guilds", "row": {"guild_id": "abc"}}),
            "bad_value",
            "guilds.guild_id",
        ),
        (
            "insert",
            json!({"table": "guilds", "row": {"guild_id": null}}),
            "bad_value",
            "null is not allowed",
        ),
        (
            "insert",
            json!({"table": "filters", "row": {"guild_id": 1, "enabled": "yes"}}),
            "bad_value",
            "filters.enabled",
        ),
        (
            "insert",
            json!({"table": "users", "row": {"id": "", "guild_id": 1}}),
            "bad_value",
            "the key is empty",
        ),
        (
            "insert",
            json!({"table": "users", "row": {"id": "x".repeat(600), "guild_id": 1}}),
            "bad_value",
            "at most 512 bytes",
        ),
        (
            "insert_many",
            json!({"table": "guilds", "rows": {}}),
            "bad_request",
            "Invalid rows",
        ),
        (
            "select",
            json!({"table": "guilds", "conditions": {"x": 1}}),
            "unknown_column",
            "Column x",
        ),
        (
            "select",
            json!({"table": "guilds", "conditions": []}),
            "bad_request",
            "Invalid conditions",
        ),
        (
            "select",
            json!({"table": "guilds", "columns": ["x"]}),
            "unknown_column",
            "Column x",
        ),
        (
            "select",
            json!({"table": "guilds", "order_by": [["guild_id", "up"]]}),
            "bad_request",
            "the direction",
        ),
        (
            "select",
            json!({"table": "guilds", "limit": -1}),
            "bad_request",
            "Invalid limit",
        ),
        (
            "select",
            json!({"table": "guilds", "offset": "a"}),
            "bad_request",
            "Invalid offset",
        ),
        (
            "find_by_id",
            json!({"table": "guilds", "id_column": "guild_id"}),
            "bad_request",
            "Missing id_value",
        ),
        (
            "find_by_id",
            json!({"table": "guilds", "id_column": "x", "id_value": 1}),
            "unknown_column",
            "Column x",
        ),
        (
            "update",
            json!({"table": "users", "conditions": {"id": "a"}}),
            "bad_request",
            "Missing data",
        ),
        (
            "update",
            json!({"table": "users", "data": {"id": "b"}, "conditions": {"id": "a"}}),
            "bad_request",
            "Cannot change users.id",
        ),
        (
            "update",
            json!({"table": "users", "data": {"guild_id": 9}, "conditions": {"id": "a"}}),
            "bad_request",
            "Cannot change users.guild_id",
        ),
        (
            "delete",
            json!({"table": "users"}),
            "empty_conditions",
            "\"all\": true",
        ),
        (
            "increment",
            json!({"table": "users", "conditions": {"id": "a"}, "column": "data"}),
            "bad_value",
            "it is no counter",
        ),
        (
            "increment",
            json!({"table": "guilds", "conditions": {"guild_id": 99}, "column": "case_counter"}),
            "not_found",
            "no row",
        ),
        (
            "increment",
            json!({"table": "guilds", "conditions": {"guild_id": 99}}),
            "bad_request",
            "Missing column",
        ),
        (
            "increment",
            json!({"table": "guilds", "conditions": {"guild_id": 99}, "column": "case_counter", "by": "x"}),
            "bad_value",
            "Invalid by",
        ),
        (
            "increment",
            json!({"table": "guilds", "conditions": {"guild_id": 98}, "column": "case_counter", "by": 2_147_483_648_i64, "create": true}),
            "bad_value",
            "out of range",
        ),
        (
            "compare_and_set",
            json!({"table": "users", "conditions": {"user_id": 2}, "data": {"data": {}}}),
            "bad_request",
            "must have id",
        ),
        (
            "transaction",
            json!({"ops": []}),
            "bad_request",
            "Missing guild_id",
        ),
        (
            "transaction",
            json!({"guild_id": 1, "ops": []}),
            "bad_request",
            "1 to 256",
        ),
        (
            "transaction",
            json!({"guild_id": 1, "ops": [{"action": "select", "data": {"table": "users"}}]}),
            "bad_request",
            "cannot be part",
        ),
        (
            "transaction",
            json!({"guild_id": 1, "ops": [{"action": "delete", "data": {"table": "guilds", "conditions": {"guild_id": 2}}}]}),
            "bad_request",
            "not within guild 1",
        ),
        (
            "transaction",
            json!({"guild_id": 1, "ops": [{"action": "delete", "data": {"table": "secret_users", "conditions": {"user_id": 2}}}]}),
            "bad_request",
            "not within guild 1",
        ),
        ("select", json!([]), "bad_request", "Invalid data"),
    ] {
        let (found, text) = client.refused(action, data.clone()).await;
        assert_eq!(found, code, "{action} {data}: {text}");
        assert!(text.contains(part), "{action} {data}: {text}");
    }
    let exists = client
        .ok(
            "exists",
            json!({"table": "guilds", "conditions": {"guild_id": 98}}),
        )
        .await;
    assert_eq!(
        exists["exists"], false,
        "an increment that failed has created nothing"
    );
    node.stop().await;
}

#[tokio::test]
async fn snowflakes_are_exact_as_numbers_and_as_strings() {
    const BIG: i64 = 9_007_199_254_740_993;
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    let row = json!({"id": "a", "guild_id": BIG.to_string(), "user_id": BIG});
    client
        .ok("insert", json!({"table": "users", "row": row}))
        .await;
    let data = json!({"table": "users", "conditions": {"user_id": BIG.to_string()}});
    let row = client.ok("find_one", data.clone()).await["row"].clone();
    assert_eq!(
        (row["guild_id"].clone(), row["user_id"].clone()),
        (json!(BIG), json!(BIG))
    );
    client
        .send(
            json!({"action": "find_one", "data": data, "request_id": 1, "snowflakes": "string"})
                .to_string(),
        )
        .await;
    let row = client.receive().await.expect("a reply")["row"].clone();
    assert_eq!(
        (row["guild_id"].clone(), row["user_id"].clone()),
        (json!(BIG.to_string()), json!(BIG.to_string()))
    );
    let mut strings = Client::connect(&format!("{}/?snowflakes=string", node.url)).await;
    assert_eq!(
        strings.ok("select", data).await["rows"][0]["user_id"],
        json!(BIG.to_string())
    );
    let inserted = strings
        .ok(
            "insert",
            json!({"table": "guilds", "row": {"guild_id": BIG}}),
        )
        .await;
    assert_eq!(inserted["row_id"], json!(BIG.to_string()));
    let level = json!({"table": "user_levels", "row": {"id": "l", "guild_id": 1, "user_id": 2, "total_xp": 5}});
    strings.ok("insert", level).await;
    let row = strings
        .ok(
            "find_by_id",
            json!({"table": "user_levels", "id_column": "id", "id_value": "l"}),
        )
        .await;
    assert_eq!(
        (
            row["row"]["total_xp"].clone(),
            row["row"]["user_id"].clone()
        ),
        (json!(5), json!("2"))
    );
    node.stop().await;
}

#[tokio::test]
async fn keys_and_times_are_made_where_none_are_given() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    let rows = json!([{"guild_id": 1}, {"guild_id": 1}, {"guild_id": 2}]);
    let ids = client
        .ok("insert_many", json!({"table": "users", "rows": rows}))
        .await["row_ids"]
        .clone();
    let ids: std::collections::BTreeSet<&str> = ids
        .as_array()
        .expect("ids")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(ids.len(), 3);
    let id = *ids.first().expect("an id");
    let before = client
        .ok("find_by_id", json!({"table": "users", "id_value": id}))
        .await["row"]
        .clone();
    assert_eq!(before["created_at"], before["updated_at"]);
    client
        .ok(
            "update",
            json!({"table": "users", "data": {"data": {"x": 1}}, "conditions": {"id": id}}),
        )
        .await;
    let after = client
        .ok("find_by_id", json!({"table": "users", "id_value": id}))
        .await["row"]
        .clone();
    assert_eq!(after["created_at"], before["created_at"]);
    assert!(after["updated_at"].as_str() > before["updated_at"].as_str());
    node.stop().await;
}

#[tokio::test]
async fn concurrent_increments_and_swaps_lose_nothing() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut client = node.client().await;
        tasks.push(tokio::spawn(async move {
            let mut values = Vec::new();
            for _ in 0..50 {
                let counter = json!({"table": "guilds", "conditions": {"guild_id": 1}, "column": "case_counter", "create": true});
                values.push(client.ok("increment", counter).await["value"].as_i64().expect("a number"));
            }
            // The classic read-modify-write, made safe by comparing.
            for _ in 0..10 {
                loop {
                    let row = client.ok("find_one", json!({"table": "guilds", "conditions": {"guild_id": 1}})).await["row"].clone();
                    let count = row["ticket_counter"].as_i64().expect("a number");
                    let swap = json!({"table": "guilds", "conditions": {"guild_id": 1, "ticket_counter": count}, "data": {"ticket_counter": count + 1}});
                    if client.ok("compare_and_set", swap).await["swapped"] == true {
                        break;
                    }
                }
            }
            values
        }));
    }
    let mut values = Vec::new();
    for task in tasks {
        values.extend(task.await.expect("a task"));
    }
    values.sort_unstable();
    assert_eq!(
        values,
        (1..=400).collect::<Vec<i64>>(),
        "every value was given once"
    );
    let mut client = node.client().await;
    let row = client.ok("find_one", json!({"table": "guilds"})).await["row"].clone();
    assert_eq!(
        (row["case_counter"].clone(), row["ticket_counter"].clone()),
        (json!(400), json!(80))
    );
    node.stop().await;
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    client
        .ok("insert", json!({"table": "guilds", "row": {"guild_id": 5}}))
        .await;
    let open_case = |case: &str, expected: i64| {
        json!({"guild_id": 5, "ops": [
            {"action": "increment", "data": {"table": "guilds", "conditions": {"guild_id": 5}, "column": "case_counter"}},
            {"action": "insert", "data": {"table": "moderation_cases", "row": {"id": case, "target_id": 9}}},
            {"action": "compare_and_set", "data": {"table": "guilds", "conditions": {"guild_id": 5}, "expected": {"case_counter": expected}, "data": {"settings": {"last": case}}}},
            {"action": "update", "data": {"table": "moderation_cases", "conditions": {"target_id": 9}, "data": {"reason": "spam"}}},
        ]})
    };
    let results = client.ok("transaction", open_case("c1", 1)).await["results"].clone();
    assert_eq!(results[0]["value"], 1);
    assert_eq!(results[1]["row_id"], "c1");
    assert_eq!(
        results[3]["updated"], 1,
        "a later operation sees the rows of an earlier one"
    );
    let (code, text) = client.refused("transaction", open_case("c2", 77)).await;
    assert_eq!(code, "conflict", "{text}");
    let (code, text) = client.refused("transaction", open_case("c1", 2)).await;
    assert_eq!(code, "duplicate_key", "{text}");
    assert!(
        text.contains("operation 1") && text.contains("nothing was changed"),
        "{text}"
    );
    let row = client.ok("find_one", json!({"table": "guilds"})).await["row"].clone();
    assert_eq!(
        (row["case_counter"].clone(), row["settings"].clone()),
        (json!(1), json!({"last": "c1"}))
    );
    assert_eq!(
        client
            .ok("count", json!({"table": "moderation_cases"}))
            .await["count"],
        1
    );
    assert_eq!(
        client
            .ok(
                "count",
                json!({"table": "moderation_cases", "conditions": {"target_id": 9}})
            )
            .await["count"],
        1
    );
    node.stop().await;
}

#[tokio::test]
async fn pipelined_requests_see_what_the_same_connection_wrote_before() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    for guild in 0..100 {
        for (id, action, data) in [
            (
                guild * 4,
                "insert",
                json!({"table": "guilds", "row": {"guild_id": guild + 1}}),
            ),
            (
                guild * 4 + 1,
                "find_by_id",
                json!({"table": "guilds", "id_column": "guild_id", "id_value": guild + 1}),
            ),
            (
                guild * 4 + 2,
                "delete",
                json!({"table": "guilds", "conditions": {"guild_id": guild + 1}}),
            ),
            (guild * 4 + 3, "count", json!({"table": "guilds"})),
        ] {
            client
                .send(json!({"action": action, "data": data, "request_id": id}).to_string())
                .await;
        }
    }
    let mut replies = std::collections::BTreeMap::new();
    while replies.len() < 400 {
        let reply = client.receive().await.expect("a reply");
        replies.insert(reply["request_id"].as_u64().expect("an id"), reply);
    }
    for (id, reply) in replies {
        assert_eq!(reply["success"], true, "{reply}");
        match id % 4 {
            1 => assert_eq!(reply["row"]["guild_id"], json!(id / 4 + 1), "{reply}"),
            2 => assert_eq!(reply["deleted"], 1),
            3 => assert_eq!(reply["count"], 0),
            _ => {}
        }
    }
    let mut client = node.client().await;
    assert_eq!(
        client.ok("count", json!({"table": "guilds"})).await["count"],
        0
    );
    node.stop().await;
}
