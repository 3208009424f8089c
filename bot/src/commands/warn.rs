//! `/warn`: writes a moderation case, and acts when a member has too many.

use serde_json::json;
use serenity::all::{ChannelId, CommandOptionType, CreateCommandOption, GuildId, InteractionId, Permissions, UserId};
use serenity::http::{LightMethod, Request, Route};

use super::options::Options;
use super::{Command, CommandError, Context, Reply};
use crate::cases::{self, NewWarning, REASON_MAX};
use crate::interactions::panel::{AMBER, Panel, plain, shorten};
use crate::rest::{Rest, RestError, json_body};
use crate::settings::{Settings, WarnAction};
use crate::shard::duty::time_of;

/// The command.
pub const COMMAND: Command = Command {
    name: "warn",
    summary: "Warn a member; the warning is kept as a numbered case",
    details: "The case is announced in the server's `log_channel`. A member who reaches `warn_limit` active warnings gets \
              the `warn_action`. See /config. Bots and yourself cannot be warned.",
    private: true,
    guild_only: true,
    permission: Some(Permissions::MODERATE_MEMBERS),
    options,
    run: |context| Box::pin(run(context)),
};

fn options() -> Vec<CreateCommandOption> {
    vec![
        CreateCommandOption::new(CommandOptionType::User, "member", "Whom to warn").required(true),
        CreateCommandOption::new(CommandOptionType::String, "reason", "What they did")
            .required(true)
            .min_length(1)
            .max_length(REASON_MAX as u16),
    ]
}

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild = context.guild()?;
    let options = Options::of(&context.interaction.data);
    let (target, _) = options.user("member").ok_or_else(|| CommandError::refused("Say whom to warn."))?;
    let reason = shorten(options.text("reason").unwrap_or_default().trim(), REASON_MAX);
    check(target.bot, target.id, context.user(), &reason)?;

    let services = context.services;
    let settings = services.settings.get(guild.get()).await?;
    let warning = NewWarning {
        guild: guild.get(),
        interaction: context.interaction.id.get(),
        target: target.id.get(),
        moderator: context.user().get(),
        reason: &reason,
    };
    let number = cases::warn(&services.database, warning).await?;
    let active = cases::count_active(&services.database, guild.get(), target.id.get()).await?;

    // From here on the case is written; what fails now is told, not undone.
    let interaction = context.interaction.id;
    let mut notes = Vec::new();
    if settings.warn_dm && tell_member(&services.rest, target.id, interaction, number, &reason).await.is_err() {
        notes.push("They could not be told by direct message.".to_owned());
    }
    if let Some(action) = due(&settings, active) {
        notes.push(match act(&services.rest, guild, target.id, action, &settings, (interaction, number)).await {
            Ok(()) => format!("They reached {} active warnings: {}.", settings.warn_limit, done(action, &settings)),
            Err(error) => format!("They reached {} active warnings, but `{}` did not work: {error}.", settings.warn_limit, action.name()),
        });
    }
    let facts = Facts { number, target: target.id.get(), moderator: context.user().get(), reason: &reason, active };
    if let Some(channel) = settings.log_channel
        && let Err(error) = announce(&services.rest, channel, interaction, &facts, &notes).await
    {
        notes.push(format!("It could not be announced in <#{channel}>: {error}."));
    }
    Ok(reply(&facts, &notes))
}

fn check(bot: bool, target: UserId, moderator: UserId, reason: &str) -> Result<(), CommandError> {
    if bot {
        return Err(CommandError::refused("Bots cannot be warned."));
    }
    if target == moderator {
        return Err(CommandError::refused("You cannot warn yourself."));
    }
    if reason.is_empty() {
        return Err(CommandError::refused("Give a reason: it is what the member and other moderators will read."));
    }
    Ok(())
}

/// The action that this many active warnings call for.
fn due(settings: &Settings, active: u64) -> Option<WarnAction> {
    let limit = u64::from(settings.warn_limit);
    (limit > 0 && active >= limit && settings.warn_action != WarnAction::None).then_some(settings.warn_action)
}

fn done(action: WarnAction, settings: &Settings) -> String {
    match action {
        WarnAction::None => "nothing was done".to_owned(),
        WarnAction::Timeout => format!("timed out for {} minutes", settings.warn_timeout_minutes),
        WarnAction::Kick => "removed from the server".to_owned(),
    }
}

async fn act(
    rest: &Rest,
    guild_id: GuildId,
    user_id: UserId,
    action: WarnAction,
    settings: &Settings,
    (interaction, number): (InteractionId, i64),
) -> Result<(), RestError> {
    let route = Route::GuildMember { guild_id, user_id };
    let request = match action {
        WarnAction::None => return Ok(()),
        WarnAction::Kick => Request::new(route, LightMethod::Delete),
        WarnAction::Timeout => {
            let seconds = i64::from(settings.warn_timeout_minutes) * 60;
            // From the moment of the command: a replay sets the same end again.
            let until = jiff::Timestamp::from_millisecond(time_of(interaction.get()))
                .and_then(|at| at.checked_add(jiff::SignedDuration::from_secs(seconds)))
                .map_err(|_| RestError::Undecodable)?;
            let body = json!({ "communication_disabled_until": until.to_string() });
            Request::new(route, LightMethod::Patch).body(json_body(&body))
        }
    };
    match rest.call(with_reason(request, &format!("warning limit reached, case {number}"))).await {
        // Gone: by a first run of this command whose answer got lost, or by themselves.
        Err(error) if action == WarnAction::Kick && error.is_not_found() => Ok(()),
        result => result.map(|_| ()),
    }
}

/// The reason for the server's audit log.
fn with_reason<'a>(request: Request<'a>, reason: &str) -> Request<'a> {
    let mut headers = reqwest::header::HeaderMap::new();
    if let Ok(value) = reqwest::header::HeaderValue::from_str(reason) {
        headers.insert("x-audit-log-reason", value);
    }
    request.headers(Some(headers))
}

async fn tell_member(rest: &Rest, user: UserId, interaction: InteractionId, number: i64, reason: &str) -> Result<(), RestError> {
    #[derive(serde::Deserialize)]
    struct Channel {
        id: ChannelId,
    }
    let body = json!({ "recipient_id": user.to_string() });
    let request = Request::new(Route::UserMeDmChannels, LightMethod::Post).body(json_body(&body));
    let channel: Channel = rest.fetch(request).await?;
    let panel = Panel::new("You have been warned", AMBER)
        .description(plain(reason))
        .footer(format!("Case {number}"));
    send(rest, channel.id, format!("{interaction}d"), &Reply::public_panel(panel)).await
}

async fn announce(rest: &Rest, channel: u64, interaction: InteractionId, facts: &Facts<'_>, notes: &[String]) -> Result<(), RestError> {
    let panel = facts.panel(notes).field("Moderator", format!("<@{}>", facts.moderator));
    send(rest, ChannelId::new(channel.max(1)), format!("{interaction}l"), &Reply::public_panel(panel)).await
}

/// Sends a message once: Discord gives back the first one when the same nonce comes again within minutes, as from
/// a replay after a crash. It takes 25 characters.
async fn send(rest: &Rest, channel_id: ChannelId, nonce: String, message: &Reply) -> Result<(), RestError> {
    let route = Route::ChannelMessages { channel_id };
    let mut body = message.body();
    body["nonce"] = json!(nonce);
    body["enforce_nonce"] = json!(true);
    rest.call(Request::new(route, LightMethod::Post).body(json_body(&body))).await.map(|_| ())
}

struct Facts<'a> {
    number: i64,
    target: u64,
    moderator: u64,
    reason: &'a str,
    active: u64,
}

impl Facts<'_> {
    fn panel(&self, notes: &[String]) -> Panel {
        let panel = Panel::new(format!("Case {}: warning", self.number), AMBER)
            .field("Member", format!("<@{}>", self.target))
            .field("Active warnings", self.active)
            .row("Reason", plain(self.reason));
        if notes.is_empty() { panel } else { panel.row("Note", notes.join("\n")) }
    }
}

fn reply(facts: &Facts<'_>, notes: &[String]) -> Reply {
    Reply::private_panel(facts.panel(notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bots_oneself_and_nothing_are_refused() {
        let user = UserId::new;
        assert!(check(false, user(1), user(2), "spam").is_ok());
        for (bot, target, reason, words) in [(true, 1, "x", "Bots"), (false, 2, "x", "yourself"), (false, 1, "", "reason")] {
            let refused = check(bot, user(target), user(2), reason).unwrap_err();
            assert!(matches!(refused, CommandError::Refused(said) if said.contains(words)));
        }
    }

    #[test]
    fn the_action_comes_with_the_limit() {
        let settings = Settings { warn_limit: 3, warn_action: WarnAction::Timeout, ..Settings::default() };
        assert_eq!(due(&settings, 2), None);
        assert_eq!(due(&settings, 3), Some(WarnAction::Timeout));
        assert_eq!(due(&Settings { warn_limit: 0, ..settings }, 99), None);
        assert_eq!(due(&Settings { warn_action: WarnAction::None, ..settings }, 99), None);
    }

    #[test]
    fn the_case_is_shown() {
        let facts = Facts { number: 7, target: 11, moderator: 12, reason: "spam\n@everyone", active: 3 };
        insta::assert_snapshot!("warn", reply(&facts, &[]).pretty());
        let notes = ["They reached 3 active warnings: timed out for 60 minutes.".to_owned()];
        insta::assert_snapshot!("warn_limit", reply(&facts, &notes).pretty());
    }
}
