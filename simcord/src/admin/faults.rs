//! Faults of connections, sessions, outages and REST.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{AdminError, Body};
use crate::app::App;
use crate::gateway::{CloseCode, Control};
use crate::hub::{Hub, SessionKey};
use crate::rest::AppState;

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/faults/drop", post(drop_connection))
        .route("/faults/close", post(close))
        .route("/faults/reconnect", post(reconnect))
        .route("/faults/silence", post(silence))
        .route("/faults/invalid-session", post(invalid_session))
        .route("/faults/resume-url", post(resume_url))
        .route("/faults/outage", post(outage))
        .route("/faults/rest-delay", post(rest_delay))
        .route("/faults/mute", post(mute))
        .route("/token/revoke", post(revoke))
        .route("/token/reissue", post(reissue))
}

/// Which sessions a fault is for: exactly one of the three.
#[derive(Debug, Default, Deserialize)]
struct Selection {
    session: Option<String>,
    shard: Option<ShardChoice>,
    #[serde(default)]
    all: bool,
}

/// A shard number of whatever count, or number and count.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ShardChoice {
    Id(u32),
    Of([u32; 2]),
}

impl Selection {
    fn keys(&self, hub: &Hub) -> Result<Vec<SessionKey>, AdminError> {
        let given =
            u8::from(self.session.is_some()) + u8::from(self.shard.is_some()) + u8::from(self.all);
        if given != 1 {
            return Err(AdminError::bad(
                "which sessions?",
                "give one of session, shard, or all: true",
            ));
        }
        let mut keys: Vec<SessionKey> = hub
            .sessions()
            .filter(|(_, live)| {
                let shard = live.session.shard;
                match (&self.session, &self.shard) {
                    (Some(id), _) => live.session.id == *id,
                    (None, Some(ShardChoice::Id(id))) => shard.id == *id,
                    (None, Some(ShardChoice::Of([id, count]))) => {
                        shard.id == *id && shard.count == *count
                    }
                    (None, None) => true,
                }
            })
            .map(|(key, _)| key)
            .collect();
        keys.sort_unstable();
        Ok(keys)
    }
}

/// Does something with the connection of each selected session; tells how many had one.
fn each_link(
    hub: &mut Hub,
    selection: &Selection,
    act: impl Fn(&crate::gateway::Link),
) -> Result<Json<Value>, AdminError> {
    let mut affected = 0;
    for key in selection.keys(hub)? {
        if let Some(link) = hub.session_mut(key).and_then(|live| live.link.clone()) {
            act(&link);
            affected += 1;
        }
    }
    Ok(Json(json!({ "affected": affected })))
}

#[derive(Deserialize)]
struct Select {
    #[serde(flatten)]
    selection: Selection,
}

async fn drop_connection(
    State(app): AppState,
    Body(body): Body<Select>,
) -> Result<Json<Value>, AdminError> {
    each_link(&mut app.hub(), &body.selection, crate::gateway::Link::reset)
}

#[derive(Deserialize)]
struct Close {
    #[serde(flatten)]
    selection: Selection,
    code: u16,
}

async fn close(State(app): AppState, Body(body): Body<Close>) -> Result<Json<Value>, AdminError> {
    if !matches!(body.code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(AdminError::bad(
            "that close code cannot be sent",
            "use 1000-1003, 1007-1014 or 3000-4999",
        ));
    }
    each_link(&mut app.hub(), &body.selection, |link| {
        link.control(Control::Close(CloseCode::Other(body.code)));
    })
}

async fn reconnect(
    State(app): AppState,
    Body(body): Body<Select>,
) -> Result<Json<Value>, AdminError> {
    let payload = r#"{"t":null,"s":null,"op":7,"d":null}"#;
    each_link(&mut app.hub(), &body.selection, |link| {
        link.control(Control::Send(payload.to_owned()));
    })
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct Silence {
    #[serde(flatten)]
    selection: Selection,
    #[serde(default = "yes")]
    silent: bool,
}

async fn silence(
    State(app): AppState,
    Body(body): Body<Silence>,
) -> Result<Json<Value>, AdminError> {
    each_link(&mut app.hub(), &body.selection, |link| {
        link.silence(body.silent);
    })
}

#[derive(Deserialize)]
struct InvalidSession {
    #[serde(flatten)]
    selection: Selection,
    #[serde(default)]
    resumable: bool,
}

async fn invalid_session(
    State(app): AppState,
    Body(body): Body<InvalidSession>,
) -> Result<Json<Value>, AdminError> {
    let mut hub = app.hub();
    let payload = format!(r#"{{"t":null,"s":null,"op":9,"d":{}}}"#, body.resumable);
    let mut affected = 0;
    for key in body.selection.keys(&hub)? {
        let link = if body.resumable {
            hub.session_mut(key).and_then(|live| live.link.clone())
        } else {
            hub.void(key)
        };
        affected += 1;
        if let Some(link) = link {
            if !body.resumable {
                link.detach();
            }
            link.control(Control::Send(payload.clone()));
        }
    }
    Ok(Json(json!({ "affected": affected })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResumeUrl {
    dead: bool,
}

async fn resume_url(State(app): AppState, Body(body): Body<ResumeUrl>) -> StatusCode {
    app.hub().faults.resume_url_dead = body.dead;
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    /// 0 ends the outage.
    seconds: f64,
    #[serde(default = "yes")]
    gateway: bool,
    #[serde(default)]
    rest: bool,
}

async fn outage(State(app): AppState, Body(body): Body<Outage>) -> Result<StatusCode, AdminError> {
    if !(0.0..=86_400.0).contains(&body.seconds) {
        return Err(AdminError::bad(
            "the outage is too long or no number",
            "seconds: 0 to 86400; 0 ends it",
        ));
    }
    let until = Instant::now() + Duration::from_secs_f64(body.seconds);
    let mut hub = app.hub();
    if body.rest {
        hub.faults.rest_outage_until = Some(until);
    }
    if body.gateway {
        hub.faults.gateway_outage_until = Some(until);
        if body.seconds > 0.0 {
            for link in hub.connections() {
                link.reset();
            }
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestDelay {
    ms: u64,
}

async fn rest_delay(
    State(app): AppState,
    Body(body): Body<RestDelay>,
) -> Result<StatusCode, AdminError> {
    if body.ms > 600_000 {
        return Err(AdminError::bad(
            "the delay is too long",
            "ms: 0 to 600000; 0 ends it",
        ));
    }
    app.hub().faults.rest_delay = Duration::from_millis(body.ms);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Mute {
    #[serde(flatten)]
    selection: Selection,
    event: String,
    #[serde(default = "yes")]
    muted: bool,
}

async fn mute(State(app): AppState, Body(body): Body<Mute>) -> Result<Json<Value>, AdminError> {
    let mut hub = app.hub();
    let set = |muted: &mut std::collections::HashSet<String>| {
        if body.muted {
            muted.insert(body.event.clone())
        } else {
            muted.remove(&body.event)
        };
    };
    let keys = body.selection.keys(&hub)?;
    if body.selection.all {
        // Sessions to come are muted as well.
        set(&mut hub.faults.muted);
    }
    let mut affected = 0;
    for key in keys {
        if let Some(live) = hub.session_mut(key) {
            set(&mut live.session.muted);
            affected += 1;
        }
    }
    Ok(Json(json!({ "affected": affected })))
}

/// The operator, or Discord, resets the token: every session ends.
async fn revoke(State(app): AppState) -> StatusCode {
    app.hub().reset_token();
    StatusCode::NO_CONTENT
}

async fn reissue(State(app): AppState) -> Result<StatusCode, AdminError> {
    app.hub()
        .token
        .reissue()
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|error| {
            let error = format!("cannot write the token file: {error}");
            AdminError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                error,
                "is its directory writable?",
            )
        })
}
