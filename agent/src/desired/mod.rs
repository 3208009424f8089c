//! The desired state: the spec, what the operator stopped, which set of processes serves each bot, and
//! what still runs by an older spec; in one versioned document of the store, changed by
//! compare-and-set only.

mod document;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

pub use document::{Document, Generations, Written};
use tanako_fleet::{
    ProcessName, ProcessSpec, Spec,
    spec::{self, Generation},
};
use tanako_store::{Revision, Store, StoreError, Txn};

use crate::operations::ledger::{decode, encode};

const KEY: &str = "desired";
/// Largest spec accepted, in bytes. A fleet of a thousand bots needs a third of it.
pub const SPEC_BYTES_MAX: usize = 512 * 1024;

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
    /// Of this host. Specs leave open where they are.
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
    /// Nothing is wanted, or nobody knows yet what is.
    pub fn empty(places: spec::Places) -> Self {
        Self {
            document: Document::default(),
            revision: 0,
            spec: None,
            processes: Arc::default(),
            by_name: Arc::default(),
            places,
        }
    }

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
        desired.resolve().map_err(DesiredError::Spec)?;
        Ok(desired)
    }

    /// The same with another document of the next version, not yet committed. Only for what leaves
    /// the specs and the sets of processes alone.
    pub fn with(&self, change: impl FnOnce(&mut Document)) -> Self {
        let mut next = self.clone();
        change(&mut next.document);
        next.document.version += 1;
        next
    }

    /// The same with a document that is resolved anew, not yet committed.
    pub fn with_document(
        &self,
        change: impl FnOnce(&mut Document, &spec::Places) -> Result<(), spec::SpecError>,
    ) -> Result<Self, spec::SpecError> {
        let mut next = self.clone();
        change(&mut next.document, &spec::Places::anywhere())?;
        next.document.version += 1;
        next.resolve()?;
        Ok(next)
    }

    /// The same with another spec that counts at once, not yet committed. `sets` says how the set of
    /// processes of a bot is laid out where it is not as the spec says.
    pub fn with_spec(
        &self,
        written: &Written,
        sets: &BTreeMap<String, Generation>,
        no_start: bool,
    ) -> Result<Self, spec::SpecError> {
        let known: BTreeSet<ProcessName> = self
            .processes
            .iter()
            .map(|spec| spec.name.clone())
            .collect();
        let mut next = self.with_document(|document, _| {
            document.toml.clone_from(&written.toml);
            document.file_name.clone_from(&written.file_name);
            document.release_all();
            for (bot, set) in sets {
                document.lay_out(bot, *set);
            }
            Ok(())
        })?;
        let names: BTreeSet<ProcessName> = next
            .processes
            .iter()
            .map(|spec| spec.name.clone())
            .collect();
        let stopped = &mut next.document.stopped;
        stopped.retain(|name| names.contains(name));
        if no_start {
            stopped.extend(names.difference(&known).cloned());
        }
        Ok(next)
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

    /// The spec as the operator wrote it.
    pub fn written(&self) -> Written {
        Written {
            toml: self.document.toml.clone(),
            file_name: self.document.file_name.clone(),
        }
    }

    /// The set of processes that serves a bot.
    pub fn active(&self, bot: &str) -> Option<Generation> {
        self.generations(bot).map(|generations| generations.active)
    }

    /// The sets of processes of a bot.
    pub fn generations(&self, bot: &str) -> Option<Generations> {
        self.document.generations_of(bot, self.spec.as_deref()?)
    }

    /// Whether the process belongs to a set that does not serve yet.
    pub fn is_next(&self, name: &ProcessName) -> bool {
        self.generations(name.group())
            .and_then(|generations| generations.next)
            .is_some_and(|next| next.number == Generation::number_of(name))
    }

    fn resolve(&mut self) -> Result<(), spec::SpecError> {
        let resolved = self.document.resolve(&spec::Places::anywhere())?;
        // What did not change keeps its place in memory.
        let processes: Vec<Arc<ProcessSpec>> = resolved
            .processes
            .into_iter()
            .map(|process| match self.by_name.get(&process.name) {
                Some(known) if **known == process => Arc::clone(known),
                _ => Arc::new(process),
            })
            .collect();
        let named = processes
            .iter()
            .map(|spec| (spec.name.clone(), Arc::clone(spec)));
        self.by_name = Arc::new(named.collect());
        self.processes = Arc::new(processes);
        self.spec = resolved.spec.map(Arc::new);
        Ok(())
    }

    /// The processes by name.
    pub fn by_name(&self) -> BTreeMap<&ProcessName, &Arc<ProcessSpec>> {
        self.processes
            .iter()
            .map(|spec| (&spec.name, spec))
            .collect()
    }

    /// Where backups go on this host.
    pub fn backup_dir(&self) -> Option<String> {
        self.spec.as_ref().map(|spec| self.places.backup_dir(spec))
    }

    /// Name of the fleet.
    pub fn fleet(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.name)
    }
}
