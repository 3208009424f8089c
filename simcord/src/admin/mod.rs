//! The admin API under `/_sim/`: the account, and faults on demand. On loopback addresses only.
//!
//! The README lists every route. Unknown fields are refused, so that a misspelt fault does not pass for one
//! that had no effect.

mod faults;
mod look;
mod world;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::app::App;

pub(crate) fn router() -> Router<Arc<App>> {
    let unknown = async || {
        AdminError::new(
            StatusCode::NOT_FOUND,
            "no such route",
            "simcord/README.md lists them all",
        )
    };
    Router::new().nest(
        "/_sim",
        Router::new()
            .merge(look::router())
            .merge(faults::router())
            .merge(world::router())
            .fallback(unknown),
    )
}

/// An error of the admin API.
#[derive(Debug)]
pub(crate) struct AdminError {
    status: StatusCode,
    error: String,
    hint: &'static str,
}

impl AdminError {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>, hint: &'static str) -> Self {
        Self {
            status,
            error: error.into(),
            hint,
        }
    }

    pub(crate) fn bad(error: impl Into<String>, hint: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(json!({ "error": self.error, "hint": self.hint })),
        )
            .into_response()
    }
}

/// A JSON body; an empty one counts as `{}`. Whatever the content type says.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = AdminError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, AdminError> {
        let hint = "simcord/README.md lists the fields of each route";
        let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await;
        let bytes = bytes.map_err(|error| AdminError::bad(error.to_string(), hint))?;
        let json: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) {
            b"{}"
        } else {
            &bytes
        };
        serde_json::from_slice(json)
            .map(Self)
            .map_err(|error| AdminError::bad(error.to_string(), hint))
    }
}
