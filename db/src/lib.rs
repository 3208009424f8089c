//! The Tanako guild database node.
//!
//! A node speaks the database protocol over WebSocket (see the README of this folder), keeps its
//! share of the guilds on the embedded engine, and passes on what belongs to other nodes.
//!
//! ```text
//! server ─▶ connection ─▶ node ─┬─▶ request, query: checked against the schema
//!                               ├─▶ read ───────────▶ engine (snapshots)
//!                               ├─▶ writer ─▶ write ─▶ overlay ─▶ engine (one sync a group)
//!                               └─▶ peer ─▶ another node; merge puts answers together
//! ```

pub mod backup;
pub mod config;
mod connection;
pub mod engine;
pub mod failure;
mod keys;
mod local;
mod merge;
pub mod metrics;
pub mod node;
mod overlay;
mod peer;
mod query;
mod read;
mod reply;
mod request;
pub mod row;
pub mod schema;
pub mod server;
pub mod store;
pub mod topology;
pub mod worker;
mod write;
mod writer;
