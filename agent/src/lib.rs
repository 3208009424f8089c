//! The Tanako agent: supervises the shard processes and database nodes of one host, and answers for
//! the fleet.
//!
//! [`app`] lists every task and its channels. Who owns what:
//! - [`supervisor`], [`logs`]: the processes and their output;
//! - [`worker`], [`identify`], [`vault`]: what our own bot and database node say, their IDENTIFYs,
//!   their sessions;
//! - [`health`]: what is thought of shards, and done about those that are not well;
//! - [`metrics`], [`history`], [`http`]: what is measured, what was, and where it is scraped;
//! - [`desired`], [`operations`], [`coordinator`], [`backup`], [`audit`]: what is wanted, and the way
//!   there;
//! - [`registry`]: the hosts of the fleet, and which of them live;
//! - [`identity`], [`peers`]: who this agent is to others, whom it lets in, and the ways to them;
//! - [`tenure`]: whether this host may own processes, and what becomes of those of a lost one;
//! - [`service`]: what `tanakoctl` and other agents ask;
//! - [`config`], [`lock`], [`upgrade`]: the life of this process.

pub mod app;
pub mod audit;
pub mod backup;
pub mod broadcast;
pub mod clock;
pub mod config;
pub mod coordinator;
pub mod desired;
pub mod health;
pub mod history;
pub mod hosts;
pub mod http;
pub mod hub;
pub mod identify;
pub mod identity;
pub mod lock;
pub mod logs;
pub mod metrics;
pub mod migrate;
pub mod office;
pub mod operations;
pub mod peers;
pub mod problem;
pub mod registry;
pub mod service;
pub mod supervisor;
pub mod tenure;
pub mod upgrade;
pub mod vault;
pub mod worker;
