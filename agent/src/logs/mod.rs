//! The processes' output: one file a process, written by the process itself (`O_APPEND`), read and
//! rotated by the agent. No line passes through the agent, so none is lost with it.
//!
//! ```text
//! DIR/logs/tanako.0.log          written to; its head is punched out once it is safe elsewhere
//! DIR/logs/tanako.0.log.12.zst   older, compressed; `zstd -dc` reads it
//! ```
//!
//! - `file`: one live file, what is counted and remembered of it.
//! - `rotate`: how its head becomes a compressed file without losing or doubling a line.
//! - `read`: its last lines, and following it.
//! - `store`: all of them, and the thread that tends them: once a second, twenty times a second
//!   those that grow fast.
//!
//! Positions in a log are *logical*: they only grow. A position minus the file's shift is an offset
//! in the file.

mod file;
mod read;
mod rotate;
mod store;

pub use file::LogFile;
pub(crate) use file::Resume;
pub use read::{Follow, From, Line, LogError};
pub use store::Logs;
