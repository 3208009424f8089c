//! Answers to interactions: the callback within 3 s, follow-ups within 15 min.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::AppState;
use super::body::ObjectBody;
use super::error::ApiError;
use super::extract::{Path, Query};
use super::messages::{apply, check};
use crate::app::App;
use crate::hub::Hub;
use crate::interactions::State as InteractionState;
use crate::snowflake::{self, is_id};
use crate::world::World;

/// Message flag: only the invoking user sees it.
const EPHEMERAL: u64 = 1 << 6;
/// Message flag: the answer is still to come.
const LOADING: u64 = 1 << 7;
/// Discord takes this many follow-ups... of one interaction installed by a user; here it bounds memory for all.
const FOLLOWUPS_MAX: u32 = 100;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/interactions/{interaction_id}/{token}/callback",
            post(callback),
        )
        .route("/webhooks/{application_id}/{token}", post(follow_up))
        .route(
            "/webhooks/{application_id}/{token}/messages/{message_id}",
            get(read).patch(change).delete(remove),
        )
}

#[derive(Deserialize)]
struct CallbackQuery {
    with_response: Option<String>,
}

async fn callback(
    State(app): AppState,
    Path((id, token)): Path<(u64, String)>,
    Query(query): Query<CallbackQuery>,
    ObjectBody(body): ObjectBody,
) -> Result<Response, ApiError> {
    let now = Instant::now();
    let mut hub = app.hub();
    hub.interactions.check_callback(now, id, &token)?;
    let kind = body.get("type").and_then(Value::as_u64).unwrap_or(0);
    let empty = Map::new();
    let data = body
        .get("data")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    match kind {
        4 => check(data, true)?,
        5 => {}
        9 => check_modal(data)?,
        // 1 answers pings, 6 and 7 components, 8 autocompletion: none of them a command.
        _ => {
            return Err(ApiError::form(
                "type",
                "Interaction callback type is invalid for this interaction",
            ));
        }
    }
    let ephemeral = data
        .get("flags")
        .and_then(Value::as_u64)
        .is_some_and(|flags| flags & EPHEMERAL != 0);
    let message = match kind {
        4 | 5 => Some(answer(
            &mut hub,
            id,
            data,
            if kind == 5 { LOADING } else { 0 },
        )),
        _ => None,
    };
    let message_id = message
        .as_ref()
        .and_then(|message| message["id"].as_str()?.parse().ok());
    hub.interactions.answer(now, id, kind, message_id);
    let wanted = query
        .with_response
        .is_some_and(|wanted| matches!(wanted.as_str(), "true" | "True" | "1"));
    if !wanted {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let mut resource = json!({ "type": kind });
    let mut interaction = json!({ "id": id.to_string(), "type": 2 });
    if let Some(message) = message {
        interaction["response_message_id"] = message["id"].clone();
        interaction["response_message_loading"] = (kind == 5).into();
        interaction["response_message_ephemeral"] = ephemeral.into();
        resource["message"] = message;
    }
    Ok(Json(json!({ "interaction": interaction, "resource": resource })).into_response())
}

fn check_modal(data: &Map<String, Value>) -> Result<(), ApiError> {
    for (field, max) in [("custom_id", 100), ("title", 45)] {
        let length = data
            .get(field)
            .and_then(Value::as_str)
            .map_or(0, |text| text.chars().count());
        if !(1..=max).contains(&length) {
            return Err(ApiError::form(
                &format!("data.{field}"),
                "This field is required and has a limited length",
            ));
        }
    }
    let components = data
        .get("components")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    if !(1..=5).contains(&components) {
        return Err(ApiError::form(
            "data.components",
            "Must be between 1 and 5 in length.",
        ));
    }
    Ok(())
}

/// Makes and keeps a message that answers an interaction.
fn answer(hub: &mut Hub, interaction: u64, data: &Map<String, Value>, flags: u64) -> Value {
    let id = snowflake::now();
    let (channel, command, user) = hub
        .interactions
        .get(interaction)
        .map(|of| (of.channel.clone(), of.command.clone(), of.user))
        .unwrap_or_default();
    let user = hub.world.user(user);
    let mut message = World::message(id, &channel, hub.world.bot_user(), "");
    apply(&mut message, data);
    message["type"] = 20.into();
    message["flags"] = (message["flags"].as_u64().unwrap_or(0) | flags).into();
    message["application_id"] = hub.world.bot.id.to_string().into();
    message["webhook_id"] = hub.world.bot.id.to_string().into();
    message["interaction_metadata"] = json!({
        "id": interaction.to_string(), "type": 2, "user": user, "name": command,
        "authorizing_integration_owners": {},
    });
    message["interaction"] =
        json!({ "id": interaction.to_string(), "type": 2, "name": command, "user": user });
    hub.world.messages.insert(id, message.clone());
    message
}

/// The interaction of a follow-up token, if it was answered and its token still lives.
fn open(hub: &mut Hub, application: u64, token: &str) -> Result<(u64, Option<u64>), ApiError> {
    if application != hub.world.bot.id {
        return Err(ApiError::UNKNOWN_WEBHOOK);
    }
    let interaction = hub
        .interactions
        .by_token(Instant::now(), token)
        .ok_or(ApiError::INVALID_WEBHOOK_TOKEN)?;
    match interaction.state {
        InteractionState::Pending | InteractionState::Late => Err(ApiError::UNKNOWN_WEBHOOK),
        InteractionState::Deferred | InteractionState::Answered => {
            Ok((interaction.id, interaction.original))
        }
    }
}

async fn follow_up(
    State(app): AppState,
    Path((application, token)): Path<(u64, String)>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let (id, original) = open(&mut hub, application, &token)?;
    check(&body, true)?;
    // The first follow-up to a deferral is its answer.
    if let Some(message) = original.and_then(|original| loading(&mut hub, original)) {
        apply(message, &body);
        let message = message.clone();
        finish(&mut hub, &token);
        return Ok(Json(message));
    }
    let too_many = hub
        .interactions
        .by_token(Instant::now(), &token)
        .is_none_or(|interaction| {
            interaction.followups += 1;
            interaction.followups > FOLLOWUPS_MAX
        });
    if too_many {
        return Err(ApiError::form("", "Too many follow-ups of one interaction"));
    }
    hub.interactions.counters.followups += 1;
    Ok(Json(answer(&mut hub, id, &body, 0)))
}

/// The message, if it still waits for its contents; it does not any more then.
fn loading(hub: &mut Hub, message: u64) -> Option<&mut Value> {
    let message = hub.world.messages.get_mut(message)?;
    let flags = message["flags"].as_u64().unwrap_or(0);
    if flags & LOADING == 0 {
        return None;
    }
    message["flags"] = (flags & !LOADING).into();
    Some(message)
}

fn finish(hub: &mut Hub, token: &str) {
    hub.interactions.filled_in(Instant::now(), token);
}

/// The message that a follow-up path names.
fn named(
    hub: &mut Hub,
    (application, token, message): &(u64, String, String),
) -> Result<u64, ApiError> {
    let (interaction, original) = open(hub, *application, token)?;
    let id = if message == "@original" {
        original
    } else {
        message.parse().ok()
    };
    let id = id.ok_or(ApiError::UNKNOWN_MESSAGE)?;
    let of = hub
        .world
        .messages
        .get(id)
        .map(|message| is_id(&message["interaction"]["id"], interaction));
    if of == Some(true) {
        Ok(id)
    } else {
        Err(ApiError::UNKNOWN_MESSAGE)
    }
}

async fn read(
    State(app): AppState,
    Path(path): Path<(u64, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let id = named(&mut hub, &path)?;
    hub.world
        .messages
        .get(id)
        .cloned()
        .map(Json)
        .ok_or(ApiError::UNKNOWN_MESSAGE)
}

async fn change(
    State(app): AppState,
    Path(path): Path<(u64, String, String)>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let id = named(&mut hub, &path)?;
    check(&body, false)?;
    let was_loading = loading(&mut hub, id).is_some();
    let message = hub
        .world
        .messages
        .get_mut(id)
        .ok_or(ApiError::UNKNOWN_MESSAGE)?;
    apply(message, &body);
    if !was_loading {
        message["edited_timestamp"] = snowflake::iso8601(snowflake::unix_ms()).into();
    }
    let message = message.clone();
    if was_loading {
        finish(&mut hub, &path.1);
    }
    Ok(Json(message))
}

async fn remove(
    State(app): AppState,
    Path(path): Path<(u64, String, String)>,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let id = named(&mut hub, &path)?;
    hub.world.messages.remove(id);
    Ok(StatusCode::NO_CONTENT)
}
