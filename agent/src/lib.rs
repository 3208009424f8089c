//! The Tanako agent: supervises the shard processes and database nodes of one host, and answers for
//! the fleet.
//!
//! - [`supervisor`], [`logs`]: the processes and their output;
//! - [`worker`], [`identify`], [`vault`]: what our own bot and database node say, their IDENTIFYs,
//!   their sessions;
//! - [`metrics`], [`history`], [`http`]: what is measured, what was, and where it is scraped;
//! - [`desired`], [`operations`], [`coordinator`], [`backup`], [`audit`]: what is wanted, and the way
//!   there;

pub mod audit;
pub mod backup;
pub mod clock;
pub mod coordinator;
pub mod desired;
pub mod history;
pub mod http;
pub mod identify;
pub mod logs;
pub mod metrics;
pub mod operations;
pub mod problem;
pub mod supervisor;
pub mod vault;
pub mod worker;
