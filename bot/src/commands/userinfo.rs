//! `/userinfo`: a member: age, roles, warnings.

use serenity::all::{CommandOptionType, CreateCommandOption, Member, User};
use serenity::http::{LightMethod, Request, Route};

use super::options::Options;
use super::{Command, CommandError, Context, Reply};
use crate::cases;
use crate::interactions::panel::{BLUE, Panel, plain};

/// Roles shown by name.
const ROLES_SHOWN: usize = 20;

/// The command.
pub const COMMAND: Command = Command {
    name: "userinfo",
    summary: "Show a member: how long they have been here, roles, warnings",
    details: "Without an option it shows you. The number of warnings is shown to moderators only.",
    private: true,
    guild_only: true,
    permission: None,
    options: || vec![CreateCommandOption::new(CommandOptionType::User, "member", "Whom to show; you, when left out")],
    run: |context| Box::pin(run(context)),
};

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild_id = context.guild()?;
    let options = Options::of(&context.interaction.data);
    let user = options.user("member").map_or(&context.interaction.user, |(user, _)| user);
    let request = Request::new(Route::GuildMember { guild_id, user_id: user.id }, LightMethod::Get);
    let member = match context.services.rest.fetch::<Member>(request).await {
        Ok(member) => Some(member),
        // Somebody who left can still be looked up.
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    let moderator = context
        .interaction
        .member
        .as_ref()
        .and_then(|member| member.permissions)
        .is_some_and(|held| held.moderate_members() || held.administrator());
    let warnings = if moderator && context.services.database.is_configured() {
        Some(cases::count_active(&context.services.database, guild_id.get(), user.id.get()).await?)
    } else {
        None
    };
    Ok(reply(&Facts::of(user, member.as_ref()), warnings))
}

struct Facts {
    id: u64,
    name: String,
    bot: bool,
    created: i64,
    joined: Option<i64>,
    nick: Option<String>,
    roles: Vec<u64>,
    timeout_until: Option<i64>,
    here: bool,
    avatar: Option<String>,
}

impl Facts {
    fn of(user: &User, member: Option<&Member>) -> Self {
        Self {
            id: user.id.get(),
            name: user.tag(),
            bot: user.bot,
            created: user.id.created_at().unix_timestamp(),
            joined: member.and_then(|member| member.joined_at).map(|at| at.unix_timestamp()),
            nick: member.and_then(|member| member.nick.clone()),
            roles: member.map(|member| member.roles.iter().map(|role| role.get()).collect()).unwrap_or_default(),
            timeout_until: member
                .and_then(|member| member.communication_disabled_until)
                .map(|at| at.unix_timestamp())
                .filter(|until| *until > jiff::Timestamp::now().as_second()),
            here: member.is_some(),
            avatar: user.avatar_url(),
        }
    }
}

fn reply(facts: &Facts, warnings: Option<u64>) -> Reply {
    let mut panel = Panel::new(plain(&facts.name), BLUE)
        .thumbnail(facts.avatar.clone())
        .field("User", format!("<@{}>{}", facts.id, if facts.bot { " (bot)" } else { "" }))
        .field("Account created", format!("<t:{0}:D> (<t:{0}:R>)", facts.created));
    if let Some(joined) = facts.joined {
        panel = panel.field("Joined", format!("<t:{joined}:D> (<t:{joined}:R>)"));
    } else if !facts.here {
        panel = panel.field("Joined", "not a member of this server");
    }
    if let Some(nick) = &facts.nick {
        panel = panel.field("Nickname", plain(nick));
    }
    if let Some(until) = facts.timeout_until {
        panel = panel.field("Timed out", format!("until <t:{until}:R>"));
    }
    if let Some(warnings) = warnings {
        panel = panel.field("Active warnings", warnings);
    }
    if facts.here {
        let mut roles: Vec<String> = facts.roles.iter().take(ROLES_SHOWN).map(|role| format!("<@&{role}>")).collect();
        if facts.roles.len() > ROLES_SHOWN {
            roles.push(format!("and {} more", facts.roles.len() - ROLES_SHOWN));
        }
        let shown = if roles.is_empty() { "none".to_owned() } else { roles.join(" ") };
        panel = panel.row(format!("Roles ({})", facts.roles.len()), shown);
    }
    Reply::private_panel(panel.footer(format!("ID {}", facts.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            id: 80_351_110_224_678_912,
            name: "ada_l".to_owned(),
            bot: false,
            created: 1_439_475_000,
            joined: Some(1_500_000_000),
            nick: Some("Ada".to_owned()),
            roles: (1..=22).collect(),
            timeout_until: Some(1_800_000_000),
            here: true,
            avatar: Some("https://cdn.example/a.webp".to_owned()),
        }
    }

    #[test]
    fn shows_a_member_and_one_who_left() {
        insta::assert_snapshot!("userinfo", reply(&facts(), Some(2)).pretty());
        let left = Facts { joined: None, nick: None, roles: vec![], timeout_until: None, here: false, avatar: None, ..facts() };
        insta::assert_snapshot!("userinfo_left", reply(&left, None).pretty());
    }
}
