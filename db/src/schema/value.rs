//! Values in their one canonical spelling.
//!
//! A stored value is JSON text. Each kind has one spelling (numbers without sign or leading zeros,
//! strings with the fewest escapes), so that two values are equal exactly when their texts are.
//! Only JSON columns keep the client's own text; they are compared by meaning.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::{Column, Kind};
use crate::failure::{Code, Failure};

/// The longest text a primary key may have, in bytes: keys are copied into every index.
pub const KEY_BYTES_MAX: usize = 512;
/// JSON columns nested deeper than this are refused: readers in other languages recurse.
pub const JSON_DEPTH_MAX: usize = 64;

/// Checks `raw` against the column and returns its canonical text.
pub fn canonical(table: &str, column: &Column, raw: &str) -> Result<Vec<u8>, Failure> {
    let raw = raw.trim();
    let wrong = |why: &str| {
        Failure::new(
            Code::BadValue,
            format!("Invalid value for {table}.{}: {why}", column.name),
        )
    };
    if raw == "null" {
        if column.nullable || column.kind == Kind::Json {
            return Ok(b"null".to_vec());
        }
        return Err(wrong(&format!(
            "null is not allowed, expected {}",
            column.kind.name()
        )));
    }
    match column.kind {
        Kind::Snowflake | Kind::Int64 => {
            let number = integer(raw).ok_or_else(|| {
                wrong(&format!(
                    "expected a 64-bit integer (or its digits as a string), got {}",
                    shown(raw)
                ))
            })?;
            Ok(number.to_string().into_bytes())
        }
        Kind::Int32 => {
            let number = integer(raw)
                .and_then(|number| i32::try_from(number).ok())
                .ok_or_else(|| wrong(&format!("expected a 32-bit integer, got {}", shown(raw))))?;
            Ok(number.to_string().into_bytes())
        }
        Kind::Float64 => {
            let number: f64 = serde_json::from_str(raw)
                .map_err(|_| wrong(&format!("expected a number, got {}", shown(raw))))?;
            serde_json::to_vec(&number).map_err(|_| wrong("expected a finite number"))
        }
        Kind::Bool => match raw {
            "true" | "false" => Ok(raw.as_bytes().to_vec()),
            _ => Err(wrong(&format!(
                "expected true or false, got {}",
                shown(raw)
            ))),
        },
        Kind::Text => {
            let text: Cow<'_, str> = string(raw)
                .ok_or_else(|| wrong(&format!("expected a string, got {}", shown(raw))))?;
            serde_json::to_vec(text.as_ref()).map_err(|_| wrong("expected a string"))
        }
        Kind::Json => {
            if depth(raw) > JSON_DEPTH_MAX {
                return Err(wrong(&format!(
                    "nested deeper than {JSON_DEPTH_MAX} levels"
                )));
            }
            // Also refuses lone surrogates and numbers no reader could hold.
            serde_json::from_str::<Value>(raw)
                .map_err(|error| wrong(&format!("not valid JSON: {error}")))?;
            Ok(raw.as_bytes().to_vec())
        }
        Kind::Time => time(raw).ok_or_else(|| {
            wrong(&format!(
                "expected an ISO 8601 date and time (or seconds since 1970), got {}",
                shown(raw)
            ))
        }),
    }
}

/// The present as rows hold it: an offset rather than `Z`, which older Python cannot parse.
pub fn now() -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00");
    now.to_string()
}

/// Whether two canonical values are the same.
pub fn equal(kind: Kind, a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    if kind != Kind::Json {
        return false;
    }
    match (
        serde_json::from_slice::<Value>(a),
        serde_json::from_slice::<Value>(b),
    ) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// How a value sorts. Null comes first, as in SQLite and MySQL.
#[derive(Debug, Clone, PartialEq)]
pub enum SortKey {
    /// No value.
    Null,
    /// Integers, and instants in nanoseconds.
    Integer(i128),
    /// Numbers.
    Float(f64),
    /// Text by code point.
    Text(String),
}

impl SortKey {
    /// The sort key of a canonical value.
    pub fn of(kind: Kind, json: &[u8]) -> Self {
        if json == b"null" {
            return Self::Null;
        }
        let text = String::from_utf8_lossy(json);
        match kind {
            Kind::Snowflake | Kind::Int64 | Kind::Int32 => {
                text.parse().map_or(Self::Null, Self::Integer)
            }
            Kind::Float64 => text.parse().map_or(Self::Null, Self::Float),
            Kind::Bool => Self::Integer(i128::from(json == b"true")),
            Kind::Time => match string(&text).as_deref().and_then(instant) {
                Some(nanoseconds) => Self::Integer(nanoseconds),
                None => Self::Text(text.into_owned()),
            },
            Kind::Text => string(&text).map_or(Self::Null, |text| Self::Text(text.into_owned())),
            Kind::Json => Self::Text(text.into_owned()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Integer(_) => 1,
            Self::Float(_) => 2,
            Self::Text(_) => 3,
        }
    }
}

impl Eq for SortKey {}

impl PartialOrd for SortKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SortKey {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// The content of a JSON string, if it is one.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.bytes().any(|byte| byte == b'\\' || byte == b'"') {
        return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// An integer, or the digits of one as a string (how JavaScript must send snowflakes).
pub fn integer(raw: &str) -> Option<i64> {
    match raw.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?.trim().parse().ok(),
        None => raw.parse().ok(),
    }
}

fn time(raw: &str) -> Option<Vec<u8>> {
    if let Some(text) = string(raw) {
        instant(&text)?;
        return serde_json::to_vec(text.as_ref()).ok();
    }
    let seconds: f64 = serde_json::from_str(raw).ok()?;
    let duration = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
    let timestamp = jiff::Timestamp::from_duration(duration).ok()?;
    let text = timestamp
        .strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00")
        .to_string();
    serde_json::to_vec(&text).ok()
}

/// Nanoseconds since 1970 of an ISO 8601 text; without an offset it is taken as UTC.
fn instant(text: &str) -> Option<i128> {
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Some(timestamp.as_nanosecond());
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    civil
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp().as_nanosecond())
}

fn depth(raw: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in raw.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What was sent, for an error: its type, never the data itself when that may be private.
fn shown(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string that is none",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b't' | b'f') => "a boolean",
        _ => "a number that is none or out of range",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Table;
    use proptest::prelude::*;

    fn check(table: &str, column: &str, raw: &str) -> Result<String, String> {
        let table = Table::find(table).expect("a table");
        let column = &table.columns[table.column(column).expect("a column")];
        canonical(table.name, column, raw)
            .map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
            .map_err(|failure| failure.text.into_owned())
    }

    #[test]
    fn values_have_one_spelling() {
        for (table, column, raw, expected) in [
            (
                "guilds",
                "guild_id",
                "81384788765712384",
                "81384788765712384",
            ),
            (
                "guilds",
                "guild_id",
                "\"81384788765712384\"",
                "81384788765712384",
            ),
            ("guilds", "case_counter", "-7", "-7"),
            ("guilds", "settings", "{\"a\": 1}", "{\"a\": 1}"),
            ("tickets", "closed_at", "null", "null"),
            ("tickets", "subject", "\"\\u0041\\/\"", "\"A/\""),
            ("node_status", "latency", "1", "1.0"),
            ("node_status", "latency", "1e2", "100.0"),
            ("filters", "enabled", "false", "false"),
            (
                "users",
                "created_at",
                "\"2026-11-21T10:00:00.5\"",
                "\"2026-11-21T10:00:00.5\"",
            ),
            (
                "users",
                "created_at",
                "\"2026-11-21T10:00:00Z\"",
                "\"2026-11-21T10:00:00Z\"",
            ),
            (
                "users",
                "created_at",
                "0",
                "\"1970-01-01T00:00:00.000000+00:00\"",
            ),
        ] {
            assert_eq!(
                check(table, column, raw).as_deref(),
                Ok(expected),
                "{table}.{column} {raw}"
            );
        }
    }

    #[test]
    fn wrong_types_are_refused_with_the_column_named() {
        for (table, column, raw) in [
            ("guilds", "guild_id", "\"abc\""),
            ("guilds", "guild_id", "1.5"),
            ("guilds", "guild_id", "9223372036854775808"),
            ("guilds", "guild_id", "null"),
            ("guilds", "case_counter", "2147483648"),
            ("filters", "enabled", "1"),
            ("tickets", "subject", "7"),
            ("users", "created_at", "\"yesterday\""),
            ("users", "created_at", "1e300"),
            ("node_status", "latency", "1e999"),
            ("users", "data", "\"\\ud800\""),
        ] {
            let error = check(table, column, raw).expect_err(raw);
            assert!(error.contains(&format!("{table}.{column}")), "{error}");
        }
        let deep = "[".repeat(65) + &"]".repeat(65);
        assert!(
            check("users", "data", &deep)
                .expect_err("deep")
                .contains("deeper")
        );
    }

    #[test]
    fn times_sort_by_instant_and_null_comes_first() {
        let key = |json: &str| SortKey::of(Kind::Time, json.as_bytes());
        assert!(key("\"2026-01-01T12:00:00+02:00\"") < key("\"2026-01-01T11:00:00Z\""));
        assert!(key("null") < key("\"1960-01-01T00:00:00\""));
    }

    #[test]
    fn json_is_compared_by_meaning() {
        assert!(equal(
            Kind::Json,
            b"{\"a\":1,\"b\":2}",
            b"{ \"b\":2, \"a\":1 }"
        ));
        assert!(!equal(Kind::Json, b"{\"a\":1}", b"{\"a\":2}"));
    }

    #[test]
    fn the_present_is_a_valid_time() {
        assert!(instant(&now()).is_some(), "{}", now());
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point_and_never_panics(raw in "\\PC{0,40}", table in 0usize..12, column in 0usize..20) {
            let table = &crate::schema::TABLES[table];
            let column = &table.columns[column % table.columns.len()];
            if let Ok(once) = canonical(table.name, column, &raw) {
                let text = String::from_utf8(once.clone()).expect("UTF-8");
                prop_assert_eq!(canonical(table.name, column, &text).expect("still valid"), once);
            }
        }
    }
}
