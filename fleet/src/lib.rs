//! The pure domain of Tanako: no IO, no clock, no async. Every decision that a fleet takes is a
//! function here, so that a simulator can prove the invariants.

pub mod identify;
pub mod plan;
pub mod process;
pub mod ring;
pub mod shard;
pub mod sizing;
pub mod spec;
pub mod target;

pub use process::{ProcessKind, ProcessName, ProcessSpec};
pub use spec::Spec;
