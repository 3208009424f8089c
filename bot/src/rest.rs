//! REST through serenity.
//!
//! Two clients on one connection pool. Interaction callbacks are exempt from Discord's global limit and
//! each has a route of its own, and serenity's rate limiter remembers every route for ever: a process
//! would grow with each command it answers. So callbacks go around it; everything else goes through it.
//!
//! The routes of callbacks hold the interaction's token, and the errors of serenity and reqwest show the
//! route. [`RestError`] keeps what can be shown.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serenity::http::{Http, HttpBuilder, HttpError};

use crate::metrics::Recorder;
use crate::token::Token;

/// Longest wait for one call, rate limits included.
const CALL_WITHIN: Duration = Duration::from_secs(20);

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

impl From<serenity::Error> for RestError {
    fn from(error: serenity::Error) -> Self {
        match error {
            serenity::Error::Http(HttpError::UnsuccessfulRequest(response)) => Self::Refused {
                status: response.status_code.as_u16(),
                code: i64::try_from(response.error.code).unwrap_or(-1),
                message: response.error.message.chars().take(200).collect(),
            },
            serenity::Error::Http(HttpError::Request(error)) if error.is_timeout() => {
                Self::Timeout(CALL_WITHIN)
            }
            serenity::Error::Http(HttpError::Request(error)) if error.is_connect() => {
                Self::Unreachable("no connection")
            }
            serenity::Error::Http(HttpError::Request(error)) if error.is_decode() => {
                Self::Undecodable
            }
            serenity::Error::Http(_) => Self::Unreachable("the request failed"),
            serenity::Error::Json(_) => Self::Undecodable,
            _ => Self::Unreachable("the request could not be made"),
        }
    }
}

/// The two clients and how long their calls take.
pub struct Rest {
    limited: Http,
    callbacks: Http,
    latency: Mutex<Recorder>,
}

impl Rest {
    /// `api_url` is the base without `/api/v10`; absent = Discord.
    pub fn new(token: &Token, api_url: Option<&str>) -> Self {
        let limited = {
            let builder = HttpBuilder::new(token.expose());
            match api_url {
                Some(url) => builder.proxy(url),
                None => builder,
            }
            .build()
        };
        let callbacks = {
            let builder = HttpBuilder::new(token.expose()).ratelimiter_disabled(true);
            match api_url {
                Some(url) => builder.proxy(url),
                None => builder,
            }
            .build()
        };
        Self {
            limited,
            callbacks,
            latency: Mutex::new(Recorder::default()),
        }
    }

    /// For everything but callbacks.
    pub const fn http(&self) -> &Http {
        &self.limited
    }

    /// For interaction callbacks and edits of their answers.
    pub const fn callbacks(&self) -> &Http {
        &self.callbacks
    }

    /// Tells both clients for whom routes are made.
    pub fn set_application(&self, id: u64) {
        if id != 0 {
            self.limited.set_application_id(id.into());
            self.callbacks.set_application_id(id.into());
        }
    }

    /// The application, once known.
    pub fn application(&self) -> Option<u64> {
        self.limited
            .application_id()
            .map(serenity::all::ApplicationId::get)
    }

    /// Makes a call with a deadline and records how long it took.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = serenity::Result<T>>,
    ) -> Result<T, RestError> {
        let started = Instant::now();
        let result = match tokio::time::timeout(CALL_WITHIN, call).await {
            Ok(result) => result.map_err(RestError::from),
            Err(_) => Err(RestError::Timeout(CALL_WITHIN)),
        };
        Recorder::lock(&self.latency).record(started.elapsed(), result.is_err());
        result
    }

    /// Percentiles of the latest minute or two.
    pub fn latency(&self) -> crate::metrics::Latency {
        Recorder::lock(&self.latency).latency()
    }

    /// `GET /gateway/bot`.
    pub async fn limits(&self) -> Result<Limits, RestError> {
        let answer = self.call(self.limited.get_bot_gateway()).await?;
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
