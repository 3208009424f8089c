//! The Tanako command line and live terminal view.
//!
//! [`client`] is the way to an agent and [`monitor`] the live view.

pub mod client;
pub mod monitor;
