//! `/help`: what there is, or one command in detail.

use serenity::all::{CommandOptionType, CreateCommandOption};

use super::options::Options;
use super::{COMMANDS, Command, CommandError, Reply};
use crate::interactions::panel::{BLUE, Panel};

/// The command.
pub const COMMAND: Command = Command {
    name: "help",
    summary: "List the commands, or explain one of them",
    details: "Without an option it lists all commands. With one it shows what the command does and who may use it.",
    private: true,
    guild_only: false,
    permission: None,
    options,
    run: |context| Box::pin(async move { reply(Options::of(&context.interaction.data).text("command")) }),
};

fn options() -> Vec<CreateCommandOption> {
    let mut option = CreateCommandOption::new(CommandOptionType::String, "command", "The command to explain");
    // Discord takes 25 choices at most.
    for command in COMMANDS.iter().take(25) {
        option = option.add_string_choice(command.name, command.name);
    }
    vec![option]
}

fn reply(about: Option<&str>) -> Result<Reply, CommandError> {
    let Some(name) = about else {
        let list: Vec<String> = COMMANDS
            .iter()
            .map(|command| format!("**/{}** · {}", command.name, command.summary))
            .collect();
        let panel = Panel::new("Commands", BLUE).description(list.join("\n")).footer("/help command:<name> explains one of them");
        return Ok(Reply::private_panel(panel));
    };
    let name = name.trim_start_matches('/');
    let command = super::find(name)
        .ok_or_else(|| CommandError::refused(format!("There is no command `/{}`.", crate::interactions::panel::plain(name))))?;
    let needs = command.permission.map_or("nothing".to_owned(), |permission| permission.to_string());
    let mut panel = Panel::new(format!("/{}", command.name), BLUE)
        .description(format!("{}.\n\n{}", command.summary, command.details))
        .field("Permission needed", needs)
        .field("Works in", if command.guild_only { "servers" } else { "servers and direct messages" })
        .field("Answer seen by", if command.private { "you" } else { "everyone" });
    let options: Vec<String> = serde_json::to_value((command.options)())
        .ok()
        .and_then(|options| options.as_array().cloned())
        .unwrap_or_default()
        .iter()
        .map(|option| {
            let text = |name: &str| option[name].as_str().unwrap_or_default().to_owned();
            let needed = if option["required"] == true { " (required)" } else { "" };
            format!("`{}`{needed} · {}", text("name"), text("description"))
        })
        .collect();
    if !options.is_empty() {
        panel = panel.row("Options", options.join("\n"));
    }
    Ok(Reply::private_panel(panel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_all_and_explains_each() {
        insta::assert_snapshot!("help", reply(None).unwrap().pretty());
        insta::assert_snapshot!("help_warn", reply(Some("warn")).unwrap().pretty());
        for command in COMMANDS {
            assert!(reply(Some(command.name)).is_ok());
        }
        assert!(matches!(reply(Some("*nothing*")), Err(CommandError::Refused(words)) if words.contains("\\*nothing")));
    }
}
