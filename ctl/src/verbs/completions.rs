//! `tanakoctl completions`.

use clap_complete::{Shell, generate};

use crate::{cli::definition, exit::Exit, failure::Outcome, session::Session};

/// Print the completions of a shell
///
/// bash: tanakoctl completions bash > /etc/bash_completion.d/tanakoctl. zsh: into a directory of $fpath, as
/// _tanakoctl. fish: into ~/.config/fish/completions/tanakoctl.fish.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Kind,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

impl Args {
    pub(super) fn run(self, session: &Session) -> Outcome {
        let shell = match self.shell {
            Kind::Bash => Shell::Bash,
            Kind::Zsh => Shell::Zsh,
            Kind::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        generate(shell, &mut definition(), "tanakoctl", &mut script);
        session.ui.print(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Ok)
    }
}
