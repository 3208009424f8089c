//! Slash commands as users would invoke them, from the commands that the bot has registered.

use serde_json::{Map, Value, json};

use super::{GuildIndex, Permissions, World, words};
use crate::snowflake;

/// One invocation to build.
pub(crate) struct Invocation<'a> {
    pub id: u64,
    pub token: &'a str,
    /// The command as registered.
    pub command: &'a Value,
    pub guild: GuildIndex,
    /// The invoking member; drawn when none is given.
    pub user: Option<u64>,
    /// Option values by name; those not given are generated.
    pub given: &'a Map<String, Value>,
    /// The subcommand to take, as `set` or `group set`; drawn when none is given.
    pub subcommand: Option<&'a str>,
}

/// Why an invocation cannot be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum InvocationError {
    #[error("user {0} is not a member of the guild")]
    NotAMember(u64),
    #[error("the command has no subcommand `{0}`")]
    NoSubcommand(String),
    #[error("the command has no option `{0}`")]
    NoOption(String),
}

impl World {
    /// The body of INTERACTION_CREATE.
    pub(crate) fn invoke(
        &self,
        what: &Invocation<'_>,
        rng: &mut fastrand::Rng,
    ) -> Result<Value, InvocationError> {
        let user = match what.user {
            Some(user) if self.is_member(what.guild, user) => user,
            Some(user) => return Err(InvocationError::NotAMember(user)),
            None => self.pick_member(what.guild, rng),
        };
        let mut filling = Filling {
            world: self,
            guild: what.guild,
            resolved: Resolved::default(),
            used: Vec::new(),
        };
        let kind = what.command["type"].as_u64().unwrap_or(1);
        let mut data = json!({
            "id": what.command["id"], "name": what.command["name"], "type": kind,
        });
        if kind == 1 {
            let empty = Vec::new();
            let defined = what.command["options"].as_array().unwrap_or(&empty);
            let path: Vec<&str> = what.subcommand.unwrap_or("").split_whitespace().collect();
            data["options"] = filling.options(defined, &path, what.given, rng)?.into();
            if let Some(unknown) = what.given.keys().find(|name| !filling.used.contains(name)) {
                return Err(InvocationError::NoOption(unknown.clone()));
            }
        } else {
            data["target_id"] = filling.target(kind, rng);
        }
        if let Some(guild_id) = what.command["guild_id"].as_str() {
            data["guild_id"] = guild_id.into();
        }
        let resolved = filling.resolved.into_value();
        if let Some(resolved) = resolved {
            data["resolved"] = resolved;
        }
        Ok(self.interaction(what, user, data, rng))
    }

    fn interaction(
        &self,
        what: &Invocation<'_>,
        user: u64,
        data: Value,
        rng: &mut fastrand::Rng,
    ) -> Value {
        let guild_id = self.guild_id(what.guild).to_string();
        let channel_id = self.channel_id(what.guild, rng.u64(..));
        let mut channel = self
            .channel(channel_id)
            .unwrap_or_else(|| self.text_channel(what.guild, channel_id, words::CHANNELS[0], 0));
        channel["permissions"] = Permissions::ALL.into();
        let mut member = self.member_without_user(what.guild, user);
        member["user"] = self.user(user).unwrap_or(Value::Null);
        member["permissions"] = Permissions::ALL.into();
        json!({
            "id": what.id.to_string(), "application_id": self.bot.id.to_string(), "type": 2, "data": data,
            "guild": { "id": guild_id, "features": [], "locale": "en-US" }, "guild_id": guild_id,
            "channel": channel, "channel_id": channel_id.to_string(), "member": member,
            "token": what.token, "version": 1, "app_permissions": Permissions::ALL, "locale": "en-US",
            "guild_locale": "en-US", "entitlements": [], "entitlement_sku_ids": [],
            "authorizing_integration_owners": { "0": guild_id }, "context": 0,
            "attachment_size_limit": 10_485_760,
        })
    }
}

#[derive(Default)]
struct Resolved {
    users: Map<String, Value>,
    members: Map<String, Value>,
    channels: Map<String, Value>,
    roles: Map<String, Value>,
    messages: Map<String, Value>,
    attachments: Map<String, Value>,
}

impl Resolved {
    fn into_value(self) -> Option<Value> {
        let mut all = Map::new();
        for (name, map) in [
            ("users", self.users),
            ("members", self.members),
            ("channels", self.channels),
            ("roles", self.roles),
            ("messages", self.messages),
            ("attachments", self.attachments),
        ] {
            if !map.is_empty() {
                all.insert(name.to_owned(), Value::Object(map));
            }
        }
        (!all.is_empty()).then_some(Value::Object(all))
    }
}

struct Filling<'a> {
    world: &'a World,
    guild: GuildIndex,
    resolved: Resolved,
    /// Names of given options that were put to use.
    used: Vec<String>,
}

impl Filling<'_> {
    fn options(
        &mut self,
        defined: &[Value],
        path: &[&str],
        given: &Map<String, Value>,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<Value>, InvocationError> {
        let subcommands: Vec<&Value> = defined
            .iter()
            .filter(|option| matches!(option["type"].as_u64(), Some(1 | 2)))
            .collect();
        if !subcommands.is_empty() {
            let chosen = match path.first() {
                Some(name) => subcommands
                    .iter()
                    .find(|option| option["name"] == *name)
                    .copied(),
                None => Some(subcommands[rng.usize(0..subcommands.len())]),
            };
            let chosen = chosen.ok_or_else(|| InvocationError::NoSubcommand(path.join(" ")))?;
            let empty = Vec::new();
            let inner = chosen["options"].as_array().unwrap_or(&empty);
            let options = self.options(inner, path.get(1..).unwrap_or(&[]), given, rng)?;
            return Ok(vec![
                json!({ "name": chosen["name"], "type": chosen["type"], "options": options }),
            ]);
        }
        if !path.is_empty() {
            return Err(InvocationError::NoSubcommand(path.join(" ")));
        }
        let mut options = Vec::new();
        for option in defined {
            let name = option["name"].as_str().unwrap_or_default();
            let required = option["required"].as_bool().unwrap_or(false);
            let value = match given.get(name) {
                Some(value) => {
                    self.used.push(name.to_owned());
                    Some(self.given(option, value))
                }
                // What nobody asked for is left out when somebody chose the other options.
                None if required || (given.is_empty() && rng.bool()) => self.generated(option, rng),
                None => None,
            };
            if let Some(value) = value {
                options.push(json!({ "name": name, "type": option["type"], "value": value }));
            }
        }
        Ok(options)
    }

    fn given(&mut self, option: &Value, value: &Value) -> Value {
        let id = value
            .as_str()
            .and_then(|text| text.parse().ok())
            .or_else(|| value.as_u64());
        match (option["type"].as_u64(), id) {
            (Some(6 | 9), Some(user)) => self.user(user),
            (Some(7), Some(channel)) => self.channel(channel),
            (Some(8), Some(role)) => self.role(role),
            _ => value.clone(),
        }
    }

    fn generated(&mut self, option: &Value, rng: &mut fastrand::Rng) -> Option<Value> {
        if let Some(choices) = option["choices"]
            .as_array()
            .filter(|choices| !choices.is_empty())
        {
            return Some(choices[rng.usize(0..choices.len())]["value"].clone());
        }
        let value = match option["type"].as_u64()? {
            3 => text(option, rng).into(),
            4 => {
                let (low, high) = (option["min_value"].as_i64(), option["max_value"].as_i64());
                let low = low.unwrap_or_else(|| high.map_or(1, |high| high.min(1)));
                let high = high.unwrap_or(low.saturating_add(100)).max(low);
                rng.i64(low..=high).into()
            }
            5 => rng.bool().into(),
            6 | 9 => {
                let member = self.world.pick_member(self.guild, rng);
                self.user(member)
            }
            7 => {
                let channel = self.world.channel_id(self.guild, rng.u64(..));
                self.channel(channel)
            }
            8 => {
                let role = self
                    .world
                    .role_id(self.guild, rng.u64(0..words::ROLES.len() as u64));
                self.role(role)
            }
            10 => {
                let low = option["min_value"].as_f64().unwrap_or(0.0);
                let high = option["max_value"].as_f64().unwrap_or(low + 100.0).max(low);
                json!(low + rng.f64() * (high - low))
            }
            11 => {
                let id = snowflake::now().to_string();
                self.resolved.attachments.insert(id.clone(), json!({
                    "id": id, "filename": "screenshot.png", "size": 48_213, "content_type": "image/png",
                    "url": format!("https://cdn.example.invalid/{id}/screenshot.png"),
                    "proxy_url": format!("https://media.example.invalid/{id}/screenshot.png"),
                    "width": 640, "height": 480,
                }));
                id.into()
            }
            _ => return None,
        };
        Some(value)
    }

    fn user(&mut self, id: u64) -> Value {
        let text = id.to_string();
        if let Some(user) = self.world.user(id) {
            self.resolved.users.insert(text.clone(), user);
        }
        if self.world.is_member(self.guild, id) {
            let mut member = self.world.member_without_user(self.guild, id);
            member["permissions"] = Permissions::EVERYONE.into();
            self.resolved.members.insert(text.clone(), member);
        }
        text.into()
    }

    fn channel(&mut self, id: u64) -> Value {
        if let Some(mut channel) = self.world.channel(id) {
            channel["permissions"] = Permissions::ALL.into();
            self.resolved.channels.insert(id.to_string(), channel);
        }
        id.to_string().into()
    }

    fn role(&mut self, id: u64) -> Value {
        let text = id.to_string();
        if let Some(role) = self
            .world
            .roles(self.guild)
            .into_iter()
            .find(|role| role["id"] == text)
        {
            self.resolved.roles.insert(text.clone(), role);
        }
        text.into()
    }

    /// The target of a user command (type 2) or message command (type 3).
    fn target(&mut self, kind: u64, rng: &mut fastrand::Rng) -> Value {
        let member = self.world.pick_member(self.guild, rng);
        if kind == 2 {
            return self.user(member);
        }
        let id = snowflake::now();
        let channel = self.world.channel_id(self.guild, 0).to_string();
        let author = self.world.user(member).unwrap_or(Value::Null);
        let content = words::SENTENCES[rng.usize(0..words::SENTENCES.len())];
        self.resolved.messages.insert(
            id.to_string(),
            World::message(id, &channel, author, content),
        );
        id.to_string().into()
    }
}

fn text(option: &Value, rng: &mut fastrand::Rng) -> String {
    let mut text = words::REASONS[rng.usize(0..words::REASONS.len())].to_owned();
    let at_least = option["min_length"].as_u64().unwrap_or(0).min(6000) as usize;
    while text.len() < at_least {
        text.push_str(" again");
    }
    let at_most = option["max_length"].as_u64().unwrap_or(6000) as usize;
    text.truncate(at_most);
    text
}

#[cfg(test)]
mod tests {
    use super::super::test_world;
    use super::*;

    fn invoke(
        command: &Value,
        given: &Value,
        subcommand: Option<&str>,
    ) -> Result<Value, InvocationError> {
        let world = test_world(20);
        let empty = Map::new();
        let what = Invocation {
            id: 5,
            token: "t",
            command,
            guild: 3,
            user: None,
            given: given.as_object().unwrap_or(&empty),
            subcommand,
        };
        world.invoke(&what, &mut fastrand::Rng::with_seed(3))
    }

    #[test]
    fn user_options_come_with_resolved_users_and_members() {
        let command = json!({ "id": "1", "name": "warn", "type": 1, "options": [
            { "type": 6, "name": "user", "required": true }, { "type": 3, "name": "reason", "required": true },
        ]});
        let body = invoke(&command, &Value::Null, None).expect("an invocation");
        let user = body["data"]["options"][0]["value"]
            .as_str()
            .expect("a user id");
        assert_eq!(body["data"]["resolved"]["users"][user]["id"], user);
        assert!(body["data"]["resolved"]["members"][user]["joined_at"].is_string());
        assert!(
            body["data"]["options"][1]["value"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert_eq!(body["member"]["permissions"], Permissions::ALL);
    }

    #[test]
    fn subcommands_nest_and_limits_hold() {
        let command = json!({ "id": "1", "name": "config", "options": [
            { "type": 2, "name": "log", "options": [
                { "type": 1, "name": "set", "options": [
                    { "type": 4, "name": "days", "required": true, "min_value": 3, "max_value": 5 },
                    { "type": 3, "name": "tag", "required": true, "max_length": 4 },
                ]},
            ]},
        ]});
        for path in [None, Some("log set")] {
            let body = invoke(&command, &Value::Null, path).expect("an invocation");
            let options = &body["data"]["options"][0]["options"][0]["options"];
            assert!(
                (3..=5).contains(&options[0]["value"].as_i64().unwrap_or(0)),
                "{options}"
            );
            assert_eq!(options[1]["value"].as_str().map(str::len), Some(4));
        }
        let wrong = invoke(&command, &Value::Null, Some("log get"));
        assert_eq!(wrong, Err(InvocationError::NoSubcommand("get".to_owned())));
        let unknown = invoke(&command, &json!({ "weeks": 1 }), Some("log set"));
        assert_eq!(unknown, Err(InvocationError::NoOption("weeks".to_owned())));
    }
}
