//! What a bot asks about itself: gateway, user, application, its guilds.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::body::ObjectBody;
use super::error::ApiError;
use super::extract::{Path, Query};
use crate::app::App;
use crate::hub::{APPLICATION_FLAGS, Hub};
use crate::world::Permissions;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/gateway", get(gateway))
        .route("/gateway/bot", get(gateway_bot))
        .route("/users/@me", get(me).patch(me_patch))
        .route("/users/@me/guilds", get(my_guilds))
        .route("/users/{user_id}", get(user))
        .route("/oauth2/applications/@me", get(application))
        .route(
            "/applications/@me",
            get(application).patch(application_patch),
        )
}

async fn gateway(State(app): AppState) -> Json<Value> {
    Json(json!({ "url": app.hub().urls.gateway }))
}

async fn gateway_bot(State(app): AppState) -> Json<Value> {
    let mut hub = app.hub();
    let (remaining, reset_after) = hub.identify.remaining(Instant::now());
    Json(json!({
        "url": hub.urls.gateway, "shards": hub.shards_recommended(),
        "session_start_limit": {
            "total": hub.identify.total(), "remaining": remaining,
            "reset_after": reset_after.as_millis() as u64, "max_concurrency": hub.identify.max_concurrency(),
        },
    }))
}

async fn me(State(app): AppState) -> Json<Value> {
    Json(app.hub().world.bot_user())
}

async fn me_patch(
    State(app): AppState,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    if let Some(name) = body.get("username") {
        let name = name
            .as_str()
            .filter(|name| (2..=32).contains(&name.chars().count()));
        let name =
            name.ok_or_else(|| ApiError::form("username", "Must be between 2 and 32 in length."))?;
        name.clone_into(&mut hub.world.bot.name);
    }
    Ok(Json(hub.world.bot_user()))
}

#[derive(Deserialize)]
struct GuildsPage {
    before: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    with_counts: bool,
}

async fn my_guilds(State(app): AppState, Query(page): Query<GuildsPage>) -> Json<Value> {
    let hub = app.hub();
    let world = &hub.world;
    let limit = page.limit.unwrap_or(200).clamp(1, 200);
    let ids = world.guilds().map(|index| (index, world.guild_id(index)));
    let mut page: Vec<Value> = ids
        .filter(|(_, id)| {
            page.after.is_none_or(|after| *id > after)
                && page.before.is_none_or(|before| *id < before)
        })
        .take(limit)
        .map(|(index, id)| {
            let mut guild = json!({
                "id": id.to_string(), "name": world.guild_name(index), "icon": null, "banner": null,
                "owner": false, "permissions": Permissions::ALL, "features": [],
            });
            if page.with_counts {
                guild["approximate_member_count"] = world.member_count(index).into();
                guild["approximate_presence_count"] = (world.member_count(index) / 3 + 1).into();
            }
            guild
        })
        .collect();
    page.sort_by(|a, b| {
        a["id"]
            .as_str()
            .map(str::len)
            .cmp(&b["id"].as_str().map(str::len))
    });
    Json(page.into())
}

async fn user(State(app): AppState, Path(user_id): Path<u64>) -> Result<Json<Value>, ApiError> {
    app.hub()
        .world
        .user(user_id)
        .map(Json)
        .ok_or(ApiError::UNKNOWN_USER)
}

fn application_object(hub: &Hub) -> Value {
    let bot = &hub.world.bot;
    // Somebody who is in a guild, so that there is one who may use what is the owner's alone.
    let guild = hub.world.guilds().next().unwrap_or_default();
    let owner = hub.world.user(hub.world.owner(guild));
    json!({
        "id": bot.id.to_string(), "name": bot.name, "icon": null, "description": "", "summary": "", "type": null,
        "bot": hub.world.bot_user(), "bot_public": true, "bot_require_code_grant": false, "owner": owner,
        "team": null, "verify_key": "0".repeat(64), "flags": APPLICATION_FLAGS, "hook": true,
        "approximate_guild_count": hub.world.guild_count(), "approximate_user_install_count": 0,
        "redirect_uris": [], "interactions_endpoint_url": null, "role_connections_verification_url": null,
        "event_webhooks_url": null, "event_webhooks_status": 1, "rpc_origins": [], "tags": [],
        "integration_types_config": { "0": {} }, "install_params": null, "terms_of_service_url": null,
        "privacy_policy_url": null, "is_monetized": false, "storefront_available": false,
    })
}

async fn application(State(app): AppState) -> Json<Value> {
    Json(application_object(&app.hub()))
}

/// Changes are accepted and have no effect: nothing here shows them.
async fn application_patch(State(app): AppState, ObjectBody(_): ObjectBody) -> Json<Value> {
    Json(application_object(&app.hub()))
}
