//! The Tanako command line and live terminal view.
//!
//! [`client`] is the way to an agent, [`verbs`] holds one file a verb, whose doc comment is its help,
//! and [`monitor`] is the live view. Data goes to stdout and nothing else does; [`exit`] is the table of
//! exit codes, [`failure`] the form of every error, [`view`] the documented JSON.
//!
//! Nothing here decides for the fleet: plans and operations are made and carried out by the agent, and
//! go on when this process ends.

pub mod client;
pub mod confirm;
pub mod context;
pub mod exit;
pub mod failure;
pub mod founding;
pub mod monitor;
pub mod operate;
pub mod paint;
pub mod progress;
pub mod remote;
pub mod session;
pub mod table;
pub mod target;
pub mod ui;
pub mod units;
pub mod verbs;
pub mod view;

mod cli;

pub use cli::{definition, run};
