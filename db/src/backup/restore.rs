//! Restores a whole backup into one node of a ring, which may have other nodes than then.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use tanako_fleet::ring::Ring;

use super::archive::{Checked, Header, read, read_header};
use super::{BackupError, Progress, io};
use crate::engine::{Batch, Embedded, Engine, Sizes, Space, View};
use crate::keys::{self, ROW_PREFIX};
use crate::overlay::TABLES_MAX;
use crate::read::counter_key;
use crate::row::Row;
use crate::schema::{KEY, TABLES, Table};
use crate::store;

/// Rows in one batch while loading.
const BATCH_ROWS: usize = 4_000;
/// Bytes in one batch while loading, about.
const BATCH_BYTES: usize = 4 << 20;

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Rows in all archives.
    pub rows_total: u64,
    /// Rows whose primary this node is: these were loaded.
    pub rows_loaded: u64,
    /// Rows of each table, in the order of the tables.
    pub rows: [u64; TABLES_MAX],
}

/// Checks that the archives are of different nodes and that none is missing, by their headers.
pub fn check_set(archives: &[PathBuf]) -> Result<(), BackupError> {
    let mut headers: Vec<(&Path, Header)> = Vec::new();
    for path in archives {
        let mut file = File::open(path).map_err(io("open", path))?;
        headers.push((path, read_header(&mut file, path)?));
    }
    let Some((_, first)) = headers.first() else {
        return Err(BackupError::Incomplete("no archive was given".to_owned()));
    };
    let mut seen = BTreeSet::new();
    for (path, header) in &headers {
        if header.ring_nodes != first.ring_nodes {
            return Err(BackupError::Incomplete(format!(
                "{} belongs to another backup than {} (the nodes of the ring differ)",
                path.display(),
                archives[0].display()
            )));
        }
        if !seen.insert(header.node.as_str()) {
            return Err(BackupError::Incomplete(format!(
                "node {} is given twice",
                header.node
            )));
        }
    }
    let missing: Vec<&str> = first
        .ring_nodes
        .iter()
        .map(String::as_str)
        .filter(|node| !seen.contains(node))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(BackupError::Incomplete(format!(
            "the archive of {} is missing; give the archives of all nodes",
            missing.join(", ")
        )))
    }
}

/// Loads the rows whose primary is `name` into a new store in the empty directory `into`.
/// All archives are read and checked once before the first row is stored.
pub fn load(
    archives: &[PathBuf],
    ring: &Ring,
    name: &str,
    into: &Path,
    sizes: Sizes,
    progress: &mut Progress<'_>,
) -> Result<Loaded, BackupError> {
    check_set(archives)?;
    let mut checked: Vec<Checked> = Vec::new();
    for path in archives {
        checked.push(read(path, &mut |_, _| Ok(()), &mut |_, _| {})?);
    }
    let total = checked.iter().map(Checked::rows).sum();
    progress(0, total);
    let engine = Embedded::open(into, sizes).map_err(store::StoreError::from)?;
    let mut loader = Loader {
        engine: &engine,
        batch: Batch::new(),
        batch_rows: 0,
        batch_bytes: 0,
        rows: [0; TABLES_MAX],
    };
    let mut done = 0u64;
    for (path, before) in archives.iter().zip(&checked) {
        let again = read(
            path,
            &mut |table, stored| {
                done += 1;
                if done.is_multiple_of(1_000) {
                    progress(done, total);
                }
                loader.add(table, stored, ring, name, path)
            },
            &mut |_, _| {},
        )?;
        if again.sha256 != before.sha256 {
            return Err(BackupError::Damaged {
                path: path.clone(),
                why: "it was changed while it was read".to_owned(),
            });
        }
    }
    let rows = loader.finish()?;
    // Trust nothing but what the new store itself gives back.
    for (at, table) in TABLES.iter().enumerate() {
        let mut found = 0;
        engine
            .scan(Space::Rows, &[table.id], &mut |_, _| {
                found += 1;
                std::ops::ControlFlow::Continue(())
            })
            .map_err(|error| BackupError::Store(error.into()))?;
        if found != rows[at] {
            return Err(BackupError::Incomplete(format!(
                "table {} should have {} rows after loading and has {found}: two archives hold the same row",
                table.name, rows[at]
            )));
        }
    }
    progress(total, total);
    Ok(Loaded {
        rows_total: total,
        rows_loaded: rows.iter().sum(),
        rows,
    })
}

/// Restores into a data directory that no node uses, whatever state it is in.
pub fn restore_offline(
    archives: &[PathBuf],
    ring: &Ring,
    name: &str,
    data_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<Loaded, BackupError> {
    let _lock = store::lock(data_dir)?;
    let (generation, path) = store::prepare_generation(data_dir)?;
    let loaded = load(archives, ring, name, &path, Sizes::default(), progress);
    match loaded {
        Ok(loaded) => {
            store::make_current(data_dir, &generation)?;
            Ok(loaded)
        }
        Err(error) => {
            // The present data was not touched; what was begun is removed.
            let _ = std::fs::remove_dir_all(&path);
            Err(error)
        }
    }
}

struct Loader<'e> {
    engine: &'e Embedded,
    batch: Batch,
    batch_rows: usize,
    batch_bytes: usize,
    rows: [u64; TABLES_MAX],
}

impl Loader<'_> {
    fn add(
        &mut self,
        table: &'static Table,
        stored: &[u8],
        ring: &Ring,
        name: &str,
        path: &Path,
    ) -> Result<(), BackupError> {
        let row = Row::decode(table, stored).map_err(|error| BackupError::Damaged {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        let partition = keys::partition_of(table, row.column(table.guild.unwrap_or(KEY)));
        if ring.primary(partition) != name {
            return Ok(());
        }
        let key = keys::row(table, partition, &keys::primary(table, row.column(KEY)));
        for (space, key, value) in crate::write::index_entries(&key, &row) {
            self.batch_bytes += key.len();
            self.batch.push((space, key, Some(value)));
        }
        self.batch_bytes += key.len() + stored.len();
        self.batch
            .push((Space::Rows, key.clone(), Some(row.encode())));
        debug_assert!(key.len() >= ROW_PREFIX);
        self.batch_rows += 1;
        if let Some(at) = TABLES.iter().position(|other| other.id == table.id) {
            self.rows[at] += 1;
        }
        if self.batch_rows >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), BackupError> {
        self.batch_rows = 0;
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.engine
            .commit(batch)
            .map_err(|error| BackupError::Store(error.into()))
    }

    fn finish(mut self) -> Result<[u64; TABLES_MAX], BackupError> {
        for (table, rows) in TABLES.iter().zip(self.rows) {
            let value = rows.cast_signed().to_le_bytes().to_vec();
            self.batch
                .push((Space::Meta, counter_key(table), Some(value)));
        }
        self.commit()?;
        Ok(self.rows)
    }
}
