//! What a guild can configure: names, meaning, validation. Pure; [`store`] reads and writes.
//!
//! The settings live in the `settings` object of the guild's row beside whatever other bots keep there;
//! unknown members are left alone.

pub mod store;

use serde_json::{Map, Value};

/// What happens to a member who reaches the warning limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarnAction {
    /// Nothing.
    None,
    /// A timeout of `warn_timeout_minutes`.
    Timeout,
    /// Removal from the guild.
    Kick,
}

/// A guild's settings with defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Channel in which moderation cases are announced.
    pub log_channel: Option<u64>,
    /// Active warnings at which `warn_action` is taken; 0 = never.
    pub warn_limit: u32,
    /// What is done then.
    pub warn_action: WarnAction,
    /// Length of the timeout, minutes.
    pub warn_timeout_minutes: u32,
    /// Whether a warned member is told by direct message.
    pub warn_dm: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_channel: None,
            warn_limit: 3,
            warn_action: WarnAction::None,
            warn_timeout_minutes: 60,
            warn_dm: false,
        }
    }
}

/// A setting as people see it.
#[derive(Debug)]
pub struct Setting {
    /// Its name, in commands and in the database.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What it may be.
    pub accepts: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Channel,
    Number { min: u32, max: u32 },
    Choice(&'static [&'static str]),
    Switch,
}

/// All settings.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "log_channel",
        about: "Channel in which moderation cases are announced.",
        accepts: "a channel such as #mod-log, or `none`",
        kind: Kind::Channel,
    },
    Setting {
        name: "warn_limit",
        about: "Active warnings at which the action below is taken; 0 switches it off.",
        accepts: "a number from 0 to 50",
        kind: Kind::Number { min: 0, max: 50 },
    },
    Setting {
        name: "warn_action",
        about: "What happens to a member who reaches the limit.",
        accepts: "`none`, `timeout` or `kick`",
        kind: Kind::Choice(&["none", "timeout", "kick"]),
    },
    Setting {
        name: "warn_timeout_minutes",
        about: "Length of that timeout in minutes.",
        // Discord allows 28 days.
        accepts: "a number from 1 to 40320",
        kind: Kind::Number {
            min: 1,
            max: 40_320,
        },
    },
    Setting {
        name: "warn_dm",
        about: "Whether a warned member is told by direct message.",
        accepts: "`on` or `off`",
        kind: Kind::Switch,
    },
];

/// A value that a setting does not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{name}` takes {accepts}")]
pub struct InvalidValue {
    /// The setting.
    pub name: &'static str,
    /// What it takes.
    pub accepts: &'static str,
}

impl Setting {
    /// The setting of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// What a person typed, as it is stored. `None` = back to the default.
    pub fn parse(&self, text: &str) -> Result<Option<Value>, InvalidValue> {
        let text = text.trim();
        let value = match &self.kind {
            Kind::Channel if text.eq_ignore_ascii_case("none") => return Ok(None),
            Kind::Channel => {
                let id = text
                    .strip_prefix("<#")
                    .and_then(|text| text.strip_suffix('>'))
                    .unwrap_or(text);
                // A snowflake has 17 to 20 digits; this keeps out years and counts.
                let id = id
                    .parse::<u64>()
                    .ok()
                    .filter(|id| *id > 10_000_000_000_000_000);
                // As text: a snowflake is not exact as a number everywhere.
                id.map(|id| Value::from(id.to_string()))
            }
            Kind::Number { min, max } => text
                .parse::<u32>()
                .ok()
                .filter(|number| (min..=max).contains(&number))
                .map(Value::from),
            Kind::Choice(choices) => choices
                .iter()
                .find(|choice| choice.eq_ignore_ascii_case(text))
                .map(|choice| Value::from(*choice)),
            Kind::Switch => match text.to_ascii_lowercase().as_str() {
                "on" | "yes" | "true" => Some(Value::from(true)),
                "off" | "no" | "false" => Some(Value::from(false)),
                _ => None,
            },
        };
        value.map(Some).ok_or(InvalidValue {
            name: self.name,
            accepts: self.accepts,
        })
    }

    /// The present value for people.
    pub fn show(&self, settings: &Settings) -> String {
        match self.name {
            "log_channel" => settings
                .log_channel
                .map_or("none".to_owned(), |id| format!("<#{id}>")),
            "warn_limit" => settings.warn_limit.to_string(),
            "warn_action" => settings.warn_action.name().to_owned(),
            "warn_timeout_minutes" => settings.warn_timeout_minutes.to_string(),
            _ => if settings.warn_dm { "on" } else { "off" }.to_owned(),
        }
    }
}

impl WarnAction {
    /// The name in commands and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Timeout => "timeout",
            Self::Kick => "kick",
        }
    }
}

impl Settings {
    /// Reads the stored object. What does not fit counts as not set: another program may have written it.
    pub fn read(stored: &Map<String, Value>) -> Self {
        let default = Self::default();
        let valid = |name: &str| {
            let value = stored.get(name)?;
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Bool(true) => "on".to_owned(),
                Value::Bool(false) => "off".to_owned(),
                Value::Number(number) => number.to_string(),
                _ => return None,
            };
            Setting::find(name)?.parse(&text).ok().flatten()
        };
        let number = |name, otherwise| {
            valid(name)
                .and_then(|value| value.as_u64())
                .map_or(otherwise, |number| number as u32)
        };
        Self {
            log_channel: valid("log_channel").and_then(|value| value.as_str()?.parse().ok()),
            warn_limit: number("warn_limit", default.warn_limit),
            warn_action: match valid("warn_action").as_ref().and_then(Value::as_str) {
                Some("timeout") => WarnAction::Timeout,
                Some("kick") => WarnAction::Kick,
                _ => WarnAction::None,
            },
            warn_timeout_minutes: number("warn_timeout_minutes", default.warn_timeout_minutes),
            warn_dm: valid("warn_dm")
                .and_then(|value| value.as_bool())
                .unwrap_or(default.warn_dm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_validated() {
        let parse = |name: &str, text: &str| Setting::find(name).unwrap().parse(text);
        assert_eq!(
            parse("log_channel", "<#81384788765712384>"),
            Ok(Some(Value::from("81384788765712384")))
        );
        assert_eq!(parse("log_channel", "none"), Ok(None));
        assert!(parse("log_channel", "general").is_err());
        assert!(parse("log_channel", "2026").is_err());
        assert_eq!(parse("warn_limit", " 50 "), Ok(Some(Value::from(50))));
        assert!(parse("warn_limit", "51").is_err());
        assert!(parse("warn_limit", "-1").is_err());
        assert!(parse("warn_timeout_minutes", "0").is_err());
        assert_eq!(
            parse("warn_action", "TIMEOUT"),
            Ok(Some(Value::from("timeout")))
        );
        assert_eq!(
            parse("warn_action", "ban").unwrap_err().to_string(),
            "`warn_action` takes `none`, `timeout` or `kick`"
        );
        assert_eq!(parse("warn_dm", "On"), Ok(Some(Value::from(true))));
        assert!(parse("warn_dm", "maybe").is_err());
    }

    proptest! {
        /// What was accepted is read back, and shown so that it is accepted again.
        #[test]
        fn accepted_values_come_back(at in 0..SETTINGS.len(), text in prop_oneof![
            "[0-9]{1,6}", "<#[1-9][0-9]{16,18}>", "none", "timeout|kick|none", "on|off|yes|no", "\\PC{0,12}"
        ]) {
            let setting = &SETTINGS[at];
            if let Ok(value) = setting.parse(&text) {
                let mut stored = Map::new();
                if let Some(value) = value { stored.insert(setting.name.to_owned(), value); }
                let settings = Settings::read(&stored);
                let shown = setting.show(&settings);
                let again = setting.parse(&shown).unwrap();
                let mut stored_again = Map::new();
                if let Some(value) = again { stored_again.insert(setting.name.to_owned(), value); }
                prop_assert_eq!(Settings::read(&stored_again), settings);
            }
        }
    }

    #[test]
    fn foreign_and_damaged_members_do_no_harm() {
        let stored = serde_json::json!({
            "theme": {"dark": true}, "warn_limit": "many", "warn_action": 7, "log_channel": null, "warn_dm": []
        });
        let Value::Object(stored) = stored else {
            unreachable!()
        };
        assert_eq!(Settings::read(&stored), Settings::default());
    }
}
