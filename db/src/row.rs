//! A row on disk and on the wire.
//!
//! On disk a row is a format byte, the number of columns, the length of each column's JSON text,
//! and the texts. A column is found without parsing, and a reply is the texts copied between the
//! column names. Rows written before a column was added are shorter and read as its default.

use crate::schema::{COLUMNS_MAX, Kind, Table};

const FORMAT: u8 = 1;

/// A stored row that does not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored row of table {table} is damaged")]
pub struct Damaged {
    /// The table it was read from.
    pub table: &'static str,
}

/// A borrowed row, taken apart.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    table: &'static Table,
    columns: [&'a [u8]; COLUMNS_MAX],
}

impl<'a> Row<'a> {
    /// Takes a stored row apart.
    pub fn decode(table: &'static Table, stored: &'a [u8]) -> Result<Self, Damaged> {
        let damaged = Damaged { table: table.name };
        let (&[format, count], mut rest) = stored.split_first_chunk::<2>().ok_or(damaged)?;
        if format != FORMAT || usize::from(count) > table.columns.len() {
            return Err(damaged);
        }
        let mut lengths = [0usize; COLUMNS_MAX];
        for length in lengths.iter_mut().take(usize::from(count)) {
            *length = read_length(&mut rest).ok_or(damaged)?;
        }
        let mut columns = [&[][..]; COLUMNS_MAX];
        for (at, column) in table.columns.iter().enumerate() {
            if at < usize::from(count) {
                let (text, after) = rest.split_at_checked(lengths[at]).ok_or(damaged)?;
                columns[at] = text;
                rest = after;
            } else {
                columns[at] = column.default_json().as_bytes();
            }
        }
        if !rest.is_empty() {
            return Err(damaged);
        }
        Ok(Self { table, columns })
    }

    /// A row of these column texts, all of the table's columns in order.
    pub fn from_columns(table: &'static Table, texts: &'a [Vec<u8>]) -> Self {
        debug_assert_eq!(texts.len(), table.columns.len());
        let mut columns = [&[][..]; COLUMNS_MAX];
        for (column, text) in columns.iter_mut().zip(texts) {
            *column = text;
        }
        Self { table, columns }
    }

    /// The table it belongs to.
    pub fn table(&self) -> &'static Table {
        self.table
    }

    /// The canonical JSON text of a column.
    pub fn column(&self, at: usize) -> &'a [u8] {
        self.columns[at]
    }

    /// Replaces a column's text.
    pub fn set(&mut self, at: usize, json: &'a [u8]) {
        self.columns[at] = json;
    }

    /// The row as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let columns = &self.columns[..self.table.columns.len()];
        let size: usize = columns.iter().map(|column| column.len() + 3).sum();
        let mut out = Vec::with_capacity(size + 2);
        out.extend([FORMAT, columns.len() as u8]);
        for column in columns {
            write_length(&mut out, column.len());
        }
        for column in columns {
            out.extend_from_slice(column);
        }
        out
    }

    /// Appends the row as a JSON object: all columns, or those asked for.
    pub fn write_json(&self, out: &mut Vec<u8>, columns: Option<&[usize]>, style: Style) {
        out.push(b'{');
        let mut write = |at: usize, first: bool| {
            let column = &self.table.columns[at];
            if !first {
                out.push(b',');
            }
            out.push(b'"');
            out.extend_from_slice(column.name.as_bytes());
            out.extend_from_slice(b"\":");
            write_value(out, column.kind, self.columns[at], style);
        };
        match columns {
            Some(columns) => {
                for (index, at) in columns.iter().enumerate() {
                    write(*at, index == 0);
                }
            }
            None => {
                for at in 0..self.table.columns.len() {
                    write(at, at == 0);
                }
            }
        }
        out.push(b'}');
    }
}

/// How 64-bit ids are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// As JSON numbers: the original protocol.
    #[default]
    Numbers,
    /// As JSON strings: what JavaScript can read without loss.
    Strings,
}

/// Appends one canonical value in the client's style.
pub fn write_value(out: &mut Vec<u8>, kind: Kind, json: &[u8], style: Style) {
    if style == Style::Strings && kind == Kind::Snowflake && json != b"null" {
        out.push(b'"');
        out.extend_from_slice(json);
        out.push(b'"');
    } else {
        out.extend_from_slice(json);
    }
}

fn write_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn read_length(rest: &mut &[u8]) -> Option<usize> {
    let mut length = 0usize;
    for shift in (0..35).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> &'static Table {
        Table::find("users").expect("a table")
    }

    #[test]
    fn a_row_written_before_a_column_existed_reads_its_default() {
        let texts: Vec<Vec<u8>> = [r#""a""#, "1", "2"]
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
        let mut stored = vec![FORMAT, 3];
        for text in &texts {
            write_length(&mut stored, text.len());
        }
        stored.extend(texts.concat());
        let row = Row::decode(table(), &stored).expect("decodes");
        let mut out = Vec::new();
        row.write_json(&mut out, Some(&[0, 2, 3]), Style::Numbers);
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            r#"{"id":"a","guild_id":2,"data":{}}"#
        );
    }

    #[test]
    fn snowflakes_become_strings_on_request_and_null_stays_null() {
        let mut out = Vec::new();
        write_value(&mut out, Kind::Snowflake, b"7", Style::Strings);
        write_value(&mut out, Kind::Snowflake, b"null", Style::Strings);
        write_value(&mut out, Kind::Int64, b"8", Style::Strings);
        assert_eq!(out, b"\"7\"null8");
    }

    proptest! {
        #[test]
        fn rows_survive_the_round_trip(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 6)) {
            let stored = Row::from_columns(table(), &texts).encode();
            let row = Row::decode(table(), &stored).expect("decodes");
            for (at, text) in texts.iter().enumerate() {
                prop_assert_eq!(row.column(at), text.as_slice());
            }
        }

        #[test]
        fn damaged_rows_are_refused_not_panicked_on(stored in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Row::decode(table(), &stored);
        }
    }
}
