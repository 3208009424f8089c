//! Roles of guilds.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::AppState;
use super::body::ObjectBody;
use super::error::ApiError;
use super::extract::Path;
use crate::app::App;
use crate::gateway::{Event, Intents};
use crate::hub::Hub;
use crate::snowflake;
use crate::world::{GuildIndex, Permissions};

/// Roles that a guild may have.
const ROLES_MAX: usize = 250;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/guilds/{guild_id}/roles", get(list).post(create))
        .route(
            "/guilds/{guild_id}/roles/{role_id}",
            get(read).patch(change).delete(remove),
        )
}

fn guild(hub: &Hub, guild_id: u64) -> Result<GuildIndex, ApiError> {
    hub.world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)
}

fn role(hub: &Hub, guild: GuildIndex, id: u64) -> Result<Value, ApiError> {
    let id = id.to_string();
    hub.world
        .roles(guild)
        .into_iter()
        .find(|role| role["id"] == id)
        .ok_or(ApiError::UNKNOWN_ROLE)
}

fn apply(role: &mut Value, body: &Map<String, Value>) -> Result<(), ApiError> {
    if let Some(name) = body.get("name").filter(|name| !name.is_null()) {
        let fits = name
            .as_str()
            .is_some_and(|name| (1..=100).contains(&name.chars().count()));
        if !fits {
            return Err(ApiError::form(
                "name",
                "Must be between 1 and 100 in length.",
            ));
        }
    }
    for field in [
        "name",
        "permissions",
        "color",
        "colors",
        "hoist",
        "mentionable",
        "icon",
        "unicode_emoji",
    ] {
        if let Some(value) = body.get(field).filter(|value| !value.is_null()) {
            role[field] = value.clone();
        }
    }
    Ok(())
}

fn dispatch(hub: &mut Hub, guild_id: u64, name: &'static str, body: &Value) {
    hub.dispatch(
        Instant::now(),
        guild_id,
        &Event::new(name, Intents::GUILDS, body),
    );
}

async fn list(State(app): AppState, Path(guild_id): Path<u64>) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let index = guild(&hub, guild_id)?;
    Ok(Json(hub.world.roles(index).into()))
}

async fn read(
    State(app): AppState,
    Path((guild_id, id)): Path<(u64, u64)>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let index = guild(&hub, guild_id)?;
    role(&hub, index, id).map(Json)
}

async fn create(
    State(app): AppState,
    Path(guild_id): Path<u64>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let index = guild(&hub, guild_id)?;
    if hub.world.roles(index).len() >= ROLES_MAX {
        return Err(ApiError::form(
            "",
            "Maximum number of server roles reached (250)",
        ));
    }
    let id = snowflake::now();
    let mut role = json!({
        "id": id.to_string(), "name": "new role", "description": null, "permissions": Permissions::EVERYONE,
        "position": 1, "color": 0,
        "colors": { "primary_color": 0, "secondary_color": null, "tertiary_color": null },
        "hoist": false, "managed": false, "mentionable": false, "icon": null, "unicode_emoji": null, "flags": 0,
    });
    apply(&mut role, &body)?;
    hub.world.overlay_mut(index).roles.insert(id, role.clone());
    dispatch(
        &mut hub,
        guild_id,
        "GUILD_ROLE_CREATE",
        &json!({ "guild_id": guild_id.to_string(), "role": role }),
    );
    Ok(Json(role))
}

async fn change(
    State(app): AppState,
    Path((guild_id, id)): Path<(u64, u64)>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let index = guild(&hub, guild_id)?;
    let mut role = role(&hub, index, id)?;
    apply(&mut role, &body)?;
    hub.world.overlay_mut(index).roles.insert(id, role.clone());
    dispatch(
        &mut hub,
        guild_id,
        "GUILD_ROLE_UPDATE",
        &json!({ "guild_id": guild_id.to_string(), "role": role }),
    );
    Ok(Json(role))
}

async fn remove(
    State(app): AppState,
    Path((guild_id, id)): Path<(u64, u64)>,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let index = guild(&hub, guild_id)?;
    role(&hub, index, id)?;
    if id == guild_id {
        // @everyone.
        return Err(ApiError::MISSING_PERMISSIONS);
    }
    let overlay = hub.world.overlay_mut(index);
    overlay.roles.remove(&id);
    overlay.roles_deleted.push(id);
    let body = json!({ "guild_id": guild_id.to_string(), "role_id": id.to_string() });
    dispatch(&mut hub, guild_id, "GUILD_ROLE_DELETE", &body);
    Ok(StatusCode::NO_CONTENT)
}
