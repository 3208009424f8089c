//! `tanakoctl context`.

use std::{fmt::Write as _, path::PathBuf};

use clap::Subcommand;
use serde::Serialize;

use crate::{
    context::{self, Config, Context, check_name},
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    session::Session,
    table::{Cell, Table},
    ui::Report,
};

/// List, choose, add and remove contexts: names for fleets
///
/// They are kept in $XDG_CONFIG_HOME/tanako/config.toml; comments there survive changes. Use and add exit
/// 3 when there was nothing to change.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the contexts; the current one has a star
    List,
    /// Make a context the current one
    Use {
        /// Its name
        name: String,
    },
    /// Add a context, or change one: the agent's unix socket is given with --socket
    Add {
        /// Its name
        name: String,
        /// A mistake there hurts users: stricter confirmations, red colours
        #[arg(long)]
        production: bool,
        /// Make it the current one
        #[arg(long)]
        current: bool,
    },
    /// Remove a context; the fleet stays as it is
    Remove {
        /// Its name
        name: String,
    },
    /// Show which agent the next command would talk to, and why
    Show,
}

#[derive(Debug, Serialize)]
struct ContextView {
    name: Option<String>,
    socket: PathBuf,
    production: bool,
    current: bool,
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Contexts(Vec<ContextView>);

impl Report for Contexts {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        if self.0.is_empty() {
            return "no contexts; add one: tanakoctl context add NAME --socket PATH\n".into();
        }
        let mut table = Table::new(&["NAME", "CURRENT", "PRODUCTION", "SOCKET"]);
        for context in &self.0 {
            table.row(vec![
                Cell::new(context.name.clone().unwrap_or_default()),
                Cell::new(if context.current { "*" } else { "" }),
                Cell::new(if context.production { "yes" } else { "no" }),
                Cell::new(context.socket.display().to_string()),
            ]);
        }
        table.render(paint)
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|context| context.name.clone())
            .collect()
    }
}

impl Report for ContextView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let mut text = String::new();
        let _ = match &self.name {
            Some(name) => writeln!(text, "context  {}", paint.strong(name)),
            None => writeln!(
                text,
                "context  none: the socket was given, or is the system's"
            ),
        };
        let _ = writeln!(text, "socket   {}", self.socket.display());
        if self.production {
            let _ = writeln!(text, "         {}", paint.bad("production"));
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.name.iter().cloned().collect()
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        if !matches!(self.verb, Verb::List | Verb::Show) {
            session.may_write()?;
        }
        match self.verb {
            Verb::List => list(session),
            Verb::Show => show(session),
            Verb::Use { name } => changed(context::update(|config| {
                config.get(&name)?;
                let changed = config.set_current(Some(&name));
                Ok((changed, changed))
            })?),
            Verb::Add {
                name,
                production,
                current,
            } => add(name, session.global.socket.clone(), production, current),
            Verb::Remove { name } => changed(context::update(|config| {
                config.get(&name)?;
                let changed = config.remove(&name);
                Ok((changed, changed))
            })?),
        }
    }
}

fn changed(changed: bool) -> Outcome {
    Ok(if changed { Exit::Ok } else { Exit::Nothing })
}

fn list(session: &Session) -> Outcome {
    let config = Config::load()?;
    let contexts = config
        .contexts()?
        .into_iter()
        .map(|context| ContextView {
            current: config.current() == Some(&context.name),
            name: Some(context.name),
            socket: context.socket,
            production: context.production,
        })
        .collect();
    session.ui.report(&Contexts(contexts))?;
    Ok(Exit::Ok)
}

fn show(session: &Session) -> Outcome {
    let choice = session.choice()?;
    let current = Config::load()
        .ok()
        .and_then(|config| config.current().map(str::to_owned));
    session.ui.report(&ContextView {
        current: choice
            .context
            .as_ref()
            .is_some_and(|context| Some(&context.name) == current.as_ref()),
        production: choice
            .context
            .as_ref()
            .is_some_and(|context| context.production),
        name: choice.context.map(|context| context.name),
        socket: choice.socket,
    })?;
    Ok(Exit::Ok)
}

fn add(name: String, socket: Option<PathBuf>, production: bool, current: bool) -> Outcome {
    check_name(&name)?;
    let socket = socket.ok_or_else(|| {
        Failure::usage(&name, "the context needs the agent's socket").hint(format!(
            "tanakoctl context add {name} --socket {}",
            crate::client::SYSTEM_SOCKET
        ))
    })?;
    let socket = std::path::absolute(&socket)
        .map_err(|error| Failure::io(&socket, "use the socket's path", &error))?;
    if socket.to_str().is_none() {
        return Err(Failure::usage(
            socket.display().to_string(),
            "the path is not UTF-8, and the file must be",
        ));
    }
    changed(context::update(|config| {
        let mut changed = config.put(&Context {
            name: name.clone(),
            socket,
            production,
        });
        if current {
            changed |= config.set_current(Some(&name));
        }
        Ok((changed, changed))
    })?)
}
