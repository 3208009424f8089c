//! Messages in channels.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::AppState;
use super::body::ObjectBody;
use super::error::ApiError;
use super::extract::{Path, Query};
use crate::app::App;
use crate::gateway::{Event, Intents};
use crate::hub::Hub;
use crate::snowflake::{self, is_id};
use crate::world::World;

/// Characters that a message may have.
const CONTENT_MAX: usize = 2000;
const EMBEDS_MAX: usize = 10;
const NONCE_LENGTH_MAX: usize = 25;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/channels/{channel_id}/messages", get(list).post(create))
        .route(
            "/channels/{channel_id}/messages/{message_id}",
            get(read).patch(change).delete(remove),
        )
        .route(
            "/channels/{channel_id}/messages/bulk-delete",
            post(bulk_delete),
        )
        .route("/channels/{channel_id}/typing", post(typing))
}

/// Whether a body is a message. A new one must have contents.
pub(crate) fn check(body: &Map<String, Value>, new: bool) -> Result<(), ApiError> {
    let content = match body.get("content") {
        None | Some(Value::Null) => "",
        Some(Value::String(content)) => content,
        Some(_) => return Err(ApiError::form("content", "Not a well formed string.")),
    };
    if content.chars().count() > CONTENT_MAX {
        return Err(ApiError::form(
            "content",
            "Must be 2000 or fewer in length.",
        ));
    }
    for (list, max) in [
        ("embeds", EMBEDS_MAX),
        ("components", 40),
        ("attachments", 10),
        ("sticker_ids", 3),
    ] {
        match body.get(list) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items))
                if items.len() <= max
                    && (list == "sticker_ids" || items.iter().all(Value::is_object)) => {}
            Some(_) => {
                return Err(ApiError::form(
                    list,
                    "Not a list of objects, or too long a one.",
                ));
            }
        }
    }
    let filled = |list: &str| {
        body.get(list)
            .and_then(Value::as_array)
            .is_some_and(|items| !items.is_empty())
    };
    let has_contents = !content.is_empty()
        || ["embeds", "components", "attachments", "sticker_ids"]
            .into_iter()
            .any(filled)
        || body.get("poll").is_some_and(Value::is_object);
    if new && !has_contents {
        return Err(ApiError::EMPTY_MESSAGE);
    }
    Ok(())
}

/// The nonce of a message that must not be made twice (`enforce_nonce`).
fn unique_nonce(body: &Map<String, Value>) -> Result<Option<String>, ApiError> {
    let nonce = match body.get("nonce") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.chars().count() <= NONCE_LENGTH_MAX => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => {
            return Err(ApiError::form(
                "nonce",
                "Must be an integer or a string of 25 or fewer in length.",
            ));
        }
    };
    let enforced = body.get("enforce_nonce").and_then(Value::as_bool) == Some(true);
    Ok(enforced.then_some(nonce))
}

/// Writes a checked body into a message.
pub(crate) fn apply(message: &mut Value, body: &Map<String, Value>) {
    for field in ["content", "embeds", "components", "tts", "nonce"] {
        if let Some(value) = body.get(field).filter(|value| !value.is_null()) {
            message[field] = value.clone();
        }
    }
    if let Some(flags) = body.get("flags").and_then(Value::as_u64) {
        message["flags"] = flags.into();
    }
    if let Some(reference) = body
        .get("message_reference")
        .filter(|reference| reference.is_object())
    {
        message["message_reference"] = reference.clone();
        message["type"] = 19.into();
    }
    // Embeds come back with their type.
    for embed in message["embeds"].as_array_mut().into_iter().flatten() {
        if embed["type"].is_null() {
            embed["type"] = "rich".into();
        }
    }
}

/// Sends an event about a channel to its guild's sessions.
fn dispatch(hub: &mut Hub, channel: u64, name: &'static str, body: &Value) {
    let Some(guild) = hub.world.guild_of_channel(channel) else {
        return;
    };
    let guild_id = hub.world.guild_id(guild);
    let mut body = body.clone();
    body["guild_id"] = guild_id.to_string().into();
    hub.dispatch(
        Instant::now(),
        guild_id,
        &Event::new(name, Intents::GUILD_MESSAGES, &body),
    );
}

fn known(hub: &Hub, channel: u64) -> Result<(), ApiError> {
    hub.world
        .guild_of_channel(channel)
        .map(|_| ())
        .ok_or(ApiError::UNKNOWN_CHANNEL)
}

fn message_in(hub: &Hub, channel: u64, id: u64) -> Result<&Value, ApiError> {
    known(hub, channel)?;
    let message = hub
        .world
        .messages
        .get(id)
        .filter(|message| is_id(&message["channel_id"], channel));
    message.ok_or(ApiError::UNKNOWN_MESSAGE)
}

#[derive(Deserialize)]
struct Page {
    before: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
}

async fn list(
    State(app): AppState,
    Path(channel): Path<u64>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    known(&hub, channel)?;
    let limit = page.limit.unwrap_or(50).clamp(1, 100);
    let (before, after) = (page.before.unwrap_or(u64::MAX), page.after.unwrap_or(0));
    Ok(Json(json!(
        hub.world.messages.of_channel(channel, before, after, limit)
    )))
}

async fn create(
    State(app): AppState,
    Path(channel): Path<u64>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    known(&hub, channel)?;
    check(&body, true)?;
    let (now, nonce) = (Instant::now(), unique_nonce(&body)?);
    if let Some(nonce) = &nonce
        && let Some(first) = hub.world.messages.of_nonce(now, nonce)
    {
        return Ok(Json(first.clone()));
    }
    let id = snowflake::now();
    let mut message = World::message(id, &channel.to_string(), hub.world.bot_user(), "");
    apply(&mut message, &body);
    hub.world.messages.insert(id, message.clone());
    if let Some(nonce) = nonce {
        hub.world.messages.note_nonce(now, nonce, id);
    }
    dispatch(&mut hub, channel, "MESSAGE_CREATE", &message);
    Ok(Json(message))
}

async fn read(
    State(app): AppState,
    Path((channel, id)): Path<(u64, u64)>,
) -> Result<Json<Value>, ApiError> {
    message_in(&app.hub(), channel, id).cloned().map(Json)
}

async fn change(
    State(app): AppState,
    Path((channel, id)): Path<(u64, u64)>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let own = is_id(
        &message_in(&hub, channel, id)?["author"]["id"],
        hub.world.bot.id,
    );
    if !own {
        return Err(ApiError::NOT_OWN_MESSAGE);
    }
    check(&body, false)?;
    let message = hub
        .world
        .messages
        .get_mut(id)
        .ok_or(ApiError::UNKNOWN_MESSAGE)?;
    apply(message, &body);
    message["edited_timestamp"] = snowflake::iso8601(snowflake::unix_ms()).into();
    let message = message.clone();
    dispatch(&mut hub, channel, "MESSAGE_UPDATE", &message);
    Ok(Json(message))
}

/// Messages that were only generated can be deleted as well: they are not kept, but clients have seen them.
async fn remove(
    State(app): AppState,
    Path((channel, id)): Path<(u64, u64)>,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    known(&hub, channel)?;
    hub.world.messages.remove(id);
    dispatch(
        &mut hub,
        channel,
        "MESSAGE_DELETE",
        &json!({ "id": id.to_string(), "channel_id": channel.to_string() }),
    );
    Ok(StatusCode::NO_CONTENT)
}

async fn bulk_delete(
    State(app): AppState,
    Path(channel): Path<u64>,
    ObjectBody(body): ObjectBody,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    known(&hub, channel)?;
    let ids = body
        .get("messages")
        .and_then(Value::as_array)
        .filter(|ids| (2..=100).contains(&ids.len()));
    let ids =
        ids.ok_or_else(|| ApiError::form("messages", "Must be between 2 and 100 in length."))?;
    for id in ids {
        let id = id.as_str().and_then(|id| id.parse().ok());
        hub.world
            .messages
            .remove(id.ok_or_else(|| ApiError::form("messages", "Value is not snowflake."))?);
    }
    dispatch(
        &mut hub,
        channel,
        "MESSAGE_DELETE_BULK",
        &json!({ "ids": ids, "channel_id": channel.to_string() }),
    );
    Ok(StatusCode::NO_CONTENT)
}

async fn typing(State(app): AppState, Path(channel): Path<u64>) -> Result<StatusCode, ApiError> {
    known(&app.hub(), channel)?;
    Ok(StatusCode::NO_CONTENT)
}
