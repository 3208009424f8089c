//! `/applications/{id}/commands` and `/applications/{id}/guilds/{guild}/commands`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;

use super::AppState;
use super::body::{JsonBody, ObjectBody};
use super::error::ApiError;
use super::extract::Path;
use crate::app::App;
use crate::commands::Scope;
use crate::hub::Hub;

pub(crate) fn router() -> Router<Arc<App>> {
    let all = || get(list).put(replace).post(create);
    let one = || get(read).patch(change).delete(remove);
    Router::new()
        .route("/applications/{application_id}/commands", all())
        .route(
            "/applications/{application_id}/commands/{command_id}",
            one(),
        )
        .route(
            "/applications/{application_id}/guilds/{guild_id}/commands",
            all(),
        )
        .route(
            "/applications/{application_id}/guilds/{guild_id}/commands/{command_id}",
            one(),
        )
}

#[derive(Deserialize)]
struct Place {
    #[serde(rename = "application_id")]
    application: u64,
    #[serde(rename = "guild_id")]
    guild: Option<u64>,
    #[serde(rename = "command_id")]
    command: Option<String>,
}

impl Place {
    fn scope(&self, hub: &Hub) -> Result<Scope, ApiError> {
        if self.application != hub.world.bot.id {
            return Err(ApiError::UNKNOWN_APPLICATION);
        }
        match self.guild {
            Some(guild) if hub.world.guild_index(guild).is_none() => Err(ApiError::UNKNOWN_GUILD),
            scope => Ok(scope),
        }
    }

    fn id(&self) -> &str {
        self.command.as_deref().unwrap_or_default()
    }
}

async fn list(State(app): AppState, Path(place): Path<Place>) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    Ok(Json(hub.commands.list(place.scope(&hub)?).into()))
}

async fn replace(
    State(app): AppState,
    Path(place): Path<Place>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let scope = place.scope(&hub)?;
    let raw = body
        .as_array()
        .ok_or_else(|| ApiError::form("", "Only iterables may be used in a ListField"))?;
    Ok(Json(
        hub.commands.replace(place.application, scope, raw)?.into(),
    ))
}

async fn create(
    State(app): AppState,
    Path(place): Path<Place>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut hub = app.hub();
    let scope = place.scope(&hub)?;
    let (command, new) = hub.commands.upsert(place.application, scope, &body)?;
    Ok((
        if new {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        },
        Json(command),
    ))
}

async fn read(State(app): AppState, Path(place): Path<Place>) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let scope = place.scope(&hub)?;
    hub.commands
        .get(scope, place.id())
        .cloned()
        .map(Json)
        .ok_or(ApiError::UNKNOWN_COMMAND)
}

async fn change(
    State(app): AppState,
    Path(place): Path<Place>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let scope = place.scope(&hub)?;
    let changed = hub
        .commands
        .patch(place.application, scope, place.id(), &body);
    Ok(Json(changed.ok_or(ApiError::UNKNOWN_COMMAND)??))
}

async fn remove(State(app): AppState, Path(place): Path<Place>) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let scope = place.scope(&hub)?;
    if hub.commands.delete(scope, place.id()) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::UNKNOWN_COMMAND)
    }
}
