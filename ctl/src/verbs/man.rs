//! `tanakoctl man`, for packagers.

use std::path::PathBuf;

use crate::{
    cli::definition,
    exit::Exit,
    failure::{Failure, Outcome},
    session::Session,
};

/// Write the man pages into a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory; made when it is not there
    directory: PathBuf,
}

impl Args {
    pub(super) fn run(self, session: &Session) -> Outcome {
        session.may_write()?;
        let failed =
            |error: std::io::Error| Failure::io(&self.directory, "write the man pages", &error);
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        clap_mangen::generate_to(definition(), &self.directory).map_err(failed)?;
        Ok(Exit::Ok)
    }
}
