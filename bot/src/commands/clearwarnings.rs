//! `/clearwarnings`: makes warnings inactive; the cases stay.

use serenity::all::{CommandOptionType, CreateCommandOption, Permissions};

use super::options::Options;
use super::{Command, CommandError, Context, Reply};
use crate::cases;
use crate::interactions::panel::{GREEN, Panel};

/// Largest case number that can be named: that of the database's column.
const CASE_MAX: i64 = i32::MAX as i64;

/// The command.
pub const COMMAND: Command = Command {
    name: "clearwarnings",
    summary: "Clear one or all warnings of a member",
    details: "Cleared warnings do not count towards the limit any more. They stay in /warnings, marked as cleared.",
    private: true,
    guild_only: true,
    permission: Some(Permissions::MODERATE_MEMBERS),
    options,
    run: |context| Box::pin(run(context)),
};

fn options() -> Vec<CreateCommandOption> {
    vec![
        CreateCommandOption::new(CommandOptionType::User, "member", "Whose warnings").required(true),
        CreateCommandOption::new(CommandOptionType::Integer, "case", "Only this case; all, when left out")
            .min_int_value(1)
            .max_int_value(CASE_MAX as u64),
    ]
}

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild = context.guild()?;
    let options = Options::of(&context.interaction.data);
    let (target, _) = options.user("member").ok_or_else(|| CommandError::refused("Say whose warnings to clear."))?;
    if target.id == context.user() {
        return Err(CommandError::refused("You cannot clear your own warnings. Ask another moderator."));
    }
    let case = options.number("case", 1, CASE_MAX);
    let cleared = cases::clear(&context.services.database, guild.get(), target.id.get(), case).await?;
    Ok(reply(target.id.get(), case, cleared))
}

fn reply(target: u64, case: Option<i64>, cleared: u64) -> Reply {
    match (cleared, case) {
        (0, Some(case)) => Reply::private(format!("<@{target}> has no active warning with the number {case}.")),
        (0, None) => Reply::private(format!("<@{target}> has no active warnings.")),
        (cleared, _) => {
            let what = if cleared == 1 { "warning" } else { "warnings" };
            let panel = Panel::new("Cleared", GREEN).description(format!("{cleared} {what} of <@{target}> no longer count."));
            Reply::private_panel(panel)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_cleared() {
        insta::assert_snapshot!("clearwarnings", reply(11, None, 3).pretty());
        insta::assert_snapshot!("clearwarnings_one", reply(11, Some(7), 1).pretty());
        insta::assert_snapshot!("clearwarnings_none", reply(11, Some(7), 0).pretty());
    }
}
