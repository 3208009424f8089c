//! Moderation cases: numbered without gaps or doubles, and kept across restarts.

use serde_json::{Map, Value, json};

use crate::database::{Database, DbError, Repeat};

/// A warning's place in `action`.
const WARN: &str = "warn";
/// Longest reason kept, in characters. Discord's audit log takes 512.
pub const REASON_MAX: usize = 512;

/// A case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Number within the guild.
    pub number: i64,
    /// Who was warned.
    pub target: u64,
    /// By whom.
    pub moderator: u64,
    /// Why.
    pub reason: String,
    /// When, seconds since 1970; 0 when the row does not say.
    pub at: i64,
    /// Still counts.
    pub active: bool,
}

/// What is asked to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewWarning<'a> {
    /// The guild.
    pub guild: u64,
    /// The interaction that asked for it: a replayed one writes no second case.
    pub interaction: u64,
    /// Who is warned.
    pub target: u64,
    /// By whom.
    pub moderator: u64,
    /// Why.
    pub reason: &'a str,
}

/// Tries for the next number when others take numbers of the same guild.
const NUMBER_TRIES: u32 = 12;

/// Writes a warning and gives back its number. Asked again for the same interaction, the number of the first.
///
/// Number and case are written in one transaction, so that a crash in between leaves no gap.
pub async fn warn(database: &Database, new: NewWarning<'_>) -> Result<i64, DbError> {
    for attempt in 0..NUMBER_TRIES {
        // Also finds what the last try wrote, when its answer got lost.
        if let Some(number) = written(database, &new).await? {
            return Ok(number);
        }
        let Some(counter) = counter(database, new.guild).await? else {
            let data = json!({ "table": "guilds", "row": { "guild_id": new.guild } });
            match database.call("insert", data, Repeat::Harmless).await {
                Err(error) if !error.is_duplicate() => return Err(error),
                _ => continue,
            }
        };
        let number = counter + 1;
        let take = json!({
            "table": "guilds",
            "conditions": { "guild_id": new.guild },
            "expected": { "case_counter": counter },
            "data": { "case_counter": number },
        });
        let insert = json!({ "table": "moderation_cases", "row": row(&new, number) });
        let data = json!({
            "guild_id": new.guild,
            "ops": [
                { "action": "compare_and_set", "data": take },
                { "action": "insert", "data": insert },
            ],
        });
        match database.call("transaction", data, Repeat::Harmless).await {
            Ok(_) => return Ok(number),
            // Another moderator was faster, or our own first try.
            Err(error) if error.is_conflict() || error.is_duplicate() => {}
            Err(error) if error.is_unknown_action() => return warn_original(database, &new).await,
            Err(error) => return Err(error),
        }
        let pause = std::time::Duration::from_millis(5 << attempt.min(5));
        tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
    }
    Err(DbError::Unavailable)
}

/// The case's key: that of the interaction that asked for it.
fn key(new: &NewWarning<'_>) -> String {
    format!("{}:{}", new.guild, new.interaction)
}

fn row(new: &NewWarning<'_>, number: i64) -> Value {
    json!({
        "id": key(new),
        "case_id": number,
        "guild_id": new.guild,
        "target_id": new.target,
        "moderator_id": new.moderator,
        "action": WARN,
        "reason": new.reason,
        "created_at": jiff::Timestamp::now().to_string(),
        "is_active": true,
    })
}

/// The number of the case that this interaction has written already.
async fn written(database: &Database, new: &NewWarning<'_>) -> Result<Option<i64>, DbError> {
    let conditions = json!({ "id": key(new), "guild_id": new.guild });
    let Some(row) = database.find_one("moderation_cases", conditions).await? else {
        return Ok(None);
    };
    let number = row.get("case_id").and_then(Value::as_i64);
    number.map(Some).ok_or(DbError::Incomplete("case_id"))
}

/// The guild's latest case number; none when the guild has no row.
async fn counter(database: &Database, guild: u64) -> Result<Option<i64>, DbError> {
    let row = database
        .find_one("guilds", json!({ "guild_id": guild }))
        .await?;
    Ok(row.map(|row| row.get("case_counter").and_then(Value::as_i64).unwrap_or(0)))
}

/// On a node of the original protocol, which has no transaction: two moderators who warn in the same moment may
/// get the same number. The case itself is safe, its id comes from the interaction.
async fn warn_original(database: &Database, new: &NewWarning<'_>) -> Result<i64, DbError> {
    let conditions = json!({ "guild_id": new.guild });
    let counter = counter(database, new.guild).await?;
    let number = counter.unwrap_or(0) + 1;
    let (action, data) = if counter.is_some() {
        (
            "update",
            json!({ "table": "guilds", "conditions": conditions, "data": { "case_counter": number } }),
        )
    } else {
        (
            "insert",
            json!({ "table": "guilds", "row": { "guild_id": new.guild, "case_counter": number } }),
        )
    };
    database.call(action, data, Repeat::Harmless).await?;
    // That protocol takes the same key twice: look again before a repeat. See `written` for the first look.
    let data = json!({ "table": "moderation_cases", "row": row(new, number) });
    match database.call("insert", data, Repeat::Never).await {
        Err(DbError::Unanswered) => written(database, new).await?.ok_or(DbError::Unanswered),
        Err(error) if error.is_duplicate() => written(database, new).await?.ok_or(error),
        result => result.map(|_| number),
    }
}

/// Active warnings of a member.
pub async fn count_active(database: &Database, guild: u64, target: u64) -> Result<u64, DbError> {
    let conditions =
        json!({ "guild_id": guild, "target_id": target, "action": WARN, "is_active": true });
    database.count("moderation_cases", conditions).await
}

/// One page of a member's warnings, newest first, and how many there are.
pub async fn page(
    database: &Database,
    guild: u64,
    target: u64,
    page: u64,
    per_page: u64,
) -> Result<(Vec<Case>, u64), DbError> {
    let conditions = json!({ "guild_id": guild, "target_id": target, "action": WARN });
    let select = database.select(json!({
        "table": "moderation_cases",
        "conditions": conditions,
        "order_by": [["case_id", "desc"]],
        "limit": per_page,
        "offset": page.saturating_mul(per_page),
    }));
    let (rows, count) = tokio::join!(
        select,
        database.count("moderation_cases", conditions.clone())
    );
    Ok((rows?.iter().map(read).collect(), count?))
}

/// Makes warnings inactive: one by its number, or all of a member. Gives back how many it were.
pub async fn clear(
    database: &Database,
    guild: u64,
    target: u64,
    number: Option<i64>,
) -> Result<u64, DbError> {
    let mut conditions =
        json!({ "guild_id": guild, "target_id": target, "action": WARN, "is_active": true });
    if let Some(number) = number {
        conditions["case_id"] = json!(number);
    }
    // First counted, since an update that is repeated after a lost answer finds nothing left.
    let count = database
        .count("moderation_cases", conditions.clone())
        .await?;
    if count > 0 {
        let data = json!({
            "table": "moderation_cases",
            "conditions": conditions,
            "data": { "is_active": false, "revoked": true },
        });
        database.call("update", data, Repeat::Harmless).await?;
    }
    Ok(count)
}

fn read(row: &Map<String, Value>) -> Case {
    // A node may be asked to hand snowflakes out as text.
    let snowflake = |name: &str| match row.get(name) {
        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        _ => 0,
    };
    let created = row
        .get("created_at")
        .and_then(Value::as_str)
        .unwrap_or_default();
    // The original server writes times without a zone and means UTC.
    let at = created
        .parse::<jiff::Timestamp>()
        .or_else(|_| format!("{created}Z").parse::<jiff::Timestamp>())
        .map_or(0, jiff::Timestamp::as_second);
    Case {
        number: row.get("case_id").and_then(Value::as_i64).unwrap_or(0),
        target: snowflake("target_id"),
        moderator: snowflake("moderator_id"),
        reason: row
            .get("reason")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        at,
        active: row
            .get("is_active")
            .and_then(Value::as_bool)
            .unwrap_or(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_kinds_of_node_are_read() {
        let row = |text: &str| -> Case { read(&serde_json::from_str(text).unwrap()) };
        let ours = row(
            r#"{"case_id":7,"target_id":81384788765712384,"moderator_id":"2","reason":"spam","created_at":"2026-11-21T03:00:00Z","is_active":false}"#,
        );
        assert_eq!(
            (ours.number, ours.target, ours.moderator, ours.active),
            (7, 81_384_788_765_712_384, 2, false)
        );
        assert_eq!(ours.at, 1_795_230_000);
        let original = row(r#"{"case_id":1,"created_at":"2026-11-21T03:00:00.000000"}"#);
        assert_eq!(
            (original.at, original.active, original.reason.as_str()),
            (1_795_230_000, true, "")
        );
        assert_eq!(row("{}").at, 0);
    }
}
