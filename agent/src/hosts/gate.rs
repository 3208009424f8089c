//! Whose orders count on this host.
//!
//! A coordinator's epoch is the fencing revision of its office. The highest one that has given an order
//! here is kept on disk, before the order is carried out: a coordinator that was replaced, and does not
//! know it, moves nothing here, not even after this agent's restart. Within an epoch an order about a
//! process counts only if none with a higher number has been carried out: one that was held up on its
//! way does not undo what came after it.
//!
//! Revisions count within one store. The file also names the store: after a move to another one, whose
//! revisions may be lower, the epochs of the old one count no more. That holds nothing back for long: the
//! old store's coordinator ended with the move.

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1::Problem;

use super::OrderError;

/// Processes whose last order is remembered; far more than a host holds.
const PROCESSES_MAX: usize = 100_000;

/// The highest epoch seen; clones are cheap and equal.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    /// Of which store the epochs are.
    store: String,
    epoch: u64,
    /// Number of the last order about each process, in this epoch.
    last: HashMap<ProcessName, u64>,
}

impl Gate {
    /// Reads the epoch that is kept in `directory` for `store`, a name without line breaks. One that cannot
    /// be read, and one of another store, count as none: the store fences what coordinators write in any
    /// case.
    pub fn open(directory: &Path, store: &str) -> Self {
        let path = directory.join("epoch");
        let epoch = match std::fs::read_to_string(&path) {
            Ok(text) => read(&text, store).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "the epoch is not one of this store");
                0
            }),
            Err(_) => 0,
        };
        Self(Arc::new(Mutex::new(State {
            path,
            store: store.to_owned(),
            epoch,
            last: HashMap::new(),
        })))
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// Whether an order about this process was carried out in this epoch that is newer than `number`.
    pub fn is_newer(&self, process: &ProcessName, number: u64) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last.get(process).is_some_and(|last| *last > number)
    }

    /// Lets an order of `epoch` pass, or says why not. `about`: a process, and the number of the order.
    /// Blocks for one write when the epoch is new.
    pub fn pass(&self, epoch: u64, about: Option<(&ProcessName, u64)>) -> Result<(), OrderError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < state.epoch {
            return Err(OrderError::Stale {
                epoch,
                seen: state.epoch,
            });
        }
        if epoch > state.epoch {
            write(&state.path, epoch, &state.store).map_err(|error| {
                let problem = Problem::new(
                    "no-space",
                    state.path.display().to_string(),
                    "the coordinator's epoch cannot be written down",
                );
                let problem = problem.cause(error.to_string());
                let hint = "free space on the disk of the data directory of this host";
                OrderError::Refused(Box::new(problem.hint(hint).retryable()))
            })?;
            state.epoch = epoch;
            state.last.clear();
        }
        if let Some((process, number)) = about {
            if state.last.get(process).is_some_and(|last| *last > number) {
                return Err(OrderError::Overtaken(process.clone()));
            }
            if state.last.len() >= PROCESSES_MAX {
                state.last.clear();
            }
            state.last.insert(process.clone(), number);
        }
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

    #[test]
    fn an_older_coordinator_is_refused_also_by_the_next_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::open(dir.path(), "embedded");
        assert_eq!((gate.epoch(), gate.pass(7, None)), (0, Ok(())));
        let stale = OrderError::Stale { epoch: 6, seen: 7 };
        assert_eq!(gate.pass(6, None), Err(stale.clone()));
        let next = Gate::open(dir.path(), "embedded");
        assert_eq!(next.pass(6, None), Err(stale));
        assert_eq!(next.pass(8, None), Ok(()));
        // Another store counts anew, however low.
        let moved = Gate::open(dir.path(), "etcd tanako/t/");
        assert_eq!((moved.epoch(), moved.pass(3, None)), (0, Ok(())));
        assert_eq!(Gate::open(dir.path(), "etcd tanako/t/").epoch(), 3);
        std::fs::write(dir.path().join("epoch"), "rubbish").expect("writes");
        assert_eq!(Gate::open(dir.path(), "embedded").epoch(), 0);
    }

    #[test]
    fn a_late_order_does_not_undo_a_newer_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::open(dir.path(), "embedded");
        let (a, b) = (
            "x/0".parse().expect("a name"),
            "x/1".parse().expect("a name"),
        );
        assert_eq!(gate.pass(1, Some((&a, 5))), Ok(()));
        assert_eq!(gate.pass(1, Some((&a, 5))), Ok(()), "the same again");
        assert_eq!(gate.pass(1, Some((&b, 4))), Ok(()));
        assert_eq!(
            gate.pass(1, Some((&a, 4))),
            Err(OrderError::Overtaken(a.clone()))
        );
        assert!(gate.is_newer(&a, 4) && !gate.is_newer(&a, 5) && !gate.is_newer(&b, 4));
        // Another coordinator counts anew.
        assert_eq!(gate.pass(2, Some((&a, 1))), Ok(()));
    }

    #[test]
    fn an_epoch_that_cannot_be_kept_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::open(&dir.path().join("missing"), "embedded");
        let refused = gate.pass(3, None).expect_err("nowhere to keep it");
        assert!(refused.is_retryable(), "{refused}");
        assert_eq!(gate.epoch(), 0);
    }
}
