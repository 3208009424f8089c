//! Reading: account, sessions, IDENTIFY log, guilds, commands, interactions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{AdminError, Body};
use crate::account::Account;
use crate::app::App;
use crate::hub::Hub;
use crate::rest::AppState;
use crate::world::shard_of;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/account", get(account))
        .route("/account/reset", post(reset))
        .route("/sessions", get(sessions))
        .route("/identifies", get(identifies))
        .route("/state", get(state))
        .route("/guilds", get(guilds))
        .route("/commands", get(commands))
        .route("/interactions/{id}", get(interaction))
}

async fn account(State(app): AppState) -> Result<Json<Value>, AdminError> {
    let now = Instant::now();
    let mut hub = app.hub();
    hub.sweep(now);
    let mut account = serde_json::to_value(&hub.account).map_err(|error| {
        AdminError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
            "this is a fault of simcord",
        )
    })?;
    let (mut open, mut waiting, mut highest, mut proven) = (0, 0, 0, 0);
    for (_, live) in hub.sessions() {
        if live.link.is_some() {
            open += 1;
        } else {
            waiting += 1;
        }
        highest += live.session.seq();
        proven += live.session.proven();
        account["events_evicted"] =
            (account["events_evicted"].as_u64().unwrap_or(0) + live.session.evicted).into();
    }
    let counters = &hub.interactions.counters;
    account["sessions_open"] = open.into();
    account["sessions_resumable"] = waiting.into();
    account["events_unproven"] = (highest - proven).into();
    account["interactions"] = json!({
        "sent": counters.sent, "answered": counters.answered, "answered_twice": counters.answered_twice,
        "unanswered": counters.unanswered, "late": counters.late, "deferred": counters.deferred,
        "deferred_open": counters.deferred_open,
        "followups": counters.followups, "unrouted": counters.unrouted,
        "answer_ms_max": counters.answer_ms_max, "answer_ms_average": hub.interactions.answer_ms_average(),
    });
    account["uptime_ms"] = (now.duration_since(hub.started).as_millis() as u64).into();
    Ok(Json(account))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    /// Give back the day's IDENTIFYs and forget when each bucket was used.
    #[serde(default)]
    identify_limits: bool,
    /// Forget the REST buckets and invalid requests.
    #[serde(default)]
    rest_limits: bool,
}

async fn reset(State(app): AppState, Body(reset): Body<Reset>) -> StatusCode {
    let mut hub = app.hub();
    hub.account = Account::default();
    hub.interactions.reset(Instant::now());
    if reset.identify_limits {
        hub.identify.reset();
    }
    if reset.rest_limits {
        hub.rest = crate::rest::limits::RestLimits::default();
    }
    StatusCode::NO_CONTENT
}

async fn sessions(State(app): AppState) -> Json<Value> {
    let now = Instant::now();
    let mut hub = app.hub();
    hub.sweep(now);
    let mut identifies: HashMap<[u32; 2], u64> = HashMap::new();
    for entry in hub
        .account
        .identify_log
        .iter()
        .filter(|entry| entry.session.is_some())
    {
        *identifies.entry(entry.shard).or_default() += 1;
    }
    let mut sessions: Vec<(u64, Value)> = hub
        .sessions()
        .map(|(key, live)| {
            let session = &live.session;
            let (buffered, buffered_bytes) = session.buffered();
            let since = |at: Instant| now.duration_since(at).as_millis() as u64;
            (key, json!({
                "session": session.id, "shard": [session.shard.id, session.shard.count],
                "intents": session.intents.0, "connected": live.link.is_some(),
                "silenced": live.link.as_ref().is_some_and(|link| link.is_silenced()),
                "seq": session.seq(), "seq_sent": session.highest_sent(), "seq_proven": session.proven(),
                "identifies": identifies.get(&[session.shard.id, session.shard.count]), "resumes": session.resumes, "replayed": session.replayed,
                "replayed_again": session.replayed_again, "evicted": session.evicted,
                "buffered": buffered, "buffered_bytes": buffered_bytes,
                "muted": session.muted, "age_ms": since(live.identified_at),
                "last_heartbeat_ms": live.last_heartbeat.map(since),
                "resumable_ms": session.resumable_until().map(|until| until.saturating_duration_since(now).as_millis() as u64),
            }))
        })
        .collect();
    sessions.sort_by_key(|(key, _)| *key);
    Json(sessions.into_iter().map(|(_, session)| session).collect())
}

async fn identifies(State(app): AppState) -> Json<Value> {
    let hub = app.hub();
    Json(json!(hub.account.identify_log))
}

/// How everything is set at present.
async fn state(State(app): AppState) -> Json<Value> {
    Json(state_of(&mut app.hub()))
}

pub(super) fn state_of(hub: &mut Hub) -> Value {
    let now = Instant::now();
    let (remaining, reset_after) = hub.identify.remaining(now);
    let left = |until: Option<Instant>| {
        until.map_or(0, |until| {
            until.saturating_duration_since(now).as_millis() as u64
        })
    };
    json!({
        "application_id": hub.world.bot.id.to_string(), "token_valid": hub.token.is_valid(),
        "guilds": hub.world.guild_count(), "seed": hub.world.seed(),
        "rates": {
            "events_per_second": hub.rates.events_per_second,
            "interactions_per_second": hub.rates.interactions_per_second,
        },
        "gateway": {
            "recommended_shards": hub.shards_recommended(), "max_concurrency": hub.identify.max_concurrency(),
            "identify_total": hub.identify.total(), "identify_remaining": remaining,
            "identify_reset_ms": reset_after.as_millis() as u64,
        },
        "faults": {
            "gateway_outage_ms": left(hub.faults.gateway_outage_until),
            "rest_outage_ms": left(hub.faults.rest_outage_until),
            "rest_delay_ms": hub.faults.rest_delay.as_millis() as u64,
            "resume_url_dead": hub.faults.resume_url_dead, "muted": hub.faults.muted,
        },
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GuildsPage {
    limit: Option<usize>,
    after: Option<u64>,
    /// Only the guilds of this shard; with `shard_count`.
    shard: Option<u32>,
    shard_count: Option<u32>,
}

async fn guilds(State(app): AppState, Query(page): Query<GuildsPage>) -> Json<Value> {
    let hub = app.hub();
    let world = &hub.world;
    let count = page.shard_count.unwrap_or(1);
    let ids: Vec<String> = world
        .guilds()
        .map(|index| world.guild_id(index))
        .filter(|id| page.after.is_none_or(|after| *id > after))
        .filter(|id| page.shard.is_none_or(|shard| shard_of(*id, count) == shard))
        .take(page.limit.unwrap_or(1000))
        .map(|id| id.to_string())
        .collect();
    Json(json!({ "count": world.guild_count(), "guilds": ids }))
}

async fn commands(State(app): AppState) -> Json<Value> {
    Json(app.hub().commands.list(None).into())
}

async fn interaction(State(app): AppState, Path(id): Path<u64>) -> Result<Json<Value>, AdminError> {
    let hub = app.hub();
    let interaction = hub.interactions.get(id).ok_or_else(|| {
        AdminError::new(
            StatusCode::NOT_FOUND,
            "no such interaction",
            "interactions are kept for 15 minutes",
        )
    })?;
    Ok(Json(json!({
        "id": id.to_string(), "command": interaction.command,
        "guild_id": hub.world.guild_id(interaction.guild).to_string(), "channel_id": interaction.channel,
        "state": interaction.state, "callback_type": interaction.callback,
        "answered_ms": interaction.answered_after.map(|after| after.as_millis() as u64),
        "followups": interaction.followups,
        "message": interaction.original.and_then(|message| hub.world.messages.get(message)),
    })))
}
