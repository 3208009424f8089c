//! Changing the world: rates, limits, guilds, single events and interactions.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::look::state_of;
use super::{AdminError, Body};
use crate::app::App;
use crate::config::RATE_MAX;
use crate::gateway::{Event, Intents};
use crate::hub::{Hub, Request};
use crate::rest::AppState;
use crate::world::KINDS;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/rates", post(rates))
        .route("/gateway", post(gateway))
        .route("/guilds/add", post(add_guilds))
        .route("/guilds/remove", post(remove_guilds))
        .route("/events", post(event))
        .route("/interactions", post(interaction))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRates {
    events_per_second: Option<f64>,
    interactions_per_second: Option<f64>,
}

async fn rates(
    State(app): AppState,
    Body(body): Body<NewRates>,
) -> Result<Json<Value>, AdminError> {
    for rate in [body.events_per_second, body.interactions_per_second]
        .into_iter()
        .flatten()
    {
        if !(0.0..=RATE_MAX).contains(&rate) {
            return Err(AdminError::bad(
                format!("{rate} is no possible rate"),
                "give 0 to 200000 a second",
            ));
        }
    }
    let mut hub = app.hub();
    let rates = &mut hub.rates;
    rates.events_per_second = body.events_per_second.unwrap_or(rates.events_per_second);
    rates.interactions_per_second = body
        .interactions_per_second
        .unwrap_or(rates.interactions_per_second);
    Ok(Json(state_of(&mut hub)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewGateway {
    recommended_shards: Option<u32>,
    max_concurrency: Option<u32>,
    identify_total: Option<u32>,
    identify_remaining: Option<u32>,
}

async fn gateway(
    State(app): AppState,
    Body(body): Body<NewGateway>,
) -> Result<Json<Value>, AdminError> {
    if body.recommended_shards == Some(0) || body.max_concurrency == Some(0) {
        return Err(AdminError::bad(
            "0 is not possible here",
            "recommended_shards and max_concurrency are at least 1",
        ));
    }
    let mut hub = app.hub();
    if body.recommended_shards.is_some() {
        hub.recommended_shards = body.recommended_shards;
    }
    if let Some(max_concurrency) = body.max_concurrency {
        hub.identify.set_max_concurrency(max_concurrency);
    }
    if let Some(total) = body.identify_total {
        hub.identify.set_total(total);
    }
    if let Some(remaining) = body.identify_remaining {
        hub.identify.set_remaining(Instant::now(), remaining);
    }
    Ok(Json(state_of(&mut hub)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddGuilds {
    count: u32,
}

async fn add_guilds(State(app): AppState, Body(body): Body<AddGuilds>) -> Json<Value> {
    let ids = app.hub().add_guilds(Instant::now(), body.count);
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    Json(json!({ "added": ids.len(), "guilds": ids }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveGuilds {
    guild_ids: Vec<String>,
}

async fn remove_guilds(State(app): AppState, Body(body): Body<RemoveGuilds>) -> Json<Value> {
    let now = Instant::now();
    let mut hub = app.hub();
    let known = |id: &&String| id.parse().is_ok_and(|id| hub.remove_guild(now, id));
    let removed = body.guild_ids.iter().filter(known).count();
    Json(json!({ "removed": removed }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneEvent {
    #[serde(rename = "type")]
    kind: String,
    guild_id: Option<String>,
    /// The event's body as it is; without it, one of the generated kinds is made.
    data: Option<Map<String, Value>>,
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

/// Events sent before others get at the hub.
const EVENTS_AT_ONCE: u32 = 64;
/// Events sent by one request.
const EVENTS_MAX: u32 = 1_000_000;

fn parse_id(text: Option<&String>, field: &'static str) -> Result<Option<u64>, AdminError> {
    text.map(|text| {
        text.parse().map_err(|_| {
            AdminError::bad(format!("{field} is not an id"), "ids are decimal strings")
        })
    })
    .transpose()
}

async fn event(
    State(app): AppState,
    Body(body): Body<OneEvent>,
) -> Result<Json<Value>, AdminError> {
    let guild_id = parse_id(body.guild_id.as_ref(), "guild_id")?;
    let well_formed = !body.kind.is_empty()
        && body.kind.len() <= 64
        && body
            .kind
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if !well_formed || body.count > EVENTS_MAX {
        return Err(AdminError::bad(
            "no such event",
            "type is like MESSAGE_CREATE; count is at most 1000000",
        ));
    }
    let mut rng = fastrand::Rng::new();
    let mut sessions = 0;
    for n in 1..=body.count {
        sessions = send(&mut app.hub(), &body, guild_id, &mut rng)?;
        if n % EVENTS_AT_ONCE == 0 {
            // Connections must come in between, or their buffers overflow.
            tokio::task::yield_now().await;
        }
    }
    Ok(Json(json!({ "sent": body.count, "sessions": sessions })))
}

fn send(
    hub: &mut Hub,
    what: &OneEvent,
    guild_id: Option<u64>,
    rng: &mut fastrand::Rng,
) -> Result<usize, AdminError> {
    let guild = match guild_id {
        Some(id) => hub.world.guild_index(id),
        None => hub.world.pick(rng),
    };
    let no_guild = || AdminError::bad("the bot is in no such guild", "GET /_sim/guilds lists them");
    let guild = guild.ok_or_else(no_guild)?;
    let id = hub.world.guild_id(guild);
    let event = if let Some(data) = &what.data {
        let mut data = data.clone();
        data.entry("guild_id")
            .or_insert_with(|| id.to_string().into());
        Event::new(what.kind.clone(), Intents::for_event(&what.kind), &data)
    } else {
        hub.world.event(&what.kind, guild, rng).ok_or_else(|| {
            let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            let error = format!("that type needs data; without it: {}", kinds.join(", "));
            AdminError::bad(error, "give data")
        })?
    };
    Ok(hub.dispatch(Instant::now(), id, &event))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneInteraction {
    command: String,
    subcommand: Option<String>,
    #[serde(default)]
    options: Map<String, Value>,
    guild_id: Option<String>,
    user_id: Option<String>,
}

async fn interaction(
    State(app): AppState,
    Body(body): Body<OneInteraction>,
) -> Result<Json<Value>, AdminError> {
    let request = Request {
        guild_id: parse_id(body.guild_id.as_ref(), "guild_id")?,
        command: Some(&body.command),
        subcommand: body.subcommand.as_deref(),
        options: body.options,
        user_id: parse_id(body.user_id.as_ref(), "user_id")?,
    };
    let id = app
        .hub()
        .invoke(Instant::now(), &request)
        .map_err(|error| {
            AdminError::bad(
                error.to_string(),
                "GET /_sim/commands, /_sim/guilds and /_sim/sessions tell what there is",
            )
        })?;
    Ok(Json(json!({ "id": id.to_string() })))
}
