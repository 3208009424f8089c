//! Registers the commands with Discord, once per application and only when they differ.

use std::time::Duration;

use serde_json::{Map, Value};
use serenity::http::{LightMethod, Request, Route};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::rest::{Rest, RestError, json_body};
use crate::services::Services;
use crate::shard::ShardStatus;
use crate::shard::duty::{Duty, Terms};

/// Runs until the commands are registered. Waits for a session, which tells the application, and for the duty
/// to handle events: a set that waits beside another one must not put its commands before people.
pub async fn run(
    services: &Services,
    mut shard: watch::Receiver<ShardStatus>,
    mut terms: watch::Receiver<Terms>,
    stop: CancellationToken,
) {
    let due = async {
        shard.wait_for(|status| status.deposit.is_some()).await?;
        terms.wait_for(|terms| terms.duty == Duty::Active).await?;
        Ok::<_, watch::error::RecvError>(())
    };
    tokio::select! {
        () = stop.cancelled() => return,
        due = due => {
            if due.is_err() {
                // The process ends.
                return;
            }
        }
    }
    let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
    loop {
        match register(&services.rest).await {
            Ok(true) => {
                info!(commands = super::COMMANDS.len(), "registered the commands");
                return;
            }
            Ok(false) => return,
            Err(error) => warn!(%error, "cannot register the commands, trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
}

/// Asks what is registered and replaces it when it differs. True when it did.
pub async fn register(rest: &Rest) -> Result<bool, RestError> {
    let application_id = rest.application().ok_or(RestError::Undecodable)?;
    let request = |method| Request::new(Route::Commands { application_id }, method);
    let registered: Value = rest.fetch(request(LightMethod::Get)).await?;
    let wanted = serde_json::to_value(super::definitions()).map_err(|_| RestError::Undecodable)?;
    if canonical_list(&registered) == canonical_list(&wanted) {
        return Ok(false);
    }
    rest.call(request(LightMethod::Put).body(json_body(&wanted)))
        .await?;
    Ok(true)
}

fn canonical_list(commands: &Value) -> Vec<Value> {
    let mut list: Vec<Value> = commands
        .as_array()
        .into_iter()
        .flatten()
        .map(canonical)
        .collect();
    list.sort_by_key(|command| command["name"].as_str().unwrap_or_default().to_owned());
    list
}

/// Only what a definition decides, without what is only a default: Discord adds ids, versions and nulls.
fn canonical(definition: &Value) -> Value {
    const DECIDED: [&str; 14] = [
        "name",
        "description",
        "type",
        "required",
        "options",
        "choices",
        "value",
        "min_value",
        "max_value",
        "min_length",
        "max_length",
        "channel_types",
        "default_member_permissions",
        "contexts",
    ];
    let mut out = Map::new();
    for name in DECIDED {
        let value = match definition.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => continue,
            Some(Value::Array(list)) if list.is_empty() => continue,
            // An absent type is that of a chat command.
            Some(Value::Number(number))
                if name == "type"
                    && definition.get("options").is_some()
                    && number.as_u64() == Some(1) =>
            {
                continue;
            }
            Some(Value::Number(number)) if name == "type" && number.as_u64() == Some(1) => continue,
            Some(Value::Array(list)) if name == "contexts" => {
                let mut list = list.clone();
                list.sort_by_key(Value::as_u64);
                Value::Array(list)
            }
            Some(Value::Array(list)) if list.iter().all(Value::is_object) => {
                Value::Array(list.iter().map(canonical).collect())
            }
            // Permissions are text, bounds may come as 1 or 1.0.
            Some(Value::Number(number)) => Value::from(number.as_f64()),
            Some(value) => value.clone(),
        };
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What Discord gives back for a definition: with ids, versions, nulls and defaults.
    fn as_registered(wanted: &Value) -> Value {
        let mut list = wanted.clone();
        for (at, command) in list.as_array_mut().unwrap().iter_mut().enumerate() {
            command["id"] = json!(format!("{}", 1000 + at));
            command["version"] = json!("1");
            command["application_id"] = json!("7");
            command["type"] = json!(1);
            command["nsfw"] = json!(false);
            command["dm_permission"] = json!(true);
            command["name_localizations"] = json!(null);
            if command.get("default_member_permissions").is_none() {
                command["default_member_permissions"] = json!(null);
            }
        }
        list.as_array_mut().unwrap().reverse();
        list
    }

    #[test]
    fn unchanged_definitions_are_recognised() {
        let wanted = serde_json::to_value(super::super::definitions()).unwrap();
        assert_eq!(
            canonical_list(&as_registered(&wanted)),
            canonical_list(&wanted)
        );
    }

    #[test]
    fn any_change_is_noticed() {
        let wanted = serde_json::to_value(super::super::definitions()).unwrap();
        let registered = as_registered(&wanted);
        for change in [
            |list: &mut Vec<Value>| drop(list.pop()),
            |list: &mut Vec<Value>| list[0]["description"] = json!("other"),
            |list: &mut Vec<Value>| list[0]["default_member_permissions"] = json!("8"),
            |list: &mut Vec<Value>| {
                list[0]["options"] = json!([{"type": 3, "name": "x", "description": "y"}]);
            },
        ] {
            let mut changed = registered.clone();
            change(changed.as_array_mut().unwrap());
            assert_ne!(canonical_list(&changed), canonical_list(&wanted));
        }
    }
}
