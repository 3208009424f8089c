//! Starting and stopping one simulated Discord.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::config::Config;
use crate::hub::{Hub, Urls};
use crate::server::{Door, Wire, Wires};
use crate::token::{Token, TokenError};
use crate::{admin, gateway, generate, rest};

/// Why a simulated Discord does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {0}; is the port in use? (port 0 takes a free one)")]
    Listen(SocketAddr, #[source] io::Error),
    /// No address was given.
    #[error("no address to listen on")]
    NoAddress,
    /// The token cannot be read or made.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Where a simulated Discord is: the contents of the info file.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The process that serves it.
    pub pid: u32,
    /// Base of the REST and admin API.
    pub http: String,
    /// The gateway's URL.
    pub gateway: String,
    /// The id of the bot's application, and of its user.
    pub application_id: String,
}

/// A running simulated Discord. Stops when dropped.
#[derive(Debug)]
pub struct Sim {
    /// The first address listened on.
    pub addr: SocketAddr,
    info: Info,
    app: Arc<App>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sim {
    /// Listens, and serves until stopped. Must be called within a tokio runtime.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let token = Token::load(config.token_file.as_deref())?;
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|error| StartError::Listen(*address, error))?;
            let bound = listener
                .local_addr()
                .map_err(|error| StartError::Listen(*address, error))?;
            listeners.push((bound, listener));
        }
        let addr = listeners
            .first()
            .map(|(bound, _)| *bound)
            .ok_or(StartError::NoAddress)?;
        let urls = Urls {
            gateway: format!("ws://{addr}"),
            resume: format!("ws://{addr}/resume"),
        };
        let info = Info {
            pid: std::process::id(),
            http: format!("http://{addr}"),
            gateway: urls.gateway.clone(),
            application_id: token.application_id().to_string(),
        };
        let wires = Wires::default();
        let app = Arc::new(App::new(
            Hub::new(config, urls, token, Instant::now()),
            wires.clone(),
        ));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        // Every task: one server per address, and the generator.
        for (bound, listener) in listeners {
            let router = router(&app, bound.ip().is_loopback());
            let service = router.into_make_service_with_connect_info::<Wire>();
            let server = axum::serve(Door::new(listener, wires.clone()), service);
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    result = server => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the server ended");
                        }
                    }
                    () = stop.cancelled() => {}
                }
            });
        }
        tasks.spawn(generate::run(Arc::clone(&app), stop.clone()));
        tasks.close();
        Ok(Self {
            addr,
            info,
            app,
            stop,
            tasks,
        })
    }

    /// Base of the REST and admin API, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.info.http
    }

    /// Where everything is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Stops at once: cuts all connections and frees the addresses.
    pub async fn stop(self) {
        self.stop.cancel();
        self.app.wires.reset_all();
        // Tasks end at their next wait; none of them waits for clients.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop.cancel();
        self.app.wires.reset_all();
    }
}

fn router(app: &Arc<App>, loopback: bool) -> Router {
    let router = Router::new()
        .route("/", axum::routing::get(gateway::connection::open))
        .route("/gateway", axum::routing::get(gateway::connection::open))
        .route("/gateway/", axum::routing::get(gateway::connection::open))
        .route(
            "/resume",
            axum::routing::get(gateway::connection::open_for_resume),
        )
        .route(
            "/resume/",
            axum::routing::get(gateway::connection::open_for_resume),
        )
        .merge(rest::router(app));
    // Whoever may use the admin API may do anything: it is for this machine only.
    let router = if loopback {
        router.merge(admin::router())
    } else {
        router
    };
    router.fallback(rest::fallback).with_state(Arc::clone(app))
}
