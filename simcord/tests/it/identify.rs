//! IDENTIFY: buckets, the daily budget, the reset token.

use std::time::Duration;

use serde_json::{Value, json};
use simcord::{Config, DEVELOPMENT_TOKEN};

use crate::client::{Gateway, Received, account, admin, config, get, look, start};

/// Long enough for three sessions of a busy machine.
const INTERVAL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_bucket_takes_one_identify_per_interval() {
    let sim = start(Config {
        max_concurrency: 2,
        identify_interval: INTERVAL,
        ..config()
    })
    .await;
    // Shards 0 and 2 share a bucket, 1 has its own.
    let (_zero, _) = Gateway::session(&sim, [0, 4]).await;
    let (_one, _) = Gateway::session(&sim, [1, 4]).await;
    let mut two = Gateway::connect(&sim).await;
    let mut refused = 0;
    loop {
        two.identify([2, 4]).await;
        let payload = two.receive().await.payload();
        if payload["op"] == 9 {
            assert_eq!(payload["d"], false);
            refused += 1;
            // 120 sends a minute are not to be exceeded meanwhile.
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        assert_eq!(payload["t"], "READY");
        break;
    }
    assert!(refused > 0);
    let account = account(&sim).await;
    assert_eq!(account["identifies"], 3);
    assert_eq!(account["identifies_refused"], refused);
    let log = look(&sim, "/identifies").await;
    let granted: Vec<&Value> = log
        .as_array()
        .expect("a log")
        .iter()
        .filter(|entry| entry["outcome"] == "granted" && entry["bucket"] == 0)
        .collect();
    assert_eq!(granted.len(), 2);
    let at = |n: usize| granted[n]["at_ms"].as_u64().expect("a time");
    assert!(
        at(1) - at(0) >= INTERVAL.as_millis() as u64 - 1,
        "{granted:?}"
    );
    assert_eq!(granted[1]["shard"], json!([2, 4]));
}

#[tokio::test]
async fn the_gateway_route_tells_the_limits_as_they_are() {
    let sim = start(Config {
        identify_total: Some(10),
        recommended_shards: Some(3),
        max_concurrency: 4,
        ..config()
    })
    .await;
    let before = get(&sim, "/gateway/bot").await.ok();
    assert_eq!(before["shards"], 3);
    assert_eq!(before["url"], sim.info().gateway);
    let limit = &before["session_start_limit"];
    assert_eq!(
        (&limit["total"], &limit["remaining"]),
        (&json!(10), &json!(10))
    );
    assert_eq!(limit["max_concurrency"], 4);
    let (_gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let after = get(&sim, "/gateway/bot").await.ok();
    assert_eq!(after["session_start_limit"]["remaining"], 9);
    let reset = after["session_start_limit"]["reset_after"]
        .as_u64()
        .expect("a time");
    assert!((86_000_000..=86_400_000).contains(&reset));
    admin(
        &sim,
        "/gateway",
        json!({ "recommended_shards": 7, "identify_remaining": 2 }),
    )
    .await;
    let set = get(&sim, "/gateway/bot").await.ok();
    assert_eq!(set["shards"], 7);
    assert_eq!(set["session_start_limit"]["remaining"], 2);
}

#[tokio::test]
async fn exceeding_the_days_budget_ends_all_sessions_and_the_token() {
    let sim = start(Config {
        identify_total: Some(2),
        ..config()
    })
    .await;
    let (mut first, session) = Gateway::session(&sim, [0, 2]).await;
    let (mut second, _) = Gateway::session(&sim, [1, 2]).await;
    let mut third = Gateway::connect(&sim).await;
    third.identify([0, 1]).await;
    for gateway in [&mut first, &mut second, &mut third] {
        assert_eq!(gateway.closed().await, 4004);
    }
    let account = account(&sim).await;
    assert_eq!(account["tokens_reset"], 1);
    assert_eq!(account["sessions_open"], 0);
    assert_eq!(account["sessions_resumable"], 0);
    // From now on the token opens nothing.
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, 1).await;
    assert_eq!(again.closed().await, 4004);
    assert_eq!(get(&sim, "/users/@me").await.status, 401);
    // As after a visit to the developer portal.
    admin(&sim, "/token/reissue", json!({})).await;
    admin(&sim, "/account/reset", json!({ "identify_limits": true })).await;
    assert_eq!(get(&sim, "/users/@me").await.status, 200);
    Gateway::session(&sim, [0, 1]).await;
}

#[tokio::test]
async fn a_refused_identify_may_be_repeated_on_the_same_connection() {
    let sim = start(Config {
        identify_interval: Duration::from_secs(60),
        max_concurrency: 1,
        ..config()
    })
    .await;
    let (_gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let mut next = Gateway::connect(&sim).await;
    next.identify([0, 1]).await;
    assert_eq!(
        next.receive().await,
        Received::Payload(json!({ "t": null, "s": null, "op": 9, "d": false }))
    );
    next.prove().await;
    admin(&sim, "/account/reset", json!({ "identify_limits": true })).await;
    next.identify([0, 1]).await;
    next.ready().await;
}

#[tokio::test]
async fn the_token_with_its_prefix_is_taken_as_well() {
    let sim = start(config()).await;
    let mut gateway = Gateway::connect(&sim).await;
    gateway
        .send(crate::client::identify(
            [0, 1],
            1,
            &format!("Bot {DEVELOPMENT_TOKEN}"),
        ))
        .await;
    gateway.ready().await;
}
