//! The desired state: the spec and what the operator stopped, in one versioned document of the
//! store, changed by compare-and-set only.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tanako_fleet::{ProcessName, ProcessSpec, Spec, spec};
use tanako_store::{Revision, Store, StoreError, Txn};

use crate::operations::ledger::{decode, encode};

const KEY: &str = "desired";
/// Largest spec accepted, in bytes. A fleet of a thousand bots needs a third of it.
pub const SPEC_BYTES_MAX: usize = 512 * 1024;

/// The document as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Rises with each change.
    pub version: u64,
    /// The spec as the operator wrote it; empty = none yet.
    pub toml: String,
    /// Name of its file, for messages.
    pub file_name: String,
    /// Processes that shall not run. All others of the spec shall.
    pub stopped: BTreeSet<ProcessName>,
}

/// The desired state and what follows from it.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The document.
    pub document: Document,
    /// Its revision in the store; 0 = it is not there yet.
    revision: Revision,
    /// The spec; `None` = there is none yet.
    pub spec: Option<Arc<Spec>>,
    /// Its processes, database nodes first.
    pub processes: Arc<Vec<Arc<ProcessSpec>>>,
    by_name: Arc<HashMap<ProcessName, Arc<ProcessSpec>>>,
    places: spec::Places,
}

/// Why the desired state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DesiredError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored cannot be read.
    #[error("the desired state in the store cannot be read")]
    Unreadable,
    /// The stored spec is no longer valid for this version of the agent.
    #[error("the stored spec is refused by this version of the agent")]
    Spec(#[source] spec::SpecError),
}

impl Desired {
    /// Reads the desired state.
    pub async fn load(store: &dyn Store, places: spec::Places) -> Result<Self, DesiredError> {
        let (document, revision) = match store.get(KEY).await? {
            None => (Document::default(), 0),
            Some(item) => {
                let document = decode(KEY, &item.value).ok_or(DesiredError::Unreadable)?;
                (document, item.mod_revision)
            }
        };
        let mut desired = Self {
            document,
            revision,
            spec: None,
            processes: Arc::default(),
            by_name: Arc::default(),
            places,
        };
        if !desired.document.toml.is_empty() {
            let spec = spec::parse(&desired.document.toml, &desired.document.file_name)
                .map_err(DesiredError::Spec)?;
            desired.set_processes(processes(&spec, &desired.places));
            desired.spec = Some(Arc::new(spec));
        }
        Ok(desired)
    }

    /// The same with another document of the next version, not yet committed.
    pub fn with(&self, change: impl FnOnce(&mut Document)) -> Self {
        let mut next = self.clone();
        change(&mut next.document);
        next.document.version += 1;
        next
    }

    /// The same with another spec, not yet committed.
    pub fn with_spec(&self, toml: &str, file_name: &str, parsed: Spec, no_start: bool) -> Self {
        let processes = processes(&parsed, &self.places);
        let known: BTreeSet<&ProcessName> = self.processes.iter().map(|spec| &spec.name).collect();
        let mut next = self.with(|document| {
            toml.clone_into(&mut document.toml);
            file_name.clone_into(&mut document.file_name);
            let names: BTreeSet<&ProcessName> = processes.iter().map(|spec| &spec.name).collect();
            document.stopped.retain(|name| names.contains(name));
            if no_start {
                document
                    .stopped
                    .extend(names.difference(&known).map(|name| (*name).clone()));
            }
        });
        next.set_processes(processes);
        next.spec = Some(Arc::new(parsed));
        next
    }

    /// Adds the replacement of `old` by this to a transaction.
    pub fn commit(&self, old: &Self, txn: Txn) -> Txn {
        txn.if_unchanged(KEY, old.revision)
            .put(KEY, encode(&self.document))
    }

    /// Remembers at which revision it was committed.
    pub fn committed(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Whether the process shall run.
    pub fn is_wanted(&self, name: &ProcessName) -> bool {
        !self.document.stopped.contains(name)
    }

    /// The spec of a process.
    pub fn process(&self, name: &ProcessName) -> Option<&Arc<ProcessSpec>> {
        self.by_name.get(name)
    }

    fn set_processes(&mut self, processes: Vec<Arc<ProcessSpec>>) {
        let named = processes
            .iter()
            .map(|spec| (spec.name.clone(), Arc::clone(spec)));
        self.by_name = Arc::new(named.collect());
        self.processes = Arc::new(processes);
    }

    /// Where backups go.
    pub fn backup_dir(&self) -> Option<String> {
        self.spec.as_ref().map(|spec| self.places.backup_dir(spec))
    }

    /// Name of the fleet.
    pub fn fleet(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }
}

/// The processes of the spec, each told to which fleet it belongs.
fn processes(spec: &Spec, places: &spec::Places) -> Vec<Arc<ProcessSpec>> {
    let mut processes = spec.processes(places);
    for process in &mut processes {
        process
            .env
            .insert("TANAKO_FLEET".to_owned(), spec.name.clone());
    }
    processes.into_iter().map(Arc::new).collect()
}
