//! Answers a command exactly once and in time.
//!
//! A handler returns its reply; only this module talks to Discord. When the handler takes too long the
//! interaction is deferred and the reply follows as an edit. So there is one first answer by construction.
//! One that came as a replay is deferred before its command runs: only one process can do that, and Discord
//! refuses it for an interaction that is too old, before anything has been done.
//! The interaction's token is never logged.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use serenity::all::{ApplicationId, CommandInteraction, InteractionId, Permissions};
use serenity::http::{LightMethod, Request, Route};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{Outcome, standing};
use crate::commands::{self, Command, CommandError, Context, Reply};
use crate::rest::{RestError, json_body};
use crate::services::Services;
use crate::shard::duty::Standing;

/// Discord wants the first answer within 3 s of sending the interaction. Deferring at 2.5 s would leave half
/// a second for the way of both messages; this leaves a whole one.
const DEFER_AFTER: Duration = Duration::from_secs(2);
/// Longest run of a handler. Discord takes edits for 15 minutes; nobody waits that long.
const HANDLER_WITHIN: Duration = Duration::from_secs(45);
/// Tries for one answer.
const TRIES: u32 = 3;

/// An interaction to be answered.
pub struct Target<'a> {
    /// Its id.
    pub id: InteractionId,
    /// The application, for the route of edits.
    pub application: ApplicationId,
    /// The secret that lets one answer it.
    pub token: &'a str,
    /// When Discord sent it: its time for the first answer counts from there.
    pub sent: Instant,
    /// What Discord said of it, when it came as a replay.
    pub standing: Option<Standing>,
}

/// What became of a first answer.
enum First {
    /// Discord took it.
    Taken,
    /// There was one before.
    Before(Standing),
    /// Neither.
    Unsent(Outcome),
}

/// Runs a command and answers.
pub async fn run(
    services: &Services,
    shard: u32,
    interaction: &CommandInteraction,
    target: Target<'_>,
) -> Outcome {
    let Some(command) = commands::find(&interaction.data.name) else {
        let reply = Reply::private(
            "I do not know this command any more. It should disappear from the list within an hour.",
        );
        return answer(services, &target, &reply).await;
    };
    if let Some(refusal) = refusal(command, interaction) {
        return answer(services, &target, &refusal).await;
    }
    let context = Context {
        services,
        shard,
        interaction,
    };
    let mut deferred = target.standing == Some(Standing::Deferred);
    let mut duplicated = false;
    let defer = async || match first(
        services,
        &target,
        &json!({ "type": 5, "data": flags(command.private) }),
    )
    .await
    {
        First::Taken => Ok(false),
        First::Before(Standing::Deferred | Standing::Unknown) => Ok(true),
        First::Before(_) => Err(Outcome::Duplicated),
        First::Unsent(outcome) => Err(outcome),
    };
    // Old already: a replay, or held back. Who may answer it is settled before anything is done.
    if !deferred && (target.standing.is_some() || target.sent.elapsed() >= DEFER_AFTER) {
        match defer().await {
            Ok(before) => duplicated = before,
            Err(outcome) => return outcome,
        }
        deferred = true;
    }
    let work = tokio::time::timeout(
        HANDLER_WITHIN,
        AssertUnwindSafe((command.run)(&context)).catch_unwind(),
    );
    tokio::pin!(work);
    let result = tokio::select! {
        biased;
        result = &mut work => result,
        () = tokio::time::sleep_until(target.sent + DEFER_AFTER), if !deferred => {
            match defer().await {
                Ok(before) => duplicated = before,
                Err(outcome) => return outcome,
            }
            deferred = true;
            work.await
        }
    };
    let (reply, failed) = match result {
        Ok(Ok(Ok(reply))) => (reply, false),
        Ok(Ok(Err(CommandError::Refused(words)))) => (Reply::private(words), false),
        Ok(Ok(Err(CommandError::Failed { words, source }))) => (
            reported(command, interaction, shard, words, &chain(source.as_ref())),
            true,
        ),
        Ok(Err(_panic)) => (
            reported(command, interaction, shard, SORRY, "the handler panicked"),
            true,
        ),
        Err(_elapsed) => (
            reported(
                command,
                interaction,
                shard,
                SORRY,
                "the handler took too long",
            ),
            true,
        ),
    };
    let outcome = if deferred {
        edit(services, &target, &reply).await
    } else {
        answer(services, &target, &reply).await
    };
    match outcome {
        Outcome::Answered if duplicated => Outcome::Duplicated,
        Outcome::Answered if failed => Outcome::Failed,
        outcome => outcome,
    }
}

const SORRY: &str = "Sorry, something went wrong on my side.";

/// Why this member may not run this command here. Discord checks the permission too, but an administrator
/// of the guild can override that, and a foreign tool can send what it likes.
fn refusal(command: &Command, interaction: &CommandInteraction) -> Option<Reply> {
    if command.guild_only && interaction.guild_id.is_none() {
        return Some(Reply::private("This command works in servers only."));
    }
    let needed = command.permission?;
    let held = interaction
        .member
        .as_ref()
        .and_then(|member| member.permissions)
        .unwrap_or(Permissions::empty());
    if held.contains(needed) || held.contains(Permissions::ADMINISTRATOR) {
        return None;
    }
    Some(Reply::private(format!(
        "You need the permission **{needed}** to use this command."
    )))
}

/// Logs a failure under an id and tells the user that id.
fn reported(
    command: &Command,
    interaction: &CommandInteraction,
    shard: u32,
    words: &str,
    why: &str,
) -> Reply {
    let id: String =
        std::iter::repeat_with(|| fastrand::choice(b"23456789ABCDEFGHJKMNPQRSTVWXYZ".iter()))
            .filter_map(|letter| letter.map(|letter| char::from(*letter)))
            .take(8)
            .collect();
    let guild = interaction.guild_id.map_or(0, serenity::all::GuildId::get);
    error!(error_id = %id, command = command.name, shard, guild, error = why, "a command failed");
    Reply::private(format!(
        "{words}\nIf it happens again, tell the operator this error id: `{id}`"
    ))
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn flags(private: bool) -> Value {
    // 64 = ephemeral.
    if private {
        json!({ "flags": 64 })
    } else {
        json!({})
    }
}

/// The answer.
pub async fn answer(services: &Services, target: &Target<'_>, reply: &Reply) -> Outcome {
    if target.standing == Some(Standing::Deferred) {
        return edit(services, target, reply).await;
    }
    let mut data = reply.body();
    if reply.private {
        data["flags"] = json!(64);
    }
    match first(services, target, &json!({ "type": 4, "data": data })).await {
        First::Taken => Outcome::Answered,
        // Whoever deferred it is gone: an edit makes it right.
        First::Before(Standing::Deferred) => match edit(services, target, reply).await {
            Outcome::Answered => Outcome::Duplicated,
            outcome => outcome,
        },
        First::Before(_) => Outcome::Duplicated,
        First::Unsent(outcome) => outcome,
    }
}

/// Any other first answer.
pub async fn callback(services: &Services, target: &Target<'_>, body: &Value) -> Outcome {
    match first(services, target, body).await {
        First::Taken => Outcome::Answered,
        First::Before(_) => Outcome::Duplicated,
        First::Unsent(outcome) => outcome,
    }
}

async fn first(services: &Services, target: &Target<'_>, body: &Value) -> First {
    match send(services, target, body).await {
        Ok(()) => First::Taken,
        Err(error) if error.is_already_answered() => {
            First::Before(standing::look_up(services, target.application, target.token).await)
        }
        Err(error) => First::Unsent(unsent(&error)),
    }
}

async fn send(services: &Services, target: &Target<'_>, body: &Value) -> Result<(), RestError> {
    let mut tries = 1;
    loop {
        let route = Route::InteractionResponse {
            interaction_id: target.id,
            token: target.token,
        };
        let request = Request::new(route, LightMethod::Post).body(json_body(body));
        match services.rest.callback(request).await {
            Err(error)
                if error.is_retryable() && tries < TRIES && target.sent.elapsed() < DEFER_AFTER =>
            {
                tries += 1;
                debug!(id = target.id.get(), %error, "trying a first answer again");
                tokio::time::sleep(Duration::from_millis(100).mul_f64(0.5 + fastrand::f64())).await;
            }
            result => return result,
        }
    }
}

/// The answer to an interaction that was deferred.
async fn edit(services: &Services, target: &Target<'_>, reply: &Reply) -> Outcome {
    let body = reply.body();
    for attempt in 1..=TRIES {
        let route = Route::WebhookOriginalInteractionResponse {
            application_id: target.application,
            token: target.token,
        };
        let request = Request::new(route, LightMethod::Patch).body(json_body(&body));
        match services.rest.callback(request).await {
            Ok(()) => return Outcome::Answered,
            Err(error) if error.is_retryable() && attempt < TRIES => {
                tokio::time::sleep(
                    Duration::from_secs(1 << attempt).mul_f64(0.5 + fastrand::f64() / 2.0),
                )
                .await;
            }
            Err(error) => return unsent(&error),
        }
    }
    Outcome::Failed
}

fn unsent(error: &RestError) -> Outcome {
    if error.is_expired() {
        return Outcome::Expired;
    }
    warn!(%error, "an interaction could not be answered");
    Outcome::Failed
}
