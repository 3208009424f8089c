//! Whole-fleet tests on real binaries: what an operator does, done by a program.
//!
//! [`Fleet`] is a demo fleet of its own in a temporary directory; dropping it ends every process that
//! was started in that directory, whatever the test did. [`db`] speaks to the database nodes as a bot
//! would, [`http`] reads the accounts that the simulated Discord keeps.

pub mod agent;
pub mod binaries;
pub mod db;
pub mod fleet;
pub mod http;
pub mod processes;
pub mod wait;

pub use agent::Agent;
pub use fleet::Fleet;
