//! One connection to one node: a task that owns the socket, and the handle to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_websockets::{ClientBuilder, Limits, MaybeTlsStream, Message, WebSocketStream};
use tracing::{info, warn};

use super::Address;
use super::wire::{Reply, Request};
use crate::backoff::Backoff;
use crate::token::Token;

/// Opening a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest message either way, bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Requests waiting for the socket.
const QUEUE_MAX: usize = 256;
/// A node that let a request time out is asked last for this long.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// A connection that is silent this long while requests wait is given up.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// Why a node did not answer with success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// It refused.
    Refused {
        /// Stable code.
        code: String,
        /// Its words.
        text: String,
        /// Whether the same request may succeed later; then nothing was carried out.
        retryable: bool,
    },
    /// The request did not leave this process.
    NotSent,
    /// No answer: it may or may not have been carried out.
    Lost,
}

struct Job {
    text: String,
    id: u64,
    sent: Arc<AtomicBool>,
    reply: oneshot::Sender<Reply>,
}

/// Handle to a node's connection.
pub struct Node {
    name: String,
    up: Arc<AtomicBool>,
    jobs: mpsc::Sender<Job>,
    ids: AtomicU64,
    /// Milliseconds since `epoch`.
    suspect_until: AtomicU64,
    epoch: Instant,
}

impl Node {
    /// Starts the connection's task.
    pub fn start(
        address: Address,
        token: Option<Token>,
        changed: Arc<Notify>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let up = Arc::new(AtomicBool::new(false));
        let name = address.name.clone();
        let task = Task {
            address,
            token,
            changed,
            up: Arc::clone(&up),
            queue,
        };
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run() => {}
            }
        });
        Self {
            name,
            up,
            jobs,
            ids: AtomicU64::new(1),
            suspect_until: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connected.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// It let a request time out a moment ago.
    pub fn is_suspect(&self) -> bool {
        let now = self.epoch.elapsed().as_millis() as u64;
        now < self.suspect_until.load(Ordering::Relaxed)
    }

    /// One request.
    pub async fn call(
        &self,
        action: &str,
        data: &Value,
        within: Duration,
    ) -> Result<Map<String, Value>, CallError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            action,
            data,
            request_id: id,
        };
        let text = serde_json::to_string(&request).map_err(|_| CallError::NotSent)?;
        let sent = Arc::new(AtomicBool::new(false));
        let (reply, answer) = oneshot::channel();
        let job = Job {
            text,
            id,
            sent: Arc::clone(&sent),
            reply,
        };
        let unanswered = || {
            if sent.load(Ordering::Acquire) {
                CallError::Lost
            } else {
                CallError::NotSent
            }
        };
        let exchange = async {
            self.jobs.send(job).await.map_err(|_| CallError::NotSent)?;
            answer.await.map_err(|_| unanswered())
        };
        match tokio::time::timeout(within, exchange).await {
            Ok(Ok(reply)) if reply.success => Ok(reply.rest),
            Ok(Ok(reply)) => Err(CallError::Refused {
                code: reply.code,
                text: reply.error,
                retryable: reply.retryable,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let until = self.epoch.elapsed() + SUSPECT_FOR;
                self.suspect_until
                    .store(until.as_millis() as u64, Ordering::Relaxed);
                Err(unanswered())
            }
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Task {
    address: Address,
    token: Option<Token>,
    changed: Arc<Notify>,
    up: Arc<AtomicBool>,
    queue: mpsc::Receiver<Job>,
}

/// Why a connection ended or did not come about. Never holds the token.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error("the address is not a WebSocket URL (ws://host:port)")]
    Address,
    #[error("the token cannot be put into a header")]
    Token,
    #[error("no connection within {CONNECT_WITHIN:?}")]
    Timeout,
    #[error("the WebSocket failed: {0}")]
    Socket(#[from] tokio_websockets::Error),
    #[error("the node closed the connection")]
    Closed,
    #[error("the node has been silent for {SILENT_MAX:?}")]
    Silent,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let connecting = self.connect();
            let error = match connecting.await {
                Ok(socket) => {
                    info!(node = %self.address.name, "connected to the database");
                    backoff.reset();
                    self.up.store(true, Ordering::Release);
                    self.changed.notify_waiters();
                    let error = self.hold(socket).await;
                    self.up.store(false, Ordering::Release);
                    error
                }
                Err(error) => error,
            };
            if backoff.failures() == 0 {
                warn!(node = %self.address.name, %error, "no connection to the database node, trying on");
            }
            // Whoever queued for this node meanwhile goes to another one.
            while self.queue.try_recv().is_ok() {}
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn connect(&self) -> Result<Socket, NodeError> {
        let uri: http::Uri = self.address.url.parse().map_err(|_| NodeError::Address)?;
        let mut builder = ClientBuilder::from_uri(uri)
            .limits(Limits::default().max_payload_len(Some(MESSAGE_BYTES_MAX)));
        if let Some(token) = &self.token {
            let mut value = http::HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| NodeError::Token)?;
            value.set_sensitive(true);
            builder = builder
                .add_header(http::header::AUTHORIZATION, value)
                .map_err(|_| NodeError::Token)?;
        }
        let (socket, _) = tokio::time::timeout(CONNECT_WITHIN, builder.connect())
            .await
            .map_err(|_| NodeError::Timeout)??;
        Ok(socket)
    }

    async fn hold(&mut self, mut socket: Socket) -> NodeError {
        let mut waiting: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
        let mut heard = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = socket.next() => {
                    let message = match message {
                        Some(Ok(message)) => message,
                        Some(Err(error)) => return error.into(),
                        None => return NodeError::Closed,
                    };
                    heard = Instant::now();
                    let Some(text) = message.as_text() else { continue };
                    if let Ok(reply) = serde_json::from_str::<Reply>(text)
                        && let Some(waiter) = reply.request_id.and_then(|id| waiting.remove(&id))
                    {
                        // The caller may have given up.
                        let _ = waiter.send(reply);
                    }
                }
                Some(job) = self.queue.recv() => {
                    if waiting.is_empty() {
                        heard = Instant::now();
                    }
                    // Feed what is queued, flush once.
                    let mut next = Some(job);
                    while let Some(job) = next.take() {
                        if !job.reply.is_closed() {
                            job.sent.store(true, Ordering::Release);
                            waiting.insert(job.id, job.reply);
                            if let Err(error) = socket.feed(Message::text(job.text)).await {
                                return error.into();
                            }
                        }
                        next = self.queue.try_recv().ok();
                    }
                    match tokio::time::timeout(SILENT_MAX, socket.flush()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return error.into(),
                        Err(_) => return NodeError::Silent,
                    }
                }
                _ = tick.tick() => {
                    let waited_for = !waiting.is_empty();
                    waiting.retain(|_, waiter| !waiter.is_closed());
                    if waited_for && heard.elapsed() > SILENT_MAX {
                        return NodeError::Silent;
                    }
                }
            }
        }
    }
}
