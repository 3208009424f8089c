//! What a request asks for, checked against the schema: which rows, in which order, from where.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tanako_fleet::ring::PartitionKey;

use crate::failure::{Code, Failure};
use crate::keys;
use crate::row::Row;
use crate::schema::value::{canonical, equal};
use crate::schema::{KEY, Table};

/// An object's members in the order they were sent, values unparsed.
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(4));
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    members.push((name.0, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A member's name, borrowed where it holds no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Values for columns, canonical, by position.
pub type Assignments = Vec<(usize, Vec<u8>)>;

/// Reads an object of column names and values.
pub fn assignments(
    table: &'static Table,
    what: &str,
    raw: Option<&RawValue>,
) -> Result<Assignments, Failure> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    let Members(members) = serde_json::from_str(raw.get()).map_err(|_| {
        Failure::bad_request(format!(
            "Invalid {what}: expected an object of column names and values"
        ))
    })?;
    let mut values = Vec::with_capacity(members.len());
    for (name, value) in members {
        let at = column(table, &name)?;
        let value = canonical(table.name, &table.columns[at], value.get())?;
        // As in Python and JavaScript, the last of two members with one name counts.
        match values.iter_mut().find(|(other, _)| *other == at) {
            Some(earlier) => *earlier = (at, value),
            None => values.push((at, value)),
        }
    }
    Ok(values)
}

/// The column of that name.
pub fn column(table: &'static Table, name: &str) -> Result<usize, Failure> {
    table.column(name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        Failure::new(
            Code::UnknownColumn,
            format!("Column {shown} does not exist in table {}", table.name),
        )
    })
}

/// Which rows: equalities joined by AND.
#[derive(Debug, Clone)]
pub struct Filter {
    table: &'static Table,
    equal_to: Assignments,
}

/// The cheapest way to the rows of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// One row, by its key on disk.
    Row(Vec<u8>),
    /// One row, by its primary key, whose partition must be looked up.
    Directory(Vec<u8>),
    /// The entries of a secondary index with this prefix. `exact`: they need no further test.
    Index {
        /// The prefix.
        prefix: Vec<u8>,
        /// Whether the index alone decides.
        exact: bool,
    },
    /// All rows with this prefix. `exact`: they need no further test.
    Rows {
        /// The prefix.
        prefix: Vec<u8>,
        /// Whether the prefix alone decides.
        exact: bool,
    },
}

impl Filter {
    /// Reads `conditions`.
    pub fn parse(table: &'static Table, raw: Option<&RawValue>) -> Result<Self, Failure> {
        // A condition may ask for null in any column; it then matches no row of the others.
        let Some(raw) = raw else {
            return Ok(Self {
                table,
                equal_to: Vec::new(),
            });
        };
        let Members(members) = serde_json::from_str(raw.get()).map_err(|_| {
            Failure::bad_request(
                "Invalid conditions: expected an object of column names and values",
            )
        })?;
        let mut equal_to: Assignments = Vec::with_capacity(members.len());
        for (name, value) in members {
            let at = column(table, &name)?;
            let value = match value.get() {
                "null" => b"null".to_vec(),
                text => canonical(table.name, &table.columns[at], text)?,
            };
            match equal_to.iter_mut().find(|(other, _)| *other == at) {
                Some(earlier) => *earlier = (at, value),
                None => equal_to.push((at, value)),
            }
        }
        Ok(Self { table, equal_to })
    }

    /// The rows with these canonical values.
    pub fn of(table: &'static Table, equal_to: Assignments) -> Self {
        Self { table, equal_to }
    }

    /// The rows in which one column has this canonical value.
    pub fn by_column(table: &'static Table, at: usize, value: Vec<u8>) -> Self {
        Self {
            table,
            equal_to: vec![(at, value)],
        }
    }

    /// Adds the guild to a filter that does not name one.
    pub fn within_guild(&mut self, guild: &[u8]) {
        if let Some(at) = self.table.guild
            && self.value(at).is_none()
        {
            self.equal_to.push((at, guild.to_vec()));
        }
    }

    /// The table.
    pub fn table(&self) -> &'static Table {
        self.table
    }

    /// Whether every row matches.
    pub fn is_empty(&self) -> bool {
        self.equal_to.is_empty()
    }

    /// The value that a column must have, if the filter says so.
    pub fn value(&self, at: usize) -> Option<&[u8]> {
        self.equal_to
            .iter()
            .find(|(column, _)| *column == at)
            .map(|(_, value)| value.as_slice())
    }

    /// The equalities.
    pub fn equalities(&self) -> &[(usize, Vec<u8>)] {
        &self.equal_to
    }

    /// Whether the row matches.
    pub fn matches(&self, row: &Row<'_>) -> bool {
        self.equal_to
            .iter()
            .all(|(at, value)| equal(self.table.columns[*at].kind, row.column(*at), value))
    }

    /// The one partition that holds all matching rows, if the filter says which.
    pub fn partition(&self) -> Option<PartitionKey> {
        let at = self.table.guild.unwrap_or(KEY);
        Some(keys::partition_of(
            self.table,
            self.value(at).filter(|value| *value != b"null")?,
        ))
    }

    /// The cheapest way to the rows.
    pub fn path(&self) -> Path {
        let table = self.table;
        let partition = self.partition();
        let conditions = self.equal_to.len();
        if let Some(key) = self.value(KEY) {
            let primary = keys::primary(table, key);
            return match partition {
                Some(partition) => Path::Row(keys::row(table, partition, &primary)),
                None => Path::Directory(keys::directory(table, &primary)),
            };
        }
        if let Some(column) = table.secondary().find(|at| self.value(*at).is_some()) {
            let value = self.value(column).unwrap_or_default();
            let prefix = keys::index_prefix(table, column, value, partition);
            return Path::Index {
                prefix,
                exact: conditions == 1 + usize::from(partition.is_some()),
            };
        }
        match partition {
            Some(partition) => Path::Rows {
                prefix: keys::partition_prefix(table, partition),
                exact: conditions == 1,
            },
            None => Path::Rows {
                prefix: vec![table.id],
                exact: conditions == 0,
            },
        }
    }
}

/// A column to sort by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The column's position.
    pub column: usize,
    /// Largest first.
    pub descending: bool,
}

/// A `select`.
#[derive(Debug, Clone)]
pub struct Select {
    /// Which rows.
    pub filter: Filter,
    /// Which columns; all when `None`.
    pub columns: Option<Vec<usize>>,
    /// In which order; by partition and key when empty.
    pub order: Vec<Order>,
    /// How many rows to skip.
    pub offset: usize,
    /// How many rows at most.
    pub limit: Option<usize>,
}

/// Reads `columns`: a list of names, or `"*"` as a name for all.
pub fn columns(
    table: &'static Table,
    raw: Option<&RawValue>,
) -> Result<Option<Vec<usize>>, Failure> {
    let Some(raw) = raw else { return Ok(None) };
    let names: Vec<Cow<'_, str>> = serde_json::from_str(raw.get())
        .map_err(|_| Failure::bad_request("Invalid columns: expected a list of column names"))?;
    if names.is_empty() || names.iter().any(|name| name == "*") {
        return Ok(None);
    }
    names
        .iter()
        .map(|name| column(table, name))
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

/// Reads `order_by`: a list of `[column, "asc" | "desc"]`.
pub fn order(table: &'static Table, raw: Option<&RawValue>) -> Result<Vec<Order>, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Item {
        Pair(String, String),
        Single((String,)),
        Name(String),
    }
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    let items: Vec<Item> = serde_json::from_str(raw.get()).map_err(|_| {
        Failure::bad_request("Invalid order_by: expected a list of [column, \"asc\" or \"desc\"]")
    })?;
    if items.len() > table.columns.len() {
        return Err(Failure::bad_request(
            "Invalid order_by: more entries than columns",
        ));
    }
    items
        .into_iter()
        .map(|item| {
            let (name, direction) = match item {
                Item::Pair(name, direction) => (name, direction),
                Item::Single((name,)) | Item::Name(name) => (name, "asc".to_owned()),
            };
            let descending = match direction.to_ascii_lowercase().as_str() {
                "asc" => false,
                "desc" => true,
                _ => {
                    return Err(Failure::bad_request(
                        "Invalid order_by: the direction is \"asc\" or \"desc\"",
                    ));
                }
            };
            Ok(Order {
                column: column(table, &name)?,
                descending,
            })
        })
        .collect()
}

/// Reads `limit` or `offset`.
pub fn natural(what: &str, raw: Option<&RawValue>) -> Result<Option<usize>, Failure> {
    let Some(raw) = raw else { return Ok(None) };
    raw.get().parse().map(Some).map_err(|_| {
        Failure::bad_request(format!(
            "Invalid {what}: expected a whole number of at least 0"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(table: &str, json: &str) -> Result<Filter, Failure> {
        let raw = RawValue::from_string(json.to_owned()).expect("JSON");
        Filter::parse(Table::find(table).expect("a table"), Some(&raw))
    }

    fn path(table: &str, json: &str) -> Path {
        filter(table, json).expect("valid").path()
    }

    #[test]
    fn no_filter_with_a_key_guild_or_index_reads_the_whole_table() {
        assert!(matches!(path("guilds", r#"{"guild_id": 5}"#), Path::Row(_)));
        assert!(matches!(
            path("guilds", r#"{"guild_id": "5", "case_counter": 1}"#),
            Path::Row(_)
        ));
        assert!(matches!(
            path("users", r#"{"id": "a"}"#),
            Path::Directory(_)
        ));
        assert!(matches!(
            path("users", r#"{"id": "a", "guild_id": 5}"#),
            Path::Row(_)
        ));
        assert!(matches!(
            path("users", r#"{"user_id": 1}"#),
            Path::Index { exact: true, .. }
        ));
        assert!(matches!(
            path("users", r#"{"user_id": 1, "guild_id": 2}"#),
            Path::Index { exact: true, .. }
        ));
        assert!(matches!(
            path("users", r#"{"user_id": 1, "data": {}}"#),
            Path::Index { exact: false, .. }
        ));
        assert!(
            matches!(path("users", r#"{"guild_id": 2}"#), Path::Rows { ref prefix, exact: true } if prefix.len() == 9)
        );
        assert!(matches!(
            path("secret_users", r#"{"user_id": 2}"#),
            Path::Row(_)
        ));
        assert!(
            matches!(path("guilds", "{}"), Path::Rows { ref prefix, exact: true } if prefix.len() == 1)
        );
    }

    #[test]
    fn unknown_columns_and_wrong_types_are_refused() {
        assert_eq!(
            filter("guilds", r#"{"nope": 5}"#)
                .expect_err("refused")
                .code,
            Code::UnknownColumn
        );
        assert_eq!(
            filter("guilds", r#"{"guild_id": "x"}"#)
                .expect_err("refused")
                .code,
            Code::BadValue
        );
        assert_eq!(
            filter("guilds", "[]").expect_err("refused").code,
            Code::BadRequest
        );
    }

    #[test]
    fn names_with_escapes_and_repeated_names_work() {
        let filter = filter("guilds", r#"{"guild\u005fid": 1, "guild_id": 2}"#).expect("valid");
        assert_eq!(filter.value(0), Some(&b"2"[..]));
    }
}
