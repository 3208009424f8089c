//! `tanakoctl monitor`: the live view of a fleet in a terminal.
//!
//! ```text
//!  terminal ── events ──► runner ──► update (pure) ──► actions ──► runner ──► link ──► agent
//!                            │            │                                    │
//!                            ▼            ▼                                    │
//!                         views ◄─── app + model ◄──────────── inputs ◄────────┘
//! ```
//!
//! Keys become commands ([`keymap`]), commands change the state and ask for actions (`update`), and
//! only the [`runner`] performs actions. The state knows no clock and no drawing library; drawing
//! reads the state and is told the time. Data and drawing are decoupled: whatever arrives is applied
//! at once, and a frame is drawn when something changed, at most so often.

pub mod app;
mod commands;
pub mod dialog;
pub mod editor;
pub mod figures;
pub mod focus;
mod intake;
pub mod journal;
pub mod keymap;
pub mod link;
pub mod logs;
pub mod measure;
pub mod message;
mod navigate;
pub mod prompt;
mod reading;
pub mod rows;
pub mod runner;
pub mod series;
mod settle;
pub mod state;
pub mod term;
pub mod text;
pub mod theme;
mod update;
pub mod views;
pub mod write;

use anyhow::Context as _;
use tracing::{Dispatch, instrument::WithSubscriber as _};

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
    if !term::is_terminal() {
        anyhow::bail!(
            "the monitor needs a terminal; for a pipe there is `tanakoctl status --watch`"
        );
    }
    let env = |name: &str| std::env::var(name).ok();
    let directory = journal::directory(env);
    let journal = match &directory {
        Some(directory) => journal::open(directory)
            .with_context(|| format!("cannot write a log in {}", directory.display()))?,
        None => Dispatch::none(),
    };
    let theme = theme::Theme::detect(options.ascii, options.no_color, env);
    let readonly = options.readonly || endpoint.is_readonly();
    let endpoint = endpoint.readonly(readonly);
    let session = format!("{:016x}", fastrand::u64(..));
    let app = app::App::new(&options.context, readonly, &session, (80, 24));
    let saves = directory.map(|directory| directory.join("logs"));
    runner::run(endpoint, app, theme, options.mouse, saves)
        .with_subscriber(journal)
        .await
}
