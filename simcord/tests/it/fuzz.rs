//! Garbage on every socket: never a panic, always an answer or the right close code.

use futures_util::SinkExt;
use hyper::Method;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};
use simcord::{DEVELOPMENT_TOKEN, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_websockets::Message;

use crate::client::{Gateway, PATIENCE, Received, config, first_guild, request, start};

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Cases {
        cases,
        failure_persistence: None,
        ..Cases::default()
    })
}

fn runtime() -> (Runtime, Sim) {
    let runtime = Runtime::new().expect("a runtime");
    let sim = runtime.block_on(start(config()));
    (runtime, sim)
}

/// Any JSON value, small.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!(DEVELOPMENT_TOKEN)),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Mostly names that mean something.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => proptest::sample::select(vec![
            "op", "d", "token", "session_id", "seq", "shard", "intents", "properties", "guild_id", "query",
            "limit", "user_ids", "type", "data", "content", "embeds", "flags", "name", "description", "options",
            "roles", "nick", "communication_disabled_until", "components", "messages", "choices", "required",
        ])
        .prop_map(str::to_owned),
        1 => ".{0,8}".prop_map(String::from),
    ]
}

#[derive(Debug, Clone)]
enum Frame {
    Text(String),
    Binary(Vec<u8>),
    Payload(u8, Value),
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        ".{0,200}".prop_map(Frame::Text),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Frame::Binary),
        (0u8..45, json_value()).prop_map(|(op, d)| Frame::Payload(op, d)),
    ]
}

#[test]
fn garbage_in_frames_gets_a_close_code_and_harms_nobody() {
    let (runtime, sim) = runtime();
    let (mut bystander, _) = runtime.block_on(Gateway::session(&sim, [0, 1]));
    let cases = (any::<bool>(), proptest::collection::vec(frame(), 1..6));
    runner(80)
        .run(&cases, |(identified, frames)| {
            runtime.block_on(async {
                let mut gateway = if identified {
                    Gateway::session(&sim, [0, 1]).await.0
                } else {
                    Gateway::connect(&sim).await
                };
                for frame in frames {
                    let message = match frame {
                        Frame::Text(text) => Message::text(text),
                        Frame::Binary(bytes) => Message::binary(bytes),
                        Frame::Payload(op, d) => {
                            Message::text(json!({ "op": op, "d": d }).to_string())
                        }
                    };
                    if gateway.socket.send(message).await.is_err() {
                        break;
                    }
                }
                // The last word: it must be answered, unless something before was closed for.
                gateway
                    .send(json!({ "op": 1, "d": null, "end": true }))
                    .await;
                gateway.send_text("the end".to_owned()).await;
                loop {
                    match gateway.receive().await {
                        Received::Payload(_) => {}
                        Received::Closed(code) => {
                            prop_assert!((4000..=4014).contains(&code), "{code}");
                            return Ok(());
                        }
                        Received::Broken => prop_assert!(false, "broken without a close frame"),
                    }
                }
            })
        })
        .expect("no panic, always a code");
    runtime.block_on(async {
        bystander.prove().await;
        Gateway::session(&sim, [0, 1]).await;
        sim.stop().await;
    });
}

#[test]
fn garbage_before_and_after_the_handshake_ends_only_its_own_connection() {
    let (runtime, sim) = runtime();
    let bytes = proptest::collection::vec(any::<u8>(), 1..300);
    runner(60)
        .run(&(any::<bool>(), bytes), |(upgraded, bytes)| {
            runtime.block_on(async {
                let mut socket = tokio::net::TcpStream::connect(sim.addr)
                    .await
                    .expect("connected");
                if upgraded {
                    let handshake = "GET /?v=10 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
                                     upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                                     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
                    socket
                        .write_all(handshake.as_bytes())
                        .await
                        .expect("written");
                }
                let _ = socket.write_all(&bytes).await;
                let _ = socket.shutdown().await;
                let mut answer = Vec::new();
                let ended = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
                prop_assert!(ended.is_ok(), "the connection hangs");
                Ok(())
            })
        })
        .expect("no hang");
    runtime.block_on(async {
        Gateway::session(&sim, [0, 1]).await;
        sim.stop().await;
    });
}

#[test]
fn garbage_in_bodies_and_paths_never_gets_a_500() {
    let (runtime, sim) = runtime();
    let guild = runtime.block_on(first_guild(&sim));
    let application = sim.info().application_id.clone();
    let paths = vec![
        format!("/applications/{application}/commands"),
        format!("/applications/{application}/guilds/{guild}/commands"),
        format!("/guilds/{guild}/members/5"),
        format!("/guilds/{guild}/members/{application}"),
        format!("/guilds/{guild}/members/@me"),
        format!("/guilds/{guild}/roles"),
        format!("/guilds/{guild}/channels"),
        format!("/guilds/{guild}/bans/{application}"),
        format!("/channels/{guild}/messages"),
        "/channels/18446744073709551615/messages".to_owned(),
        "/interactions/5/x/callback".to_owned(),
        format!("/webhooks/{application}/x"),
        "/users/@me".to_owned(),
        "/guilds/99999999999999999999999".to_owned(),
    ];
    let admin = [
        "/faults/close",
        "/faults/outage",
        "/events",
        "/rates",
        "/gateway",
        "/interactions",
    ];
    let admin = admin.iter().map(|path| format!("/_sim{path}"));
    let paths: Vec<String> = paths
        .iter()
        .map(|path| format!("/api/v10{path}"))
        .chain(admin)
        .collect();
    let methods = vec![Method::PUT, Method::POST, Method::PATCH];
    let body = prop_oneof![
        3 => json_value().prop_map(|value| value.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..100),
    ];
    let cases = (
        proptest::sample::select(methods),
        proptest::sample::select(paths),
        body,
    );
    runner(250)
        .run(&cases, |(method, path, body)| {
            runtime.block_on(async {
                let token = format!("Bot {DEVELOPMENT_TOKEN}");
                let answer = request(&sim, method.clone(), &path, Some(&token), body).await;
                let status = answer.expect("an answer").status.as_u16();
                prop_assert!(status < 500, "{method} {path}: {status}");
                Ok(())
            })
        })
        .expect("never a 500");
    runtime.block_on(sim.stop());
}
