//! `/warnings`: a member's warnings, page by page.

use serenity::all::{CommandOptionType, CreateCommandOption, Permissions};

use super::options::Options;
use super::{Command, CommandError, Context, Reply};
use crate::cases::{self, Case};
use crate::interactions::panel::{AMBER, GREEN, Panel, plain, shorten};

/// Warnings on a page. With reasons cut to 200 characters they fit an embed.
const PER_PAGE: u64 = 8;
/// Characters of a reason shown.
const REASON_SHOWN: usize = 200;
/// Pages that can be asked for.
const PAGE_MAX: i64 = 1_000;

/// The command.
pub const COMMAND: Command = Command {
    name: "warnings",
    summary: "List the warnings of a member",
    details: "Newest first, eight on a page. Without an option it lists your own. Those of others need Moderate Members.",
    private: true,
    guild_only: true,
    permission: None,
    options,
    run: |context| Box::pin(run(context)),
};

fn options() -> Vec<CreateCommandOption> {
    vec![
        CreateCommandOption::new(CommandOptionType::User, "member", "Whose warnings; yours, when left out"),
        CreateCommandOption::new(CommandOptionType::Integer, "page", "Which page; the first, when left out")
            .min_int_value(1)
            .max_int_value(PAGE_MAX as u64),
    ]
}

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild = context.guild()?;
    let options = Options::of(&context.interaction.data);
    let target = options.user("member").map_or(context.user(), |(user, _)| user.id);
    let held = context.interaction.member.as_ref().and_then(|member| member.permissions).unwrap_or(Permissions::empty());
    if target != context.user() && !held.moderate_members() && !held.administrator() {
        return Err(CommandError::refused(
            "You need the permission **Moderate Members** to see the warnings of others. Without an option I show you yours.",
        ));
    }
    let page = options.number("page", 1, PAGE_MAX).unwrap_or(1) as u64;
    let (warnings, total) =
        cases::page(&context.services.database, guild.get(), target.get(), page - 1, PER_PAGE).await?;
    Ok(reply(target.get(), &warnings, total, page))
}

fn reply(target: u64, warnings: &[Case], total: u64, page: u64) -> Reply {
    let pages = total.div_ceil(PER_PAGE).max(1);
    if total == 0 {
        let panel = Panel::new("No warnings", GREEN).description(format!("<@{target}> has no warnings here."));
        return Reply::private_panel(panel);
    }
    if warnings.is_empty() {
        return Reply::private(format!("There are {total} warnings on {pages} pages; page {page} does not exist."));
    }
    let mut panel = Panel::new(format!("Warnings ({total})"), AMBER)
        .description(format!("of <@{target}>, newest first"))
        .footer(format!("Page {page} of {pages}"));
    for case in warnings {
        let state = if case.active { "" } else { " · cleared" };
        let when = if case.at > 0 { format!("<t:{}:R>", case.at) } else { "at an unknown time".to_owned() };
        panel = panel.row(
            format!("Case {}{state}", case.number),
            format!("{}\nby <@{}> {when}", shorten(&plain(&case.reason), REASON_SHOWN), case.moderator),
        );
    }
    Reply::private_panel(panel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(number: i64, active: bool) -> Case {
        Case { number, target: 11, moderator: 12, reason: "spam".to_owned(), at: 1_795_230_000, active }
    }

    #[test]
    fn shows_pages() {
        insta::assert_snapshot!("warnings", reply(11, &[case(9, true), case(4, false)], 10, 2).pretty());
        insta::assert_snapshot!("warnings_none", reply(11, &[], 0, 1).pretty());
        insta::assert_snapshot!("warnings_beyond", reply(11, &[], 10, 3).pretty());
    }

    #[test]
    fn a_full_page_of_long_reasons_keeps_the_limits() {
        let long = Case { reason: "*".repeat(512), ..case(1, false) };
        let body = reply(11, &vec![long; PER_PAGE as usize], 8, 1).body();
        let fields = body["embeds"][0]["fields"].as_array().unwrap();
        assert_eq!(fields.len(), PER_PAGE as usize);
        assert!(fields.iter().all(|field| field["value"].as_str().unwrap().contains("by <@12>")));
    }
}
