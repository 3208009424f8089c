//! Gateway intents.

use crate::config::PrivilegedIntent;

/// A set of intents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Intents(pub u64);

impl Intents {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const GUILDS: Self = Self(1);
    pub(crate) const GUILD_MEMBERS: Self = Self(1 << 1);
    pub(crate) const GUILD_MODERATION: Self = Self(1 << 2);
    pub(crate) const GUILD_PRESENCES: Self = Self(1 << 8);
    pub(crate) const GUILD_MESSAGES: Self = Self(1 << 9);
    pub(crate) const GUILD_MESSAGE_REACTIONS: Self = Self(1 << 10);
    pub(crate) const GUILD_MESSAGE_TYPING: Self = Self(1 << 11);
    pub(crate) const MESSAGE_CONTENT: Self = Self(1 << 15);
    /// Bits 0 to 16, 20, 21 (auto moderation), 24, 25 (polls) are defined.
    const DEFINED: Self = Self(0x1_ffff | 1 << 20 | 1 << 21 | 1 << 24 | 1 << 25);

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether an event that needs any of `needs` may be sent.
    pub(crate) fn let_through(self, needs: Self) -> bool {
        needs == Self::NONE || self.0 & needs.0 != 0
    }

    pub(crate) fn are_defined(self) -> bool {
        Self::DEFINED.contains(self)
    }

    /// The privileged ones among these that an application may not use.
    pub(crate) fn disallowed(self, allowed: &[PrivilegedIntent]) -> bool {
        let may = |intent| allowed.contains(&PrivilegedIntent::All) || allowed.contains(&intent);
        [
            (Self::GUILD_MEMBERS, PrivilegedIntent::Members),
            (Self::GUILD_PRESENCES, PrivilegedIntent::Presences),
            (Self::MESSAGE_CONTENT, PrivilegedIntent::MessageContent),
        ]
        .into_iter()
        .any(|(bit, intent)| self.contains(bit) && !may(intent))
    }

    /// The intents that let an event of this type through.
    pub(crate) fn for_event(name: &str) -> Self {
        match name {
            "GUILD_MEMBER_ADD" | "GUILD_MEMBER_UPDATE" | "GUILD_MEMBER_REMOVE" => {
                Self::GUILD_MEMBERS
            }
            "GUILD_BAN_ADD" | "GUILD_BAN_REMOVE" | "GUILD_AUDIT_LOG_ENTRY_CREATE" => {
                Self::GUILD_MODERATION
            }
            "PRESENCE_UPDATE" => Self::GUILD_PRESENCES,
            "TYPING_START" => Self::GUILD_MESSAGE_TYPING,
            "VOICE_STATE_UPDATE" | "VOICE_CHANNEL_EFFECT_SEND" => Self(1 << 7),
            "INVITE_CREATE" | "INVITE_DELETE" => Self(1 << 6),
            "WEBHOOKS_UPDATE" => Self(1 << 5),
            _ if name.starts_with("MESSAGE_REACTION_") => Self::GUILD_MESSAGE_REACTIONS,
            _ if name.starts_with("MESSAGE_") => Self::GUILD_MESSAGES,
            _ if name.starts_with("GUILD_SCHEDULED_EVENT_") => Self(1 << 16),
            _ if name.starts_with("GUILD_")
                || name.starts_with("CHANNEL_")
                || name.starts_with("THREAD_") =>
            {
                Self::GUILDS
            }
            _ => Self::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_bits_are_seen() {
        assert!(Intents(0x1_ffff).are_defined());
        assert!(!Intents(1 << 17).are_defined());
        assert!(!Intents(1 << 63).are_defined());
    }

    #[test]
    fn privileged_intents_need_permission() {
        let members = Intents::GUILD_MEMBERS;
        assert!(!members.disallowed(&[PrivilegedIntent::All]));
        assert!(!members.disallowed(&[PrivilegedIntent::Members]));
        assert!(members.disallowed(&[PrivilegedIntent::Presences]));
        assert!(members.disallowed(&[PrivilegedIntent::None]));
        assert!(!Intents::GUILDS.disallowed(&[PrivilegedIntent::None]));
    }
}
