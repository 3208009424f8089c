//! `/config`: this server's settings.

use serenity::all::{CommandOptionType, CreateCommandOption, Permissions};

use super::options::Options;
use super::{Command, CommandError, Context, Reply};
use crate::interactions::panel::{BLUE, GREEN, Panel, plain};
use crate::settings::{SETTINGS, Setting, Settings};

/// Longest value that can be typed.
const VALUE_MAX: u16 = 100;

/// The command.
pub const COMMAND: Command = Command {
    name: "config",
    summary: "Show or change this server's settings",
    details: "`/config get` shows the settings with what each of them takes, `/config set` changes one, `/config reset` \
              puts one or all back to the default.",
    private: true,
    guild_only: true,
    permission: Some(Permissions::MANAGE_GUILD),
    options,
    run: |context| Box::pin(run(context)),
};

fn setting_option(about: &str) -> CreateCommandOption {
    SETTINGS.iter().fold(
        CreateCommandOption::new(CommandOptionType::String, "setting", about),
        |option, setting| option.add_string_choice(setting.name, setting.name),
    )
}

fn options() -> Vec<CreateCommandOption> {
    let subcommand = |name, about| CreateCommandOption::new(CommandOptionType::SubCommand, name, about);
    vec![
        subcommand("get", "Show the settings").add_sub_option(setting_option("Which; all, when left out")),
        subcommand("set", "Change a setting").add_sub_option(setting_option("Which").required(true)).add_sub_option(
            CreateCommandOption::new(CommandOptionType::String, "value", "The new value; /config get shows what it takes")
                .required(true)
                .min_length(1)
                .max_length(VALUE_MAX),
        ),
        subcommand("reset", "Put settings back to their defaults")
            .add_sub_option(setting_option("Which; all, when left out")),
    ]
}

async fn run(context: &Context<'_>) -> Result<Reply, CommandError> {
    let guild = context.guild()?.get();
    let store = &context.services.settings;
    let (verb, options) = Options::of(&context.interaction.data)
        .subcommand()
        .ok_or_else(|| CommandError::refused("Use `/config get`, `/config set` or `/config reset`."))?;
    let setting = options.text("setting").map(find).transpose()?;
    match (verb, setting) {
        ("get", setting) => Ok(shown(&store.get(guild).await?, setting)),
        ("set", Some(setting)) => {
            let value = setting
                .parse(options.text("value").unwrap_or_default())
                .map_err(|error| CommandError::refused(format!("{error}.")))?;
            let (before, after) = store.set(guild, setting, value.as_ref()).await?;
            Ok(changed(setting, &before, &after))
        }
        ("reset", Some(setting)) => {
            let (before, after) = store.set(guild, setting, None).await?;
            Ok(changed(setting, &before, &after))
        }
        ("reset", None) => {
            let (_, after) = store.reset(guild).await?;
            Ok(shown(&after, None))
        }
        _ => Err(CommandError::refused("Say which setting to change.")),
    }
}

fn find(name: &str) -> Result<&'static Setting, CommandError> {
    Setting::find(name)
        .ok_or_else(|| CommandError::refused(format!("There is no setting `{}`. `/config get` lists them.", plain(name))))
}

fn shown(settings: &Settings, only: Option<&Setting>) -> Reply {
    let mut panel = Panel::new("Settings", BLUE).footer("/config set changes one, /config reset takes it back");
    let default = Settings::default();
    for setting in SETTINGS.iter().filter(|setting| only.is_none_or(|only| only.name == setting.name)) {
        let value = setting.show(settings);
        let usual = setting.show(&default);
        let mark = if value == usual { " (default)".to_owned() } else { format!(" (default: {usual})") };
        panel = panel.row(
            setting.name,
            format!("**{value}**{mark}\n{} Takes {}.", setting.about, setting.accepts),
        );
    }
    Reply::private_panel(panel)
}

fn changed(setting: &Setting, before: &Settings, after: &Settings) -> Reply {
    let (before, after) = (setting.show(before), setting.show(after));
    if before == after {
        return Reply::private(format!("`{}` is {after} already.", setting.name));
    }
    let panel = Panel::new("Changed", GREEN).field(setting.name, format!("{before} → **{after}**"));
    Reply::private_panel(panel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::WarnAction;

    #[test]
    fn shows_and_changes() {
        let settings =
            Settings { log_channel: Some(81_384_788_765_712_384), warn_action: WarnAction::Kick, ..Settings::default() };
        insta::assert_snapshot!("config_get", shown(&settings, None).pretty());
        let setting = Setting::find("warn_action").unwrap();
        insta::assert_snapshot!("config_get_one", shown(&settings, Some(setting)).pretty());
        insta::assert_snapshot!("config_set", changed(setting, &Settings::default(), &settings).pretty());
        insta::assert_snapshot!("config_same", changed(setting, &settings, &settings).pretty());
        assert!(matches!(find("colour"), Err(CommandError::Refused(words)) if words.contains("colour")));
    }
}
