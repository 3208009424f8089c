//! Connecting, READY, GUILD_CREATE, routing, intents, close codes, the send limit.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use simcord::{Config, DEVELOPMENT_TOKEN, PrivilegedIntent};

use crate::client::{
    ALL_INTENTS, Gateway, Received, account, admin, config, events, identify, look, start, until,
};

#[tokio::test]
async fn ready_lists_the_shards_guilds_and_each_follows() {
    let sim = start(Config {
        guilds: 50,
        ..config()
    })
    .await;
    let mut seen = HashSet::new();
    for shard in 0..3 {
        let mut gateway = Gateway::connect(&sim).await;
        gateway.identify([shard, 3]).await;
        let ready = gateway.event("READY").await;
        assert_eq!(ready["v"], 10);
        assert_eq!(ready["shard"], json!([shard, 3]));
        assert_eq!(ready["user"]["id"], sim.info().application_id);
        assert_eq!(ready["application"]["id"], sim.info().application_id);
        assert!(
            ready["resume_gateway_url"]
                .as_str()
                .is_some_and(|url| url.starts_with("ws://"))
        );
        for promised in ready["guilds"].as_array().expect("guilds") {
            assert_eq!(promised["unavailable"], true);
            let guild = gateway.event("GUILD_CREATE").await;
            assert_eq!(guild["id"], promised["id"]);
            let id: u64 = guild["id"]
                .as_str()
                .expect("an id")
                .parse()
                .expect("a number");
            assert_eq!((id >> 22) % 3, u64::from(shard));
            assert!(seen.insert(id), "a guild belongs to one shard");
        }
    }
    assert_eq!(seen.len(), 50);
}

#[tokio::test]
async fn the_same_seed_makes_the_same_world_and_another_one_another() {
    let mut worlds = Vec::new();
    for seed in [5, 5, 6] {
        let sim = start(Config { seed, ..config() }).await;
        let mut gateway = Gateway::connect(&sim).await;
        gateway.identify([0, 1]).await;
        gateway.event("READY").await;
        worlds.push(gateway.event("GUILD_CREATE").await);
    }
    assert_eq!(worlds[0], worlds[1]);
    assert_ne!(worlds[0], worlds[2]);
}

#[tokio::test]
async fn heartbeats_are_acknowledged_and_asking_too_late_is_4009() {
    let sim = start(Config {
        heartbeat_interval: Duration::from_secs(10),
        ..config()
    })
    .await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    gateway.prove().await;
    assert_eq!(gateway.closed().await, 4009);
    // The session survives for a RESUME.
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, gateway.seq).await;
    again.event("RESUMED").await;
}

#[tokio::test]
async fn a_connection_that_never_says_a_word_is_closed() {
    let sim = start(Config {
        heartbeat_interval: Duration::from_millis(300),
        ..config()
    })
    .await;
    let mut gateway = Gateway::connect(&sim).await;
    assert_eq!(gateway.closed().await, 4009);
}

/// What a fresh connection is closed with after one payload.
async fn code_after(sim: &simcord::Sim, payload: Value) -> u16 {
    let mut gateway = Gateway::connect(sim).await;
    gateway.send(payload).await;
    gateway.closed().await
}

#[tokio::test]
async fn wrong_payloads_are_closed_with_their_codes() {
    let sim = start(Config {
        privileged_intents: vec![PrivilegedIntent::Members],
        ..config()
    })
    .await;
    let token = DEVELOPMENT_TOKEN;
    for (payload, code) in [
        (json!({ "op": 99, "d": null }), 4001),
        (json!({ "op": 10, "d": null }), 4001),
        (json!({ "no": "opcode" }), 4002),
        (json!([1, 2]), 4002),
        (json!({ "op": 2, "d": { "token": token } }), 4002),
        (json!({ "op": 1, "d": null, "x": "a".repeat(4096) }), 4002),
        (json!({ "op": 3, "d": { "status": "online" } }), 4003),
        (
            json!({ "op": 8, "d": { "guild_id": "1", "query": "", "limit": 0 } }),
            4003,
        ),
        (identify([0, 1], 1, "wrong"), 4004),
        (identify([0, 1], 1, ""), 4004),
        (
            json!({ "op": 6, "d": { "token": "wrong", "session_id": "x", "seq": 0 } }),
            4004,
        ),
        (identify([1, 1], 1, token), 4010),
        (identify([0, 0], 1, token), 4010),
        (identify([0, 1], 1 << 18, token), 4013),
        (identify([0, 1], 1 << 60, token), 4013),
        (identify([0, 1], 1 << 8, token), 4014),
        (identify([0, 1], 1 << 15, token), 4014),
    ] {
        assert_eq!(code_after(&sim, payload.clone()).await, code, "{payload}");
    }
    let account = account(&sim).await;
    assert_eq!(account["identifies"], 0);
    assert_eq!(
        account["identifies_refused"], 0,
        "none of these uses up the budget"
    );
    // The intent that is allowed opens the door.
    let mut gateway = Gateway::connect(&sim).await;
    gateway.identify_with([0, 1], 0b11).await;
    gateway.ready().await;
}

#[tokio::test]
async fn identifying_twice_on_a_connection_is_4005() {
    let sim = start(config()).await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    gateway.identify([0, 1]).await;
    assert_eq!(gateway.closed().await, 4005);
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    gateway.resume(&session, 1).await;
    assert_eq!(gateway.closed().await, 4005);
}

#[tokio::test]
async fn other_api_versions_are_4012() {
    let sim = start(config()).await;
    let base = &sim.info().gateway;
    for query in ["?v=9&encoding=json", "?v=11", "?v=x", "", "?encoding=json"] {
        let mut gateway = Gateway::open(&format!("{base}/{query}")).await;
        assert_eq!(gateway.receive().await, Received::Closed(4012), "{query}");
    }
}

#[tokio::test]
async fn unknown_encodings_and_compressions_are_refused() {
    let sim = start(config()).await;
    let base = &sim.info().gateway;
    for query in ["?v=10&encoding=etf", "?v=10&compress=brotli"] {
        assert!(
            Gateway::try_open(&format!("{base}/{query}")).await.is_err(),
            "{query}"
        );
    }
}

#[tokio::test]
async fn more_than_2500_guilds_on_a_shard_are_4011() {
    let sim = start(Config {
        guilds: 2_501,
        ..config()
    })
    .await;
    assert_eq!(
        code_after(&sim, identify([0, 1], 0, DEVELOPMENT_TOKEN)).await,
        4011
    );
    let mut gateway = Gateway::connect(&sim).await;
    gateway.identify_with([0, 2], 0).await;
    gateway.event("READY").await;
}

#[tokio::test]
async fn large_bots_need_a_multiple_of_the_recommended_shards() {
    let sim = start(Config {
        guilds: 150_001,
        recommended_shards: Some(80),
        ..config()
    })
    .await;
    assert_eq!(
        code_after(&sim, identify([0, 100], 0, DEVELOPMENT_TOKEN)).await,
        4010
    );
    for count in [80, 160] {
        let mut gateway = Gateway::connect(&sim).await;
        gateway.identify_with([count / 10, count], 0).await;
        gateway.event("READY").await;
    }
}

#[tokio::test]
async fn the_121st_send_of_a_minute_is_4008() {
    let sim = start(config()).await;
    let (mut gateway, session) = Gateway::session(&sim, [0, 1]).await;
    // IDENTIFY was the first.
    for _ in 0..119 {
        gateway.heartbeat().await;
    }
    for _ in 0..119 {
        gateway.opcode(11).await;
    }
    gateway.heartbeat().await;
    assert_eq!(gateway.closed().await, 4008);
    let mut again = Gateway::connect(&sim).await;
    again.resume(&session, gateway.seq).await;
    again.event("RESUMED").await;
}

#[tokio::test]
async fn intents_filter_what_is_sent() {
    let sim = start(config()).await;
    let mut gateway = Gateway::connect(&sim).await;
    // Typing alone: not even guilds.
    gateway.identify_with([0, 1], 1 << 11).await;
    let ready = gateway.event("READY").await;
    assert_eq!(ready["guilds"].as_array().map(Vec::len), Some(12));
    events(&sim, "MESSAGE_CREATE", 5).await;
    events(&sim, "GUILD_MEMBER_ADD", 5).await;
    events(&sim, "TYPING_START", 1).await;
    let next = gateway.receive().await.payload();
    assert_eq!(next["t"], "TYPING_START");
}

#[tokio::test]
async fn contents_of_messages_need_their_intent() {
    let sim = start(config()).await;
    let mut with = Gateway::connect(&sim).await;
    with.identify_with([0, 1], 1 << 9 | 1 << 15).await;
    with.event("READY").await;
    let mut without = Gateway::connect(&sim).await;
    without.identify_with([0, 1], 1 << 9).await;
    without.event("READY").await;
    events(&sim, "MESSAGE_CREATE", 1).await;
    let (full, hidden) = (
        with.event("MESSAGE_CREATE").await,
        without.event("MESSAGE_CREATE").await,
    );
    assert_ne!(full["content"], "");
    assert_eq!(hidden["content"], "");
    assert_eq!(full["id"], hidden["id"]);
}

#[tokio::test]
async fn sessions_of_one_shard_and_of_other_counts_each_get_every_event() {
    let sim = start(config()).await;
    let (mut one, _) = Gateway::session(&sim, [0, 1]).await;
    let (mut twin, _) = Gateway::session(&sim, [0, 1]).await;
    let mut halves = Vec::new();
    for shard in 0..2 {
        halves.push(Gateway::session(&sim, [shard, 2]).await.0);
    }
    for guild in look(&sim, "/guilds").await["guilds"]
        .as_array()
        .expect("guilds")
    {
        let id: u64 = guild.as_str().expect("an id").parse().expect("a number");
        admin(
            &sim,
            "/events",
            json!({ "type": "TYPING_START", "guild_id": guild }),
        )
        .await;
        let half = &mut halves[((id >> 22) % 2) as usize];
        for gateway in [&mut one, &mut twin, half] {
            assert_eq!(gateway.receive().await.payload()["d"]["guild_id"], *guild);
        }
    }
}

#[tokio::test]
async fn generated_events_arrive_at_their_rate_and_are_all_accounted_for() {
    let sim = start(config()).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    admin(&sim, "/account/reset", json!({})).await;
    admin(&sim, "/rates", json!({ "events_per_second": 400 })).await;
    let mut kinds = HashSet::new();
    for _ in 0..600 {
        let payload = gateway.receive().await.payload();
        kinds.insert(payload["t"].as_str().expect("a type").to_owned());
    }
    for kind in [
        "MESSAGE_CREATE",
        "TYPING_START",
        "GUILD_MEMBER_ADD",
        "GUILD_MEMBER_REMOVE",
    ] {
        assert!(kinds.contains(kind), "{kind} of {kinds:?}");
    }
    admin(&sim, "/rates", json!({ "events_per_second": 0 })).await;
    let generated = account(&sim).await["events_generated"]
        .as_u64()
        .expect("a number");
    let all = until(&sim, "everything is sent", |account| {
        account["events_sent"] == generated
    })
    .await;
    assert_eq!(all["generated_by_type"], all["sent_by_type"]);
}

#[tokio::test]
async fn members_come_by_request_in_chunks() {
    let sim = start(config()).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let guild = crate::client::first_guild(&sim).await;
    gateway
        .send(json!({ "op": 8, "d": { "guild_id": guild, "query": "", "limit": 0, "nonce": "n" } }))
        .await;
    let mut members = HashSet::new();
    loop {
        let chunk = gateway.event("GUILD_MEMBERS_CHUNK").await;
        assert_eq!(chunk["nonce"], "n");
        for member in chunk["members"].as_array().expect("members") {
            members.insert(member["user"]["id"].as_str().expect("an id").to_owned());
        }
        let last = chunk["chunk_count"].as_u64().expect("a count") - 1;
        if chunk["chunk_index"] == last {
            break;
        }
    }
    assert!(members.contains(&sim.info().application_id));
    // By id, and somebody who is not there.
    let someone = members.iter().next().expect("a member");
    let ids = json!([someone, "5"]);
    gateway
        .send(json!({ "op": 8, "d": { "guild_id": guild, "user_ids": ids } }))
        .await;
    let chunk = gateway.event("GUILD_MEMBERS_CHUNK").await;
    assert_eq!(chunk["members"][0]["user"]["id"], **someone);
    assert_eq!(chunk["not_found"], json!(["5"]));
}

#[tokio::test]
async fn guilds_come_and_go() {
    let sim = start(config()).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let added = admin(&sim, "/guilds/add", json!({ "count": 2 })).await;
    for id in added["guilds"].as_array().expect("ids") {
        assert_eq!(gateway.event("GUILD_CREATE").await["id"], *id);
    }
    let gone = added["guilds"][0].clone();
    admin(&sim, "/guilds/remove", json!({ "guild_ids": [gone] })).await;
    assert_eq!(gateway.event("GUILD_DELETE").await["id"], gone);
    let (_, _) = Gateway::session(&sim, [0, 1]).await;
    assert_eq!(look(&sim, "/guilds").await["count"], 13);
}

#[tokio::test]
async fn a_message_longer_than_can_be_read_still_gets_its_close_code() {
    let sim = start(config()).await;
    for length in [4_097, 60_000, 70_000, 3_000_000] {
        let mut gateway = Gateway::connect(&sim).await;
        gateway.send_text("x".repeat(length)).await;
        assert_eq!(gateway.closed().await, 4002, "{length} bytes");
    }
    let mut gateway = Gateway::connect(&sim).await;
    gateway.identify_with([0, 1], ALL_INTENTS).await;
    gateway.ready().await;
}
