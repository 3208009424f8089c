//! Guilds and their members.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, put};
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
use crate::world::GuildIndex;

/// A timeout may last this long.
const TIMEOUT_DAYS_MAX: u64 = 28;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/guilds/{guild_id}", get(read))
        .route("/guilds/{guild_id}/preview", get(read))
        .route("/guilds/{guild_id}/members", get(members))
        .route("/guilds/{guild_id}/members/search", get(search))
        .route(
            "/guilds/{guild_id}/members/@me",
            axum::routing::patch(change_self),
        )
        .route(
            "/guilds/{guild_id}/members/{user_id}",
            get(member).patch(change).delete(kick),
        )
        .route(
            "/guilds/{guild_id}/members/{user_id}/roles/{role_id}",
            put(give_role).delete(take_role),
        )
        .route("/users/@me/guilds/{guild_id}", delete(leave))
}

#[derive(Deserialize)]
struct WithCounts {
    with_counts: Option<String>,
}

async fn read(
    State(app): AppState,
    Path(id): Path<u64>,
    Query(query): Query<WithCounts>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let guild = hub.world.guild_index(id).ok_or(ApiError::UNKNOWN_GUILD)?;
    let with_counts = query
        .with_counts
        .is_some_and(|with| matches!(with.as_str(), "true" | "True" | "1"));
    Ok(Json(hub.world.guild(guild, with_counts)))
}

async fn leave(State(app): AppState, Path(id): Path<u64>) -> Result<StatusCode, ApiError> {
    if app.hub().remove_guild(Instant::now(), id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::UNKNOWN_GUILD)
    }
}

#[derive(Deserialize)]
struct MembersPage {
    limit: Option<usize>,
    after: Option<u64>,
}

async fn members(
    State(app): AppState,
    Path(id): Path<u64>,
    Query(page): Query<MembersPage>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let guild = hub.world.guild_index(id).ok_or(ApiError::UNKNOWN_GUILD)?;
    let ids = hub.world.members_after(
        guild,
        page.after.unwrap_or(0),
        page.limit.unwrap_or(1).clamp(1, 1000),
    );
    Ok(Json(objects(&hub, guild, &ids)))
}

#[derive(Deserialize)]
struct MemberSearch {
    #[serde(default)]
    query: String,
    limit: Option<usize>,
}

async fn search(
    State(app): AppState,
    Path(id): Path<u64>,
    Query(search): Query<MemberSearch>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let guild = hub.world.guild_index(id).ok_or(ApiError::UNKNOWN_GUILD)?;
    if search.query.is_empty() {
        return Err(ApiError::form("query", "This field is required"));
    }
    let ids = hub.world.search_members(
        guild,
        &search.query,
        search.limit.unwrap_or(1).clamp(1, 1000),
    );
    Ok(Json(objects(&hub, guild, &ids)))
}

fn objects(hub: &Hub, guild: GuildIndex, ids: &[u64]) -> Value {
    ids.iter()
        .filter_map(|id| hub.world.member(guild, *id))
        .collect::<Vec<_>>()
        .into()
}

fn find(hub: &Hub, guild_id: u64, user: u64) -> Result<GuildIndex, ApiError> {
    let guild = hub
        .world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)?;
    if hub.world.is_member(guild, user) {
        Ok(guild)
    } else if hub.world.user(user).is_some() {
        Err(ApiError::UNKNOWN_MEMBER)
    } else {
        Err(ApiError::UNKNOWN_USER)
    }
}

async fn member(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
) -> Result<Json<Value>, ApiError> {
    let hub = app.hub();
    let guild = find(&hub, guild_id, user)?;
    hub.world
        .member(guild, user)
        .map(Json)
        .ok_or(ApiError::UNKNOWN_MEMBER)
}

/// What a PATCH does to a field that may be empty.
#[derive(Default)]
enum Change {
    #[default]
    Keep,
    Clear,
    Set(String),
}

impl Change {
    fn apply(self, field: &mut Option<String>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}

/// What a PATCH asks to change about a member.
#[derive(Default)]
struct Changes {
    nick: Change,
    roles: Option<Vec<u64>>,
    timeout_until: Change,
}

impl Changes {
    fn read(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut changes = Self::default();
        match body.get("nick") {
            None => {}
            Some(Value::Null) => changes.nick = Change::Clear,
            Some(Value::String(nick)) if nick.is_empty() => changes.nick = Change::Clear,
            Some(Value::String(nick)) if nick.chars().count() <= 32 => {
                changes.nick = Change::Set(nick.clone());
            }
            Some(_) => return Err(ApiError::form("nick", "Must be 32 or fewer in length.")),
        }
        if let Some(roles) = body.get("roles").filter(|roles| !roles.is_null()) {
            let read = |role: &Value| role.as_u64().or_else(|| role.as_str()?.parse().ok());
            let roles: Option<Vec<u64>> = roles
                .as_array()
                .and_then(|roles| roles.iter().map(read).collect());
            changes.roles =
                Some(roles.ok_or_else(|| ApiError::form("roles", "Value is not snowflake."))?);
        }
        match body.get("communication_disabled_until") {
            None => {}
            Some(Value::Null) => changes.timeout_until = Change::Clear,
            Some(until) => {
                let at = until
                    .as_str()
                    .and_then(|text| text.parse::<jiff::Timestamp>().ok());
                let bad = || {
                    ApiError::form(
                        "communication_disabled_until",
                        "Could not parse, or more than 28 days away",
                    )
                };
                let at = at.ok_or_else(bad)?.as_millisecond();
                // A minute of grace for clocks that differ.
                let last = snowflake::unix_ms() + TIMEOUT_DAYS_MAX * 86_400_000 + 60_000;
                if at > last as i64 {
                    return Err(bad());
                }
                let past = at <= snowflake::unix_ms() as i64;
                changes.timeout_until = if past {
                    Change::Clear
                } else {
                    Change::Set(snowflake::iso8601(at as u64))
                };
            }
        }
        Ok(changes)
    }
}

async fn change(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let guild = find(&hub, guild_id, user)?;
    let changes = Changes::read(&body)?;
    // Nobody can be above the owner, and administrators cannot be timed out.
    if user == hub.world.owner(guild) {
        return Err(ApiError::MISSING_PERMISSIONS);
    }
    if let Some(roles) = &changes.roles {
        let known = hub.world.roles(guild);
        if !roles
            .iter()
            .all(|id| known.iter().any(|role| is_id(&role["id"], *id)))
        {
            return Err(ApiError::UNKNOWN_ROLE);
        }
    }
    let patch = hub
        .world
        .overlay_mut(guild)
        .members
        .entry(user)
        .or_default();
    changes.nick.apply(&mut patch.nick);
    if let Some(roles) = changes.roles {
        patch.roles = Some(roles);
    }
    changes.timeout_until.apply(&mut patch.timeout_until);
    updated(&mut hub, guild, user)
}

async fn change_self(
    State(app): AppState,
    Path(guild_id): Path<u64>,
    ObjectBody(body): ObjectBody,
) -> Result<Json<Value>, ApiError> {
    let mut hub = app.hub();
    let guild = hub
        .world
        .guild_index(guild_id)
        .ok_or(ApiError::UNKNOWN_GUILD)?;
    let bot = hub.world.bot.id;
    let nick = Changes::read(&body)?.nick;
    let patch = hub.world.overlay_mut(guild).members.entry(bot).or_default();
    nick.apply(&mut patch.nick);
    updated(&mut hub, guild, bot)
}

fn updated(hub: &mut Hub, guild: GuildIndex, user: u64) -> Result<Json<Value>, ApiError> {
    if let Some(event) = hub.world.member_update(guild, user) {
        hub.dispatch(Instant::now(), hub.world.guild_id(guild), &event);
    }
    hub.world
        .member(guild, user)
        .map(Json)
        .ok_or(ApiError::UNKNOWN_MEMBER)
}

/// Takes somebody out of a guild and tells its sessions.
pub(super) fn remove_member(hub: &mut Hub, guild: GuildIndex, user: u64) {
    let patch = hub
        .world
        .overlay_mut(guild)
        .members
        .entry(user)
        .or_default();
    patch.gone = true;
    let guild_id = hub.world.guild_id(guild);
    let body = json!({ "guild_id": guild_id.to_string(), "user": hub.world.user(user) });
    hub.dispatch(
        Instant::now(),
        guild_id,
        &Event::new("GUILD_MEMBER_REMOVE", Intents::GUILD_MEMBERS, &body),
    );
}

async fn kick(
    State(app): AppState,
    Path((guild_id, user)): Path<(u64, u64)>,
) -> Result<StatusCode, ApiError> {
    let mut hub = app.hub();
    let guild = find(&hub, guild_id, user)?;
    if user == hub.world.owner(guild) || user == hub.world.bot.id {
        return Err(ApiError::MISSING_PERMISSIONS);
    }
    remove_member(&mut hub, guild, user);
    Ok(StatusCode::NO_CONTENT)
}

async fn give_role(
    State(app): AppState,
    Path(path): Path<(u64, u64, u64)>,
) -> Result<StatusCode, ApiError> {
    set_role(&mut app.hub(), path, true)
}

async fn take_role(
    State(app): AppState,
    Path(path): Path<(u64, u64, u64)>,
) -> Result<StatusCode, ApiError> {
    set_role(&mut app.hub(), path, false)
}

fn set_role(
    hub: &mut Hub,
    (guild_id, user, role): (u64, u64, u64),
    give: bool,
) -> Result<StatusCode, ApiError> {
    let guild = find(hub, guild_id, user)?;
    if !hub
        .world
        .roles(guild)
        .iter()
        .any(|known| is_id(&known["id"], role))
    {
        return Err(ApiError::UNKNOWN_ROLE);
    }
    let member = hub.world.member_without_user(guild, user);
    let held = member["roles"].as_array().into_iter().flatten();
    let mut roles: Vec<u64> = held
        .filter_map(|role| role.as_str()?.parse().ok())
        .collect();
    roles.retain(|held| *held != role);
    if give {
        roles.push(role);
    }
    hub.world
        .overlay_mut(guild)
        .members
        .entry(user)
        .or_default()
        .roles = Some(roles);
    let _object = updated(hub, guild, user)?;
    Ok(StatusCode::NO_CONTENT)
}
