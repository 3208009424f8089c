//! The hidden first step of a daemon that `demo up` starts.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
};

/// Leave the terminal's session, then become another program
///
/// The process id stays the same, so that whoever started this knows the daemon's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Program and arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let Some((program, arguments)) = self.command.split_first() else {
            return Ok(Exit::Usage);
        };
        rustix::process::setsid().map_err(|error| {
            Failure::new("internal", "", "cannot start a session").cause(error.to_string())
        })?;
        let error = Command::new(program).args(arguments).exec();
        Err(Failure::io(program, "run the program", &error))
    }
}
