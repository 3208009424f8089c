//! Several hosts on one machine, as network namespaces.
//!
//! ```text
//!   PREFIX-lan: bridge ──┬── PREFIX-a 10.77.0.11: agent, etcd member, children
//!                        ├── PREFIX-b 10.77.0.12: …
//!                        └── PREFIX-discord 10.77.0.2: simcord
//! ```
//!
//! [`Lan`] makes them and takes them away again, [`Namespace`] is one of them, [`Link`] and [`Fault`] say
//! what can be wrong between them, [`Etcd`] is a cluster over several, and [`Hosts`] is a fleet of
//! agents in them, under load. The files of all hosts lie side by side; nothing else is shared.
//!
//! Needs root, `ip` and `nft`. Everything carries the maker's process in its name ([`Owner`]): a shell
//! that waits for the maker's end clears up behind it, however it ended, and the next maker sweeps up
//! what even that has left.

mod etcd;
mod faults;
mod hosts;
pub mod judge;
mod lan;
mod namespace;
mod owner;

pub use etcd::Etcd;
pub use faults::{Fault, Link};
pub use hosts::{Host, Hosts, places, size};
pub use lan::Lan;
pub use namespace::Namespace;
pub use owner::{Owner, sweep};
