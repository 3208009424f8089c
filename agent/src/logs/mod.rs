//! The processes' output: one file a process, written by the process itself, read and rotated by
//! the agent.

mod store;

pub use store::{Follow, From, Line, LogError, Logs};
