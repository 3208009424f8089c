//! Whole-fleet tests on real binaries: what an operator does, done by a program.
//!
//! [`Fleet`] is a demo fleet of its own in a temporary directory; dropping it ends every process that
//! was started in that directory, whatever the test did. [`db`] speaks to the database nodes as a bot
//! would, [`http`] reads the accounts that the simulated Discord keeps.
//!
//! [`sim`] needs none of these: it drives the real cores through seeded faults in virtual time.
//!
//! [`Rig`] is a fleet under load with a [`Discord`] of its own, for proofs: nothing missed, nothing
//! handled twice, no IDENTIFY spent. [`Warnings`] add commands that leave rows in the database.
//! [`netns`] makes fleets of several hosts.

pub mod agent;
pub mod binaries;
pub mod db;
pub mod discord;
pub mod fleet;
pub mod http;
pub mod logs;
pub mod netns;
pub mod processes;
pub mod rig;
pub mod sim;
pub mod wait;
pub mod warnings;

pub use agent::Agent;
pub use discord::Discord;
pub use fleet::Fleet;
pub use rig::{Rig, Size};
pub use warnings::Warnings;
