//! What another host has told of itself; pure.

use std::{collections::HashMap, sync::Arc};

use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::{fleet::v1 as fleet, host::v1 as wire};

use super::{
    picture::{HostPicture, Kept, Link},
    wire as convert,
};
use crate::{supervisor::Table, worker::States};

/// Processes of one host; more than any has. What is beyond falls away.
const PROCESSES_MAX: usize = 100_000;

/// What one host has told.
#[derive(Debug)]
pub struct Seen {
    name: Arc<str>,
    link: Link,
    instance: Arc<str>,
    revision: u64,
    heard_at: i64,
    view: Option<Arc<fleet::Host>>,
    table: Arc<Table>,
    workers: Arc<States>,
    kept: Arc<HashMap<ProcessName, Kept>>,
    specs: HashMap<ProcessName, Arc<ProcessSpec>>,
}

/// What an update tells that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// The first update of a stream must be a snapshot.
    #[error("the host told what changed before it told what there is")]
    NoSnapshot,
    /// Revisions rise within a life of an agent.
    #[error("the host went back from revision {0} to {1}")]
    Backwards(u64, u64),
    /// A process that cannot be read.
    #[error("the host told of a process that cannot be read: {0:?}")]
    Process(String),
}

impl Seen {
    /// A host that has not been heard yet.
    pub fn new(name: Arc<str>, now: i64) -> Self {
        Self {
            name,
            link: Link::Down {
                since: now,
                why: "it has not been heard yet".to_owned(),
            },
            instance: "".into(),
            revision: 0,
            heard_at: 0,
            view: None,
            table: Arc::default(),
            workers: Arc::default(),
            kept: Arc::default(),
            specs: HashMap::new(),
        }
    }

    /// Takes an update in. `first`: it is the first of its stream. `now` is in milliseconds since 1970.
    pub fn take(
        &mut self,
        first: bool,
        now: i64,
        update: wire::HostUpdate,
    ) -> Result<(), Nonsense> {
        if update.snapshot {
            self.table = Arc::default();
            self.workers = Arc::default();
            self.kept = Arc::default();
            self.specs.clear();
            self.instance = update.instance.as_str().into();
        } else if first {
            return Err(Nonsense::NoSnapshot);
        } else if update.revision < self.revision {
            return Err(Nonsense::Backwards(self.revision, update.revision));
        }
        if !update.processes.is_empty() || !update.removed.is_empty() {
            let table = Arc::make_mut(&mut self.table);
            let workers = Arc::make_mut(&mut self.workers);
            let kept = Arc::make_mut(&mut self.kept);
            for name in &update.removed {
                if let Ok(name) = name.parse::<ProcessName>() {
                    table.remove(&name);
                    workers.remove(&name);
                    kept.remove(&name);
                    self.specs.remove(&name);
                }
            }
            for mut told in update.processes {
                let view = told.view.take().unwrap_or_default();
                let bad = || Nonsense::Process(view.name.clone());
                let name: ProcessName = view.name.parse().map_err(|_| bad())?;
                if !told.spec.is_empty() {
                    let spec: ProcessSpec =
                        serde_json::from_slice(&told.spec).map_err(|_| bad())?;
                    self.specs.insert(name.clone(), Arc::new(spec));
                }
                let spec = self.specs.get(&name).ok_or_else(bad)?;
                if table.len() >= PROCESSES_MAX {
                    break;
                }
                let status =
                    convert::read_process(&view, &told, Arc::clone(spec)).ok_or_else(bad)?;
                table.insert(name.clone(), Arc::new(status));
                let entry = Kept {
                    sessions: told.sessions as usize,
                    deposits: told
                        .deposits
                        .into_iter()
                        .filter_map(convert::read_deposit)
                        .collect(),
                    rss_bytes: view.rss_bytes,
                };
                kept.insert(name.clone(), entry);
                match told.worker {
                    Some(worker) => {
                        workers.insert(name, Arc::new(convert::read_worker(worker)));
                    }
                    None => {
                        workers.remove(&name);
                    }
                }
            }
        }
        if let Some(view) = update.host {
            self.view = Some(Arc::new(view));
        }
        self.revision = update.revision;
        self.heard_at = now;
        self.link = Link::Up;
        Ok(())
    }

    /// It is not heard any more: what it told stays, marked.
    pub fn lose(&mut self, now: i64, why: &str) {
        let since = match &self.link {
            Link::Down { since, .. } => *since,
            _ => now,
        };
        self.link = Link::Down {
            since,
            why: why.to_owned(),
        };
    }

    /// As the coordinator sees it.
    pub fn picture(&self) -> HostPicture {
        HostPicture {
            name: Arc::clone(&self.name),
            link: self.link.clone(),
            instance: Arc::clone(&self.instance),
            revision: self.revision,
            heard_at: self.heard_at,
            view: self.view.clone(),
            table: Arc::clone(&self.table),
            workers: Arc::clone(&self.workers),
            kept: Arc::clone(&self.kept),
        }
    }
}
