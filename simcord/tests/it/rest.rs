//! REST for what bots use, its rate limits and its errors.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use simcord::{DEVELOPMENT_TOKEN, Sim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{
    Answer, Gateway, account, admin, config, first_guild, get, look, request, rest, start,
};

#[tokio::test]
async fn only_the_right_token_opens_the_api() {
    let sim = start(config()).await;
    let bearer = format!("Bearer {DEVELOPMENT_TOKEN}");
    for wrong in [
        None,
        Some("Bot wrong"),
        Some(DEVELOPMENT_TOKEN),
        Some(bearer.as_str()),
    ] {
        let answer = request(&sim, Method::GET, "/api/v10/users/@me", wrong, Vec::new()).await;
        assert_eq!(answer.expect("an answer").error(), (401, 0), "{wrong:?}");
    }
    let account = account(&sim).await;
    assert_eq!(account["rest"]["invalid_requests"], 4);
    let public = request(&sim, Method::GET, "/api/v10/gateway", None, Vec::new()).await;
    assert_eq!(public.expect("an answer").ok()["url"], sim.info().gateway);
    assert_eq!(get(&sim, "/users/@me").await.ok()["bot"], true);
    for path in ["/oauth2/applications/@me", "/applications/@me"] {
        let application = get(&sim, path).await.ok();
        assert_eq!(application["id"], sim.info().application_id);
        // Its owner is somebody whom the bot meets.
        let owner = application["owner"]["id"].as_str().expect("an owner");
        let guilds = get(&sim, "/users/@me/guilds?limit=1").await.ok();
        let guild = guilds[0]["id"].as_str().expect("a guild");
        let member = format!("/guilds/{guild}/members/{owner}");
        assert_eq!(get(&sim, &member).await.ok()["user"]["id"], owner);
    }
}

#[tokio::test]
async fn unknown_routes_methods_and_versions_are_told_apart() {
    let sim = start(config()).await;
    assert_eq!(get(&sim, "/nothing").await.error(), (404, 0));
    assert_eq!(
        rest(&sim, Method::DELETE, "/gateway/bot", Value::Null)
            .await
            .error(),
        (405, 0)
    );
    let other = request(&sim, Method::GET, "/api/v9/gateway", None, Vec::new()).await;
    assert_eq!(other.expect("an answer").error(), (400, 50041));
    assert_eq!(get(&sim, "/guilds/notanid").await.error(), (400, 50035));
}

#[tokio::test]
async fn guilds_members_and_roles_can_be_read() {
    let sim = start(config()).await;
    let id = first_guild(&sim).await;
    let guild = get(&sim, &format!("/guilds/{id}?with_counts=true"))
        .await
        .ok();
    assert_eq!(guild["id"], id);
    let count = guild["approximate_member_count"].as_u64().expect("a count");
    let plain = get(&sim, &format!("/guilds/{id}")).await.ok();
    assert_eq!(plain["approximate_member_count"], Value::Null);
    let members = get(&sim, &format!("/guilds/{id}/members?limit=1000"))
        .await
        .ok();
    let members = members.as_array().expect("members");
    assert_eq!(members.len() as u64, count.min(1000));
    let owner = guild["owner_id"].as_str().expect("an id");
    let one = get(&sim, &format!("/guilds/{id}/members/{owner}"))
        .await
        .ok();
    assert!(members.contains(&one));
    let name = one["user"]["username"].as_str().expect("a name");
    let found = get(
        &sim,
        &format!("/guilds/{id}/members/search?query={name}&limit=10"),
    )
    .await
    .ok();
    assert!(found.as_array().expect("members").contains(&one));
    let roles = get(&sim, &format!("/guilds/{id}/roles")).await.ok();
    assert_eq!(roles[0]["id"], id, "@everyone has the guild's id");
    let channels = get(&sim, &format!("/guilds/{id}/channels")).await.ok();
    let channel = channels[0]["id"].as_str().expect("an id");
    assert_eq!(
        get(&sim, &format!("/channels/{channel}")).await.ok(),
        channels[0]
    );
    for (path, error) in [
        ("/guilds/5".to_owned(), (404, 10004)),
        ("/channels/5".to_owned(), (404, 10003)),
        ("/users/5".to_owned(), (404, 10013)),
        (format!("/guilds/{id}/members/5"), (404, 10013)),
        (format!("/guilds/{id}/roles/5"), (404, 10011)),
    ] {
        assert_eq!(get(&sim, &path).await.error(), error, "{path}");
    }
}

/// A member of a guild who is neither owner nor bot.
async fn ordinary_member(sim: &simcord::Sim, guild: &str) -> String {
    let owner = get(sim, &format!("/guilds/{guild}")).await.ok()["owner_id"].clone();
    let members = get(sim, &format!("/guilds/{guild}/members?limit=100"))
        .await
        .ok();
    let members = members
        .as_array()
        .expect("members")
        .iter()
        .map(|member| &member["user"]);
    let mut others = members.filter(|user| user["id"] != owner && user["bot"] == false);
    others.next().expect("somebody").clone()["id"]
        .as_str()
        .expect("an id")
        .to_owned()
}

#[tokio::test]
async fn a_timeout_is_set_seen_and_lifted() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let user = ordinary_member(&sim, &guild).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let path = format!("/guilds/{guild}/members/{user}");
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let body = json!({ "communication_disabled_until": until.to_string(), "nick": "calm down" });
    let member = rest(&sim, Method::PATCH, &path, body).await.ok();
    assert_eq!(member["nick"], "calm down");
    let set = member["communication_disabled_until"]
        .as_str()
        .expect("a time");
    let set: jiff::Timestamp = set.parse().expect("a timestamp");
    assert!(set.duration_until(until).abs() < jiff::SignedDuration::from_secs(1));
    let seen = gateway.event("GUILD_MEMBER_UPDATE").await;
    assert_eq!(
        seen["communication_disabled_until"],
        member["communication_disabled_until"]
    );
    let lift = json!({ "communication_disabled_until": null });
    let member = rest(&sim, Method::PATCH, &path, lift).await.ok();
    assert_eq!(member["communication_disabled_until"], Value::Null);
    let far = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(29 * 24);
    for bad in [json!("tomorrow"), json!(far.to_string()), json!(7)] {
        let body = json!({ "communication_disabled_until": bad });
        assert_eq!(
            rest(&sim, Method::PATCH, &path, body).await.error(),
            (400, 50035)
        );
    }
    let owner = get(&sim, &format!("/guilds/{guild}")).await.ok()["owner_id"].clone();
    let path = format!("/guilds/{guild}/members/{}", owner.as_str().expect("an id"));
    let refused = rest(&sim, Method::PATCH, &path, json!({ "nick": "x" })).await;
    assert_eq!(refused.error(), (403, 50013));
}

#[tokio::test]
async fn bans_and_kicks_take_members_out() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let user = ordinary_member(&sim, &guild).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let ban = format!("/guilds/{guild}/bans/{user}");
    assert_eq!(get(&sim, &ban).await.error(), (404, 10026));
    let body = json!({ "delete_message_seconds": 60 });
    assert_eq!(rest(&sim, Method::PUT, &ban, body).await.status, 204);
    assert_eq!(
        gateway.event("GUILD_MEMBER_REMOVE").await["user"]["id"],
        user
    );
    assert_eq!(gateway.event("GUILD_BAN_ADD").await["user"]["id"], user);
    assert_eq!(get(&sim, &ban).await.ok()["user"]["id"], user);
    assert_eq!(
        get(&sim, &format!("/guilds/{guild}/bans"))
            .await
            .ok()
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    let path = format!("/guilds/{guild}/members/{user}");
    assert_eq!(get(&sim, &path).await.error(), (404, 10007));
    assert_eq!(
        rest(&sim, Method::DELETE, &ban, Value::Null).await.status,
        204
    );
    assert_eq!(gateway.event("GUILD_BAN_REMOVE").await["user"]["id"], user);
    assert_eq!(
        rest(&sim, Method::DELETE, &ban, Value::Null).await.error(),
        (404, 10026)
    );
    let other = ordinary_member(&sim, &guild).await;
    let path = format!("/guilds/{guild}/members/{other}");
    assert_eq!(
        rest(&sim, Method::DELETE, &path, Value::Null).await.status,
        204
    );
    assert_eq!(
        gateway.event("GUILD_MEMBER_REMOVE").await["user"]["id"],
        other
    );
}

#[tokio::test]
async fn roles_are_made_given_and_taken() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let user = ordinary_member(&sim, &guild).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let base = format!("/guilds/{guild}/roles");
    let role = rest(&sim, Method::POST, &base, json!({ "name": "Muted 2" }))
        .await
        .ok();
    assert_eq!(gateway.event("GUILD_ROLE_CREATE").await["role"], role);
    let id = role["id"].as_str().expect("an id");
    let held = format!("/guilds/{guild}/members/{user}/roles/{id}");
    assert_eq!(
        rest(&sim, Method::PUT, &held, Value::Null).await.status,
        204
    );
    let roles = gateway.event("GUILD_MEMBER_UPDATE").await["roles"].clone();
    assert!(roles.as_array().expect("roles").contains(&json!(id)));
    assert_eq!(
        rest(&sim, Method::DELETE, &held, Value::Null).await.status,
        204
    );
    let roles = gateway.event("GUILD_MEMBER_UPDATE").await["roles"].clone();
    assert!(!roles.as_array().expect("roles").contains(&json!(id)));
    let one = format!("{base}/{id}");
    let renamed = rest(&sim, Method::PATCH, &one, json!({ "name": "Quiet" }))
        .await
        .ok();
    assert_eq!(renamed["name"], "Quiet");
    assert_eq!(
        rest(&sim, Method::DELETE, &one, Value::Null).await.status,
        204
    );
    assert_eq!(get(&sim, &one).await.error(), (404, 10011));
}

#[tokio::test]
async fn channels_and_messages_live_and_their_events_arrive() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let path = format!("/guilds/{guild}/channels");
    let channel = rest(&sim, Method::POST, &path, json!({ "name": "log" }))
        .await
        .ok();
    assert_eq!(gateway.event("CHANNEL_CREATE").await, channel);
    let id = channel["id"].as_str().expect("an id");
    let messages = format!("/channels/{id}/messages");
    let sent = rest(&sim, Method::POST, &messages, json!({ "content": "hello" }))
        .await
        .ok();
    let seen = gateway.event("MESSAGE_CREATE").await;
    assert_eq!(
        (&seen["id"], &seen["content"]),
        (&sent["id"], &json!("hello"))
    );
    assert_eq!(seen["guild_id"], guild);
    let one = format!("{messages}/{}", sent["id"].as_str().expect("an id"));
    let changed = rest(&sim, Method::PATCH, &one, json!({ "content": "changed" }))
        .await
        .ok();
    assert_eq!(changed["content"], "changed");
    assert_eq!(gateway.event("MESSAGE_UPDATE").await["content"], "changed");
    assert_eq!(get(&sim, &messages).await.ok()[0]["id"], sent["id"]);
    assert_eq!(
        rest(&sim, Method::DELETE, &one, Value::Null).await.status,
        204
    );
    assert_eq!(gateway.event("MESSAGE_DELETE").await["id"], sent["id"]);
    assert_eq!(get(&sim, &one).await.error(), (404, 10008));
    let empty = rest(&sim, Method::POST, &messages, json!({})).await;
    assert_eq!(empty.error(), (400, 50006));
    let channel_path = format!("/channels/{id}");
    let renamed = rest(
        &sim,
        Method::PATCH,
        &channel_path,
        json!({ "name": "renamed" }),
    )
    .await
    .ok();
    assert_eq!(renamed["name"], "renamed");
    rest(&sim, Method::DELETE, &channel_path, Value::Null)
        .await
        .ok();
    assert_eq!(gateway.event("CHANNEL_DELETE").await["id"], id);
    assert_eq!(get(&sim, &channel_path).await.error(), (404, 10003));
}

async fn message(sim: &Sim, channel: &Value) -> Answer {
    let channel = channel["id"].as_str().expect("an id");
    let path = format!("/channels/{channel}/messages");
    rest(sim, Method::POST, &path, json!({ "content": "x" })).await
}

/// Channels, and the answers to six messages in the first of them within a bucket's five seconds. A machine
/// that takes longer for them gets more chances, each with a new bucket.
async fn six_messages() -> (Sim, Value, Vec<Answer>) {
    for _ in 0..10 {
        let sim = start(config()).await;
        let guild = first_guild(&sim).await;
        let channels = get(&sim, &format!("/guilds/{guild}/channels")).await.ok();
        let began = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(message(&sim, &channels[0]).await);
        }
        if began.elapsed() < Duration::from_secs(5) {
            return (sim, channels, answers);
        }
    }
    panic!("never six messages in five seconds");
}

#[tokio::test]
async fn buckets_run_empty_and_say_so() {
    let (sim, channels, mut answers) = six_messages().await;
    let limited = answers.pop().expect("the sixth answer");
    let mut bucket = String::new();
    for (left, sent) in (0..5).rev().zip(answers) {
        assert_eq!(sent.header("x-ratelimit-limit"), "5");
        assert_eq!(sent.header("x-ratelimit-remaining"), left.to_string());
        let reset: f64 = sent
            .header("x-ratelimit-reset-after")
            .parse()
            .expect("a number");
        assert!((0.0..=5.0).contains(&reset));
        bucket = sent.header("x-ratelimit-bucket").to_owned();
    }
    assert_eq!(limited.status, 429);
    assert_eq!(limited.header("x-ratelimit-bucket"), bucket);
    assert_eq!(limited.header("x-ratelimit-scope"), "user");
    assert_eq!(limited.body["global"], false);
    let body = limited.body["retry_after"].as_f64().expect("a number");
    assert!((0.0..=5.0).contains(&body));
    let header: f64 = limited.header("retry-after").parse().expect("a number");
    assert!(header >= body);
    // Another channel has its own bucket.
    message(&sim, &channels[1]).await.ok();
    let account = account(&sim).await;
    assert_eq!(account["rest"]["rate_limited"], 1);
    assert_eq!(account["rest"]["invalid_requests"], 1);
}

#[tokio::test]
async fn more_than_50_requests_a_second_are_limited_globally() {
    let sim = start(config()).await;
    let guilds = look(&sim, "/guilds").await;
    let guilds = guilds["guilds"].as_array().expect("guilds");
    // Sixty at once; a machine that takes over a second for them gets more chances.
    for _ in 0..30 {
        let mut all = String::new();
        for n in 0..60 {
            let guild = guilds[n % guilds.len()].as_str().expect("an id");
            let part = ["", "/roles", "/channels", "/members", "/bans"][n % 5];
            let end = if n == 59 { "connection: close\r\n" } else { "" };
            let request = format!(
                "GET /api/v10/guilds/{guild}{part} HTTP/1.1\r\nhost: x\r\n{end}\
                 authorization: Bot {DEVELOPMENT_TOKEN}\r\n\r\n"
            );
            all.push_str(&request);
        }
        let mut socket = tokio::net::TcpStream::connect(sim.addr)
            .await
            .expect("connected");
        let (mut read, mut write) = socket.split();
        let mut answers = Vec::new();
        let (written, read) = tokio::join!(
            write.write_all(all.as_bytes()),
            read.read_to_end(&mut answers)
        );
        written.expect("written");
        read.expect("read");
        let answers = String::from_utf8_lossy(&answers);
        let limited = answers
            .split("HTTP/1.1 ")
            .find(|answer| answer.contains(r#""global":true"#));
        if let Some(limited) = limited {
            assert!(limited.starts_with("429"), "{limited}");
            assert!(limited.contains("x-ratelimit-global: true"), "{limited}");
            assert!(limited.contains("x-ratelimit-scope: global"), "{limited}");
            return;
        }
    }
    panic!("never limited");
}

#[tokio::test]
async fn ten_thousand_invalid_requests_lead_to_a_ban() {
    let sim = start(config()).await;
    // One connection, since ten thousand of them would exhaust the machine's ports.
    let stream = tokio::net::TcpStream::connect(sim.addr)
        .await
        .expect("connected");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("HTTP");
    let driver = tokio::spawn(connection);
    let mut last = None;
    for _ in 0..10_001 {
        let wrong = hyper::Request::get("/api/v10/users/@me").header("host", "x");
        let wrong = wrong
            .body(http_body_util::Empty::<hyper::body::Bytes>::new())
            .expect("a request");
        sender.ready().await.expect("still open");
        let response = sender.send_request(wrong).await.expect("an answer");
        last = Some(response.status().as_u16());
        let _ = http_body_util::BodyExt::collect(response.into_body()).await;
    }
    driver.abort();
    assert_eq!(last, Some(429));
    assert_eq!(
        get(&sim, "/users/@me").await.status,
        429,
        "the right token does not help"
    );
    assert_eq!(account(&sim).await["rest"]["banned"], 2);
    admin(&sim, "/account/reset", json!({ "rest_limits": true })).await;
    get(&sim, "/users/@me").await.ok();
}

#[tokio::test]
async fn an_enforced_nonce_makes_one_message() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let channels = get(&sim, &format!("/guilds/{guild}/channels")).await.ok();
    let channel = channels
        .as_array()
        .expect("channels")
        .iter()
        .find(|channel| channel["type"] == 0)
        .expect("a text channel")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let path = format!("/channels/{channel}/messages");
    let send = async |nonce: &str, enforce: bool| {
        let body = json!({ "content": "once", "nonce": nonce, "enforce_nonce": enforce });
        rest(&sim, Method::POST, &path, body).await
    };
    let first = send("1234d", true).await.ok();
    assert_eq!(send("1234d", true).await.ok()["id"], first["id"]);
    assert_ne!(send("1234l", true).await.ok()["id"], first["id"]);
    assert_ne!(send("1234d", false).await.ok()["id"], first["id"]);
    assert_eq!(send(&"x".repeat(26), true).await.error(), (400, 50035));
}
