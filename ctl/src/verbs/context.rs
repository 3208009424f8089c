//! `tanakoctl context`.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use clap::Subcommand;
use serde::Serialize;

use crate::{
    client::Way,
    context::{self, Config, Context, check_name},
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    remote::Remote,
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
    /// Add a context, or change one: an agent's unix socket is given with --socket, a fleet with --address
    /// and --identity
    Add {
        /// Its name
        name: String,
        /// Agents of the fleet, separated by commas; one is enough, it names the others
        #[arg(
            long = "address",
            value_name = "IP:PORT",
            value_delimiter = ',',
            requires = "identity"
        )]
        addresses: Vec<SocketAddr>,
        /// Directory with your certificate and key, from an admin's `tanakoctl access grant`
        #[arg(long, value_name = "DIR", requires = "addresses")]
        identity: Option<PathBuf>,
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
    /// Unset when the fleet is reached over the network.
    socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<PathBuf>,
    production: bool,
    current: bool,
}

impl ContextView {
    fn new(name: Option<String>, way: Way, production: bool, current: bool) -> Self {
        let (socket, addresses, identity) = match way {
            Way::Socket(socket) => (Some(socket), Vec::new(), None),
            Way::Fleet(remote) => (None, remote.addresses, Some(remote.identity)),
        };
        Self {
            name,
            socket,
            addresses,
            identity,
            production,
            current,
        }
    }

    fn leads_to(&self) -> String {
        if let Some(socket) = &self.socket {
            return socket.display().to_string();
        }
        let texts: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        texts.join(", ")
    }
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
                Cell::new(context.leads_to()),
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
        let _ = match &self.identity {
            None => writeln!(text, "socket   {}", self.leads_to()),
            Some(identity) => writeln!(
                text,
                "agents   {}\nidentity {}",
                self.leads_to(),
                identity.display()
            ),
        };
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
                addresses,
                identity,
                production,
                current,
            } => {
                let way = way(&name, session.global.socket.clone(), addresses, identity)?;
                add(name, way, production, current)
            }
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
        .map(|context| {
            let current = config.current() == Some(&context.name);
            ContextView::new(Some(context.name), context.way, context.production, current)
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
    let (name, production) = choice
        .context
        .map(|context| (context.name, context.production))
        .unzip();
    let is_current = name.is_some() && name == current;
    session.ui.report(&ContextView::new(
        name,
        choice.way,
        production.unwrap_or(false),
        is_current,
    ))?;
    Ok(Exit::Ok)
}

/// How the new context's agents are reached, from what was typed.
fn way(
    name: &str,
    socket: Option<PathBuf>,
    addresses: Vec<SocketAddr>,
    identity: Option<PathBuf>,
) -> Result<Way, Failure> {
    let absolute = |path: &PathBuf| {
        let path =
            std::path::absolute(path).map_err(|error| Failure::io(path, "use the path", &error))?;
        if path.to_str().is_none() {
            return Err(Failure::usage(
                path.display().to_string(),
                "the path is not UTF-8, and the file must be",
            ));
        }
        Ok(path)
    };
    match (socket, identity) {
        (Some(socket), None) => Ok(Way::Socket(absolute(&socket)?)),
        (None, Some(identity)) => {
            let remote = Remote {
                addresses,
                identity: absolute(&identity)?,
            };
            // What cannot work later shows now.
            remote.identity()?;
            Ok(Way::Fleet(remote))
        }
        (Some(_), Some(_)) => Err(Failure::usage(
            name,
            "--socket and --address are two ways to an agent",
        )
        .hint("give one of the two")),
        (None, None) => Err(
            Failure::usage(name, "the context needs the way to an agent").hint(format!(
                "tanakoctl context add {name} --socket {}, or --address IP:PORT --identity DIR",
                crate::client::SYSTEM_SOCKET
            )),
        ),
    }
}

fn add(name: String, way: Way, production: bool, current: bool) -> Outcome {
    check_name(&name)?;
    changed(context::update(|config| {
        let mut changed = config.put(&Context {
            name: name.clone(),
            way,
            production,
        });
        if current {
            changed |= config.set_current(Some(&name));
        }
        Ok((changed, changed))
    })?)
}
