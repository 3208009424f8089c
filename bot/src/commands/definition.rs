//! What Discord is told about the commands.

use serenity::all::{CreateCommand, InteractionContext};

use super::{COMMANDS, Command};

/// Definitions of all commands.
pub fn definitions() -> Vec<CreateCommand> {
    COMMANDS.iter().map(|command| definition(command)).collect()
}

fn definition(command: &Command) -> CreateCommand {
    let mut contexts = vec![InteractionContext::Guild];
    if !command.guild_only {
        contexts.push(InteractionContext::BotDm);
    }
    let definition = CreateCommand::new(command.name)
        .description(command.summary)
        .contexts(contexts)
        .set_options((command.options)());
    match command.permission {
        Some(permission) => definition.default_member_permissions(permission),
        None => definition,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn definitions() {
        let definitions = serde_json::to_value(super::definitions()).unwrap();
        insta::assert_snapshot!("definitions", format!("{definitions:#}"));
    }

    /// Discord's rules for names, descriptions, options and choices.
    #[test]
    fn definitions_keep_discords_limits() {
        fn check(definition: &Value) {
            let name = definition["name"].as_str().unwrap();
            assert!(
                (1..=32).contains(&name.len())
                    && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            let description = definition["description"].as_str().unwrap();
            assert!(
                (1..=100).contains(&description.chars().count()),
                "{name}: {description}"
            );
            let none = Vec::new();
            let options = definition["options"].as_array().unwrap_or(&none);
            assert!(
                options.len() <= 25
                    && definition["choices"].as_array().unwrap_or(&none).len() <= 25
            );
            let required: Vec<bool> = options
                .iter()
                .map(|option| option["required"] == true)
                .collect();
            assert!(
                required.is_sorted_by(|a, b| a >= b),
                "{name}: required options come first"
            );
            options.iter().for_each(check);
        }
        let definitions = serde_json::to_value(super::definitions()).unwrap();
        let list = definitions.as_array().unwrap();
        assert!(list.len() <= 100);
        list.iter().for_each(check);
    }
}
