//! Application commands that the bot has registered, global and per guild.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::snowflake;

/// Commands of one type in one scope.
const COMMANDS_MAX: usize = 100;
const OPTIONS_MAX: usize = 25;

/// Where a command is registered.
pub(crate) type Scope = Option<u64>;

/// All registered commands.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    global: Vec<Value>,
    guilds: HashMap<u64, Vec<Value>>,
}

/// A command that is not well formed: the path of the fault and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub path: String,
    pub reason: &'static str,
}

impl Commands {
    pub(crate) fn list(&self, scope: Scope) -> &[Value] {
        match scope {
            None => &self.global,
            Some(guild) => self.guilds.get(&guild).map_or(&[], Vec::as_slice),
        }
    }

    pub(crate) fn get(&self, scope: Scope, id: &str) -> Option<&Value> {
        self.list(scope).iter().find(|command| command["id"] == id)
    }

    /// The command that an invocation in a guild means: the guild's own one first.
    pub(crate) fn by_name(&self, guild: u64, name: &str) -> Option<&Value> {
        let named = |command: &&Value| command["name"] == name;
        self.list(Some(guild))
            .iter()
            .find(named)
            .or_else(|| self.global.iter().find(named))
    }

    /// Everything that could be invoked in a guild.
    pub(crate) fn invocable(&self, guild: u64) -> impl Iterator<Item = &Value> {
        self.global.iter().chain(self.list(Some(guild)))
    }

    fn list_mut(&mut self, scope: Scope) -> &mut Vec<Value> {
        match scope {
            None => &mut self.global,
            Some(guild) => self.guilds.entry(guild).or_default(),
        }
    }

    /// Adds a command, or changes the one of the same name and type. Gives it and whether it is new.
    pub(crate) fn upsert(
        &mut self,
        application: u64,
        scope: Scope,
        raw: &Value,
    ) -> Result<(Value, bool), Malformed> {
        let mut command = normalise(application, scope, raw, "")?;
        let list = self.list_mut(scope);
        let same =
            |other: &Value| other["name"] == command["name"] && other["type"] == command["type"];
        if let Some(place) = list.iter().position(same) {
            command["id"] = list[place]["id"].clone();
            list[place] = command.clone();
            return Ok((command, false));
        }
        if list.len() >= COMMANDS_MAX {
            return Err(Malformed {
                path: String::new(),
                reason: "Maximum number of application commands reached (100).",
            });
        }
        list.push(command.clone());
        Ok((command, true))
    }

    /// Replaces all commands of a scope.
    pub(crate) fn replace(
        &mut self,
        application: u64,
        scope: Scope,
        raw: &[Value],
    ) -> Result<Vec<Value>, Malformed> {
        if raw.len() > COMMANDS_MAX {
            return Err(Malformed {
                path: String::new(),
                reason: "Must be 100 or fewer in length.",
            });
        }
        let mut commands: Vec<Value> = Vec::new();
        for (place, raw) in raw.iter().enumerate() {
            let mut command = normalise(application, scope, raw, &place.to_string())?;
            let same = |other: &&Value| {
                other["name"] == command["name"] && other["type"] == command["type"]
            };
            if commands.iter().any(|other| same(&other)) {
                return Err(Malformed {
                    path: place.to_string(),
                    reason: "Application command names must be unique",
                });
            }
            if let Some(known) = self.list(scope).iter().find(same) {
                command["id"] = known["id"].clone();
            }
            commands.push(command);
        }
        self.list_mut(scope).clone_from(&commands);
        Ok(commands)
    }

    /// Changes fields of a command. None when there is no such command.
    pub(crate) fn patch(
        &mut self,
        application: u64,
        scope: Scope,
        id: &str,
        changes: &Map<String, Value>,
    ) -> Option<Result<Value, Malformed>> {
        let place = self
            .list(scope)
            .iter()
            .position(|command| command["id"] == id)?;
        let mut changed = self.list(scope)[place].clone();
        for (key, value) in changes {
            changed[key] = value.clone();
        }
        Some(
            normalise(application, scope, &changed, "").map(|mut command| {
                command["id"] = id.into();
                self.list_mut(scope)[place] = command.clone();
                command
            }),
        )
    }

    pub(crate) fn delete(&mut self, scope: Scope, id: &str) -> bool {
        let list = self.list_mut(scope);
        let before = list.len();
        list.retain(|command| command["id"] != id);
        list.len() < before
    }
}

fn normalise(application: u64, scope: Scope, raw: &Value, path: &str) -> Result<Value, Malformed> {
    let fault = |field: &str, reason| {
        let dot = if path.is_empty() { "" } else { "." };
        Err(Malformed {
            path: format!("{path}{dot}{field}"),
            reason,
        })
    };
    let Some(raw) = raw.as_object() else {
        return fault("", "Only dictionaries may be used");
    };
    let kind = match raw.get("type") {
        None => 1,
        Some(kind) => kind.as_u64().unwrap_or(0),
    };
    if !(1..=4).contains(&kind) {
        return fault("type", "Value must be one of {1, 2, 3, 4}.");
    }
    let name = raw.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() || name.chars().count() > 32 {
        return fault("name", "Must be between 1 and 32 in length.");
    }
    if kind == 1 && !is_chat_name(name) {
        return fault("name", "Command name is invalid");
    }
    let description = raw
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if kind == 1 && !(1..=100).contains(&description.chars().count()) {
        return fault("description", "Must be between 1 and 100 in length.");
    }
    let options = match raw.get("options") {
        None | Some(Value::Null) => json!([]),
        Some(options) => {
            check_options(options, path, 0)?;
            options.clone()
        }
    };
    let field = |name: &str, default: Value| raw.get(name).cloned().unwrap_or(default);
    let mut command = json!({
        "id": snowflake::now().to_string(), "application_id": application.to_string(),
        "version": snowflake::now().to_string(), "type": kind, "name": name, "description": description,
        "name_localizations": field("name_localizations", Value::Null),
        "description_localizations": field("description_localizations", Value::Null),
        "default_member_permissions": field("default_member_permissions", Value::Null),
        "dm_permission": field("dm_permission", true.into()), "nsfw": field("nsfw", false.into()),
        "contexts": field("contexts", Value::Null),
        "integration_types": field("integration_types", json!([0])), "options": options,
    });
    if let Some(guild) = scope {
        command["guild_id"] = guild.to_string().into();
    }
    Ok(command)
}

fn check_options(options: &Value, path: &str, depth: usize) -> Result<(), Malformed> {
    let fault = |place: &str, reason| {
        let dot = if path.is_empty() { "" } else { "." };
        Err(Malformed {
            path: format!("{path}{dot}options{place}"),
            reason,
        })
    };
    let Some(list) = options.as_array() else {
        return fault("", "Only iterables may be used in a ListField");
    };
    if list.len() > OPTIONS_MAX {
        return fault("", "Must be 25 or fewer in length.");
    }
    let mut optional_seen = false;
    for (place, option) in list.iter().enumerate() {
        let at = |field: &str| format!(".{place}.{field}");
        let kind = option["type"].as_u64().unwrap_or(0);
        if !(1..=11).contains(&kind)
            || (kind <= 2 && depth + kind as usize > 3 - usize::from(kind == 2))
        {
            return fault(&at("type"), "Sub-command option type is invalid");
        }
        let name = option["name"].as_str().unwrap_or_default();
        if !is_chat_name(name) {
            return fault(&at("name"), "Command name is invalid");
        }
        if !(1..=100).contains(
            &option["description"]
                .as_str()
                .unwrap_or_default()
                .chars()
                .count(),
        ) {
            return fault(&at("description"), "Must be between 1 and 100 in length.");
        }
        if list[..place].iter().any(|other| other["name"] == name) {
            return fault(&at("name"), "Option name is not unique");
        }
        if kind <= 2 {
            if !option["options"].is_null() {
                check_options(
                    &option["options"],
                    &format!("{path}options.{place}"),
                    depth + 1,
                )?;
            }
            continue;
        }
        let required = option["required"].as_bool().unwrap_or(false);
        if required && optional_seen {
            return fault(
                &at("required"),
                "Required options must be placed before non-required options",
            );
        }
        optional_seen |= !required;
    }
    Ok(())
}

/// `^[-_'\p{L}\p{N}]{1,32}$`, in lower case.
fn is_chat_name(name: &str) -> bool {
    (1..=32).contains(&name.chars().count())
        && name
            .chars()
            .all(|c| (c.is_alphanumeric() || "-_'".contains(c)) && !c.is_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(name: &str) -> Value {
        json!({ "name": name, "description": "d" })
    }

    #[test]
    fn replacing_keeps_the_ids_of_known_commands() {
        let mut commands = Commands::default();
        let first = commands
            .replace(1, None, &[command("ping"), command("warn")])
            .expect("well formed");
        let second = commands
            .replace(1, None, &[command("warn")])
            .expect("well formed");
        assert_eq!(first[1]["id"], second[0]["id"]);
        assert_eq!(commands.list(None).len(), 1);
    }

    #[test]
    fn a_guild_command_hides_the_global_one_of_its_name() {
        let mut commands = Commands::default();
        commands
            .upsert(1, None, &command("ping"))
            .expect("well formed");
        let (own, new) = commands
            .upsert(1, Some(5), &command("ping"))
            .expect("well formed");
        assert!(new);
        assert_eq!(commands.by_name(5, "ping"), Some(&own));
        assert_ne!(commands.by_name(6, "ping"), Some(&own));
        assert!(
            !commands
                .upsert(1, Some(5), &command("ping"))
                .expect("well formed")
                .1
        );
    }

    #[test]
    fn malformed_commands_are_refused_with_their_place() {
        let mut commands = Commands::default();
        for (bad, path) in [
            (json!({ "name": "Ping", "description": "d" }), "0.name"),
            (json!({ "name": "ping" }), "0.description"),
            (
                json!({ "name": "ping", "description": "d", "type": 9 }),
                "0.type",
            ),
            (
                json!({ "name": "p", "description": "d", "options": [{ "type": 3, "name": "a" }] }),
                "0.options.0.description",
            ),
            (
                json!({ "name": "p", "description": "d", "options": [
                { "type": 3, "name": "a", "description": "d" },
                { "type": 3, "name": "b", "description": "d", "required": true } ] }),
                "0.options.1.required",
            ),
            (json!(7), "0."),
        ] {
            let refused = commands.replace(1, None, &[bad]).expect_err("malformed");
            assert_eq!(refused.path, path);
        }
        assert!(commands.list(None).is_empty());
    }

    #[test]
    fn changes_apply_to_one_command() {
        let mut commands = Commands::default();
        let (made, _) = commands
            .upsert(1, None, &command("ping"))
            .expect("well formed");
        let id = made["id"].as_str().expect("an id").to_owned();
        let changes = json!({ "description": "new" });
        let changed = commands.patch(1, None, &id, changes.as_object().expect("an object"));
        let changed = changed.expect("exists").expect("well formed");
        assert_eq!(
            (&changed["id"], &changed["description"]),
            (&made["id"], &json!("new"))
        );
        assert!(commands.patch(1, None, "7", &Map::new()).is_none());
        assert!(commands.delete(None, &id) && !commands.delete(None, &id));
    }
}
