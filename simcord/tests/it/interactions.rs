//! Commands and interactions: registration, answers in time, late ones, second ones, follow-ups.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use simcord::{Config, Sim};

use crate::client::{
    Answer, Gateway, account, admin, config, first_guild, get, look, request, rest, start, until,
};

async fn register(sim: &Sim, commands: Value) -> Value {
    let path = format!("/applications/{}/commands", sim.info().application_id);
    rest(sim, Method::PUT, &path, commands).await.ok()
}

fn ping() -> Value {
    json!([{ "name": "ping", "description": "answers" }])
}

async fn callback(sim: &Sim, interaction: &Value, query: &str, body: Value) -> Answer {
    let (id, token) = (&interaction["id"], &interaction["token"]);
    let (id, token) = (
        id.as_str().expect("an id"),
        token.as_str().expect("a token"),
    );
    let path = format!("/api/v10/interactions/{id}/{token}/callback{query}");
    // The path's token alone authorises.
    request(
        sim,
        Method::POST,
        &path,
        None,
        body.to_string().into_bytes(),
    )
    .await
    .expect("an answer")
}

async fn webhook(
    sim: &Sim,
    method: Method,
    interaction: &Value,
    rest: &str,
    body: Value,
) -> Answer {
    let token = interaction["token"].as_str().expect("a token");
    let path = format!(
        "/api/v10/webhooks/{}/{token}{rest}",
        sim.info().application_id
    );
    request(sim, method, &path, None, body.to_string().into_bytes())
        .await
        .expect("an answer")
}

/// A session, and an interaction that it has received.
async fn invoked(sim: &Sim) -> (Gateway, Value) {
    register(sim, ping()).await;
    let (mut gateway, _) = Gateway::session(sim, [0, 1]).await;
    admin(sim, "/interactions", json!({ "command": "ping" })).await;
    let interaction = gateway.event("INTERACTION_CREATE").await;
    (gateway, interaction)
}

fn text(content: &str) -> Value {
    json!({ "type": 4, "data": { "content": content } })
}

#[tokio::test]
async fn an_answer_in_time_is_taken_once() {
    let sim = start(config()).await;
    let (_gateway, interaction) = invoked(&sim).await;
    assert_eq!(interaction["data"]["name"], "ping");
    assert_eq!(interaction["application_id"], sim.info().application_id);
    let answer = callback(&sim, &interaction, "?with_response=true", text("pong"))
        .await
        .ok();
    assert_eq!(answer["interaction"]["id"], interaction["id"]);
    assert_eq!(answer["resource"]["message"]["content"], "pong");
    let again = callback(&sim, &interaction, "", text("pong")).await;
    assert_eq!(again.error(), (400, 40060));
    let original = webhook(
        &sim,
        Method::GET,
        &interaction,
        "/messages/@original",
        Value::Null,
    )
    .await
    .ok();
    assert_eq!(original["content"], "pong");
    let counters = &account(&sim).await["interactions"];
    assert_eq!(
        (&counters["sent"], &counters["answered"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&counters["answered_twice"], &counters["late"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn an_answer_after_three_seconds_is_late_and_until_then_it_counts_as_unanswered() {
    let answer_within = Duration::from_secs(3);
    let sim = start(Config {
        answer_within,
        ..config()
    })
    .await;
    let began = Instant::now();
    let (_gateway, interaction) = invoked(&sim).await;
    let unanswered = account(&sim).await["interactions"]["unanswered"].clone();
    let young = began.elapsed() < answer_within;
    assert!(!young || unanswered == 0, "young ones do not count");
    until(&sim, "3 s pass", |account| {
        account["interactions"]["unanswered"] == 1
    })
    .await;
    let late = callback(&sim, &interaction, "", text("pong")).await;
    assert_eq!(late.error(), (404, 10062));
    let counters = &account(&sim).await["interactions"];
    assert_eq!(
        (&counters["late"], &counters["unanswered"]),
        (&json!(1), &json!(0))
    );
    let follow_up = webhook(
        &sim,
        Method::POST,
        &interaction,
        "",
        json!({ "content": "x" }),
    )
    .await;
    assert_eq!(follow_up.error(), (404, 10015));
}

#[tokio::test]
async fn a_deferred_answer_follows_and_more_follow_ups_after_it() {
    let sim = start(config()).await;
    let (_gateway, interaction) = invoked(&sim).await;
    let early = webhook(
        &sim,
        Method::POST,
        &interaction,
        "",
        json!({ "content": "x" }),
    )
    .await;
    assert_eq!(early.error(), (404, 10015), "nothing to follow up yet");
    let deferred = callback(&sim, &interaction, "", json!({ "type": 5 })).await;
    assert_eq!(deferred.status, 204);
    let id = interaction["id"].as_str().expect("an id");
    assert_eq!(
        look(&sim, &format!("/interactions/{id}")).await["state"],
        "deferred"
    );
    let body = json!({ "content": "done", "embeds": [{ "title": "t" }] });
    let changed = webhook(
        &sim,
        Method::PATCH,
        &interaction,
        "/messages/@original",
        body,
    )
    .await
    .ok();
    assert_eq!(
        (&changed["content"], &changed["flags"]),
        (&json!("done"), &json!(0))
    );
    assert_eq!(changed["embeds"][0]["title"], "t");
    let record = look(&sim, &format!("/interactions/{id}")).await;
    assert_eq!(record["state"], "answered");
    assert_eq!(record["message"]["content"], "done");
    let more = webhook(
        &sim,
        Method::POST,
        &interaction,
        "",
        json!({ "content": "more" }),
    )
    .await
    .ok();
    assert_ne!(more["id"], changed["id"]);
    let path = format!("/messages/{}", more["id"].as_str().expect("an id"));
    let gone = webhook(&sim, Method::DELETE, &interaction, &path, Value::Null).await;
    assert_eq!(gone.status, 204);
    let gone = webhook(&sim, Method::GET, &interaction, &path, Value::Null).await;
    assert_eq!(gone.error(), (404, 10008));
    let counters = &account(&sim).await["interactions"];
    assert_eq!(
        (&counters["deferred"], &counters["followups"]),
        (&json!(1), &json!(2))
    );
}

#[tokio::test]
async fn the_first_follow_up_to_a_deferral_is_its_answer() {
    let sim = start(config()).await;
    let (_gateway, interaction) = invoked(&sim).await;
    callback(
        &sim,
        &interaction,
        "",
        json!({ "type": 5, "data": { "flags": 64 } }),
    )
    .await
    .ok();
    webhook(
        &sim,
        Method::POST,
        &interaction,
        "",
        json!({ "content": "first" }),
    )
    .await
    .ok();
    let original = webhook(
        &sim,
        Method::GET,
        &interaction,
        "/messages/@original",
        Value::Null,
    )
    .await
    .ok();
    assert_eq!(
        (&original["content"], &original["flags"]),
        (&json!("first"), &json!(64))
    );
}

#[tokio::test]
async fn a_modal_is_an_answer_and_wrong_answers_are_none() {
    let sim = start(config()).await;
    let (_gateway, interaction) = invoked(&sim).await;
    for (wrong, error) in [
        (json!({ "type": 4, "data": {} }), (400, 50006)),
        (
            json!({ "type": 4, "data": { "content": "x".repeat(2001) } }),
            (400, 50035),
        ),
        (
            json!({ "type": 7, "data": { "content": "x" } }),
            (400, 50035),
        ),
        (json!({ "type": 9, "data": { "title": "t" } }), (400, 50035)),
        (json!({}), (400, 50035)),
        (json!([1]), (400, 50035)),
    ] {
        assert_eq!(
            callback(&sim, &interaction, "", wrong.clone())
                .await
                .error(),
            error,
            "{wrong}"
        );
    }
    let components = json!([{ "type": 1, "components": [{ "type": 4, "custom_id": "a" }] }]);
    let modal =
        json!({ "type": 9, "data": { "custom_id": "c", "title": "t", "components": components } });
    assert_eq!(callback(&sim, &interaction, "", modal).await.status, 204);
    let counters = account(&sim).await["interactions"].clone();
    assert_eq!(
        (&counters["answered"], &counters["answered_twice"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn wrong_tokens_open_nothing() {
    let sim = start(config()).await;
    let (_gateway, mut interaction) = invoked(&sim).await;
    interaction["token"] = "wrong".into();
    assert_eq!(
        callback(&sim, &interaction, "", text("x")).await.error(),
        (404, 10062)
    );
    let follow_up = webhook(
        &sim,
        Method::POST,
        &interaction,
        "",
        json!({ "content": "x" }),
    )
    .await;
    assert_eq!(follow_up.error(), (401, 50027));
}

#[tokio::test]
async fn options_are_resolved_and_given_ones_arrive() {
    let sim = start(config()).await;
    let user = json!({ "type": 6, "name": "user", "description": "whom", "required": true });
    let reason = json!({ "type": 3, "name": "reason", "description": "why", "required": true });
    let warn = json!({ "name": "warn", "description": "warns", "options": [user, reason] });
    register(&sim, json!([warn])).await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let guild = first_guild(&sim).await;
    let owner = get(&sim, &format!("/guilds/{guild}")).await.ok()["owner_id"].clone();
    let options = json!({ "user": owner, "reason": "because" });
    let body =
        json!({ "command": "warn", "guild_id": guild, "options": options, "user_id": owner });
    admin(&sim, "/interactions", body).await;
    let interaction = gateway.event("INTERACTION_CREATE").await;
    assert_eq!(interaction["guild_id"], guild);
    assert_eq!(interaction["member"]["user"]["id"], owner);
    let administrator = interaction["member"]["permissions"]
        .as_str()
        .expect("permissions");
    assert_ne!(administrator.parse::<u64>().expect("a number") & 8, 0);
    let data = &interaction["data"];
    assert_eq!(data["options"][0]["value"], owner);
    assert_eq!(data["options"][1]["value"], "because");
    let owner = owner.as_str().expect("an id");
    assert_eq!(data["resolved"]["users"][owner]["id"], owner);
    assert!(data["resolved"]["members"][owner]["roles"].is_array());
}

#[tokio::test]
async fn generated_interactions_use_the_registered_commands() {
    let sim = start(Config {
        interactions_per_second: 100.0,
        ..config()
    })
    .await;
    let (mut gateway, _) = Gateway::session(&sim, [0, 1]).await;
    let commands = register(&sim, json!([
        { "name": "ping", "description": "answers" }, { "name": "help", "description": "helps" },
    ]))
    .await;
    let ids: Vec<&Value> = commands
        .as_array()
        .expect("commands")
        .iter()
        .map(|c| &c["id"])
        .collect();
    let mut names = std::collections::HashSet::new();
    while names.len() < 2 {
        let interaction = gateway.event("INTERACTION_CREATE").await;
        assert!(ids.contains(&&interaction["data"]["id"]));
        names.insert(
            interaction["data"]["name"]
                .as_str()
                .expect("a name")
                .to_owned(),
        );
        callback(&sim, &interaction, "", text("x")).await.ok();
    }
}

#[tokio::test]
async fn commands_can_be_listed_changed_and_deleted() {
    let sim = start(config()).await;
    let guild = first_guild(&sim).await;
    let application = &sim.info().application_id;
    for base in [
        format!("/applications/{application}/commands"),
        format!("/applications/{application}/guilds/{guild}/commands"),
    ] {
        let made = rest(&sim, Method::POST, &base, ping()[0].clone()).await;
        assert_eq!(made.status, 201);
        let id = made.body["id"].as_str().expect("an id").to_owned();
        let again = rest(&sim, Method::POST, &base, ping()[0].clone()).await;
        assert_eq!(
            (again.status.as_u16(), &again.body["id"]),
            (200, &json!(id))
        );
        let one = format!("{base}/{id}");
        let change = json!({ "description": "changed" });
        assert_eq!(
            rest(&sim, Method::PATCH, &one, change).await.ok()["description"],
            "changed"
        );
        assert_eq!(get(&sim, &base).await.ok()[0]["description"], "changed");
        assert_eq!(get(&sim, &one).await.ok()["id"], id);
        assert_eq!(
            rest(&sim, Method::DELETE, &one, Value::Null).await.status,
            204
        );
        assert_eq!(get(&sim, &one).await.error(), (404, 10063));
    }
    let bad = json!([{ "name": "Bad Name", "description": "d" }]);
    let path = format!("/applications/{application}/commands");
    let refused = rest(&sim, Method::PUT, &path, bad).await;
    assert_eq!(refused.error(), (400, 50035));
    assert!(refused.body["errors"]["0"]["name"]["_errors"].is_array());
    assert_eq!(
        get(&sim, "/applications/5/commands").await.error(),
        (404, 10002)
    );
}

#[tokio::test]
async fn the_original_message_tells_how_far_an_interaction_has_come() {
    let sim = start(config()).await;
    let (_gateway, interaction) = invoked(&sim).await;
    let original = "/messages/@original";
    let before = webhook(&sim, Method::GET, &interaction, original, json!({})).await;
    assert_eq!(before.error(), (404, 10015));
    callback(&sim, &interaction, "", json!({ "type": 5 }))
        .await
        .ok();
    let deferred = webhook(&sim, Method::GET, &interaction, original, json!({})).await;
    assert_eq!(
        deferred.ok()["flags"].as_u64().map(|flags| flags & 128),
        Some(128)
    );
    assert_eq!(account(&sim).await["interactions"]["deferred_open"], 1);
    let text = json!({ "content": "done" });
    webhook(&sim, Method::PATCH, &interaction, original, text)
        .await
        .ok();
    let done = webhook(&sim, Method::GET, &interaction, original, json!({}))
        .await
        .ok();
    assert_eq!(done["flags"].as_u64().map(|flags| flags & 128), Some(0));
    assert_eq!(done["content"], "done");
    let account = account(&sim).await;
    assert_eq!(account["interactions"]["deferred_open"], 0);
    assert_eq!(account["interactions"]["answered_twice"], 0);
}
