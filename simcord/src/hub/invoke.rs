//! Invoking registered commands, by chance or on request.

use std::time::Instant;

use serde_json::{Map, Value};

use super::Hub;
use crate::gateway::{Event, Intents};
use crate::interactions::Invoked;
use crate::snowflake::{self, mix};
use crate::world::{Invocation, InvocationError};

/// A request for one interaction.
#[derive(Debug, Default)]
pub(crate) struct Request<'a> {
    /// The guild; drawn when none is given.
    pub guild_id: Option<u64>,
    /// The command; drawn when none is given.
    pub command: Option<&'a str>,
    pub subcommand: Option<&'a str>,
    pub options: Map<String, Value>,
    pub user_id: Option<u64>,
}

/// Why nothing was invoked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvokeError {
    #[error("the bot is in no such guild")]
    NoGuild,
    #[error("the bot has registered no such command for that guild")]
    NoCommand,
    #[error(transparent)]
    Invocation(#[from] InvocationError),
    #[error("no session covers that guild")]
    Unrouted,
}

impl Hub {
    /// Invokes any command in any guild, the next of the seed's sequence. Without commands nothing happens.
    pub(crate) fn invoke_any(&mut self, now: Instant) {
        // What can fail is counted: no session covers the guild, or no command is registered for it.
        let _ = self.invoke(now, &Request::default());
    }

    /// Invokes a command and gives the interaction's id.
    pub(crate) fn invoke(
        &mut self,
        now: Instant,
        request: &Request<'_>,
    ) -> Result<u64, InvokeError> {
        let n = self.next_interaction;
        let mut rng = fastrand::Rng::with_seed(mix(self.world.seed() ^ 0x1a7e4, n));
        let guild = match request.guild_id {
            Some(id) => self.world.guild_index(id),
            None => self.world.pick(&mut rng),
        };
        let guild = guild.ok_or(InvokeError::NoGuild)?;
        let guild_id = self.world.guild_id(guild);
        let command = if let Some(name) = request.command {
            self.commands.by_name(guild_id, name)
        } else {
            let all: Vec<&Value> = self.commands.invocable(guild_id).collect();
            rng.choice(all)
        };
        let command = command.ok_or(InvokeError::NoCommand)?;
        self.next_interaction += 1;
        let id = snowflake::now();
        let token = interaction_token(id);
        let body = self.world.invoke(
            &Invocation {
                id,
                token: &token,
                command,
                guild,
                user: request.user_id,
                given: &request.options,
                subcommand: request.subcommand,
            },
            &mut rng,
        )?;
        let name = command["name"].as_str().unwrap_or_default().to_owned();
        let channel = body["channel_id"].as_str().unwrap_or_default().to_owned();
        let event = Event::new("INTERACTION_CREATE", Intents::NONE, &body);
        if self.dispatch(now, guild_id, &event) == 0 {
            self.interactions.counters.unrouted += 1;
            return Err(InvokeError::Unrouted);
        }
        let user = body["member"]["user"]["id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .unwrap_or_default();
        self.interactions.sent(
            now,
            Invoked {
                id,
                token,
                command: name,
                guild,
                channel,
                user,
            },
        );
        Ok(id)
    }
}

/// A token in the form of Discord's: base64 of `interaction:ID:SECRET`, long and opaque.
fn interaction_token(id: u64) -> String {
    use base64::Engine;
    let mut rng = fastrand::Rng::new();
    let secret: String = (0..86).map(|_| rng.alphanumeric()).collect();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("interaction:{id}:{secret}"))
}
