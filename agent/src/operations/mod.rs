//! Operations: what was asked for, as durable objects that go on when whoever asked is gone.
//!
//! ```text
//!           accepted                all steps done
//!  pending ──────────► running ───────────────────────► succeeded
//!              resume ▲  │ pause        │ a step failed, the others at work have ended
//!                     │  ▼              ▼
//!                    paused           failed          abort, the steps at work have ended: aborted
//!
//!  rollouts of a new spec, blue-green and reshards turn back first: what has changed is changed back,
//!  then they are aborted (asked for) or failed (by themselves)
//! ```
//!
//! - [`model`], [`step`]: the object as it is stored and shown.
//! - [`core`]: how an operation goes forward; with [`plain`] (start, stop, restart), [`switch`]
//!   (sessions from one process to another), [`cut`] (the events of two sets), [`watching`] (those that
//!   have changed), [`moving`] (a process from one host to another) and [`back`] (the way back) for its
//!   steps; all pure.
//! - [`draining`]: the deadline of a drain, and how it ends; pure.
//! - [`duties`]: what each process of two overlapping sets does meanwhile; pure.
//! - [`observing`]: what an operation sees of the fleet; pure.
//! - [`receipt`], [`books`]: what it cost each shard; pure.
//! - [`ledger`]: where the objects are kept, and for how long.

pub mod back;
pub mod books;
pub mod core;
pub mod cut;
pub mod draining;
pub mod duties;
pub mod ledger;
pub mod model;
pub mod moving;
pub mod observing;
pub mod plain;
pub mod receipt;
pub mod step;
pub mod switch;
pub mod watching;

pub use model::{Course, Kind, OpState, Operation};
pub use step::{Step, StepAction, StepState};
