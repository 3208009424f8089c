//! The Tanako agent: supervises the shard processes and database nodes of one host

pub mod history;
pub mod http;
pub mod identify;
pub mod logs;
pub mod metrics;
pub mod supervisor;
pub mod vault;
pub mod worker;
