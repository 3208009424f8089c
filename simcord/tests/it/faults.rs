//! Faults on demand, and the admin API itself.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use simcord::{Config, Sim};

use crate::client::{
    Gateway, Received, account, admin, config, events, get, look, request, start, until,
};

/// Two shards with a session each.
async fn two(sim: &Sim) -> [(Gateway, String); 2] {
    [
        Gateway::session(sim, [0, 2]).await,
        Gateway::session(sim, [1, 2]).await,
    ]
}

async fn resumes(sim: &Sim, session: &str, seq: u64) -> Gateway {
    let mut gateway = Gateway::connect(sim).await;
    gateway.resume(session, seq).await;
    gateway.event("RESUMED").await;
    gateway
}

#[tokio::test]
async fn a_dropped_connection_ends_without_a_close_frame_and_can_be_resumed() {
    let sim = start(config()).await;
    let [(mut zero, session), (mut one, _)] = two(&sim).await;
    let answer = admin(&sim, "/faults/drop", json!({ "shard": 0 })).await;
    assert_eq!(answer["affected"], 1);
    assert_eq!(zero.receive().await, Received::Broken);
    resumes(&sim, &session, zero.seq).await;
    one.prove().await;
}

#[tokio::test]
async fn any_code_can_close_and_opcode_7_asks_to_come_back() {
    let sim = start(config()).await;
    let [(mut zero, session), (mut one, _)] = two(&sim).await;
    admin(
        &sim,
        "/faults/close",
        json!({ "session": session, "code": 4002 }),
    )
    .await;
    assert_eq!(zero.closed().await, 4002);
    resumes(&sim, &session, zero.seq).await;
    admin(&sim, "/faults/reconnect", json!({ "shard": [1, 2] })).await;
    assert_eq!(one.receive().await.payload()["op"], 7);
    let account = account(&sim).await;
    assert_eq!(account["closes_sent"]["4002"], 1);
}

#[tokio::test]
async fn a_silenced_session_hears_nothing_and_misses_nothing() {
    let sim = start(Config {
        guilds: 1,
        ..config()
    })
    .await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    admin(&sim, "/faults/silence", json!({ "all": true })).await;
    gateway.heartbeat().await;
    until(&sim, "the heartbeat is read", |account| {
        account["heartbeats"] == 1
    })
    .await;
    events(&sim, "TYPING_START", 3).await;
    let quiet = tokio::time::timeout(Duration::from_millis(300), gateway.receive()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(look(&sim, "/sessions").await[0]["silenced"], true);
    let seq = gateway.seq;
    gateway.close(4000).await;
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, seq).await;
    for _ in 0..3 {
        assert_eq!(again.receive().await.payload()["t"], "TYPING_START");
    }
}

#[tokio::test]
async fn a_silence_can_be_lifted() {
    let sim = start(config()).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    admin(&sim, "/faults/silence", json!({ "all": true })).await;
    gateway.heartbeat().await;
    events(&sim, "TYPING_START", 1).await;
    admin(
        &sim,
        "/faults/silence",
        json!({ "all": true, "silent": false }),
    )
    .await;
    gateway.opcode(11).await;
    gateway.event("TYPING_START").await;
}

#[tokio::test]
async fn invalid_sessions_may_or_may_not_be_resumed() {
    let sim = start(config()).await;
    let [(mut zero, kept), (mut one, gone)] = two(&sim).await;
    admin(
        &sim,
        "/faults/invalid-session",
        json!({ "shard": 0, "resumable": true }),
    )
    .await;
    let invalid = zero.receive().await.payload();
    assert_eq!((&invalid["op"], &invalid["d"]), (&json!(9), &json!(true)));
    zero.prove().await;
    let seq = zero.seq;
    zero.close(4000).await;
    resumes(&sim, &kept, seq).await;
    admin(&sim, "/faults/invalid-session", json!({ "shard": 1 })).await;
    let invalid = one.receive().await.payload();
    assert_eq!((&invalid["op"], &invalid["d"]), (&json!(9), &json!(false)));
    let mut again = Gateway::connect(&sim).await;
    again.resume(&gone, one.seq).await;
    assert_eq!(again.receive().await.payload()["op"], 9);
    // A new session may begin on the same connection.
    one.identify([1, 2]).await;
    one.ready().await;
}

#[tokio::test]
async fn resume_urls_can_be_dead_while_the_gateway_lives() {
    let sim = start(config()).await;
    let mut gateway = Gateway::connect(&sim).await;
    gateway.identify([0, 1]).await;
    let ready = gateway.ready().await;
    let url = ready["resume_gateway_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    admin(&sim, "/faults/resume-url", json!({ "dead": true })).await;
    assert!(Gateway::try_open(&format!("{url}/?v=10")).await.is_err());
    let (_, _) = Gateway::session(&sim, [0, 1]).await;
    let mut new = Gateway::connect(&sim).await;
    new.identify([0, 1]).await;
    let dead = new.ready().await["resume_gateway_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    assert!(Gateway::try_open(&format!("{dead}/?v=10")).await.is_err());
    admin(&sim, "/faults/resume-url", json!({ "dead": false })).await;
    Gateway::connect_to(&url).await;
}

#[tokio::test]
async fn an_outage_drops_and_refuses_everything_until_it_is_over() {
    let sim = start(config()).await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    admin(
        &sim,
        "/faults/outage",
        json!({ "seconds": 60, "rest": true }),
    )
    .await;
    assert_eq!(gateway.receive().await, Received::Broken);
    let url = format!("{}/?v=10", sim.info().gateway);
    assert!(Gateway::try_open(&url).await.is_err());
    assert!(
        request(&sim, Method::GET, "/api/v10/gateway", None, Vec::new())
            .await
            .is_err()
    );
    events(&sim, "TYPING_START", 2).await;
    admin(
        &sim,
        "/faults/outage",
        json!({ "seconds": 0, "rest": true }),
    )
    .await;
    get(&sim, "/users/@me").await.ok();
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, gateway.seq).await;
    again.event("TYPING_START").await;
    again.event("TYPING_START").await;
    again.event("RESUMED").await;
    assert_eq!(account(&sim).await["events_lost"], 0);
}

#[tokio::test]
async fn an_outage_ends_by_itself() {
    let sim = start(config()).await;
    let url = format!("{}/?v=10", sim.info().gateway);
    let end = Instant::now() + crate::client::PATIENCE;
    // On a busy machine it may be over before anybody has asked.
    loop {
        admin(&sim, "/faults/outage", json!({ "seconds": 0.3 })).await;
        if Gateway::try_open(&url).await.is_err() {
            break;
        }
        assert!(Instant::now() < end, "never out");
    }
    // The REST API was not asked to fail.
    get(&sim, "/users/@me").await.ok();
    let end = Instant::now() + crate::client::PATIENCE;
    while Gateway::try_open(&url).await.is_err() {
        assert!(Instant::now() < end, "still out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn rest_can_be_slow() {
    let sim = start(config()).await;
    admin(&sim, "/faults/rest-delay", json!({ "ms": 400 })).await;
    let began = Instant::now();
    get(&sim, "/users/@me").await.ok();
    assert!(began.elapsed() >= Duration::from_millis(400));
    admin(&sim, "/faults/rest-delay", json!({ "ms": 0 })).await;
    assert_eq!(look(&sim, "/state").await["faults"]["rest_delay_ms"], 0);
}

#[tokio::test]
async fn one_event_type_can_stop() {
    let sim = start(config()).await;
    let [(mut zero, _), (mut one, _)] = two(&sim).await;
    admin(
        &sim,
        "/faults/mute",
        json!({ "shard": 0, "event": "TYPING_START" }),
    )
    .await;
    for gateway in [&mut zero, &mut one] {
        gateway.prove().await;
    }
    events(&sim, "TYPING_START", 20).await;
    for guild in look(&sim, "/guilds").await["guilds"]
        .as_array()
        .expect("guilds")
    {
        admin(
            &sim,
            "/events",
            json!({ "type": "PRESENCE_UPDATE", "guild_id": guild }),
        )
        .await;
    }
    assert_eq!(zero.receive().await.payload()["t"], "PRESENCE_UPDATE");
    assert_eq!(one.receive().await.payload()["t"], "TYPING_START");
    admin(
        &sim,
        "/faults/mute",
        json!({ "all": true, "event": "PRESENCE_UPDATE" }),
    )
    .await;
    let muted = account(&sim).await["events_muted"]
        .as_u64()
        .expect("a number");
    events(&sim, "PRESENCE_UPDATE", 5).await;
    assert_eq!(account(&sim).await["events_muted"], muted + 5);
    let unmute = json!({ "all": true, "event": "PRESENCE_UPDATE", "muted": false });
    admin(&sim, "/faults/mute", unmute).await;
    assert_eq!(look(&sim, "/state").await["faults"]["muted"], json!([]));
}

#[tokio::test]
async fn the_admin_api_refuses_what_it_does_not_understand() {
    let sim = start(config()).await;
    for (path, body) in [
        ("/faults/drop", json!({})),
        ("/faults/drop", json!({ "all": true, "shard": 0 })),
        ("/faults/close", json!({ "all": true, "code": 1005 })),
        ("/faults/close", json!({ "all": true })),
        ("/faults/outage", json!({ "seconds": -1 })),
        ("/faults/outage", json!({ "minutes": 1 })),
        ("/rates", json!({ "events": 5 })),
        ("/rates", json!({ "events_per_second": -5 })),
        ("/gateway", json!({ "max_concurrency": 0 })),
        ("/events", json!({ "type": "typing_start" })),
        ("/events", json!({ "type": "NO_SUCH_EVENT" })),
        (
            "/events",
            json!({ "type": "TYPING_START", "guild_id": "5" }),
        ),
        ("/interactions", json!({ "command": "unknown" })),
        ("/interactions", Value::Null),
    ] {
        let path = format!("/_sim{path}");
        let sent = body.to_string().into_bytes();
        let answer = request(&sim, Method::POST, &path, None, sent)
            .await
            .expect("an answer");
        assert_eq!(answer.status, 400, "{path} {body}");
        assert!(
            answer.body["error"].is_string() && answer.body["hint"].is_string(),
            "{answer:?}"
        );
    }
    let unknown = request(&sim, Method::GET, "/_sim/nothing", None, Vec::new()).await;
    assert_eq!(unknown.expect("an answer").status, 404);
}

#[tokio::test]
async fn the_admin_api_is_on_loopback_addresses_only() {
    let any = "0.0.0.0:0".parse().expect("an address");
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let sim = start(Config {
        listen: vec![loopback, any],
        ..config()
    })
    .await;
    look(&sim, "/account").await;
    let open = start(Config {
        listen: vec![any],
        ..config()
    })
    .await;
    let answer = request(&open, Method::GET, "/_sim/account", None, Vec::new()).await;
    assert_eq!(answer.expect("an answer").status, 404);
    get(&open, "/users/@me").await.ok();
}
