//! `tanakoctl demo`: a whole fleet on this machine.
//!
//! ```text
//!  demo up ──► simcord (a Discord that plays along)      own session, log file, info file
//!          └─► tanako-agent ──► tanako-bot x4, tanako-db x3
//! ```
//!
//! What was started is written down in `demo.json` of the data directory ([`record`]) at once, and is
//! found again by process id and start time, or by an argument that no other process carries
//! ([`process`]). So whatever an interrupted `up` leaves, the next `up` uses and `down` ends.

mod daemon;
mod down;
mod info;
mod place;
mod process;
mod record;
mod setup;
mod up;

use std::path::PathBuf;

use clap::Subcommand;

use crate::{failure::Outcome, session::Session};

/// Run a whole fleet on this machine, to look at and to play with
///
/// A simulated Discord with 10,000 guilds, 8 shards in 4 processes of tanako-bot, 3 database nodes and one
/// agent. Nothing leaves this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Where the demo keeps everything [default: $XDG_STATE_HOME/tanako/demo]
    #[arg(
        long,
        global = true,
        env = "TANAKO_DEMO_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Up(up::Args),
    Down(down::Args),
    Info(info::Args),
    Status(info::StatusArgs),
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let place = place::Place::find(session, self.data_dir)?;
        match self.verb {
            Verb::Up(args) => args.run(session, &place).await,
            Verb::Down(args) => args.run(session, &place).await,
            Verb::Info(info::Args {}) => info::show(session, &place),
            Verb::Status(args) => args.run(session, &place).await,
        }
    }
}
