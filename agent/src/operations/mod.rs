//! Operations: what was asked for, as durable objects that go on when whoever asked is gone.
//!
//! ```text
//!           accepted                all steps done
//!  pending ──────────► running ───────────────────────► succeeded
//!              resume ▲  │ pause        │ a step failed, the others at work have ended
//!                     │  ▼              ▼
//!                    paused           failed          abort, the steps at work have ended: aborted
//! ```
//!
//! - [`model`]: the object as it is stored and shown.
//! - [`core`]: how a rolling operation goes forward; pure.
//! - [`receipt`]: what a restart cost each shard; pure.
//! - [`ledger`]: where the objects are kept, and for how long.

pub mod core;
pub mod ledger;
pub mod model;
pub mod receipt;

pub use model::{Kind, OpState, Operation, Step, StepAction, StepState};
