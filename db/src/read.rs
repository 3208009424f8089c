//! Carries out reads on a view: a snapshot, or a group commit in the making.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::engine::{EngineError, Space, View};
use crate::failure::{Code, Failure};
use crate::keys;
use crate::overlay::TABLES_MAX;
use crate::query::{Filter, Order, Path, Select};
use crate::row::Row;
use crate::schema::value::SortKey;
use crate::schema::{TABLES, Table};

/// The most bytes of rows that one reply carries. Larger answers are to be read in pages.
pub const REPLY_BYTES_MAX: usize = 32 << 20;

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::DiskFull => Self::new(
                Code::DiskFull,
                "The disk is full: nothing was written. Free space on the data directory's file system; writes then go on by themselves",
            ),
            EngineError::Poisoned => Self::new(
                Code::Unavailable,
                "The store is being opened again after a failed write; retry",
            ),
            error => Self::new(Code::Storage, format!("Storage failed: {error}")),
        }
    }
}

/// Takes the key and the content of a stored row; `Break` ends the visit.
pub type OnRow<'r> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Failure> + 'r;

/// Visits the stored rows that match, with their keys, by the cheapest way.
pub fn visit(view: &dyn View, filter: &Filter, on_row: &mut OnRow<'_>) -> Result<(), Failure> {
    let table = filter.table();
    let mut failed = None;
    let mut consider = |key: &[u8], stored: &[u8], exact: bool| -> ControlFlow<()> {
        let result = (|| {
            if !exact {
                let row = Row::decode(table, stored).map_err(damaged)?;
                if !filter.matches(&row) {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            on_row(key, stored)
        })();
        result.unwrap_or_else(|failure| {
            failed = Some(failure);
            ControlFlow::Break(())
        })
    };
    match filter.path() {
        Path::Row(key) => {
            if let Some(stored) = view.get(Space::Rows, &key)? {
                let _ = consider(&key, &stored, filter.equalities().len() == 1);
            }
        }
        Path::Directory(entry) => {
            if let Some(partition) = view.get(Space::Index, &entry)? {
                let partition =
                    keys::directory_partition(&partition).ok_or_else(|| index_damaged(table))?;
                let key = keys::row(table, partition, &entry[2..]);
                let stored = view
                    .get(Space::Rows, &key)?
                    .ok_or_else(|| index_damaged(table))?;
                let _ = consider(&key, &stored, false);
            }
        }
        Path::Index { prefix, exact } => {
            let mut inner = None;
            view.scan(Space::Index, &prefix, &mut |entry, _| {
                let found = keys::indexed_row(table, entry)
                    .ok_or_else(|| index_damaged(table))
                    .and_then(|key| match view.get(Space::Rows, &key)? {
                        Some(stored) => Ok(consider(&key, &stored, exact)),
                        // Deleted since the scan began.
                        None => Ok(ControlFlow::Continue(())),
                    });
                found.unwrap_or_else(|failure: Failure| {
                    inner = Some(failure);
                    ControlFlow::Break(())
                })
            })?;
            if let Some(failure) = inner {
                return Err(failure);
            }
        }
        Path::Rows { prefix, exact } => {
            view.scan(Space::Rows, &prefix, &mut |key, stored| {
                consider(key, stored, exact)
            })?;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// How many rows match.
pub fn count(view: &dyn View, filter: &Filter) -> Result<u64, Failure> {
    let mut count = 0;
    match filter.path() {
        Path::Rows { exact: true, .. } if filter.is_empty() => {
            return rows_of(view, filter.table());
        }
        Path::Index {
            prefix,
            exact: true,
        } => {
            view.scan(Space::Index, &prefix, &mut |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })?;
        }
        _ => visit(view, filter, &mut |_, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?,
    }
    Ok(count)
}

/// The first match, as stored.
pub fn first(view: &dyn View, filter: &Filter) -> Result<Option<Vec<u8>>, Failure> {
    let mut found = None;
    visit(view, filter, &mut |_, stored| {
        found = Some(stored.to_vec());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// The rows of a `select`, as stored, in order.
pub fn select(view: &dyn View, select: &Select) -> Result<Vec<Vec<u8>>, Failure> {
    let mut page = Page::new(
        select.filter.table(),
        &select.order,
        select.offset,
        select.limit,
    );
    if select.limit == Some(0) {
        return Ok(Vec::new());
    }
    visit(view, &select.filter, &mut |_, stored| page.add(stored))?;
    page.finish()
}

/// Collects one page of an ordered answer, never holding more than it may need.
pub struct Page<'o> {
    table: &'static Table,
    order: &'o [Order],
    offset: usize,
    limit: Option<usize>,
    seen: usize,
    bytes: usize,
    rows: Vec<(Vec<SortKey>, usize, Vec<u8>)>,
}

impl<'o> Page<'o> {
    /// A page of the rows from `offset`, at most `limit`.
    pub fn new(
        table: &'static Table,
        order: &'o [Order],
        offset: usize,
        limit: Option<usize>,
    ) -> Self {
        Self {
            table,
            order,
            offset,
            limit,
            seen: 0,
            bytes: 0,
            rows: Vec::new(),
        }
    }

    /// Offers a stored row; `Break` when no further row can be on the page.
    pub fn add(&mut self, stored: &[u8]) -> Result<ControlFlow<()>, Failure> {
        let at = self.seen;
        self.seen += 1;
        let end = self.limit.map(|limit| self.offset.saturating_add(limit));
        if self.order.is_empty() {
            if at < self.offset {
                return Ok(ControlFlow::Continue(()));
            }
            self.push(Vec::new(), at, stored)?;
            return Ok(match end {
                Some(end) if at + 1 >= end => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            });
        }
        let row = Row::decode(self.table, stored).map_err(damaged)?;
        let key = self
            .order
            .iter()
            .map(|order| {
                SortKey::of(
                    self.table.columns[order.column].kind,
                    row.column(order.column),
                )
            })
            .collect();
        self.push(key, at, stored)?;
        if let Some(end) = end
            && self.rows.len() >= end.saturating_mul(2).max(1024)
        {
            self.sort();
            self.rows.truncate(end);
            self.bytes = self.rows.iter().map(|(_, _, row)| row.len()).sum();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The page.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>, Failure> {
        let skip = if self.order.is_empty() {
            0
        } else {
            self.offset
        };
        if !self.order.is_empty() {
            self.sort();
        }
        let rows = self.rows.into_iter().map(|(_, _, row)| row);
        Ok(rows
            .skip(skip)
            .take(self.limit.unwrap_or(usize::MAX))
            .collect())
    }

    fn push(&mut self, key: Vec<SortKey>, at: usize, stored: &[u8]) -> Result<(), Failure> {
        self.bytes += stored.len();
        if self.bytes > REPLY_BYTES_MAX {
            return Err(Failure::new(
                Code::TooLarge,
                format!(
                    "The answer is larger than {} MiB: ask for a part of it with limit and offset, or with conditions",
                    REPLY_BYTES_MAX >> 20
                ),
            ));
        }
        self.rows.push((key, at, stored.to_vec()));
        Ok(())
    }

    fn sort(&mut self) {
        let order = self.order;
        self.rows.sort_unstable_by(|a, b| {
            for (index, by) in order.iter().enumerate() {
                let compared = a.0[index].cmp(&b.0[index]);
                let compared = if by.descending {
                    compared.reverse()
                } else {
                    compared
                };
                if compared != Ordering::Equal {
                    return compared;
                }
            }
            // Equal rows keep the order in which they were found.
            a.1.cmp(&b.1)
        });
    }
}

/// How many rows a table has: a counter that is written together with the rows.
pub fn rows_of(view: &dyn View, table: &Table) -> Result<u64, Failure> {
    let stored = view.get(Space::Meta, &counter_key(table))?;
    let count = stored
        .and_then(|bytes| bytes[..].try_into().ok())
        .map_or(0, i64::from_le_bytes);
    Ok(u64::try_from(count).unwrap_or_default())
}

/// The counters of all tables, in the order of [`TABLES`].
pub fn all_rows(view: &dyn View) -> Result<[u64; TABLES_MAX], Failure> {
    let mut rows = [0; TABLES_MAX];
    for (at, table) in TABLES.iter().enumerate() {
        rows[at] = rows_of(view, table)?;
    }
    Ok(rows)
}

/// Where a table's counter is kept.
pub fn counter_key(table: &Table) -> Vec<u8> {
    [&b"rows/"[..], table.name.as_bytes()].concat()
}

/// A stored row that cannot be read.
pub fn damaged(error: crate::row::Damaged) -> Failure {
    Failure::new(
        Code::Storage,
        format!("Storage failed: {error}; restore a backup"),
    )
}

fn index_damaged(table: &Table) -> Failure {
    Failure::new(
        Code::Storage,
        format!(
            "Storage failed: an index of table {} is damaged; restore a backup",
            table.name
        ),
    )
}
