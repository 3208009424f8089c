//! The command line: what can be typed, and the run from arguments to exit code.

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser, error::ErrorKind};

use crate::{
    exit::{Exit, TABLE},
    failure::Failure,
    session::{Global, Session},
    verbs::Command,
};

/// Starts, stops, watches and repairs fleets of Discord bots
#[derive(Debug, Parser)]
#[command(
    name = "tanakoctl",
    version,
    after_help = TABLE,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    infer_long_args = false
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The definition that help, completions and man pages are made from.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Parses, runs and says how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&arguments, &error),
    };
    let session = Session::new(cli.global);
    let outcome = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let outcome = runtime.block_on(until_interrupted(&session, cli.command));
            // A question may still be waiting for its answer on a thread of its own.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => {
            Err(Failure::new("internal", "", "cannot start the runtime").cause(error.to_string()))
        }
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            report(&session, &failure);
            failure.exit.into()
        }
    }
}

async fn until_interrupted(session: &Session, command: Command) -> Result<Exit, Failure> {
    tokio::select! {
        biased;
        outcome = command.run(session) => outcome,
        Ok(()) = tokio::signal::ctrl_c() => {
            let mut failure = Failure::new("cancelled", "", "interrupted");
            match session.farewell() {
                // Ctrl-C is how these are meant to end.
                Some(text) if text.is_empty() => failure = Failure::silent(Exit::Cancelled),
                Some(text) => failure = failure.hint(text),
                None => {}
            }
            Err(failure)
        }
    }
}

fn report(session: &Session, failure: &Failure) {
    let text = if session.ui.is_machine() {
        failure.json()
    } else {
        failure.text(session.ui.err)
    };
    // Without stderr there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Help and version go to stdout; everything else is a usage error, as JSON when JSON was asked for.
fn refuse(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away has seen enough.
            let _ = error.print();
            Exit::Ok.into()
        }
        _ => {
            if wants_json(arguments) {
                let rendered = error.render().to_string();
                let (message, hint) = split_usage(&rendered);
                let failure = Failure::usage("", message).hint(hint);
                let _ = std::io::stderr()
                    .lock()
                    .write_all(failure.json().as_bytes());
            } else {
                let _ = error.print();
            }
            Exit::Usage.into()
        }
    }
}

/// The first paragraph of clap's text is the message; the tips are the hint.
fn split_usage(rendered: &str) -> (String, String) {
    let line = |line: &str| line.trim().to_owned();
    let message = rendered
        .lines()
        .take_while(|line| !line.is_empty())
        .map(line)
        .collect::<Vec<_>>()
        .join(" ");
    let hint = rendered
        .lines()
        .skip_while(|line| !line.is_empty())
        .map(line)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    (message.trim_start_matches("error: ").to_owned(), hint)
}

fn wants_json(arguments: &[OsString]) -> bool {
    let machine = |value: &str| matches!(value, "json" | "yaml");
    arguments.iter().enumerate().any(|(at, argument)| {
        let Some(argument) = argument.to_str() else {
            return false;
        };
        let next = || {
            arguments
                .get(at + 1)
                .and_then(|next| next.to_str())
                .is_some_and(machine)
        };
        match argument {
            "-o" | "--output" => next(),
            _ => argument
                .strip_prefix("--output=")
                .or_else(|| argument.strip_prefix("-o="))
                .or_else(|| argument.strip_prefix("-o"))
                .is_some_and(machine),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn json_is_recognised_in_every_spelling() {
        let arguments = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for yes in [
            "x -o json y",
            "x -ojson",
            "x -o=json",
            "x --output json",
            "x --output=yaml",
        ] {
            assert!(wants_json(&arguments(yes)), "{yes}");
        }
        for no in ["x json", "x -o table", "x -o"] {
            assert!(!wants_json(&arguments(no)), "{no}");
        }
    }
}
