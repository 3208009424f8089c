//! The fleet service: what `tanakoctl` asks of this agent, over a unix socket.
//!
//! - [`socket`]: the socket, who is on its other end, and whether they may.
//! - `rpc`: the calls, each a few lines over the parts of the agent.
//! - `moving`: the store's move to etcd.
//! - [`view`]: the status of the fleet, composed from what the parts publish; pure.
//! - [`watch`]: that status as a stream of changes.
//! - [`logs`]: many logs as one stream.
//! - [`locate`]: where a guild lives; pure.
//! - [`doctor`]: what is wrong with this machine and this fleet, and what to do.

pub mod doctor;
pub mod locate;
pub mod logs;
mod moving;
mod rpc;
pub mod socket;
pub mod view;
pub mod watch;

pub use rpc::{Service, Sources, Upgrades};
