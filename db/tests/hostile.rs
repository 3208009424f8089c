//! Strangers, garbage, floods and clients that do not read.

mod support;

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use serde_json::json;
use support::{Client, PATIENCE, TOKEN, TestNode, directory, eventually, http_get};
use tanako_db::config::Tuning;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, Message};

async fn upgrade(url: &str, path: &str, header: Option<&str>) -> (u16, String) {
    let address = url.trim_start_matches("ws://");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let header = header
        .map(|header| format!("{header}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut reply = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .expect("in time")
            .expect("reads");
        reply.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&reply).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .expect("a status");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|length| length.parse::<usize>().ok())
                .unwrap_or_default();
            if body.len() >= length || count == 0 {
                return (status, body.to_owned());
            }
        }
        assert!(count > 0, "closed early: {text}");
    }
}

#[tokio::test]
async fn nothing_is_said_without_the_token() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let right = format!("Authorization: Bearer {TOKEN}");
    for (path, header, expected) in [
        ("/", None, 401),
        ("/", Some("Authorization: Bearer wrong"), 401),
        ("/", Some("Authorization: Basic YTpi"), 401),
        ("/", Some("Authorization: Bearer"), 401),
        ("/?token=", None, 401),
        ("/?token=wrong", None, 401),
        ("/?TOKEN=a-token-for-tests-only", None, 401),
        ("/health", None, 401),
        ("/metrics?token=%ff", None, 401),
        ("/", Some(right.as_str()), 101),
        ("/any/path?x=1&token=a-token-for-tests-only", None, 101),
        ("/?token=a%2Dtoken%2dfor-tests-only", None, 101),
    ] {
        let (status, body) = upgrade(&node.url, path, header).await;
        assert_eq!(status, expected, "{path} {header:?}: {body}");
        if status == 401 {
            assert!(
                body.contains("Authorization: Bearer") && body.contains("?token="),
                "{body}"
            );
            assert!(!body.contains(TOKEN));
        }
    }
    // A wrong token in the header is not healed by a right one in the address.
    let both = upgrade(
        &node.url,
        "/?token=a-token-for-tests-only",
        Some("Authorization: Bearer wrong"),
    )
    .await;
    assert_eq!(both.0, 401);
    assert_eq!(
        node.node
            .metrics
            .auth_failures
            .load(std::sync::atomic::Ordering::Relaxed),
        10
    );
    let (status, body) = http_get(&node.url, "/anything").await;
    assert_eq!(status, 401, "{body}");
    let (status, _) = http_get(&node.url, &format!("/?token={TOKEN}")).await;
    assert_eq!(status, 426, "not a WebSocket client");
    node.stop().await;
}

#[tokio::test]
async fn garbage_is_answered_and_the_connection_lives_on() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    let mut client = node.client().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = format!(
        "{{\"action\":\"ping\",\"data\":{}1{}}}",
        "{\"a\":".repeat(50_000),
        "}".repeat(50_000)
    );
    for text in [
        "",
        " ",
        "garbage",
        "{",
        "[]",
        "[1,2]",
        "null",
        "7",
        "\"text\"",
        "{\"action\":}",
        "{'action':'ping'}",
        "{\"action\":\"ping\"}}",
        "\u{0}",
        deep.as_str(),
    ] {
        client.send(text.to_owned()).await;
        let reply = client.receive().await.expect("a reply");
        assert_eq!(
            (&reply["success"], &reply["error"]),
            (&json!(false), &json!("Invalid JSON")),
            "{text:.40}"
        );
        assert!(reply.get("request_id").is_none(), "as the original answers");
    }
    client
        .socket
        .send(Message::binary(vec![0u8, 159, 146, 150]))
        .await
        .expect("sends");
    assert_eq!(
        client.receive().await.expect("a reply")["error"],
        "Invalid JSON"
    );
    client.send(nested).await;
    let _ = client.receive().await.expect("an answer");
    let deep_value = format!(
        r#"{{"action":"insert","data":{{"table":"guilds","row":{{"guild_id":1,"settings":{}1{}}}}},"request_id":1}}"#,
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    client.send(deep_value).await;
    let reply = client.receive().await.expect("a reply");
    assert!(
        reply["error"]
            .as_str()
            .expect("a text")
            .contains("nested deeper"),
        "{reply}"
    );
    for text in [
        r#"{"action":"insert","data":{"table":"guilds","row":{"guild_id":1e400}}}"#,
        r#"{"action":"insert","data":{"table":"guilds","row":{"guild_id":99999999999999999999999999}}}"#,
        r#"{"action":"insert","data":{"table":"guilds","row":{"guild_id":1,"settings":{"x":1e999}}}}"#,
        r#"{"action":"insert","data":{"table":"guilds","row":{"guild_id":1,"settings":"\ud800"}}}"#,
        r#"{"action":["ping"]}"#,
        r#"{"action":{"a":1}}"#,
        r#"{"action":null}"#,
        r#"{"action":"select","data":"x"}"#,
        r#"{"action":"select","data":{"table":["guilds"]}}"#,
        r#"{"action":"select","data":{"table":"guilds","table":"users"}}"#,
        r#"{"action":"select","data":{"table":"guilds","limit":1e999}}"#,
        r#"{"action":"transaction","data":{"guild_id":1,"ops":[[]]}}"#,
    ] {
        client.send(text.to_owned()).await;
        let reply = client.receive().await.expect("a reply");
        assert_eq!(reply["success"], false, "{text}: {reply}");
        assert!(
            reply["error"]
                .as_str()
                .is_some_and(|error| error.len() > 10),
            "{text}: {reply}"
        );
    }
    assert_eq!(
        client.ok("count", json!({"table": "guilds"})).await["count"],
        0
    );
    client.ok("ping", json!({})).await;
    node.stop().await;
}

#[tokio::test]
async fn breaches_of_the_websocket_protocol_close_the_connection() {
    let directory = directory();
    let node = TestNode::start(directory.path()).await;
    for frame in [
        // Unmasked text; a reserved opcode; a masked text that is not UTF-8; a fragment of nothing.
        &[0x81u8, 0x02, b'h', b'i'][..],
        &[0x83, 0x80, 1, 2, 3, 4],
        &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe],
        &[0x80, 0x80, 0, 0, 0, 0],
        &[0xff; 64],
    ] {
        let address = node.url.trim_start_matches("ws://");
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!(
            "GET /?token={TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sends");
        stream.write_all(frame).await.expect("sends");
        let mut reply = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply))
            .await
            .expect("it is closed");
        assert!(
            ended.is_err() || reply.starts_with(b"HTTP/1.1 101"),
            "{frame:?}"
        );
    }
    node.client().await.ok("ping", json!({})).await;
    node.stop().await;
}

#[tokio::test]
async fn bounds_hold_and_are_explained() {
    let directory = directory();
    let tuning = Tuning {
        message_bytes_max: 10_000,
        connections_max: 3,
        ..Tuning::default()
    };
    let node = TestNode::tuned(directory.path(), tuning).await;
    for size in [10_100, 200_000, 3_000_000] {
        let mut client = node.client().await;
        let text = json!({"action": "ping", "data": {"x": "y".repeat(size)}}).to_string();
        // The node may close before all of it is sent.
        let _ = client.socket.send(Message::text(text)).await;
        let mut closed = None;
        while let Ok(Some(Ok(message))) = tokio::time::timeout(PATIENCE, client.socket.next()).await
        {
            if let Some((code, reason)) = message.as_close() {
                closed = Some((u16::from(code), reason.to_owned()));
            }
        }
        if let Some((code, reason)) = closed {
            assert_eq!(code, 1009, "{reason}");
            assert!(reason.contains("too large"), "{reason}");
        } else {
            assert!(size > 100_000, "a message a little too large is told so");
        }
        drop(client);
    }
    eventually("the connections have ended", async || {
        node.node
            .metrics
            .connections
            .load(std::sync::atomic::Ordering::Relaxed)
            == 0
    })
    .await;
    let mut open = Vec::new();
    eventually("as many connections as allowed are open", async || {
        if let Ok(client) = Client::try_connect(&node.url).await {
            open.push(client);
        }
        !open.is_empty()
            && upgrade(
                &node.url,
                "/",
                Some(&format!("Authorization: Bearer {TOKEN}")),
            )
            .await
            .0 == 503
    })
    .await;
    open[0].ok("ping", json!({})).await;
    drop(open);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_the_others_are_served() {
    let directory = directory();
    let tuning = Tuning {
        slow_reader_ms: 300,
        ..Tuning::default()
    };
    let node = TestNode::tuned(directory.path(), tuning).await;
    let mut client = node.client().await;
    let rows: Vec<_> = (1..=50)
        .map(|n| json!({"guild_id": n, "settings": {"text": "x".repeat(10_000)}}))
        .collect();
    client
        .ok("insert_many", json!({"table": "guilds", "rows": rows}))
        .await;
    let mut deaf = node.client().await;
    let select = json!({"action": "select", "data": {"table": "guilds"}}).to_string();
    let flooding = tokio::spawn(async move {
        while deaf
            .socket
            .send(Message::text(select.clone()))
            .await
            .is_ok()
        {}
    });
    eventually("the deaf client is cut off", async || {
        client.ok("ping", json!({})).await;
        node.node
            .metrics
            .slow_readers
            .load(std::sync::atomic::Ordering::Relaxed)
            == 1
    })
    .await;
    tokio::time::timeout(PATIENCE, flooding)
        .await
        .expect("it notices")
        .expect("a task");
    node.stop().await;
}

#[test]
fn frames_of_any_kind_never_stop_the_node() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let directory = directory();
    let node = runtime.block_on(TestNode::start(directory.path()));
    let url = format!("{}/?token={TOKEN}", node.url);
    let actions = prop::sample::select(vec![
        "insert",
        "insert_many",
        "update",
        "delete",
        "select",
        "find_one",
        "find_by_id",
        "count",
        "exists",
        "table_info",
        "upsert",
        "compare_and_set",
        "increment",
        "transaction",
    ]);
    let word = prop_oneof![
        Just("table".to_owned()),
        Just("guilds".to_owned()),
        Just("users".to_owned()),
        Just("row".to_owned()),
        Just("guild_id".to_owned()),
        Just("conditions".to_owned()),
        Just("data".to_owned()),
        Just("id".to_owned()),
        "\\PC{0,8}",
    ];
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        word.clone().prop_map(|value| json!(value)),
    ];
    let value = leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|list| json!(list)),
            prop::collection::vec((word.clone(), inner), 0..4)
                .prop_map(|pairs| json!(pairs.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    });
    let shaped = (
        actions,
        value,
        prop::sample::select(vec!["guilds", "users", "metrics", "nope"]),
        any::<bool>(),
    )
        .prop_map(|(action, data, table, with_table)| {
            let mut data = data;
            if with_table && let Some(object) = data.as_object_mut() {
                object.insert("table".to_owned(), json!(table));
            }
            json!({"action": action, "data": data, "request_id": 1}).to_string()
        });
    let text = prop_oneof![3 => shaped, 1 => "\\PC{0,60}"];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&text, |text| {
        runtime.block_on(async {
            let (mut socket, _) = ClientBuilder::new()
                .uri(&url)
                .expect("a URL")
                .connect()
                .await
                .expect("connects");
            socket.send(Message::text(text)).await.expect("sends");
            let reply = tokio::time::timeout(PATIENCE, socket.next())
                .await
                .expect("an answer in time");
            let reply = reply.expect("an open connection").expect("a frame");
            let reply: serde_json::Value =
                serde_json::from_str(reply.as_text().expect("text")).expect("JSON");
            prop_assert!(reply["success"].is_boolean());
            if reply["success"] == false {
                prop_assert!(!reply["error"].as_str().unwrap_or_default().is_empty());
                prop_assert!(reply["code"] != "storage", "{}", reply);
            }
            Ok(())
        })
    });
    runtime.block_on(node.stop());
    result.expect("every frame is answered");
}
