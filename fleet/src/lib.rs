//! The pure domain of Tanako: no IO, no clock, no async. Every decision that a fleet takes is a
//! function here, so that a simulator can prove the invariants.

pub mod access;
pub mod advise;
pub mod assignment;
pub mod failover;
pub mod health;
pub mod identify;
pub mod orders;
pub mod placement;
pub mod plan;
pub mod process;
pub mod reshard;
pub mod ring;
pub mod rollout;
pub mod shard;
pub mod sizing;
pub mod spec;
pub mod target;
pub mod tenure;
pub mod vault;

pub use process::{ProcessKind, ProcessName, ProcessSpec};
pub use spec::Spec;
