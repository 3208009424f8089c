//! Where output goes: data to stdout, everything else to stderr; and when to colour, draw and ask.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::{exit::Exit, failure::Failure, paint::Paint};

/// Form of the data on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// About 80 columns, for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON document; streams print one object a line.
    Json,
    /// YAML; streams print one document each.
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// Data that every format can show.
pub trait Report: Serialize {
    /// For people.
    fn table(&self, paint: Paint, wide: bool) -> String;
    /// The names in it.
    fn names(&self) -> Vec<String>;
}

/// The terminal, as far as a verb needs to know it.
#[derive(Debug, Clone)]
pub struct Ui {
    /// Form of the data.
    pub format: Format,
    /// Colours of stdout.
    pub out: Paint,
    /// Colours of stderr.
    pub err: Paint,
    /// Whether moving progress may be drawn on stderr.
    pub draws: bool,
    /// Whether a question can be asked.
    pub asks: bool,
    /// Whether stdout is a terminal.
    pub stdout_tty: bool,
    /// No messages on stderr but failures.
    pub quiet: bool,
}

impl Ui {
    /// Looks at the terminal and the environment.
    pub fn new(format: Format, no_color: bool, no_input: bool, quiet: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !no_color && !set("NO_COLOR") && !dumb;
        let (stdin, stdout, stderr) = (
            io::stdin().is_terminal(),
            io::stdout().is_terminal(),
            io::stderr().is_terminal(),
        );
        Self {
            format,
            out: Paint::new(colour && stdout),
            err: Paint::new(colour && stderr),
            draws: stderr && !dumb && !quiet,
            asks: stdin && stderr && !no_input,
            stdout_tty: stdout,
            // A script gets nothing on stderr but the one error.
            quiet: quiet || matches!(format, Format::Json | Format::Yaml),
        }
    }

    /// Whether scripts read the output.
    pub fn is_machine(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Shows data.
    pub fn report<T: Report>(&self, data: &T) -> Result<(), Failure> {
        self.print(&self.render(data)?)
    }

    /// The text that [`Ui::report`] prints.
    pub fn render<T: Report>(&self, data: &T) -> Result<String, Failure> {
        Ok(match self.format {
            Format::Table => data.table(self.out, false),
            Format::Wide => data.table(self.out, true),
            Format::Json => json(data, true)?,
            Format::Yaml => yaml(data)?,
            Format::Name => lines(&data.names()),
        })
    }

    /// Shows one item of a stream.
    pub fn item<T: Report>(&self, data: &T) -> Result<(), Failure> {
        self.print(&match self.format {
            Format::Json => json(data, false)?,
            Format::Yaml => format!("---\n{}", yaml(data)?),
            Format::Table => data.table(self.out, false),
            Format::Wide => data.table(self.out, true),
            Format::Name => lines(&data.names()),
        })
    }

    /// Writes to stdout. A reader that went away ends the run quietly, as it does for `cat`.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Failure::silent(Exit::Ok))
            }
            Err(error) => Err(Failure::io("stdout", "write the output", &error)),
        }
    }

    /// Says something to people, on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Without stderr there is nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Asks on the terminal; only when [`Ui::asks`]. An end of input is an empty answer.
    pub async fn ask(&self, question: &str) -> Result<String, Failure> {
        let question = question.to_owned();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stderr = io::stderr().lock();
            write!(stderr, "{question} ")?;
            stderr.flush()?;
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            Ok::<_, io::Error>(line.trim().to_owned())
        })
        .await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure::io("terminal", "read the answer", &error)),
            Err(_) => Err(Failure::silent(Exit::Cancelled)),
        }
    }
}

fn json<T: Serialize>(data: &T, pretty: bool) -> Result<String, Failure> {
    let text = if pretty {
        serde_json::to_string_pretty(data)
    } else {
        serde_json::to_string(data)
    };
    text.map(|text| text + "\n").map_err(|error| {
        Failure::new("internal", "", "the result has no JSON form").cause(error.to_string())
    })
}

fn yaml<T: Serialize>(data: &T) -> Result<String, Failure> {
    serde_norway::to_string(data).map_err(|error| {
        Failure::new("internal", "", "the result has no YAML form").cause(error.to_string())
    })
}

fn lines(names: &[String]) -> String {
    names
        .iter()
        .flat_map(|name| [name.as_str(), "\n"])
        .collect()
}
