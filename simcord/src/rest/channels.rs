//! Channels of guilds.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value};

use super::AppState;
use super::body::{JsonBody, ObjectBody};
use super::error::ApiError;
use super::extract::Path;
use crate::app::App;
use crate::gateway::{Event, Intents};
use crate::hub::Hub;
use crate::snowflake;

/// Channels that a guild may have.
const CHANNELS_MAX: usize = 500;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/channels/{channel_id}",
            get(read).patch(change).delete(remove),
        )
        .route("/guilds/{guild_id}/channels", get(list).post(create))
}

fn dispatch(hub: &mut Hub, guild_id: u64, name: &'static str, channel: &Value) {
    hub.dispatch(
        Instant::now(),
        guild_id,
        &Event::new(name, Intents::GUILDS, channel),
    );
}

fn check(body: &Map<String, Value>, new: bool) -> Result<(), ApiError> {
    match body.get("name") {
        None if !new => {}
        Some(Value::String(name)) if (1..=100).contains(&name.chars().count()) => {}
        _ => {
            return Err(ApiError::form(
                "name",
                "Must be between 1 and 100 in length.",
            ));
        }
    }
    if body
        .get("topic")
        .and_then(Value::as_str)
        .is_some_and(|topic| topic.chars().count() > 1024)
    {
        return Err(ApiError::form("topic", "Must be 1024 or fewer in length."));
    }
    let seconds = body
        .get("rate_limit_per_user")
        .filter(|seconds| !seconds.is_null());
    if seconds.is_some_and(|seconds| seconds.as_u64().is_none_or(|seconds| seconds > 21_600)) {
        return Err(ApiError::form(
            "rate_limit_per_user",
            "int value should be between 0 and 21600.",
        ));
    }
    Ok(())
}

fn apply(channel: &mut Value, body: &Map<String, Value>) {
    for field in [
        "name",
        "type",
        "topic",
        "nsfw",
        "position",
        "parent_id",
        "rate_limit_per_user",
        "permission_overwrites",
        "bitrate",
        "user_limit",
        "flags",
    ] {
        if let Some(value) = body.get(field) {
            channel[field] = value.clone();
        }
    }
}

async fn read(State(app): AppState, Path(id): Path<u64>) -> Result<Json<Value>, ApiError> {
    app.hub()
        .world
        .channel(id)
        .map(Json)
        .ok_or(ApiError::UNKNOWN_CHANNEL)
}

async fn list(State(app): AppState, Path(guild_id): Path<u64>) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let guild = hub
        .world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)?;
    Ok(Json(hub.world.channels(guild).into()))
}

async fn create(
    State(app): AppState,
    Path(guild_id): Path<u64>,
    ObjectBody(body): ObjectBody,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut hub = app.hub();
    let guild = hub
        .world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)?;
    check(&body, true)?;
    let position = hub.world.channels(guild).len();
    if position >= CHANNELS_MAX {
        return Err(ApiError::form(
            "",
            "Maximum number of server channels reached (500)",
        ));
    }
    let id = snowflake::now();
    let mut channel = hub.world.text_channel(guild, id, "", position as u64);
    apply(&mut channel, &body);
    hub.world
        .overlay_mut(guild)
        .channels
        .insert(id, channel.clone());
    dispatch(&mut hub, guild_id, "CHANNEL_CREATE", &channel);
    Ok((StatusCode::CREATED, Json(channel)))
}

async fn change(
    State(app): AppState,
    Path(id): Path<u64>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let mut channel = hub.world.channel(id).ok_or(ApiError::UNKNOWN_CHANNEL)?;
    let guild = hub
        .world
        .guild_of_channel(id)
        .ok_or(ApiError::UNKNOWN_CHANNEL)?;
    let body = body
        .as_object()
        .ok_or_else(|| ApiError::form("", "Only dictionaries may be used in a DictType"))?;
    check(body, false)?;
    apply(&mut channel, body);
    hub.world
        .overlay_mut(guild)
        .channels
        .insert(id, channel.clone());
    let guild_id = hub.world.guild_id(guild);
    dispatch(&mut hub, guild_id, "CHANNEL_UPDATE", &channel);
    Ok(Json(channel))
}

async fn remove(State(app): AppState, Path(id): Path<u64>) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let channel = hub.world.channel(id).ok_or(ApiError::UNKNOWN_CHANNEL)?;
    let guild = hub
        .world
        .guild_of_channel(id)
        .ok_or(ApiError::UNKNOWN_CHANNEL)?;
    let overlay = hub.world.overlay_mut(guild);
    overlay.channels.remove(&id);
    overlay.channels_deleted.push(id);
    let guild_id = hub.world.guild_id(guild);
    dispatch(&mut hub, guild_id, "CHANNEL_DELETE", &channel);
    Ok(Json(channel))
}
