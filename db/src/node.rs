//! The node: answers requests from its own store, passes on what belongs to others, and puts
//! answers together that need all nodes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, Settings, Token};
use crate::engine::{Engine, Space};
use crate::failure::{Code, Failure};
use crate::keys::row_partition;
use crate::merge;
use crate::metrics::Metrics;
use crate::read::all_rows;
use crate::reply;
use crate::request::{self, ACTIONS, Call, Envelope, Scope, rows_as_data, upsert_as_data};
use crate::row::Style;
use crate::store::{Store, StoreError, StoreOptions};
use crate::topology::Topology;
use crate::write::{NewRow, Op, Outcome};
use crate::writer::{Answer, STOP_WITHIN, Writer, stopping};

/// Reads that may block for long (scans) run at most this many at a time.
const SCANS: usize = 8;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The list of nodes is no ring.
    #[error("invalid ring: {0}")]
    Ring(#[from] tanako_fleet::ring::RingError),
    /// The stored data cannot be read.
    #[error("cannot read the store: {0}")]
    Read(Failure),
    /// The operating system refused a thread.
    #[error("cannot start the writer")]
    Thread(#[source] std::io::Error),
}

/// A running node. See the module's documentation.
pub struct Node {
    /// Its name in the ring.
    pub name: String,
    /// The data.
    pub store: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The one writer.
    pub writer: Writer,
    token: Token,
    backup_dir: PathBuf,
    topology: RwLock<Arc<Topology>>,
    pub(crate) scans: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    draining: AtomicBool,
    tasks: TaskTracker,
    writer_thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// How a request goes on.
pub enum Handled {
    /// The reply is ready.
    Now(Vec<u8>),
    /// The reply comes later. With the number of a write that reads of the same connection wait for.
    Later(Option<u64>, Reply),
}

/// A reply to come.
pub type Reply = Pin<Box<dyn Future<Output = Vec<u8>> + Send>>;

/// What is remembered about one connection.
#[derive(Default)]
pub struct Session {
    /// How 64-bit ids are written unless a request says otherwise.
    pub style: Style,
    writes: Vec<(u64, Scope)>,
    next_write: u64,
}

impl Session {
    /// A session in which ids are written like this.
    pub fn new(style: Style) -> Self {
        Self {
            style,
            ..Self::default()
        }
    }

    /// A write of this session has been answered.
    pub fn write_answered(&mut self, number: u64) {
        self.writes.retain(|(write, _)| *write != number);
    }

    fn begin_write(&mut self, scope: Scope) -> u64 {
        self.next_write += 1;
        self.writes.push((self.next_write, scope));
        self.next_write
    }

    /// Whether a read of this scope was sent after a write it must see.
    fn must_wait(&self, scope: Scope) -> bool {
        self.writes.iter().any(|(_, write)| scope.meets(*write))
    }
}

impl Node {
    /// Opens the store and starts the writer and the links.
    pub fn open(settings: &Settings) -> Result<Arc<Self>, NodeError> {
        crate::config::check_name(&settings.name)?;
        let metrics = Arc::new(Metrics::default());
        let store = Arc::new(Store::open(StoreOptions {
            directory: settings.data_dir.clone(),
            sizes: crate::engine::Sizes {
                cache_bytes: settings.tuning.cache_bytes,
                memtable_bytes: settings.tuning.memtable_bytes,
            },
            free_bytes_min: settings.tuning.free_bytes_min,
        })?);
        let engine = store.engine().map_err(NodeError::Read)?;
        metrics.set_rows(&all_rows(&*engine).map_err(NodeError::Read)?);
        let tasks = TaskTracker::new();
        let topology = Topology::new(settings, &tasks)?;
        let misplaced = misplaced(&*engine, &topology, &settings.name).map_err(NodeError::Read)?;
        metrics.misplaced_rows.store(misplaced, Relaxed);
        drop(engine);
        let (writer, thread) =
            Writer::start(Arc::clone(&store), Arc::clone(&metrics)).map_err(NodeError::Thread)?;
        Ok(Arc::new(Self {
            name: settings.name.clone(),
            store,
            metrics,
            writer,
            token: settings.token.clone(),
            backup_dir: settings.backup_dir.clone(),
            topology: RwLock::new(Arc::new(topology)),
            scans: Arc::new(Semaphore::new(SCANS)),
            backups: Arc::new(Semaphore::new(1)),
            draining: AtomicBool::new(false),
            tasks,
            writer_thread: std::sync::Mutex::new(Some(thread)),
        }))
    }

    /// Where backups asked for by clients go.
    pub(crate) fn backup_dir(&self) -> &std::path::Path {
        &self.backup_dir
    }

    /// Held while a backup or restore runs: a second one is refused.
    pub(crate) fn one_backup(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.backups).try_acquire_owned().map_err(|_| {
            Failure::new(
                Code::Overloaded,
                "A backup or restore of this node runs already: retry when it has ended",
            )
        })
    }

    /// The token that clients must show.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The ring as it is now.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the ring. The addresses of nodes may change at any time; a different membership
    /// needs the data to be moved, which is what backup and restore are for.
    pub fn set_peers(&self, settings: &Settings) -> Result<(), NodeError> {
        let topology = Topology::new(settings, &self.tasks)?;
        let mut slot = self
            .topology
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        slot.stop.cancel();
        *slot = Arc::new(topology);
        Ok(())
    }

    /// From now on requests are refused with `shutting_down`.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Whether the node is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Ends the links and waits until every queued write is on disk.
    pub async fn stop(self: Arc<Self>) {
        self.drain();
        self.topology().stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(STOP_WITHIN, self.tasks.wait()).await;
        // The barrier is answered once everything queued before it is on disk.
        if let Ok(barrier) = self.writer.submit(Op::Barrier) {
            let _ = tokio::time::timeout(STOP_WITHIN, barrier).await;
        }
        let thread = self
            .writer_thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(self);
        if let Some(thread) = thread {
            // The thread ends when the last handle to it is gone, which may be a reply in flight.
            let deadline = Instant::now() + STOP_WITHIN;
            while !thread.is_finished() && Instant::now() < deadline {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }

    /// Handles the text of one frame.
    pub fn handle(self: &Arc<Self>, text: &str, session: &mut Session) -> Handled {
        let started = Instant::now();
        let Some(envelope) = Envelope::parse(text) else {
            self.metrics.invalid.fetch_add(1, Relaxed);
            return Handled::Now(reply::invalid_json());
        };
        let id = envelope.id();
        let action = match request::action(&envelope) {
            Ok(action) => action,
            Err(failure) => {
                self.metrics.invalid.fetch_add(1, Relaxed);
                return Handled::Now(reply::failure(id, &failure));
            }
        };
        let style = envelope.style(session.style);
        let id_length = id.len();
        match self.begin(&envelope, action, style, session) {
            Ok(Begun::Now(reply, write)) => {
                self.metrics.answered(
                    action,
                    !is_failure(&reply, id_length),
                    write,
                    started.elapsed(),
                );
                Handled::Now(reply)
            }
            Ok(Begun::Later {
                write,
                number,
                reply,
            }) => {
                let metrics = Arc::clone(&self.metrics);
                let reply = Box::pin(async move {
                    let reply = reply.await;
                    metrics.answered(
                        action,
                        !is_failure(&reply, id_length),
                        write,
                        started.elapsed(),
                    );
                    reply
                });
                Handled::Later(number, reply)
            }
            Err(failure) => {
                self.metrics
                    .answered(action, false, false, started.elapsed());
                Handled::Now(reply::failure(id, &failure))
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        envelope: &Envelope<'_>,
        action: usize,
        style: Style,
        session: &mut Session,
    ) -> Result<Begun, Failure> {
        if self.is_draining() {
            return Err(stopping());
        }
        let call = request::call(action, envelope.data)?;
        let id = envelope.id();
        let mut scope = call.scope();
        let topology = self.topology();
        if let Some(version) = envelope.forwarded {
            self.metrics.forwarded_here.fetch_add(1, Relaxed);
            topology.check_forwarded(&self.name, version, &call)?;
            scope = match scope {
                Scope::Partition(_) => scope,
                _ => Scope::Here,
            };
            return self.local(id, call, scope, style, session);
        }
        match scope {
            Scope::Here => self.local(id, call, scope, style, session),
            Scope::Partition(partition) => {
                let primary = topology.ring.primary(partition);
                if primary == self.name {
                    return self.local(id, call, scope, style, session);
                }
                let rest = topology.forwarded(
                    ACTIONS[action],
                    &data_to_forward(&call, envelope.data)?,
                    style,
                );
                let link = topology.link(primary)?;
                self.metrics.forwards.fetch_add(1, Relaxed);
                let sent = link.send(rest);
                let (write, number) = begin_write(&call, scope, session);
                let id = id.to_owned();
                let metrics = Arc::clone(&self.metrics);
                Ok(Begun::later(write, number, async move {
                    match sent.await {
                        Ok(rest) => reply::with_id(&id, &rest),
                        Err(failure) => {
                            metrics.forwards_failed.fetch_add(1, Relaxed);
                            reply::failure(&id, &failure)
                        }
                    }
                }))
            }
            Scope::Everywhere if topology.links.is_empty() => {
                self.local(id, call, scope, style, session)
            }
            Scope::Everywhere => self.everywhere(&topology, envelope, action, call, style, session),
        }
    }

    /// Asks all nodes, this one included, and merges their answers.
    fn everywhere(
        self: &Arc<Self>,
        topology: &Arc<Topology>,
        envelope: &Envelope<'_>,
        action: usize,
        call: Call,
        style: Style,
        session: &mut Session,
    ) -> Result<Begun, Failure> {
        let id = envelope.id().to_owned();
        let plan = merge::plan(&call, envelope.data)?;
        let mut parts: Vec<(String, String)> = Vec::new();
        match &call {
            Call::Write(Op::Insert { rows, .. }) => {
                let mut by_node: BTreeMap<&str, Vec<&NewRow>> = BTreeMap::new();
                for row in rows {
                    let partition = crate::keys::row_partition(&row.key)
                        .ok_or_else(|| Failure::bad_request("Invalid row: it has no partition"))?;
                    by_node
                        .entry(topology.ring.primary(partition))
                        .or_default()
                        .push(row);
                }
                for (node, rows) in by_node {
                    parts.push((node.to_owned(), rows_as_data(&rows, true)?));
                }
            }
            _ => {
                for node in topology.ring.nodes() {
                    parts.push((node.name.clone(), plan.data.clone()));
                }
            }
        }
        // This node's own part must see what this session wrote before.
        let mut own_session = Session::default();
        if session.must_wait(Scope::Everywhere) {
            own_session.begin_write(Scope::Everywhere);
        }
        let (write, number) = begin_write(&call, Scope::Everywhere, session);
        let mut replies: Vec<(String, Reply)> = Vec::with_capacity(parts.len());
        for (node, data) in parts {
            if node == self.name {
                let raw = RawValue::from_string(data)
                    .map_err(|_| Failure::bad_request("Invalid data: not JSON"))?;
                let here = request::call(action, Some(&raw))?;
                let reply: Reply =
                    match self.local("0", here, Scope::Here, Style::Numbers, &mut own_session)? {
                        Begun::Now(reply, _) => Box::pin(std::future::ready(reply)),
                        Begun::Later { reply, .. } => reply,
                    };
                replies.push((node, reply));
            } else {
                let rest = topology.forwarded(ACTIONS[action], &data, Style::Numbers);
                let sent = topology.link(&node)?.send(rest);
                self.metrics.forwards.fetch_add(1, Relaxed);
                let metrics = Arc::clone(&self.metrics);
                replies.push((
                    node,
                    Box::pin(async move {
                        match sent.await {
                            Ok(rest) => reply::with_id("0", &rest),
                            Err(failure) => {
                                metrics.forwards_failed.fetch_add(1, Relaxed);
                                reply::failure("0", &failure)
                            }
                        }
                    }),
                ));
            }
        }
        let ring = Arc::clone(topology);
        Ok(Begun::later(write, number, async move {
            let (names, replies): (Vec<_>, Vec<_>) = replies.into_iter().unzip();
            let replies = futures_util::future::join_all(replies).await;
            merge::merge(&id, &call, &plan, &ring.ring, &names, &replies, style)
                .unwrap_or_else(|failure| reply::failure(&id, &failure))
        }))
    }

    /// Carries a call out on this node's own data.
    fn local(
        self: &Arc<Self>,
        id: &str,
        call: Call,
        scope: Scope,
        style: Style,
        session: &mut Session,
    ) -> Result<Begun, Failure> {
        match call {
            Call::Write(op) => {
                if matches!(&op, Op::Insert { rows, .. } if rows.is_empty()) {
                    return Ok(Begun::Now(
                        reply::outcome(
                            id,
                            &Outcome::Inserted {
                                table: "",
                                ids: Vec::new(),
                                many: true,
                            },
                            style,
                        ),
                        true,
                    ));
                }
                let answer = self.writer.submit(op)?;
                let number = session.begin_write(scope);
                let id = id.to_owned();
                Ok(Begun::later(true, Some(number), async move {
                    match settled(answer.await) {
                        Ok(outcome) => reply::outcome(&id, &outcome, style),
                        Err(failure) => reply::failure(&id, &failure),
                    }
                }))
            }
            Call::Backup => {
                let node = Arc::clone(self);
                let id = id.to_owned();
                Ok(Begun::later(false, None, async move {
                    match node.client_backup().await {
                        Ok(path) => reply::success(&id, |out| {
                            reply::member(out, "path");
                            reply::text(out, &path.display().to_string());
                        }),
                        Err(failure) => reply::failure(&id, &failure),
                    }
                }))
            }
            call => {
                let blocking = call.may_block();
                if session.must_wait(scope) {
                    let node = Arc::clone(self);
                    let id = id.to_owned();
                    if !blocking {
                        let kept = id.clone();
                        let look = self
                            .writer
                            .look(move |view| node.read_from(Some(view), &id, &call, style))?;
                        return Ok(Begun::later(false, None, async move {
                            let answer = look.await.unwrap_or_else(|_| Err(stopping()));
                            answer.unwrap_or_else(|failure| reply::failure(&kept, &failure))
                        }));
                    }
                    let barrier = self.writer.submit(Op::Barrier)?;
                    return Ok(Begun::later(false, None, async move {
                        match settled(barrier.await) {
                            Ok(_) => node.read_aside(id, call, style).await,
                            Err(failure) => reply::failure(&id, &failure),
                        }
                    }));
                }
                if blocking {
                    let node = Arc::clone(self);
                    let id = id.to_owned();
                    return Ok(Begun::later(false, None, async move {
                        node.read_aside(id, call, style).await
                    }));
                }
                Ok(Begun::Now(self.read(id, &call, style)?, false))
            }
        }
    }
}

/// How many rows lie here although the ring has them elsewhere, where nobody finds them. Looked for
/// only when the ring is not the one that the store was last used with.
fn misplaced(engine: &dyn Engine, topology: &Topology, own: &str) -> Result<u64, Failure> {
    let key = b"ring".to_vec();
    let last = engine.get(Space::Meta, &key)?;
    if last.is_some_and(|last| *last == *topology.version.as_bytes()) {
        return Ok(0);
    }
    let mut misplaced = 0;
    engine.scan(Space::Rows, &[], &mut |key, _| {
        let primary = row_partition(key).map(|partition| topology.ring.primary(partition));
        misplaced += u64::from(primary != Some(own));
        ControlFlow::Continue(())
    })?;
    if misplaced > 0 {
        tracing::error!(
            rows = misplaced,
            "the ring is not the one this data was written under: these rows are looked for on other nodes. Start all nodes with the former peers, back up, and restore into the new ring"
        );
    } else {
        let version = topology.version.clone().into_bytes();
        if let Err(error) = engine.commit(vec![(Space::Meta, key, Some(version))]) {
            // Only the search is repeated at the next start.
            tracing::warn!(%error, "cannot remember the ring");
        }
    }
    Ok(misplaced)
}

enum Begun {
    /// The reply, and whether it was to a write.
    Now(Vec<u8>, bool),
    Later {
        write: bool,
        number: Option<u64>,
        reply: Reply,
    },
}

impl Begun {
    fn later(
        write: bool,
        number: Option<u64>,
        reply: impl Future<Output = Vec<u8>> + Send + 'static,
    ) -> Self {
        Self::Later {
            write,
            number,
            reply: Box::pin(reply),
        }
    }
}

/// What the primary is to be sent: rows with the key that decided where they go.
fn data_to_forward(call: &Call, raw: Option<&RawValue>) -> Result<String, Failure> {
    match call {
        Call::Write(Op::Insert { rows, many }) => {
            rows_as_data(&rows.iter().collect::<Vec<_>>(), *many)
        }
        Call::Write(Op::Upsert { row, given }) => upsert_as_data(row, given),
        _ => Ok(raw.map_or("{}", RawValue::get).to_owned()),
    }
}

fn begin_write(call: &Call, scope: Scope, session: &mut Session) -> (bool, Option<u64>) {
    let write = call.is_write();
    (write, write.then(|| session.begin_write(scope)))
}

fn settled(answer: Result<Answer, tokio::sync::oneshot::error::RecvError>) -> Answer {
    answer.unwrap_or_else(|_| Err(stopping()))
}

/// Whether a reply to a request with an id of this length says that it failed.
fn is_failure(reply: &[u8], id: usize) -> bool {
    let flag = b"{\"request_id\":".len() + id;
    reply
        .get(flag..)
        .is_some_and(|rest| rest.starts_with(b",\"success\":false"))
}
