//! What is being typed at the bottom: a filter, a search or a command, and the completion of commands.

use super::{editor::Editor, rows::SortKey, state::Model};

/// What the typed line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which processes the table shows; takes effect while typing.
    Filter,
    /// What is searched in log lines; takes effect while typing.
    Search,
    /// A command.
    Command,
}

/// A line being typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What for.
    pub purpose: Purpose,
    /// The line.
    pub editor: Editor,
    /// What is wrong with it.
    pub error: Option<String>,
    /// What Tab goes through.
    pub choices: Vec<String>,
    /// What was in force before, for Esc.
    pub before: String,
    at: Option<usize>,
}

/// Choices offered at most.
const CHOICES_MAX: usize = 200;

/// The commands, and what each takes.
pub const COMMANDS: &[(&str, &str)] = &[
    ("quit", ""),
    ("help", ""),
    ("fleet", ""),
    ("hosts", ""),
    ("host", "HOST"),
    ("process", "NAME"),
    ("guild", "ID"),
    ("logs", "NAME"),
    ("events", "[NAME]"),
    ("identify", ""),
    ("operations", ""),
    ("describe", "NAME"),
    ("start", "TARGET"),
    ("stop", "TARGET"),
    ("restart", "TARGET"),
    ("backup", ""),
    ("sort", "COLUMN"),
    ("filter", "REGEX"),
    ("faults", ""),
    ("pause", ""),
];

impl Prompt {
    /// Begins with `text` typed.
    pub fn new(purpose: Purpose, text: &str, before: &str) -> Self {
        Self {
            purpose,
            editor: Editor::with(text),
            error: None,
            choices: Vec::new(),
            before: before.to_owned(),
            at: None,
        }
    }

    /// Forgets the choices; called when something else than Tab was pressed.
    pub fn settle(&mut self) {
        self.choices.clear();
        self.at = None;
        self.error = None;
    }

    /// Which choice is in the line.
    pub fn choice(&self) -> Option<usize> {
        self.at
    }

    /// Completes the last word, or goes on to the next choice.
    pub fn complete(&mut self, model: &Model, back: bool) {
        if self.purpose != Purpose::Command {
            return;
        }
        let line = self.editor.text();
        if self.at.is_none() {
            self.choices = choices(&line, model);
        }
        let n = self.choices.len();
        if n == 0 {
            return;
        }
        let at = match (self.at, back) {
            (None, false) => 0,
            (None, true) => n - 1,
            (Some(at), false) => (at + 1) % n,
            (Some(at), true) => (at + n - 1) % n,
        };
        let head = line.rfind(' ').map_or("", |space| &line[..=space]);
        let mut text = format!("{head}{}", self.choices[at]);
        if n == 1 {
            if head.is_empty()
                && COMMANDS
                    .iter()
                    .any(|(name, takes)| *name == self.choices[0] && !takes.is_empty())
            {
                text.push(' ');
            }
            self.editor = Editor::with(&text);
            self.settle();
        } else {
            self.editor = Editor::with(&text);
            self.at = Some(at);
        }
    }
}

/// What the last word of `line` may become.
fn choices(line: &str, model: &Model) -> Vec<String> {
    let word = line.rsplit(' ').next().unwrap_or("");
    let mut words = line.split_whitespace();
    let verb = words.next().unwrap_or("");
    let mut all: Vec<String> = if line.contains(' ') {
        match verb {
            "process" | "logs" | "describe" | "events" => processes(model),
            "host" => model.hosts.iter().map(|host| host.name.clone()).collect(),
            "start" | "stop" | "restart" => targets(model),
            "sort" => SortKey::ALL
                .iter()
                .map(|key| key.name().to_owned())
                .collect(),
            _ => Vec::new(),
        }
    } else {
        COMMANDS
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect()
    };
    all.retain(|choice| choice.starts_with(word));
    all.sort_by(|a, b| super::text::natural(a, b));
    all.truncate(CHOICES_MAX);
    all
}

fn processes(model: &Model) -> Vec<String> {
    model
        .processes()
        .iter()
        .map(|process| process.name.clone())
        .collect()
}

fn targets(model: &Model) -> Vec<String> {
    let mut all = processes(model);
    all.push("all".into());
    if model.processes().iter().any(|process| process.kind == "db") {
        all.push("db".into());
    }
    all.extend(model.hosts.iter().map(|host| format!("host:{}", host.name)));
    let mut bots: Vec<String> = model
        .processes()
        .iter()
        .map(|process| process.bot.clone())
        .collect();
    bots.sort_unstable();
    bots.dedup();
    all.extend(
        bots.into_iter()
            .filter(|bot| !bot.is_empty() && bot != "db"),
    );
    all
}
