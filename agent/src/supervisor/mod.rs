//! Starts, watches, stops and restarts the processes of this host.
//!
//! ```text
//!                 start            spawned             probe says so
//!  Stopped ───────────► Starting ──────────► Starting ──────────────► Ready ◄──► Running
//!     ▲                    │ failed             │ exit, timeout         │ exit, watchdog │
//!     │ stop               ▼                    ▼                       ▼                │
//!     ├──────────────── Backoff ◄───────────────┴───────────────────────┴────────────────┘
//!     │                    │ too many in a short time
//!     │                    ▼
//!     │                  Failed          stop, restart: any live state ──► Stopping (Draining)
//!     └────────────────────────────────────────────────────────────────────────┘ exit
//! ```
//!
//! - `core`, `backoff`: the policy of one process, pure: inputs in, effects out.
//! - `handle`, `status`: what the rest of the agent holds and sees.
//! - `table`, `acting`, `process`: the task that owns all processes, and what it does about one.
//! - `spawner`, `exits`, `notify`, `probe`, `cgroup`: the operating system.
//! - `records`, `adopt`, `procfs`, `sweep`, `tagged`: who runs, written down and found again.
//!
//! One task owns the table of all processes. It selects over commands, exits, notifications, the
//! earliest deadline and cancellation; asks the core what to do; does it; publishes the table.
//! Processes are started by two threads of their own, for starting one blocks until its `execve`.
//!
//! Children outlive the agent: their output goes to files, and who runs is written down before and
//! after each start, so that the next agent takes them over.

mod acting;
mod adopt;
pub mod backoff;
mod cgroup;
pub mod core;
#[cfg(test)]
mod core_tests;
mod exits;
mod handle;
mod notify;
mod probe;
mod process;
mod procfs;
pub mod records;
mod signals;
mod spawner;
mod status;
mod sweep;
mod table;
mod tagged;

pub use handle::{Config, StartGate, Supervisor, SupervisorError, Ungated, WorkerInput};
pub use procfs::boot_id;
pub use records::any_left;
pub use status::{Desired, ProcessStatus, Severity, State, SupervisorEvent, Table, kind};
pub use tagged::{Tagged, any_tagged, data_dir_instance, kill_tagged};
