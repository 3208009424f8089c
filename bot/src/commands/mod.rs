//! Slash commands: one file each. To add one, write its file and name it in the list below.

mod definition;
pub mod options;
pub mod registrar;

use std::pin::Pin;

use serde_json::{Value, json};
use serenity::all::{CommandInteraction, GuildId, Permissions, UserId};

use crate::database::DbError;
use crate::interactions::panel::Panel;
use crate::rest::RestError;
use crate::services::Services;

pub use definition::definitions;

macro_rules! commands {
    ($($name:ident),+ $(,)?) => {
        $(mod $name;)+
        /// All commands, in the order of `/help`.
        pub static COMMANDS: &[&Command] = &[$(&$name::COMMAND),+];
    };
}

commands! {
    help,
    ping,
    shard,
    metrics,
    fleet,
    serverinfo,
    userinfo,
    warn,
    warnings,
    clearwarnings,
    config,
}

/// A command: what Discord shows of it, who may use it, what it does.
pub struct Command {
    /// Its name, without the slash.
    pub name: &'static str,
    /// One line for Discord's list and `/help`.
    pub summary: &'static str,
    /// More for `/help command`.
    pub details: &'static str,
    /// Only the user sees the answer.
    pub private: bool,
    /// Not in direct messages.
    pub guild_only: bool,
    /// What a member needs to use it.
    pub permission: Option<Permissions>,
    /// Its options, as Discord wants them.
    pub options: fn() -> Vec<serenity::all::CreateCommandOption>,
    /// What it does.
    pub run: for<'a> fn(&'a Context<'a>) -> Running<'a>,
}

/// A running handler.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Reply, CommandError>> + Send + 'a>>;

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .copied()
        .find(|command| command.name == name)
}

/// What a handler gets.
pub struct Context<'a> {
    /// Database, REST and the rest of the process.
    pub services: &'a Services,
    /// The shard that received the interaction.
    pub shard: u32,
    /// The interaction.
    pub interaction: &'a CommandInteraction,
}

impl Context<'_> {
    /// The guild. The guard lets no `guild_only` command through without one.
    pub fn guild(&self) -> Result<GuildId, CommandError> {
        self.interaction
            .guild_id
            .ok_or_else(|| CommandError::refused("This command works in servers only."))
    }

    /// Who used the command.
    pub fn user(&self) -> UserId {
        self.interaction.user.id
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Plain text.
    pub content: String,
    /// Embed.
    pub panel: Option<Panel>,
    /// Only the user sees it.
    pub private: bool,
}

impl Reply {
    /// Text that only the user sees.
    pub fn private(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            panel: None,
            private: true,
        }
    }

    /// An embed for all.
    pub fn public_panel(panel: Panel) -> Self {
        Self {
            content: String::new(),
            panel: Some(panel),
            private: false,
        }
    }

    /// An embed that only the user sees.
    pub fn private_panel(panel: Panel) -> Self {
        Self {
            content: String::new(),
            panel: Some(panel),
            private: true,
        }
    }

    /// The message. It mentions nobody, whatever its text says.
    pub fn body(&self) -> Value {
        let content: String = crate::interactions::panel::shorten(&self.content, 2000);
        let embeds: Vec<Value> = self.panel.iter().map(Panel::json).collect();
        json!({ "content": content, "embeds": embeds, "allowed_mentions": { "parse": [] } })
    }

    /// The message for a snapshot.
    #[cfg(test)]
    fn pretty(&self) -> String {
        let seen_by = if self.private { "the user" } else { "all" };
        format!("seen by {seen_by}\n{:#}", self.body())
    }
}

/// Why a handler has no answer.
#[derive(Debug)]
pub enum CommandError {
    /// The user asked for something that cannot be; these are the words.
    Refused(String),
    /// Something is broken.
    Failed {
        /// Words for the user.
        words: &'static str,
        /// For the log.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CommandError {
    /// The user asked for something that cannot be.
    pub fn refused(words: impl Into<String>) -> Self {
        Self::Refused(words.into())
    }
}

impl From<DbError> for CommandError {
    fn from(error: DbError) -> Self {
        let words = match error {
            DbError::Absent => {
                return Self::refused(
                    "This bot runs without a database, so this command is not available.",
                );
            }
            DbError::Unavailable | DbError::Unanswered => {
                "I cannot reach my database right now. Please try again in a moment."
            }
            _ => "My database refused that. Nothing was changed.",
        };
        Self::Failed {
            words,
            source: Box::new(error),
        }
    }
}

impl From<RestError> for CommandError {
    fn from(error: RestError) -> Self {
        Self::Failed {
            words: "Discord did not let me do that right now. Please try again in a moment.",
            source: Box::new(error),
        }
    }
}
