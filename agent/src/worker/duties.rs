//! What each process does with its shards: told in its welcome, kept by the coordinator.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use tanako_proto::worker::v1::{Cut, Duty};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assignment {
    /// Active, warm or a shadow.
    pub duty: Duty,
    /// Which of the events are its own; unset = all.
    pub cut: Option<Cut>,
}

impl Default for Assignment {
    fn default() -> Self {
        Self {
            duty: Duty::Active,
            cut: None,
        }
    }
}

impl Assignment {
    /// Whether it may hold sessions: who stands by holds none before it is given some.
    pub fn holds_sessions(&self) -> bool {
        self.duty != Duty::Warm
    }
}

/// The duties of all processes; clones are cheap and equal. Whoever is not in it is active.
///
/// The agent fills it from the operations that are under way before the first worker can say hello.
#[derive(Debug, Clone, Default)]
pub struct Duties(Arc<RwLock<BTreeMap<String, Assignment>>>);

impl Duties {
    /// What this process does.
    pub fn of(&self, process: &str) -> Assignment {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(process)
            .copied()
            .unwrap_or_default()
    }

    /// Replaces all of them.
    pub fn replace(&self, all: BTreeMap<String, Assignment>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }
}
