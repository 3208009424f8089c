//! Bans.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::body::ObjectBody;
use super::error::ApiError;
use super::extract::{Path, Query};
use super::guilds::remove_member;
use crate::app::App;
use crate::gateway::{Event, Intents};
use crate::hub::Hub;
use crate::world::{Ban, GuildIndex};

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/guilds/{guild_id}/bans", get(list))
        .route(
            "/guilds/{guild_id}/bans/{user_id}",
            get(read).put(ban).delete(unban),
        )
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    before: Option<u64>,
    after: Option<u64>,
}

fn object(hub: &Hub, user: u64, ban: &Ban) -> Value {
    json!({ "user": hub.world.user(user), "reason": ban.reason })
}

fn guild(hub: &Hub, guild_id: u64) -> Result<GuildIndex, ApiError> {
    hub.world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)
}

async fn list(
    State(app): AppState,
    Path(guild_id): Path<u64>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let index = guild(&hub, guild_id)?;
    let bans = hub
        .world
        .overlay(index)
        .into_iter()
        .flat_map(|overlay| &overlay.bans);
    let bans: Vec<Value> = bans
        .filter(|(user, _)| page.after.is_none_or(|after| **user > after))
        .filter(|(user, _)| page.before.is_none_or(|before| **user < before))
        .take(page.limit.unwrap_or(1000).clamp(1, 1000))
        .map(|(user, ban)| object(&hub, *user, ban))
        .collect();
    Ok(Json(bans.into()))
}

async fn read(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let index = guild(&hub, guild_id)?;
    let ban = hub
        .world
        .overlay(index)
        .and_then(|overlay| overlay.bans.get(&user));
    ban.map(|ban| Json(object(&hub, user, ban)))
        .ok_or(ApiError::UNKNOWN_BAN)
}

async fn ban(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
    headers: HeaderMap,
    ObjectBody(body): ObjectBody,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let index = guild(&hub, guild_id)?;
    if hub.world.user(user).is_none() {
        return Err(ApiError::UNKNOWN_USER);
    }
    if user == hub.world.owner(index) || user == hub.world.bot.id {
        return Err(ApiError::MISSING_PERMISSIONS);
    }
    let seconds = body
        .get("delete_message_seconds")
        .filter(|seconds| !seconds.is_null());
    if seconds.is_some_and(|seconds| seconds.as_u64().is_none_or(|seconds| seconds > 604_800)) {
        return Err(ApiError::form(
            "delete_message_seconds",
            "int value should be between 0 and 604800.",
        ));
    }
    let reason = headers
        .get("x-audit-log-reason")
        .and_then(|reason| reason.to_str().ok())
        .map(str::to_owned);
    let known = hub
        .world
        .overlay_mut(index)
        .bans
        .insert(user, Ban { reason })
        .is_some();
    if hub.world.is_member(index, user) {
        remove_member(&mut hub, index, user);
    }
    if !known {
        dispatch(&mut hub, guild_id, "GUILD_BAN_ADD", user);
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn unban(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let index = guild(&hub, guild_id)?;
    hub.world
        .overlay_mut(index)
        .bans
        .remove(&user)
        .ok_or(ApiError::UNKNOWN_BAN)?;
    dispatch(&mut hub, guild_id, "GUILD_BAN_REMOVE", user);
    Ok(StatusCode::NO_CONTENT)
}

fn dispatch(hub: &mut Hub, guild_id: u64, name: &'static str, user: u64) {
    let body = json!({ "guild_id": guild_id.to_string(), "user": hub.world.user(user) });
    hub.dispatch(
        Instant::now(),
        guild_id,
        &Event::new(name, Intents::GUILD_MODERATION, &body),
    );
}
