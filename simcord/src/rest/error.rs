//! Errors in the form of Discord's: an HTTP status and a JSON body with a code.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::commands::Malformed;
use crate::interactions::CallbackRefusal;

/// An error that a client gets to see.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: u32,
    message: &'static str,
    errors: Option<Value>,
}

impl ApiError {
    pub(crate) const UNAUTHORIZED: Self =
        Self::new(StatusCode::UNAUTHORIZED, 0, "401: Unauthorized");
    pub(crate) const NOT_FOUND: Self = Self::new(StatusCode::NOT_FOUND, 0, "404: Not Found");
    pub(crate) const METHOD_NOT_ALLOWED: Self =
        Self::new(StatusCode::METHOD_NOT_ALLOWED, 0, "405: Method Not Allowed");
    pub(crate) const UNKNOWN_APPLICATION: Self =
        Self::new(StatusCode::NOT_FOUND, 10002, "Unknown Application");
    pub(crate) const UNKNOWN_CHANNEL: Self =
        Self::new(StatusCode::NOT_FOUND, 10003, "Unknown Channel");
    pub(crate) const UNKNOWN_GUILD: Self = Self::new(StatusCode::NOT_FOUND, 10004, "Unknown Guild");
    pub(crate) const UNKNOWN_MEMBER: Self =
        Self::new(StatusCode::NOT_FOUND, 10007, "Unknown Member");
    pub(crate) const UNKNOWN_MESSAGE: Self =
        Self::new(StatusCode::NOT_FOUND, 10008, "Unknown Message");
    pub(crate) const UNKNOWN_ROLE: Self = Self::new(StatusCode::NOT_FOUND, 10011, "Unknown Role");
    pub(crate) const UNKNOWN_USER: Self = Self::new(StatusCode::NOT_FOUND, 10013, "Unknown User");
    pub(crate) const UNKNOWN_WEBHOOK: Self =
        Self::new(StatusCode::NOT_FOUND, 10015, "Unknown Webhook");
    pub(crate) const UNKNOWN_BAN: Self = Self::new(StatusCode::NOT_FOUND, 10026, "Unknown Ban");
    pub(crate) const UNKNOWN_COMMAND: Self =
        Self::new(StatusCode::NOT_FOUND, 10063, "Unknown application command");
    pub(crate) const UNKNOWN_INTERACTION: Self =
        Self::new(StatusCode::NOT_FOUND, 10062, "Unknown interaction");
    pub(crate) const ALREADY_ACKNOWLEDGED: Self = Self::new(
        StatusCode::BAD_REQUEST,
        40060,
        "Interaction has already been acknowledged.",
    );
    pub(crate) const INVALID_WEBHOOK_TOKEN: Self =
        Self::new(StatusCode::UNAUTHORIZED, 50027, "Invalid Webhook Token");
    pub(crate) const EMPTY_MESSAGE: Self = Self::new(
        StatusCode::BAD_REQUEST,
        50006,
        "Cannot send an empty message",
    );
    pub(crate) const NOT_OWN_MESSAGE: Self = Self::new(
        StatusCode::FORBIDDEN,
        50005,
        "Cannot edit a message authored by another user",
    );
    pub(crate) const MISSING_PERMISSIONS: Self =
        Self::new(StatusCode::FORBIDDEN, 50013, "Missing Permissions");
    pub(crate) const INVALID_API_VERSION: Self =
        Self::new(StatusCode::BAD_REQUEST, 50041, "Invalid API version");
    pub(crate) const INVALID_JSON: Self = Self::new(
        StatusCode::BAD_REQUEST,
        50109,
        "The request body contains invalid JSON.",
    );

    const fn new(status: StatusCode, code: u32, message: &'static str) -> Self {
        Self {
            status,
            code,
            message,
            errors: None,
        }
    }

    /// A body whose field at a path (`options.0.name`) is wrong.
    pub(crate) fn form(path: &str, reason: &str) -> Self {
        let mut errors = json!({ "_errors": [{ "code": "BASE_TYPE_BAD", "message": reason }] });
        for part in path.split('.').filter(|part| !part.is_empty()).rev() {
            errors = json!({ part: errors });
        }
        Self {
            errors: Some(errors),
            ..Self::new(StatusCode::BAD_REQUEST, 50035, "Invalid Form Body")
        }
    }
}

impl From<Malformed> for ApiError {
    fn from(malformed: Malformed) -> Self {
        Self::form(&malformed.path, malformed.reason)
    }
}

impl From<CallbackRefusal> for ApiError {
    fn from(refusal: CallbackRefusal) -> Self {
        match refusal {
            CallbackRefusal::Unknown => Self::UNKNOWN_INTERACTION,
            CallbackRefusal::AlreadyAcknowledged => Self::ALREADY_ACKNOWLEDGED,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({ "message": self.message, "code": self.code });
        if let Some(errors) = self.errors {
            body["errors"] = errors;
        }
        (self.status, Json(body)).into_response()
    }
}
