//! The declared tables: their columns, types, defaults, keys and indexes.
//!
//! The schema is part of the wire protocol (existing bots know these names), so it is declared in
//! code, not stored. [`VERSION`] is written into every backup.

mod tables;
pub mod value;

pub use tables::TABLES;

/// Raised when a table or column is added; older rows are filled with defaults when read.
pub const VERSION: u32 = 1;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Discord id: 64 bits, sent as a string where the client asked for that.
    Snowflake,
    /// A 64-bit integer.
    Int64,
    /// A 32-bit integer.
    Int32,
    /// A finite number.
    Float64,
    /// `true` or `false`.
    Bool,
    /// Text.
    Text,
    /// Any JSON.
    Json,
    /// A date and time, ISO 8601.
    Time,
}

impl Kind {
    /// The name of the type on the wire, as `table_info` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snowflake | Self::Int64 => "int64",
            Self::Int32 => "int32",
            Self::Float64 => "float64",
            Self::Bool => "bool",
            Self::Text => "string",
            Self::Json => "json",
            Self::Time => "timestamp",
        }
    }

    /// What a column without a declared default holds when a row does not give it.
    fn zero(self) -> &'static str {
        match self {
            Self::Snowflake | Self::Int64 | Self::Int32 => "0",
            Self::Float64 => "0.0",
            Self::Bool => "false",
            Self::Text => "\"\"",
            Self::Json => "{}",
            Self::Time => "\"1970-01-01T00:00:00+00:00\"",
        }
    }
}

/// One column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether `null` is a value of it.
    pub nullable: bool,
    /// Whether a secondary index serves equality on it.
    pub indexed: bool,
    declared_default: Option<&'static str>,
}

impl Column {
    /// The JSON text that a row holds where nothing was given. Times are filled with the present
    /// by the writer; this is what a row from before the column existed shows.
    pub fn default_json(&self) -> &'static str {
        match self.declared_default {
            Some(json) => json,
            None if self.nullable => "null",
            None => self.kind.zero(),
        }
    }

    /// The default as the schema declares it, if it does.
    pub fn declared_default(&self) -> Option<&'static str> {
        self.declared_default
    }

    /// Whether an insert without this column stores the present time.
    pub fn defaults_to_now(&self) -> bool {
        self.kind == Kind::Time && !self.nullable
    }
}

/// One declared table. Column 0 is the primary key.
#[derive(Debug)]
pub struct Table {
    /// Never reused: it is the first byte of every key on disk.
    pub id: u8,
    /// Its name on the wire.
    pub name: &'static str,
    /// The columns, the key first.
    pub columns: &'static [Column],
    /// The column with the guild id, which places the row in the ring. Tables without one are
    /// placed by the hash of their key.
    pub guild: Option<usize>,
}

/// The most columns a table has; rows are taken apart into arrays of this size.
pub const COLUMNS_MAX: usize = 20;
/// The primary key is always the first column.
pub const KEY: usize = 0;

impl Table {
    /// The table of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        TABLES.iter().find(|table| table.name == name)
    }

    /// The position of the column of that name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The primary key's column.
    pub fn key(&self) -> &'static Column {
        &self.columns[KEY]
    }

    /// Whether the guild id alone names a row.
    pub fn key_is_guild(&self) -> bool {
        self.guild == Some(KEY)
    }

    /// Whether a directory from key to guild is kept, since the key alone does not place the row.
    pub fn has_key_directory(&self) -> bool {
        self.guild.is_some_and(|guild| guild != KEY)
    }

    /// The columns with a secondary index of their own. The key and the guild are served by the
    /// order of the rows themselves.
    pub fn secondary(&self) -> impl Iterator<Item = usize> {
        let guild = self.guild;
        self.columns
            .iter()
            .enumerate()
            .filter(move |(at, column)| column.indexed && *at != KEY && Some(*at) != guild)
            .map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn declarations_are_consistent() {
        let ids: BTreeSet<_> = TABLES.iter().map(|table| table.id).collect();
        assert_eq!(ids.len(), TABLES.len(), "table ids are unique");
        for table in TABLES {
            assert!(table.columns.len() <= COLUMNS_MAX, "{}", table.name);
            let names: BTreeSet<_> = table.columns.iter().map(|column| column.name).collect();
            assert_eq!(names.len(), table.columns.len(), "{}", table.name);
            assert_eq!(table.guild, table.column("guild_id"), "{}", table.name);
            assert!(!table.key().nullable);
            assert!(matches!(
                table.key().kind,
                Kind::Text | Kind::Snowflake | Kind::Int32
            ));
            for column in table.columns {
                let parsed = serde_json::from_str::<serde_json::Value>(column.default_json());
                assert!(parsed.is_ok(), "{}.{}", table.name, column.name);
            }
        }
    }
}
