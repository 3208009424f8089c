//! `/serverinfo`: this server, its settings and how busy it has been.

use serenity::all::PartialGuild;
use serenity::http::{LightMethod, Request, Route};

use super::{Command, CommandError, Context, Reply};
use crate::activity::SHOWN_DAYS;
use crate::database::DbError;
use crate::interactions::panel::{BLUE, Panel, plain};

/// The command.
pub const COMMAND: Command = Command {
    name: "serverinfo",
    summary: "Show this server: age, members, roles, and how busy it has been",
    details: "Message counts are those that the bot has seen, by day in UTC. Messages of bots do not count.",
    private: false,
    guild_only: true,
    permission: None,
    options: Vec::new,
    run: |context| Box::pin(run(context)),
};

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild_id = context.guild()?;
    let request = Request::new(Route::Guild { guild_id }, LightMethod::Get)
        .params(Some(vec![("with_counts", "true".to_owned())]));
    let (guild, days) =
        tokio::join!(context.services.rest.fetch::<PartialGuild>(request), context.services.activity.days(guild_id.get()));
    // The rest of the answer is worth having without the database.
    let days = match days {
        Ok(days) => Activity::Days(days),
        Err(DbError::Absent) => Activity::NotKept,
        Err(_) => Activity::Unreachable,
    };
    Ok(reply(&Facts::of(&guild?), &days, context.shard))
}

/// What is known of the messages here.
enum Activity {
    /// Today first.
    Days([u64; SHOWN_DAYS]),
    /// There is a database, but it does not answer.
    Unreachable,
    /// There is no database.
    NotKept,
}

/// What is shown of a guild.
struct Facts {
    id: u64,
    name: String,
    owner: u64,
    created: i64,
    members: Option<u64>,
    online: Option<u64>,
    roles: usize,
    emojis: usize,
    boosts: u64,
    tier: u8,
    verification: String,
    locale: String,
    icon: Option<String>,
}

impl Facts {
    fn of(guild: &PartialGuild) -> Self {
        Self {
            id: guild.id.get(),
            name: guild.name.clone(),
            owner: guild.owner_id.get(),
            created: guild.id.created_at().unix_timestamp(),
            members: guild.approximate_member_count,
            online: guild.approximate_presence_count,
            roles: guild.roles.len(),
            emojis: guild.emojis.len(),
            boosts: guild.premium_subscription_count.unwrap_or(0),
            tier: u8::from(guild.premium_tier),
            verification: format!("{:?}", guild.verification_level).to_lowercase(),
            locale: guild.preferred_locale.clone(),
            icon: guild.icon_url(),
        }
    }
}

fn reply(facts: &Facts, days: &Activity, shard: u32) -> Reply {
    let number = |number: Option<u64>| number.map_or("unknown".to_owned(), |number| number.to_string());
    let mut panel = Panel::new(plain(&facts.name), BLUE)
        .thumbnail(facts.icon.clone())
        .field("Owner", format!("<@{}>", facts.owner))
        .field("Created", format!("<t:{0}:D> (<t:{0}:R>)", facts.created))
        .field("Members", format!("{} ({} online)", number(facts.members), number(facts.online)))
        .field("Roles", facts.roles)
        .field("Emojis", facts.emojis)
        .field("Boosts", format!("{} (level {})", facts.boosts, facts.tier))
        .field("Verification", &facts.verification)
        .field("Language", &facts.locale);
    match days {
        Activity::NotKept => {}
        Activity::Unreachable => panel = panel.row("Messages", "The database does not answer right now."),
        Activity::Days(days) => {
            let total: u64 = days.iter().sum();
            panel = panel.row("Messages", format!("{} today, {total} in {SHOWN_DAYS} days\n`{}`", days[0], bars(*days)));
        }
    }
    Reply::public_panel(panel.footer(format!("ID {} · shard {shard}", facts.id)))
}

/// One bar a day, oldest first.
fn bars(mut days: [u64; SHOWN_DAYS]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    days.reverse();
    let most = days.iter().copied().max().unwrap_or(0).max(1);
    days.iter().map(|count| BARS[(count * 7).div_ceil(most).min(7) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            id: 81_384_788_765_712_384,
            name: "Rust *and* friends".to_owned(),
            owner: 80_351_110_224_678_912,
            created: 1_439_475_000,
            members: Some(4321),
            online: Some(123),
            roles: 12,
            emojis: 3,
            boosts: 7,
            tier: 2,
            verification: "medium".to_owned(),
            locale: "en-US".to_owned(),
            icon: None,
        }
    }

    #[test]
    fn shows_the_server() {
        insta::assert_snapshot!("serverinfo", reply(&facts(), &Activity::Days([5, 70, 35, 0, 10, 1, 70]), 3).pretty());
        let bare = Facts { members: None, online: None, ..facts() };
        insta::assert_snapshot!("serverinfo_without_database", reply(&bare, &Activity::Unreachable, 0).pretty());
    }

    #[test]
    fn bars_fit_any_count() {
        assert_eq!(bars([0; SHOWN_DAYS]), "▁▁▁▁▁▁▁");
        assert_eq!(bars([u64::MAX / 8, 0, 0, 0, 0, 0, 1]), "▂▁▁▁▁▁█");
    }
}
