//! Answers from this node's own data.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::{Engine, View};
use crate::failure::{Code, Failure};
use crate::node::Node;
use crate::peer::Link;
use crate::query::Path;
use crate::read::{self, rows_of};
use crate::reply;
use crate::request::Call;
use crate::row::Style;
use crate::schema::value::now;
use crate::schema::{self, TABLES, Table};
use crate::writer::stopping;

impl Node {
    /// Runs a read that may take long where it holds nobody up.
    pub(crate) async fn read_aside(
        self: Arc<Self>,
        id: String,
        call: Call,
        style: Style,
    ) -> Vec<u8> {
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

    pub(crate) fn read(&self, id: &str, call: &Call, style: Style) -> Result<Vec<u8>, Failure> {
        self.read_from(None, id, call, style)
    }

    /// Reads from the view, or from the store as it is now.
    pub(crate) fn read_from(
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
                    reply::boolean(out, "exists", exists);
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
        if let Path::Row(_) = path {
            return Ok(ReadView::Live(engine));
        }
        let snapshot = engine.snapshot();
        Ok(ReadView::Frozen {
            snapshot,
            _engine: engine,
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

enum ReadView<'v> {
    Given(&'v dyn View),
    Live(Arc<dyn Engine>),
    Frozen {
        snapshot: Box<dyn View + Send + Sync>,
        /// Keeps the engine counted as in use while the snapshot lives.
        _engine: Arc<dyn Engine>,
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
    pub(crate) fn may_block(&self) -> bool {
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
