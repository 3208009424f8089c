//! The Tanako bot: one process that holds one or more shards of one application.
//!
//! ```text
//!            agent (unix socket, optional)
//!               ▲ reports, deposits     │ sessions, permits, drain
//!               │                       ▼
//!   app ── starts ──► agent::link    identify::Gate
//!    │                                  │ permit
//!    ├──► shard::task (one a shard) ◄───┘        twilight-gateway: the socket
//!    │        │ interaction, seq ticket
//!    │        ▼
//!    │    interactions::guard ──► commands::* ──► database, rest
//!    └──► activity (flush), registrar (once)
//! ```
//!
//! Pure decisions live in [`shard::resume`], [`shard::duty`], [`shard::seq`], [`shard::guilds`],
//! [`database::cache`] and [`settings`]; everything else carries them out. [`app`] lists every task and its channels.

pub mod activity;
pub mod agent;
pub mod app;
pub mod args;
pub mod backoff;
pub mod cases;
pub mod commands;
pub mod config;
pub mod database;
pub mod identify;
pub mod interactions;
pub mod metrics;
pub mod process;
pub mod questions;
pub mod rest;
pub mod services;
pub mod settings;
pub mod shard;
pub mod token;
