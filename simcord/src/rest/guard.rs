//! What every REST request goes through: outages and delays on demand, the ban, the token, the rate limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::ApiError;
use super::limits::{Standing, Verdict};
use crate::app::App;
use crate::server::Wire;
use crate::snowflake;

/// Lets a request through, or answers it.
pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    ConnectInfo(wire): ConnectInfo<Wire>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let delay = {
        let mut hub = app.hub();
        hub.account.rest.requests += 1;
        if hub.rest_is_out(Instant::now()) {
            wire.reset();
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        hub.faults.rest_delay
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let standing = match admit(&app, &request) {
        Ok(standing) => standing,
        Err(response) => return *response,
    };
    let mut response = next.run(request).await;
    if let Some(standing) = standing {
        write_headers(response.headers_mut(), &standing);
    }
    if matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    ) {
        invalid(&app);
    }
    response
}

fn admit(app: &App, request: &Request<Body>) -> Result<Option<Standing>, Box<Response>> {
    let now = Instant::now();
    let mut hub = app.hub();
    if let Some(left) = hub.rest.banned(now) {
        hub.account.rest.banned += 1;
        // The ban is put up before Discord itself: its answer is no JSON.
        let headers = [(RETRY_AFTER, left.as_secs().to_string())];
        return Err(Box::new(
            (StatusCode::TOO_MANY_REQUESTS, headers, "error code: 1015\n").into_response(),
        ));
    }
    let Some(route) = request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    else {
        // No such route: the answer is 404, whoever asks.
        return Ok(None);
    };
    let access = Access::of(route);
    if access == Access::Bot && !authorized(request, |token| hub.token.is(token)) {
        hub.account.rest.unauthorized += 1;
        drop(hub);
        invalid(app);
        return Err(Box::new(ApiError::UNAUTHORIZED.into_response()));
    }
    if access == Access::Callback {
        return Ok(None);
    }
    let path = request.uri().path();
    let global = access == Access::Bot;
    match hub
        .rest
        .request(now, request.method().as_str(), route, major(path), global)
    {
        Verdict::Pass(standing) => Ok(Some(standing)),
        Verdict::Limited(standing) => {
            hub.account.rest.rate_limited += 1;
            drop(hub);
            invalid(app);
            let mut response = limited(standing.reset_after, false);
            write_headers(response.headers_mut(), &standing);
            Err(Box::new(response))
        }
        Verdict::LimitedGlobally { retry_after } => {
            hub.account.rest.rate_limited_global += 1;
            drop(hub);
            invalid(app);
            Err(Box::new(limited(retry_after, true)))
        }
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Needs the bot's token.
    Bot,
    /// Needs the interaction's token in the path; not limited by the bot's global limit.
    Webhook,
    /// As webhooks, and not limited at all.
    Callback,
    Public,
}

impl Access {
    fn of(route: &str) -> Self {
        let route = route.strip_prefix("/api/v10").unwrap_or(route);
        if route.starts_with("/interactions/") {
            Self::Callback
        } else if route.starts_with("/webhooks/") {
            Self::Webhook
        } else if route == "/gateway" {
            Self::Public
        } else {
            Self::Bot
        }
    }
}

fn authorized(request: &Request<Body>, is: impl Fn(&str) -> bool) -> bool {
    let header = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    header
        .and_then(|value| value.strip_prefix("Bot "))
        .is_some_and(is)
}

fn invalid(app: &App) {
    let mut hub = app.hub();
    hub.account.rest.invalid_requests += 1;
    hub.rest.invalid(Instant::now());
}

/// The parameter by which a bucket is split: guild, channel, or webhook with its token.
fn major(path: &str) -> &str {
    let path = path
        .strip_prefix("/api/v10")
        .unwrap_or(path)
        .trim_start_matches('/');
    let mut ends = path
        .match_indices('/')
        .map(|(place, _)| place)
        .chain([path.len()]);
    let parts = match path.split('/').next() {
        Some("guilds" | "channels") => 2,
        Some("webhooks") => 3,
        _ => return "",
    };
    ends.nth(parts - 1).map_or(path, |end| &path[..end])
}

fn limited(retry_after: Duration, global: bool) -> Response {
    let seconds = retry_after.as_secs_f64().max(0.001);
    let body = json!({
        "message": "You are being rate limited.", "retry_after": (seconds * 1000.0).ceil() / 1000.0, "global": global,
    });
    let mut response = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds.ceil() as u64));
    let scope = if global { "global" } else { "user" };
    headers.insert(
        HeaderName::from_static("x-ratelimit-scope"),
        HeaderValue::from_static(scope),
    );
    if global {
        headers.insert(
            HeaderName::from_static("x-ratelimit-global"),
            HeaderValue::from_static("true"),
        );
    }
    response
}

fn write_headers(headers: &mut HeaderMap, standing: &Standing) {
    let after = standing.reset_after.as_secs_f64();
    let reset = snowflake::unix_ms() as f64 / 1000.0 + after;
    for (name, value) in [
        ("x-ratelimit-limit", standing.limit.to_string()),
        ("x-ratelimit-remaining", standing.remaining.to_string()),
        ("x-ratelimit-reset", format!("{reset:.3}")),
        ("x-ratelimit-reset-after", format!("{after:.3}")),
        ("x-ratelimit-bucket", standing.bucket.clone()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_parameters_are_taken_from_the_path() {
        assert_eq!(major("/api/v10/channels/5/messages/7"), "channels/5");
        assert_eq!(major("/guilds/5"), "guilds/5", "within the nested router");
        assert_eq!(
            major("/api/v10/webhooks/5/token/messages/@original"),
            "webhooks/5/token"
        );
        assert_eq!(major("/api/v10/users/@me"), "");
        assert_eq!(major("/api/v10/guilds"), "guilds");
    }
}
