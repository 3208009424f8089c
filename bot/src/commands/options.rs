//! Reading a command's options.

use serenity::all::{CommandData, PartialMember, ResolvedOption, ResolvedValue, User};

/// The options of one use of a command, or of its subcommand.
pub struct Options<'a>(Vec<ResolvedOption<'a>>);

impl<'a> Options<'a> {
    /// Of the command itself.
    pub fn of(data: &'a CommandData) -> Self {
        Self(data.options())
    }

    /// The subcommand and its options.
    pub fn subcommand(self) -> Option<(&'a str, Self)> {
        self.0.into_iter().find_map(|option| match option.value {
            ResolvedValue::SubCommand(options) => Some((option.name, Self(options))),
            _ => None,
        })
    }

    fn value(&self, name: &str) -> Option<&ResolvedValue<'a>> {
        self.0
            .iter()
            .find(|option| option.name == name)
            .map(|option| &option.value)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        match self.value(name) {
            Some(ResolvedValue::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A number within bounds; Discord checks them too, a foreign tool does not.
    pub fn number(&self, name: &str, min: i64, max: i64) -> Option<i64> {
        match self.value(name) {
            Some(ResolvedValue::Integer(number)) => Some((*number).clamp(min, max)),
            _ => None,
        }
    }

    /// A user, and what they are in this guild.
    pub fn user(&self, name: &str) -> Option<(&'a User, Option<&'a PartialMember>)> {
        match self.value(name) {
            Some(ResolvedValue::User(user, member)) => Some((user, *member)),
            _ => None,
        }
    }
}
