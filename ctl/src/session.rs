//! What every verb gets: the options that hold for all verbs, the terminal, and the way to the fleet.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::{Args, builder::FalseyValueParser};
use tanako_proto::fleet::v1::{FleetStatus, StatusRequest};

use crate::{
    client::{Endpoint, Fleet, Way, readonly},
    context::{self, Choice},
    failure::Failure,
    ui::{Format, Ui},
    units::parse_duration,
};

/// Options of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Form of the output
    #[arg(
        long,
        short = 'o',
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
    /// Use this context [env: TANAKO_CONTEXT] [default: the current one]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "socket")]
    pub context: Option<String>,
    /// Use the agent behind this unix socket [env: TANAKO_SOCKET_AGENT]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Refuse everything that changes something
    #[arg(long, global = true, env = "TANAKO_READONLY", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub readonly: bool,
    /// Never ask: fail where a question would be needed
    #[arg(long, global = true)]
    pub no_input: bool,
    /// No colours (as NO_COLOR and TERM=dumb)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// No messages and no progress on stderr, only errors
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
    /// How long the agent may take to answer one request
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub request_timeout: Duration,
}

/// One run of `tanakoctl`.
#[derive(Debug)]
pub struct Session {
    /// Options of every verb.
    pub global: Global,
    /// The terminal.
    pub ui: Ui,
    farewell: Mutex<Option<String>>,
}

impl Session {
    /// Looks at the terminal; touches nothing else.
    pub fn new(global: Global) -> Self {
        let ui = Ui::new(
            global.output,
            global.no_color,
            global.no_input,
            global.quiet,
        );
        Self {
            global,
            ui,
            farewell: Mutex::new(None),
        }
    }

    /// Which agent is meant.
    pub fn choice(&self) -> Result<Choice, Failure> {
        context::choose(
            self.global.socket.as_deref(),
            self.global.context.as_deref(),
        )
    }

    /// The agent behind a socket, with the options of this run.
    pub fn endpoint_at(&self, socket: impl Into<PathBuf>) -> Endpoint {
        self.endpoint_by(Way::Socket(socket.into()))
    }

    /// An agent, however it is reached, with the options of this run.
    pub fn endpoint_by(&self, way: Way) -> Endpoint {
        Endpoint::new(way)
            .request_timeout(self.global.request_timeout)
            .readonly(self.global.readonly)
    }

    /// The agent that is meant.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        Ok(self.endpoint_by(self.choice()?.way))
    }

    /// Connects to the agent that is meant.
    pub async fn fleet(&self) -> Result<Fleet, Failure> {
        Ok(self.endpoint()?.open().await?)
    }

    /// Refuses when `--readonly` is set; for verbs that change something without asking an agent.
    pub fn may_write(&self) -> Result<(), Failure> {
        if self.global.readonly {
            return Err(readonly().into());
        }
        Ok(())
    }

    /// What to say when the user interrupts: what goes on without them. Nothing at all for an empty text.
    pub fn if_cancelled(&self, farewell: Option<String>) {
        *self.farewell.lock().unwrap_or_else(PoisonError::into_inner) = farewell;
    }

    /// The words last given to [`Session::if_cancelled`].
    pub fn farewell(&self) -> Option<String> {
        self.farewell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// The fleet's status.
pub async fn status(fleet: &mut Fleet) -> Result<FleetStatus, Failure> {
    Ok(fleet.get_status(StatusRequest {}).await?)
}
