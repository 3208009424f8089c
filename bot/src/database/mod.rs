//! The guild database, over its WebSocket protocol.
//!
//! One pipelined connection to each node, all of them kept open: any node answers for any guild, so a
//! call goes to a node that is up and moves on to another when that one fails. [`node`] is one
//! connection, [`cache`] the pure cache of what was read.

pub mod cache;
pub mod node;
pub mod wire;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{Latency, Recorder};
use crate::token::Token;
use node::{CallError, Node};

/// Whole of a call, over all nodes tried.
const CALL_WITHIN: Duration = Duration::from_secs(6);
/// One node.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(2);
/// Nodes tried for one call.
const ATTEMPTS_MAX: usize = 4;
/// Calls at once over all nodes; more wait their turn.
const IN_FLIGHT_MAX: usize = 256;

/// What one node of the database is called and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `node1`.
    pub name: String,
    /// `ws://127.0.0.1:7101`.
    pub url: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum DbError {
    /// There are no nodes.
    #[error("no database is configured")]
    Absent,
    /// No node answered in time.
    #[error("no database node answers")]
    Unavailable,
    /// A node took the call and did not answer: it may or may not have been carried out.
    #[error("the database did not answer in time")]
    Unanswered,
    /// A node refused the call.
    #[error("the database refused: {text}")]
    Refused {
        /// Stable code of our node; empty from a node of the original protocol.
        code: String,
        /// The node's words.
        text: String,
    },
    /// The answer lacks what was asked for.
    #[error("the database answered without {0}")]
    Incomplete(&'static str),
}

impl DbError {
    /// A row with that key is there already.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "duplicate_key")
    }

    /// Somebody else wrote in between; nothing was changed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "conflict")
    }

    /// The node speaks only the original protocol.
    pub fn is_unknown_action(&self) -> bool {
        matches!(self, Self::Refused { text, .. } if text.starts_with("Unknown action"))
    }
}

/// Whether a call may be sent again when it is not known if the first was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Twice is the same as once.
    Harmless,
    /// Twice would count twice: only when the first was surely not carried out.
    Never,
}

/// The database.
pub struct Database {
    nodes: Vec<Node>,
    next: AtomicUsize,
    in_flight: Semaphore,
    latency: Mutex<Recorder>,
    up: Arc<Notify>,
}

impl Database {
    /// Starts a connection to each node; `tasks` owns them and `stop` ends them.
    pub fn start(
        addresses: &[Address],
        token: Option<&Token>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let up = Arc::new(Notify::new());
        let nodes = addresses
            .iter()
            .map(|address| {
                Node::start(
                    address.clone(),
                    token.cloned(),
                    Arc::clone(&up),
                    tasks,
                    stop.clone(),
                )
            })
            .collect::<Vec<_>>();
        Self {
            // Processes start at different nodes, so that they share the load.
            next: AtomicUsize::new(fastrand::usize(..nodes.len().max(1))),
            nodes,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            latency: Mutex::default(),
            up,
        }
    }

    /// True when at least one node is configured.
    pub fn is_configured(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// Names of the nodes and whether each is connected.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.nodes.iter().map(|node| (node.name(), node.is_up()))
    }

    /// Percentiles of the latest minute or two.
    pub fn latency(&self) -> Latency {
        Recorder::lock(&self.latency).latency()
    }

    /// One request. `data` is the protocol's `data` object.
    pub async fn call(
        &self,
        action: &'static str,
        data: Value,
        repeat: Repeat,
    ) -> Result<Map<String, Value>, DbError> {
        if self.nodes.is_empty() {
            return Err(DbError::Absent);
        }
        let started = Instant::now();
        let result = tokio::time::timeout(CALL_WITHIN, self.attempts(action, &data, repeat))
            .await
            .unwrap_or(Err(DbError::Unavailable));
        let failed = matches!(result, Err(DbError::Unavailable | DbError::Unanswered));
        Recorder::lock(&self.latency).record(started.elapsed(), failed);
        result
    }

    async fn attempts(
        &self,
        action: &'static str,
        data: &Value,
        repeat: Repeat,
    ) -> Result<Map<String, Value>, DbError> {
        let _permit = self
            .in_flight
            .acquire()
            .await
            .map_err(|_| DbError::Unavailable)?;
        for attempt in 0..ATTEMPTS_MAX {
            let node = self.pick().await;
            let last = attempt + 1 == ATTEMPTS_MAX;
            match node.call(action, data, ATTEMPT_WITHIN).await {
                Ok(reply) => return Ok(reply),
                Err(CallError::Refused {
                    code,
                    text,
                    retryable: true,
                }) if last => {
                    return Err(DbError::Refused { code, text });
                }
                // The node says that it did nothing.
                Err(
                    CallError::Refused {
                        retryable: true, ..
                    }
                    | CallError::NotSent,
                ) => {}
                Err(CallError::Refused { code, text, .. }) => {
                    return Err(DbError::Refused { code, text });
                }
                Err(CallError::Lost) if repeat == Repeat::Harmless => {}
                Err(CallError::Lost) => return Err(DbError::Unanswered),
            }
            tokio::time::sleep(Duration::from_millis(20 << attempt).mul_f64(0.5 + fastrand::f64()))
                .await;
        }
        Err(DbError::Unavailable)
    }

    /// The next node that is up; waits while none is. The caller has the deadline.
    async fn pick(&self) -> &Node {
        loop {
            let mut woken = std::pin::pin!(self.up.notified());
            woken.as_mut().enable();
            let start = self.next.fetch_add(1, Ordering::Relaxed);
            let candidates = || {
                (0..self.nodes.len())
                    .map(|at| &self.nodes[start.wrapping_add(at) % self.nodes.len()])
            };
            if let Some(node) = candidates().find(|node| node.is_up() && !node.is_suspect()) {
                return node;
            }
            if let Some(node) = candidates().find(|node| node.is_up()) {
                return node;
            }
            woken.await;
        }
    }

    /// The one row with these conditions.
    pub async fn find_one(
        &self,
        table: &str,
        conditions: Value,
    ) -> Result<Option<Map<String, Value>>, DbError> {
        let data = serde_json::json!({ "table": table, "conditions": conditions });
        let mut reply = self.call("find_one", data, Repeat::Harmless).await?;
        match reply.remove("row") {
            Some(Value::Object(row)) => Ok(Some(row)),
            Some(Value::Null) => Ok(None),
            _ => Err(DbError::Incomplete("row")),
        }
    }

    /// Rows and nothing else of a `select`.
    pub async fn select(&self, data: Value) -> Result<Vec<Map<String, Value>>, DbError> {
        let mut reply = self.call("select", data, Repeat::Harmless).await?;
        match reply.remove("rows") {
            Some(Value::Array(rows)) => Ok(rows
                .into_iter()
                .filter_map(|row| match row {
                    Value::Object(row) => Some(row),
                    _ => None,
                })
                .collect()),
            _ => Err(DbError::Incomplete("rows")),
        }
    }

    /// Number of rows.
    pub async fn count(&self, table: &str, conditions: Value) -> Result<u64, DbError> {
        let data = serde_json::json!({ "table": table, "conditions": conditions });
        let reply = self.call("count", data, Repeat::Harmless).await?;
        reply
            .get("count")
            .and_then(Value::as_u64)
            .ok_or(DbError::Incomplete("count"))
    }
}
