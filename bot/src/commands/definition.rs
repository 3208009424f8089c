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
