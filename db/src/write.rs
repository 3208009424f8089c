//! Carries out writes on an overlay. Everything here runs on the one writer, so each operation
//! sees all earlier ones and nothing happens in between: no update can be lost.

use std::ops::ControlFlow;

use crate::engine::{Space, View};
use crate::failure::{Code, Failure};
use crate::keys::{self, ROW_PREFIX};
use crate::overlay::Overlay;
use crate::query::{Assignments, Filter};
use crate::read::{damaged, visit};
use crate::row::Row;
use crate::schema::value::{KEY_BYTES_MAX, equal, now};
use crate::schema::{KEY, Kind, Table};

/// A row to be inserted: checked, complete, encoded.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// Its table.
    pub table: &'static Table,
    /// Where it will be stored.
    pub key: Vec<u8>,
    /// The row as stored.
    pub stored: Vec<u8>,
    /// Whether the primary key was made here, so that no other row can have it.
    pub fresh_key: bool,
}

impl NewRow {
    /// Fills in defaults, the times and, for tables with a text key, the key.
    pub fn complete(table: &'static Table, given: &Assignments) -> Result<Self, Failure> {
        let mut present = None;
        let mut texts: Vec<Vec<u8>> = Vec::with_capacity(table.columns.len());
        let mut fresh_key = false;
        for (at, column) in table.columns.iter().enumerate() {
            let value = given
                .iter()
                .find(|(given, _)| *given == at)
                .map(|(_, value)| value.clone());
            texts.push(match value {
                Some(value) if at == KEY && value == b"\"\"" => {
                    return Err(Failure::new(
                        Code::BadValue,
                        format!(
                            "Invalid value for {}.{}: the key is empty",
                            table.name, column.name
                        ),
                    ));
                }
                Some(value) => value,
                None if at == KEY && column.kind == Kind::Text => {
                    fresh_key = true;
                    format!("\"{}\"", fresh_id()).into_bytes()
                }
                None if at == KEY || Some(at) == table.guild => {
                    return Err(Failure::bad_request(format!(
                        "Missing column {}: a row of table {} must have it",
                        column.name, table.name
                    )));
                }
                None if column.defaults_to_now() => {
                    format!("\"{}\"", present.get_or_insert_with(now)).into_bytes()
                }
                None => column.default_json().as_bytes().to_vec(),
            });
        }
        let partition = keys::partition_of(table, &texts[table.guild.unwrap_or(KEY)]);
        let primary = keys::primary(table, &texts[KEY]);
        if primary.len() > KEY_BYTES_MAX {
            return Err(Failure::new(
                Code::BadValue,
                format!(
                    "Invalid value for {}.{}: a key has at most {KEY_BYTES_MAX} bytes",
                    table.name,
                    table.key().name
                ),
            ));
        }
        let key = keys::row(table, partition, &primary);
        let stored = Row::from_columns(table, &texts).encode();
        Ok(Self {
            table,
            key,
            stored,
            fresh_key,
        })
    }

    /// The canonical text of its primary key.
    pub fn id(&self) -> Vec<u8> {
        Row::decode(self.table, &self.stored)
            .map(|row| row.column(KEY).to_vec())
            .unwrap_or_default()
    }
}

/// A write, checked against the schema.
#[derive(Debug, Clone)]
pub enum Op {
    /// Adds rows, all or none.
    Insert {
        /// The rows.
        rows: Vec<NewRow>,
        /// Whether it was `insert_many`.
        many: bool,
    },
    /// Adds the row, or sets the given columns of the row with its key.
    Upsert {
        /// The row if there is none.
        row: NewRow,
        /// What to set if there is one.
        given: Assignments,
    },
    /// Sets columns of the rows that match.
    Update {
        /// Which rows.
        filter: Filter,
        /// What to set.
        set: Assignments,
    },
    /// Removes the rows that match.
    Delete {
        /// Which rows.
        filter: Filter,
    },
    /// Sets columns of one row if it is as expected.
    CompareAndSet {
        /// The row: a filter with its primary key.
        filter: Filter,
        /// What the row must hold.
        expected: Assignments,
        /// What to set.
        set: Assignments,
    },
    /// Adds to a number.
    Increment {
        /// Which row; it must be exactly one.
        filter: Filter,
        /// The column.
        column: usize,
        /// How much to add.
        by: Amount,
        /// The row to begin with when there is none.
        create: Option<NewRow>,
    },
    /// Several writes, all or none.
    Transaction(Vec<Self>),
    /// Nothing: answered once everything before it is on disk.
    Barrier,
}

/// How much an increment adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// For integer columns.
    Integer(i64),
    /// For float columns.
    Float(f64),
}

/// What a write did.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The canonical texts of the new rows' keys.
    Inserted {
        /// The table.
        table: &'static str,
        /// Key texts.
        ids: Vec<Vec<u8>>,
        /// Whether it was `insert_many`.
        many: bool,
    },
    /// The row after an upsert.
    Upserted {
        /// The row as stored.
        row: Vec<u8>,
        /// Whether it is new.
        created: bool,
        /// Its table.
        table: &'static str,
    },
    /// How many rows were changed.
    Updated(u64),
    /// How many rows were removed.
    Deleted(u64),
    /// The row after a compare-and-set, if there is one.
    Compared {
        /// Whether it was as expected and was changed.
        swapped: bool,
        /// The row as it is now.
        row: Option<Vec<u8>>,
        /// Its table.
        table: &'static str,
    },
    /// The value after an increment, canonical.
    Incremented(Vec<u8>),
    /// The outcomes of a transaction.
    Transaction(Vec<Outcome>),
    /// A barrier was passed.
    Passed,
}

/// Carries out one write. On failure the caller undoes what was written so far.
pub fn apply(overlay: &mut Overlay<'_>, op: &Op) -> Result<Outcome, Failure> {
    match op {
        Op::Insert { rows, many } => {
            let mut ids = Vec::with_capacity(rows.len());
            for row in rows {
                insert(overlay, row)?;
                ids.push(row.id());
            }
            let table = rows.first().map_or("", |row| row.table.name);
            Ok(Outcome::Inserted {
                table,
                ids,
                many: *many,
            })
        }
        Op::Upsert { row, given } => upsert(overlay, row, given),
        Op::Update { filter, set } => {
            let found = matching(overlay, filter)?;
            let count = found.len() as u64;
            for (key, stored) in found {
                update(overlay, filter.table(), &key, &stored, set)?;
            }
            Ok(Outcome::Updated(count))
        }
        Op::Delete { filter } => {
            let found = matching(overlay, filter)?;
            let count = found.len() as u64;
            for (key, stored) in found {
                let row = Row::decode(filter.table(), &stored).map_err(damaged)?;
                unlink(overlay, &key, &row, None);
                overlay.remove(Space::Rows, key);
                overlay.count(filter.table().id, -1);
            }
            Ok(Outcome::Deleted(count))
        }
        Op::CompareAndSet {
            filter,
            expected,
            set,
        } => compare_and_set(overlay, filter, expected, set),
        Op::Increment {
            filter,
            column,
            by,
            create,
        } => increment(overlay, filter, *column, *by, create.as_ref()),
        Op::Transaction(ops) => {
            let mut outcomes = Vec::with_capacity(ops.len());
            for (at, op) in ops.iter().enumerate() {
                let outcome = apply(overlay, op).map_err(|failure| in_transaction(at, &failure))?;
                if matches!(outcome, Outcome::Compared { swapped: false, .. }) {
                    let failure = Failure::new(Code::Conflict, "the row is not as expected");
                    return Err(in_transaction(at, &failure));
                }
                outcomes.push(outcome);
            }
            Ok(Outcome::Transaction(outcomes))
        }
        Op::Barrier => Ok(Outcome::Passed),
    }
}

fn in_transaction(at: usize, failure: &Failure) -> Failure {
    Failure::new(
        failure.code,
        format!(
            "Transaction refused, nothing was changed: operation {at}: {}",
            failure.text
        ),
    )
}

fn insert(overlay: &mut Overlay<'_>, new: &NewRow) -> Result<(), Failure> {
    let table = new.table;
    let row = Row::decode(table, &new.stored).map_err(damaged)?;
    let exists = if new.fresh_key {
        false
    } else if table.has_key_directory() {
        overlay
            .get(
                Space::Index,
                &keys::directory(table, &new.key[ROW_PREFIX..]),
            )?
            .is_some()
    } else {
        overlay.get(Space::Rows, &new.key)?.is_some()
    };
    if exists {
        return Err(duplicate(table, row.column(KEY)));
    }
    link(overlay, &new.key, &row, None);
    overlay.put(Space::Rows, new.key.clone(), new.stored.clone());
    overlay.count(table.id, 1);
    Ok(())
}

/// A row with this key exists.
pub fn duplicate(table: &Table, id: &[u8]) -> Failure {
    Failure::new(
        Code::DuplicateKey,
        format!(
            "Duplicate primary key: table {} already has a row with {} {}",
            table.name,
            table.key().name,
            String::from_utf8_lossy(id)
        ),
    )
}

fn upsert(
    overlay: &mut Overlay<'_>,
    new: &NewRow,
    given: &Assignments,
) -> Result<Outcome, Failure> {
    let table = new.table;
    if let Some(stored) = overlay.get(Space::Rows, &new.key)? {
        let set: Assignments = given
            .iter()
            .filter(|(at, _)| *at != KEY && Some(*at) != table.guild)
            .cloned()
            .collect();
        let row = update(overlay, table, &new.key, &stored, &set)?;
        return Ok(Outcome::Upserted {
            row,
            created: false,
            table: table.name,
        });
    }
    insert(overlay, new)?;
    Ok(Outcome::Upserted {
        row: new.stored.clone(),
        created: true,
        table: table.name,
    })
}

fn compare_and_set(
    overlay: &mut Overlay<'_>,
    filter: &Filter,
    expected: &Assignments,
    set: &Assignments,
) -> Result<Outcome, Failure> {
    let table = filter.table();
    let Some((key, stored)) = matching(overlay, filter)?.pop() else {
        return Ok(Outcome::Compared {
            swapped: false,
            row: None,
            table: table.name,
        });
    };
    let row = Row::decode(table, &stored).map_err(damaged)?;
    if !expected
        .iter()
        .all(|(at, value)| equal(table.columns[*at].kind, row.column(*at), value))
    {
        return Ok(Outcome::Compared {
            swapped: false,
            row: Some(stored),
            table: table.name,
        });
    }
    let row = update(overlay, table, &key, &stored, set)?;
    Ok(Outcome::Compared {
        swapped: true,
        row: Some(row),
        table: table.name,
    })
}

fn increment(
    overlay: &mut Overlay<'_>,
    filter: &Filter,
    column: usize,
    by: Amount,
    create: Option<&NewRow>,
) -> Result<Outcome, Failure> {
    let table = filter.table();
    let mut found = matching(overlay, filter)?;
    if found.len() > 1 {
        return Err(Failure::bad_request(format!(
            "Cannot increment: {} rows of table {} match; give the {} of one",
            found.len(),
            table.name,
            table.key().name
        )));
    }
    let (key, stored) = match (found.pop(), create) {
        (Some(found), _) => found,
        (None, Some(new)) => {
            insert(overlay, new)?;
            (new.key.clone(), new.stored.clone())
        }
        (None, None) => {
            return Err(Failure::new(
                Code::NotFound,
                format!(
                    "Cannot increment: no row of table {} matches (\"create\": true makes one)",
                    table.name
                ),
            ));
        }
    };
    let row = Row::decode(table, &stored).map_err(damaged)?;
    let value = sum(table, column, row.column(column), by)?;
    update(
        overlay,
        table,
        &key,
        &stored,
        &vec![(column, value.clone())],
    )?;
    Ok(Outcome::Incremented(value))
}

fn sum(table: &Table, column: usize, before: &[u8], by: Amount) -> Result<Vec<u8>, Failure> {
    let declared = &table.columns[column];
    let out_of_range = || {
        Failure::new(
            Code::BadValue,
            format!(
                "Cannot increment {}.{}: the result is out of range",
                table.name, declared.name
            ),
        )
    };
    let text = std::str::from_utf8(before).unwrap_or("0");
    let text = if text == "null" { "0" } else { text };
    match by {
        Amount::Integer(by) => {
            let before: i64 = text.parse().unwrap_or_default();
            let after = before.checked_add(by).ok_or_else(out_of_range)?;
            if declared.kind == Kind::Int32 && i32::try_from(after).is_err() {
                return Err(out_of_range());
            }
            Ok(after.to_string().into_bytes())
        }
        Amount::Float(by) => {
            let after = text.parse::<f64>().unwrap_or_default() + by;
            if !after.is_finite() {
                return Err(out_of_range());
            }
            serde_json::to_vec(&after).map_err(|_| out_of_range())
        }
    }
}

/// Replaces columns of a stored row and returns the new row. `updated_at` follows by itself.
fn update(
    overlay: &mut Overlay<'_>,
    table: &'static Table,
    key: &[u8],
    stored: &[u8],
    set: &Assignments,
) -> Result<Vec<u8>, Failure> {
    let before = Row::decode(table, stored).map_err(damaged)?;
    let mut after = before;
    let touched = format!("\"{}\"", now());
    if let Some(at) = table.column("updated_at") {
        after.set(at, touched.as_bytes());
    }
    for (at, value) in set {
        if (*at == KEY || Some(*at) == table.guild) && before.column(*at) != value.as_slice() {
            return Err(Failure::bad_request(format!(
                "Cannot change {}.{}: it decides where the row is stored; delete the row and insert it anew",
                table.name, table.columns[*at].name
            )));
        }
        after.set(*at, value);
    }
    unlink(overlay, key, &before, Some(&after));
    link(overlay, key, &after, Some(&before));
    let encoded = after.encode();
    overlay.put(Space::Rows, key.to_vec(), encoded.clone());
    Ok(encoded)
}

/// All index entries of a row, for loading a backup.
pub fn index_entries(key: &[u8], row: &Row<'_>) -> Vec<(Space, Vec<u8>, Vec<u8>)> {
    let table = row.table();
    let mut entries: Vec<_> = table
        .secondary()
        .map(|at| (Space::Index, entry(table, at, row, key), Vec::new()))
        .collect();
    if table.has_key_directory() {
        let directory = keys::directory(table, &key[ROW_PREFIX..]);
        entries.push((Space::Index, directory, key[1..ROW_PREFIX].to_vec()));
    }
    entries
}

/// Adds the index entries of a row that `before` did not have.
fn link(overlay: &mut Overlay<'_>, key: &[u8], row: &Row<'_>, before: Option<&Row<'_>>) {
    let Some(before) = before else {
        for (space, key, value) in index_entries(key, row) {
            overlay.put(space, key, value);
        }
        return;
    };
    let table = row.table();
    for at in table.secondary() {
        if before.column(at) != row.column(at) {
            overlay.put(Space::Index, entry(table, at, row, key), Vec::new());
        }
    }
}

/// Removes the index entries of a row that `after` does not have.
fn unlink(overlay: &mut Overlay<'_>, key: &[u8], row: &Row<'_>, after: Option<&Row<'_>>) {
    let table = row.table();
    for at in table.secondary() {
        if after.is_none_or(|after| after.column(at) != row.column(at)) {
            overlay.remove(Space::Index, entry(table, at, row, key));
        }
    }
    if table.has_key_directory() && after.is_none() {
        overlay.remove(Space::Index, keys::directory(table, &key[ROW_PREFIX..]));
    }
}

fn entry(table: &Table, at: usize, row: &Row<'_>, key: &[u8]) -> Vec<u8> {
    let mut entry = keys::index_prefix(table, at, row.column(at), keys::row_partition(key));
    entry.extend_from_slice(&key[ROW_PREFIX..]);
    entry
}

/// A stored row and its key.
type Found = (Vec<u8>, Vec<u8>);

fn matching(overlay: &Overlay<'_>, filter: &Filter) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    visit(overlay, filter, &mut |key, stored| {
        found.push((key.to_vec(), stored.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// A new id that sorts by the time it was made: milliseconds and 80 random bits in Crockford's
/// base 32, as ULIDs are written.
fn fresh_id() -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let milliseconds = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let random = fastrand::u128(..) & ((1 << 80) - 1);
    let mut value = (u128::from(milliseconds) << 80) | random;
    let mut digits = [0u8; 26];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(value & 31) as usize];
        value >>= 5;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}
