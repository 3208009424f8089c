//! From one machine's store to etcd, without stopping a process.
//!
//! ```text
//! look at the target ─► shut the valve ─► mark ─► copy ─► compare ─► mark done ─► store.json ─► re-execute
//!        └ not empty: refused      └───────────── any failure: the valve opens again ──┘
//! ```
//!
//! The one switch is the file `store.json` in the data directory: while it is not there, the embedded store
//! is the truth, and whatever lies in etcd is a copy that nobody uses and that the next try replaces. From
//! the moment it is there, every agent on this directory uses etcd, whatever the flags of its unit say:
//! that survives a reboot and needs no edit. The embedded store stays as it was at that moment.
//!
//! - [`file`](mod@file): the switch. [`valve`]: a store that takes nothing for a while. [`copy`]: there and compared.

pub mod copy;
pub mod file;
pub mod valve;
