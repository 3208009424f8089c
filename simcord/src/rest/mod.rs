//! The REST API under `/api/v10`, as far as bots use it. One file a resource.

mod body;
mod channels;
mod commands;
mod error;
mod extract;
mod guard;
mod guilds;
mod interactions;
pub(crate) mod limits;
mod messages;
mod moderation;
mod own;
mod roles;

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use axum::middleware::from_fn_with_state;

use crate::app::App;
use error::ApiError;

pub(crate) type AppState = axum::extract::State<Arc<App>>;

/// All routes, behind the checks that every request goes through.
pub(crate) fn router(app: &Arc<App>) -> Router<Arc<App>> {
    let api = Router::new()
        .merge(own::router())
        .merge(commands::router())
        .merge(interactions::router())
        .merge(channels::router())
        .merge(messages::router())
        .merge(guilds::router())
        .merge(moderation::router())
        .merge(roles::router())
        .method_not_allowed_fallback(async || ApiError::METHOD_NOT_ALLOWED)
        .fallback(async || ApiError::NOT_FOUND)
        .layer(from_fn_with_state(Arc::clone(app), guard::guard));
    Router::new().nest("/api/v10", api)
}

/// The answer to a path that leads nowhere.
pub(crate) async fn fallback(uri: Uri) -> ApiError {
    if uri.path().starts_with("/api/") {
        ApiError::INVALID_API_VERSION
    } else {
        ApiError::NOT_FOUND
    }
}
