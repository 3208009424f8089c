//! REST with serenity's routes, requests and models, and a rate limiter of our own.
//!
//! serenity 0.12's limiter ignores a configured base URL (its requests, with the token, go to discord.com all the
//! same), and remembers the route of every interaction it ever answered. [`limiter`] does neither.
//!
//! Callbacks go around the limiter: Discord exempts them. Their routes hold the interaction's token, so nothing
//! here shows a route: [`RestError`] keeps what can be shown.

pub mod limiter;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serenity::all::ApplicationId;
use serenity::http::{LightMethod, RatelimitingBucket, Request, Route};
use serenity::model::gateway::BotGateway;

use crate::metrics::{Latency, Recorder};
use crate::token::Token;
use limiter::Limiter;

/// Longest wait for one call, rate limits included.
const CALL_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Tries when Discord answers 429 although the limiter let the request through.
const TRIES: u32 = 3;

/// What `/gateway/bot` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Gateway URL.
    pub url: String,
    /// Recommended number of shards.
    pub recommended_shards: u32,
    /// IDENTIFYs in 24 hours.
    pub total: u32,
    /// IDENTIFYs left.
    pub remaining: u32,
    /// Until `remaining` is `total` again.
    pub reset_after_ms: u64,
    /// Buckets.
    pub max_concurrency: u32,
}

/// A failed call, without the route.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum RestError {
    /// Discord answered with an error.
    #[error("Discord answered {status}: {message} (code {code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Discord's own code, -1 when there was none.
        code: i64,
        /// Discord's words.
        message: String,
    },
    /// No answer in time.
    #[error("Discord did not answer within {0:?}")]
    Timeout(Duration),
    /// The request did not get through.
    #[error("cannot reach Discord: {0}")]
    Unreachable(&'static str),
    /// The answer could not be understood.
    #[error("cannot understand the answer of Discord")]
    Undecodable,
}

impl RestError {
    /// The token was refused.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }

    /// There is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The interaction has been answered already (40060), for example before a crash.
    pub fn is_already_answered(&self) -> bool {
        matches!(self, Self::Refused { code: 40_060, .. })
    }

    /// The interaction is older than three seconds, or unknown (10062).
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { code: 10_062, .. })
    }

    /// Worth another try.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Timeout(_) | Self::Unreachable(_) => true,
            Self::Undecodable => false,
        }
    }
}

impl From<reqwest::Error> for RestError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::Timeout(ANSWER_WITHIN)
        } else if error.is_connect() {
            Self::Unreachable("no connection")
        } else {
            Self::Unreachable("the connection broke")
        }
    }
}

/// Discord's own words for a refusal.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: i64,
    message: String,
    retry_after: f64,
    global: bool,
}

/// Makes calls.
pub struct Rest {
    client: reqwest::Client,
    authorization: String,
    base: Option<String>,
    application: AtomicU64,
    limiter: Mutex<Limiter<RatelimitingBucket>>,
    latency: Mutex<Recorder>,
}

impl Rest {
    /// `api_url` is the base without `/api/v10`; absent = Discord.
    pub fn new(token: &Token, api_url: Option<&str>) -> Result<Self, RestError> {
        let local = api_url.is_some_and(|url| {
            let host = url
                .parse::<http::Uri>()
                .ok()
                .and_then(|uri| uri.host().map(str::to_owned))
                .unwrap_or_default();
            host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|ip| ip.is_loopback())
        });
        let builder = reqwest::Client::builder()
            .use_rustls_tls()
            .connect_timeout(Duration::from_secs(5))
            .timeout(ANSWER_WITHIN)
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none());
        // A proxy of the environment cannot reach this machine's own addresses.
        let builder = if local { builder.no_proxy() } else { builder };
        Ok(Self {
            client: builder
                .build()
                .map_err(|_| RestError::Unreachable("no HTTP client"))?,
            authorization: format!("Bot {}", token.expose()),
            base: api_url.map(str::to_owned),
            application: AtomicU64::new(0),
            limiter: Mutex::new(Limiter::new(Instant::now())),
            latency: Mutex::default(),
        })
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter<RatelimitingBucket>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells for whom routes are made.
    pub fn set_application(&self, id: u64) {
        if id != 0 {
            self.application.store(id, Ordering::Relaxed);
        }
    }

    /// The application, once known.
    pub fn application(&self) -> Option<ApplicationId> {
        match self.application.load(Ordering::Relaxed) {
            0 => None,
            id => Some(id.into()),
        }
    }

    /// Percentiles of the latest minute or two.
    pub fn latency(&self) -> Latency {
        Recorder::lock(&self.latency).latency()
    }

    /// A call whose answer is read as JSON.
    pub async fn fetch<T: DeserializeOwned>(&self, request: Request<'_>) -> Result<T, RestError> {
        let body = self.call(request).await?;
        serde_json::from_slice(&body).map_err(|_| RestError::Undecodable)
    }

    /// A call under the rate limits.
    pub async fn call(&self, request: Request<'_>) -> Result<Vec<u8>, RestError> {
        tokio::time::timeout(CALL_WITHIN, self.limited(request))
            .await
            .unwrap_or(Err(RestError::Timeout(CALL_WITHIN)))
    }

    async fn limited(&self, request: Request<'_>) -> Result<Vec<u8>, RestError> {
        let bucket = request.route_ref().ratelimiting_bucket();
        let mut tries = 1;
        loop {
            loop {
                let admitted = self.limiter().admit(bucket, Instant::now());
                match admitted {
                    Ok(()) => break,
                    Err(until) => tokio::time::sleep_until(until.into()).await,
                }
            }
            match self.once(request.clone(), Some(bucket)).await {
                Err(RestError::Refused { status: 429, .. }) if tries < TRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// A call that Discord exempts from the rate limits: the first answer to an interaction and edits of it.
    pub async fn callback(&self, request: Request<'_>) -> Result<(), RestError> {
        self.exempt(request).await.map(|_| ())
    }

    /// As [`Self::callback`], with the answer.
    pub async fn exempt(&self, request: Request<'_>) -> Result<Vec<u8>, RestError> {
        self.once(request, None).await
    }

    async fn once(
        &self,
        request: Request<'_>,
        bucket: Option<RatelimitingBucket>,
    ) -> Result<Vec<u8>, RestError> {
        let started = Instant::now();
        let result = self.exchange(request, bucket).await;
        Recorder::lock(&self.latency).record(started.elapsed(), result.is_err());
        result
    }

    async fn exchange(
        &self,
        request: Request<'_>,
        bucket: Option<RatelimitingBucket>,
    ) -> Result<Vec<u8>, RestError> {
        let mut response = request
            .build(&self.client, &self.authorization, self.base.as_deref())
            .map_err(|_| RestError::Unreachable("the request could not be made"))?
            .send()
            .await?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok()?.parse::<f64>().ok())
        };
        let seconds = |value: f64| {
            Duration::try_from_secs_f64(value)
                .unwrap_or_default()
                .min(Duration::from_secs(3600))
        };
        if let (Some(bucket), Some(remaining), Some(reset_after)) = (
            bucket,
            header("x-ratelimit-remaining"),
            header("x-ratelimit-reset-after"),
        ) {
            self.limiter().learn(
                bucket,
                remaining as u32,
                seconds(reset_after),
                Instant::now(),
            );
        }
        let status = response.status();
        let retry_after = header("retry-after");
        let global = response.headers().contains_key("x-ratelimit-global");
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(RestError::Undecodable);
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
            code: -1,
            ..Refusal::default()
        });
        if let (Some(bucket), 429) = (bucket, status.as_u16()) {
            let wait = seconds(retry_after.unwrap_or(refusal.retry_after).max(0.1));
            self.limiter()
                .refused(bucket, global || refusal.global, wait, Instant::now());
        }
        Err(RestError::Refused {
            status: status.as_u16(),
            code: refusal.code,
            message: refusal
                .message
                .chars()
                .filter(|letter| !letter.is_control())
                .take(200)
                .collect(),
        })
    }

    /// `GET /gateway/bot`.
    pub async fn limits(&self) -> Result<Limits, RestError> {
        let answer: BotGateway = self
            .fetch(Request::new(Route::GatewayBot, LightMethod::Get))
            .await?;
        let start = &answer.session_start_limit;
        Ok(Limits {
            url: answer.url,
            recommended_shards: answer.shards,
            total: u32::try_from(start.total).unwrap_or(u32::MAX),
            remaining: u32::try_from(start.remaining).unwrap_or(u32::MAX),
            reset_after_ms: start.reset_after,
            max_concurrency: u32::try_from(start.max_concurrency)
                .unwrap_or(u32::MAX)
                .max(1),
        })
    }
}

/// A body of JSON.
pub fn json_body(value: &serde_json::Value) -> Option<Vec<u8>> {
    Some(value.to_string().into_bytes())
}
