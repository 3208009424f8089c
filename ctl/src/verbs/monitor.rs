//! `tanakoctl monitor`.

use std::io::IsTerminal as _;

use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    monitor::{self, Options},
    session::Session,
};

/// Watch the fleet live in the terminal
///
/// Press ? for the keys. Quitting leaves the fleet as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Draw with ASCII characters only
    #[arg(long)]
    ascii: bool,
    /// Take mouse clicks and the wheel
    #[arg(long)]
    mouse: bool,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        open(session, self.ascii, self.mouse).await
    }
}

/// Opens the monitor until the user leaves it.
pub(super) async fn open(session: &Session, ascii: bool, mouse: bool) -> Outcome {
    if !session.ui.stdout_tty || !std::io::stdin().is_terminal() {
        return Err(
            Failure::new("no-terminal", "stdout", "the monitor needs a terminal")
                .hint("use `tanakoctl status`, or `tanakoctl status --watch`, where there is none"),
        );
    }
    let choice = session.choice()?;
    let options = Options {
        context: choice.label(),
        readonly: session.global.readonly,
        ascii,
        no_color: !session.ui.out.is_on(),
        mouse,
    };
    monitor::run(session.endpoint_by(choice.way), options)
        .await
        .map_err(|error| {
            Failure::new("monitor", "terminal", "the monitor failed").cause(format!("{error:#}"))
        })?;
    Ok(Exit::Ok)
}
