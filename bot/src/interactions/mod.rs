//! Interactions: decode, check, run the command under [`guard`].

pub mod guard;
pub mod panel;
pub mod standing;

use serde::Deserialize;
use serde_json::json;
use serenity::all::{ApplicationId, CommandInteraction, InteractionId};
use tokio::time::Instant;
use tracing::warn;

use crate::commands;
use crate::services::Services;
use crate::shard::duty::Standing;
use guard::Target;

/// What became of an interaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, be it with the news that something is not allowed.
    Answered,
    /// Answered with an error, or not at all.
    Failed,
    /// Discord does not take an answer any more: it came too late from a replay.
    Expired,
    /// Discord said that it had been answered before, when we answered.
    Duplicated,
}

/// What every interaction has, whatever its type.
#[derive(Debug, Deserialize)]
struct Brief {
    #[serde(deserialize_with = "crate::shard::envelope::snowflake")]
    id: u64,
    token: String,
    #[serde(deserialize_with = "crate::shard::envelope::snowflake")]
    application_id: u64,
    #[serde(rename = "type")]
    kind: u8,
}

const KIND_COMMAND: u8 = 2;
const KIND_AUTOCOMPLETE: u8 = 4;

/// Handles one interaction to its end. Never panics, never takes longer than the guard allows. `standing` is what
/// Discord said of one that came as a replay.
pub async fn handle(
    services: &Services,
    shard: u32,
    payload: &str,
    sent: Instant,
    standing: Option<Standing>,
) -> Outcome {
    let Ok(brief) = serde_json::from_str::<Brief>(payload) else {
        warn!(shard, "an interaction without id, token or type");
        return Outcome::Failed;
    };
    let target = Target {
        id: InteractionId::new(brief.id.max(1)),
        application: ApplicationId::new(brief.application_id.max(1)),
        token: &brief.token,
        sent,
        standing,
    };
    match brief.kind {
        KIND_COMMAND => match serde_json::from_str::<CommandInteraction>(payload) {
            Ok(interaction) => guard::run(services, shard, &interaction, target).await,
            Err(error) => {
                // The position is shown, not the text: it holds the token.
                warn!(
                    shard,
                    line = error.line(),
                    column = error.column(),
                    "a command that cannot be decoded"
                );
                let reply = commands::Reply::private("Sorry, I could not understand this command.");
                guard::answer(services, &target, &reply).await;
                Outcome::Failed
            }
        },
        KIND_AUTOCOMPLETE => {
            let nothing = json!({ "type": 8, "data": { "choices": [] } });
            guard::callback(services, &target, &nothing).await
        }
        _ => {
            let reply = commands::Reply::private("This control is no longer active.");
            guard::answer(services, &target, &reply).await
        }
    }
}

/// What became of an interaction that came as a replay.
pub async fn look_up(services: &Services, payload: &str) -> Standing {
    match serde_json::from_str::<Brief>(payload) {
        // There is no message to look up, and a second list of choices does no harm.
        Ok(brief) if brief.kind == KIND_AUTOCOMPLETE => Standing::Open,
        Ok(brief) => {
            let application = ApplicationId::new(brief.application_id.max(1));
            standing::look_up(services, application, &brief.token).await
        }
        Err(_) => Standing::Unknown,
    }
}
