//! `/metrics` for Prometheus, `/health` and `/ready` for load balancers and people, `/identify/…` for
//! foreign bots.
//!
//! The pages are read only: GET and HEAD, no bodies, no state but what others publish. A slow or
//! greedy client is cut off by time, size and number.
//!
//! - `exposition`: the text format of Prometheus.
//! - `families`: which figures there are, and their names.
//! - `queue`: leave to identify, for foreign bots that ask for it.

mod exposition;
mod families;
mod hosts;
mod queue;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State as Extract,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tanako_proto::fleet::v1::IdentifyStatus;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

pub use queue::{Addresses, Queue};

use crate::{
    health,
    hub::Figures,
    metrics::{Latency, Sample},
    registry::Registry,
    supervisor::{Desired, Table},
    tenure::Tenure,
    vault::VaultStatus,
    worker::States,
};

/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// A request's head has to be there within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection lives no longer than this, however it is used.
const CONNECTION_MAX: Duration = Duration::from_secs(120);
/// After the agent was told to stop, requests under way get this long.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Bytes and lines of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// After a failed accept (no file descriptor is left) the next waits this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Processes named by `/ready` when they are not.
const NOT_READY_MAX: usize = 100;

/// Counts by name, asked for at each scrape.
pub type Counts = Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;
/// Why the agent is not healthy, if it is not.
pub type HealthCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// How the session vault is.
pub type VaultCheck = Arc<dyn Fn() -> VaultStatus + Send + Sync>;

/// Where the pages take their figures from. Nothing here may block.
#[derive(Clone)]
pub struct Sources {
    /// Usage.
    pub sample: watch::Receiver<Arc<Sample>>,
    /// Worker reports.
    pub workers: watch::Receiver<Arc<States>>,
    /// The supervised processes.
    pub table: watch::Receiver<Arc<Table>>,
    /// Budget.
    pub identify: watch::Receiver<Arc<IdentifyStatus>>,
    /// How long permits were waited for.
    pub identify_wait: Arc<Latency>,
    /// How long workers' messages take.
    pub worker_message: Arc<Latency>,
    /// Operations by state.
    pub operations: Option<Counts>,
    /// Whether the agent's tasks live.
    pub health: HealthCheck,
    /// What is thought of the shards.
    pub shards: watch::Receiver<Arc<health::View>>,
    /// How the session vault is.
    pub vault: VaultCheck,
    /// The hosts of the fleet.
    pub registry: Registry,
    /// Whether this one owns what it runs.
    pub tenure: Tenure,
    /// What the view of the whole fleet counts.
    pub hub: watch::Receiver<Figures>,
    /// Version of the agent.
    pub version: &'static str,
}

/// The pages cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Binding failed.
    #[error(
        "HTTP address {address} cannot be bound; if another program has it, choose one with --http, \
         or --http 127.0.0.1:0 for any that is free"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A bound address that is not served yet: connections wait.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// Where; never port 0.
    pub address: SocketAddr,
}

/// Binds `address` (port 0 = any).
pub async fn bind(address: SocketAddr) -> Result<Bound, StartError> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Bound { listener, address })
    };
    bind.await
        .map_err(|source| StartError::Bind { address, source })
}

/// Binds `address` (port 0 = any) and serves the pages until cancelled; returns where.
pub async fn start(
    address: SocketAddr,
    sources: Sources,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) -> Result<SocketAddr, StartError> {
    let bound = bind(address).await?;
    Ok(serve(bound, sources, None, cancel, tracker))
}

/// Serves the pages, and the identify queue if there is one, until cancelled; returns where.
pub fn serve(
    bound: Bound,
    sources: Sources,
    queue: Option<Queue>,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) -> SocketAddr {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "there are /metrics, /health and /ready\n",
            )
        })
        .with_state(sources);
    let server = Server { router, queue };
    let connections = tracker.clone();
    tracker.spawn(accept_loop(bound.listener, server, cancel, connections));
    bound.address
}

#[derive(Clone)]
struct Server {
    router: Router,
    queue: Option<Queue>,
}

/// What a connection takes up: a place among all, or, once it asked for leave to identify, one among
/// those that wait for it.
struct Line {
    place: Mutex<(OwnedSemaphorePermit, bool)>,
    own_host: bool,
}

impl Line {
    fn queue_up(&self, place: OwnedSemaphorePermit) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = (place, true);
    }

    fn is_queued(&self) -> bool {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

async fn accept_loop(
    listener: TcpListener,
    server: Server,
    cancel: CancellationToken,
    tracker: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "HTTP cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Too many: dropping is an answer that every client understands.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let own_host = peer.ip().is_loopback()
            || stream
                .local_addr()
                .is_ok_and(|local| local.ip() == peer.ip());
        let line = Arc::new(Line {
            place: Mutex::new((place, false)),
            own_host,
        });
        tracker.spawn(converse(stream, server.clone(), line, cancel.clone()));
    }
}

async fn converse(stream: TcpStream, server: Server, line: Arc<Line>, cancel: CancellationToken) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (server, line) = (server.clone(), Arc::clone(&line));
        async move { server.answer(request, &line).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            // A client that went away, or spoke nonsense, has been answered by hyper.
            _ = connection.as_mut() => return,
            // Who waits to identify has a limit of its own.
            () = tokio::time::sleep(CONNECTION_MAX) => if !line.is_queued() {
                return;
            },
            () = cancel.cancelled() => {
                // Any answer is leave to identify, so that those who wait for it get none.
                if !line.is_queued() {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(STOP_WITHIN, connection).await;
                }
                return;
            }
        }
    }
}

impl Server {
    async fn answer(
        self,
        request: Request<hyper::body::Incoming>,
        line: &Line,
    ) -> Result<Response, queue::NoAnswer> {
        let asks = request.uri().path().starts_with(queue::PATH);
        let Some(queue) = self.queue.filter(|_| asks) else {
            let answer = self.router.oneshot(request.map(Body::new)).await;
            return Ok(answer.unwrap_or_else(|never| match never {}));
        };
        match queue.question(request.uri(), line.own_host) {
            Err(wrong) => Ok(wrong),
            Ok(ask) => {
                let place = queue.place().ok_or(queue::NoAnswer)?;
                line.queue_up(place);
                queue.wait(ask).await
            }
        }
    }
}

async fn metrics(Extract(sources): Extract<Sources>) -> Response {
    let text = families::render(&sources);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

async fn health(Extract(sources): Extract<Sources>) -> Response {
    match (sources.health)() {
        Ok(()) => "OK\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    processes: usize,
    not_ready: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<NotReady>,
}

#[derive(Serialize)]
struct NotReady {
    process: String,
    state: &'static str,
    detail: String,
}

async fn ready(Extract(sources): Extract<Sources>) -> Response {
    let table = sources.table.borrow().clone();
    let wanted = table.values().filter(|p| p.desired == Desired::Running);
    let waiting: Vec<_> = wanted.clone().filter(|p| !p.ready).collect();
    let body = Readiness {
        ready: waiting.is_empty(),
        processes: wanted.count(),
        not_ready: waiting.len(),
        examples: waiting
            .iter()
            .take(NOT_READY_MAX)
            .map(|process| NotReady {
                process: process.name.to_string(),
                state: process.state.as_str(),
                detail: process.detail.clone(),
            })
            .collect(),
    };
    let code = if body.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(body)).into_response()
}
