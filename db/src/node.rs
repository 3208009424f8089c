//! The node: answers requests from its own store, passes on what belongs to others, and puts
//! answers together that need all nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde_json::value::RawValue;
use tanako_fleet::ring::{Ring, RingNode};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, Settings, Token};
use crate::engine::View;
use crate::failure::{Code, Failure};
use crate::merge;
use crate::metrics::Metrics;
use crate::peer::{Link, Peer};
use crate::query::Path;
use crate::read::{self, all_rows, rows_of};
use crate::reply;
use crate::request::{self, ACTIONS, Call, Envelope, Scope, rows_as_data, upsert_as_data};
use crate::row::Style;
use crate::schema::value::now;
use crate::schema::{self, TABLES, Table};
use crate::store::{Store, StoreError, StoreOptions};
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

/// The ring and the ways to its other nodes; replaced as a whole.
pub struct Topology {
    /// Which node holds what.
    pub ring: Ring,
    /// Its version as it is sent.
    version: String,
    links: BTreeMap<String, Link>,
    urls: BTreeMap<String, String>,
    stop: CancellationToken,
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
    scans: Arc<Semaphore>,
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
        drop(engine);
        let (writer, thread) =
            Writer::start(Arc::clone(&store), Arc::clone(&metrics)).map_err(NodeError::Thread)?;
        let tasks = TaskTracker::new();
        let topology = Topology::new(settings, &tasks)?;
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
        match self.begin(&envelope, action, style, session) {
            Ok(Begun::Now(reply, write)) => {
                self.metrics
                    .answered(action, !is_failure(&reply), write, started.elapsed());
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
                    metrics.answered(action, !is_failure(&reply), write, started.elapsed());
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

    /// Runs a read that may take long where it holds nobody up.
    async fn read_aside(self: Arc<Self>, id: String, call: Call, style: Style) -> Vec<u8> {
        let Ok(permit) = Arc::clone(&self.scans).acquire_owned().await else {
            return reply::failure(&id, &stopping());
        };
        let kept = id.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            self.read(&id, &call, style)
                .unwrap_or_else(|failure| reply::failure(&id, &failure))
        });
        done.await.unwrap_or_else(|_| {
            reply::failure(
                &kept,
                &Failure::new(Code::Storage, "Storage failed: the read was given up"),
            )
        })
    }

    fn read(&self, id: &str, call: &Call, style: Style) -> Result<Vec<u8>, Failure> {
        self.read_from(None, id, call, style)
    }

    /// Reads from the view, or from the store as it is now.
    fn read_from(
        &self,
        given: Option<&dyn View>,
        id: &str,
        call: &Call,
        style: Style,
    ) -> Result<Vec<u8>, Failure> {
        match call {
            Call::Ping => Ok(reply::success(id, |out| {
                reply::boolean(out, "pong", true);
                reply::member(out, "timestamp");
                reply::text(out, &now());
            })),
            Call::ListTables => Ok(reply::success(id, |out| {
                reply::member(out, "tables");
                let names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
                out.extend(serde_json::to_vec(&names).unwrap_or_default());
            })),
            Call::ClusterStats => Ok(reply::success(id, |out| {
                reply::member(out, "cluster");
                out.extend(self.cluster().to_string().into_bytes());
            })),
            Call::Vacuum => {
                self.store.engine()?.vacuum()?;
                Ok(reply::success(id, |_| {}))
            }
            Call::TableInfo(table) => {
                let rows = rows_of(&*self.store.engine()?, table)?;
                Ok(reply::success(id, |out| {
                    reply::member(out, "info");
                    out.extend(table_info(table, rows).to_string().into_bytes());
                }))
            }
            Call::Stats => {
                let stats = self.stats()?;
                Ok(reply::success(id, |out| {
                    reply::member(out, "stats");
                    out.extend(stats.to_string().into_bytes());
                }))
            }
            Call::Select(select) => {
                let view = self.view(given, &select.filter.path())?;
                let stored = read::select(view.as_view(), select)?;
                let table = select.filter.table();
                let mut result = Ok(());
                let reply = reply::success(id, |out| {
                    result = reply::rows(out, table, &stored, select.columns.as_deref(), style);
                });
                result.map(|()| reply)
            }
            Call::Find(filter) => {
                let view = self.view(given, &filter.path())?;
                let stored = read::first(view.as_view(), filter)?;
                let mut result = Ok(());
                let reply = reply::success(id, |out| {
                    result = reply::row(out, "row", filter.table(), stored.as_deref(), style);
                });
                result.map(|()| reply)
            }
            Call::Count(filter) => {
                let view = self.view(given, &filter.path())?;
                let count = read::count(view.as_view(), filter)?;
                Ok(reply::success(id, |out| reply::number(out, "count", count)))
            }
            Call::Exists(filter) => {
                let view = self.view(given, &filter.path())?;
                let exists = read::first(view.as_view(), filter)?.is_some();
                Ok(reply::success(id, |out| {
                    reply::boolean(out, "exists", exists)
                }))
            }
            Call::Write(_) | Call::Backup => Err(Failure::bad_request("Not a read")),
        }
    }

    /// A single row is read as it is now; anything longer from one moment.
    fn view<'v>(&self, given: Option<&'v dyn View>, path: &Path) -> Result<ReadView<'v>, Failure> {
        if let Some(view) = given {
            return Ok(ReadView::Given(view));
        }
        let engine = self.store.engine()?;
        Ok(match path {
            Path::Row(_) => ReadView::Live(engine),
            _ => {
                let snapshot = engine.snapshot();
                ReadView::Frozen {
                    snapshot,
                    _engine: engine,
                }
            }
        })
    }

    fn stats(&self) -> Result<serde_json::Value, Failure> {
        let engine = self.store.engine()?;
        let mut tables = serde_json::Map::new();
        let mut total = 0;
        for table in TABLES {
            let rows = rows_of(&*engine, table)?;
            total += rows;
            tables.insert(table.name.to_owned(), serde_json::json!({ "rows": rows }));
        }
        let totals = self.metrics.totals();
        Ok(serde_json::json!({
            "tables": tables,
            "total_rows": total,
            "table_count": TABLES.len(),
            "bytes_on_disk": engine.disk_bytes(),
            "reads": totals.reads,
            "writes": totals.writes,
            "errors": totals.errors,
        }))
    }

    fn cluster(&self) -> serde_json::Value {
        let topology = self.topology();
        let shares = topology.ring.shares();
        let nodes: Vec<_> = topology
            .ring
            .nodes()
            .iter()
            .map(|node| {
                let own = node.name == self.name;
                let up = own || topology.links.get(&node.name).is_some_and(Link::is_up);
                serde_json::json!({
                    "name": node.name,
                    "url": topology.urls.get(&node.name),
                    "weight": node.weight,
                    "share": shares.get(node.name.as_str()),
                    "self": own,
                    "up": up,
                })
            })
            .collect();
        serde_json::json!({
            "node": self.name,
            "ring_version": topology.version,
            "node_count": nodes.len(),
            "nodes_up": nodes.iter().filter(|node| node["up"] == true).count(),
            "nodes": nodes,
            "uptime_seconds": self.metrics.uptime().as_secs(),
            "forwards": self.metrics.forwards.load(Relaxed),
        })
    }
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

enum ReadView<'v> {
    Given(&'v dyn View),
    Live(Arc<dyn crate::engine::Engine>),
    Frozen {
        snapshot: Box<dyn View + Send + Sync>,
        /// Keeps the engine counted as in use while the snapshot lives.
        _engine: Arc<dyn crate::engine::Engine>,
    },
}

impl ReadView<'_> {
    fn as_view(&self) -> &dyn View {
        match self {
            Self::Given(view) => *view,
            Self::Live(engine) => &**engine,
            Self::Frozen { snapshot, .. } => &**snapshot,
        }
    }
}

impl Call {
    /// Whether it may read more than a single row.
    fn may_block(&self) -> bool {
        match self {
            Self::Select(select) => !matches!(select.filter.path(), Path::Row(_)),
            Self::Find(filter) | Self::Exists(filter) => {
                !matches!(filter.path(), Path::Row(_) | Path::Directory(_))
            }
            Self::Count(filter) => !(filter.is_empty() || matches!(filter.path(), Path::Row(_))),
            Self::Vacuum => true,
            _ => false,
        }
    }
}

impl Topology {
    fn new(settings: &Settings, tasks: &TaskTracker) -> Result<Self, NodeError> {
        let mut nodes: Vec<RingNode> = settings
            .peers
            .iter()
            .map(|(name, _)| RingNode::new(name.as_str()))
            .collect();
        if !nodes.iter().any(|node| node.name == settings.name) {
            nodes.push(RingNode::new(settings.name.as_str()));
        }
        let ring = Ring::new(&nodes, [])?;
        let stop = CancellationToken::new();
        let mut links = BTreeMap::new();
        let mut urls = BTreeMap::new();
        for (name, url) in &settings.peers {
            urls.insert(name.clone(), url.to_string());
            if *name != settings.name {
                let peer = Peer {
                    name: name.clone(),
                    url: url.clone(),
                    token: settings.token.clone(),
                };
                let (link, task) = Link::new(peer, stop.clone());
                tasks.spawn(task);
                links.insert(name.clone(), link);
            }
        }
        let version = format!("{:016x}", ring.version());
        Ok(Self {
            ring,
            version,
            links,
            urls,
            stop,
        })
    }

    fn link(&self, name: &str) -> Result<&Link, Failure> {
        self.links.get(name).ok_or_else(|| {
            Failure::new(
                Code::Unavailable,
                format!("Node {name} has no address: check the peers"),
            )
        })
    }

    /// A request to another node, without its request id.
    fn forwarded(&self, action: &str, data: &str, style: Style) -> String {
        let snowflakes = if style == Style::Strings {
            ",\"snowflakes\":\"string\""
        } else {
            ""
        };
        format!(
            "\"action\":\"{action}\",\"forwarded\":\"{}\"{snowflakes},\"data\":{data}}}",
            self.version
        )
    }

    /// A forwarded request is answered here or not at all: it never travels on.
    fn check_forwarded(&self, own: &str, version: &RawValue, call: &Call) -> Result<(), Failure> {
        let differs = || {
            Failure::new(
                Code::RingChanged,
                "The nodes do not agree on the ring just now: retry after a pause; if it stays, give all nodes the same peers",
            )
        };
        if version.get().trim_matches('"') != self.version {
            return Err(differs());
        }
        let here = |partition| self.ring.primary(partition) == own;
        let fits = match call {
            Call::Write(Op::Insert { rows, .. }) => rows
                .iter()
                .all(|row| crate::keys::row_partition(&row.key).is_some_and(here)),
            call => match call.scope() {
                Scope::Partition(partition) => here(partition),
                _ => true,
            },
        };
        if fits { Ok(()) } else { Err(differs()) }
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

fn is_failure(reply: &[u8]) -> bool {
    // The request id comes first and may be anything, but it is short: look for the flag itself.
    reply
        .windows(16)
        .take(512)
        .any(|window| window == b"\"success\":false,")
}

fn table_info(table: &'static Table, rows: u64) -> serde_json::Value {
    let columns: Vec<_> = table
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            serde_json::json!({
                "name": column.name,
                "type": column.kind.name(),
                "nullable": column.nullable,
                "primary_key": at == schema::KEY,
                "indexed": column.indexed,
                "default": column.declared_default().and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok()),
            })
        })
        .collect();
    serde_json::json!({
        "name": table.name,
        "primary_key": table.key().name,
        "columns": columns,
        "row_count": rows,
    })
}
