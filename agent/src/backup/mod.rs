//! Backup sets: one directory a set, one archive and one manifest a database node, and `set.json`
//! over all of them.
//!
//! A set is written under `LABEL.partial/` and gets its name only after every node has verified its
//! archive by reading it back and the set's own manifest is on disk: what has the name can be restored.
//!
//! - [`set`]: labels, listing, the set manifest.
//! - [`run`]: the jobs of the four operations, over the worker socket.

pub mod run;
pub mod set;

pub use run::{Job, JobEvent, JobOutcome};
