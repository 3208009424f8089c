//! Whose orders count on this host: what [`tanako_fleet::orders`] decides, with its epoch on disk.
//!
//! The highest epoch that has given an order here is written down before the order is carried out: a
//! coordinator that was replaced, and does not know it, moves nothing here, not even after this agent's
//! restart.
//!
//! Revisions count within one store. The file also names the store: after a move to another one, whose
//! revisions may be lower, the epochs of the old one count no more. That holds nothing back for long: the
//! old store's coordinator ended with the move.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tanako_fleet::{
    ProcessName,
    orders::{Given, Late, Orders},
};
use tanako_proto::fleet::v1::Problem;

use super::OrderError;
use crate::tenure::Tenure;

/// Which orders count; clones are cheap and equal.
#[derive(Debug, Clone)]
pub struct Gate {
    tenure: Tenure,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    /// Of which store the epochs are.
    store: String,
    orders: Orders,
}

impl Gate {
    /// Reads the epoch that is kept in `directory` for `store`, a name without line breaks. One that cannot
    /// be read, and one of another store, count as none: the store fences what coordinators write in any
    /// case.
    pub fn open(directory: &Path, store: &str, tenure: Tenure) -> Self {
        let path = directory.join("epoch");
        let epoch = match std::fs::read_to_string(&path) {
            Ok(text) => read(&text, store).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "the epoch is not one of this store");
                0
            }),
            Err(_) => 0,
        };
        let state = State {
            path,
            store: store.to_owned(),
            orders: Orders::new(epoch),
        };
        Self {
            tenure,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.lock().orders.epoch()
    }

    /// Whether an order about this process was carried out in this epoch that is newer than `number`.
    pub fn is_newer(&self, process: &ProcessName, number: u64) -> bool {
        self.lock().orders.is_newer(process, number)
    }

    /// Lets what a coordinator of that epoch asks for pass, or says why not.
    pub fn pass_epoch(&self, epoch: u64) -> Result<(), OrderError> {
        self.pass(&Given {
            epoch,
            tenure: "",
            about: None,
        })
    }

    /// Lets an order pass, or says why not. Blocks for one write when the epoch is new.
    pub fn pass(&self, given: &Given<'_>) -> Result<(), OrderError> {
        let own = self.tenure.instance();
        let mut state = self.lock();
        state.orders.check(&own, given).map_err(|late| match late {
            Late::Epoch(seen) => OrderError::Stale {
                epoch: given.epoch,
                seen,
            },
            Late::Tenure => OrderError::Past,
            Late::Overtaken(process) => OrderError::Overtaken(process),
        })?;
        if given.epoch > state.orders.epoch() {
            write(&state.path, given.epoch, &state.store).map_err(|error| {
                let problem = Problem::new(
                    "no-space",
                    state.path.display().to_string(),
                    "the coordinator's epoch cannot be written down",
                );
                let problem = problem.cause(error.to_string());
                let hint = "free space on the disk of the data directory of this host";
                OrderError::Refused(Box::new(problem.hint(hint).retryable()))
            })?;
        }
        state.orders.passed(given);
        Ok(())
    }
}

fn read(text: &str, store: &str) -> Option<u64> {
    let (epoch, of) = text.trim_end().split_once(' ')?;
    if of == store {
        epoch.parse().ok()
    } else {
        None
    }
}

fn write(path: &Path, epoch: u64, store: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(format!("{epoch} {store}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The rename itself must be there after a power cut.
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path, store: &str) -> Gate {
        Gate::open(directory, store, Tenure::unbounded())
    }

    #[test]
    fn an_older_coordinator_is_refused_also_by_the_next_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = open(dir.path(), "embedded");
        assert_eq!((gate.epoch(), gate.pass_epoch(7)), (0, Ok(())));
        let stale = OrderError::Stale { epoch: 6, seen: 7 };
        assert_eq!(gate.pass_epoch(6), Err(stale.clone()));
        let next = open(dir.path(), "embedded");
        assert_eq!(next.pass_epoch(6), Err(stale));
        assert_eq!(next.pass_epoch(8), Ok(()));
        // Another store counts anew, however low.
        let moved = open(dir.path(), "etcd tanako/t/");
        assert_eq!((moved.epoch(), moved.pass_epoch(3)), (0, Ok(())));
        assert_eq!(open(dir.path(), "etcd tanako/t/").epoch(), 3);
        std::fs::write(dir.path().join("epoch"), "rubbish").expect("writes");
        assert_eq!(open(dir.path(), "embedded").epoch(), 0);
    }

    #[test]
    fn an_epoch_that_cannot_be_kept_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = open(&dir.path().join("missing"), "embedded");
        let refused = gate.pass_epoch(3).expect_err("nowhere to keep it");
        assert!(refused.is_retryable(), "{refused}");
        assert_eq!(gate.epoch(), 0);
    }
}
