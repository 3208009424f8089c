//! One shard: its socket, its session, its guilds.
//!
//! ```text
//!            ┌────────── lost (delay by strategy) ───────────┐
//!            ▼                                               │
//!  CONNECTING ── hello, no session ─► WAITING_PERMIT ─► IDENTIFYING ─► READY
//!            └── hello, session ────► RESUMING ──────────────────────► READY
//!  any ── close 4004, 4010-4014 ─► FATAL     any ── stand down ─► closed with 4000, STANDBY
//!  STANDBY ── take over ─► CONNECTING
//! ```
//!
//! A new twilight `Shard` is made for every connection. twilight reconnects by itself after each loss,
//! without backoff when a connection succeeds and closes at once, and forgets a resume URL after one
//! failed try; here [`resume`] decides on each of these, and a shard that is closing can never steal the
//! session back from its successor by reconnecting.

mod connection;
mod dispatch;
pub mod duty;
pub mod envelope;
pub mod guilds;
pub mod resume;
pub mod seen;
pub mod seq;
pub mod set;
pub mod status;
pub mod task;

pub use status::{ShardStatus, Stage};
